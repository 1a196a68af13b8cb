"""Time shift: Li et al., "Alleviating Exposure Bias in Diffusion Models through Sampling with Shifted Time Steps" (ICLR
2024, arXiv 2305.15583).

A sampler's state is not a draw of the marginal that the network was trained on: it carries the errors of the steps so
far. In many dimensions the noise that it does carry can be read off it: the sample variance `v` of its elements is close
to `sigma(t)^2` where that of the data is small. After each step the state is given the time, within a window around the
nominal one, whose variance is nearest to `v` (their Eq. 12); the network is asked there, and the next step starts there.

The variance of the marginal is `sigma^2`, or `sigma^2 + alpha^2 v_0` where the mean variance `v_0` of the elements of a
sample of the data is given: then the data's share is no longer taken for noise, and the cutoff may be lower.
"""

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import targets
from tweed.core.denoiser import Denoiser, Wrapper
from tweed.core.processes import Process
from tweed.core.time import left
from tweed.errors import IncompatibleError, InputError, choose
from tweed.solvers.base import Problem, Solver, State, require_gaussian
from tweed.solvers.ddim import DDIM
from tweed.solvers.table import TableSolver, follow, with_endpoint

_NODES = 1001


class _Memory(NamedTuple):
    """The base solver's memory, and the time that each sample is taken for, shape (b,); None before the first shift."""

    base: Any
    label: Tensor | None = None


@dataclass(frozen=True)
class TimeShift(Solver):
    """Any solver, with the time of each sample read off its own variance between steps.

    A base with one evaluation a step and no memory (DDIM, DDPM, Euler) steps from the shifted times exactly, with
    coefficients of its own for each sample. For any other (multistep, several stages) the shifted time is what the
    network is told in the first evaluation of a step, and the coefficients are the nominal ones, as in the authors' code
    for DEIS: the stored estimates belong to the shifted times all the same.

    Args:
        base: any solver that steps along a falling grid of numbers.
        window: the width of the window around the nominal time, in units of time (0.04 is 40 of 1000 steps); about two
            thirds of a step to begin with. 0 is the base itself.
        cutoff: times at or below it are not shifted: there the data's variance counts. 1 is the base itself.
        data_variance: `v_0`, above; None compares with `sigma^2` alone, as published.
        variant: "paper"; or "target-only", the released code for DDIM: the window lies around the time that the step
            goes to, and only that step's end is shifted, which nearly always takes the window's upper edge.

    Raises:
        InputError: a negative window, a cutoff or a variance out of range, or a base that cannot be wrapped.
        IncompatibleError: (on use) the marginal's variance does not rise in time, as with v_0 >= 1 on a
            variance-preserving process; a grid that rises or has times for each sample.
    """

    base: Solver = field(default_factory=DDIM)
    window: float = 0.04
    cutoff: float = 0.3
    data_variance: float | None = None
    variant: Literal["paper", "target-only"] = "paper"

    def __post_init__(self):
        choose("variant", self.variant, ("paper", "target-only"))
        if not isinstance(self.base, Solver) or self.base.adaptive or isinstance(self.base, TimeShift):
            raise InputError(f"base: {self.base!r} was given; expected a solver that follows a given grid")
        if not 0.0 <= self.window <= 1.0 or not 0.0 <= self.cutoff <= 1.0:
            raise InputError(f"window, cutoff: {self.window}, {self.cutoff} were given; expected numbers in [0, 1]")
        if self.data_variance is not None and not self.data_variance >= 0.0:
            raise InputError(f"data_variance: {self.data_variance} was given; expected a number of at least 0")
        if self.variant == "target-only" and not isinstance(self.base, TableSolver):
            raise InputError(f"variant: 'target-only' needs a solver with a table; {type(self.base).__name__} has none")

    @property
    def order(self) -> float:
        """Of the base, where nothing is shifted."""
        return getattr(self.base, "order", 1)

    @property
    def evaluations(self) -> int:
        return self.base.evaluations

    @property
    def stochastic(self) -> bool:
        return self.base.stochastic

    @property
    def _lowest(self) -> float:
        """The earliest time that a state may be given; 0 where nothing is ever shifted."""
        return max(self.cutoff - 0.5 * self.window, 0.0) if self.window > 0.0 and self.cutoff < 1.0 else 0.0

    def check(self, process: Process) -> None:
        require_gaussian(self, process)
        self.base.check(process)
        if self.window > 0.0 and self.cutoff < 1.0:
            _variances(process, self.data_variance, self._lowest)

    def init(self, problem: Problem, x: Float[Tensor, "b *event"]) -> State:
        times = problem.times
        if isinstance(times, Tensor) or any(b >= a for a, b in pairwise(times)):
            raise IncompatibleError("times: TimeShift follows a falling grid of numbers, not times for each sample")
        if math.prod(x.shape[1:]) < 2:
            raise InputError(f"x: samples of shape {tuple(x.shape[1:])} were given; a variance needs two elements")
        state = self.base.init(problem, x)
        return State(x, _Memory(state.memory))

    def step(self, problem: Problem, state: State, i: int) -> State:
        x, (memory, label) = state
        t, u = problem.times[i], problem.times[i + 1]
        if self.variant == "target-only":
            return self._to_shifted(problem, x, memory, i)
        if label is None:
            x, memory = self.base.step(problem, State(x, memory), i)
        elif _exact(self.base, problem.process):
            x = _one_step(self.base, problem, x, label, u, i)  # type: ignore[arg-type]
        else:
            told = replace(problem, denoiser=_Relabelled(problem.denoiser, float(t), label))
            x, memory = self.base.step(told, State(x, memory), i)
        shifted = self.window > 0.0 and u > self.cutoff
        return State(x, _Memory(memory, self.label(problem, x, float(u)) if shifted else None))

    def label(self, problem: Problem, x: Float[Tensor, "b *event"], t: float) -> Float[Tensor, " b"]:
        """The time within the window around `t` whose marginal has each sample's variance, float64."""
        if len(x) == 0:
            return torch.empty(0, dtype=torch.float64, device=x.device)
        low, high = max(t - 0.5 * self.window, 0.0), min(t + 0.5 * self.window, problem.process.t_max)
        known, times = _variances(problem.process, self.data_variance, self._lowest)
        return _time_of(problem, x, t, known, times).clamp(low, max(high, low))

    def _to_shifted(self, problem: Problem, x: Tensor, memory: Any, i: int) -> State:
        t, u = problem.times[i], problem.times[i + 1]
        if i == 0 or self.window == 0.0 or u <= self.cutoff or not _exact(self.base, problem.process):
            return _nominal(self.base, problem, x, memory, i)
        target = self.label(problem, x, float(u)).clamp(max=float(t))
        here = torch.full_like(target, float(t))
        x = _one_step(self.base, problem, x, here, target, i)  # type: ignore[arg-type]
        return State(x, _Memory(memory))


class EpsilonScaling(Wrapper):
    """The noise estimate divided by `factor`, a little above 1: Ning et al., "Elucidating the Exposure Bias in Diffusion
    Models" (ICLR 2024), Eq. 12. The published comparison to the time shift; 1 is the denoiser itself.

    Raises:
        InputError: a factor that is not positive.
    """

    def __init__(self, denoiser: Denoiser, factor: float = 1.001):
        super().__init__(denoiser)
        if not factor > 0.0:
            raise InputError(f"factor: {factor} was given; expected a positive number")
        self.factor = factor

    def forward(self, x, t, **cond):
        estimate = self.denoiser(x, t, **cond)
        return estimate if self.factor == 1.0 else estimate.replace(targets.Noise(), estimate.eps / self.factor)


class _Relabelled(Wrapper):
    """The denoiser, told each sample's own time where it is asked for the nominal one."""

    def __init__(self, denoiser: Denoiser, t: float, label: Tensor):
        super().__init__(denoiser)
        self.t, self.own = t, label

    def forward(self, x, t, **cond):
        return self.denoiser(x, self.own if not isinstance(t, Tensor) and t == self.t else t, **cond)


def _nominal(base: Solver, problem: Problem, x: Tensor, memory: Any, i: int) -> State:
    x, memory = base.step(problem, State(x, memory), i)
    return State(x, _Memory(memory))


@lru_cache(maxsize=64)
def _exact(base: Solver, process: Process) -> bool:
    """Whether the base has one line a step, on the present estimate alone."""
    if not isinstance(base, TableSolver):
        return False
    steps = base.table(process, (0.8, 0.6, 0.4, 0.2)).steps
    return all(len(rows) == 1 and sum(b != 0.0 for b in rows[0].estimates) == 1 for rows in steps) and all(
        rows[0].estimates[0] != 0.0 for rows in steps
    )


def _one_step(base: TableSolver, problem: Problem, x: Tensor, t: Tensor, u: float | Tensor, i: int) -> Tensor:
    """One step of the base from each sample's time to its next, with the noise of step `i`."""
    times = torch.stack((t, u if isinstance(u, Tensor) else torch.full_like(t, u)))
    table = with_endpoint(problem.process, base.table(problem.process, times), times)
    x, _ = follow(problem, table, (0,), x, (), noisy=False)
    noise = table.steps[0][0].noise
    return x + left(noise, x) * problem.noise(x, i) if base.stochastic else x  # type: ignore[arg-type]


def _time_of(problem: Problem, x: Tensor, t: float, known: Tensor, times: Tensor) -> Tensor:
    """The time at which the marginal has the variance of each sample's elements, by interpolation in a table."""
    process = problem.process
    known, times = known.to(x.device), times.to(x.device)
    if process.endpoint != "none" and problem.y is not None:
        x = x.sub(problem.y.to(x), alpha=process.level(t).beta)
    variance = x.flatten(1).var(1).double()
    place = torch.searchsorted(known, variance).clamp_(1, _NODES - 1)
    below, above = known[place - 1], known[place]
    return torch.lerp(times[place - 1], times[place], ((variance - below) / (above - below)).clamp_(0.0, 1.0))


@lru_cache(maxsize=64)
def _variances(process: Process, data_variance: float | None, low: float) -> tuple[Tensor, Tensor]:
    """The variance of the marginals at times from `low` to 1, and these times."""
    times = torch.linspace(low, 1.0, _NODES, dtype=torch.float64)
    known = process.sigma(times) ** 2 + (data_variance or 0.0) * process.alpha(times) ** 2
    if bool((known[1:] <= known[:-1]).any()):
        raise IncompatibleError(
            f"data_variance: {data_variance} was given; with it the variance of {type(process).__name__}'s marginal does "
            f"not rise in time above {low}, and tells nothing of the time"
        )
    return known, times
