"""What a method for inverse problems is: a value with `solve`; and the loop that guided samplers share."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import grids, targets
from tweed.core.denoiser import Denoiser
from tweed.core.estimate import Estimate
from tweed.core.processes import Process
from tweed.core.time import working_dtype
from tweed.errors import IncompatibleError, InputError, NumericalError
from tweed.inverse.measurement import Measurement, Solution
from tweed.solvers.base import Problem, Solver, State

_DATA = targets.Data()
Watch = Callable[[str, float], None]
"""Told what is done and the fraction that is: how a caller shows progress."""


class Method(ABC):
    """A method that makes samples, or a likely sample, of `p(x_0 | y)` from a denoiser of the data and a measurement.

    Attributes:
        exact: whether its samples are those of the posterior in the limit (of steps, of particles); otherwise it
            approximates, or only finds a likely sample.
    """

    exact: ClassVar[bool] = False

    @abstractmethod
    def solve(
        self,
        denoiser: Denoiser,
        measurement: Measurement,
        n: int = 1,
        seed: int = 0,
        *,
        cond: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype = torch.float32,
        watch: Watch | None = None,
    ) -> Solution:
        """`n` samples of each measurement.

        Args:
            denoiser: any denoiser of the data, guided or wrapped as it may be, on a Gaussian process.
            measurement: of b samples.
            n: how many samples of each.
            seed: of all randomness.
            cond: conditions of the denoiser, tensors with b rows (or one row).
            dtype: of the states.
            watch: told of the progress, a text and a fraction.

        Raises:
            InputError: `n` below 1, or shapes that do not fit.
            IncompatibleError: the process or the operator does not fit the method.
            NumericalError: the result is not finite.
        """


class Run:
    """The rows of one `solve`: n copies of b measurements, conditions with them, and what is recorded."""

    def __init__(
        self,
        denoiser: Denoiser,
        measurement: Measurement,
        n: int,
        cond: Mapping[str, Tensor] | None,
        dtype: torch.dtype,
        watch: Watch | None,
        method: str,
    ):
        if n < 1:
            raise InputError(f"n: {n} was given; expected at least one sample of each measurement")
        event = measurement.operator.event
        if denoiser.event is not None and tuple(denoiser.event) != event:
            raise InputError(
                f"measurement: its operator takes samples of shape {event}; the denoiser's have {tuple(denoiser.event)}"
            )
        if denoiser.process.endpoint != "none":
            raise IncompatibleError(
                f"denoiser: {method} needs a process between data and noise alone; {type(denoiser.process).__name__} has "
                "an endpoint"
            )
        self.n, self.b, self.event, self.method = n, len(measurement.y), event, method
        self.denoiser = denoiser.start()
        self.device = denoiser.device
        self.dtype = dtype
        rows = measurement.repeat(n, dtype)
        self.measurement = Measurement(rows.operator, rows.y.to(self.device), rows.noise, check=False)
        self.cond = {
            name: self._rows(name, value).to(self.device) for name, value in (cond or {}).items() if value is not None
        }
        self.evaluations = 0
        self._misfit: list[Tensor] = []
        self._watch = watch

    def _rows(self, name: str, value: Tensor) -> Tensor:
        if value.ndim == 0 or len(value) not in (1, self.b):
            raise InputError(f"cond: {name!r} has shape {tuple(value.shape)}; expected {self.b} rows (or one for all)")
        value = value.expand(self.b, *value.shape[1:]) if len(value) == 1 else value
        return value.repeat(self.n, *(1,) * (value.ndim - 1))

    @property
    def process(self) -> Process:
        return self.denoiser.process

    @property
    def rows(self) -> int:
        return self.n * self.b

    def start(self, seed: int, t: float) -> Float[Tensor, "nb *event"]:
        """Draws of the prior at time `t`."""
        return self.process.prior((self.rows, *self.event), seed, t=t, dtype=self.dtype, device=self.device)

    def estimate(self, x: Tensor, t: float | Tensor) -> Estimate:
        """One evaluation of the denoiser."""
        self.evaluations += 1
        return self.denoiser(x, t, **self.cond)

    def record(self, x0: Tensor, done: float) -> None:
        """Keep the misfit of an estimate, and tell how far the run is."""
        self._misfit.append(self.measurement.misfit(x0.detach()).double())
        if self._watch is not None:
            self._watch(self.method, done)

    def solution(self, x: Float[Tensor, "nb *event"], **more: Any) -> Solution:
        """What the run found; the last misfit is that of the result.

        Raises:
            NumericalError: some of it is not finite.
        """
        if not bool(torch.isfinite(x).all()):
            raise NumericalError(f"{self.method}: the result is not finite; take a smaller step, or more of them")
        self.record(x, 1.0)
        misfit = torch.stack(self._misfit).reshape(len(self._misfit), self.n, self.b)
        return Solution(x.reshape(self.n, self.b, *self.event), misfit, self.evaluations, **more)


def levels(
    denoiser: Denoiser, steps: int, grid: Callable[..., Tensor] | None, finite: bool = False
) -> tuple[float, ...]:
    """A grid from noise to data, as `tweed.sample` makes it; if `finite`, from a time at which alpha is not 0.

    Raises:
        InputError: no steps.
    """
    if steps < 1:
        raise InputError(f"steps: {steps} was given; expected at least 1")
    process, start = denoiser.process, denoiser.t_max
    if finite and process.level(start).alpha == 0.0:
        start = process.t_max
    made = (grid or grids.default)(process, steps, start=start)
    return tuple(made.tolist())


class _Answered(Denoiser):
    """A denoiser whose answer at one state is known."""

    def __init__(self, denoiser: Denoiser, estimate: Estimate, again: Callable[[Tensor, float | Tensor], Estimate]):
        super().__init__()
        self.process, self.event = denoiser.process, denoiser.event
        self.known, self.again = estimate, again

    def forward(self, x, t, **cond):
        return (
            self.known
            if x is self.known.x or (t == self.known.t and x.shape == self.known.x.shape)
            else self.again(x, t)
        )


@dataclass(frozen=True)
class GuidedSampler(Method):
    """A sampler whose estimate, or whose state after a step, is drawn towards the measurement. Subclasses give `guide`.

    A step takes one evaluation where its solver does; a solver with several stages is refused, since only the first of
    them would be guided.
    """

    backward: ClassVar[bool] = False
    """Whether `guide` differentiates through the denoiser."""

    @property
    @abstractmethod
    def sampler(self) -> Solver: ...

    @abstractmethod
    def guide(
        self, run: Run, x: Float[Tensor, "nb *event"], estimate: Estimate, t: float, u: float
    ) -> tuple[Estimate, Tensor | None]:
        """The estimate to step with from `t` to `u`, and what is added to the state after the step."""

    def solve(self, denoiser, measurement, n=1, seed=0, *, cond=None, dtype=torch.float32, watch=None):
        solver = self.sampler
        if solver.adaptive or solver.evaluations != 1:
            raise IncompatibleError(f"solver: {solver!r} was given; expected one with one evaluation a step")
        run = Run(denoiser, measurement, n, cond, dtype, watch, type(self).__name__)
        solver.check(run.process)
        times = levels(denoiser, self.steps, self.grid)  # type: ignore[attr-defined]
        x = run.start(seed, times[0])
        problem = Problem(run.denoiser, times, run.cond, seed, 0)
        with torch.no_grad():
            state = solver.init(problem, x)
            for i in range(problem.steps):
                x = state.x.to(working_dtype(state.x))
                with torch.set_grad_enabled(self.backward):
                    if self.backward:
                        x = x.detach().requires_grad_()
                    estimate = run.estimate(x, times[i])
                    run.record(estimate.x0, i / problem.steps)
                    guided, shift = self.guide(run, x, estimate, times[i], times[i + 1])
                x, guided = x.detach(), detached(guided)
                told = replace(problem, denoiser=_Answered(run.denoiser, guided, run.estimate))
                state = solver.step(told, State(x, state.memory), i)
                if shift is not None:
                    state = state._replace(x=state.x + shift)
        return run.solution(solver.finish(problem, state))


def detached(estimate: Estimate) -> Estimate:
    """The same estimate without its graph."""
    if not (estimate.answer.requires_grad or estimate.x.requires_grad):
        return estimate
    return Estimate(
        estimate.x.detach(), estimate.t, estimate.answer.detach(), estimate.process, estimate.target, estimate.y
    )


def size(process: Process, t: float) -> float:
    """`sqrt(alpha^2 + sigma^2)`: what a state is divided by to be one of a variance-preserving process."""
    level = process.level(t)
    return math.hypot(level.alpha, level.sigma)


def with_data(estimate: Estimate, x0: Tensor) -> Estimate:
    """The estimate with another mean of the data."""
    return estimate.replace(_DATA, x0)


def with_score(estimate: Estimate, addition: Tensor, t: float) -> Estimate:
    """The estimate with `addition` to its score: to its data mean, `sigma^2 / alpha` of it (Tweedie's formula)."""
    level = estimate.process.level(t)
    if level.alpha == 0.0:
        # There the state says nothing of the data, and a likelihood has no gradient.
        return estimate
    return with_data(estimate, estimate.x0 + level.sigma**2 / level.alpha * addition)
