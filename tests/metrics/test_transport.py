import builtins
import math

import pytest
import torch
from scipy import stats

from tweed.core.random import normal
from tweed.errors import InputError
from tweed.metrics import sliced_wasserstein, wasserstein


def _z(n, d, seed):
    return normal((n, d), seed, dtype=torch.float64)


def test_one_dimension_agrees_with_scipy_for_unequal_sizes_and_weights():
    x, y = _z(30, 1, 0), 2.0 * _z(47, 1, 1) + 0.5
    a, b = _z(30, 1, 2)[:, 0].exp(), _z(47, 1, 3)[:, 0].exp()
    assert wasserstein(x, y, p=1) == pytest.approx(stats.wasserstein_distance(x[:, 0], y[:, 0]), abs=1e-12)
    expected = stats.wasserstein_distance(x[:, 0], y[:, 0], a, b)
    assert wasserstein(x, y, p=1, weights_x=a, weights_y=b) == pytest.approx(expected, abs=1e-12)
    assert wasserstein(x[:, 0], y[:, 0], p=1) == wasserstein(x, y, p=1)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_a_repeated_sample_is_a_weight(p):
    x, y = _z(6, 1, 0), _z(4, 1, 1)
    doubled = torch.cat((x, x[:2]))
    weights = torch.tensor([2.0, 2.0, 1.0, 1.0, 1.0, 1.0])
    assert wasserstein(doubled, y, p) == pytest.approx(wasserstein(x, y, p, weights_x=weights), abs=1e-12)
    repeated = wasserstein(y.repeat(3, 1), x, p)
    assert repeated == pytest.approx(wasserstein(y, x, p), abs=1e-12)


@pytest.mark.parametrize("sizes", [(25, 25), (25, 40)])
@pytest.mark.parametrize("p", [1.0, 2.0])
def test_exact_distance_agrees_with_pot(sizes, p):
    ot = pytest.importorskip("ot")
    x, y = _z(sizes[0], 3, 0), _z(sizes[1], 3, 1) + 0.3
    cost = torch.cdist(x, y).pow(p).numpy()
    a, b = (torch.full((n,), 1.0 / n, dtype=torch.float64).numpy() for n in sizes)
    assert wasserstein(x, y, p) == pytest.approx(ot.emd2(a, b, cost) ** (1 / p), abs=1e-10)
    assert wasserstein(x[:1], y, p) == pytest.approx(float(cost[0].mean()) ** (1 / p), abs=1e-10)


def test_translation_and_scaling_have_closed_forms():
    x = _z(60, 4, 0)
    shift = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    for p in (1.0, 2.0, 4.0):
        assert wasserstein(x, x + shift, p) == pytest.approx(float(shift.norm()), rel=1e-10)
    # x -> 3 x is the gradient of a convex function, so it is the optimal map.
    assert wasserstein(x, 3.0 * x) == pytest.approx(2.0 * float(x.square().sum(1).mean().sqrt()), rel=1e-10)


def test_it_is_a_metric_invariant_to_order_and_rotation():
    x, y, z = _z(40, 3, 0), _z(40, 3, 1) * 1.5, _z(40, 3, 2) + 1.0
    turn = torch.linalg.qr(_z(3, 3, 9)).Q
    w = wasserstein(x, y)
    assert wasserstein(x, x.flip(0)) == pytest.approx(0.0, abs=1e-12)
    assert wasserstein(y, x) == pytest.approx(w, abs=1e-12)
    assert wasserstein(x[torch.randperm(40, generator=torch.Generator())], y) == pytest.approx(w, abs=1e-12)
    assert wasserstein(x @ turn, y @ turn) == pytest.approx(w, abs=1e-10)
    assert wasserstein(x, z) <= w + wasserstein(y, z)
    assert wasserstein(x, y, p=1) <= w
    assert wasserstein(x.reshape(40, 1, 3), y.reshape(40, 1, 3)) == w


def test_gaussians_in_one_dimension():
    # W2 of N(0, 1) and N(1, 2^2) is sqrt(1 + 1).
    quantile = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)
    assert wasserstein(quantile, 2.0 * quantile + 1.0) == pytest.approx(math.sqrt(2.0), rel=1e-3)
    assert wasserstein(_z(20_000, 1, 0), 2.0 * _z(15_000, 1, 1) + 1.0) == pytest.approx(math.sqrt(2.0), rel=0.04)


def test_sliced_distance_of_a_shift_is_its_mean_projection():
    # E<shift, u>^2 = |shift|^2 / d over the sphere.
    x = _z(300, 5, 0)
    shift = torch.tensor([2.0, 0.0, 0.0, -1.0, 0.0], dtype=torch.float64)
    assert sliced_wasserstein(x, x + shift, projections=20_000) == pytest.approx(1.0, rel=0.02)


def test_sliced_distance_is_exact_in_one_dimension_and_deterministic():
    x, y = _z(30, 1, 0), _z(21, 1, 1) + 1.0
    for p in (1.0, 2.0):
        assert sliced_wasserstein(x, y, projections=3, p=p) == pytest.approx(wasserstein(x, y, p), abs=1e-12)
    x, y = _z(30, 4, 0), _z(21, 4, 1)
    first = sliced_wasserstein(x, y, seed=1)
    assert first == sliced_wasserstein(x, y, seed=1)
    assert first != sliced_wasserstein(x, y, seed=2)
    assert sliced_wasserstein(y, x, seed=1) == pytest.approx(first, abs=1e-12)
    # The same projections in another order: their sums may be rounded otherwise.
    assert sliced_wasserstein(x, x.flip(0)) == pytest.approx(0.0, abs=1e-12)
    assert sliced_wasserstein(x, y[torch.arange(20, -1, -1)], seed=1) == pytest.approx(first, abs=1e-12)
    assert sliced_wasserstein(x, torch.cat((x, x))) == pytest.approx(0.0, abs=1e-7)


def test_sliced_distance_is_at_most_the_exact_one():
    x, y = _z(40, 3, 0), _z(40, 3, 1) * torch.tensor([1.0, 2.0, 3.0])
    assert 0.0 < sliced_wasserstein(x, y) < wasserstein(x, y)


def test_bad_input_is_named(monkeypatch):
    x = torch.zeros(4, 2)
    for call, argument in [
        (lambda: wasserstein(torch.zeros(0, 2), x), "x"),
        (lambda: wasserstein(x, torch.zeros(0, 2)), "y"),
        (lambda: wasserstein(x, torch.zeros(4, 3)), "y"),
        (lambda: wasserstein(x, x, p=0.5), "p"),
        (lambda: wasserstein(x, x, p=math.inf), "p"),
        (lambda: wasserstein(x, x, weights_x=torch.ones(3)), "weights_x"),
        (lambda: wasserstein(x, x, weights_y=-torch.ones(4)), "weights_y"),
        (lambda: wasserstein(x * math.nan, x), "x"),
        (lambda: sliced_wasserstein(x, x, projections=0), "projections"),
        (lambda: sliced_wasserstein(x, torch.zeros(0, 2)), "y"),
    ]:
        with pytest.raises(InputError, match=f"^{argument}: "):
            call()
    real = builtins.__import__

    def without_pot(name, *args, **kwargs):
        if name == "ot":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pot)
    with pytest.raises(InputError, match="`ot` extra"):
        wasserstein(x, torch.zeros(5, 2))
    assert wasserstein(x, x + 1.0) == pytest.approx(math.sqrt(2.0))
