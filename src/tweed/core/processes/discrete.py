"""Any array of betas, as discrete-time diffusion models are trained with, made continuous.

Ho et al., "Denoising Diffusion Probabilistic Models" (NeurIPS 2020); zero terminal SNR: Lin et al., "Common Diffusion
Noise Schedules and Sample Steps are Flawed" (WACV 2024), Algorithm 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core.processes.base import Process
from tweed.core.time import Time, as_time
from tweed.errors import InputError


@dataclass(frozen=True)
class FromBetas(Process):
    """The process of `N` betas: at `t = n / N` exactly `alpha^2 = prod_{k <= n} (1 - beta_k)`, variance-preserving.

    Between these times the angle `atan2(sigma, alpha)` is linear in time: unlike a piecewise linear `log alpha`, this
    stays finite at both ends, zero terminal SNR included. The training step `n` (from 0) of a discrete model is at
    `t = (n + 1) / N`; `index` gives it back.

    Args:
        betas: numbers in (0, 1); the last may be 1 (zero terminal SNR). Any sequence or tensor.
        zero_terminal_snr: rescale them so that `alpha(1) = 0` exactly (Lin et al., Algorithm 1).
    """

    betas: tuple[float, ...]
    zero_terminal_snr: bool = False
    _angles: Tensor = field(init=False, repr=False, compare=False)
    _hash: int = field(init=False, repr=False, compare=False)

    def __init__(self, betas: Sequence[float] | Tensor, zero_terminal_snr: bool = False):
        values = torch.as_tensor(betas, dtype=torch.float64).detach().cpu()
        if values.ndim != 1 or len(values) == 0:
            raise InputError(
                f"betas: shape {tuple(values.shape)} was given; expected a sequence of at least one number"
            )
        inside = (values > 0) & ((values < 1) | (torch.arange(len(values)) == len(values) - 1) & (values == 1))
        if not bool(inside.all()):
            place = int((~inside).nonzero()[0])
            raise InputError(
                f"betas: betas[{place}] = {values[place].item()} was given; expected numbers in (0, 1), the last at most 1"
            )
        log_alpha = 0.5 * torch.log1p(-values).cumsum(0)
        alpha, sigma = log_alpha.exp(), (-torch.expm1(2.0 * log_alpha)).sqrt()
        if zero_terminal_snr:
            if len(values) == 1:
                raise InputError("betas: one beta was given; zero_terminal_snr keeps the first and needs at least two")
            # Shift and scale sqrt(alpha-bar): the last becomes 0 and the first stays.
            first, last = alpha[0].clone(), alpha[-1].clone()
            alpha = (alpha - last) * (first / (first - last))
            sigma = (1.0 - alpha**2).sqrt()
        angles = torch.cat((torch.zeros(1, dtype=torch.float64), torch.atan2(sigma, alpha)))
        object.__setattr__(self, "betas", tuple(values.tolist()))
        object.__setattr__(self, "zero_terminal_snr", zero_terminal_snr)
        object.__setattr__(self, "_angles", angles)
        object.__setattr__(self, "_hash", hash((self.betas, zero_terminal_snr)))

    def __hash__(self) -> int:
        return self._hash

    @classmethod
    def linear(cls, steps: int = 1000, first: float = 1e-4, last: float = 0.02, **options) -> "FromBetas":
        """DDPM's betas, linear from `first` to `last`."""
        return cls(torch.linspace(first, last, steps, dtype=torch.float64), **options)

    @classmethod
    def scaled_linear(cls, steps: int = 1000, first: float = 0.00085, last: float = 0.012, **options) -> "FromBetas":
        """Latent diffusion's betas: their square roots are linear."""
        return cls(torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2, **options)

    @classmethod
    def cosine(cls, steps: int = 1000, offset: float = 0.008, largest: float = 0.999, **options) -> "FromBetas":
        """Improved DDPM's betas, from the squared cosine, none above `largest`."""
        u = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)
        bar = ((u + offset) / (1.0 + offset) * math.pi / 2).cos() ** 2
        return cls((1.0 - bar[1:] / bar[:-1]).clamp_max(largest), **options)

    @property
    def steps(self) -> int:
        """The number of training steps, `N`."""
        return len(self.betas)

    @property
    def t_min(self) -> float:
        return 1.0 / self.steps

    @property
    def t_max(self) -> float:
        finite = self._angles[-1].item() < math.pi / 2 - 1e-12
        return 1.0 if finite else (self.steps - 1) / self.steps

    def index(self, t: Time) -> Float[Tensor, "*time"]:
        """The training step at time `t`, counted from 0, fractional between steps: `t N - 1`, not below 0."""
        return (as_time(t) * self.steps - 1.0).clamp_min(0.0)

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angles = self._angles.to(t.device)
        place = (t * self.steps).floor().clamp(0, self.steps - 1).long()
        slope = (angles[place + 1] - angles[place]) * self.steps
        return angles[place] + slope * (t - place.to(t.dtype) / self.steps), slope

    def _alpha(self, t: Tensor) -> Tensor:
        # sin of the complement, so that alpha is exactly 0 where the angle is pi / 2.
        return (math.pi / 2 - self._segment(t)[0]).sin()

    def _sigma(self, t: Tensor) -> Tensor:
        return self._segment(t)[0].sin()

    def _alpha_dot(self, t: Tensor) -> Tensor:
        angle, slope = self._segment(t)
        return -slope * angle.sin()

    def _sigma_dot(self, t: Tensor) -> Tensor:
        angle, slope = self._segment(t)
        return slope * angle.cos()

    def _time(self, log_snr: Tensor) -> Tensor:
        angles = self._angles.to(log_snr.device)
        angle = torch.atan2(torch.ones_like(log_snr), log_snr.exp())
        place = (torch.searchsorted(angles, angle.contiguous(), right=True) - 1).clamp(0, self.steps - 1)
        fraction = (angle - angles[place]) / (angles[place + 1] - angles[place])
        return ((place + fraction) / self.steps).clamp(0.0, 1.0)
