"""Energy distance and maximum mean discrepancy between sample sets, summed in blocks.

Energy distance: Székely & Rizzo, "Energy statistics: A class of statistics based on distances" (J. Statistical Planning
and Inference 2013). MMD: Gretton et al., "A Kernel Two-Sample Test" (JMLR 2012), Eq. 3 (unbiased) and Eq. 5 (biased).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from tweed.errors import InputError
from tweed.metrics.samples import distances, mean_over_pairs, pair

_MEDIAN_SAMPLES = 1000


def _two_sample(x: Tensor, y: Tensor, function, unbiased: bool, chunk: int | None) -> float:
    """`E f(x, x') + E f(y, y') - 2 E f(x, y)`; unbiased leaves out the pairs of a sample with itself."""
    within_x = mean_over_pairs(x, x, function, chunk, distinct=unbiased)
    within_y = mean_over_pairs(y, y, function, chunk, distinct=unbiased)
    return within_x + within_y - 2.0 * mean_over_pairs(x, y, function, chunk)


def energy_distance(
    x: Shaped[Tensor, "n *event"],
    y: Shaped[Tensor, "m *event"],
    unbiased: bool = False,
    chunk: int | None = None,
) -> float:
    """`2 E|X - Y| - E|X - X'| - E|Y - Y'|`, in the unit of the samples; 0 exactly for equal distributions.

    Some libraries call the square root of this, or half of it, by the same name.

    Args:
        unbiased: leave out the pairs of a sample with itself; then it may be negative, and has mean 0 where the two
            distributions are equal. Otherwise it is >= 0 and biased by O(1/n).
        chunk: rows of the distance matrix held at once; None bounds memory to about 100 MB.

    Raises:
        InputError: sample shapes differ, a set is empty (or has one sample, for unbiased), or `chunk` below 1.
    """
    x, y = pair(x, y, least=2 if unbiased else 1)
    return -_two_sample(x, y, lambda d: d, unbiased, chunk)


def median_bandwidth(x: Shaped[Tensor, "n *event"], y: Shaped[Tensor, "m *event"]) -> float:
    """The median distance between two samples of `x` and `y` pooled, of at most 1000 evenly picked from each.

    Where more than half of these distances are 0 it is the mean of the others (and 1 where there are none).

    Raises:
        InputError: sample shapes differ, or a set is empty.
    """
    x, y = pair(x, y)
    pooled = torch.cat([part[:: -(-len(part) // _MEDIAN_SAMPLES)] for part in (x, y)])
    upper = torch.triu_indices(len(pooled), len(pooled), offset=1, device=x.device)
    d = distances(pooled - pooled.mean(0), pooled - pooled.mean(0))[upper[0], upper[1]]
    median = float(d.median())
    if median > 0.0:
        return median
    return float(d[d > 0.0].mean()) if bool((d > 0.0).any()) else 1.0


def mmd(
    x: Shaped[Tensor, "n *event"],
    y: Shaped[Tensor, "m *event"],
    bandwidth: float | Sequence[float] | None = None,
    unbiased: bool = True,
    chunk: int | None = None,
) -> float:
    """The squared maximum mean discrepancy `MMD^2` under the kernel `exp(-|x - y|^2 / (2 bandwidth^2))`.

    Args:
        bandwidth: of the kernel, in the unit of the samples; several are averaged; None takes `median_bandwidth`.
        unbiased: the U-statistic, which may be negative and has mean 0 where the two distributions are equal;
            otherwise the V-statistic, which is >= 0.
        chunk: rows of the distance matrix held at once; None bounds memory to about 100 MB.

    Raises:
        InputError: sample shapes differ, a set is empty (or has one sample, for unbiased), a bandwidth not above 0.
    """
    x, y = pair(x, y, least=2 if unbiased else 1)
    if bandwidth is None:
        bandwidth = median_bandwidth(x, y)
    widths = [float(h) for h in (bandwidth if isinstance(bandwidth, Sequence) else [bandwidth])]
    if not widths or min(widths) <= 0.0:
        raise InputError(f"bandwidth: {bandwidth} was given; expected above 0")

    def kernel(d: Float[Tensor, "c m"]) -> Float[Tensor, "c m"]:
        square = d.square()
        return torch.stack([(square * (-0.5 / h**2)).exp() for h in widths]).mean(0)

    return _two_sample(x, y, kernel, unbiased, chunk)
