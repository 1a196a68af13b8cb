"""Brownian paths: additivity, laws, order, cache, addresses, and agreement of the two constructions."""

import itertools
import math
import random as shuffles

import pytest
import torch

from tweed.errors import IncompatibleError, InputError
from tweed.solvers.differential import BrownianInterval, VirtualBrownianTree

N = 200_000
"""Samples in tests of laws: second moments to about 0.3 % (one standard deviation)."""


def interval(shape=(5, 3), seed=0, t0=0.0, t1=1.0, **options):
    return BrownianInterval(t0, t1, shape, seed, **{"dtype": torch.float64, **options})


def tree(shape=(5, 3), seed=0, t0=0.0, t1=1.0, **options):
    return VirtualBrownianTree(t0, t1, shape, seed, **{"dtype": torch.float64, "tol": 1e-3, **options})


PATHS = [interval, tree]


@pytest.mark.parametrize("make", PATHS)
@pytest.mark.parametrize("area", [False, True])
def test_increments_add_up(make, area):
    path = make(area=area, t0=-1.0, t1=2.0)
    times = [-1.0, -0.9, -0.123456, 0.0, 1 / 3, 0.34, 1.9, 2.0]
    for a, b, c in itertools.combinations(times, 3):
        whole = path.increment(a, c)
        assert (path.increment(a, b) + path.increment(b, c) - whole).abs().max() < 1e-12
        assert torch.equal(path.increment(c, a), -whole)
    assert path.increment(0.5, 0.5).abs().max() == 0.0


@pytest.mark.parametrize("make", PATHS)
def test_areas_add_up(make):
    """Int (W_r - W_s) dr = h (W / 2 + H) over neighbours, the second of which starts W_left higher."""
    path = make(area=True)
    times = [0.0, 0.1, 0.3, 0.77, 1.0]
    for a, b, c in itertools.combinations(times, 3):
        (w1, h1), (w2, h2), (w, h) = (path.increment_and_area(*ends) for ends in ((a, b), (b, c), (a, c)))
        parts = (b - a) * (w1 / 2 + h1) + (c - b) * (w1 + w2 / 2 + h2)
        assert (parts - (c - a) * (w / 2 + h)).abs().max() < 1e-12
        assert torch.equal(path.increment_and_area(c, a)[1], h)


@pytest.mark.parametrize("make", PATHS)
@pytest.mark.parametrize("area", [False, True])
def test_laws_of_increments(make, area):
    """Independent N(0, h) over uneven neighbours, whichever interval was split to find them."""
    path = make((N, 1), seed=11, area=area)
    path.increment(0.0, 0.6)
    times = [0.0, 0.25, 0.3, 0.55, 1.0]
    pieces = torch.cat([path.increment(a, b) / math.sqrt(b - a) for a, b in itertools.pairwise(times)], 1)
    covariance = pieces.T @ pieces / N
    assert (covariance - torch.eye(4)).abs().max() < 0.015
    assert pieces.mean(0).abs().max() < 0.01
    assert (pieces.pow(4).mean(0) - 3.0).abs().max() < 0.12


@pytest.mark.parametrize("make", PATHS)
def test_covariance_of_the_bridge(make):
    """Given W_1, Cov(W_r, W_s) = r (1 - s) for r < s, and the mean is the chord."""
    path = make((N, 1), seed=5)
    end = path.increment(0.0, 1.0)
    points = [0.7, 0.2, 0.45]
    bridge = {r: path.increment(0.0, r) - r * end for r in points}
    for r, s in itertools.product(points, points):
        expected = min(r, s) * (1.0 - max(r, s))
        assert (bridge[r] * bridge[s]).mean().item() == pytest.approx(expected, abs=0.004)
    for r in points:
        assert (bridge[r] * end).mean().abs() < 0.006


@pytest.mark.parametrize("make", PATHS)
def test_law_of_the_levy_area(make):
    """Var H = h / 12; H is uncorrelated with W on the same interval, and with both on the neighbours."""
    path = make((N, 1), seed=3, area=True)
    times = [0.0, 0.3, 0.4, 1.0]
    columns = []
    for a, b in itertools.pairwise(times):
        w, area = path.increment_and_area(a, b)
        columns += [w / math.sqrt(b - a), area / math.sqrt((b - a) / 12.0)]
    z = torch.cat(columns, 1)
    assert (z.T @ z / N - torch.eye(6)).abs().max() < 0.015


@pytest.mark.parametrize("make", PATHS)
def test_the_area_is_that_of_the_path(make):
    """H against the trapezium rule on the increments of the same path."""
    path = make((4, 2), seed=9, area=True, **({"tol": 2.0**-12} if make is tree else {}))
    _, area = path.increment_and_area(0.25, 0.75)
    times = torch.linspace(0.25, 0.75, 513, dtype=torch.float64).tolist()
    steps = torch.stack([path.increment(a, b) for a, b in itertools.pairwise(times)])
    w = torch.cat((torch.zeros_like(steps[:1]), steps.cumsum(0)))
    integral = 0.5 * (w[1:] + w[:-1]).mean(0)
    # The error of the rule: h^(3/2) / sqrt(12) on each of 512 steps.
    assert (integral - 0.5 * w[-1] - area).abs().max() < 6.0 * math.sqrt(0.5 / 12.0) / 512


def test_any_order_and_a_small_cache():
    """The tree: a pure function. The interval: with its times given, in any order and after the cache was lost."""
    times = torch.linspace(0.0, 1.0, 65).tolist()
    steps = list(itertools.pairwise(times))
    for make, options in ((tree, {}), (interval, {"times": times, "cache": 4})):
        first = make(area=True, **options)
        answers = {ends: first.increment_and_area(*ends) for ends in steps}
        mixed = steps.copy()
        shuffles.Random(0).shuffle(mixed)
        again = make(area=True, **options)
        for ends in mixed:
            for path in (first, again):
                for a, b in zip(path.increment_and_area(*ends), answers[ends], strict=True):
                    assert torch.equal(a, b)
    # Without its times: whatever it once said it says again.
    path = interval(cache=4)
    shuffled = [
        (min(a, b), max(a, b)) for a, b in zip(mixed[0:40], mixed[20:60], strict=True) for a, b in ((a[0], b[1]),)
    ]
    said = [path.increment(*ends) for ends in shuffled]
    assert all(torch.equal(path.increment(*ends), w) for ends, w in zip(shuffled, said, strict=True))


def test_a_sweep_keeps_the_tree_flat_and_the_cache_small():
    """A thousand steps forwards and backwards without the times given: short ways from the root, constant memory."""
    path = interval((1, 1))
    grid = [i / 1000 for i in range(1001)]
    said = [path.increment(a, b) for a, b in itertools.pairwise(grid)]
    back = [path.increment(a, b) for a, b in reversed(list(itertools.pairwise(grid)))]
    assert all(torch.equal(a, b) for a, b in zip(said, reversed(back), strict=True))
    depth, node = 0, path._last
    while node.parent is not None:
        depth, node = depth + 1, node.parent
    assert depth < 30
    assert len(path._known) <= path.cache


@pytest.mark.parametrize("make", PATHS)
def test_a_sample_has_an_address(make):
    """Row i of any batch is sample index + i; other seeds and channels are other paths; empty batches are fine."""
    whole = make((6, 3), seed=4, area=True).increment_and_area(0.2, 0.7)
    part = make((2, 3), seed=4, area=True, index=3).increment_and_area(0.2, 0.7)
    for a, b in zip(whole, part, strict=True):
        assert torch.equal(a[3:5], b)
    assert not torch.equal(make((6, 3), seed=5).increment(0.2, 0.7), make((6, 3), seed=4).increment(0.2, 0.7))
    assert make((0, 3)).increment(0.1, 0.2).shape == (0, 3)
    single = make((6, 3), seed=4, dtype=torch.float32).increment(0.2, 0.7)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), make((6, 3), seed=4).increment(0.2, 0.7), rtol=1e-6, atol=1e-7)


def test_neither_touches_the_global_generator():
    before = torch.get_rng_state()
    interval().increment(0.1, 0.3)
    tree().increment(0.1, 0.3)
    assert torch.equal(before, torch.get_rng_state())


def test_both_constructions_have_the_same_law():
    """Quantiles of W over a fine interval, and of the area, against each other (two-sample Kolmogorov-Smirnov)."""
    for pick in (0, 1):
        a, b = (
            make((20_000, 1), seed=seed, area=True).increment_and_area(0.33, 0.34)[pick].flatten()
            for make, seed in ((interval, 1), (tree, 2))
        )
        both = torch.cat((a, b)).sort().values
        distance = (torch.searchsorted(a.sort().values, both) - torch.searchsorted(b.sort().values, both)).abs().max()
        assert distance / 20_000 < 1.95 * math.sqrt(2 / 20_000)


def test_what_is_refused():
    for make in PATHS:
        with pytest.raises(InputError, match="t0, t1"):
            make(t0=1.0, t1=1.0)
        with pytest.raises(InputError, match="t0, t1"):
            make(t1=math.inf)
        with pytest.raises(InputError, match="shape"):
            make(())
        with pytest.raises(InputError, match="dtype"):
            make(dtype=torch.int64)
        with pytest.raises(InputError, match=r"t: 1\.5"):
            make().increment(0.0, 1.5)
        with pytest.raises(IncompatibleError, match="area"):
            make().increment_and_area(0.0, 1.0)
    with pytest.raises(InputError, match="times"):
        interval(times=[0.5, 2.0])
    with pytest.raises(InputError, match="cache"):
        interval(cache=1)
    for tol in (0.0, 2.0, 1e-300):
        with pytest.raises(InputError, match="tol"):
            tree(tol=tol)
