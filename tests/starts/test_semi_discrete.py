"""Semi-discrete transport: masses, cost against exact discrete transport, and the invariances of the potential."""

import math

import pytest
import torch

from tweed import random
from tweed.errors import InputError, NumericalError
from tweed.starts import SemiDiscreteOT, fit_transport
from tweed.starts.semi_discrete import Fit, _cells

F64 = torch.float64
POINTS = random.normal((24, 2), 3, dtype=F64) * torch.tensor([1.5, 0.7], dtype=F64) + 2.0


@pytest.fixture(scope="module")
def fitted():
    return fit_transport(POINTS, steps=400, seed=1)


def of(points, heights, source="gaussian"):
    n = len(points)
    return SemiDiscreteOT(points, heights, torch.full((n,), 1 / n, dtype=F64), source, Fit(0, 0, 0, 0))


def test_every_cell_has_its_mass(fitted):
    draws = 48_000
    mass = fitted.cell_mass(draws, 7)
    # Four standard errors of a share of 1/24, and what the fit leaves.
    assert (24 * mass - 1).abs().max().item() < 4 * math.sqrt(24 / draws) + 0.05
    assert fitted.quality.empty == 0
    assert fitted.quality.error < 0.2


def test_unequal_masses_are_met():
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    found = fit_transport(POINTS[:4], weights, steps=300, seed=2)
    by_point = {tuple(p.tolist()): m for p, m in zip(found.targets, found.cell_mass(40_000, 5), strict=True)}
    made = torch.stack([by_point[tuple(p.tolist())] for p in POINTS[:4]])
    torch.testing.assert_close(made, weights.double() / 10, rtol=0, atol=0.012)


def test_the_cost_is_that_of_exact_discrete_transport(fitted):
    ot = pytest.importorskip("ot")
    x = fitted.draw(960, 9)
    repeated = fitted.targets.repeat_interleave(40, 0)
    even = torch.full((960,), 1 / 960, dtype=F64).numpy()
    exact = ot.emd2(even, even, torch.cdist(x, repeated).square().numpy(), numItermax=2_000_000)
    ours = (x - fitted.map(x)).square().sum(1).mean().item()
    # On the same draws the exact one forces equal counts; ours meets them on average.
    assert ours == pytest.approx(exact, rel=0.04)
    nearest = torch.cdist(x, fitted.targets).argmin(1)
    assert ours > (x - fitted.targets[nearest]).square().sum(1).mean().item()
    assert ours < 0.8 * (x - repeated).square().sum(1).mean().item()


def test_the_map_is_cyclically_monotone(fitted):
    x = fitted.draw(64, 11)
    y = fitted.map(x).flatten(1)
    for seed in range(20):
        other = torch.randperm(64, generator=random.generator(seed))
        assert (x * y).sum().item() >= (x * y[other]).sum().item() - 1e-9


def test_heights_matter_up_to_a_constant_and_points_up_to_order(fitted):
    x = fitted.draw(200, 12)
    shifted = of(fitted.targets, fitted.heights + 3.0)
    assert torch.equal(shifted.cell(x), fitted.cell(x))
    order = torch.randperm(24, generator=random.generator(5))
    assert torch.equal(of(fitted.targets[order], fitted.heights[order]).map(x), fitted.map(x))
    moved = of(fitted.targets + 7.0, fitted.heights)
    assert torch.equal(moved.cell(x), fitted.cell(x))


def test_blocks_of_points_are_one(monkeypatch):
    x, y, h = (random.normal(shape, s, dtype=F64) for s, shape in enumerate(((50, 3), (40, 3), (40, 1))))
    whole = (x @ y.T + h[:, 0]).argmax(1)
    monkeypatch.setattr("tweed.starts.semi_discrete._BLOCK", 7)
    assert torch.equal(_cells(x, y, h[:, 0]), whole)


def test_the_energy_is_convex_and_its_gradient_sums_to_nothing():
    x = random.normal((4000, 2), 1, dtype=F64)

    def energy(h):
        return (x @ POINTS.T + h).amax(1).mean() - h.mean()

    a, b = random.normal((2, 24), 5, dtype=F64)
    for share in (0.25, 0.5, 0.75):
        assert energy((1 - share) * a + share * b) <= (1 - share) * energy(a) + share * energy(b) + 1e-12
    h = a.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(energy(h), h)
    assert gradient.sum().item() == pytest.approx(0.0, abs=1e-12)
    counts = torch.bincount(_cells(x, POINTS, a), minlength=24).double() / 4000
    torch.testing.assert_close(gradient, counts - 1 / 24)


def test_a_symmetric_problem_has_symmetric_heights():
    points = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=F64)
    found = fit_transport(points, steps=400, draws=4000, seed=3)
    h = {tuple(p.tolist()): v for p, v in zip(found.targets, found.heights.tolist(), strict=True)}
    assert h[(-2.0, 0.0)] == pytest.approx(h[(2.0, 0.0)], abs=0.05)
    assert h[(0.0, 1.0)] == pytest.approx(h[(0.0, -1.0)], abs=0.05)


def test_one_point_takes_all_and_equal_points_are_one():
    alone = fit_transport(POINTS[:1], steps=1)
    assert torch.equal(alone.map(alone.draw(5)), POINTS[:1].expand(5, 2))
    twice = fit_transport(torch.cat([POINTS[:3], POINTS[:1]]), steps=200, seed=1)
    assert len(twice.targets) == 3
    assert sorted(twice.weights.tolist()) == pytest.approx([0.25, 0.25, 0.5])


@pytest.mark.parametrize(
    "source", ["gaussian", "uniform", lambda n, seed, index: random.normal((n, 2), seed, index=index)]
)
def test_draws_do_not_depend_on_the_batch(source):
    found = of(POINTS, torch.zeros(24, dtype=F64), source)
    torch.testing.assert_close(found.draw(6, 3)[4:], found.draw(2, 3, index=4))
    assert found.draw(0).shape == (0, 2)


def test_means_of_near_points_stay_in_their_hull_and_do_not_cross_folds():
    points = torch.tensor([[0.0, 0.0], [0.1, 0.0], [50.0, 0.0]], dtype=F64)
    heights = -0.5 * points.square().sum(1)
    found, x = of(points, heights), torch.tensor([[0.06, 0.0], [24.9, 0.0]], dtype=F64)
    made = found.map(x, topk=3, angle_threshold=0.5)
    assert 0.0 <= made[0, 0].item() <= 0.1
    assert found.map(x, topk=3, angle_threshold=0.0)[0].tolist() == found.map(x)[0].tolist()
    assert made[1, 0].item() in (0.1, 50.0) or made[1, 0].item() < 0.2
    assert torch.equal(found.map(x, topk=1), found.map(x))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"targets": torch.zeros(0, 2)}, InputError, "targets"),
        ({"targets": torch.tensor([[math.nan, 0.0]])}, InputError, "targets"),
        ({"weights": torch.tensor([1.0])}, InputError, "weights"),
        ({"weights": -torch.ones(24)}, InputError, "weights"),
        ({"steps": 0}, InputError, "steps"),
        ({"tolerance": 0.0}, InputError, "tolerance"),
        ({"source": "cauchy"}, InputError, "source"),
        ({"source": lambda n, s, i: torch.zeros(n, 3)}, InputError, "source"),
        ({"steps": 1, "tolerance": 0.01}, NumericalError, "masses"),
    ],
)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        fit_transport(**{"targets": POINTS} | options)


def test_bad_map_input(fitted):
    for topk in (0, 25):
        with pytest.raises(InputError, match="topk"):
            fitted.map(fitted.draw(1), topk=topk)
    with pytest.raises(InputError, match="x"):
        fitted.map(torch.zeros(2, 3))
