"""Training: objectives, weightings, times, couplings, the loop, moving averages, checkpoints, configurations."""

from tweed.core.precision import fast_precision
from tweed.training import couplings, flow_maps, objectives, times, weightings
from tweed.training.checkpoint import build_denoiser, bundled, denoiser_config, load, push_to_hub, read_config, save
from tweed.training.config import TrainConfig, build_data, train
from tweed.training.couplings import Coupling, Independent, MinibatchOT
from tweed.training.ema import EMA, PowerEMA, reconstruct, reconstruct_weights
from tweed.training.expert_prior import ExpertPrior
from tweed.training.fit import FitResult, fit
from tweed.training.flow_maps import ConsistencyLoss, MeanFlowLoss
from tweed.training.fokker_planck import FokkerPlanck, log_fp_residual
from tweed.training.masked_diffusion import MaskedDiffusionLoss
from tweed.training.modalities import MultiModalLoss
from tweed.training.objectives import DenoisingLoss, InterpolantLoss, Objective, flow_matching
from tweed.training.plain import from_config, to_config
from tweed.training.sheets import tile, write_sheet
from tweed.training.state import posthoc_ema
from tweed.training.times import TimeSampler
from tweed.training.token_losses import NextTokenLoss, TokenLoss
from tweed.training.weightings import Weighting

__all__ = [
    "EMA",
    "ConsistencyLoss",
    "Coupling",
    "DenoisingLoss",
    "ExpertPrior",
    "FitResult",
    "FokkerPlanck",
    "Independent",
    "InterpolantLoss",
    "MaskedDiffusionLoss",
    "MeanFlowLoss",
    "MinibatchOT",
    "MultiModalLoss",
    "NextTokenLoss",
    "Objective",
    "PowerEMA",
    "TimeSampler",
    "TokenLoss",
    "TrainConfig",
    "Weighting",
    "build_data",
    "build_denoiser",
    "bundled",
    "couplings",
    "denoiser_config",
    "fast_precision",
    "fit",
    "flow_maps",
    "flow_matching",
    "from_config",
    "load",
    "log_fp_residual",
    "objectives",
    "posthoc_ema",
    "push_to_hub",
    "read_config",
    "reconstruct",
    "reconstruct_weights",
    "save",
    "tile",
    "times",
    "to_config",
    "train",
    "weightings",
    "write_sheet",
]
