"""Euler-Maruyama against the closed forms of a Gaussian."""

import pytest
import torch

import tweed as tw
from tweed.core.processes import OUVE, VE, VP, Cosine, RectifiedFlow, SubVP
from tweed.errors import IncompatibleError
from tweed.solvers import EulerMaruyama

MEAN, VARIANCE = torch.tensor([1.0, -0.5, 0.0]), torch.tensor([1.0, 0.25, 0.04])
PROCESSES = [VP(), VE(0.01, 20.0), SubVP()]


def variance_error(process, steps):
    """The variance that the discretised chain has in truth, against the data's: a recursion, no samples."""
    times = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
    table = EulerMaruyama(denoise_last=False).table(process, tuple(times.tolist()))
    variance = torch.full((3,), process.level(1.0).sigma ** 2, dtype=torch.float64)
    for (row,) in table.steps:
        level = process.level(row.t)
        # eps = sigma x / (alpha^2 L + sigma^2) on a centred Gaussian.
        gain = row.state + row.estimates[0] * level.sigma / (level.alpha**2 * VARIANCE.double() + level.sigma**2)
        variance = gain**2 * variance + row.noise**2
    return (variance / VARIANCE - 1.0)[1].item()


@pytest.mark.parametrize("process", PROCESSES)
def test_variance_converges_at_weak_order_one(process):
    errors = [variance_error(process, n) for n in (1000, 2000, 4000)]
    # The part that does not vanish with the step: the prior is not the marginal at t = 1, and sigma(0) > 0 on VE.
    limit = 2 * errors[2] - errors[1]
    assert abs(limit) < 0.02
    ratio = (errors[0] - errors[1]) / (errors[1] - errors[2])
    # With alpha = 1 and a log-linear sigma the first order cancels.
    assert ratio > 3.0 if isinstance(process, VE) else ratio == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize("process", PROCESSES)
def test_samples_have_the_data_s_moments(process):
    n = 8000
    denoiser = tw.GaussianDenoiser(MEAN, VARIANCE, process)
    x = tw.sample(denoiser, n, solver=EulerMaruyama(), steps=200)
    # Five standard errors, and the discretisation error of 200 steps.
    assert ((x.mean(0) - MEAN).abs() < 5 * (VARIANCE / n).sqrt() + 0.01).all()
    assert ((x.var(0) / VARIANCE - 1).abs() < 5 * (2 / n) ** 0.5 + 0.05).all()


@pytest.mark.parametrize("process", [*PROCESSES, Cosine(), RectifiedFlow()])
def test_probability_flow_converges_to_the_closed_form(process):
    denoiser = tw.GaussianDenoiser(MEAN, VARIANCE, process)
    start = process.prior((32, 3), dtype=torch.float64)
    end = 0.01
    exact = denoiser.flow(start, 1.0, end)
    errors = []
    for n in (200, 400, 800):
        times = torch.linspace(1.0, end, n + 1)
        x = tw.sample(denoiser, start, solver=EulerMaruyama(probability_flow=True), times=times)
        errors.append((x - exact).abs().max().item())
    assert errors[2] < 0.07
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.25)
    assert errors[1] / errors[2] == pytest.approx(2.0, abs=0.2)


def test_probability_flow_of_standard_normal_data_is_the_identity_on_vp():
    denoiser = tw.GaussianDenoiser(torch.zeros(4), 1.0, VP())
    start = VP().prior((8, 4), dtype=torch.float64) / VP().level(1.0).sigma
    x = tw.sample(denoiser, start, solver=EulerMaruyama(probability_flow=True), times=torch.linspace(1, 0.001, 20))
    torch.testing.assert_close(x, start, rtol=0, atol=1e-10)


@pytest.mark.parametrize("process", [*PROCESSES, OUVE()])
def test_forward_steps_with_drift_and_diffusion_reach_alpha_and_sigma(process):
    n, steps = 2000, 2000
    x0, y = torch.full((n, 1), 1.5, dtype=torch.float64), torch.full((n, 1), -1.0, dtype=torch.float64)
    ends = process.endpoint == "given"
    start = process.level(0.0)
    x = start.alpha * x0 + start.sigma * tw.random.normal((n, 1), 9, dtype=torch.float64)
    for i in range(steps):
        t = i / steps
        noise = tw.random.normal((n, 1), 7, draw=i, dtype=torch.float64)
        x = x + process.drift(x, t, y if ends else None) / steps + process.diffusion(t) * steps**-0.5 * noise
    level = process.level(1.0)
    mean = level.alpha * x0[0] + (level.beta * y[0] if ends else 0.0)
    assert (x.mean() - mean).abs() < 5 * level.sigma * n**-0.5 + 0.01
    assert (x.std() / level.sigma - 1).abs() < 0.02 + 3 * (2 * n) ** -0.5


def test_the_last_step_is_the_mean_of_its_transition():
    denoiser = tw.GaussianDenoiser(MEAN, VARIANCE, VP())
    start = VP().prior((4, 3))
    kept = tw.sample(denoiser, start, solver=EulerMaruyama(denoise_last=False), steps=10, trajectory=True)
    mean = tw.sample(denoiser, start, solver=EulerMaruyama(), steps=10, trajectory=True)
    torch.testing.assert_close(kept[:-1], mean[:-1])
    problem = tw.solvers.Problem(denoiser, tuple(torch.linspace(1, 0, 11, dtype=torch.float64).tolist()))
    solver = EulerMaruyama(denoise_last=False)
    step = solver.transition(problem, solver.init(problem, start)._replace(x=kept[-2]), 9)
    torch.testing.assert_close(step.mean, mean[-1])
    # g^2(0.1) / 10 on VP.
    assert step.std == pytest.approx(((0.1 + 19.9 * 0.1) / 10) ** 0.5, rel=1e-9)


def test_a_sample_does_not_depend_on_its_batch():
    denoiser = tw.GaussianDenoiser(MEAN, VARIANCE, VP())
    x = tw.sample(denoiser, 6, solver=EulerMaruyama(), steps=5, seed=3)
    torch.testing.assert_close(tw.sample(denoiser, 2, solver=EulerMaruyama(), steps=5, seed=3, index=4), x[4:])


def test_a_singular_start_is_refused_with_what_to_do():
    denoiser = tw.GaussianDenoiser(MEAN, VARIANCE, RectifiedFlow())
    with pytest.raises(IncompatibleError, match=r"alpha = 0.*t_max"):
        tw.sample(denoiser, 2, solver=EulerMaruyama(), steps=5)
    x = tw.sample(denoiser, 2, solver=EulerMaruyama(), times=torch.linspace(0.99, 0.0, 100))
    assert x.isfinite().all()
