"""DDIM and DDPM: Song, Meng & Ermon, "Denoising Diffusion Implicit Models" (ICLR 2021); Ho et al. (NeurIPS 2020).

From time t to s < t the posterior `q(x_s | x_t, x_0)` has standard deviation
`std^2 = (sigma_s/sigma_t)^2 (sigma_t^2 - (kept_t/kept_s)^2 sigma_s^2)`, `kept` what the chain keeps of a state (alpha, but on
processes that say otherwise); with `c = eta std`,
`x_s = alpha_s x_0 + sqrt(sigma_s^2 - c^2) eps + c z` (DDIM, Eq. 12, for any process).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tweed.core.processes import Process
from tweed.core.time import as_time
from tweed.errors import InputError
from tweed.solvers.table import Row, Table, TableSolver


@dataclass(frozen=True)
class DDIM(TableSolver):
    """First order, one evaluation a step; deterministic at `eta = 0`, the ancestral sampler DDPM at `eta = 1`.

    Args:
        eta: the share of the posterior's standard deviation that is drawn anew, in [0, 1]. At `eta > 0` time must fall.
    """

    eta: float = 0.0
    order: ClassVar[int] = 1
    evaluations: ClassVar[int] = 1  # type: ignore[assignment]

    def __post_init__(self):
        if not 0.0 <= self.eta <= 1.0:
            raise InputError(f"eta: {self.eta} was given; expected a number in [0, 1]")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0.0

    def table(self, process: Process, times: Sequence[float] | Tensor) -> Table:
        t = torch.as_tensor(times, dtype=torch.float64) if not isinstance(times, Tensor) else as_time(times)
        alpha, sigma = process.alpha(t), process.sigma(t)
        a, b, s, r = alpha[:-1], alpha[1:], sigma[:-1], sigma[1:]
        kept = process.carried(t)
        k = kept[:-1] / kept[1:]
        # x_s = alpha_s x_0 + keep (x_t - alpha_t x_0) / sigma_t + c z, in terms of x_t and x_0.
        drawn2 = torch.where(kept[1:] > 0, (r / s) ** 2 * (s**2 - k**2 * r**2), 0.0).clamp_min(0.0)
        drawn = self.eta * drawn2.sqrt()
        keep = (r**2 - drawn**2).clamp_min(0.0).sqrt() / s
        return one_evaluation("data", times, keep, (b - keep * a,), drawn)


def DDPM() -> DDIM:
    """The ancestral sampler with the posterior's variance: `DDIM(eta=1)`."""
    return DDIM(eta=1.0)


def one_evaluation(
    form, times: Sequence[float] | Tensor, state: Tensor, estimates: tuple[Tensor, ...], noise: Tensor | None = None
) -> Table:
    """A table with one line a step, from coefficients (steps,) or (steps, b); zeros stand for absent ones."""
    noise = torch.zeros_like(state) if noise is None else noise
    columns = [state, noise, *estimates]
    if not isinstance(times, Tensor):
        columns = [c.tolist() for c in columns]  # type: ignore[misc]
    a, c, *b = columns
    steps = tuple((Row(times[i], a[i], tuple(e[i] for e in b), c[i]),) for i in range(len(a)))
    return Table(form, steps)
