"""DPM-Solver and DPM-Solver++: Lu et al., "DPM-Solver" (NeurIPS 2022); "DPM-Solver++" (2022).

Exponential integrators in log-SNR (see `tweed.solvers.exponential`) whose polynomial goes through earlier steps
(multistep) or through stages inside the step (singlestep).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core.processes import Process
from tweed.errors import InputError, choose
from tweed.solvers.ddim import one_evaluation
from tweed.solvers.exponential import Levels, Span, as_grid, history, lower_final, moments, phi, weights
from tweed.solvers.table import Row, Table, TableSolver

_FRACTIONS = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}


@dataclass(frozen=True)
class DPMSolver(TableSolver):
    """DPM-Solver (`form="noise"`) and DPM-Solver++ (`form="data"`), orders 1 to 3; order 1 is DDIM.

    Args:
        order: of convergence, on grids that are refined evenly in log-SNR.
        kind: "multistep" (2M, 3M: one evaluation a step, first steps of lower order) or "singlestep" (2S, 3S: `order`
            evaluations a step, at fractions 1/2, or 1/3 and 2/3, of it in log-SNR).
        form: the reading of the estimates that is extrapolated, "data" or "noise".
        solver_type: "midpoint" or "taylor" weights, both of the papers. "midpoint" (the authors' "dpmsolver") replaces
            `phi_2` by `phi_1 / 2` at order 2 and drops the second derivative of singlestep 3; "taylor" uses the exact
            weights of the interpolating polynomial. At multistep 3, "midpoint" is the formula of the authors' code,
            which gives the second derivative half its weight: its error is often smaller below some 30 steps, but it
            converges with order 2 only. By default "taylor" for multistep 3, "midpoint" otherwise.
        eta: how much noise is drawn: the reverse SDE `dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw`. 0 is the
            ODE, 1 SDE-DPM-Solver++ (2M-SDE at order 2). Needs the multistep kind and falling time. The variance of a
            Gaussian converges with order 1 at order 1, and 2 at orders 2 and 3. The noise form needs many more steps.
        lower_order_final: lower the order of multistep over the last steps, so that the last one is of first order. By
            default on grids of fewer than 10 steps, as in the authors' code, and where the last step is more than twice
            as long in log-SNR as the one before. A step from or to an infinite log-SNR is always of first order.
        group: singlestep with stages at the grid's own times: one evaluation a step of the grid, so that steps =
            evaluations ("DPM-Solver-fast"). Groups of `order` intervals, and smaller ones at the end.
        start: "lower" begins multistep with steps of orders 1 and 2, as published. Their error is of second order: small
            where the start is nearly pure noise, it shows at order 3 where it is not. "singlestep" spends one more
            evaluation inside the first step and is of third order from anywhere.

    Raises:
        InputError: an unknown name, an order other than 1, 2, 3, or options that exclude each other.
        IncompatibleError: (on use) a noise form on a grid that begins where `alpha = 0`, or a data form where `sigma = 0`.
    """

    order: int = 2
    kind: Literal["multistep", "singlestep"] = "multistep"
    form: Literal["data", "noise"] = "data"
    solver_type: Literal["midpoint", "taylor"] | None = None
    eta: float = 0.0
    lower_order_final: bool | None = None
    group: bool = False
    start: Literal["lower", "singlestep"] = "lower"

    def __post_init__(self):
        if self.order not in (1, 2, 3):
            raise InputError(f"order: {self.order!r} was given; expected 1, 2 or 3")
        choose("kind", self.kind, ("multistep", "singlestep"))
        choose("form", self.form, ("data", "noise"))
        if self.solver_type is not None:
            choose("solver_type", self.solver_type, ("midpoint", "taylor"))
        if not 0.0 <= self.eta <= 1.0:
            raise InputError(f"eta: {self.eta} was given; expected a number in [0, 1]")
        if self.eta > 0.0 and self.kind != "multistep":
            raise InputError(f"eta: {self.eta} was given; expected 0 unless kind='multistep'")
        choose("start", self.start, ("lower", "singlestep"))
        if self.start == "singlestep" and (self.kind != "multistep" or self.eta > 0.0):
            raise InputError("start: 'singlestep' was given; it is for kind='multistep' and eta=0 alone")
        if self.group and self.kind != "singlestep":
            raise InputError("group: True was given for kind='multistep'; expected kind='singlestep'")

    @property
    def evaluations(self) -> int:
        return 1 if self.kind == "multistep" or self.group else self.order

    @property
    def stochastic(self) -> bool:
        return self.eta > 0.0

    @property
    def exact_weights(self) -> bool:
        """Whether the weights are those of the interpolating polynomial ("taylor")."""
        if self.solver_type is None:
            return self.kind == "multistep" and self.order == 3
        return self.solver_type == "taylor"

    def table(self, process: Process, times: Sequence[float] | Float[Tensor, "steps+1 b"]) -> Table:
        t = as_grid(times)
        if self.kind == "multistep":
            return self._multistep(process, times, t)
        return self._grouped(process, t) if self.group else self._singlestep(process, times, t)

    def _multistep(self, process: Process, times, t: Tensor) -> Table:
        inner = self._inner(process, t[:2]) if self.start == "singlestep" and self.order == 3 else None
        if inner is not None:
            t = torch.cat([t[:1], inner, t[1:]])
        levels = Levels.at(process, t)
        nodes, count = history(levels, self.order)
        count = lower_final(count, levels, self.lower_order_final)
        span = Span.between(self.form, levels.part(slice(None, -1)), levels.part(slice(1, None)), self.eta)
        columns = span.combine(nodes, count, moments if self.exact_weights else _multistep_midpoint)
        table = one_evaluation(
            self.form, t if isinstance(times, Tensor) else t.tolist(), span.state, tuple(columns), span.noise
        )
        if inner is None:
            return table
        return Table(self.form, (tuple(self._rows(process, t[:3], [2])), *table.steps[2:]))

    def _inner(self, process: Process, t: Tensor) -> Tensor | None:
        # The middle of the first step in log-SNR; its beginning where it has none.
        lam = process.log_snr(t)
        finite = torch.isfinite(lam).all(0)
        if not bool(finite.any()):
            return None
        middle = process.time(torch.where(finite, lam, 0.0).mean(0))
        return torch.where(finite, middle, t[0])[None]

    def _singlestep(self, process: Process, times, t: Tensor) -> Table:
        lam, steps = process.log_snr(t), len(t) - 1
        h = lam[1:] - lam[:-1]
        # A step of infinite extent has no inside: its stages stay at its beginning, and it is of first order.
        inside = torch.isfinite(h) & (h != 0.0)
        start, h = torch.where(inside, lam[:-1], 0.0), torch.where(inside, h, 1.0)
        stages = [torch.where(inside, process.time(start + r * h), t[:-1]) for r in _FRACTIONS[self.order]]
        each = torch.stack([t[:-1], *stages], 1)
        if isinstance(times, Tensor):
            orders = [self.order] * steps
            fine = torch.cat([each.flatten(0, 1), t[-1:]])
        else:
            orders = [self.order if full else 1 for full in inside.tolist()]
            fine = torch.cat([*(each[i, :k] for i, k in enumerate(orders)), t[-1:]])
        rows = iter(self._rows(process, fine, orders))
        return Table(self.form, tuple(tuple(next(rows) for _ in range(k)) for k in orders))

    def _grouped(self, process: Process, t: Tensor) -> Table:
        infinite = torch.isinf(process.log_snr(t)).flatten(1).any(1) if t.ndim > 1 else torch.isinf(process.log_snr(t))
        first, last = infinite[0].item(), infinite[-1].item()
        orders = _group_orders(len(t) - 1, self.order)
        if first and orders[0] > 1:
            orders = [1, *_group_orders(len(t) - 2, self.order)]
        if last and orders[-1] > 1:
            head = [1] if first else []
            orders = [*head, *_group_orders(len(t) - 2 - len(head), self.order), 1]
        return Table(self.form, tuple((row,) for row in self._rows(process, t, orders)))

    def _rows(self, process: Process, t: Tensor, orders: list[int]) -> list[Row]:
        """One row an interval of `t`, whose intervals are grouped into steps of the given orders."""
        levels = Levels.at(process, t)
        starts = torch.tensor([0, *orders]).cumsum(0)[:-1]
        rows: dict[int, Row] = {}
        for k in sorted(set(orders)):
            where = starts[torch.tensor(orders) == k].to(t.device)
            for j, (state, *columns) in enumerate(self._stages(levels, where, k)):
                values = [t[where + j], state, *columns]
                lists = values if t.ndim > 1 else [value.tolist() for value in values]
                for n, i in enumerate(where.tolist()):
                    rows[i + j] = Row(lists[0][n], lists[1][n], tuple(column[n] for column in lists[2:]))
        return [rows[i] for i in range(len(rows))]

    def _stages(self, levels: Levels, where: Tensor, k: int) -> list[list[Tensor]]:
        """`[A, B_0, B_1, ...]` of the k lines of the steps that begin at `where`, newest estimate first."""
        begin = levels.part(where)
        lines, state, from_begin = [], torch.ones_like(begin.alpha), list[Tensor]()
        for j in range(1, k + 1):
            span = Span.between(self.form, begin, levels.part(where + j))
            gap = torch.where(span.finite, levels.log_snr[where + j] - begin.log_snr, 1.0)
            nodes = [
                torch.where(span.finite, (levels.log_snr[where + i] - begin.log_snr) / gap, i / j) for i in range(1, j)
            ]
            columns = self._stage_columns(span, nodes, last=j == k)
            # The line from stage j - 1 to stage j: the beginning is (x - sum B m) / A of the stage before.
            ratio = span.state / state
            padded = [*from_begin, torch.zeros_like(ratio)]
            differences = [new - ratio * old for new, old in zip(columns, padded, strict=True)]
            lines.append([ratio, *reversed(differences)])
            state, from_begin = span.state, columns
        return lines

    def _stage_columns(self, span: Span, nodes: list[Tensor], last: bool) -> list[Tensor]:
        """The coefficients of the estimates at the stages so far, oldest first."""
        zero = torch.zeros_like(span.first)
        if not nodes:
            extra = []
        elif last and self.exact_weights:
            extra = weights(nodes, moments(span.z, len(nodes)))
        elif last and len(nodes) == 1:
            extra = [0.5 * phi(1, span.z) / nodes[0]]
        else:
            extra = [*(zero for _ in nodes[1:]), phi(2, span.z) / nodes[-1]]
        extra = [torch.where(span.finite, span.slope * w, 0.0) for w in extra]
        return [span.first - sum(extra, zero), *extra]


def _multistep_midpoint(z: Tensor, count: int) -> list[Tensor]:
    # The weights of the authors' code (2M of DPM-Solver++, and 3M); `phi_3` stands where 2 phi_3 would be exact.
    return [0.5 * phi(1, z)] if count == 1 else [phi(2, z), phi(3, z)]


def _group_orders(steps: int, order: int) -> list[int]:
    # "DPM-Solver-fast": what is left over at the end goes to a step of order 2, or 1, or both.
    if order == 1 or steps < 2:
        return [1] * steps
    whole, rest = divmod(steps, order)
    if order == 3 and rest == 0:
        return [3] * (whole - 1) + [2, 1]
    return [order] * whole + [rest] * (rest > 0)
