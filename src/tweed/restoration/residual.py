"""What residual denoising adds to the process `Residual`: two networks on paths of their own, and the choice between them.

Liu et al., "Residual Denoising Diffusion Models" (CVPR 2024, arXiv 2308.13712). With `x = x_0 + a R + b eps`, `R = y - x_0`, a
network for R told `a` and one for eps told `b`, not a common time, residual and noise may be taken away in any order:

    x <- x - (a - a') R(x, a, y) - (b - b') eps(x, b, y).

One network alone answers a target (`tweed.targets.DataResidual` or `Noise`); `select_objective` finds out which.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tweed.core import random
from tweed.core.processes import Residual
from tweed.errors import InputError

Field = Callable[[Tensor, float, Tensor], Tensor]
"""A network `(x, level, y) -> answer`, told the share of the residual, or the noise, that the state still has."""


@torch.no_grad()
def remove(
    residual: Field,
    noise: Field,
    x: Float[Tensor, "b *event"],
    y: Float[Tensor, "b *event"],
    path: Sequence[tuple[float, float]],
) -> Float[Tensor, "b *event"]:
    """The state carried along a path of (a, b), from that of `x` to the last; each step asks both networks once.

    Args:
        residual, noise: the two networks.
        x: the state at the path's first point; `y + b n` at (1, b).
        y: the degraded sample.
        path: none rising in either; (0, 0) is clean.

    Raises:
        InputError: a path of fewer than two points, or one that rises.
    """
    steps = list(pairwise(path))
    if not steps or any(c > a or d > b for (a, b), (c, d) in steps):
        raise InputError(f"path: {list(path)} was given; expected at least two points, falling in a and b")
    for (a, b), (c, d) in steps:
        # A network that would take nothing away is not asked.
        moved = x
        if c < a:
            moved = moved - (a - c) * residual(x, a, y)
        if d < b:
            moved = moved - (b - d) * noise(x, b, y)
        x = moved
    return x


def straight_path(process: Residual, steps: int) -> list[tuple[float, float]]:
    """The path of the process itself, on a uniform grid."""
    if steps < 1:
        raise InputError(f"steps: {steps} was given; expected at least 1")
    return [(level.beta, level.sigma) for level in (process.level(1.0 - k / steps) for k in range(steps + 1))]


def noise_first(process: Residual, steps: int) -> list[tuple[float, float]]:
    """All the noise is taken away first, then the residual; half of the steps each."""
    begin = process.level(1.0)
    half = max(steps // 2, 1)
    down = [(begin.beta, begin.sigma * (1.0 - k / half)) for k in range(half + 1)]
    rest = max(steps - half, 1)
    return down + [(begin.beta * (1.0 - k / rest), 0.0) for k in range(1, rest + 1)]


@dataclass(frozen=True)
class Choice:
    """What `select_objective` found: the objective, and the learnt weight by step, from 1/2."""

    objective: Literal["residual", "noise"]
    weights: tuple[float, ...]


def select_objective(
    network: nn.Module,
    process: Residual,
    data: Callable[[int], tuple[Tensor, Tensor]],
    *,
    steps: int = 2000,
    rate: float = 8e-5,
    margin: float = 0.01,
    seed: int = 0,
) -> Choice:
    """Whether a network learns the residual or the noise better: the published automatic objective selection.

    One network's output is read as either, `R = l out + (1 - l) R(out)` and `eps = (1 - l) out + l eps(out)`, each made from the
    other by the state, and `l |R - R_hat| + (1 - l) |eps - eps_hat|` is minimised in the network and in l, from l = 1/2, until l
    has moved by `margin`. The network is then to be made anew and trained for what was chosen; it is changed here.

    Args:
        network: `(x, t, y=y) -> answer`, x's shape.
        data: step -> a batch (x_0, y).
        steps: at most; the larger side of 1/2 decides if none is reached.
        rate: of Adam, 8e-5 as published.

    Raises:
        InputError: no steps, or a margin outside (0, 1/2).
    """
    if steps < 1 or not 0.0 < margin < 0.5:
        raise InputError(f"steps, margin: {steps}, {margin} were given; expected at least 1, and within (0, 1/2)")
    share = nn.Parameter(torch.tensor(0.5))
    parameters: list[Any] = [*network.parameters(), share]
    optimiser = torch.optim.Adam(parameters, lr=rate)
    weights = [0.5]
    for step in range(steps):
        x0, y = data(step)
        b = len(x0)
        # Away from both ends, where one reading says nothing of the other.
        t = 0.02 + 0.96 * random.uniform((b, 1), random.fold(seed, 0), draw=step, dtype=torch.float64)[:, 0]
        eps = random.normal(x0.shape, random.fold(seed, 1), draw=step, dtype=x0.dtype)
        shape = (b, *(1,) * (x0.ndim - 1))
        left, b_t = (c.to(x0.dtype).reshape(shape) for c in (process.alpha(t), process.sigma(t)))
        residual = y - x0
        x = x0 + (1.0 - left) * residual + b_t * eps
        out = network(x, t.to(x0.dtype), y=y)
        # x - y = -(1 - a) R + b eps.
        from_noise, from_residual = (b_t * out - (x - y)) / left, (x - y + left * out) / b_t
        made_residual = share * out + (1.0 - share) * from_noise
        made_noise = (1.0 - share) * out + share * from_residual
        loss = share * (made_residual - residual).abs().mean() + (1.0 - share) * (made_noise - eps).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        weights.append(share.item())
        if abs(weights[-1] - 0.5) >= margin:
            break
    return Choice("residual" if weights[-1] > 0.5 else "noise", tuple(weights))
