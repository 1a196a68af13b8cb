"""What of a sequence is evaluated at each step: the whole of it, or what caches of keys and values leave over."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from tweed.core.denoiser import Denoiser
from tweed.errors import IncompatibleError
from tweed.tokens.solver import is_timed


class Reading(ABC):
    """The evaluations of one run: made by a `Caching`, it remembers what it keeps, and counts.

    Attributes:
        calls, positions: the evaluations so far, and the positions of a row over all of them.
    """

    def __init__(self, denoiser: Denoiser, cond: Mapping[str, Any]):
        self.denoiser, self.cond = denoiser, dict(cond)
        self.calls = self.positions = 0

    def begin(self, x: Int[Tensor, "b length"], low: int, high: int) -> None:
        """The block `low ... high - 1` is decoded next; what is before it is final."""
        return

    @abstractmethod
    def logits(self, x: Int[Tensor, "b length"], low: int, high: int, t: Any) -> Float[Tensor, "b n size"]:
        """The logits of the block."""

    def counted(self, positions: int) -> None:
        """One more evaluation, of so many positions."""
        self.calls += 1
        self.positions += positions


class CachedReading(Reading):
    """Evaluations of a part of a sequence, with a cache of keys and values for the rest.

    Raises:
        IncompatibleError: the denoiser has no such cache.
    """

    def __init__(self, denoiser: Denoiser, x: Int[Tensor, "b length"], cond: Mapping[str, Any]):
        super().__init__(denoiser, cond)
        caching = getattr(denoiser, "caching", None)
        if caching is None or denoiser._forward_hooks:
            raise IncompatibleError(
                f"caching: {type(denoiser).__name__} is evaluated as a whole; expected a TokenDenoiser, or NoCache()"
            )
        self.cache = caching(*x.shape)
        self.source: Any = denoiser

    def evaluate(
        self, x: Int[Tensor, "b length"], span: tuple[int, int], first: int, last: int
    ) -> Float[Tensor, "b n size"]:
        """The logits of `span` from an evaluation of `first ... last - 1`, which attends to all that the cache holds, but to
        nothing behind `last` where that was never evaluated."""
        shifted = min(first, max(span[0] - 1, 0)) if getattr(self.source, "shift", False) else first
        self.counted(last - shifted)
        return self.source.read(x, span, evaluate=(first, last), cache=self.cache, **self.cond)


class Caching(ABC):
    """A way of evaluating; an immutable value."""

    @abstractmethod
    def open(self, denoiser: Denoiser, x: Int[Tensor, "b length"], cond: Mapping[str, Any]) -> Reading:
        """The evaluations of one run.

        Raises:
            IncompatibleError: the denoiser keeps no keys and values.
        """


@dataclass(frozen=True)
class NoCache(Caching):
    """Everything at every step: exact, for any denoiser."""

    def open(self, denoiser: Denoiser, x: Tensor, cond: Mapping[str, Any]) -> Reading:
        """Evaluations of the whole sequence."""
        return _Whole(denoiser, cond)


class _Whole(Reading):
    def __init__(self, denoiser: Denoiser, cond: Mapping[str, Any]):
        super().__init__(denoiser, cond)
        # A plain denoiser computes the logits of the block alone; a hook would not see that.
        self.read: Any = getattr(denoiser, "read", None) if not denoiser._forward_hooks else None
        self.timed = is_timed(denoiser)

    def logits(self, x, low, high, t):
        self.counted(x.shape[1])
        told = {"t": t} if self.timed else {}
        if self.read is not None:
            return self.read(x, (low, high), **told, **self.cond)
        estimate: Any = self.denoiser(x, t if self.timed else 1.0, **self.cond)
        return estimate.logits[:, low:high]
