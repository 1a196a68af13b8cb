import math

import numpy as np
import pytest
import torch

import tweed as tw
from tweed import CountingDenoiser, GaussianDenoiser, MixtureDenoiser, grids
from tweed.core.processes import EDM, OUVE, VE, VP, Cosine, RectifiedFlow
from tweed.core.random import normal
from tweed.errors import IncompatibleError, InputError
from tweed.solvers import DDIM, DEIS, DPMSolver, Problem

MEANS = 0.7 * normal((3, 4), 4, dtype=torch.float64)
VARIANCES = torch.tensor([0.3, 0.4, 0.5])
START = normal((8, 4), 1, dtype=torch.float64)
VARIABLES = ["time", "rho", "log_rho"]


def mixture(process):
    return MixtureDenoiser(MEANS, VARIANCES, torch.tensor([0.3, 0.3, 0.4]), process)


def run(solver, denoiser, times, x, **options):
    times = times if isinstance(times, torch.Tensor) and times.ndim > 1 else tuple(torch.as_tensor(times).tolist())
    return solver.integrate(Problem(denoiser, times, **options), x)


@pytest.fixture(scope="module")
def reference():
    times = grids.log_snr(VP(), 800, end=1e-3)
    return run(DPMSolver(3, "singlestep", solver_type="taylor"), mixture(VP()), times, START)


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_order(order, variable, reference):
    few, many = (160, 480) if order < 4 else (100, 260)
    errors = [
        (run(DEIS(order, variable), mixture(VP()), grids.log_snr(VP(), n, end=1e-3), START) - reference).square().mean()
        for n in (few, many)
    ]
    slope = 0.5 * math.log(errors[0] / errors[1]) / math.log(many / few)
    assert slope == pytest.approx(order, abs=0.15 if order < 4 else 0.35)


def test_first_order_is_ddim():
    denoiser, times = mixture(VP()), grids.uniform(VP(), 9)
    for variable in VARIABLES:
        assert (
            run(DEIS(1, variable), denoiser, times, START) - run(DDIM(), denoiser, times, START)
        ).abs().max() < 1e-14


@pytest.mark.parametrize("order", [2, 3])
def test_log_rho_is_dpm_solver_with_exact_weights(order):
    """Two ways to one integral: quadrature here, phi functions there."""
    solver = DPMSolver(order, form="noise", solver_type="taylor", lower_order_final=False)
    times = grids.uniform(VP(), 12, end=1e-3)
    ours, theirs = (run(s, mixture(VP()), times, START) for s in (DEIS(order, "log_rho"), solver))
    assert (ours - theirs).abs().max() < 1e-11


@pytest.mark.parametrize("process", [VP(), Cosine(), VE(), OUVE()])
@pytest.mark.parametrize("variable", VARIABLES)
def test_coefficients_integrate_polynomials(process, variable):
    """On eps = v^k with k < order the step is exact; v is time, rho or log(rho)."""
    order = 4
    times = torch.linspace(0.8, 0.15, 9, dtype=torch.float64)
    read = {
        "time": lambda t: t,
        "rho": lambda t: process.sigma(t) / process.alpha(t),
        "log_rho": lambda t: -process.log_snr(t),
    }[variable]
    table = DEIS(order, variable).table(process, tuple(times.tolist()))
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(200))
    for i in range(order - 1, 8):
        (row,) = table.steps[i]
        for k in range(order):
            t = 0.5 * (times[i] + times[i + 1]) + 0.5 * (times[i + 1] - times[i]) * nodes
            rate = (process.sigma_dot(t) - process.alpha_dot(t) / process.alpha(t) * process.sigma(t)) / process.alpha(
                t
            )
            integral = (0.5 * (times[i + 1] - times[i]) * weights * rate * read(t) ** k).sum() * process.alpha(
                times[i + 1]
            )
            ours = sum(b * read(times[i - j]) ** k for j, b in enumerate(row.estimates))
            assert abs(ours - integral) < 1e-10 * max(1.0, abs(integral))


@pytest.mark.parametrize("variable", ["rho", "log_rho"])
def test_invariance_of_the_process(variable):
    """In rho and log(rho) nothing depends on how a process counts time."""
    levels = torch.linspace(-2.5, 3.0, 11, dtype=torch.float64)
    results = []
    for process in (VP(), VE(), EDM(), RectifiedFlow(), Cosine()):
        times = process.time(levels)
        alpha = process.alpha(times)
        results.append(run(DEIS(3, variable), mixture(process), times, START * alpha[0] * math.exp(2.5)) / alpha[-1])
    for result in results[1:]:
        assert (result - results[0]).abs().max() < 1e-10


def test_time_is_rho_where_time_is_the_noise_level():
    times = grids.karras(EDM(), 10, start=0.2, end=1e-3)
    first, second = (run(DEIS(3, v), mixture(EDM()), times, 16 * START) for v in ("time", "rho"))
    assert (first - second).abs().max() < 1e-11


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("variable", VARIABLES)
def test_ends(steps, variable):
    denoiser = CountingDenoiser(mixture(VP()))
    times = grids.uniform(VP(), steps)
    assert torch.isfinite(run(DEIS(3, variable), denoiser, times, START)).all()
    assert denoiser.evaluations == steps
    assert run(DEIS(3, variable), mixture(VP()), times, START[:0]).shape == (0, 4)
    flow = RectifiedFlow()
    assert torch.isfinite(
        run(DEIS(3, variable), mixture(flow), grids.uniform(flow, steps, start=flow.t_max), START[:1])
    ).all()


@pytest.mark.parametrize("variable", VARIABLES)
def test_own_times_of_samples_equal_separate_runs(variable):
    process = VP()
    grid = torch.stack(
        [grids.log_snr(process, 12, start=s, end=e) for s, e in ((1.0, 0.0), (0.9, 1e-3), (0.5, 0.1))], 1
    )
    together = run(DEIS(3, variable), mixture(process), grid, START[:3])
    for i in range(3):
        alone = run(DEIS(3, variable), mixture(process), grid[:, i], START[i : i + 1])
        assert (together[i] - alone[0]).abs().max() < 1e-12


@pytest.mark.parametrize("variable", VARIABLES)
def test_inversion_converges(variable):
    denoiser = GaussianDenoiser(MEANS[0], 0.5, VP())
    exact = denoiser.flow(START, 1e-3, 1.0)
    errors = [
        (run(DEIS(2, variable), denoiser, grids.log_snr(VP(), n, end=1e-3).flip(0), START) - exact).abs().max()
        for n in (40, 80)
    ]
    assert errors[1] < errors[0] / 3


def test_refusals():
    for options in ({"order": 0}, {"order": 5}, {"variable": "sigma"}):
        with pytest.raises(InputError):
            DEIS(**options)
    with pytest.raises(IncompatibleError, match="alpha = 0"):
        tw.sample(mixture(RectifiedFlow()), 4, solver=DEIS(), steps=5)
