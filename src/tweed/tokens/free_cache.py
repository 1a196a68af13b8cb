"""FreeCache: the keys and values of tokens that are final are computed once.

"Accelerating Diffusion Language Model Inference via Efficient KV Caching and Guided Diffusion" (2025, arXiv 2505.21467),
Section 3: what a clean token's keys and values are changes little over the steps that are left, and masked tokens behind it
weigh little on them. So they are frozen, and the network is run on what is not final alone, which shrinks block by block.
In a network whose attention is causal they do not change at all, and nothing is approximated.
"""

from dataclasses import dataclass

from tweed.core.denoiser import Denoiser
from tweed.errors import InputError
from tweed.tokens.caching import CachedReading, Caching


@dataclass(frozen=True)
class FreeCache(Caching):
    """Everything before the present block is frozen; the block and what follows it is evaluated at each step.

    The first step of the first block evaluates the whole sequence. A block's keys and values are computed once more from its
    final tokens before they are frozen, which costs an evaluation a block. As published they are those of the block's last
    step (`clean=False`), made while some of its tokens were still masked: what follows then attends to masks that are not
    there. On a Markov chain, where the last token says all, that costs a quarter of the tokens.

    Args:
        window: positions behind the block that are evaluated and attended to; all by default. The published sliding window
            is 128; with it attention no longer sees the end of the sequence.
        refresh: evaluate the whole sequence anew at the first step of every so many blocks; never by default.
        clean: freeze what the final tokens of a block give, not what its last step left.

    Raises:
        InputError: a number is out of its range.
    """

    window: int | None = None
    refresh: int | None = None
    clean: bool = True

    def __post_init__(self):
        if self.window is not None and self.window < 0:
            raise InputError(f"window: {self.window} was given; expected 0 or more positions, or None")
        if self.refresh is not None and self.refresh < 1:
            raise InputError(f"refresh: {self.refresh} was given; expected a positive number of blocks, or None")

    def open(self, denoiser: Denoiser, x, cond):
        """Evaluations that shrink block by block."""
        return _Free(self, denoiser, x, cond)


class _Free(CachedReading):
    def __init__(self, policy: FreeCache, denoiser: Denoiser, x, cond):
        super().__init__(denoiser, x, cond)
        self.policy, self.blocks, self.whole = policy, 0, True
        self.last: tuple[int, int] | None = None

    def begin(self, x, low, high):
        refresh = self.policy.refresh
        if refresh is not None and self.blocks % refresh == 0:
            self.whole = True
        elif self.policy.clean and self.last is not None and not self.whole:
            self.evaluate(x, self.last, self.last[0], self._end(x, self.last[1]))
        self.blocks, self.last = self.blocks + 1, (low, high)

    def logits(self, x, low, high, t):
        first, self.whole = (0 if self.whole else low), False
        return self.evaluate(x, (low, high), first, self._end(x, high))

    def _end(self, x, high: int) -> int:
        window = self.policy.window
        return x.shape[1] if window is None else min(high + window, x.shape[1])
