"""Text and other tokens by denoising: solvers that fill masks, what they cost, and what makes them fast and sure."""

from tweed.core.processes import CategoricalProcess, MaskedProcess, UniformProcess
from tweed.core.token_denoiser import TokenDenoiser, TokenEstimate
from tweed.tokens.ancestral import Ancestral
from tweed.tokens.blockwise import Blockwise, Fill
from tweed.tokens.caching import Caching, NoCache, Reading
from tweed.tokens.categorical import draw_tokens
from tweed.tokens.classifier_free import TokenClassifierFree
from tweed.tokens.fast_cache import DualCache, PrefixCache
from tweed.tokens.first_hitting import FirstHitting
from tweed.tokens.free_cache import FreeCache
from tweed.tokens.guided import Guided
from tweed.tokens.likelihood import TokenBound, exact_bound, likelihood_bound
from tweed.tokens.pretrained import load_pretrained
from tweed.tokens.remasking import LowConfidence, Remasking, RunningConfidence
from tweed.tokens.solver import Decoded, TokenSolver
from tweed.tokens.truncation import truncated_gumbel_probs

__all__ = [
    "Ancestral",
    "Blockwise",
    "Caching",
    "CategoricalProcess",
    "Decoded",
    "DualCache",
    "Fill",
    "FirstHitting",
    "FreeCache",
    "Guided",
    "LowConfidence",
    "MaskedProcess",
    "NoCache",
    "PrefixCache",
    "Reading",
    "Remasking",
    "RunningConfidence",
    "TokenBound",
    "TokenClassifierFree",
    "TokenDenoiser",
    "TokenEstimate",
    "TokenSolver",
    "UniformProcess",
    "draw_tokens",
    "exact_bound",
    "likelihood_bound",
    "load_pretrained",
    "truncated_gumbel_probs",
]
