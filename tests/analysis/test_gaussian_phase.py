"""The Gaussian phase: formulas against the flow and the denoiser themselves, and a window that ends where it should."""

import math

import pytest
import torch

from tweed import processes, random
from tweed.analysis import (
    emergence,
    endpoint_coefficients,
    endpoint_estimates,
    gaussian_phase,
    sensitivity,
    settled_variance,
)
from tweed.core import grids
from tweed.core.exact import GaussianDenoiser, MixtureDenoiser, PrincipalGaussian
from tweed.errors import IncompatibleError, InputError
from tweed.solvers import DPMSolver, sample

F64 = torch.float64
V = torch.tensor([9.0, 1.0, 0.25, 0.01], dtype=F64)
MEAN = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=F64)
PROCESSES = [processes.VP(), processes.EDM(0.002, 80.0), processes.RectifiedFlow(), processes.Cosine()]
TIMES = [1.0, 0.7, 0.4, 0.1, 0.01]


def run(gaussian, x, times=TIMES, y=None):
    return torch.stack([gaussian.flow(x, times[0], t, y) for t in times])


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_the_endpoint_coefficients_are_those_of_the_denoiser_along_the_flow(process):
    gaussian = GaussianDenoiser(MEAN, V, process)
    x = random.normal((3, 4), 1, dtype=F64) * process.level(1.0).sigma
    expected = endpoint_estimates(gaussian, run(gaussian, x), TIMES) - MEAN
    c = x - process.level(1.0).alpha * MEAN
    found = endpoint_coefficients(process, V, TIMES)[:, None] * c
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    # They never fall along a run, and end at sqrt(L / (alpha_T^2 L + sigma_T^2)).
    rising = endpoint_coefficients(process, V, torch.linspace(1.0, 0.0, 40).tolist())
    assert bool((rising.diff(dim=0) >= -1e-12).all())
    top = process.level(1.0)
    torch.testing.assert_close(rising[-1], (V / (top.alpha**2 * V + top.sigma**2)).sqrt(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("process", PROCESSES[:3], ids=lambda p: type(p).__name__)
def test_the_settled_variance_is_that_of_estimates_at_the_marginals(process):
    gaussian = GaussianDenoiser(MEAN, V, process)
    data = gaussian.sample(40_000, 2)
    for t in (0.6, 0.2):
        x = process.perturb(data, t, random.normal(data.shape, 3, dtype=F64))
        variance = gaussian(x, t).x0.var(0)
        torch.testing.assert_close(settled_variance(process, V, [t])[0], variance, rtol=0.05, atol=1e-6)
    torch.testing.assert_close(settled_variance(process, V, [0.0])[0], V, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_a_kick_moves_the_result_by_the_sensitivity(process):
    gaussian = GaussianDenoiser(MEAN, V, process)
    x, kick = random.normal((1, 4), 4, dtype=F64), torch.tensor([[0.3, -0.2, 0.1, 0.4]], dtype=F64)
    for t, gain in zip(TIMES, sensitivity(process, V, TIMES, end=0.005), strict=True):
        moved = gaussian.flow(x + kick, t, 0.005) - gaussian.flow(x, t, 0.005)
        torch.testing.assert_close(moved[0], gain * kick[0], rtol=1e-9, atol=1e-12)


def test_late_kicks_count_the_same_for_all_directions_and_nothing_beside_them():
    process = processes.VP()
    early, late = sensitivity(process, torch.cat((V, torch.zeros(1, dtype=F64))), [1.0, 1e-4])
    torch.testing.assert_close(late[:4], torch.ones(4, dtype=F64), rtol=0, atol=2e-3)
    torch.testing.assert_close(early[:4], V.sqrt(), rtol=1e-3, atol=1e-3)
    assert early[4] == late[4] == 0.0
    with pytest.raises(IncompatibleError, match="neither variance nor noise"):
        sensitivity(process, torch.zeros(1), [0.5, 0.0])


@pytest.mark.parametrize("share", [0.5, math.sqrt(0.5), 0.9])
def test_emergence_inverts_the_endpoint_coefficients(share):
    for process in (processes.VP(), processes.EDM(0.002, 80.0)):
        at = emergence(process, V, share)
        end = endpoint_coefficients(process, V, [0.0])[0]
        for k, t in enumerate(at.tolist()):
            assert endpoint_coefficients(process, V, [t])[0, k] == pytest.approx((share * end[k]).item(), rel=1e-6)
        assert bool((at.diff() < 0).all())
    snr = (2.0 * processes.VP().log_snr(emergence(processes.VP(), V, math.sqrt(0.5)))).exp()
    torch.testing.assert_close(snr, 1.0 / V)
    with pytest.raises(InputError, match="share"):
        emergence(processes.VP(), V, 1.0)


@pytest.mark.parametrize("process", [*PROCESSES[:3], processes.MeanReverting()], ids=lambda p: type(p).__name__)
def test_a_gaussian_follows_its_own_closed_form_to_the_end(process):
    given = process.endpoint == "given"
    y = random.normal((2, 4), 7, dtype=F64) if given else None
    gaussian = PrincipalGaussian(MEAN, V[:2], torch.eye(4, 2, dtype=F64), 0.04, process)
    x = random.normal((2, 4), 5, dtype=F64)
    states = run(gaussian, x, y=y)
    found = gaussian_phase(
        gaussian, states, endpoint_estimates(gaussian, states, TIMES, {"y": y} if given else None), TIMES, y=y
    )
    assert found.until == TIMES[-1]
    torch.testing.assert_close(found.state, torch.zeros(5, dtype=F64), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.endpoint, torch.zeros(5, dtype=F64), rtol=0, atol=1e-9)


def test_two_modes_are_followed_until_the_noise_falls_to_their_distance():
    process, far = processes.EDM(0.002, 80.0), 3.0
    modes = MixtureDenoiser(torch.tensor([[far], [-far]]), 0.01, process=process)
    gaussian = GaussianDenoiser(torch.zeros(1), far**2 + 0.01, process)
    times = grids.log_snr(process, 60, end=process.t_min).tolist()
    x = process.prior((16, 1), 3, dtype=F64)
    states = sample(modes, x, solver=DPMSolver(2), times=times, trajectory=True)
    found = gaussian_phase(gaussian, states, endpoint_estimates(modes, states, times), times)
    assert 0.5 * far < 80.0 * found.until < 6.0 * far
    assert found.state[0] == 0.0
    assert found.state[-1] > 0.2
    strict = gaussian_phase(gaussian, states, endpoint_estimates(modes, states, times), times, tolerance=1e-3)
    assert strict.until > found.until


def test_what_does_not_fit_is_refused():
    gaussian = GaussianDenoiser(MEAN, V)
    states = torch.zeros(5, 2, 4)
    with pytest.raises(InputError, match="times"):
        gaussian_phase(gaussian, states, states, TIMES[:3])
    with pytest.raises(InputError, match="estimates"):
        gaussian_phase(gaussian, states, states[:, :1], TIMES)
    with pytest.raises(InputError, match="sample"):
        gaussian_phase(gaussian, states[:, :0], states[:, :0], TIMES)
