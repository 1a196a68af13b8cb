"""What solvers share whose runs can be undone exactly: they carry two states, and a run goes on from both.

One state says where the ODE is, and no explicit one-step method can be undone from that alone. A second state that
took part in the last step makes the step an equation with one unknown. So a run of such a solver ends with a `Pair`,
`tweed.invert` returns one, and `tweed.sample` goes on from one.
"""

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core.processes import Process
from tweed.core.time import working_dtype
from tweed.errors import IncompatibleError, InputError
from tweed.solvers.base import Observer, Problem, Solver, State

_HOPELESS = 1e-2
Grid = tuple[float, ...] | Tensor


@dataclass(frozen=True, eq=False)
class Pair:
    """Two states of one run, from which the solver that made them goes on, or back, exactly.

    Attributes:
        x: the state at the end of the run, shape (b, *event): a latent after `invert`, the samples after `sample`.
        partner: the second state, like `x`: that of one step before (`BDIA`), or the twin at the same time (`EDICT`).
        end: which end of the grid `x` is at.
        times: the grid of the run, falling: from it alone can the same steps be taken again.
        solver, process: what the run was made with.
        dtype: the type that the denoiser is called in; the states are kept in float64 beside it (see `Reversible`).
    """

    x: Float[Tensor, "b *event"]
    partner: Float[Tensor, "b *event"]
    end: Literal["noise", "data"]
    times: Grid
    solver: "Reversible"
    process: Process
    dtype: torch.dtype = torch.float32

    def __post_init__(self):
        if self.x.shape != self.partner.shape:
            raise InputError(
                f"partner: shape {tuple(self.partner.shape)} was given; expected that of x, {tuple(self.x.shape)}"
            )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def states(self) -> Float[Tensor, "b *event"]:
        """`x` in the type that the denoiser is called in: what another solver can start from."""
        return self.x.to(self.dtype)

    def to(self, device: torch.device | str) -> "Pair":
        """The same pair on another device."""
        times = self.times.to(device) if isinstance(self.times, Tensor) else self.times
        return replace(self, x=self.x.to(device), partner=self.partner.to(device), times=times)

    def select(self, rows: slice | Sequence[int] | Tensor) -> "Pair":
        """Some samples of the batch, as a pair."""
        times = self.times[:, rows] if isinstance(self.times, Tensor) else self.times
        return replace(self, x=self.x[rows], partner=self.partner[rows], times=times)


class Carried(NamedTuple):
    """What a run remembers.

    Attributes:
        shown: the state as the denoiser and observers see it; another one in its place is an observer's.
        x, partner: both states as they are kept; no partner before the first step from a single state.
        ahead: whether `partner` is the state after `x`: at the beginning of a run that goes on from a pair.
        lines: the solver's coefficients.
    """

    shown: Tensor
    x: Tensor
    partner: Tensor | None
    ahead: bool
    lines: tuple


class Reversible(Solver):
    """A solver that steps forwards and backwards through the same pairs of states, without a fixed-point iteration.

    Attributes:
        float64: keep the two states in float64, whatever the denoiser is called in. The same rounded states then reach
            the network on the way back, and its rounding errors cancel; float32 states add rounding of their own, which
            the flow amplifies (about 1e-5, and more on grids with short last steps). False is for devices without
            float64.
    """

    float64: bool

    @abstractmethod
    def amplification(self, steps: int) -> float:
        """By how much rounding errors can grow when `steps` steps are undone."""

    @abstractmethod
    def lines(self, process: Process, times: Grid) -> tuple:
        """The coefficients of the steps of a grid, falling or rising."""

    def init(self, problem: Problem, x: Float[Tensor, "b *event"]) -> State:
        return self._begin(problem, x, x, None)

    def resume(self, problem: Problem, pair: Pair) -> State:
        """The state before the first step of a run that goes on from a pair."""
        return self._begin(problem, pair.states, pair.x, pair.partner)

    def run(self, problem: Problem, x: Tensor | Pair, observer: Observer | None = None) -> Pair:
        """The whole run, from one state or a pair, to a pair; on a rising grid it undoes the falling one."""
        state = self.resume(problem, x) if isinstance(x, Pair) else self.init(problem, x)
        state = self.follow(problem, state, observer)
        kept, up = self.kept(state), rising(problem.times)
        partner = kept if state.memory.partner is None else state.memory.partner
        times = problem.times if not up else backwards(problem.times)
        return Pair(kept, partner, "noise" if up else "data", times, self, problem.process, state.x.dtype)

    def integrate(
        self, problem: Problem, x: Float[Tensor, "b *event"] | Pair, observer: Observer | None = None
    ) -> Float[Tensor, "b *event"]:
        return self.run(problem, x, observer).states

    def kept(self, state: State) -> Tensor:
        """The state with all its digits; an observer's, where one has replaced it."""
        memory: Carried = state.memory
        return memory.x if state.x is memory.shown else self._keep(state.x)

    def carry(self, state: State, x: Tensor, partner: Tensor, ahead: bool = False) -> State:
        """The next state, in the types of this one."""
        shown = x.to(state.x.dtype)
        return State(shown, Carried(shown, x, partner, ahead, state.memory.lines))

    def _keep(self, x: Tensor) -> Tensor:
        if not self.float64:
            return x
        if x.device.type == "mps":
            raise IncompatibleError(
                f"float64: the device {x.device} has none; use {type(self).__name__}(float64=False)"
            )
        return x.to(torch.promote_types(x.dtype, torch.float64))

    def _begin(self, problem: Problem, shown: Tensor, x: Tensor, partner: Tensor | None) -> State:
        shown = shown.to(working_dtype(shown))
        x = self._keep(x.to(working_dtype(x)))
        if rising(problem.times):
            self._check_amplification(problem.steps, x.dtype, shown.dtype)
        lines = _lines(self, problem)
        partner = None if partner is None else partner.to(x.dtype)
        return State(shown, Carried(shown, x, partner, partner is not None, lines))

    def _check_amplification(self, steps: int, kept: torch.dtype, called: torch.dtype) -> None:
        grows = self.amplification(steps)
        error = torch.finfo(kept).eps * grows
        said = f"solver: {self} over {steps} steps amplifies rounding {grows:.1e} times on the way from data to noise"
        if not error <= _HOPELESS:
            raise InputError(f"{said}, to {error:.1e} in {kept}; take fewer steps, or a factor nearer to 1")
        if torch.finfo(called).eps * grows > _HOPELESS:
            warnings.warn(
                f"{said}; where the denoiser computes in {called}, that leaves little of the inverse. Take fewer steps, "
                "a factor nearer to 1, or states and a network in float64",
                RuntimeWarning,
                stacklevel=6,
            )


@lru_cache(maxsize=256)
def _cached(solver: Reversible, process: Process, times: tuple[float, ...]) -> tuple:
    solver.check(process)
    return solver.lines(process, times)


def _lines(solver: Reversible, problem: Problem) -> tuple:
    times = problem.times
    if isinstance(times, Tensor):
        solver.check(problem.process)
        return solver.lines(problem.process, times)
    return _cached(solver, problem.process, times)


def growth(factor: float, count: float) -> float:
    """`factor^-count` for a factor in (0, 1]; at the most e^700."""
    return math.exp(min(-count * math.log(factor), 700.0))


def rising(times: Grid) -> bool:
    """Whether a grid goes from data to noise."""
    return bool((times[0] < times[-1]).any()) if isinstance(times, Tensor) else times[0] < times[-1]


def backwards(times: Grid) -> Grid:
    """A grid in the other direction."""
    return times.flip(0) if isinstance(times, Tensor) else times[::-1]


def resumed(
    pair: Pair,
    end: Literal["noise", "data"],
    process: Process,
    solver: Solver | None,
    steps: int | None,
    times: Sequence[float] | Tensor | None,
    grid: Callable[..., Tensor] | None,
) -> tuple["Reversible", Grid]:
    """The solver and the falling grid of a run that goes on from `pair` at its `end`.

    A pair brings both, so they may be left out; given, they must be the same.

    Raises:
        IncompatibleError: another solver or process than those of the pair.
        InputError: the pair is at the other end, or the grid is another one.
    """
    if pair.end != end:
        other = {"noise": "tweed.sample", "data": "tweed.invert"}[pair.end]
        raise InputError(f"start: a pair at the {pair.end} end was given; expected one at the {end} end (use {other})")
    if solver is not None and solver != pair.solver:
        raise IncompatibleError(
            f"solver: {solver} was given; the pair was made by {pair.solver}, and only that undoes it exactly. Leave "
            "solver out, or start the other solver from pair.states"
        )
    if process != pair.process:
        raise IncompatibleError(f"denoiser: its process is {process}; the pair was made on {pair.process}")
    count, said = len(pair.times) - 1, "a pair brings its grid: leave times, steps and grid out, or give the same"
    if steps is not None and steps != count:
        raise InputError(f"steps: {steps} was given; the pair was made in {count} ({said})")
    wanted = None if times is None else torch.as_tensor(times, dtype=torch.float64)
    if grid is not None and not isinstance(pair.times, Tensor):
        wanted = grid(process, count, start=pair.times[0], end=pair.times[-1])
    if wanted is not None:
        own = torch.as_tensor(pair.times, dtype=torch.float64)
        if wanted.shape != own.shape or not torch.allclose(wanted.to(own.device), own, rtol=0.0, atol=1e-12):
            raise InputError(f"times: another grid than the pair's was given ({said})")
    return pair.solver, pair.times
