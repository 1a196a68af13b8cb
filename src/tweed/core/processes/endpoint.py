"""Processes that drift from the data to a given endpoint `y`: a degraded image, noisy speech.

Each is a Gaussian process in the shifted variable `x - beta(t) y`, which is how every solver treats it.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tweed.core.processes.base import Process
from tweed.core.time import invert_increasing
from tweed.errors import InputError, choose


class _Reverting(Process):
    # x_t = e^{-H} x_0 + (1 - e^{-H}) y + sigma eps, H(t) the integral of the reversion rate.
    endpoint: ClassVar[Literal["none", "given", "drawn"]] = "given"

    def _reversion(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def _reversion_dot(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def _alpha(self, t: Tensor) -> Tensor:
        return (-self._reversion(t)).exp()

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return -self._reversion_dot(t) * self._alpha(t)

    def _beta(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self._reversion(t))

    def _beta_dot(self, t: Tensor) -> Tensor:
        return -self._alpha_dot(t)


@dataclass(frozen=True)
class MeanReverting(_Reverting):
    """IR-SDE: `dx = theta(t) (y - x) dt + g dw` with `g^2 = 2 noise^2 theta(t)`.

    Luo et al., "Image Restoration with Mean-Reverting Stochastic Differential Equations" (ICML 2023). With
    `H(t)` the integral of theta: `alpha = exp(-H)`, `beta = 1 - alpha`, `sigma = noise sqrt(1 - exp(-2 H))`.

    Args:
        noise: the stationary standard deviation (50/255 as published).
        remainder: `alpha(1)`, what is left of the data at the end.
        schedule: the shape of theta(t): "cosine" (the published default), "linear" (from 1e-4 to 0.02) or "constant".
    """

    noise: float = 50.0 / 255.0
    remainder: float = 0.005
    schedule: Literal["cosine", "linear", "constant"] = "cosine"

    def __post_init__(self):
        choose("schedule", self.schedule, ("cosine", "linear", "constant"))
        if not (self.noise > 0.0 and 0.0 < self.remainder < 1.0):
            raise InputError(
                f"noise, remainder: {self.noise}, {self.remainder} were given; expected noise > 0, 0 < remainder < 1"
            )

    # The cosine rate is 1 - cos(u)^2 / cos(u0)^2 = sin(w) sin(w + 2 u0) / cos(u0)^2 with w = u - u0 = slope t.
    _offset: ClassVar[float] = 0.008
    _slope: ClassVar[float] = 0.5 * math.pi / 1.008
    _u0: ClassVar[float] = 0.5 * math.pi * 0.008 / 1.008

    def _shape(self, t: Tensor) -> Tensor:
        if self.schedule == "constant":
            return t
        if self.schedule == "linear":
            return 1e-4 * t + 0.5 * (0.02 - 1e-4) * t**2
        w = self._slope * t
        return math.cos(2 * self._u0) * 0.5 * _x_minus_sin(2.0 * w) + math.sin(2 * self._u0) * w.sin() ** 2

    def _shape_dot(self, t: Tensor) -> Tensor:
        if self.schedule == "constant":
            return torch.ones_like(t)
        if self.schedule == "linear":
            return 1e-4 + (0.02 - 1e-4) * t
        w = self._slope * t
        return 2.0 * self._slope * w.sin() * (w + 2 * self._u0).sin()

    @cached_property
    def _total(self) -> float:
        return self._shape(torch.ones((), dtype=torch.float64)).item()

    @cached_property
    def _gain(self) -> float:
        return -math.log(self.remainder) / self._total

    def _reversion(self, t: Tensor) -> Tensor:
        return self._gain * self._shape(t)

    def _reversion_dot(self, t: Tensor) -> Tensor:
        return self._gain * self._shape_dot(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.noise * (-torch.expm1(-2.0 * self._reversion(t))).sqrt()

    def _variance_dot(self, t: Tensor) -> Tensor:
        return 2.0 * self.noise**2 * self._reversion_dot(t) * (-2.0 * self._reversion(t)).exp()

    def _sigma_dot(self, t: Tensor) -> Tensor:
        rate = 0.5 * self._variance_dot(t) / self._sigma(t)
        if self.schedule != "cosine":
            return rate
        # The cosine rate starts at zero, and sigma leaves zero in a straight line.
        return torch.where(
            t > 0.0, rate, self.noise * self._slope * math.sqrt(2.0 * self._gain * math.sin(2 * self._u0))
        )

    def _diffusion(self, t: Tensor) -> Tensor:
        return self.noise * (2.0 * self._reversion_dot(t)).sqrt()

    def _time(self, log_snr: Tensor) -> Tensor:
        # sigma^2 / alpha^2 = noise^2 (e^{2 H} - 1).
        value = (0.5 * torch.log1p((-2.0 * log_snr).exp() / self.noise**2) / self._gain).clamp_max(self._total)
        if self.schedule == "constant":
            return value.clamp(0.0, 1.0)
        if self.schedule == "linear":
            return (2.0 * value / (1e-4 + (1e-8 + 2.0 * (0.02 - 1e-4) * value).sqrt())).clamp(0.0, 1.0)
        return invert_increasing(self._shape, value)


@dataclass(frozen=True)
class OUVE(_Reverting):
    """Ornstein-Uhlenbeck with exploding variance: `dx = stiffness (y - x) dt + g dw`, `g` log-linear in time.

    Richter et al., "Speech Enhancement and Dereverberation with Diffusion-based Generative Models" (TASLP 2023),
    Eqs. 3-8: `sigma^2 = sigma_min^2 ((sigma_max/sigma_min)^{2t} - e^{-2 stiffness t}) L / (stiffness + L)` with
    `L = log(sigma_max / sigma_min)`. States may be complex.
    """

    stiffness: float = 1.5
    sigma_min: float = 0.05
    sigma_max: float = 0.5

    def __post_init__(self):
        if not (self.stiffness > 0.0 and 0.0 < self.sigma_min < self.sigma_max):
            raise InputError(
                f"stiffness, sigma_min, sigma_max: {self.stiffness}, {self.sigma_min}, {self.sigma_max} were given; "
                "expected stiffness > 0 and 0 < sigma_min < sigma_max"
            )

    @property
    def t_min(self) -> float:
        return 0.03

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    @property
    def _scale2(self) -> float:
        return self.sigma_min**2 * self._log_ratio / (self.stiffness + self._log_ratio)

    def _reversion(self, t: Tensor) -> Tensor:
        return self.stiffness * t

    def _reversion_dot(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.stiffness)

    def _sigma(self, t: Tensor) -> Tensor:
        both = 2.0 * (self.stiffness + self._log_ratio)
        return (self._scale2 * torch.expm1(both * t)).sqrt() * (-self.stiffness * t).exp()

    def _variance_dot(self, t: Tensor) -> Tensor:
        rise = 2.0 * self._log_ratio * (2.0 * self._log_ratio * t).exp()
        return self._scale2 * (rise + 2.0 * self.stiffness * (-2.0 * self.stiffness * t).exp())

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return 0.5 * self._variance_dot(t) / self._sigma(t)

    def _diffusion(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self._log_ratio * t).exp() * math.sqrt(2.0 * self._log_ratio)

    def _time(self, log_snr: Tensor) -> Tensor:
        both = 2.0 * (self.stiffness + self._log_ratio)
        return (torch.log1p((-2.0 * log_snr).exp() / self._scale2) / both).clamp(0.0, 1.0)


_CUMULATIVE = {
    # Weights of a step falling, rising or equal in time: (value, derivative) of their cumulative sum.
    "decreased": (lambda t: t * (2.0 - t), lambda t: 2.0 * (1.0 - t)),
    "increased": (lambda t: t**2, lambda t: 2.0 * t),
    "average": (lambda t: t.clone(), lambda t: torch.ones_like(t)),
}
_REMAINING = {
    "decreased": lambda t: (1.0 - t) ** 2,
    "increased": lambda t: (1.0 - t) * (1.0 + t),
    "average": lambda t: 1.0 - t,
}


@dataclass(frozen=True)
class Residual(Process):
    """RDDM: `x_t = x_0 + a(t) (y - x_0) + b(t) eps`: residual and noise are added on schedules of their own.

    Liu et al., "Residual Denoising Diffusion Models" (CVPR 2024), in continuous time: `alpha = 1 - a`, `beta = a`,
    `sigma = b`, with `a(1) = 1` and `b(1)^2 = noise`.

    Args:
        residual: the shape of `a`: step weights "decreased", "increased" or "average" in time.
        variance: the shape of `b^2`, likewise.
        noise: the variance at t = 1 (1 or 0.01 as published).
    """

    residual: Literal["decreased", "increased", "average"] = "decreased"
    variance: Literal["decreased", "increased", "average"] = "increased"
    noise: float = 1.0

    endpoint: ClassVar[Literal["none", "given", "drawn"]] = "given"

    def __post_init__(self):
        choose("residual", self.residual, _CUMULATIVE)
        choose("variance", self.variance, _CUMULATIVE)
        if not self.noise > 0.0:
            raise InputError(f"noise: {self.noise} was given; expected a positive variance")

    @property
    def t_max(self) -> float:
        return 1.0 - 1e-3

    def _carried(self, t: Tensor) -> Tensor:
        # Residual and noise are added to a state that is kept whole.
        return torch.ones_like(t)

    def _alpha(self, t: Tensor) -> Tensor:
        return _REMAINING[self.residual](t)

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return -_CUMULATIVE[self.residual][1](t)

    def _beta(self, t: Tensor) -> Tensor:
        return _CUMULATIVE[self.residual][0](t)

    def _beta_dot(self, t: Tensor) -> Tensor:
        return _CUMULATIVE[self.residual][1](t)

    def _sigma(self, t: Tensor) -> Tensor:
        return (self.noise * _CUMULATIVE[self.variance][0](t)).sqrt()

    def _variance_dot(self, t: Tensor) -> Tensor:
        return self.noise * _CUMULATIVE[self.variance][1](t)

    def _sigma_dot(self, t: Tensor) -> Tensor:
        if self.variance == "increased":
            return torch.full_like(t, math.sqrt(self.noise))
        return 0.5 * self._variance_dot(t) / self._sigma(t)

    def _time(self, log_snr: Tensor) -> Tensor:
        return invert_increasing(lambda t: -self._log_snr(t), -log_snr)


def _x_minus_sin(x: Tensor) -> Tensor:
    # A series below 1/2: the difference cancels there.
    x2 = x**2
    series = torch.zeros_like(x)
    for k in (17, 15, 13, 11, 9, 7, 5, 3):
        series = 1.0 / math.factorial(k) - x2 * series
    return torch.where(x.abs() < 0.5, x**3 * series, x - x.sin())
