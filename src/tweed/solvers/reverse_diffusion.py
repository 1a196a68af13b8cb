"""Predictors that undo the discretised forward process: Song et al. (ICLR 2021), Appendices E and F.

Between grid times s < t the forward process is exactly `x_t = r x_s + G z`, with `r = alpha_t / alpha_s` and
`G^2 = sigma_t^2 - r^2 sigma_s^2`, for any Gaussian process. On `FromBetas` and its own grid this is DDPM's
`r = sqrt(1 - beta_i)`, `G = sqrt(beta_i)`; on `VE` it is SMLD's `r = 1`, `G^2 = sigma_i^2 - sigma_{i-1}^2`. The
published formulas for both are the special cases. (For sub-VP the official code takes Euler-Maruyama's step instead.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tweed.core.processes import Process
from tweed.core.time import as_time
from tweed.errors import choose
from tweed.solvers.ddim import one_evaluation
from tweed.solvers.euler_maruyama import last_without
from tweed.solvers.table import Table, TableSolver


@dataclass(frozen=True)
class ReverseDiffusion(TableSolver):
    """`x_s = x_t - (r - 1) x_t + G^2 score + G z` (Eq. 46): first order (weak), one evaluation a step.

    Args:
        probability_flow: half the score and no noise (Eq. 47): then time may also rise.
        denoise_last: the last step returns its mean, without noise.
    """

    probability_flow: bool = False
    denoise_last: bool = True
    order: ClassVar[int] = 1
    evaluations: ClassVar[int] = 1  # type: ignore[assignment]

    @property
    def stochastic(self) -> bool:
        return not self.probability_flow

    def table(self, process: Process, times: Sequence[float] | Tensor) -> Table:
        alpha, sigma = _levels(process, times)
        rises = sigma[1:] / alpha[1:] > sigma[:-1] / alpha[:-1]
        low, high = torch.where(rises, alpha[:-1], alpha[1:]), torch.where(rises, alpha[1:], alpha[:-1])
        small, large = torch.where(rises, sigma[:-1], sigma[1:]), torch.where(rises, sigma[1:], sigma[:-1])
        ratio, variance = _forward(low, small, high, large)
        share = 0.5 if self.probability_flow else 1.0
        # x - f + G^2 score going down, x + f - G^2 score going up; score = -eps / sigma.
        state = torch.where(rises, ratio, 2.0 - ratio)
        towards = torch.where(rises, share * variance, -share * variance) / sigma[:-1]
        noise = torch.zeros_like(state) if self.probability_flow else last_without(variance.sqrt(), self.denoise_last)
        return one_evaluation("noise", times, state, (towards,), noise)


@dataclass(frozen=True)
class Ancestral(TableSolver):
    """`x_s = (x_t + G^2 score) / r + std z`: the mean of the posterior q(x_s | x_t, x_0); first order, one evaluation.

    With `variance="posterior"` this is DDPM (`DDIM(eta=1)`) and the published sampler for VE; the published one for VP
    draws with the forward step's variance (`variance="forward"`), the larger of DDPM's two choices.

    Args:
        variance: "posterior", `std = G sigma_s / sigma_t`, or "forward", `std = G`.
        denoise_last: the last step returns its mean, without noise.

    Raises:
        InputError: an unknown `variance`.
    """

    variance: Literal["posterior", "forward"] = "posterior"
    denoise_last: bool = True
    order: ClassVar[int] = 1
    evaluations: ClassVar[int] = 1  # type: ignore[assignment]
    stochastic: ClassVar[bool] = True  # type: ignore[assignment]

    def __post_init__(self):
        choose("variance", self.variance, ("posterior", "forward"))

    def table(self, process: Process, times: Sequence[float] | Tensor) -> Table:
        alpha, sigma = _levels(process, times)
        ratio, forward = _forward(alpha[1:], sigma[1:], alpha[:-1], sigma[:-1])
        share = (sigma[1:] / sigma[:-1]) ** 2
        # In terms of x_t and x_0, which has no division by r: finite from alpha_t = 0 on.
        state, data = ratio * share, alpha[1:] * forward / sigma[:-1] ** 2
        variance = forward * share if self.variance == "posterior" else forward
        return one_evaluation("data", times, state, (data,), last_without(variance.sqrt(), self.denoise_last))


def _levels(process: Process, times: Sequence[float] | Tensor) -> tuple[Tensor, Tensor]:
    t = as_time(times) if isinstance(times, Tensor) else torch.as_tensor(times, dtype=torch.float64)
    return process.alpha(t), process.sigma(t)


def _forward(a: Tensor, s: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """`r` and `G^2` of the forward step from (a, s) to the noisier (alpha, sigma)."""
    ratio = torch.where(a > 0, alpha / a, 0.0)
    return ratio, (sigma**2 - ratio**2 * s**2).clamp_min(0.0)
