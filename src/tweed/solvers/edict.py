"""EDICT: Wallace, Gokul & Naik, "EDICT: Exact Diffusion Inversion via Coupled Transformations" (CVPR 2023).

Two copies of the state take DDIM steps, `DDIM(x) = a x + b eps`, each with the noise seen at the other one, and are
then drawn together by affine layers (their Eqs. 13 and 14):

    x~ = a x + b eps(y, t)      y~ = a y + b eps(x~, t)      x' = p x~ + (1-p) y~      y' = p y~ + (1-p) x'

Each line has one unknown when read backwards, so the inverse is explicit, and takes as many evaluations.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tweed.core.processes import Process
from tweed.errors import IncompatibleError, InputError
from tweed.solvers.base import Problem, State, require_gaussian
from tweed.solvers.euler import Euler, grid
from tweed.solvers.reversible import Carried, Grid, Reversible, backwards, growth, rising
from tweed.solvers.table import READ, Row, move, with_endpoint


@dataclass(frozen=True)
class EDICT(Reversible):
    """DDIM on two coupled copies of the state: first order, exactly invertible, two evaluations a step.

    The copies change roles from step to step, as published. A run from one state begins with two equal ones, and its
    result is the first. For what else holds of it, see `BDIA`.

    Args:
        p: the weight of a copy's own state in the affine layers, in (0, 1]; 1 leaves the copies uncoupled, and they drift
            apart. Undoing N steps amplifies rounding `p^-2N` times.
        float64: see `Reversible`.

    Raises:
        InputError: `p` out of range.
        IncompatibleError: (on use) a two-sided process, or a grid from `alpha = 0`, where the noise says nothing of the
            data.
    """

    p: float = 0.93
    float64: bool = True
    order: ClassVar[int] = 1
    evaluations: ClassVar[int] = 2  # type: ignore[assignment]

    def __post_init__(self):
        if not 0.0 < self.p <= 1.0:
            raise InputError(f"p: {self.p} was given; expected a number in (0, 1]")

    def check(self, process: Process) -> None:
        require_gaussian(self, process)

    def amplification(self, steps: int) -> float:
        """`p^(-2 steps)`."""
        return growth(self.p, 2.0 * steps)

    def lines(self, process: Process, times: Grid) -> tuple:
        """For each step, whether it undoes one, whether the second copy moves first, and its row (of the inverse)."""
        up = rising(times)
        falls: Grid = backwards(times) if up else times
        if bool((process.alpha(grid(falls[:1])) == 0.0).any()):
            raise IncompatibleError(
                f"times: EDICT cannot leave t = {falls[0]} on {type(process).__name__}, where alpha = 0; begin at or "
                f"below process.t_max = {process.t_max:.6g}, or use BDIA"
            )
        table = with_endpoint(process, Euler("noise").table(process, falls), falls)
        lines = [(up, k % 2 == 1, _undone(row) if up else row) for k, (row,) in enumerate(table.steps)]
        return tuple(reversed(lines) if up else lines)

    def step(self, problem: Problem, state: State, i: int) -> State:
        memory: Carried = state.memory
        x = self.kept(state)
        # A run from one state has two equal copies.
        y = x if memory.partner is None else memory.partner
        up, swapped, row = memory.lines[i]
        first, second = (y, x) if swapped else (x, y)
        called, p = state.x.dtype, self.p

        def moved(copy: Tensor, other: Tensor) -> Tensor:
            return move(problem, row, copy, (problem.estimate(other.to(called), row.t).reading(READ["noise"]),))

        if up:
            second = _mixed(second, first, 1.0 / p)
            first = _mixed(first, second, 1.0 / p)
            second = moved(second, first)
            first = moved(first, second)
        else:
            first = moved(first, second)
            second = moved(second, first)
            first = _mixed(first, second, p)
            second = _mixed(second, first, p)
        x, y = (second, first) if swapped else (first, second)
        return self.carry(state, x, y)


def _mixed(own: Tensor, other: Tensor, weight: float) -> Tensor:
    """`weight own + (1 - weight) other`; with `1 / weight` its inverse for `own`."""
    return other + weight * (own - other)


def _undone(row: Row) -> Row:
    """The row that takes its result back, with the estimate as it was."""
    return row._replace(
        state=1.0 / row.state,
        estimates=tuple(-c / row.state for c in row.estimates),
        endpoint=-row.endpoint / row.state,
    )
