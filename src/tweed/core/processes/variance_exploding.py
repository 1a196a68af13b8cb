"""Variance-exploding processes: `alpha = 1`.

VE: Song et al. (ICLR 2021), Appendix B, in the official code's form `sigma(t) = sigma_min (sigma_max/sigma_min)^t`,
so that the data at t = 0 already carries noise `sigma_min`. EDM: Karras et al., "Elucidating the Design Space of
Diffusion-Based Generative Models" (NeurIPS 2022): time is the noise level itself, here scaled to [0, 1].
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tweed.core.processes.base import Process
from tweed.errors import InputError


@dataclass(frozen=True)
class VE(Process):
    """`sigma(t) = sigma_min (sigma_max / sigma_min)^t`, log-linear in time."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self):
        _check_sigmas(self.sigma_min, self.sigma_max)

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    @property
    def t_min(self) -> float:
        return 0.0

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self._log_ratio * t).exp()

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return self._log_ratio * self._sigma(t)

    def _log_snr(self, t: Tensor) -> Tensor:
        return -math.log(self.sigma_min) - self._log_ratio * t

    def _time(self, log_snr: Tensor) -> Tensor:
        return ((-log_snr - math.log(self.sigma_min)) / self._log_ratio).clamp(0.0, 1.0)


@dataclass(frozen=True)
class EDM(Process):
    """`sigma(t) = sigma_max t`: the noise level is the time. `sigma_min` is where grids take their last step from."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self):
        _check_sigmas(self.sigma_min, self.sigma_max)

    @property
    def t_min(self) -> float:
        return self.sigma_min / self.sigma_max

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_max * t

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.sigma_max)

    def _time(self, log_snr: Tensor) -> Tensor:
        return ((-log_snr).exp() / self.sigma_max).clamp(0.0, 1.0)


def _check_sigmas(low: float, high: float) -> None:
    if not 0.0 < low < high < math.inf:
        raise InputError(f"sigma_min, sigma_max: {low}, {high} were given; expected 0 < sigma_min < sigma_max")
