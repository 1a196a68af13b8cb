"""The caches of "Fast-dLLM: Training-free Acceleration of Diffusion LLM" (Wu et al., 2025, arXiv 2505.22618), Section 3.2.

Each block begins with an evaluation of the whole sequence, which fills the cache. Until the block is done, what is frozen is
read from there.
"""

from dataclasses import dataclass

from tweed.core.denoiser import Denoiser
from tweed.tokens.caching import CachedReading, Caching


@dataclass(frozen=True)
class PrefixCache(Caching):
    """What is before the block is frozen; the block and what follows it is evaluated at each step."""

    def open(self, denoiser: Denoiser, x, cond):
        """Evaluations from the block on."""
        return _Fast(denoiser, x, cond, suffix=True)


@dataclass(frozen=True)
class DualCache(Caching):
    """What is before the block and behind it is frozen; the block alone is evaluated at each step."""

    def open(self, denoiser: Denoiser, x, cond):
        """Evaluations of the block."""
        return _Fast(denoiser, x, cond, suffix=False)


class _Fast(CachedReading):
    def __init__(self, denoiser: Denoiser, x, cond, suffix: bool):
        super().__init__(denoiser, x, cond)
        self.suffix, self.fresh = suffix, False

    def begin(self, x, low, high):
        self.fresh = True

    def logits(self, x, low, high, t):
        whole, self.fresh = self.fresh, False
        length = x.shape[1]
        first, last = (0, length) if whole else (low, length if self.suffix else high)
        return self.evaluate(x, (low, high), first, last)
