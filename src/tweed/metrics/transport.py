"""Wasserstein distances between sample sets: exact, and sliced.

`W_p(x, y)^p = min over couplings of E|X - Y|^p` with Euclidean `|.|` (Villani, "Optimal Transport", 2009, Definition
6.1). Sliced: Bonneel et al., "Sliced and Radon Wasserstein Barycenters of Measures" (J. Math. Imaging Vision 2015).
"""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from tweed.core.random import normal
from tweed.errors import InputError
from tweed.metrics.samples import BLOCK, distances, pair


def _weights(name: str, weights: Tensor | None, n: int, device: torch.device) -> Float[Tensor, " n"]:
    if weights is None:
        return torch.full((n,), 1.0 / n, dtype=torch.float64, device=device)
    weights = weights.detach().to(device, torch.float64)
    if weights.shape != (n,) or bool((weights < 0.0).any()) or not bool(weights.sum() > 0.0):
        raise InputError(f"{name}: shape {tuple(weights.shape)} was given; expected {n} weights >= 0, not all 0")
    return weights / weights.sum()


def _monotone(
    a: Float[Tensor, " n"], b: Float[Tensor, " m"]
) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"], Float[Tensor, " k"]]:
    """The coupling of two sorted sets of weighted numbers: pairs (i, j) and the mass each carries."""
    ends_a, ends_b = a.cumsum(0), b.cumsum(0)
    ends = torch.cat((ends_a, ends_b)).sort().values
    mass = torch.diff(ends, prepend=ends.new_zeros(1)).clamp_min(0.0)
    middle = ends - 0.5 * mass  # within each piece, so that rounding of an end cannot pick a neighbour
    i = torch.searchsorted(ends_a, middle).clamp_max(len(a) - 1)
    j = torch.searchsorted(ends_b, middle).clamp_max(len(b) - 1)
    return i, j, mass


def _check_order(p: float) -> None:
    if not 1.0 <= p < float("inf"):
        raise InputError(f"p: {p} was given; expected a finite order of at least 1")


def wasserstein(
    x: Shaped[Tensor, "n *event"],
    y: Shaped[Tensor, "m *event"],
    p: float = 2.0,
    weights_x: Float[Tensor, " n"] | None = None,
    weights_y: Float[Tensor, " m"] | None = None,
) -> float:
    """The exact Wasserstein distance `W_p` (not its p-th power), in the unit of the samples.

    In one dimension by sorting; for two unweighted sets of equal size by linear assignment (cubic time: a few thousand
    samples); otherwise by the network simplex of POT. Weights default to equal ones and are normalised.

    Raises:
        InputError: sample shapes differ, a set is empty, `p` below 1, bad weights, or POT is needed and not installed.
    """
    _check_order(p)
    x, y = pair(x, y)
    n, m = len(x), len(y)
    a, b = _weights("weights_x", weights_x, n, x.device), _weights("weights_y", weights_y, m, y.device)
    if x.shape[1] == 1:
        (x, order_x), (y, order_y) = x[:, 0].sort(), y[:, 0].sort()
        i, j, mass = _monotone(a[order_x], b[order_y])
        return float((mass * (x[i] - y[j]).abs() ** p).sum()) ** (1.0 / p)
    cost = distances(x - y.mean(0), y - y.mean(0)).pow(p).cpu().numpy()
    if n == m and weights_x is None and weights_y is None:
        from scipy.optimize import linear_sum_assignment

        return float(cost[linear_sum_assignment(cost)].mean()) ** (1.0 / p)
    try:
        import ot
    except ImportError:
        raise InputError(
            f"x, y: {n} and {m} samples (or weights) in {x.shape[1]} dimensions were given; without the `ot` extra "
            "(pip install 'tweed[ot]') expected unweighted sets of equal size"
        ) from None
    plan_cost = ot.emd2(a.cpu().numpy(), b.cpu().numpy(), cost, numItermax=10_000_000)
    return max(float(plan_cost), 0.0) ** (1.0 / p)


def sliced_wasserstein(
    x: Shaped[Tensor, "n *event"],
    y: Shaped[Tensor, "m *event"],
    projections: int = 256,
    p: float = 2.0,
    seed: int = 0,
) -> float:
    """The sliced Wasserstein distance `(mean over directions of W_p(<x, u>, <y, u>)^p)^(1/p)`.

    Directions are uniform on the sphere, drawn under `seed`, the same whatever `projections` is for the ones that two
    calls share; sizes may differ.

    Raises:
        InputError: sample shapes differ or a set is empty, `p` below 1, or `projections` below 1.
    """
    _check_order(p)
    if projections < 1:
        raise InputError(f"projections: {projections} was given; expected at least 1")
    x, y = pair(x, y)
    n, m = len(x), len(y)
    directions = normal((projections, x.shape[1]), seed, dtype=torch.float64, device=x.device)
    directions = directions / directions.norm(dim=1, keepdim=True)
    if n == m:
        i = j = torch.arange(n, device=x.device)
        mass = torch.full((n,), 1.0 / n, dtype=torch.float64, device=x.device)
    else:
        i, j, mass = _monotone(_weights("x", None, n, x.device), _weights("y", None, m, y.device))
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for u in directions.split(max(1, BLOCK // (n + m))):
        along_x, along_y = (x @ u.T).sort(0).values, (y @ u.T).sort(0).values
        total += (mass[:, None] * (along_x[i] - along_y[j]).abs() ** p).sum()
    return float(total / projections) ** (1.0 / p)
