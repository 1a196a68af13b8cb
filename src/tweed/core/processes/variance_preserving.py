"""Variance-preserving processes in continuous time.

VP and sub-VP: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations" (ICLR 2021),
Appendix B, with `B(t) = beta_min t + (beta_max - beta_min) t^2 / 2`. Cosine: Nichol & Dhariwal, "Improved Denoising
Diffusion Probabilistic Models" (ICML 2021), Eq. 17, in continuous time.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tweed.core.processes.base import Process
from tweed.errors import InputError


@dataclass(frozen=True)
class _LinearBeta(Process):
    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self):
        if not 0.0 < self.beta_min <= self.beta_max:
            raise InputError(
                f"beta_min, beta_max: {self.beta_min}, {self.beta_max} were given; expected 0 < beta_min <= beta_max"
            )

    def _rate(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def _integral(self, t: Tensor) -> Tensor:
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def _integral_inverse(self, b: Tensor) -> Tensor:
        # The root of B(t) = b written without a cancellation at small b; values beyond B(1) give 1.
        b = b.clamp_max(0.5 * (self.beta_min + self.beta_max))
        root = (self.beta_min**2 + 2.0 * (self.beta_max - self.beta_min) * b).sqrt()
        return (2.0 * b / (self.beta_min + root)).clamp_max(1.0)

    def _alpha(self, t: Tensor) -> Tensor:
        return (-0.5 * self._integral(t)).exp()

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return -0.5 * self._rate(t) * self._alpha(t)


@dataclass(frozen=True)
class VP(_LinearBeta):
    """`alpha = exp(-B/2)`, `sigma^2 = 1 - exp(-B)`: the continuous limit of DDPM with linear betas."""

    def _sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(-self._integral(t))).sqrt()

    def _variance_dot(self, t: Tensor) -> Tensor:
        return self._rate(t) * (-self._integral(t)).exp()

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return 0.5 * self._variance_dot(t) / self._sigma(t)

    def _diffusion(self, t: Tensor) -> Tensor:
        return self._rate(t).sqrt()

    def _time(self, log_snr: Tensor) -> Tensor:
        return self._integral_inverse(torch.logaddexp(-2.0 * log_snr, torch.zeros_like(log_snr)))


@dataclass(frozen=True)
class SubVP(_LinearBeta):
    """`alpha = exp(-B/2)`, `sigma = 1 - exp(-B)`: never more variance than VP, and better likelihoods."""

    def _sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self._integral(t))

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return self._rate(t) * (-self._integral(t)).exp()

    def _diffusion(self, t: Tensor) -> Tensor:
        return (self._rate(t) * -torch.expm1(-2.0 * self._integral(t))).sqrt()

    def _time(self, log_snr: Tensor) -> Tensor:
        # sigma / alpha = 2 sinh(B / 2).
        return self._integral_inverse(2.0 * torch.asinh(0.5 * (-log_snr).exp()))


@dataclass(frozen=True)
class Cosine(Process):
    """`alpha = cos(u) / cos(u_0)`, `u = (t + s) / (1 + s) pi / 2`, `sigma^2 = 1 - alpha^2`; `alpha(1) = 0`."""

    offset: float = 0.008

    def __post_init__(self):
        if not 0.0 <= self.offset < 1.0:
            raise InputError(f"offset: {self.offset} was given; expected 0 <= offset < 1")

    @property
    def _u0(self) -> float:
        return 0.5 * math.pi * self.offset / (1.0 + self.offset)

    @property
    def _slope(self) -> float:
        return 0.5 * math.pi / (1.0 + self.offset)

    @property
    def t_max(self) -> float:
        # log-SNR -5.1, where DPM-Solver's authors clip this schedule.
        return self.time(-5.1).item()

    def _alpha(self, t: Tensor) -> Tensor:
        return (self._slope * (1.0 - t)).sin() / math.cos(self._u0)

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return -self._slope * (self._slope * (1.0 - t)).cos() / math.cos(self._u0)

    def _sigma(self, t: Tensor) -> Tensor:
        # cos(u0)^2 - cos(u)^2 = sin(u - u0) sin(u + u0): no cancellation near t = 0.
        w = self._slope * t
        return (w.sin() * (w + 2.0 * self._u0).sin()).sqrt() / math.cos(self._u0)

    def _variance_dot(self, t: Tensor) -> Tensor:
        return -2.0 * self._alpha(t) * self._alpha_dot(t)

    def _sigma_dot(self, t: Tensor) -> Tensor:
        rate = 0.5 * self._variance_dot(t) / self._sigma(t)
        # Without an offset sigma is a sine, which leaves zero in a straight line.
        return rate if self.offset > 0.0 else torch.where(t > 0.0, rate, self._slope)

    def _diffusion(self, t: Tensor) -> Tensor:
        return (-2.0 * self._alpha_dot(t) / self._alpha(t)).sqrt()

    def _time(self, log_snr: Tensor) -> Tensor:
        alpha2, sigma2 = torch.sigmoid(2.0 * log_snr), torch.sigmoid(-2.0 * log_snr)
        sine = (math.sin(self._u0) ** 2 + sigma2 * math.cos(self._u0) ** 2).sqrt()
        u = torch.atan2(sine, alpha2.sqrt() * math.cos(self._u0))
        return ((u - self._u0) / self._slope).clamp(0.0, 1.0)
