"""Processes of tokens: each is kept, or exchanged for noise, on its own.

The line of every process, `alpha(t) x_0 + sigma(t) noise`, is here a line of probabilities: a token at time t is still
`x_0` with probability `alpha(t)`, and otherwise drawn from the noise, with `sigma = 1 - alpha`. So the grids, `log_snr`
= log(alpha / (1 - alpha)), and its inverse are those of any process. Austin et al., "Structured Denoising Diffusion
Models in Discrete State-Spaces" (D3PM, 2021); Shi et al., "Simplified and Generalized Masked Diffusion for Discrete Data"
(2024); Sahoo et al., "Simple and Effective Masked Diffusion Language Models" (MDLM, 2024).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tweed.core import random
from tweed.core.processes.base import Process
from tweed.core.time import Time, as_time
from tweed.errors import IncompatibleError, InputError, choose

KeepSchedule = Literal["linear", "cosine", "geometric"]
_LOW, _HIGH = 1e-3, 20.0  # of the geometric schedule's rate, integrated


class CategoricalProcess(Process):
    """What `MaskedProcess` and `UniformProcess` share: the schedule of `alpha`, and what tokens have none of.

    - "linear": `alpha = 1 - t`;
    - "cosine": `alpha = 1 - sin(pi t / 2)`, MaskGIT's (Chang et al., 2022) with time running the other way;
    - "geometric": `alpha = exp(-s)` with `s` from 1e-3 to 20 in equal ratios (Lou et al., SEDD, 2024), and then made to
      begin at 1 and to end at 0.
    """

    states: ClassVar[Literal["numbers", "tokens"]] = "tokens"
    schedule: KeepSchedule

    @property
    def t_max(self) -> float:
        return 1.0 - 1e-3

    def _alpha(self, t: Tensor) -> Tensor:
        if self.schedule == "linear":
            return 1.0 - t
        if self.schedule == "cosine":
            # 1 - sin, without its cancellation near t = 1.
            return 2.0 * (math.pi / 4.0 * (1.0 - t)).sin().square()
        return ((-_rate(t)).exp() - math.exp(-_HIGH)) / (math.exp(-_LOW) - math.exp(-_HIGH))

    def _alpha_dot(self, t: Tensor) -> Tensor:
        if self.schedule == "linear":
            return -torch.ones_like(t)
        if self.schedule == "cosine":
            return -math.pi / 2.0 * (math.pi / 2.0 * t).cos()
        slope = math.log(_HIGH / _LOW) * _rate(t)
        return -slope * (-_rate(t)).exp() / (math.exp(-_LOW) - math.exp(-_HIGH))

    def _sigma(self, t: Tensor) -> Tensor:
        if self.schedule == "linear":
            return t.clone()
        return (math.pi / 2.0 * t).sin() if self.schedule == "cosine" else 1.0 - self._alpha(t)

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return -self._alpha_dot(t)

    def _time(self, log_snr: Tensor) -> Tensor:
        return self.time_kept(torch.sigmoid(log_snr))

    def time_kept(self, alpha: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """The time at which a share `alpha` of the tokens is kept, float64: the inverse of `alpha(t)`."""
        alpha = alpha.to(torch.float64)
        if self.schedule == "linear":
            return 1.0 - alpha
        if self.schedule == "cosine":
            return 1.0 - 4.0 / math.pi * (alpha / 2.0).sqrt().asin()
        kept = alpha * (math.exp(-_LOW) - math.exp(-_HIGH)) + math.exp(-_HIGH)
        return ((-kept.log()) / _LOW).log() / math.log(_HIGH / _LOW)

    def _exchanged(self, x0: Tensor, t: Time, noise: Tensor) -> tuple[Tensor, Tensor]:
        # Where noise takes the token's place, and the noise there as a fresh uniform number.
        if x0.is_floating_point() or x0.is_complex() or x0.dtype is torch.bool:
            raise InputError(f"x0: {x0.dtype} was given; expected tokens, integers")
        if noise.shape != x0.shape or not noise.is_floating_point():
            raise InputError(
                f"noise: {noise.dtype} {tuple(noise.shape)} was given; expected uniform numbers of the shape of x0, "
                f"{tuple(x0.shape)}"
            )
        time = as_time(t).to(x0.device)
        if time.ndim > x0.ndim or any(n not in (1, m) for n, m in zip(time.shape, x0.shape, strict=False)):
            raise InputError(f"t: shape {tuple(time.shape)} was given; expected a leading part of {tuple(x0.shape)}")
        sigma = self._sigma(time).reshape(*time.shape, *(1,) * (x0.ndim - time.ndim))
        return noise < sigma, noise / sigma

    def marginal(self, x0: Any, t: Any, y: Any = None) -> Any:
        """Tokens have no mean.

        Raises:
            IncompatibleError: always.
        """
        raise IncompatibleError(f"{type(self).__name__}.marginal: tokens have no mean and no standard deviation")

    def drift(self, x: Any, t: Any, y: Any = None) -> Any:
        """Tokens have no drift.

        Raises:
            IncompatibleError: always.
        """
        raise IncompatibleError(f"{type(self).__name__}.drift: tokens jump; they follow no differential equation")

    def diffusion(self, t: Any) -> Any:
        """Tokens have no diffusion.

        Raises:
            IncompatibleError: always.
        """
        raise IncompatibleError(f"{type(self).__name__}.diffusion: tokens jump; they follow no differential equation")


@dataclass(frozen=True)
class MaskedProcess(CategoricalProcess):
    """A token is replaced by the mask, for good: the absorbing process.

    Args:
        mask: the number of the mask token.
        schedule: of `alpha`, see `CategoricalProcess`.

    Raises:
        InputError: `mask` is negative, or the schedule unknown.
    """

    mask: int
    schedule: KeepSchedule = "linear"

    def __post_init__(self):
        choose("schedule", self.schedule, ("linear", "cosine", "geometric"))
        if self.mask < 0:
            raise InputError(f"mask: {self.mask} was given; expected the number of the mask token, 0 or more")

    def perturb(self, x0: Int[Tensor, "b *event"], t: Time, noise: Float[Tensor, "b *event"], y: Any = None) -> Tensor:
        """`x_0` with the mask where `noise`, uniform in (0, 1), is below `sigma(t)`.

        Raises:
            InputError: shapes do not fit, or `x0` are no integers.
        """
        return x0.masked_fill(self._exchanged(x0, t, noise)[0], self.mask)

    def prior(self, shape: Sequence[int], seed=0, *, index=0, t=1.0, y=None, dtype=torch.int64, device=None) -> Tensor:
        """The mask everywhere, int64."""
        return torch.full(tuple(shape), self.mask, dtype=torch.int64, device=device)


@dataclass(frozen=True)
class UniformProcess(CategoricalProcess):
    """A token is replaced by any of the vocabulary, itself included, with equal probability.

    Args:
        size: of the vocabulary.
        schedule: of `alpha`, see `CategoricalProcess`.

    Raises:
        InputError: `size` is not positive, or the schedule unknown.
    """

    size: int
    schedule: KeepSchedule = "linear"

    def __post_init__(self):
        choose("schedule", self.schedule, ("linear", "cosine", "geometric"))
        if self.size < 1:
            raise InputError(f"size: {self.size} was given; expected the number of tokens, at least 1")

    def perturb(self, x0: Int[Tensor, "b *event"], t: Time, noise: Float[Tensor, "b *event"], y: Any = None) -> Tensor:
        """`x_0` with another token where `noise`, uniform in (0, 1), is below `sigma(t)`; it also says which one.

        Raises:
            InputError: shapes do not fit, or `x0` are no integers.
        """
        where, fresh = self._exchanged(x0, t, noise)
        drawn = (fresh * self.size).nan_to_num(0.0).clamp(0, self.size - 1).to(x0.dtype)
        return torch.where(where, drawn, x0)

    def prior(self, shape: Sequence[int], seed=0, *, index=0, t=1.0, y=None, dtype=torch.int64, device=None) -> Tensor:
        """Tokens drawn uniformly, int64; sample `index + i` is the same under the same seed whatever the batch."""
        u = random.uniform(shape, seed, index=index, dtype=torch.float64, device=device)
        return (u * self.size).long().clamp_max(self.size - 1)


def _rate(t: Tensor) -> Tensor:
    return _LOW * (_HIGH / _LOW) ** t
