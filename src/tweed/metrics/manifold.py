"""Fidelity and diversity by nearest neighbours: precision, recall, density, coverage.

Each set is covered by balls around its samples, of the radius of their k-th nearest neighbour in the set. Precision
and recall: Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models" (NeurIPS 2019).
Density and coverage: Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models" (ICML 2020).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from tweed.errors import InputError
from tweed.metrics.samples import blocks, pair


@dataclass(frozen=True)
class Manifold:
    """The four numbers; all in [0, 1] but `density`, which may exceed 1.

    Attributes:
        precision: share of the fake samples within a ball of the real ones.
        recall: share of the real samples within a ball of the fake ones.
        density: mean number of real balls that hold a fake sample, over k; about 1 for equal distributions.
        coverage: share of the real balls that hold a fake sample; for n real and m fake samples of one distribution its
            mean is `1 - (n-1)...(n-k) / ((n+m-1)...(n+m-k))`, close to `1 - 2^-k` for sets of equal size.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def radii(x: Float[Tensor, "n d"], k: int, chunk: int | None = None) -> Float[Tensor, " n"]:
    """The distance of each row from its k-th nearest other row."""
    parts = []
    for start, d in blocks(x, x, chunk):
        d.diagonal(start).fill_(torch.inf)
        parts.append(d.kthvalue(k, dim=1).values)
    return torch.cat(parts)


def manifold(
    real: Shaped[Tensor, "n *event"], fake: Shaped[Tensor, "m *event"], k: int = 5, chunk: int | None = None
) -> Manifold:
    """Precision, recall, density and coverage of `fake` with respect to `real`, in the space of the features given.

    Args:
        k: which neighbour gives the radius of a ball (3 in Kynkäänniemi et al., 5 in Naeem et al.).
        chunk: rows of the distance matrix held at once; None bounds memory to about 100 MB.

    Raises:
        InputError: sample shapes differ, `k` below 1, or a set has not more than k samples.
    """
    if k < 1:
        raise InputError(f"k: {k} was given; expected at least 1")
    real, fake = pair(real, fake, least=k + 1, names=("real", "fake"))
    radius_real, radius_fake = radii(real, k, chunk), radii(fake, k, chunk)
    precise = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    recalled, covered, dense = [], [], torch.zeros((), dtype=torch.int64, device=fake.device)
    for start, d in blocks(real, fake, chunk):
        inside = d <= radius_real[start : start + len(d), None]
        precise |= inside.any(0)
        dense += inside.sum()
        covered.append(inside.any(1))
        recalled.append((d <= radius_fake).any(1))
    return Manifold(
        precision=float(precise.double().mean()),
        recall=float(torch.cat(recalled).double().mean()),
        density=float(dense) / (k * len(fake)),
        coverage=float(torch.cat(covered).double().mean()),
    )


def precision(real: Shaped[Tensor, "n *event"], fake: Shaped[Tensor, "m *event"], k: int = 3) -> float:
    """Share of `fake` within the balls of `real`; see `manifold`."""
    return manifold(real, fake, k).precision


def recall(real: Shaped[Tensor, "n *event"], fake: Shaped[Tensor, "m *event"], k: int = 3) -> float:
    """Share of `real` within the balls of `fake`; see `manifold`."""
    return manifold(real, fake, k).recall


def density(real: Shaped[Tensor, "n *event"], fake: Shaped[Tensor, "m *event"], k: int = 5) -> float:
    """Mean number of the balls of `real` that hold a sample of `fake`, over k; see `manifold`."""
    return manifold(real, fake, k).density


def coverage(real: Shaped[Tensor, "n *event"], fake: Shaped[Tensor, "m *event"], k: int = 5) -> float:
    """Share of the balls of `real` that hold a sample of `fake`; see `manifold`."""
    return manifold(real, fake, k).coverage
