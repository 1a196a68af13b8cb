"""Explicit Runge-Kutta methods with fixed steps, from their Butcher tableaus.

A stage is `u_j = u + h sum_k a_jk e_k`. The table engine only knows the present state, so a stage is written as a line
from the stage before it, `u_{j+1} = u_j + h sum_k (a_{j+1,k} - a_jk) e_k`; the weights `b` are the last such row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from tweed.core.processes import Process
from tweed.errors import InputError, choose
from tweed.solvers.base import Form
from tweed.solvers.euler import ODESolver, clock, grid, transfer
from tweed.solvers.table import Row, Table

Coefficient = float | Tensor


class Tableau(NamedTuple):
    """A Butcher tableau: nodes `c`, the rows of `a` (that of stage j has j entries), weights `b`."""

    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


TABLEAUS: dict[str, Tableau] = {
    "midpoint": Tableau(2, (0, 1 / 2), ((), (1 / 2,)), (0, 1)),
    "heun2": Tableau(2, (0, 1), ((), (1,)), (1 / 2, 1 / 2)),
    "ralston2": Tableau(2, (0, 2 / 3), ((), (2 / 3,)), (1 / 4, 3 / 4)),
    "heun3": Tableau(3, (0, 1 / 3, 2 / 3), ((), (1 / 3,), (0, 2 / 3)), (1 / 4, 0, 3 / 4)),
    "kutta3": Tableau(3, (0, 1 / 2, 1), ((), (1 / 2,), (-1, 2)), (1 / 6, 2 / 3, 1 / 6)),
    "ssp3": Tableau(3, (0, 1, 1 / 2), ((), (1,), (1 / 4, 1 / 4)), (1 / 6, 1 / 6, 2 / 3)),
    "bogacki-shampine3": Tableau(3, (0, 1 / 2, 3 / 4), ((), (1 / 2,), (0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9)),
    "rk4": Tableau(4, (0, 1 / 2, 1 / 2, 1), ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
    "three-eighths": Tableau(
        4, (0, 1 / 3, 2 / 3, 1), ((), (1 / 3,), (-1 / 3, 1), (1, -1, 1)), (1 / 8, 3 / 8, 3 / 8, 1 / 8)
    ),
    "dormand-prince5": Tableau(
        5,
        (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1),
        (
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        ),
        (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
}
"""Every tableau by its name. "bogacki-shampine3" is Ralston's third-order method, the one inside that pair."""

Method = Literal[
    "midpoint",
    "heun2",
    "ralston2",
    "heun3",
    "kutta3",
    "ssp3",
    "bogacki-shampine3",
    "rk4",
    "three-eighths",
    "dormand-prince5",
]


@dataclass(frozen=True)
class RungeKutta(ODESolver):
    """One explicit Runge-Kutta method; its order and evaluations a step are those of its tableau.

    Args:
        method: a name in `TABLEAUS`.
        form: "velocity" (in time, for any process) or "noise" (in `sigma / alpha`).
        full_end: evaluate at the end of a step into sigma = 0 too. Without it, methods that have a stage there take that
            step by Euler, since a data or noise estimate says nothing of the velocity at sigma = 0; a network that
            answers the velocity itself does, and deserves its full order.

    Raises:
        InputError: an unknown method or form; `full_end` in the noise form.
    """

    method: Method = "midpoint"
    form: Form = "velocity"
    full_end: bool = False

    def __post_init__(self):
        choose("method", self.method, TABLEAUS)
        check_step_form(self.form, self.full_end)

    @property
    def order(self) -> int:
        return TABLEAUS[self.method].order

    @property
    def evaluations(self) -> int:
        return len(TABLEAUS[self.method].c)

    def table(self, process: Process, times: Sequence[float] | Tensor) -> Table:
        t = grid(times)
        steps = tableau_steps(process, self.form, TABLEAUS[self.method], t[:-1], t[1:], self.full_end)
        return Table(self.form, as_rows(steps, times))


@dataclass(frozen=True)
class DPM2(ODESolver):
    """The midpoint method in `sigma / alpha` with its stage at the geometric mean, the middle in log-SNR.

    DPM-Solver-2 (Lu et al., "DPM-Solver", NeurIPS 2022, Algorithm 1), written as in k-diffusion's `sample_dpm_2`. Second
    order, two evaluations a step; into sigma = 0 a step is Euler's.
    """

    form: ClassVar[Form] = "noise"
    order: ClassVar[int] = 2
    evaluations: ClassVar[int] = 2  # type: ignore[assignment]

    def table(self, process: Process, times: Sequence[float] | Tensor) -> Table:
        t = grid(times)
        t, s = t[:-1], t[1:]
        (here, _), (there, _) = clock(process, self.form, t), clock(process, self.form, s)
        node = here.sqrt() / (here.sqrt() + there.sqrt())
        middle = process.time(-0.5 * (here.log() + there.log()))
        euler = first_order(process, self.form, t, s, ends=True)
        steps = stage_steps(process, self.form, t, s, (t, middle), ((), (node,), (0.0, 1.0)), euler)
        return Table(self.form, as_rows(steps, times))


class Steps(NamedTuple):
    """Lines for all steps at once: tensors (steps,) or (steps, b). Where `euler`, only the last line moves the state."""

    rows: list[Row]
    euler: Tensor


def check_step_form(form: str, full_end: bool) -> None:
    """Raise an `InputError` unless `form` is "velocity" or "noise", and "velocity" where `full_end`."""
    if form not in ("velocity", "noise"):
        raise InputError(f"form: {form!r} was given; expected 'velocity' or 'noise'")
    if full_end and form == "noise":
        raise InputError("full_end: True was given with form='noise'; there is no noise estimate at sigma = 0")


def first_order(process: Process, form: Form, t: Tensor, s: Tensor, ends: bool, full_end: bool = False) -> Tensor:
    """Which steps are taken by Euler: those with an infinite clock, and, if a stage lies at s, those into a singularity."""
    singular = torch.zeros_like(t, dtype=torch.bool)
    if ends and not full_end:
        singular = process.sigma(s) == 0.0 if process.endpoint != "drawn" else ~process.sigma_dot(s).isfinite()
    if form == "noise":
        singular = singular | (process.alpha(t) == 0.0) | (process.alpha(s) == 0.0)
    return singular


def tableau_steps(
    process: Process, form: Form, tableau: Tableau, t: Tensor, s: Tensor, full_end: bool = False
) -> Steps:
    """The lines of a method for all steps from times `t` to times `s`, (steps,) or (steps, b)."""
    (here, _), (there, _) = clock(process, form, t), clock(process, form, s)

    def node(c: float) -> Tensor:
        if c == 0.0 or c == 1.0:
            return s if c else t
        tau = here + c * (there - here)
        return tau if form == "velocity" else process.time(-tau.log())

    euler = first_order(process, form, t, s, 1.0 in tableau.c, full_end)
    return stage_steps(process, form, t, s, [node(c) for c in tableau.c], (*tableau.a, tableau.b), euler)


def stage_steps(
    process: Process,
    form: Form,
    t: Tensor,
    s: Tensor,
    nodes: Sequence[Tensor],
    a: Sequence[Sequence[Coefficient]],
    euler: Tensor,
) -> Steps:
    """The lines of stages at times `nodes` with coefficients `a`, whose last row holds the weights.

    Where `euler`, all stages stay at the beginning and the last line is Euler's: a step with the same lines for all
    samples, whichever of them are singular.
    """
    keep, step = transfer(process, form, t, s)
    (here, _), (there, scale_s) = clock(process, form, t), clock(process, form, s)
    h = torch.where(euler, 0.0, there - here)
    nodes = [torch.where(euler, t, node) for node in nodes]
    scales = [*(clock(process, form, node)[1] for node in nodes), scale_s]
    rows = []
    for j, node in enumerate(nodes):
        before = (*a[j], 0.0)
        last = j == len(nodes) - 1
        state = torch.where(euler, keep if last else 1.0, scales[j + 1] / scales[j])
        moves = []
        for k in range(j, -1, -1):
            coefficient = a[j + 1][k] - before[k]
            if isinstance(coefficient, Tensor):
                coefficient = torch.where(euler, 0.0, coefficient)
            moves.append(scales[j + 1] * h * coefficient)
        if last:
            moves[0] = torch.where(euler, step, moves[0])
        rows.append(Row(node, state, tuple(moves)))
    return Steps(rows, euler)


def as_rows(steps: Steps, times: Sequence[float] | Tensor) -> tuple[tuple[Row, ...], ...]:
    """The rows of each step; those taken by Euler are one line.

    Where each sample has times of its own, that holds for steps that all samples take by Euler, if the times are at hand on
    the CPU: no value is read from another device. There the further evaluations of such a step count for nothing.
    """
    count = len(times) - 1
    if isinstance(times, Tensor):
        alone = steps.euler.flatten(1).all(1).tolist() if steps.euler.is_cpu else [False] * count
        return tuple(
            (_first(_pick(steps.rows[-1], i)),) if alone[i] else tuple(_pick(row, i) for row in steps.rows)
            for i in range(count)
        )
    rows = [Row(r.t.tolist(), r.state.tolist(), tuple(e.tolist() for e in r.estimates)) for r in steps.rows]  # type: ignore[union-attr]
    euler = steps.euler.tolist()
    return tuple(
        (_first(_pick(rows[-1], i)),) if euler[i] else tuple(_pick(row, i) for row in rows) for i in range(count)
    )


def _pick(row: Row, i: int) -> Row:
    return Row(row.t[i], row.state[i], tuple(e[i] for e in row.estimates))  # type: ignore[index]


def _first(row: Row) -> Row:
    return row._replace(estimates=row.estimates[:1])
