"""Which times a batch is trained at: pure functions of (process, batch, seed, step).

Each sampler is a quantile function of uniform numbers, and `spread` says how these lie in a batch:

- "independent": each drawn for itself;
- "low-discrepancy": one draw `u` a batch, and `(u + i / batch) mod 1` (Kingma et al., "Variational Diffusion Models",
  NeurIPS 2021, Appendix I.1): every batch covers (0, 1) evenly, so the mean loss has far less variance;
- "stratified": one independent draw in each of `batch` equal intervals.

Each number alone is uniform in all three, so the expected loss is the same.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import random
from tweed.core.processes import Process
from tweed.errors import InputError, choose

Spread = Literal["independent", "low-discrepancy", "stratified"]
_SPREADS = ("independent", "low-discrepancy", "stratified")
_TIMES = 0x71  # the stream of a seed that times are drawn from


def uniform_numbers(spread: str, batch: int, seed: int, step: int = 0) -> Float[Tensor, " b"]:
    """Uniform numbers in (0, 1) for step `step` of a run with batches of `batch`, float64."""
    stream = random.fold(seed, _TIMES)
    if spread == "independent":
        return random.uniform((batch, 1), stream, index=step * batch, dtype=torch.float64)[:, 0]
    place = torch.arange(batch, dtype=torch.float64)
    if spread == "stratified":
        jitter = random.uniform((batch, 1), stream, index=step * batch, dtype=torch.float64)[:, 0]
        return (place + jitter) / max(batch, 1)
    first = random.uniform((1, 1), stream, index=step, dtype=torch.float64)[0]
    return ((first + place / max(batch, 1)) % 1.0).clamp(2.0**-53, 1.0 - 2.0**-53)


@dataclass(frozen=True)
class TimeSampler(ABC):
    """How training times are drawn; an immutable value. Subclasses give `quantile`.

    Args:
        spread: how the times of one batch lie relative to one another; see the module.
        low, high: times are kept in [low, high], by clamping (by scaling in `Uniform`).

    Raises:
        InputError: an unknown spread, or not 0 <= low < high <= 1.
    """

    spread: Spread = "low-discrepancy"
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        choose("spread", self.spread, _SPREADS)
        if not 0.0 <= self.low < self.high <= 1.0:
            raise InputError(f"low, high: {self.low}, {self.high} were given; expected 0 <= low < high <= 1")

    @abstractmethod
    def quantile(self, process: Process, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The time below which a share `u` of all draws lies (or above which; float64)."""

    def __call__(self, process: Process, batch: int, seed: int, step: int = 0) -> Float[Tensor, " b"]:
        """The times of a whole batch, float64, shape (batch,).

        Args:
            batch: size of the batch over all processes and micro-batches, which take their slices of the result.
            seed, step: the address of the draw; another step is an independent one.
        """
        return self.quantile(process, uniform_numbers(self.spread, batch, seed, step)).clamp(self.low, self.high)


@dataclass(frozen=True)
class Uniform(TimeSampler):
    """Uniform in [low, high]."""

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * u


@dataclass(frozen=True)
class LogNormal(TimeSampler):
    """`log(sigma / alpha) ~ N(mean, std^2)` (Karras et al., 2022, Table 1: P_mean, P_std), on any process."""

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self):
        super().__post_init__()
        _check_std(self.std)

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        return process.time(-(self.mean + self.std * torch.special.ndtri(u)))


@dataclass(frozen=True)
class LogitNormal(TimeSampler):
    """`log(t / (1 - t)) ~ N(mean, std^2)` (Esser et al., "Scaling Rectified Flow Transformers", ICML 2024, Eq. 19)."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        _check_std(self.std)

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


@dataclass(frozen=True)
class LogSNR(TimeSampler):
    """`log(alpha / sigma)` uniform between `least` and `most`."""

    least: float = -5.0
    most: float = 5.0

    def __post_init__(self):
        super().__post_init__()
        if not self.least < self.most:
            raise InputError(f"least, most: {self.least}, {self.most} were given; expected least < most")

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        return process.time(self.most + (self.least - self.most) * u)


@dataclass(frozen=True)
class Discrete(TimeSampler):
    """Uniform over `n / steps`, n = 1 .. steps: the training times of a discrete-time model."""

    steps: int = 1000

    def __post_init__(self):
        super().__post_init__()
        if self.steps < 1:
            raise InputError(f"steps: {self.steps} was given; expected at least 1")

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        return ((u * self.steps).floor() + 1.0) / self.steps


def _check_std(std: float) -> None:
    if not std > 0.0:
        raise InputError(f"std: {std} was given; expected a positive number")


BY_NAME: dict[str, type[TimeSampler]] = {
    kind.__name__: kind for kind in (Uniform, LogNormal, LogitNormal, LogSNR, Discrete)
}
"""Every time sampler by the name that configurations use."""
