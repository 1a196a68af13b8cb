"""Semi-discrete optimal transport: from a density to finitely many points, each with its share of the mass.

For squared cost the map is the gradient of Brenier's potential `u_h(x) = max_j <y_j, x> + h_j`: x goes to the `y_j` whose
plane is highest. The heights minimise the convex `E(h) = E u_h(x) - sum_j nu_j h_j`, whose gradient is the mass of the
cells less what it should be (Gu, Luo, Sun & Yau, "Variational principles for Minkowski type problems", 2016; as used by
Li et al., "DPM-OT", ICCV 2023, arXiv 2307.11308, Sec. 3.2). It is estimated by Monte Carlo and followed by Adam.

Here the search begins from the cells of the nearest points, `h_j = -|y_j|^2 / 2` in centred coordinates, and the rate falls
in stages: with a constant one Adam stops at a noise of its own size, with some cells still empty.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tweed.core import random
from tweed.errors import InputError, NumericalError

Source = Literal["gaussian", "uniform"] | Callable[[int, int, int], Tensor]
"""Where x comes from: standard normal, uniform in the centred unit-variance cube, or `(n, seed, index) -> (n, d)`."""

_BLOCK, _STAGES, _SHRINK = 4096, 6, 0.35


@dataclass(frozen=True)
class Fit:
    """How well the cells of a map have the masses that they should.

    Attributes:
        error: the root mean squared relative error of the cells' masses, on draws of its own.
        largest: the largest relative error.
        empty: how many cells got no draw at all.
        draws: how many there were.
    """

    error: float
    largest: float
    empty: int
    draws: int


@dataclass(frozen=True)
class SemiDiscreteOT:
    """A transport map from a source to points; made by `fit_transport`.

    Attributes:
        targets: the points, shape (n, *event), float64.
        heights: `h`, shape (n,); the same added to all changes nothing.
        weights: the mass of each point, shape (n,).
        source: where x comes from.
        quality: of the fit.
    """

    targets: Float[Tensor, "n *event"]
    heights: Float[Tensor, " n"]
    weights: Float[Tensor, " n"]
    source: Source
    quality: Fit

    def draw(self, n: int, seed: int = 0, index: int = 0) -> Float[Tensor, "n d"]:
        """Draws of the source, float64; draw `index + i` is the same whatever `n`."""
        return _draw(self.source, n, math.prod(self.targets.shape[1:]), seed, index, self.targets.device)

    def cell(self, x: Float[Tensor, "b d"]) -> Int[Tensor, " b"]:
        """The number of the point that each x goes to."""
        return _cells(x, self.targets.flatten(1), self.heights)

    def map(self, x: Float[Tensor, "b d"], topk: int = 1, angle_threshold: float = 0.7) -> Float[Tensor, "b *event"]:
        """Where each x goes: its point; or, with `topk` above 1, a mean of the points whose planes are nearly as high.

        A point whose plane makes an angle of more than `angle_threshold` (in units of pi / 2) with the highest one lies
        across a fold of the map, between modes, and is left out (An et al., "AE-OT", ICLR 2020). The mean is weighted by
        `exp(-distance of x to the cell / median of these distances)`.

        Raises:
            InputError: `topk` below 1 or above the number of points, or x is no batch of vectors.
        """
        points = self.targets.flatten(1)
        if x.ndim != 2 or x.shape[1] != points.shape[1]:
            raise InputError(f"x: shape {tuple(x.shape)} was given; expected (batch, {points.shape[1]})")
        if not 1 <= topk <= len(points):
            raise InputError(f"topk: {topk} was given; expected from 1 to the {len(points)} points")
        if topk == 1 or len(x) == 0:
            return self.targets[self.cell(x)]
        high, which = (x.double() @ points.T + self.heights).topk(topk, 1)
        near = points[which]
        first = near[:, :1]
        cosine = (first * near).sum(-1) + 1.0
        cosine = cosine / ((first.square().sum(-1) + 1.0) * (near.square().sum(-1) + 1.0)).sqrt()
        angle = cosine.clamp(-1.0, 1.0).arccos() * (2.0 / math.pi)
        apart = (first - near).square().sum(-1).sqrt()
        distance = torch.where(apart > 0.0, (high[:, :1] - high) / apart.clamp_min(1e-300), 0.0)
        unit = distance[:, 1:].median().clamp_min(1e-300)
        weight = torch.where(angle <= angle_threshold, (-distance / unit).exp(), 0.0)
        weight[:, 0] = 1.0
        mean = (weight[..., None] * near).sum(1) / weight.sum(1, keepdim=True)
        return mean.reshape(len(x), *self.targets.shape[1:])

    def cell_mass(self, draws: int, seed: int = 0) -> Float[Tensor, " n"]:
        """The share of `draws` draws of the source in each cell."""
        counts = torch.zeros(len(self.targets), dtype=torch.float64, device=self.targets.device)
        for first in range(0, draws, _BLOCK):
            x = self.draw(min(_BLOCK, draws - first), seed, first)
            counts += torch.bincount(self.cell(x), minlength=len(counts))
        return counts / max(draws, 1)


def fit_transport(
    targets: Float[Tensor, "n *event"],
    weights: Float[Tensor, " n"] | None = None,
    *,
    source: Source = "gaussian",
    steps: int = 600,
    rate: float | None = None,
    draws: int | None = None,
    tolerance: float = 0.5,
    seed: int = 0,
    progress: Callable[[str, float], None] | None = None,
) -> SemiDiscreteOT:
    """The transport map from `source` to `targets`.

    Args:
        targets: the points; equal ones become one, with their common mass.
        weights: their masses, normalised here; equal where not given.
        steps: of Adam.
        rate: its first rate, in units of the heights; a tenth of the points' mean distance to their nearest one where not
            given. It falls to 0.5 % of that in six stages.
        draws: of the source a step; ten a point where not given, twice as many in each of the last stages.
        tolerance: the largest root mean squared relative error of the cells' masses that is accepted, measured on fifty
            fresh draws a point, which alone make 0.14 of it. Up to 1, empty cells are refused as well.
        seed: of all draws.

    Raises:
        InputError: no points, values that are not finite, weights that are not positive, a source that does not fit.
        NumericalError: the masses are further off than `tolerance`, or a cell is empty; more steps may help.
    """
    if targets.ndim < 2 or len(targets) == 0 or not bool(targets.isfinite().all()):
        raise InputError(
            f"targets: shape {tuple(targets.shape)} was given; expected (n, *event), n at least 1, finite values"
        )
    if weights is not None and (weights.shape != (len(targets),) or bool((weights <= 0).any())):
        raise InputError(f"weights: shape {tuple(weights.shape)} was given; expected {len(targets)} positive numbers")
    if steps < 1 or not tolerance > 0.0:
        raise InputError(
            f"steps, tolerance: {steps}, {tolerance} were given; expected at least 1, and a positive number"
        )
    event = targets.shape[1:]
    points, inverse = torch.unique(targets.double().flatten(1), dim=0, return_inverse=True)
    mass = torch.ones(len(targets), dtype=torch.float64) if weights is None else weights.double()
    nu = torch.zeros(len(points), dtype=torch.float64, device=points.device).index_add_(
        0, inverse, mass.to(points.device)
    )
    nu = nu / nu.sum()
    n, d = points.shape
    middle = (nu[:, None] * points).sum(0)
    spread = (nu[:, None] * (points - middle).square()).sum().div(d).sqrt().clamp_min(1e-12)
    # In centred units: the same cells, since a shift of y by c changes all planes by <c, x>, and a scale scales the heights.
    y = (points - middle) / spread
    h = -0.5 * y.square().sum(1)
    if n > 1:
        if rate is None:
            near = torch.cdist(y[:1000], y[:1000]).fill_diagonal_(math.inf).amin(1)
            rate = 0.1 * near[near.isfinite()].mean().item()
        h = _adam(y, h, nu, source, steps, rate, draws or 10 * n, seed, progress)
    heights = (h - h.mean()) * spread
    found = SemiDiscreteOT(points.reshape(n, *event), heights, nu, source, Fit(0.0, 0.0, 0, 0))
    total = 50 * n
    relative = found.cell_mass(total, random.fold(seed, 1)) / nu
    error, worst = (relative - 1.0).square().mean().sqrt().item(), (relative - 1.0).abs().max().item()
    empty = int((relative == 0.0).sum())
    if error > tolerance or (empty and tolerance <= 1.0):
        raise NumericalError(
            f"steps: after {steps} the cells' masses are off by {error:.2g} (RMS, relative), and {empty} of {n} cells are "
            f"empty; expected at most {tolerance} and none. More steps, or more draws, may do"
        )
    return SemiDiscreteOT(found.targets, heights, nu, source, Fit(error, worst, empty, total))


def _adam(
    y: Tensor,
    h: Tensor,
    nu: Tensor,
    source: Source,
    steps: int,
    rate: float,
    draws: int,
    seed: int,
    progress: Callable[[str, float], None] | None,
) -> Tensor:
    first, second = torch.zeros_like(h), torch.zeros_like(h)
    total, tail = torch.zeros_like(h), 0
    for k in range(steps):
        stage = min(k * _STAGES // steps, _STAGES - 1)
        count = draws * (2 if stage >= _STAGES - 2 else 1)
        x = _draw(source, count, y.shape[1], random.fold(seed, 2), k * 2 * draws, y.device)
        gradient = -nu.clone()
        for block in x.split(_BLOCK):
            gradient += torch.bincount(_cells(block, y, h), minlength=len(h)) / count
        first = 0.9 * first + 0.1 * gradient
        second = 0.99 * second + 0.01 * gradient.square()
        lean = first / (1.0 - 0.9 ** (k + 1)) / ((second / (1.0 - 0.99 ** (k + 1))).sqrt() + 1e-12)
        h = h - rate * _SHRINK**stage * lean
        h = h - h.mean()
        if stage == _STAGES - 1:
            # The mean of the last stage: what is left of the noise averages out.
            total, tail = total + h, tail + 1
        if progress is not None and k % 50 == 0:
            progress("a transport map", k / steps)
    return total / tail if tail else h


def _cells(x: Tensor, y: Tensor, h: Tensor) -> Tensor:
    """The highest plane over each x; targets are taken in blocks, with a running maximum."""
    x = x.to(y)
    best, which = (
        torch.full((len(x),), -math.inf, dtype=y.dtype, device=y.device),
        torch.zeros(len(x), dtype=torch.int64, device=y.device),
    )
    for first in range(0, len(y), _BLOCK):
        value, place = torch.addmm(h[first : first + _BLOCK], x, y[first : first + _BLOCK].T).max(1)
        higher = value > best
        best, which = torch.where(higher, value, best), torch.where(higher, place + first, which)
    return which


def _draw(source: Source, n: int, d: int, seed: int, index: int, device: torch.device) -> Tensor:
    if source == "gaussian":
        return random.normal((n, d), seed, index=index, dtype=torch.float64, device=device)
    if source == "uniform":
        return (random.uniform((n, d), seed, index=index, dtype=torch.float64, device=device) - 0.5) * math.sqrt(12.0)
    if not callable(source):
        raise InputError(f"source: {source!r} was given; expected 'gaussian', 'uniform' or a function (n, seed, index)")
    made = source(n, seed, index)
    if made.shape != (n, d):
        raise InputError(f"source: it gave shape {tuple(made.shape)}; expected ({n}, {d})")
    return made.to(device=device, dtype=torch.float64)
