import functools

import pytest
import torch
from scipy import stats

from tweed.data import DENSITIES, log_density
from tweed.errors import InputError

REACH = 3.2


@functools.cache
def _mass(name):
    """The probability of each of 256 x 256 cells by the midpoint rule; whole numbers are edges of cells."""
    axis = (torch.arange(256, dtype=torch.float64) + 0.5) * (2 * REACH / 256) - REACH
    points = torch.cartesian_prod(axis, axis)
    return log_density(name, points).exp().reshape(256, 256) * (2 * REACH / 256) ** 2


@pytest.mark.parametrize("name", DENSITIES)
def test_a_point_is_the_same_whatever_the_count(name):
    sample = DENSITIES[name].sample
    whole = sample(40, seed=5, index=100)
    assert whole.shape == (40, 2)
    assert whole.dtype == torch.float32
    assert torch.equal(whole[7:19], sample(12, seed=5, index=107))
    assert torch.equal(whole[[3, 30]], sample(2, seed=5, index=torch.tensor([103, 130])))
    assert not torch.equal(whole, sample(40, seed=6, index=100))
    assert sample(0).shape == (0, 2)


@pytest.mark.parametrize("name", DENSITIES)
def test_log_density_integrates_to_one(name):
    # The grid is exact to rounding for smooth densities; these two have an edge off the grid, and a pole at 0.
    error = {"two_spirals": 1e-3, "pinwheel": 1e-3}.get(name, 1e-6)
    assert float(_mass(name).sum()) == pytest.approx(1.0, abs=error)


@pytest.mark.parametrize("name", DENSITIES)
def test_samples_follow_the_log_density(name):
    cells, fine = 16, 16
    n = 20_000
    x = DENSITIES[name].sample(n, seed=1).double()
    assert torch.isfinite(log_density(name, x)).all()
    mass = _mass(name).reshape(cells, fine, cells, fine).sum((1, 3))
    cell = ((x + REACH) / (2 * REACH / cells)).floor().long()
    assert ((cell >= 0) & (cell < cells)).all()
    seen = torch.bincount(cell[:, 0] * cells + cell[:, 1], minlength=cells**2).double()
    expected = (mass / mass.sum()).flatten() * n
    big = expected >= 8.0
    seen = torch.cat((seen[big], seen[~big].sum()[None]))
    expected = torch.cat((expected[big], expected[~big].sum()[None].clamp_min(1e-9)))
    if expected[-1] < 1.0:
        assert seen[-1] < 8
        seen, expected = seen[:-1], expected[:-1]
    statistic = float(((seen - expected) ** 2 / expected).sum())
    assert stats.chi2.sf(statistic, len(seen) - 1) > 1e-4, (statistic, len(seen))


@pytest.mark.parametrize("name", DENSITIES)
def test_scale_is_about_one(name):
    x = DENSITIES[name].sample(20_000, seed=2)
    assert (x.mean(0).abs() < 0.1).all()
    assert ((x.std(0) > 0.5) & (x.std(0) < 1.25)).all()
    assert float((x.norm(dim=1) < 3.0).double().mean()) > 0.999


def test_bad_input_is_named():
    with pytest.raises(InputError, match="moons"):
        log_density("moon", torch.zeros(1, 2))
    with pytest.raises(InputError, match="x"):
        log_density("moons", torch.zeros(2, 3))
