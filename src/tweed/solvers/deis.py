"""DEIS: Zhang & Chen, "Fast Sampling of Diffusion Models with Exponential Integrator" (ICLR 2023)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core.processes import Process
from tweed.errors import InputError, choose
from tweed.solvers.ddim import one_evaluation
from tweed.solvers.exponential import Levels, Span, as_grid, history
from tweed.solvers.table import Table, TableSolver

_QUADRATURE = 64


@dataclass(frozen=True)
class DEIS(TableSolver):
    """Exponential Adams-Bashforth on the noise estimate, deterministic, one evaluation a step.

    The flow satisfies `d(x / alpha) = eps d(rho)`, `rho = sigma / alpha`, so that

        x_t = (alpha_t / alpha_s) x_s + alpha_t sum_j C_j eps_j,    C_j = int_{rho_s}^{rho_t} L_j d(rho),

    with `L_j` the Lagrange polynomials through the last `order` estimates, in the variable `variable`. The integrals are
    taken by Gauss-Legendre quadrature in log-SNR (64 points, float64: rounding error only). Order 1 is DDIM. The first
    steps use the estimates that there are: their error, of second order, shows at orders 3 and 4 unless the start is
    nearly pure noise. A step to infinite log-SNR (`sigma = 0`) is of first order; none can leave `alpha = 0`.

    Args:
        order: of convergence, the number of estimates, 1 to 4 (the paper counts the degree: its tAB3 is order 4).
        variable: what the polynomials are in: "time" (the paper's tAB-DEIS), "rho" (its rho-AB), or "log_rho"
            (diffusers' `DEISMultistepScheduler`; the same as `DPMSolver` with `form="noise"`, `solver_type="taylor"`).

    Raises:
        InputError: an order or a variable that there is not.
        IncompatibleError: (on use) the grid begins where `alpha = 0`; begin at `process.t_max`.
    """

    order: int = 3
    variable: Literal["time", "rho", "log_rho"] = "time"
    evaluations: ClassVar[int] = 1  # type: ignore[assignment]

    def __post_init__(self):
        if self.order not in (1, 2, 3, 4):
            raise InputError(f"order: {self.order!r} was given; expected 1, 2, 3 or 4")
        choose("variable", self.variable, ("time", "rho", "log_rho"))

    def table(self, process: Process, times: Sequence[float] | Float[Tensor, "steps+1 b"]) -> Table:
        t = as_grid(times)
        levels = Levels.at(process, t)
        here, there = levels.part(slice(None, -1)), levels.part(slice(1, None))
        span = Span.between("noise", here, there)
        _, count = history(levels, self.order)
        # In u, where log-SNR = lambda_s + u h: C_j = -rho_s h int_0^1 exp(-u h) L_j du.
        node, weight = (torch.from_numpy(a).to(t) for a in np.polynomial.legendre.leggauss(_QUADRATURE))
        shape = (-1,) + (1,) * (t.ndim)
        u, du = (0.5 + 0.5 * node).reshape(shape), (0.5 * weight).reshape(shape)
        start, h = torch.where(span.finite, here.log_snr, 0.0), torch.where(span.finite, span.z, 1.0)
        points = self._place(process, start + u * h, None)
        knots = self._place(process, levels.log_snr[:-1], t[:-1])
        measure = span.slope * du * torch.exp((1.0 - u) * h)
        columns = [torch.zeros_like(span.first) for _ in range(self.order - 1)]
        for k in range(2, self.order + 1):
            used = (count == k) & span.finite
            past = [torch.roll(knots, j, 0) for j in range(k)]
            for j in range(1, k):
                factors = [(points - past[i]) / (past[j] - past[i]) for i in range(k) if i != j]
                integral = (measure * torch.stack(factors).prod(0)).sum(0)
                columns[j - 1] = torch.where(used, integral, columns[j - 1])
        newest = span.first - sum(columns, torch.zeros_like(span.first))
        return one_evaluation("noise", times, span.state, (newest, *columns))

    def _place(self, process: Process, log_snr: Tensor, t: Tensor | None) -> Tensor:
        """The polynomials' variable at levels of log-SNR (at times `t`, where they are known)."""
        if self.variable == "time":
            return process.time(log_snr) if t is None else t
        return torch.exp(-log_snr) if self.variable == "rho" else -log_snr
