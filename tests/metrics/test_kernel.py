import math

import pytest
import torch
from scipy import stats

from tweed.core.random import normal
from tweed.errors import InputError
from tweed.metrics import energy_distance, median_bandwidth, mmd


def _z(n, d, seed):
    return normal((n, d), seed, dtype=torch.float64)


def test_energy_distance_agrees_with_scipy_in_one_dimension():
    x, y = _z(40, 1, 0), _z(31, 1, 1) * 2.0 + 0.3
    assert energy_distance(x, y) == pytest.approx(stats.energy_distance(x[:, 0], y[:, 0]) ** 2, abs=1e-12)


def test_energy_distance_of_points_and_far_sets():
    shift = torch.tensor([3.0, 4.0])
    one = torch.zeros(1, 2)
    assert energy_distance(one, one + shift) == pytest.approx(10.0)
    # Far apart, 2 E|X - Y| dominates: 2 L minus what the sets spread within.
    x = _z(50, 2, 0)
    far = energy_distance(x, x + 1e4 * shift)
    within = 2.0 * float(torch.cdist(x, x).mean())
    assert far == pytest.approx(2.0 * 5e4 - within, abs=1e-3)


@pytest.mark.parametrize("metric", [energy_distance, lambda x, y: mmd(x, y, unbiased=False)])
def test_invariances_and_zero(metric):
    x, y = _z(60, 3, 0), _z(45, 3, 1) + 0.5
    turn = torch.linalg.qr(_z(3, 3, 5)).Q
    value = metric(x, y)
    assert value > 0.0
    assert metric(x, x) == pytest.approx(0.0, abs=1e-14)
    assert metric(x, x.flip(0)) == pytest.approx(0.0, abs=1e-14)
    assert metric(y, x) == pytest.approx(value, abs=1e-13)
    assert metric(x @ turn + 7.0, y @ turn + 7.0) == pytest.approx(value, abs=1e-11)
    assert metric(x.reshape(60, 1, 3), y.reshape(45, 1, 3)) == value


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("dim", [3, 200])
def test_the_chunk_does_not_matter(unbiased, dim):
    x, y = _z(50, dim, 0), _z(37, dim, 1)
    for metric in (energy_distance, mmd):
        whole = metric(x, y, unbiased=unbiased)
        for chunk in (1, 7, 50):
            # In many dimensions distances come from inner products: a distance of 0 is one of 1e-7.
            value = metric(x, y, unbiased=unbiased, chunk=chunk)
            assert value == pytest.approx(whole, abs=1e-11 if dim < 100 else 1e-8)


@pytest.mark.parametrize("metric", [mmd, energy_distance])
def test_unbiased_estimates_have_mean_zero_for_equal_distributions(metric):
    options = {"bandwidth": 1.0} if metric is mmd else {}
    pairs = [(_z(12, 2, 2 * s), _z(9, 2, 2 * s + 1)) for s in range(300)]
    unbiased = torch.tensor([metric(x, y, unbiased=True, **options) for x, y in pairs])
    error = float(unbiased.std()) / math.sqrt(len(pairs))
    assert abs(float(unbiased.mean())) < 4.0 * error
    assert (unbiased < 0.0).any()
    biased = torch.tensor([metric(x, y, unbiased=False, **options) for x, y in pairs])
    assert (biased >= 0.0).all()
    assert float(biased.mean()) > 20.0 * error


def test_mmd_of_gaussians_has_a_closed_form():
    # For N(0, 1) and N(m, 1) in d dimensions under width h: 2 (1 + 2/h^2)^(-d/2) (1 - exp(-|m|^2 / (2 (h^2 + 2)))).
    d, h, m = 2, 1.3, 1.0
    expected = 2.0 * (1.0 + 2.0 / h**2) ** (-d / 2) * (1.0 - math.exp(-(m**2) / (2.0 * (h**2 + 2.0))))
    shift = torch.tensor([m, 0.0])
    values = [mmd(_z(600, d, 2 * s), _z(600, d, 2 * s + 1) + shift, bandwidth=h) for s in range(8)]
    mean, error = sum(values) / 8, float(torch.tensor(values).std()) / math.sqrt(8)
    assert abs(mean - expected) < 5.0 * error
    assert error < 0.05 * expected


def test_mmd_agrees_with_scikit_learn():
    from sklearn.metrics.pairwise import rbf_kernel

    x, y = _z(20, 4, 0), _z(30, 4, 1) + 0.2
    h = 1.7
    k = [rbf_kernel(a, b, gamma=0.5 / h**2) for a, b in ((x, x), (y, y), (x, y))]
    assert mmd(x, y, h, unbiased=False) == pytest.approx(k[0].mean() + k[1].mean() - 2 * k[2].mean(), abs=1e-13)
    several = mmd(x, y, [0.5, 1.7, 4.0])
    assert several == pytest.approx(sum(mmd(x, y, w) for w in (0.5, 1.7, 4.0)) / 3, abs=1e-13)


def test_median_bandwidth():
    x, y = _z(30, 2, 0), _z(20, 2, 1)
    pooled = torch.cat((x, y))
    d = torch.pdist(pooled)
    assert median_bandwidth(x, y) == pytest.approx(float(d.median()), rel=1e-12)
    assert median_bandwidth(2.0 * x, 2.0 * y) == pytest.approx(2.0 * float(d.median()), rel=1e-12)
    same = torch.zeros(5, 2)
    assert median_bandwidth(same, same) == 1.0
    assert mmd(same, same) == 0.0
    apart = torch.cat((same, torch.ones(1, 2)))
    assert median_bandwidth(same, apart) == pytest.approx(math.sqrt(2.0))


def test_bad_input_is_named():
    x = torch.zeros(4, 2)
    for call, argument in [
        (lambda: energy_distance(torch.zeros(0, 2), x), "x"),
        (lambda: energy_distance(x, torch.zeros(4, 1)), "y"),
        (lambda: energy_distance(x, x[:1], unbiased=True), "y"),
        (lambda: mmd(x[:1], x), "x"),
        (lambda: mmd(x, x, bandwidth=0.0), "bandwidth"),
        (lambda: mmd(x, x, bandwidth=[]), "bandwidth"),
        (lambda: mmd(x, x, chunk=0), "chunk"),
    ]:
        with pytest.raises(InputError, match=f"^{argument}: "):
            call()
    assert energy_distance(x[:1], x[:1] + 1.0) == pytest.approx(2.0 * math.sqrt(2.0))
