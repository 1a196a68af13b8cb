"""Euler's method, and what every Runge-Kutta and Adams method here is written in.

The probability-flow ODE is followed in one of two forms, `u' = e` in a variable `u` and a clock `tau`:

- "velocity": `u = x`, `tau = t`, `e` the velocity. Needs no Gaussian process: two-sided interpolants are followed too;
- "noise": `u = x / alpha`, `tau = sigma / alpha`, `e = eps` (Song, Meng & Ermon, ICLR 2021, Eq. 14), in which the
  linear part is solved exactly.

`sigma / alpha` is infinite where alpha = 0 (pure noise at t = 1, for some processes). The one step out of there, or into
it, is DDIM's, which is Euler's in "noise" with the limit taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core.processes import Process
from tweed.core.time import as_time, left
from tweed.errors import InputError
from tweed.solvers.base import Form, Observer, Problem, Solver, State, Transition, check_form, require_gaussian
from tweed.solvers.ddim import DDIM, one_evaluation
from tweed.solvers.table import Table, TableSolver


class ODESolver(TableSolver):
    """A table solver of the ODE in one form, which knows how to leave pure noise (alpha = 0)."""

    form: Form

    def __post_init__(self):
        check_form(self.form)

    def check(self, process: Process) -> None:
        if self.form != "velocity":
            require_gaussian(self, process)

    def integrate(
        self, problem: Problem, x: Float[Tensor, "b *event"], observer: Observer | None = None
    ) -> Float[Tensor, "b *event"]:
        if self._pure_noise(problem, 0) is False:
            return super().integrate(problem, x, observer)
        return Solver.integrate(self, problem, x, observer)

    def step(self, problem: Problem, state: State, i: int) -> State:
        pure = self._pure_noise(problem, i)
        if pure is False:
            return super().step(problem, state, i)
        first = DDIM()
        x = first.step(problem, first.init(problem, state.x), 0).x
        if pure is True:
            return State(x, state.memory)
        usual = super().step(problem, state, i)
        return usual._replace(x=torch.where(left(pure, x) > 0, x, usual.x))

    def transition(self, problem: Problem, state: State, i: int) -> Transition:
        if self._pure_noise(problem, i) is False:
            return super().transition(problem, state, i)
        x, memory = self.step(problem, state, i)
        return Transition(x, 0.0, memory)

    def _pure_noise(self, problem: Problem, i: int) -> bool | Tensor:
        """Whether step `i` starts where alpha = 0; a mask (b,) of 0 and 1 where each sample has its own times."""
        if i > 0 or self.form != "noise":
            return False
        if not isinstance(problem.times, Tensor):
            return problem.process.level(problem.times[0]).alpha == 0.0
        if problem.process.level(1.0).alpha != 0.0:
            return False
        return (problem.process.alpha(problem.times[0]) == 0.0).double()


@dataclass(frozen=True)
class Euler(ODESolver):
    """First order, one evaluation a step.

    Args:
        form: "velocity": `x + (s - t) velocity`, for any process; "noise" and "data": Euler in `sigma / alpha` and in
            `alpha / sigma`, which are one method, DDIM at eta = 0.

    Raises:
        InputError: an unknown form.
    """

    form: Form = "velocity"
    order: ClassVar[int] = 1
    evaluations: ClassVar[int] = 1  # type: ignore[assignment]

    def table(self, process: Process, times: Sequence[float] | Tensor) -> Table:
        if self.form == "data":
            return DDIM().table(process, times)
        t = grid(times)
        keep, step = transfer(process, self.form, t[:-1], t[1:])
        return one_evaluation(self.form, times, keep, (step,))


def grid(times: Sequence[float] | Tensor) -> Tensor:
    """The times as a float64 tensor, (steps + 1,) or (steps + 1, b)."""
    return as_time(times) if isinstance(times, Tensor) else torch.tensor(times, dtype=torch.float64)


def clock(process: Process, form: Form, t: Tensor) -> tuple[Tensor, Tensor]:
    """The clock `tau`, and the scale `x / u`, of a form at times `t`."""
    if form == "velocity":
        return t, torch.ones_like(t)
    alpha = process.alpha(t)
    return process.sigma(t) / alpha, alpha


def transfer(process: Process, form: Form, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """`x_s = keep x_t + step e`: the coefficients of one step with a constant `e`, finite at every end.

    Where alpha(t) = 0 a noise estimate says nothing of the data; there `step` is 0, and `ODESolver.step` does it.
    """
    if form == "velocity":
        return torch.ones_like(t), s - t
    a, b, sigma, after = process.alpha(t), process.alpha(s), process.sigma(t), process.sigma(s)
    keep = torch.where(a > 0, b / a, after / sigma)
    return keep, torch.where(a > 0, after - keep * sigma, 0.0)


def check_number(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raise an `InputError` unless `low <= value <= high`."""
    if not low <= value <= high:
        raise InputError(f"{name}: {value} was given; expected a number from {low:g} to {high:g}")
