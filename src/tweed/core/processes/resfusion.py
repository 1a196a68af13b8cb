"""Resfusion: Shi et al., "Resfusion: Denoising Diffusion Probabilistic Models for Image Restoration Based on Prior Residual
Noise" (NeurIPS 2024, arXiv 2311.14900).

A variance-preserving process, coefficients a and s, that also mixes in the residual `R = y - x_0` as it forgets the data:

    x_t = a x_0 + (1 - a) R + s eps = (2 a - 1) x_0 + (1 - a) y + s eps.

Where a = 1/2 the data is gone, and the state, `y / 2 + sqrt(3) / 2 eps`, can be made from the degraded image: sampling starts
there, and noisier times are never used. `t = 1` is that time.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core.processes.base import Process
from tweed.core.processes.discrete import FromBetas
from tweed.core.time import invert_increasing
from tweed.errors import InputError

_HALF = math.log(0.5 / math.sqrt(0.75))


@dataclass(frozen=True)
class Resfusion(Process):
    """The process around a variance-preserving `base`, up to where its `alpha` is 1/2.

    Args:
        base: `VP`, `Cosine` or `FromBetas` whose alpha reaches 1/2 (to 1e-6).

    Raises:
        InputError: another kind of base, or one that keeps more than half of the data.
    """

    base: Process = field(default_factory=lambda: FromBetas(half_betas(linear_betas(12))))

    endpoint: ClassVar[Literal["none", "given", "drawn"]] = "given"

    def __post_init__(self):
        one = torch.linspace(0.1, 1.0, 4, dtype=torch.float64)
        if self.base.endpoint != "none" or not torch.allclose(
            self.base.alpha(one) ** 2 + self.base.sigma(one) ** 2, torch.ones(4, dtype=torch.float64), atol=1e-6
        ):
            raise InputError(f"base: {self.base} was given; expected a variance-preserving process")
        if self.base.level(1.0).alpha > 0.5 + 1e-6:
            raise InputError(f"base: {self.base} was given; its alpha stays above 1/2, where sampling is to start")

    @classmethod
    def linear(cls, steps: int = 12) -> "Resfusion":
        """The published "LinearPro": betas linear from 0.1 / steps to 20 / steps, truncated; 12 leave 5 steps."""
        return cls(FromBetas(half_betas(linear_betas(steps))))

    @classmethod
    def cosine(cls, steps: int = 12) -> "Resfusion":
        """The published "CosinePro": Improved DDPM's betas, truncated."""
        return cls(FromBetas(half_betas(torch.tensor(FromBetas.cosine(steps).betas, dtype=torch.float64))))

    @property
    def steps(self) -> int | None:
        """The steps of a discrete base, T'; None for a continuous one."""
        return self.base.steps if isinstance(self.base, FromBetas) else None

    @cached_property
    def _end(self) -> float:
        # The end of a truncated schedule is exact; rounding must not put it a little before.
        return 1.0 if abs(self.base.level(1.0).alpha - 0.5) < 1e-6 else float(self.base.time(_HALF))

    @property
    def t_min(self) -> float:
        return min(self.base.t_min / self._end, 0.5)

    @property
    def t_max(self) -> float:
        return 1.0 - 1e-3

    def _alpha(self, t: Tensor) -> Tensor:
        alpha = 2.0 * self.base.alpha(self._end * t) - 1.0
        return torch.where(t >= 1.0, 0.0, alpha)

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return 2.0 * self._end * self.base.alpha_dot(self._end * t)

    def _beta(self, t: Tensor) -> Tensor:
        return 0.5 * (1.0 - self._alpha(t))

    def _beta_dot(self, t: Tensor) -> Tensor:
        return -0.5 * self._alpha_dot(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.base.sigma(self._end * t)

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return self._end * self.base.sigma_dot(self._end * t)

    def _variance_dot(self, t: Tensor) -> Tensor:
        return self._end * self.base.variance_dot(self._end * t)

    def _carried(self, t: Tensor) -> Tensor:
        return self.base.alpha(self._end * t)

    def _time(self, log_snr: Tensor) -> Tensor:
        return invert_increasing(lambda t: -self._log_snr(t), -log_snr)

    def residual_share(self, t: Float[Tensor, "*time"]) -> Float[Tensor, "*time"]:
        """The factor of R in the published target `eps + factor R`: `sigma / (1 + r)`, `r` what a step of the base keeps.

        For a discrete base that is the step's own `r = sqrt(1 - beta)`; for a continuous one the factor is sigma / 2.
        """
        kept: Tensor | float = 1.0
        if isinstance(self.base, FromBetas):
            betas = torch.tensor(self.base.betas, dtype=torch.float64, device=t.device)
            place = (self._end * t * len(betas) - 1e-9).ceil().long().clamp(1, len(betas)) - 1
            kept = (1.0 - betas[place]).sqrt()
        return self._sigma(t) / (1.0 + kept)


def linear_betas(steps: int) -> Float[Tensor, " steps"]:
    """Linear betas of one continuous limit: from 0.1 / steps to 20 / steps; the last of few steps exceed 1."""
    if steps < 3:
        raise InputError(f"steps: {steps} was given; expected at least 3")
    return torch.linspace(0.1 / steps, 20.0 / steps, steps, dtype=torch.float64)


def half_betas(betas: Float[Tensor, " steps"]) -> Float[Tensor, " kept"]:
    """Betas up to the first alpha at or below 1/2, the last one changed so that it is 1/2 exactly.

    Where that alpha is within 0.01 of 1/2 and the one before is nearer, they end one step earlier, as the release does. The
    release leaves such a last alpha as it is, and takes its small factor of x_0 for zero.

    Raises:
        InputError: alpha never falls to 1/2, or a beta before that is outside (0, 1).
    """
    # Betas beyond 1, as short linear schedules have them, bring alpha below any number.
    rest = torch.where((betas > 0.0) & (betas < 1.0), 1.0 - betas.double(), 0.0)
    alpha = rest.cumprod(0).sqrt()
    fallen = (alpha <= 0.5).nonzero()
    if len(fallen) == 0 or bool((betas[: int(fallen[0])] <= 0.0).any()) or int(fallen[0]) == 0:
        raise InputError(f"betas: {betas.tolist()[:4]}... were given; expected some in (0, 1) that bring alpha to 1/2")
    last = int(fallen[0])
    above, below = float(alpha[last - 1]) - 0.5, 0.5 - float(alpha[last])
    if last > 1 and above < below <= 0.01:
        last -= 1
    end = 1.0 - 0.25 / float(alpha[last - 1]) ** 2
    return torch.cat((betas[:last].double(), torch.tensor([end], dtype=torch.float64)))
