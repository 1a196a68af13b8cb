"""What solvers of tokens share, and what a decoding gives back."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tweed.core import random
from tweed.core.denoiser import Denoiser
from tweed.core.processes import CategoricalProcess, MaskedProcess, Process
from tweed.errors import IncompatibleError
from tweed.solvers.base import Observer, Problem, Solver, State

_DRAWS_PER_STEP = 64


@dataclass(frozen=True)
class Decoded:
    """Tokens, and what they cost.

    Attributes:
        tokens: (b, length).
        calls: evaluations of the network, of the whole batch each.
        positions: positions evaluated, over all calls, of one row of the batch.
        extra: more figures of the method (a guide's calls, say), by name.
    """

    tokens: Int[Tensor, "b length"]
    calls: int
    positions: int
    extra: Mapping[str, float] = field(default_factory=dict)


class TokenSolver(Solver):
    """A solver on a categorical process: it fills the masks of its start, and leaves all other tokens as they are.

    So a start with a prompt continues it, and one with holes is infilled. Subclasses give `decode`.
    """

    states: ClassVar[Literal["numbers", "tokens"]] = "tokens"

    @property
    def evaluations(self) -> int:
        return 1

    @property
    def stochastic(self) -> bool:
        return True

    @abstractmethod
    def decode(self, problem: Problem, x: Int[Tensor, "b length"], observer: Observer | None = None) -> Decoded:
        """The whole run, with its costs."""

    def integrate(self, problem: Problem, x: Tensor, observer: Observer | None = None) -> Tensor:
        """The whole run: what `tweed.sample` calls."""
        return self.decode(problem, x, observer).tokens

    def step(self, problem: Problem, state: State, i: int) -> State:
        """Runs of tokens are whole.

        Raises:
            IncompatibleError: always; see `decode`.
        """
        raise IncompatibleError(
            f"{type(self).__name__}.step: it decodes as a whole; expected `decode` or `tweed.sample`"
        )


def require_masked(solver: Solver, process: Process) -> None:
    """Raise where the process has no mask.

    Raises:
        IncompatibleError: naming the solver and the process.
    """
    if not isinstance(process, MaskedProcess):
        raise IncompatibleError(
            f"solver: {type(solver).__name__} needs a MaskedProcess; {type(process).__name__} was given"
        )


def mask_of(problem: Problem) -> int:
    """The mask token of a problem's process."""
    process: Any = problem.process
    return process.mask


def uniforms(
    problem: Problem, shape: Sequence[int], step: int, draw: int = 0, device: torch.device | str | None = None
) -> Float[Tensor, "b ..."]:
    """Uniform numbers of a run, float64: the same for the same step and draw (below 64), whatever was drawn before."""
    number = 1 + step * _DRAWS_PER_STEP + draw
    return random.uniform(shape, problem.seed, index=problem.index, draw=number, dtype=torch.float64, device=device)


def implied_time(
    process: CategoricalProcess, masked: Bool[Tensor, "b length"], free: Bool[Tensor, "b length"]
) -> Float[Tensor, " b"]:
    """The time at which so many of the free tokens are masked on average: what a timed network is told by a solver that
    counts tokens, float64."""
    share = masked.sum(1).double() / free.sum(1).clamp_min(1).double()
    return process.time_kept(1.0 - share)


def is_timed(denoiser: Denoiser) -> bool:
    """Whether a denoiser, or one inside of it, is told the time."""
    inner: Any = denoiser
    while not hasattr(inner, "timed") and hasattr(inner, "denoiser"):
        inner = inner.denoiser
    return bool(getattr(inner, "timed", True))
