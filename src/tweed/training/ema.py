"""Moving averages of weights: exponential with a warm-up, and power-function profiles chosen after training.

Power functions: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models" (CVPR 2024),
Section 3 and Appendix C: at step `t` the average weighs the weights of step `tau` like `tau^gamma`, and averages
stored under two gammas at a few steps span, nearly, those of any other.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.errors import InputError


@dataclass(frozen=True)
class EMA:
    """Exponential moving average, its decay rising as `min(decay, (1 + n) / (10 + n))` after `n` updates.

    The warm-up keeps the average from being dominated by the initial weights; without it the decay is constant.

    Raises:
        InputError: `decay` outside [0, 1).
    """

    decay: float = 0.999
    warmup: bool = True

    def __post_init__(self):
        if not 0.0 <= self.decay < 1.0:
            raise InputError(f"decay: {self.decay} was given; expected a number in [0, 1)")

    def at(self, step: int) -> float:
        """The decay of update `step`, counted from 1."""
        n = step - 1
        return min(self.decay, (1.0 + n) / (10.0 + n)) if self.warmup else self.decay


@dataclass(frozen=True)
class PowerEMA:
    """The average whose weights grow like `tau^gamma`: decay `(1 - 1/t)^(gamma + 1)` at update `t`, counted from 1.

    Args:
        width: the standard deviation of the profile relative to the length of training (`sigma_rel`), below 0.28.

    Raises:
        InputError: `width` out of range.
    """

    width: float = 0.1

    def __post_init__(self):
        if not 0.0 < self.width < 12.0**-0.5:
            raise InputError(f"width: {self.width} was given; expected 0 < width < 1/sqrt(12) = 0.2887")

    @property
    def gamma(self) -> float:
        """The exponent: the root above 0 of `width^2 (gamma + 2)^2 (gamma + 3) = gamma + 1`."""
        low, high = 0.0, 1.0
        while (high + 1.0) / ((high + 2.0) ** 2 * (high + 3.0)) > self.width**2:
            high *= 2.0
        for _ in range(100):
            middle = (low + high) / 2.0
            wider = (middle + 1.0) / ((middle + 2.0) ** 2 * (middle + 3.0)) > self.width**2
            low, high = (middle, high) if wider else (low, middle)
        return (low + high) / 2.0

    def at(self, step: int) -> float:
        """The decay of update `step`, counted from 1."""
        return (1.0 - 1.0 / step) ** (self.gamma + 1.0)


@torch.no_grad()
def update(average: Sequence[Tensor], current: Sequence[Tensor], decay: float) -> None:
    """`average <- decay average + (1 - decay) current`, in place, in as few kernels as the device allows."""
    if len(average):
        torch._foreach_lerp_(list(average), list(current), 1.0 - decay)


def reconstruct_weights(stored: Iterable[tuple[float, float]], wanted: tuple[float, float]) -> Float[Tensor, " stored"]:
    """How to mix stored averages into the one of another profile, by least squares between profiles; float64.

    Args:
        stored: (step, gamma) of each.
        wanted: (step, gamma) of the profile to make; its step is at most the last one stored.

    Raises:
        InputError: nothing is stored, or the wanted step is later than all that is.
    """
    held = torch.tensor(list(stored), dtype=torch.float64).reshape(-1, 2)
    if len(held) == 0:
        raise InputError("stored: no averages were given; expected at least one (step, gamma)")
    step, gamma = wanted
    last = held[:, 0].max().item()
    if not 0.0 < step <= last:
        raise InputError(f"wanted: step {step} was given; expected one in (0, {last:g}], up to the last one stored")
    goal = torch.tensor([[step, gamma]], dtype=torch.float64)
    # Profiles have norms of order 1 / sqrt(step): scaled by the length, the system is well conditioned.
    return torch.linalg.lstsq(last * _overlap(held, held), last * _overlap(held, goal), driver="gelsd").solution[:, 0]


def _overlap(a: Float[Tensor, "n 2"], b: Float[Tensor, "m 2"]) -> Float[Tensor, "n m"]:
    # The integral of two profiles (gamma + 1) tau^gamma / t^(gamma + 1), in logarithms: powers would overflow.
    ta, ga = a[:, None, 0], a[:, None, 1]
    tb, gb = b[None, :, 0], b[None, :, 1]
    end = torch.minimum(ta, tb)
    power = (ga + gb + 1.0) * end.log() - (ga + 1.0) * ta.log() - (gb + 1.0) * tb.log()
    return (ga + 1.0) * (gb + 1.0) / (ga + gb + 1.0) * power.exp()


def reconstruct(
    stored: Sequence[tuple[float, float, Mapping[str, Tensor]]], wanted: tuple[float, float]
) -> dict[str, Tensor]:
    """The average under another profile from stored ones.

    Args:
        stored: (step, gamma, tensors by name) of each.
        wanted: (step, gamma).

    Returns:
        The mixed floating-point tensors by name, in float32; others are those of the last entry.
    """
    weights = reconstruct_weights([(step, gamma) for step, gamma, _ in stored], wanted).tolist()
    mixed: dict[str, Tensor] = {}
    for name, last in stored[-1][2].items():
        if not last.is_floating_point():
            mixed[name] = last.clone()
            continue
        total = torch.zeros_like(last, dtype=torch.float64)
        for weight, (_, _, tensors) in zip(weights, stored, strict=True):
            total.add_(tensors[name].to(torch.float64), alpha=weight)
        mixed[name] = total.to(torch.float32)
    return mixed
