"""The recipe holds at smoke scale, and its parts are what they say."""

import math

import pytest
import torch

import tweed as tw
from tweed.core.processes import Interpolant
from tweed.recipes import _interpolants_bridge as bridge
from tweed.recipes import _interpolants_exact as exact
from tweed.recipes import _interpolants_wrong as wrong_fields
from tweed.recipes import registry
from tweed.recipes import stochastic_interpolants as recipe
from tweed.training.schroedinger_bridge import BridgePath


def test_smoke_holds(tmp_path):
    report = registry.reproduce("stochastic-interpolants", seed=0, scale="smoke")
    assert report.holds, [row.quantity for row in report.failed]
    folder = report.write(tmp_path)
    assert all((folder / f"{name}.png").stat().st_size > 5000 for name in report.figures)


@pytest.mark.parametrize("seed", [3, 4])
def test_identities_hold_for_any_seed(seed):
    rows = exact.identities(seed)
    assert len(rows) == 7
    assert [row.quantity for row in rows if not row.holds] == []


def test_the_independent_velocity_is_that_of_the_straight_line_between_gaussians():
    """E[x_1 - x_0 | x_t] of two Gaussians, by regression."""
    data, other = tw.GaussianDenoiser(torch.tensor([1.0, 0.0]), 0.5), tw.GaussianDenoiser(torch.zeros(2), 2.0)
    process, n = Interpolant("linear", "brownian"), 200_000
    x0, x1 = data.sample(n, 1), other.sample(n, 2)
    t = torch.full((n,), 0.3, dtype=torch.float64)
    x = process.perturb(x0, t, tw.random.normal((n, 2), 3, dtype=torch.float64), x1)
    speed = exact._mean_speed(data, other, process, x, t)
    residual = (x1 - x0) - speed
    for probe in (torch.ones_like(x), x, x.square()):
        value = residual * probe
        assert (value.mean(0).abs() < 5 * value.std(0) / n**0.5).all()


def test_wrong_fields_are_wrong_by_what_they_say():
    field = wrong_fields.line()
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    right, wrong = field(x, 0.4), wrong_fields.WrongFields(field, 1.0, 0.5)(x, 0.4)
    torch.testing.assert_close(wrong.velocity - right.velocity, -(3 * x).sin())
    torch.testing.assert_close(wrong.score - right.score, 0.5 * (2 * x).sin())
    # The drift of generation is -velocity + epsilon score.
    error = (-wrong.velocity + 0.7 * wrong.score) - (-right.velocity + 0.7 * right.score)
    torch.testing.assert_close(error, wrong_fields.WrongFields(field, 1.0, 0.5).wrong(x, 0.7))


def test_girsanov_s_bound_of_a_constant_error_and_of_a_sine():
    # E sin^2(3x) = (1 - E cos(6x)) / 2 is nearly one half: the bound is 1 / (8 epsilon).
    value = wrong_fields._girsanov(wrong_fields.WrongFields(wrong_fields.line(), 1.0, 0.0), 0.5)
    assert value == pytest.approx(0.25, rel=0.01)
    assert wrong_fields._girsanov(wrong_fields.WrongFields(wrong_fields.line(), 1.0, 0.0), 2.0) == pytest.approx(
        value / 4.0
    )
    both = wrong_fields._girsanov(wrong_fields.WrongFields(wrong_fields.line(), 0.0, 0.5), 2.0)
    assert 0.0 < both < 2.0 * 0.25 / 4.0


def test_energies_of_the_bridge():
    least = bridge.gaussian_energy()
    assert bridge.entropic_energy() == pytest.approx(least, rel=1e-6)
    straight = bridge.path_energy(BridgePath(bridge.BRIDGE["epsilon"]))
    assert straight == pytest.approx(bridge.gaussian_energy(0.0), rel=1e-3)
    assert straight > 1.05 * least


def test_a_straight_plan_of_the_bridge_s_covariance_is_the_bridge():
    """The quadrature on a path whose middle has the bridge's law: I = mean + scale times the line's deviation."""
    (m0, s0), (m1, s1) = bridge.BRIDGE["data"], bridge.BRIDGE["other"]
    epsilon = bridge.BRIDGE["epsilon"]
    c = math.sqrt((s0 * s1) ** 2 + epsilon**2) - epsilon

    class Best(torch.nn.Module):
        def forward(self, x, t, y):
            t = t[:, None]
            mean = (1 - t) * m0 + t * m1
            line = (1 - t) * x + t * y
            variance = ((1 - t) * s0) ** 2 + (t * s1) ** 2
            wanted = (line - mean) * (1 + 2 * t * (1 - t) * c / variance).sqrt() + mean
            return (wanted - line) / (t * (1 - t))

    assert bridge.path_energy(BridgePath(epsilon, Best())) == pytest.approx(bridge.gaussian_energy(), rel=1e-3)


def test_the_divergence_from_the_checkerboard():
    board = tw.data.DENSITIES["checkerboard"]
    # A true sample leaves about (cells - 1) / (2 n); one over the whole square, log 2.
    n = 20_000
    assert recipe.board_divergence(board.sample(n, 1)) == pytest.approx(127 / (2 * n), abs=0.006)
    square = 4.0 * tw.random.uniform((n, 2), 2) - 2.0
    assert recipe.board_divergence(square) == pytest.approx(math.log(2.0), abs=0.02)
    assert recipe.board_divergence(torch.full((n, 2), 9.0)) > 5.0
