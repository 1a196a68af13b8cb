"""Coefficient tables, and the small engine that runs every one of them.

Most solvers are linear in the state and in the estimates they have seen. With `e` an estimate's data, noise or velocity,

    x <- A x + B_0 e_0 + B_1 e_1 + ... + C z + D y

where `e_0` is the newest estimate and `z` fresh noise. Singlestep and Runge-Kutta methods, and predictor-correctors
such as UniPC, have this form too: a stage that starts again from the beginning of the step is rewritten from the present
state, since that is a known combination of the beginning and of estimates still in memory. All coefficients are computed
once, in float64, from the process and the grid; a step is then a handful of fused operations.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import targets
from tweed.core.processes import Process
from tweed.core.targets import Target
from tweed.core.time import left, times_number
from tweed.errors import IncompatibleError
from tweed.solvers.base import Form, Observer, Problem, Solver, State, Transition, require_gaussian

Number = float | Tensor
_READ: dict[str, Target] = {"data": targets.Data(), "noise": targets.Noise(), "velocity": targets.Velocity()}


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
    """

    form: Form
    steps: tuple[tuple[Row, ...], ...]

    @cached_property
    def memory(self) -> int:
        """How many estimates have to be kept."""
        return max((len(row.estimates) for rows in self.steps for row in rows), default=0)

    @property
    def evaluations(self) -> int:
        """How many evaluations the whole table takes."""
        return sum(row.evaluate for rows in self.steps for row in rows)


class Memory(NamedTuple):
    """What a table's run remembers: the table, and the estimates seen so far, newest first."""

    table: Table
    estimates: tuple[Tensor, ...] = ()


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
        x, estimates = _step(problem, table, i, x, estimates)
        return State(x, Memory(table, estimates))

    def integrate(
        self, problem: Problem, x: Float[Tensor, "b *event"], observer: Observer | None = None
    ) -> Float[Tensor, "b *event"]:
        if observer is not None:
            return super().integrate(problem, x, observer)
        # The same steps without a state object each.
        table, estimates = _table(self, problem), ()
        for i in range(len(table.steps)):
            x, estimates = _step(problem, table, i, x, estimates)
        return x

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
        for row in (*inner, last):
            x, estimates = _advance(problem, row, x, estimates, table.memory, _READ[table.form])
        std = left(last.noise, x) if isinstance(last.noise, Tensor) else last.noise
        return Transition(x, std, Memory(table, estimates))


def _draws(row: Row) -> bool:
    return isinstance(row.noise, Tensor) or row.noise != 0.0


def _step(problem: Problem, table: Table, i: int, x: Tensor, estimates: tuple) -> tuple[Tensor, tuple]:
    keep, read = table.memory, _READ[table.form]
    for number, row in enumerate(table.steps[i]):
        x, estimates = _advance(problem, row, x, estimates, keep, read)
        if _draws(row):
            x = _add(x, problem.noise(x, i, number), row.noise)
    return x, estimates


def _advance(problem: Problem, row: Row, x: Tensor, memory: tuple, keep: int, read: Target) -> tuple[Tensor, tuple]:
    t, state, estimates, _, endpoint, evaluate = row
    if evaluate:
        estimate = problem.denoiser(x, t, **problem.cond).to(read)
        memory = (estimate, *memory[: keep - 1]) if keep > 1 else (estimate,)
    if isinstance(state, Tensor):
        result = left(state, x) * x
        for coefficient, estimate in zip(estimates, memory, strict=False):
            result = result + left(coefficient, x) * estimate  # type: ignore[arg-type]
        if problem.y is not None and problem.process.endpoint != "none":
            result = result + left(endpoint, x) * problem.y.to(x.dtype)  # type: ignore[arg-type]
        return result, memory
    result = times_number(x, state)
    for coefficient, estimate in zip(estimates, memory, strict=False):
        if coefficient != 0.0:
            result.add_(estimate, alpha=coefficient)  # type: ignore[arg-type]
    if endpoint != 0.0 and problem.y is not None:
        result.add_(problem.y.to(x.dtype), alpha=endpoint)  # type: ignore[arg-type]
    return result, memory


def _add(x: Tensor, noise: Tensor, scale: Number) -> Tensor:
    return x + left(scale, x) * noise if isinstance(scale, Tensor) else torch.add(x, noise, alpha=scale)


def _table(solver: TableSolver, problem: Problem) -> Table:
    if isinstance(problem.times, Tensor):
        return _tensor_table(solver, problem.process, _ById(problem.times))
    return _cached(solver, problem.process, problem.times)


@lru_cache(maxsize=256)
def _cached(solver: TableSolver, process: Process, times: tuple[float, ...]) -> Table:
    solver.check(process)
    return with_endpoint(process, solver.table(process, times), times)


class _ById:
    """A tensor as a cache key: equal only to itself."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor):
        self.tensor = tensor

    def __hash__(self) -> int:
        return id(self.tensor)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and other.tensor is self.tensor


@lru_cache(maxsize=8)
def _tensor_table(solver: TableSolver, process: Process, times: _ById) -> Table:
    solver.check(process)
    return with_endpoint(process, solver.table(process, times.tensor), times.tensor)


def with_endpoint(process: Process, table: Table, times: Sequence[float] | Tensor) -> Table:
    """The table in `x - beta y`, written for `x`: an endpoint-conditioned process is Gaussian in that variable.

    A line from time t to time s gains `D = beta(s) - A beta(t)`; a line in velocities, which contain the endpoint's
    motion already, gains nothing.
    """
    if process.endpoint != "given":
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
