"""Coefficient tables, and the small engine that runs every one of them.

Most solvers are linear in the state and in the estimates they have seen. With `e` an estimate's data, noise or velocity,

    x <- A x + B_0 e_0 + B_1 e_1 + ... + C z + D y

where `e_0` is the newest estimate and `z` fresh noise. Singlestep and Runge-Kutta methods, and predictor-correctors
such as UniPC, have this form too: a stage that starts again from the beginning of the step is rewritten from the present
state, since that is a known combination of the beginning and of estimates still in memory. All coefficients are computed
once, in float64, from the process and the grid; a step is then a handful of fused operations.
"""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import targets
from tweed.core.estimate import Reading, value_of
from tweed.core.processes import Process
from tweed.core.targets import Target
from tweed.core.time import left, times_number
from tweed.errors import IncompatibleError
from tweed.solvers.base import Form, Observer, Problem, Solver, State, Transition, require_gaussian

Number = float | Tensor
READ: dict[str, Target] = {"data": targets.Data(), "noise": targets.Noise(), "velocity": targets.Velocity()}


class Row(NamedTuple):
    """One line of a table.

    Attributes:
        t: the time of the state before it, at which the denoiser is evaluated.
        state: A.
        estimates: B, newest first; those beyond the memory's length are not used.
        noise: C.
        endpoint: D.
        evaluate: whether the denoiser is called at all (a line that only adds noise does not).
    """

    t: Number
    state: Number
    estimates: tuple[Number, ...] = ()
    noise: Number = 0.0
    endpoint: Number = 0.0
    evaluate: bool = True


@dataclass(frozen=True)
class Table:
    """A solver on one process and one grid.

    Attributes:
        form: which reading of the estimates the coefficients B multiply.
        steps: the rows of each step of the grid.
        shifted: whether the rows are in `x - beta y` where the process has an endpoint (see `with_endpoint`); else they
            say themselves what they take of it.
    """

    form: Form
    steps: tuple[tuple[Row, ...], ...]
    shifted: bool = True

    @cached_property
    def memory(self) -> int:
        """How many estimates have to be kept."""
        return max((len(row.estimates) for rows in self.steps for row in rows), default=0)

    @property
    def evaluations(self) -> int:
        """How many evaluations the whole table takes."""
        return sum(row.evaluate for rows in self.steps for row in rows)


class Memory(NamedTuple):
    """What a table's run remembers: the table, and the estimates seen so far, newest first (see `Estimate.reading`)."""

    table: Table
    estimates: tuple[Reading, ...] = ()


class TableSolver(Solver):
    """A solver given by its table. Subclasses give `table`; the engine does the rest."""

    @abstractmethod
    def table(self, process: Process, times: Sequence[float] | Float[Tensor, "steps+1 b"]) -> Table:
        """The coefficients on a grid: numbers for a grid of numbers, tensors (b,) where each sample has its own times."""

    def check(self, process: Process) -> None:
        require_gaussian(self, process)

    def init(self, problem: Problem, x: Float[Tensor, "b *event"]) -> State:
        return State(x, Memory(_table(self, problem)))

    def step(self, problem: Problem, state: State, i: int) -> State:
        x, (table, estimates) = state
        x, estimates = follow(problem, table, (i,), x, estimates)
        return State(x, Memory(table, estimates))

    def integrate(
        self, problem: Problem, x: Float[Tensor, "b *event"], observer: Observer | None = None
    ) -> Float[Tensor, "b *event"]:
        if observer is not None:
            return super().integrate(problem, x, observer)
        # The same steps without a state object each.
        table = _table(self, problem)
        return follow(problem, table, range(len(table.steps)), x, ())[0]

    def transition(self, problem: Problem, state: State, i: int) -> Transition:
        """Step `i` as a Gaussian; its mean carries gradients where they are enabled.

        Raises:
            IncompatibleError: the step adds noise before its last line, so that it is no Gaussian.
        """
        x, (table, estimates) = state
        *inner, last = table.steps[i]
        if any(_draws(row) for row in inner):
            raise IncompatibleError(
                f"solver: a step of {type(self).__name__} with these options is no Gaussian transition"
            )
        x, estimates = follow(problem, table, (i,), x, estimates, noisy=False)
        std = left(last.noise, x) if isinstance(last.noise, Tensor) else last.noise
        return Transition(x, std, Memory(table, estimates))


def _draws(row: Row) -> bool:
    return isinstance(row.noise, Tensor) or row.noise != 0.0


def follow(
    problem: Problem,
    table: Table,
    steps: Iterable[int],
    x: Tensor,
    estimates: tuple[Reading, ...],
    noisy: bool = True,
) -> tuple[Tensor, tuple[Reading, ...]]:
    """The state and the estimates after some steps of the table; without their noise unless `noisy`."""
    evaluate, cond = problem.denoiser.call, problem.cond
    read, older = READ[table.form], table.memory - 1
    for i in steps:
        for number, row in enumerate(table.steps[i]):
            t, _, _, noise, _, new = row
            if new:
                estimates = (evaluate(x, t, **cond).reading(read), *estimates[:older])
            x = move(problem, row, x, estimates)
            if noisy and (isinstance(noise, Tensor) or noise != 0.0):
                x = _add(x, problem.noise(x, i, number), noise)
    return x, estimates


def move(problem: Problem, row: Row, x: Tensor, estimates: tuple[Reading, ...]) -> Tensor:
    """A line without its noise: a new tensor, from the state and from the estimates, newest first."""
    _, state, coefficients, _, endpoint, _ = row
    if isinstance(state, Tensor):
        return _move_each(problem, row, x, estimates)
    x = _move(x, state, coefficients, estimates)  # type: ignore[arg-type]
    if endpoint != 0.0 and problem.y is not None:
        x.add_(problem.y.to(x.dtype), alpha=endpoint)  # type: ignore[arg-type]
    return x


def _move(x: Tensor, state: float, coefficients: tuple[float, ...], estimates: tuple[Reading, ...]) -> Tensor:
    """A line of numbers, without noise: a fused operation for each term, those in the present state being one."""
    present = False
    if coefficients and coefficients[0] != 0.0:
        share, at, _, _ = estimates[0]
        present = at is x
        if present:
            state += coefficients[0] * share
    x = times_number(x, state)
    for coefficient, (share, at, scale, answer) in zip(coefficients, estimates):  # noqa: B905 (as many as there are)
        if coefficient != 0.0:
            x.add_(answer, alpha=coefficient * scale)
            if share != 0.0 and not present:
                x.add_(at, alpha=coefficient * share)
        present = False
    return x


def _move_each(problem: Problem, row: Row, x: Tensor, estimates: tuple[Reading, ...]) -> Tensor:
    """A line with coefficients of its own for each sample; without noise."""
    _, state, coefficients, _, endpoint, _ = row
    result = left(state, x) * x  # type: ignore[arg-type]
    for coefficient, reading in zip(coefficients, estimates, strict=False):
        result = result + left(coefficient, x) * value_of(reading)  # type: ignore[arg-type]
    if problem.y is not None and isinstance(endpoint, Tensor):
        result = result + left(endpoint, x) * problem.y.to(x.dtype)
    return result


def _add(x: Tensor, noise: Tensor, scale: Number) -> Tensor:
    return x + left(scale, x) * noise if isinstance(scale, Tensor) else torch.add(x, noise, alpha=scale)


def _table(solver: TableSolver, problem: Problem) -> Table:
    if isinstance(problem.times, Tensor):
        return _tensor_table(solver, problem.process, ById(problem.times))
    return _cached(solver, problem.process, problem.times)


@lru_cache(maxsize=256)
def _cached(solver: TableSolver, process: Process, times: tuple[float, ...]) -> Table:
    solver.check(process)
    return with_endpoint(process, solver.table(process, times), times)


class ById:
    """A tensor, or what holds tensors, as a cache key: equal only to itself."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ById) and other.value is self.value


@lru_cache(maxsize=8)
def _tensor_table(solver: TableSolver, process: Process, times: ById) -> Table:
    solver.check(process)
    return with_endpoint(process, solver.table(process, times.value), times.value)


def with_endpoint(process: Process, table: Table, times: Sequence[float] | Tensor) -> Table:
    """The table in `x - beta y`, written for `x`: an endpoint-conditioned process is Gaussian in that variable.

    A line from time t to time s gains `D = beta(s) - A beta(t)`; a line in velocities, which contain the endpoint's
    motion already, gains nothing.
    """
    if process.endpoint != "given" or not table.shifted:
        return table
    rows = [row for step in table.steps for row in step]
    ends = [row.t for row in rows[1:]] + [times[len(table.steps)]]

    def beta(t: Number) -> Number:
        return process.beta(t) if isinstance(t, Tensor) else process.level(t).beta

    shifted = iter(
        row if table.form == "velocity" and row.evaluate else row._replace(endpoint=beta(end) - row.state * beta(row.t))
        for row, end in zip(rows, ends, strict=True)
    )
    return Table(table.form, tuple(tuple(next(shifted) for _ in step) for step in table.steps))
