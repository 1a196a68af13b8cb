"""Heun's method with churn: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
(NeurIPS 2022), Algorithms 1 and 2, for any process: their noise level is `sigma / alpha`, their state `x / alpha`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tweed.core.processes import Process
from tweed.errors import InputError
from tweed.solvers.base import Form
from tweed.solvers.euler import ODESolver, check_number, clock, grid
from tweed.solvers.runge_kutta import TABLEAUS, as_rows, check_step_form, tableau_steps
from tweed.solvers.table import Row, Table


@dataclass(frozen=True)
class Heun(ODESolver):
    """Second order, two evaluations a step; a step into sigma = 0 is Euler's, as published.

    Args:
        form: "noise" (in `sigma / alpha`, as published) or "velocity" (the trapezoid in time, for any process).
        churn: S_churn: over the run, each step first raises the noise level by the factor `1 + gamma`,
            `gamma = min(churn / steps, sqrt(2) - 1)`. 0 is the deterministic Algorithm 1.
        churn_min, churn_max: S_tmin and S_tmax, the noise levels `sigma / alpha` between which that happens.
        churn_noise: S_noise, the standard deviation of the noise added, relative to what the level calls for.
        full_end: evaluate the velocity at sigma = 0 too (see `RungeKutta`).

    The noise is never raised above that of the process at t = 1.

    Raises:
        InputError: a negative number, an unknown form, or churn in the velocity form.
    """

    form: Form = "noise"
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0
    full_end: bool = False
    order: ClassVar[int] = 2
    evaluations: ClassVar[int] = 2  # type: ignore[assignment]

    def __post_init__(self):
        check_step_form(self.form, self.full_end)
        for name in ("churn", "churn_min", "churn_max", "churn_noise"):
            check_number(name, getattr(self, name), 0.0)
        if self.churn > 0.0 and self.form != "noise":
            raise InputError(f"churn: {self.churn} was given with form={self.form!r}; expected form='noise'")

    @property
    def stochastic(self) -> bool:
        return self.churn > 0.0

    def table(self, process: Process, times: Sequence[float] | Tensor) -> Table:
        t = grid(times)
        t, s = t[:-1], t[1:]
        raised, row = (t, None) if self.churn == 0.0 else self._raise(process, t)
        steps = as_rows(tableau_steps(process, self.form, TABLEAUS["heun2"], raised, s, self.full_end), times)
        if row is None:
            return Table(self.form, steps)
        if isinstance(times, Tensor):
            extra = [(row._replace(t=t[i], state=row.state[i], noise=row.noise[i]),) for i in range(len(t))]  # type: ignore[index]
        else:
            columns = zip(t.tolist(), row.state.tolist(), row.noise.tolist(), strict=True)  # type: ignore[union-attr]
            extra = [(Row(at, a, noise=c, evaluate=False),) if c > 0.0 else () for at, a, c in columns]
        return Table(self.form, tuple(e + rest for e, rest in zip(extra, steps, strict=True)))

    def _raise(self, process: Process, t: Tensor) -> tuple[Tensor, Row]:
        """The raised times, and the lines that take the state there."""
        level, alpha = clock(process, self.form, t)
        top = process.level(1.0)
        gamma = min(self.churn / len(t), math.sqrt(2.0) - 1.0)
        churned = (level >= self.churn_min) & (level <= self.churn_max) & level.isfinite()
        high = torch.where(churned, level * (1.0 + gamma), level)
        if top.alpha > 0.0:
            high = torch.where(churned, high.clamp_max(top.sigma / top.alpha), high)
        raised = torch.where(high > level, process.time(-high.log()), t)
        ratio = process.alpha(raised) / alpha
        state = torch.where(high > level, ratio, 1.0)
        grown = torch.where(high > level, high**2 - level**2, 0.0).sqrt()
        return raised, Row(t, state, noise=self.churn_noise * process.alpha(raised) * grown, evaluate=False)
