"""Trajectory geometry: circles, lines and walks of known shape, and the order in which features appear."""

import math

import pytest
import torch

from tweed import processes, random
from tweed.analysis import (
    emergence,
    endpoint_coefficients,
    endpoint_estimates,
    order_of_emergence,
    settled_variance,
    trajectory_geometry,
    variance_by_time,
)
from tweed.core import grids
from tweed.core.exact import GaussianDenoiser
from tweed.errors import InputError
from tweed.solvers import DDIM, sample

F64 = torch.float64
VP = processes.VP()
TIMES = grids.log_snr(VP, 40, end=1e-3).tolist()
FLAT = torch.linalg.qr(random.normal((30, 3), 1, dtype=F64))[0]


def of_point(process, times, seed=2):
    """The flow to one point: `alpha_t p + sigma_t n`."""
    point, noise = (random.normal((4, 30), seed, draw=k, dtype=F64) for k in (0, 1))
    return torch.stack([process.level(t).alpha * point + process.level(t).sigma * noise for t in times])


@pytest.mark.parametrize("process", [VP, processes.EDM(0.002, 80.0), processes.RectifiedFlow()])
def test_the_flow_to_one_point_is_the_rotation_and_flat(process):
    times = grids.uniform(process, 20, end=0.01).tolist()
    found = trajectory_geometry(process, of_point(process, times), times)
    one = torch.ones(4, dtype=F64)
    torch.testing.assert_close(found.rotation, one, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.plane, one, rtol=0, atol=1e-10)
    if isinstance(process, processes.VP):
        torch.testing.assert_close(found.bent, one, rtol=0, atol=1e-10)
        assert bool((found.line < 0.95).all())
    else:
        # A straight line in space, whatever the clock.
        torch.testing.assert_close(found.line, one, rtol=0, atol=1e-10)


def test_a_helix_has_its_share_outside_the_plane():
    u = torch.linspace(0.0, 1.0, 400, dtype=F64)
    turns = 2.0 * math.pi * 3 * u
    path = (torch.stack((turns.cos(), turns.sin(), 2.0 * (u - 0.5)), 1) @ FLAT.T)[:, None]
    found = trajectory_geometry(VP, path, torch.linspace(1.0, 0.0, 400).tolist())
    # Variances 1/2, 1/2 and 1/3, and the covariance of the sine with the axis is -1 / (3 pi).
    least = 5.0 / 12.0 - math.hypot(1.0 / 12.0, 1.0 / (3.0 * math.pi))
    assert found.plane.item() == pytest.approx(1.0 - least / (4.0 / 3.0), abs=0.003)
    assert found.rotation.item() < 0.5


def test_the_null_is_as_long_as_the_trajectory_and_a_bridge_is_like_its_null():
    walk = random.normal((40, 5, 300), 3, dtype=F64).cumsum(0)
    found = trajectory_geometry(VP, walk, torch.linspace(1.0, 0.0, 40).tolist())
    # A centred bridge has the spectrum 1 / (2 pi j)^2, each twice (Watson, 1961): 6 / pi^2 of it in the first pair.
    torch.testing.assert_close(found.null_bent, torch.full((5,), 6.0 / math.pi**2, dtype=F64), rtol=0, atol=0.02)
    torch.testing.assert_close(found.bent, found.null_bent, rtol=0, atol=0.04)
    torch.testing.assert_close(found.plane, found.null_plane, rtol=0, atol=0.12)
    from tweed.analysis.trajectory import _bridge, _length

    path = walk.transpose(0, 1)
    share = torch.linspace(0.0, 1.0, 40, dtype=F64)[:, None]
    chord = path[:, :1] + share * (path[:, -1:] - path[:, :1])
    made = _bridge(path, chord, share, 0, 0)
    torch.testing.assert_close(_length(made), _length(path), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(made[:, [0, -1]], path[:, [0, -1]])


def test_each_trajectory_is_judged_by_itself_and_none_gives_none():
    states = of_point(VP, TIMES)
    whole, one = trajectory_geometry(VP, states, TIMES), trajectory_geometry(VP, states[:, :1], TIMES)
    for name in ("plane", "bent", "null_plane", "null_bent", "rotation", "line"):
        torch.testing.assert_close(getattr(whole, name)[:1], getattr(one, name), rtol=1e-9, atol=1e-9)
    assert trajectory_geometry(VP, states[:, :0], TIMES).plane.shape == (0,)


@pytest.mark.parametrize("process", [VP, processes.EDM(0.002, 80.0)], ids=["VP", "EDM"])
def test_features_emerge_at_the_closed_forms_times(process):
    variances = torch.tensor([4.0, 1.0, 0.1, 0.01], dtype=F64)
    axes = torch.linalg.qr(random.normal((4, 4), 5, dtype=F64))[0]
    mean = torch.ones(4, dtype=F64)
    gaussian = GaussianDenoiser(mean, axes @ torch.diag(variances) @ axes.T, process)
    times = grids.log_snr(process, 120, end=process.t_min).tolist()
    x = process.prior((6, 4), 1, dtype=F64)
    states = torch.stack([gaussian.flow(x, 1.0, t) for t in times])
    estimates = endpoint_estimates(gaussian, states, times)
    found = order_of_emergence(process, estimates, times, axes, mean)
    torch.testing.assert_close(found, process.log_snr(emergence(process, variances)), rtol=0, atol=0.02)


def test_a_feature_that_is_there_from_the_start_has_no_time():
    estimates = torch.ones(5, 3, 2, dtype=F64)
    found = order_of_emergence(VP, estimates, TIMES[:5], torch.eye(2), torch.zeros(2))
    assert bool(found.isnan().all())


def test_the_variance_by_time_is_the_closed_forms():
    variances = torch.tensor([4.0, 0.1], dtype=F64)
    gaussian = GaussianDenoiser(torch.zeros(2), variances, VP)
    x = random.normal((20_000, 2), 6, dtype=F64)
    times = [1.0, 0.5, 0.2, 0.02, 1e-5]
    states = torch.stack([gaussian.flow(x, 1.0, t) for t in times])
    found = variance_by_time(endpoint_estimates(gaussian, states, times))
    expected = settled_variance(VP, variances, times).sum(1) / variances.sum()
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01)


def test_it_takes_the_trajectory_of_a_run():
    gaussian = GaussianDenoiser(torch.zeros(3), 1.0, VP)
    states = sample(gaussian, 2, solver=DDIM(), times=TIMES, trajectory=True)
    assert trajectory_geometry(VP, states, TIMES).rotation.shape == (2,)
    coefficients = endpoint_coefficients(VP, torch.ones(3), TIMES)
    torch.testing.assert_close(
        endpoint_estimates(gaussian, states, TIMES)[0].double(), coefficients[0] * states[0].double()
    )


def test_what_does_not_fit_is_refused():
    states = of_point(VP, TIMES)
    for bad, times in ((states[:2], TIMES[:2]), (states, TIMES[:-1])):
        with pytest.raises(InputError, match="times"):
            trajectory_geometry(VP, bad, times)
    with pytest.raises(InputError, match="process"):
        trajectory_geometry(processes.MeanReverting(), states, TIMES)
    with pytest.raises(InputError, match="times"):
        endpoint_estimates(GaussianDenoiser(torch.zeros(30), 1.0), states, TIMES[:2])
    with pytest.raises(InputError, match="directions"):
        order_of_emergence(VP, states, TIMES, torch.eye(3), torch.zeros(3))
    with pytest.raises(InputError, match="estimates"):
        variance_by_time(states[:, :1])
