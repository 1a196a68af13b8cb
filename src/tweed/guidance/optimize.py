"""Optimisation by gradient-guided sampling: Guo et al. (NeurIPS 2024, arXiv 2404.14743), Algorithms 1 and 2.

Each round takes the gradient g of the objective at the mean of the last samples, and draws new ones with look-ahead guidance to
the value `y = E[g . x] + (noise^2 + Var[g . x]) / regularisation`, the moments those of unguided samples. For Gaussian data
N(mu, S) the new mean is `mu + S g / regularisation`, so that the rounds are a fixed-point iteration whose limit is

    argmax f(x) - (regularisation / 2) (x - mu)^T S^{-1} (x - mu):

the prior regularises, and keeps the data's structure. It contracts where the curvature of f times the largest variance is below
`regularisation`; a `step` below 1 damps it, so that it converges beyond. With a `refit` after each round mu and S follow the
samples, and the limit is the maximiser of f within the data's subspace.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import random
from tweed.core.denoiser import Denoiser
from tweed.errors import InputError
from tweed.guidance.look_ahead import LookAheadGuidance
from tweed.solvers import sample


@dataclass(frozen=True)
class Optimized:
    """What `optimize` found.

    Attributes:
        points: where gradients were taken, and the last mean, shape (rounds + 1, *event); the first is that of the prior.
        samples: of the last round, shape (n, *event).
        denoiser: the last one; the given one without `refit`.
    """

    points: Float[Tensor, "rounds+1 *event"]
    samples: Float[Tensor, "n *event"]
    denoiser: Denoiser


def optimize(
    denoiser: Denoiser,
    gradient: Callable[[Float[Tensor, "*event"]], Float[Tensor, "*event"]],
    *,
    rounds: int,
    n: int,
    noise: float,
    regularisation: float = 1.0,
    step: float = 1.0,
    refit: Callable[[Float[Tensor, "drawn n *event"]], Denoiser] | None = None,
    seed: int = 0,
    **options: Any,
) -> Optimized:
    """Raises an objective along the data: rounds of gradients and guided samples.

    Args:
        denoiser: of the data, differentiable in its state.
        gradient: of the objective, at one point.
        rounds: gradients taken, each followed by a run of `n` guided samples.
        noise: of the value about `g . x`, in units of the objective; see `LookAheadGuidance`.
        regularisation: what the distance from the data weighs against the objective, in units of the objective.
        step: how far the point moves to the mean of the new samples, in (0, 1]; the published method has 1.
        refit: makes the next round's denoiser from all samples so far, the unguided ones of the data first. Its unguided
            samples are drawn too, so that a round costs two runs.
        options: of `tweed.sample`: `solver`, `steps`, `grid`, `cond` ...

    Raises:
        InputError: rounds or n below 1 (n below 2 has no variance), `step` outside (0, 1], `regularisation` not positive.
    """
    if rounds < 1 or n < 2:
        raise InputError(f"rounds, n: {rounds}, {n} were given; expected at least 1 and at least 2")
    if not 0.0 < step <= 1.0 or not regularisation > 0.0:
        raise InputError(f"step, regularisation: {step}, {regularisation} were given; expected in (0, 1], and above 0")
    plain = sample(denoiser, n, seed=random.fold(seed, 0), **options)
    drawn, batch = [plain], plain
    point = plain.mean(0)
    points = [point]
    for number in range(1, rounds + 1):
        g = gradient(point)
        along = (plain * g).flatten(1).sum(1)
        value = along.mean() + (noise**2 + along.var()) / regularisation
        guided = LookAheadGuidance(denoiser, g, value, noise)
        batch = sample(guided, n, seed=random.fold(seed, number), **options)
        point = point + step * (batch.mean(0) - point)
        points.append(point)
        if refit is not None:
            drawn.append(batch)
            denoiser = refit(torch.stack(drawn))
            if number < rounds:
                plain = sample(denoiser, n, seed=random.fold(seed, number, 1), **options)
    return Optimized(torch.stack(points), batch, denoiser)
