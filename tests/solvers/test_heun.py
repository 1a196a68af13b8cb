"""Heun's method with and without churn, against the algorithms of the paper."""

import math

import pytest
import torch
from solver_cases import case, mixture, noisy, run, slope

import tweed
from tweed import processes, solvers, targets
from tweed.core import grids
from tweed.errors import InputError
from tweed.solvers import Problem


def stochastic_sampler(denoise, x, levels, noise, churn=0.0, low=0.0, high=math.inf, strength=1.0):
    """Algorithm 2 of Karras et al. (2022); at churn = 0 it is Algorithm 1 with sigma(t) = t, s(t) = 1."""
    steps = len(levels) - 1
    for i in range(steps):
        gamma = min(churn / steps, math.sqrt(2) - 1) if low <= levels[i] <= high else 0.0
        raised = levels[i] * (1 + gamma)
        hat = x + math.sqrt(raised**2 - levels[i] ** 2) * strength * noise(i)
        d = (hat - denoise(hat, raised)) / raised
        x = hat + (levels[i + 1] - raised) * d
        if levels[i + 1] != 0:
            d_next = (x - denoise(x, levels[i + 1])) / levels[i + 1]
            x = hat + (levels[i + 1] - raised) * (d + d_next) / 2
    return x


CHURNED = [
    {},
    {"churn": 4.0},
    {"churn": 40.0, "churn_noise": 1.007},
    {"churn": 10.0, "churn_min": 0.05, "churn_max": 5.0, "churn_noise": 1.003},
]


@pytest.mark.parametrize("options", CHURNED, ids=repr)
def test_the_paper_on_its_own_process(options):
    process = processes.EDM()
    denoiser, times = mixture(process), grids.karras(process, 12, start=0.5)
    x = noisy(process, 0.5)
    problem = Problem(denoiser, tuple(times.tolist()), seed=3)
    levels = [process.level(t).sigma for t in times.tolist()]
    names = {"churn_min": "low", "churn_max": "high", "churn_noise": "strength"}
    expected = stochastic_sampler(
        lambda x, sigma: denoiser(x, sigma / process.sigma_max).x0,
        x,
        levels,
        lambda i: problem.noise(x, i, 0),
        **{names.get(k, k): v for k, v in options.items()},
    )
    got = solvers.Heun(**options).integrate(problem, x)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", CHURNED, ids=repr)
def test_the_paper_on_another_process(options):
    # Their x is x / alpha and their sigma is sigma / alpha.
    process = processes.VP()
    denoiser = mixture(process)
    times = (0.8, 0.6, 0.45, 0.3, 0.2, 0.1, 0.03, 0.0)
    x = noisy(process, 0.8)
    problem = Problem(denoiser, times, seed=3)

    def denoise(u, sigma):
        t = process.time(-math.log(sigma))
        return denoiser(u * process.alpha(t), t).x0

    levels = [process.level(t).sigma / process.level(t).alpha for t in times]
    names = {"churn_min": "low", "churn_max": "high", "churn_noise": "strength"}
    expected = stochastic_sampler(
        denoise,
        x / process.level(0.8).alpha,
        levels,
        lambda i: problem.noise(x, i, 0),
        **{names.get(k, k): v for k, v in options.items()},
    )
    torch.testing.assert_close(solvers.Heun(**options).integrate(problem, x), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("form", ["noise", "velocity"])
@pytest.mark.parametrize("process", [processes.VP(), processes.EDM(sigma_max=3.0), processes.SubVP()], ids=repr)
def test_second_order(form, process):
    denoiser, x, exact = case(process)
    order = slope(solvers.Heun(form), denoiser, x, exact, grids.log_snr, (60, 120))
    assert order == pytest.approx(2.0, abs=0.15)


def test_second_order_out_of_pure_noise():
    process = processes.RectifiedFlow()
    denoiser, x, exact = case(process, 1.0)
    for form in ("noise", "velocity"):
        order = slope(solvers.Heun(form), denoiser, x, exact, grids.uniform, (60, 120), 1.0)
        assert order == pytest.approx(2.0, abs=0.15)


@pytest.mark.parametrize("form", ["noise", "velocity"])
def test_the_last_step_into_clean_data_is_eulers(form):
    process = processes.VP()
    table = solvers.Heun(form).table(process, (0.5, 0.2, 0.0))
    assert [len(step) for step in table.steps] == [2, 1]
    (last,) = table.steps[1]
    (euler,) = solvers.Euler(form).table(process, (0.2, 0.0)).steps[0]
    assert (last.t, last.state, last.estimates[0]) == (euler.t, euler.state, euler.estimates[0])
    # Where the smallest noise is not zero there is nothing to avoid.
    assert [len(step) for step in solvers.Heun(form).table(processes.VE(), (0.5, 0.2, 0.0)).steps] == [2, 2]


def test_a_velocity_network_may_be_asked_at_the_end():
    process = processes.RectifiedFlow()
    denoiser = tweed.FunctionDenoiser(lambda x, t: x * t, process, targets.Velocity())
    x, h = noisy(process, 1.0), -1.0
    expected = x + h / 2 * (x * 1.0 + (x + h * x) * 0.0)
    torch.testing.assert_close(run(solvers.Heun("velocity", full_end=True), denoiser, (1.0, 0.0), x), expected)


@pytest.mark.parametrize("churn", [3.0, 100.0])
@pytest.mark.parametrize("process", [processes.VP(), processes.EDM(sigma_max=4.0), processes.RectifiedFlow()], ids=repr)
def test_churn_keeps_the_marginals(churn, process):
    # Of one point, of which the deterministic part is exact in any number of steps, out of the process's very end.
    n, point = 20000, torch.tensor([0.7], dtype=torch.float64)
    denoiser = tweed.GaussianDenoiser(point, 0.0, process)
    x = process.prior((n, 1), seed=1, dtype=torch.float64) + process.level(1.0).alpha * point
    times = (1.0, 0.8, 0.5, 0.3, 0.1)
    got = run(solvers.Heun(churn=churn), denoiser, times, x, seed=6)
    level = process.level(0.1)
    error = (got - level.alpha * point) / level.sigma
    assert error.mean().abs() < 4 / n**0.5
    assert (error.var() - 1).abs() < 4 * (2 / n) ** 0.5
    # Half of it is new, or nearly all.
    kept = (error * (x - process.level(1.0).alpha * point) / process.level(1.0).sigma).mean()
    assert abs(kept) < (0.9 if churn == 3.0 else 0.65)


def test_noise_is_never_raised_above_the_process():
    for process in (processes.EDM(), processes.VP(), processes.RectifiedFlow()):
        table = solvers.Heun(churn=100.0).table(process, (1.0, 0.999, 0.5))
        assert all(0.0 <= row.t <= 1.0 for step in table.steps for row in step)
    assert len(solvers.Heun(churn=100.0).table(processes.EDM(), (1.0, 0.5)).steps[0]) == 2


def test_churn_has_bounds_in_noise_level():
    table = solvers.Heun(churn=3.0, churn_min=1.0, churn_max=30.0).table(processes.EDM(), (0.5, 0.2, 0.1, 0.005, 0.0))
    assert [step[0].evaluate for step in table.steps] == [True, False, False, True]


def test_without_churn_nothing_is_drawn():
    assert not solvers.Heun().stochastic
    assert solvers.Heun(churn=1.0).stochastic
    x = noisy(processes.VP(), 0.5)
    runs = [run(solvers.Heun(), mixture(), (0.5, 0.3, 0.1), x, seed=seed) for seed in (0, 1)]
    assert torch.equal(*runs)
    with pytest.raises(InputError, match="deterministic"):
        tweed.invert(mixture(), x, solver=solvers.Heun(churn=1.0), steps=3)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"churn": -1.0}, "churn"),
        ({"churn_noise": math.nan}, "churn_noise"),
        ({"form": "data"}, "form"),
        ({"form": "velocity", "churn": 1.0}, "churn"),
        ({"full_end": True}, "full_end"),
    ],
)
def test_what_is_refused(options, name):
    with pytest.raises(InputError, match=name):
        solvers.Heun(**options)
