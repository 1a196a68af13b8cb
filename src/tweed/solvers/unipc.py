"""UniPC: Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models" (NeurIPS 2023).

A multistep predictor (UniP-p, through p estimates) and a corrector (UniC-p, through the new one too) that costs no
evaluation: the estimate made at the predicted state serves the correction of that state and the next prediction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core.processes import Process
from tweed.errors import InputError, choose
from tweed.solvers.ddim import one_evaluation
from tweed.solvers.exponential import Levels, Span, as_grid, history, lower_final, moments, phi
from tweed.solvers.table import Table, TableSolver


@dataclass(frozen=True)
class UniPC(TableSolver):
    """UniPC with B(h), deterministic, one evaluation a step, by its order of convergence.

    The paper names a method by the order p of its predictor; the corrector raises the order to p + 1 (its Theorem 3.1).
    Here `order` is that of convergence, as for every solver: the authors' UniPC-p, diffusers' `solver_order=p`, is
    `UniPC(order=p + 1)`, and `UniPC.published(p)` has their other settings too. Order 1 has no corrector and is DDIM.

    The state between steps is the predicted one, and the next step begins by correcting it; so the last step is not
    corrected, as in the authors' code.

    Args:
        order: of convergence, from 1 to 6, on grids refined evenly in log-SNR. The first steps use the estimates that
            there are, with an error of third order: above 3, that shows unless the start is nearly pure noise.
        variant: `B(h)`: "bh1" (`h`) or "bh2" (`exp(h) - 1`). It matters where a weight is set to 1/2: the first
            corrector and the second predictor.
        form: the reading of the estimates that is extrapolated, "data" or "noise".
        lower_order_final: lower the order over the last steps, as `DPMSolver` does and with the same default. The
            authors always do; the last step's error is then of second order.

    Raises:
        InputError: an unknown name, or an order that there is not.
        IncompatibleError: (on use) a noise form on a grid that begins where `alpha = 0`, or a data form where `sigma = 0`.
    """

    order: int = 3
    variant: Literal["bh1", "bh2"] = "bh2"
    form: Literal["data", "noise"] = "data"
    lower_order_final: bool | None = None
    evaluations: ClassVar[int] = 1  # type: ignore[assignment]

    def __post_init__(self):
        if self.order not in range(1, 7):
            raise InputError(f"order: {self.order!r} was given; expected a whole number from 1 to 6")
        choose("variant", self.variant, ("bh1", "bh2"))
        choose("form", self.form, ("data", "noise"))

    @classmethod
    def published(
        cls, p: int, variant: Literal["bh1", "bh2"] = "bh2", form: Literal["data", "noise"] = "data"
    ) -> "UniPC":
        """The authors' UniPC-p, p = 1 ... 5: predictor of order p, order of convergence p + 1, lower orders at the end."""
        if p not in range(1, 6):
            raise InputError(f"p: {p!r} was given; expected a whole number from 1 to 5")
        return cls(p + 1, variant, form, lower_order_final=True)

    def table(self, process: Process, times: Sequence[float] | Float[Tensor, "steps+1 b"]) -> Table:
        levels = Levels.at(process, as_grid(times))
        nodes, count = history(levels, max(self.order - 1, 1))
        count = lower_final(count, levels, self.lower_order_final)
        span = Span.between(self.form, levels.part(slice(None, -1)), levels.part(slice(1, None)))
        predict = span.combine(nodes, count, self._right_sides)
        if self.order == 1:
            return one_evaluation(self.form, times, span.state, tuple(predict))
        # The corrector's polynomial also goes through the new estimate, at the end of the step, u = 1.
        zero = torch.zeros_like(span.first)
        center, new, *past = span.combine([zero + 1.0, *nodes], count + 1, self._right_sides)
        # x_corrected = x_predicted + sum change_j e_j, newest first; it is made at the beginning of the next step.
        change = [new, *(c - p for c, p in zip([center, *past], predict, strict=True))]
        columns = []
        for now, before in zip([*predict, zero], change, strict=True):
            carried = torch.cat([zero[:1], span.state[1:] * before[:-1]])
            columns.append(now + carried)
        return one_evaluation(self.form, times, span.state, tuple(columns))

    def _right_sides(self, z: Tensor, count: int) -> list[Tensor]:
        # One weight is 1/2 by convention, in units of B(h): the only place where B(h) does not cancel.
        if count == 1:
            return [torch.full_like(z, 0.5) if self.variant == "bh1" else 0.5 * phi(1, z)]
        return moments(z, count)
