"""DDIM and DDPM against their formulas and against exact marginals."""

import itertools

import pytest
import torch
from solver_cases import case, mixture, noisy, run, slope

import tweed
from tweed import processes, random, solvers
from tweed.core import grids
from tweed.errors import InputError

TIMES = (0.9, 0.7, 0.4, 0.2, 0.05, 0.0)


@pytest.mark.parametrize("process", [processes.VP(), processes.EDM(), processes.SubVP(), processes.Cosine()], ids=repr)
@pytest.mark.parametrize("form", ["noise", "data"])
def test_without_noise_it_is_euler_in_noise_level(process, form):
    x, denoiser = noisy(process, 0.9), mixture(process)
    got = run(solvers.DDIM(), denoiser, TIMES, x)
    torch.testing.assert_close(got, run(solvers.Euler(form), denoiser, TIMES, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["noise", "data"])
def test_out_of_pure_noise_it_is_euler_too(form):
    process = processes.RectifiedFlow()
    x, denoiser = noisy(process, 1.0), mixture(process)
    got = run(solvers.DDIM(), denoiser, (1.0, 0.6, 0.0), x)
    torch.testing.assert_close(got, run(solvers.Euler(form), denoiser, (1.0, 0.6, 0.0), x), rtol=0, atol=1e-13)
    # The first step of a straight path is Euler's in time as well.
    first = (run(solvers.Euler(kind), denoiser, (1.0, 0.6), x) for kind in ("velocity", form))
    torch.testing.assert_close(*first, rtol=0, atol=1e-13)


def test_with_all_noise_it_draws_from_the_posterior_of_ddpm():
    process, denoiser = processes.VP(), mixture()
    x, t, s = noisy(process, 0.6), 0.6, 0.45
    problem = solvers.Problem(denoiser, (t, s))
    solver = solvers.DDPM()
    transition = solver.transition(problem, solver.init(problem, x), 0)
    bar_t, bar_s = process.alpha(t) ** 2, process.alpha(s) ** 2
    beta = 1 - bar_t / bar_s
    x0 = denoiser(x, t).x0
    mean = bar_s.sqrt() * beta / (1 - bar_t) * x0 + (bar_t / bar_s).sqrt() * (1 - bar_s) / (1 - bar_t) * x
    torch.testing.assert_close(transition.mean, mean, rtol=0, atol=1e-13)
    assert transition.std == pytest.approx(((1 - bar_s) / (1 - bar_t) * beta).sqrt().item(), rel=1e-12)


@pytest.mark.parametrize("process", [processes.VP(), processes.EDM(sigma_max=5.0), processes.RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_marginals_are_exact_where_the_data_is_one_point(process, eta):
    # The estimate of the data is then exact, and any steps, however large, keep the marginals.
    n, point = 20000, torch.tensor([0.7, -0.2], dtype=torch.float64)
    denoiser = tweed.GaussianDenoiser(point, 0.0, process)
    x = process.prior((n, 2), seed=1, t=0.95, dtype=torch.float64) + process.level(0.95).alpha * point
    got = run(solvers.DDIM(eta=eta), denoiser, (0.95, 0.5, 0.2), x, seed=4)
    level = process.level(0.2)
    error = (got - level.alpha * point) / level.sigma
    assert (error.mean(0).abs() < 4 / n**0.5).all()
    assert ((error.var(0) - 1).abs() < 4 * (2 / n) ** 0.5).all()
    assert error.prod(1).mean().abs() < 4 / n**0.5


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_gaussian_is_carried_with_the_moments_of_the_recursion(eta):
    # With data N(m, v) each step is affine in x: its mean and variance follow a recursion of numbers.
    process, m, v, n = processes.VP(), 0.5, 0.3, 20000
    denoiser = tweed.GaussianDenoiser(torch.tensor([m]), v, process)
    times = grids.quadratic(process, 100).tolist()
    mean, variance = m * process.level(1.0).alpha, v * process.level(1.0).alpha ** 2 + process.level(1.0).sigma ** 2
    x = mean + variance**0.5 * random.normal((n, 1), 9, dtype=torch.float64)
    for t, s in itertools.pairwise(times):
        now, later = process.level(t), process.level(s)
        a, q, b, r = now.alpha, now.sigma, later.alpha, later.sigma
        c2 = eta**2 * (r / q) ** 2 * (q**2 - (a / b) ** 2 * r**2)
        gain = a * v / (a**2 * v + q**2)
        factor = b * gain + (r**2 - c2) ** 0.5 * (1 - a * gain) / q
        shift = (b - (r**2 - c2) ** 0.5 * a / q) * m * (1 - a * gain)
        mean, variance = factor * mean + shift, factor**2 * variance + c2
    got = run(solvers.DDIM(eta=eta), denoiser, times, x, seed=2)
    assert got.mean().item() == pytest.approx(mean, abs=4 * (variance / n) ** 0.5)
    assert got.var().item() == pytest.approx(variance, rel=4 * (2 / n) ** 0.5)
    # A hundred steps come near the data itself.
    assert mean == pytest.approx(m, abs=0.01)
    assert variance == pytest.approx(v, rel=0.1)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_step_of_no_length_does_nothing(eta):
    x = noisy(processes.VP(), 0.5)
    table = solvers.DDIM(eta=eta).table(processes.VP(), (0.5, 0.5 - 1e-12))
    (row,) = table.steps[0]
    assert row.noise == pytest.approx(0.0, abs=1e-5)
    assert row.state == pytest.approx(1.0, abs=1e-9)
    assert row.estimates[0] == pytest.approx(0.0, abs=1e-9)
    exact = solvers.DDIM(eta=eta).table(processes.VP(), (0.5, 0.5)).steps[0][0]
    assert exact.noise == 0.0
    assert exact.state == 1.0
    assert torch.equal(x * exact.state, x)


def test_no_noise_is_drawn_into_clean_data():
    for eta in (0.0, 1.0):
        (row,) = solvers.DDIM(eta=eta).table(processes.VP(), (0.3, 0.0)).steps[0]
        assert (row.state, row.estimates[0], row.noise) == (0.0, 1.0, 0.0)


def test_first_order():
    denoiser, x, exact = case()
    assert slope(solvers.DDIM(), denoiser, x, exact, grids.log_snr, (80, 160)) == pytest.approx(1.0, abs=0.15)


def test_euler_ancestral_is_the_same_method():
    process, denoiser = processes.VP(), mixture()
    x, times = noisy(process, 0.9), TIMES[:-1]
    got = run(solvers.EulerAncestral(eta=0.8), denoiser, times, x, seed=1)
    problem = solvers.Problem(denoiser, times, seed=1)
    u = x / process.level(times[0]).alpha
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        here, there = (process.level(at).sigma / process.level(at).alpha for at in (t, s))
        up = min(there, 0.8 * (there**2 * (here**2 - there**2) / here**2) ** 0.5)
        down = (there**2 - up**2) ** 0.5
        eps = denoiser(u * process.level(t).alpha, t).eps
        u = u + (down - here) * eps + up * problem.noise(x, i, 0)
    torch.testing.assert_close(got, u * process.level(times[-1]).alpha, rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_eta_is_a_share(eta):
    with pytest.raises(InputError, match="eta"):
        solvers.DDIM(eta=eta)
