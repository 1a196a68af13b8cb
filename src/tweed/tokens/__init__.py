"""Text and other tokens by denoising: solvers that fill masks, what they cost, and what makes them fast and sure."""

from tweed.core.processes import CategoricalProcess, MaskedProcess, UniformProcess
from tweed.core.token_denoiser import TokenDenoiser, TokenEstimate
from tweed.tokens.ancestral import Ancestral
from tweed.tokens.blockwise import Blockwise, Fill
from tweed.tokens.caching import Caching, NoCache, Reading
from tweed.tokens.categorical import draw_tokens
from tweed.tokens.chunked_perplexity import ChunkPerplexity, causal_chunk_perplexity, masked_chunk_perplexity
from tweed.tokens.classifier_free import TokenClassifierFree
from tweed.tokens.fast_cache import DualCache, PrefixCache
from tweed.tokens.first_hitting import FirstHitting
from tweed.tokens.free_cache import FreeCache
from tweed.tokens.guided import Guided
from tweed.tokens.likelihood import TokenBound, exact_bound, likelihood_bound
from tweed.tokens.needle import Needle, NeedleGrid, contained, edit_similarity, needle_grid, planted
from tweed.tokens.non_simultaneous import NonSimultaneous, NonSimultaneousLoss, SqrtProcess, embedding_denoiser, words
from tweed.tokens.poisson_levels import PoissonTokenSchedule, optimize_time_grid
from tweed.tokens.policy_gradient import MDPO, RandomMaskGRPO, train_policy
from tweed.tokens.pretrained import load_pretrained
from tweed.tokens.remasking import LowConfidence, Remasking, RunningConfidence
from tweed.tokens.rope_coverage import RopeCoverage, rope_coverage
from tweed.tokens.rope_scaling import critical_dimension, extended, ntk_factor, ntk_rope_base
from tweed.tokens.solver import Decoded, TokenSolver
from tweed.tokens.truncation import truncated_gumbel_probs

__all__ = [
    "MDPO",
    "Ancestral",
    "Blockwise",
    "Caching",
    "CategoricalProcess",
    "ChunkPerplexity",
    "Decoded",
    "DualCache",
    "Fill",
    "FirstHitting",
    "FreeCache",
    "Guided",
    "LowConfidence",
    "MaskedProcess",
    "Needle",
    "NeedleGrid",
    "NoCache",
    "NonSimultaneous",
    "NonSimultaneousLoss",
    "PoissonTokenSchedule",
    "PrefixCache",
    "RandomMaskGRPO",
    "Reading",
    "Remasking",
    "RopeCoverage",
    "RunningConfidence",
    "SqrtProcess",
    "TokenBound",
    "TokenClassifierFree",
    "TokenDenoiser",
    "TokenEstimate",
    "TokenSolver",
    "UniformProcess",
    "causal_chunk_perplexity",
    "contained",
    "critical_dimension",
    "draw_tokens",
    "edit_similarity",
    "embedding_denoiser",
    "exact_bound",
    "extended",
    "likelihood_bound",
    "load_pretrained",
    "masked_chunk_perplexity",
    "needle_grid",
    "ntk_factor",
    "ntk_rope_base",
    "optimize_time_grid",
    "planted",
    "rope_coverage",
    "train_policy",
    "truncated_gumbel_probs",
    "words",
]
