"""Text and other tokens by denoising: solvers that fill masks, what they cost, and what makes them fast and sure."""

from tweed.core.processes import CategoricalProcess, MaskedProcess, UniformProcess
from tweed.core.token_denoiser import TokenDenoiser, TokenEstimate
from tweed.tokens.blockwise import Blockwise, Fill
from tweed.tokens.caching import Caching, NoCache, Reading
from tweed.tokens.categorical import draw_tokens
from tweed.tokens.fast_cache import DualCache, PrefixCache
from tweed.tokens.free_cache import FreeCache
from tweed.tokens.guided import Guided
from tweed.tokens.remasking import LowConfidence, Remasking, RunningConfidence
from tweed.tokens.solver import Decoded, TokenSolver

__all__ = [
    "Blockwise",
    "Caching",
    "CategoricalProcess",
    "Decoded",
    "DualCache",
    "Fill",
    "FreeCache",
    "Guided",
    "LowConfidence",
    "MaskedProcess",
    "NoCache",
    "PrefixCache",
    "Reading",
    "Remasking",
    "RunningConfidence",
    "TokenDenoiser",
    "TokenEstimate",
    "TokenSolver",
    "UniformProcess",
    "draw_tokens",
]
