"""Learned interpolants: exact ends, the value of the game, the Brownian bridge, and Gaussians in closed form."""

import math

import pytest
import torch
from torch import nn

import tweed as tw
from tweed.errors import InputError, NumericalError
from tweed.nets import build
from tweed.training.schroedinger_bridge import BridgePath, BridgeResult, bridge_loss, fit_bridge

F64 = torch.float64
EPSILON, DATA, OTHER = 0.1, (-0.5, 0.5), (0.5, 1.0)


def gaussian(ends):
    return lambda n, seed, index: ends[0] + ends[1] * tw.random.normal((n, 1), seed, index=index)


def covariance(epsilon=EPSILON):
    """Of the ends, under the entropic plan between two Gaussians with cost |x_0 - x_1|^2 / (4 epsilon)."""
    return math.sqrt((DATA[1] * OTHER[1]) ** 2 + epsilon**2) - epsilon


def drift(shared):
    """`u = m' + (V'/2 + epsilon) / V (x - m)` for Gaussian ends with covariance `shared`."""
    (m0, s0), (m1, s1) = DATA, OTHER

    def u(x, t):
        t = t[:, None]
        v = ((1 - t) * s0) ** 2 + (t * s1) ** 2 + 2 * t * (1 - t) * (shared + EPSILON)
        v_dot = -2 * (1 - t) * s0**2 + 2 * t * s1**2 + 2 * (1 - 2 * t) * (shared + EPSILON)
        return m1 - m0 + (0.5 * v_dot + EPSILON) / v * (x - (1 - t) * m0 - t * m1)

    return u


def energy(shared, n=20_000):
    (m0, s0), (m1, s1) = DATA, OTHER
    t = (torch.arange(n, dtype=F64) + 0.5) / n
    v = ((1 - t) * s0) ** 2 + (t * s1) ** 2 + 2 * t * (1 - t) * (shared + EPSILON)
    v_dot = -2 * (1 - t) * s0**2 + 2 * t * s1**2 + 2 * (1 - 2 * t) * (shared + EPSILON)
    return (m1 - m0) ** 2 + ((0.5 * v_dot + EPSILON) ** 2 / v).mean().item()


class Bend(nn.Module):
    """A bend with a derivative known by hand."""

    def forward(self, x, t, y):
        return t[:, None] ** 3 * x * y + (2.0 * t[:, None]).sin()


def test_ends_are_exact_and_the_speed_is_the_derivative():
    path = BridgePath(0.7, Bend())
    x0, x1 = (tw.random.normal((5, 3), seed, dtype=F64) for seed in (1, 2))
    assert torch.equal(path.mean(x0, x1, torch.zeros(5, dtype=F64))[0], x0)
    assert torch.equal(path.mean(x0, x1, torch.ones(5, dtype=F64))[0], x1)
    t, h = torch.linspace(0.1, 0.9, 5, dtype=F64), 1e-5
    slope = (path.mean(x0, x1, t + h)[0] - path.mean(x0, x1, t - h)[0]) / (2 * h)
    torch.testing.assert_close(path.mean(x0, x1, t)[1], slope, rtol=1e-8, atol=1e-8)
    # sigma' + epsilon / sigma, the first by differences.
    sigma_dot = (path.sigma(t + h) - path.sigma(t - h)) / (2 * h)
    torch.testing.assert_close(path.pull(t), sigma_dot + 0.7 / path.sigma(t), rtol=1e-8, atol=1e-8)
    assert path.mean(x0[:0], x1[:0], t[:0])[0].shape == (0, 3)


def test_the_loss_at_its_minimum_is_minus_half_the_energy():
    """On the straight path the exact drift is linear; any other drift has a larger loss."""
    n, path = 60_000, BridgePath(EPSILON)
    x0, x1 = (draw(n, seed, 0).double() for draw, seed in ((gaussian(DATA), 3), (gaussian(OTHER), 4)))
    z = tw.random.normal((n, 1), 5, dtype=F64)
    t = (torch.arange(n, dtype=F64) + 0.5) / n
    exact = drift(0.0)
    best = bridge_loss(path, exact, x0, x1, t, z)
    assert abs(-2.0 * best.mean().item() - energy(0.0)) < 4.0 * 2.0 * best.std().item() / n**0.5
    for other in (lambda x, t: 1.1 * exact(x, t), lambda x, t: exact(x, t) + 0.2, drift(covariance())):
        gap = bridge_loss(path, other, x0, x1, t, z) - best
        assert gap.mean() > 3.0 * gap.std() / n**0.5


def test_the_antithetic_loss_has_a_finite_variance_where_time_begins():
    n, path = 20_000, BridgePath(EPSILON)
    x0, x1 = gaussian(DATA)(n, 1, 0).double(), gaussian(OTHER)(n, 2, 0).double()
    z = tw.random.normal((n, 1), 3, dtype=F64)

    def spread(t):
        return bridge_loss(path, drift(0.0), x0, x1, torch.full((n,), t, dtype=F64), z).std().item()

    assert spread(1e-8) == pytest.approx(spread(1e-4), rel=0.1)
    assert path.pull(torch.tensor(1e-8)) > 50.0 * path.pull(torch.tensor(1e-4))


def test_the_straight_path_between_points_is_the_brownian_bridge():
    """Between points the drift is (x - x_0) / t and every run of the SDE ends at x_0."""
    path = BridgePath(0.5)
    result = BridgeResult(path, lambda x, t: (x - 2.0) / t[:, None], ())
    end, _ = result.sample(torch.zeros(200, 1, dtype=F64), steps=400, seed=1)
    assert end.mean().item() == pytest.approx(2.0, abs=5 * (2 * 0.5 / 400 / 200) ** 0.5)
    assert end.std().item() == pytest.approx((2 * 0.5 / 400) ** 0.5, rel=0.25)
    half = result.sample(torch.zeros(4000, 1, dtype=F64), steps=400, seed=2, trajectory=True)[0][200]
    assert half.std().item() == pytest.approx(path.sigma(torch.tensor(0.5, dtype=F64)).item(), rel=0.06)


def test_the_exact_drift_of_the_bridge_has_the_least_energy_and_the_right_end():
    start = gaussian(OTHER)(20_000, 8, 0).double()
    for shared in (covariance(), 0.0):
        x, spent = BridgeResult(BridgePath(EPSILON), drift(shared), ()).sample(start, steps=200, seed=3)
        assert x.mean().item() == pytest.approx(DATA[0], abs=0.02)
        assert x.std().item() == pytest.approx(DATA[1], abs=0.02)
        assert spent.mean().item() == pytest.approx(energy(shared), rel=0.03)
    least = energy(covariance())
    assert all(energy(covariance() + change) > least for change in (-0.05, 0.05))
    # 4 epsilon times the entropy of the plan relative to a Brownian motion from x_1.
    left = DATA[1] ** 2 - (covariance() / OTHER[1]) ** 2
    square = (OTHER[0] - DATA[0]) ** 2 + DATA[1] ** 2 + OTHER[1] ** 2 - 2 * covariance()
    assert least == pytest.approx(square + 2 * EPSILON * (math.log(2 * EPSILON / left) - 1.0), rel=1e-6)


def test_training_finds_the_bridge_and_repeats_itself():
    net = {"name": "mlp", "dim": 1, "width": 32, "depth": 1, "norm": False, "time_dim": 8, "time_scale": 1.0}

    def trained(steps):
        path = BridgePath(EPSILON, build({**net, "endpoint_channels": 1}, 0))
        told = []
        result = fit_bridge(
            path,
            build(net, 1),
            gaussian(DATA),
            gaussian(OTHER),
            steps=steps,
            warm=80 if steps > 5 else 5,
            batch_size=192 if steps > 5 else 16,
            path_lr=3e-3,
            seed=4,
            report=told.append,
        )
        assert told == sorted(told)
        assert min(told) >= 0.0
        assert max(told) <= 1.0
        return result

    result = trained(100)
    # The variance halfway: 0.3625 of the straight path, 0.5648 of the bridge.
    x0, x1 = gaussian(DATA)(8000, 11, 0), gaussian(OTHER)(8000, 12, 0)
    with torch.no_grad():
        half = result.path.mean(x0, x1, torch.full((8000,), 0.5))[0].var().item() + 0.5 * EPSILON

    def wanted(shared):
        return 0.25 * DATA[1] ** 2 + 0.25 * OTHER[1] ** 2 + 0.5 * (shared + EPSILON)

    assert abs(half - wanted(covariance())) < 0.4 * (wanted(covariance()) - wanted(0.0))
    x, spent = result.sample(gaussian(OTHER)(8000, 13, 0), steps=100, seed=1)
    assert abs(x.mean().item() - DATA[0]) < 0.1
    assert abs(x.std().item() / DATA[1] - 1.0) < 0.15
    assert spent.mean().item() < 0.5 * (energy(covariance()) + energy(0.0))
    assert trained(3).losses == trained(3).losses
    assert all(p.requires_grad for p in result.drift.parameters())


def test_what_does_not_fit_is_named():
    with pytest.raises(InputError, match="epsilon"):
        BridgePath(0.0)
    net = build({"name": "mlp", "dim": 1, "width": 8, "depth": 1}, 0)
    with pytest.raises(InputError, match="path"):
        fit_bridge(BridgePath(1.0), net, gaussian(DATA), gaussian(OTHER), steps=1)
    with pytest.raises(InputError, match="inner"):
        fit_bridge(BridgePath(1.0, net), net, gaussian(DATA), gaussian(OTHER), steps=1, inner=0)
    with pytest.raises(InputError, match="steps"):
        BridgeResult(BridgePath(1.0), drift(0.0), ()).sample(torch.zeros(1, 1), steps=0)
    with pytest.raises(NumericalError):
        BridgeResult(BridgePath(1.0), lambda x, t: x * math.nan, ()).sample(torch.zeros(1, 1))
