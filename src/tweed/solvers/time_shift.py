"""Time shift: Li et al., "Alleviating Exposure Bias in Diffusion Models through Sampling with Shifted Time Steps" (ICLR
2024, arXiv 2305.15583).

A sampler's state is not a draw of the marginal that the network was trained on: it carries the errors of the steps so
far. In many dimensions the noise that it does carry can be read off it: the sample variance `v` of its elements is close
to `sigma(t)^2` where that of the data is small. After each step the state is given the time, within a window around the
nominal one, whose variance is nearest to `v` (their Eq. 12); the network is asked there, and the next step starts there. The
candidates are 1025 times across the window (the paper's are the whole steps of 1000), so that all of a base's coefficients
are known before the run, and a step only looks them up.

The variance of the marginal is `sigma^2`, or `sigma^2 + alpha^2 v_0` where the mean variance `v_0` of the elements of a
sample of the data is given: then the data's share is no longer taken for noise, and the cutoff may be lower.
"""

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice, pairwise
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import targets
from tweed.core.denoiser import Denoiser, Wrapper
from tweed.core.processes import Process
from tweed.core.targets import Target
from tweed.errors import IncompatibleError, InputError, choose
from tweed.solvers.base import Problem, Solver, State, require_gaussian
from tweed.solvers.ddim import DDIM
from tweed.solvers.table import READ, ById, TableSolver, with_endpoint

_CANDIDATES = 1025


class _Shift(NamedTuple):
    """What a state at the start of a step may be taken for.

    Attributes:
        times: the candidates, shape (k,), rising.
        borders: the variances half way between those of neighbours, shape (k - 1,).
        step: from each candidate to each end, (k,) and (k,), for a base that steps exactly.
    """

    times: Tensor
    borders: Tensor
    step: tuple[Tensor, Tensor] | None


class _Memory(NamedTuple):
    """The base solver's memory, the shift at each step's start, and the candidate that each sample is taken for, (b,)."""

    base: Any
    shifts: tuple[_Shift | None, ...]
    place: Tensor | None = None


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
            _check_rising(process, self.data_variance, self._lowest)

    def init(self, problem: Problem, x: Float[Tensor, "b *event"]) -> State:
        times = problem.times
        if isinstance(times, Tensor) or any(b >= a for a, b in pairwise(times)):
            raise IncompatibleError("times: TimeShift follows a falling grid of numbers, not times for each sample")
        if math.prod(x.shape[1:]) < 2:
            raise InputError(f"x: samples of shape {tuple(x.shape[1:])} were given; a variance needs two elements")
        state = self.base.init(problem, x)
        return State(x, _Memory(state.memory, _shifts(self, problem.process, tuple(times), x.device)))

    def step(self, problem: Problem, state: State, i: int) -> State:
        x, (memory, shifts, place) = state
        shift = shifts[i]
        if shift is None:
            x, memory = self.base.step(problem, State(x, memory), i)
        elif self.variant == "target-only":
            place = _place(problem, x, problem.times[i + 1], shift)
            x = _one_step(self.base, problem, x, problem.times[i], shift, place, i)  # type: ignore[arg-type]
        else:
            assert place is not None
            label = shift.times.index_select(0, place)
            if shift.step is not None:
                x = _one_step(self.base, problem, x, label, shift, place, i)  # type: ignore[arg-type]
            else:
                told = _Relabelled(problem.denoiser, float(problem.times[i]), label)
                x, memory = self.base.step(replace(problem, denoiser=told), State(x, memory), i)
        after = shifts[i + 1] if i + 1 < len(shifts) and self.variant == "paper" else None
        place = None if after is None else _place(problem, x, problem.times[i + 1], after)
        return State(x, _Memory(memory, shifts, place))

    def label(self, problem: Problem, x: Float[Tensor, "b *event"], t: float) -> Float[Tensor, " b"]:
        """The time within the window around `t` whose marginal has nearly each sample's variance, float64 (Eq. 12)."""
        times, borders = _candidates(self, problem.process, t)
        shift = _Shift(times.to(x.device), borders.to(x.device), None)
        return shift.times[_place(problem, x, t, shift)]


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


@lru_cache(maxsize=64)
def _exact(base: Solver, process: Process) -> bool:
    """Whether the base has one line a step, on the present estimate alone."""
    if not isinstance(base, TableSolver):
        return False
    steps = base.table(process, (0.8, 0.6, 0.4, 0.2)).steps
    return all(len(rows) == 1 and sum(b != 0.0 for b in rows[0].estimates) == 1 for rows in steps) and all(
        rows[0].estimates[0] != 0.0 for rows in steps
    )


@lru_cache(maxsize=64)
def _shifts(
    solver: TimeShift, process: Process, times: tuple[float, ...], device: torch.device
) -> tuple[_Shift | None, ...]:
    exact, paper = _exact(solver.base, process), solver.variant == "paper"
    shifts: list[_Shift | None] = [None]
    for t, u in islice(pairwise(times), 1, None):
        around = t if paper else u
        if solver.window == 0.0 or around <= solver.cutoff or not (exact or paper):
            shifts.append(None)
            continue
        known, borders = _candidates(solver, process, around, None if paper else t)
        step = (known, torch.full_like(known, u)) if paper else (torch.full_like(known, t), known)
        shifts.append(_Shift(known.to(device), borders.to(device), step if exact else None))
    return tuple(shifts)


def _candidates(solver: TimeShift, process: Process, t: float, highest: float | None = None) -> tuple[Tensor, Tensor]:
    """The times of the window around `t`, and the variances half way between those of their marginals."""
    top = process.t_max if highest is None else highest
    low, high = max(t - 0.5 * solver.window, 0.0), min(t + 0.5 * solver.window, top)
    times = torch.linspace(low, max(low, high), _CANDIDATES, dtype=torch.float64)
    variance = _variance(process, solver.data_variance, times)
    return times, 0.5 * (variance[1:] + variance[:-1])


@lru_cache(maxsize=1024)
def _lines(base: TableSolver, process: Process, shift: ById, target: Target) -> Tensor:
    """The base's step from each candidate, as a combination of state, answer to `target`, noise and endpoint: (4, k)."""
    start, end = times = torch.stack(shift.value.step)
    table = with_endpoint(process, base.table(process, times), times)
    ((row,),) = table.steps
    read = targets.convert(process, target, READ[table.form], start)
    (weight,) = (b for b in row.estimates if isinstance(b, Tensor))
    numbers = (
        row.state + weight * read.state,
        weight * read.answer,
        row.noise,
        row.endpoint + weight * read.endpoint,
    )
    lines = [torch.as_tensor(number, dtype=torch.float64).expand(len(end)) for number in numbers]
    return torch.stack(lines).to(shift.value.times.device)


def _one_step(
    base: TableSolver, problem: Problem, x: Tensor, t: float | Tensor, shift: _Shift, place: Tensor, i: int
) -> Tensor:
    """One step of the base by a line of its own for each sample, with the noise of step `i`."""
    estimate = problem.denoiser.call(x, t, **problem.cond)
    lines = _lines(base, problem.process, ById(shift), estimate.target).index_select(1, place)
    answer = estimate.answer.to(x.dtype)
    lines = lines.to(x.real.dtype).view(4, -1, *(1,) * (x.ndim - 1))
    state, scale, noise, endpoint = lines.unbind()
    x = torch.addcmul(x * state, answer, scale)
    if problem.process.endpoint != "none" and problem.y is not None:
        x = torch.addcmul(x, problem.y.to(x.dtype), endpoint)
    return torch.addcmul(x, problem.noise(x, i), noise) if base.stochastic else x


def _place(problem: Problem, x: Tensor, t: float | Tensor, shift: _Shift) -> Tensor:
    """Which candidate's variance is nearest to that of each sample's elements, shape (b,)."""
    if len(x) == 0:
        return torch.empty(0, dtype=torch.int64, device=x.device)
    if problem.process.endpoint != "none" and problem.y is not None:
        x = x.sub(problem.y.to(x), alpha=problem.process.level(float(t)).beta)
    return torch.searchsorted(shift.borders, x.flatten(1).var(1).double())


def _variance(process: Process, data_variance: float | None, t: Tensor) -> Tensor:
    return process.sigma(t) ** 2 + (data_variance or 0.0) * process.alpha(t) ** 2


@lru_cache(maxsize=64)
def _check_rising(process: Process, data_variance: float | None, low: float) -> None:
    known = _variance(process, data_variance, torch.linspace(low, 1.0, _CANDIDATES, dtype=torch.float64))
    if bool((known[1:] <= known[:-1]).any()):
        raise IncompatibleError(
            f"data_variance: {data_variance} was given; with it the variance of {type(process).__name__}'s marginal does "
            f"not rise in time above {low}, and tells nothing of the time"
        )
