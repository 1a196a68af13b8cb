"""BDIA: Zhang, Lewis & Kleijn, "Exact Diffusion Inversion via Bi-directional Integration Approximation" (ECCV 2024).

With `M(i -> j)` a one-step method from `z_i` at `t_i` to time `t_j`, a step uses the same estimate twice: to go on, and
to integrate the step before anew, backwards,

    z_{i-1} = gamma (z_{i+1} - M(i -> i+1)) + M(i -> i-1)                       (the paper's rule, with DDIM as M)
    z_{i+1} = (z_{i-1} - M(i -> i-1)) / gamma + M(i -> i+1)                     (its inverse)

Both evaluate the denoiser at `z_i` alone, so the inverse is explicit. The first step from a single state is a plain one.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tweed.core.processes import Process
from tweed.core.time import left
from tweed.errors import IncompatibleError, InputError, choose
from tweed.solvers.base import Problem, State
from tweed.solvers.ddim import DDIM
from tweed.solvers.euler import Euler, clock, grid
from tweed.solvers.reversible import Carried, Grid, Reversible, backwards, growth, rising
from tweed.solvers.table import READ, Number, Row, Table, TableSolver, move, with_endpoint


class Line(NamedTuple):
    """One step: the rows of the method from `z_i`, its last one with the backward method's terms in it already.

    Attributes:
        rows: the lines of the method, in `form`.
        form: which reading of the estimates they multiply.
        before: the coefficient of the state before `z_i`.
        present: that of `z_i` itself beside the last row; 0 where the step has one row, which contains it.
    """

    rows: tuple[Row, ...]
    form: str
    before: float
    present: Number


@dataclass(frozen=True)
class BDIA(Reversible):
    """Exact inversion at no more evaluations than the method it is built on; second order with the defaults.

    `tweed.invert` returns a `Pair`, and `tweed.sample` goes on from it to the very samples that were inverted, under the
    same conditions and the same guidance. With other conditions that is an edit. The denoiser must be a function of its
    arguments: no dropout, and no wrapper that remembers earlier steps.

    Args:
        gamma: how much of the backward integration is used, in (0, 1]; `gamma -> 0` is the method alone. With DDIM the
            leading local error vanishes where `gamma = (alpha_{i-1} / alpha_{i+1}) (h_i / h_{i+1})^2` for steps `h` in
            `sigma / alpha`: near 1 on grids even in time, some 0.5 at 20 and 0.75 at 40 steps on Karras's. At 1 a step
            is symmetric in time (a leapfrog): second order on grids that are smooth in the number of the step, but with
            an undamped mode that alternates between even and odd steps. Smaller values damp it by gamma a step.
            Undoing N steps amplifies rounding `gamma^-(N-1)` times: 5 at 0.9 and N = 16, 1e9 at 0.5 and N = 31. Where
            that leaves nothing, `tweed.invert` raises; where a float32 network would suffer, it warns.
        increment: the method `M`: any deterministic one-step table solver: `DDIM()`, `Euler()` for velocities (and for
            two-sided interpolants), `Heun()` for EDM's sampler, `RungeKutta(...)`, singlestep `DPMSolver`.
        back: the backward method where `increment` has several stages. "euler" takes the first estimate alone; it costs
            the order, by an error in proportion to gamma. "extrapolated" takes the line through the first and the last
            stage, and keeps second order at any gamma and on any grid. Neither costs an evaluation, and for DDIM they
            are the same.
        float64: see `Reversible`.

    Raises:
        InputError: a number out of range, an increment that draws noise, chooses its steps, or is no table solver.
        IncompatibleError: (on use) a multistep increment, whose estimates of earlier steps have no explicit inverse, or
            one that does not fit the process.
    """

    gamma: float = 1.0
    increment: TableSolver = DDIM()  # noqa: RUF009 (immutable)
    back: Literal["euler", "extrapolated"] = "euler"
    float64: bool = True

    def __post_init__(self):
        if not 0.0 < self.gamma <= 1.0:
            raise InputError(
                f"gamma: {self.gamma} was given; expected a number in (0, 1] (towards 0 it is the increment)"
            )
        choose("back", self.back, ("euler", "extrapolated"))
        if not isinstance(self.increment, TableSolver):
            raise InputError(
                f"increment: {self.increment!r} was given; expected a table solver such as DDIM() or Heun()"
            )
        if self.increment.stochastic:
            raise InputError(f"increment: {self.increment} draws noise; expected a deterministic solver")

    @property
    def order(self) -> int:
        """At gamma = 1 with DDIM, or with `back="extrapolated"`, 2; 1 otherwise."""
        staged = self.increment.evaluations > 1
        return 2 if (staged and self.back == "extrapolated") or (not staged and self.gamma == 1.0) else 1

    @property
    def evaluations(self) -> int:
        return self.increment.evaluations

    def check(self, process: Process) -> None:
        self.increment.check(process)

    def amplification(self, steps: int) -> float:
        """`gamma^-(steps - 1)`."""
        return growth(self.gamma, steps - 1.0)

    def step(self, problem: Problem, state: State, i: int) -> State:
        memory: Carried = state.memory
        x, partner = self.kept(state), memory.partner
        if memory.ahead and partner is not None:
            return self.carry(state, partner, x)
        if partner is None:
            return self.carry(state, self._first(problem, memory.lines[0], state.x).to(x.dtype), x)
        return self.carry(state, self._move(problem, memory.lines[i], state.x, x, partner), x)

    def _move(self, problem: Problem, line: Line, shown: Tensor, x: Tensor, partner: Tensor) -> Tensor:
        estimates, read, here = (), READ[line.form], x
        for row in line.rows:
            called = shown if here is x else here.to(shown.dtype)
            share, at, scale, answer = problem.denoiser.call(called, row.t, **problem.cond).reading(read)
            # Only the network needs the rounded state.
            estimates = ((share, here if at is called else at, scale, answer), *estimates)
            here = move(problem, row, here, estimates)
        here = here.add_(partner, alpha=line.before)
        if len(line.rows) == 1:
            return here
        present = line.present
        return here + left(present, x) * x if isinstance(present, Tensor) else here.add_(x, alpha=present)

    def _first(self, problem: Problem, lift: Row | None, x: Tensor) -> Tensor:
        """A plain step of the increment; out of sigma = 0, with the noise that the denoiser sees one step ahead."""
        if lift is None:
            start = replace(problem, times=problem.times[:2])
            return self.increment.step(start, self.increment.init(start, x), 0).x
        ahead = move(problem, lift._replace(estimates=()), x, ())
        return move(problem, lift, x, (problem.estimate(ahead, lift.t).reading(READ["noise"]),))

    def lines(self, process: Process, times: Grid) -> tuple:
        """A `Line` for each step of a grid but the first, which has a `Row` where it leaves sigma = 0, or None."""
        up = rising(times)
        falls: Grid = backwards(times) if up else times
        lift = _lift(process, times) if up else None
        if len(falls) < 3:
            return (lift,)
        down, rises = falls[1:], backwards(falls)[1:]
        table = with_endpoint(process, self.increment.table(process, down), down)
        behind = with_endpoint(process, Euler(table.form).table(process, rises), rises)
        back = [_Back(rows[0], 0.0) for rows in reversed(behind.steps)]
        _require_one_step(self.increment, table)
        if self.back == "extrapolated" and self.increment.evaluations > 1:
            back = _extrapolated(process, table, falls, back)
        # What a step adds: the method forwards, the backward method, and the state before; divided by -gamma to undo it.
        factors = (-1.0 / self.gamma, 1.0, 1.0 / self.gamma) if up else (1.0, -self.gamma, self.gamma)
        lines = [_line(table.form, rows, b, *factors) for rows, b in zip(table.steps, back, strict=True)]
        return (lift, *(reversed(lines) if up else lines))


class _Back(NamedTuple):
    """The backward method: a row in the first estimate, and the coefficient of the last one beside it."""

    row: Row
    last: Number


def _line(form: str, rows: tuple[Row, ...], back: _Back, onward: float, behind: float, before: float) -> Line:
    *inner, last = rows
    coefficients = [onward * c for c in last.estimates[: len(rows)]]
    coefficients += [0.0 * last.state] * (len(rows) - len(coefficients))
    coefficients[-1] = coefficients[-1] + behind * back.row.estimates[0]
    present, state = behind * back.row.state, onward * last.state
    if inner:
        coefficients[0] = coefficients[0] + behind * back.last
    else:
        present, state = 0.0, state + present
    endpoint = onward * last.endpoint + behind * back.row.endpoint
    row = last._replace(state=state, estimates=tuple(coefficients), endpoint=endpoint)
    return Line((*inner, row), form, before, present)


def _lift(process: Process, times: Grid) -> Row | None:
    """The first step of an inversion out of sigma = 0, as a row in noise; None where a plain step is possible."""
    t = grid(times[:2])
    if process.endpoint == "drawn" or not bool((process.sigma(t[0]) == 0.0).any()):
        return None
    alpha, beta, sigma = process.alpha(t), process.beta(t), process.sigma(t)
    state = alpha[1] / alpha[0]
    values = [t[1], state, sigma[1] - state * sigma[0], beta[1] - state * beta[0]]
    if not isinstance(times, Tensor):
        values = [value.item() for value in values]
    at, a, b, d = values
    return Row(at, a, (b,), endpoint=d)


def _extrapolated(process: Process, table: Table, falls: Grid, back: list[_Back]) -> list[_Back]:
    """The integral over the step before of the line through the first and the last stage, in the clock of the form."""
    t = grid(falls)
    ends = [rows[-1].t for rows in table.steps]
    last = torch.stack([torch.as_tensor(end, dtype=torch.float64) for end in ends])
    (there, scale), (here, _), (stage, _) = (_clock(process, table.form, at) for at in (t[:-2], t[1:-1], last))
    reach, gap = there - here, stage - here
    good = reach.isfinite() & gap.isfinite() & (gap != 0.0)
    tilt = torch.where(good, scale * reach**2 / (2.0 * torch.where(good, gap, 1.0)), 0.0)
    tilts = list(tilt) if isinstance(falls, Tensor) else tilt.tolist()
    return [
        _Back(row._replace(estimates=(row.estimates[0] - extra,)), extra)
        for (row, _), extra in zip(back, tilts, strict=True)
    ]


def _clock(process: Process, form: str, t: Tensor) -> tuple[Tensor, Tensor]:
    if form == "data":
        sigma = process.sigma(t)
        return process.alpha(t) / sigma, sigma
    return clock(process, form, t)  # type: ignore[arg-type]


def _require_one_step(increment: TableSolver, table: Table) -> None:
    for rows in table.steps:
        for count, row in enumerate(rows, 1):
            older = row.estimates[count:]
            if any(bool((torch.as_tensor(c) != 0.0).any()) for c in older):
                raise IncompatibleError(
                    f"increment: {increment} uses estimates of earlier steps, so that a step has no explicit inverse; "
                    "use a one-step method (DDIM, Euler, Heun, RungeKutta, singlestep DPMSolver)"
                )
