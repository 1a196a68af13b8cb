import itertools
import math

import pytest
import torch

import tweed as tw
from tweed import CountingDenoiser, GaussianDenoiser, MixtureDenoiser, grids
from tweed.core.processes import EDM, VE, VP, Cosine, MeanReverting, RectifiedFlow
from tweed.core.random import normal
from tweed.errors import IncompatibleError, InputError
from tweed.solvers import DDIM, DPMSolver, Problem, UniPC

MEANS = 0.7 * normal((3, 4), 4, dtype=torch.float64)
VARIANCES = torch.tensor([0.3, 0.4, 0.5])
START = normal((8, 4), 1, dtype=torch.float64)
WORLDS = {"VP": (VP(), 1.0, 1e-3), "sigma": (EDM(), 14.6 / 80, 0.03 / 80)}


def mixture(process):
    return MixtureDenoiser(MEANS, VARIANCES, torch.tensor([0.3, 0.3, 0.4]), process)


def run(solver, denoiser, times, x, **options):
    times = times if isinstance(times, torch.Tensor) and times.ndim > 1 else tuple(torch.as_tensor(times).tolist())
    return solver.integrate(Problem(denoiser, times, **options), x)


@pytest.fixture(scope="module")
def references():
    fine = DPMSolver(3, "singlestep", solver_type="taylor")
    made = {}
    for name, (process, start, end) in WORLDS.items():
        x = START * process.level(start).sigma
        made[name] = run(fine, mixture(process), grids.log_snr(process, 800, start=start, end=end), x)
    return made


def slope(solver, world, references, few=60, many=200):
    process, start, end = WORLDS[world]
    denoiser, x = mixture(process), START * process.level(start).sigma
    errors = [
        (run(solver, denoiser, grids.log_snr(process, n, start=start, end=end), x) - references[world]).square().mean()
        for n in (few, many)
    ]
    return 0.5 * math.log(errors[0] / errors[1]) / math.log(many / few)


@pytest.mark.parametrize("world", list(WORLDS))
@pytest.mark.parametrize("form", ["data", "noise"])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_order(order, variant, form, world, references):
    assert slope(UniPC(order, variant, form), world, references) == pytest.approx(order, abs=0.15)


def test_published_names_count_the_predictor(references):
    """UniPC-1 and -2 converge with orders 2 and 3; a last step of lower order is what limits UniPC-3."""
    assert slope(UniPC.published(1), "VP", references) == pytest.approx(2.0, abs=0.15)
    assert slope(UniPC.published(2), "VP", references) > 2.8
    assert slope(UniPC(4), "VP", references, 40, 100) > 3.4
    assert slope(UniPC.published(3), "sigma", references) < 2.6


def test_more_orders_are_more_accurate(references):
    process, start, end = WORLDS["VP"]
    times = grids.log_snr(process, 60, start=start, end=end)
    errors = [(run(UniPC(k), mixture(process), times, START) - references["VP"]).abs().max() for k in range(1, 6)]
    assert all(b < a / 2 for a, b in itertools.pairwise(errors[:4]))
    assert torch.isfinite(run(UniPC(6), mixture(process), times, START)).all()


def test_first_order_is_ddim():
    denoiser, times = mixture(VP()), grids.uniform(VP(), 9, end=1e-3)
    assert (run(UniPC(1), denoiser, times, START) - run(DDIM(), denoiser, times, START)).abs().max() < 1e-14


SOLVERS = [UniPC(2), UniPC(3, "bh1"), UniPC(3), UniPC(4), UniPC.published(2), UniPC.published(3, "bh1", "noise")]


@pytest.mark.parametrize("solver", SOLVERS)
def test_invariance_of_the_process(solver):
    levels = torch.linspace(-2.5, 3.0, 11, dtype=torch.float64)
    results = []
    for process in (VP(), VE(), EDM(), RectifiedFlow(), Cosine()):
        times = process.time(levels)
        alpha = process.alpha(times)
        results.append(run(solver, mixture(process), times, START * alpha[0] * math.exp(2.5)) / alpha[-1])
    for result in results[1:]:
        assert (result - results[0]).abs().max() < 1e-10


def test_endpoint_processes_are_gaussian_in_the_shifted_variable():
    process, vp = MeanReverting(0.5), VP()
    y = normal((8, 4), 9, dtype=torch.float64)
    levels = torch.linspace(process.level(0.9).log_snr, process.level(0.1).log_snr, 8, dtype=torch.float64)
    times = process.time(levels)
    x = START * process.sigma(times)[0]
    shifted = run(UniPC(3), mixture(process), times, x + process.beta(times)[0] * y, cond={"y": y})
    # Between steps the state is a prediction in the shifted variable too: every line has its share of y.
    plain = run(UniPC(3), mixture(vp), vp.time(levels), x / process.alpha(times)[0] * vp.alpha(vp.time(levels))[0])
    expected = plain / vp.alpha(vp.time(levels))[-1] * process.alpha(times)[-1] + process.beta(times)[-1] * y
    assert (shifted - expected).abs().max() < 1e-10


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("solver", [s for s in SOLVERS if s.form == "data"])
@pytest.mark.parametrize("process", [RectifiedFlow(), VP()])
def test_infinite_ends(solver, steps, process):
    denoiser = CountingDenoiser(mixture(process))
    times = grids.uniform(process, steps)
    assert torch.isfinite(run(solver, denoiser, times, START)).all()
    assert denoiser.evaluations == steps * solver.evaluations
    assert run(solver, mixture(process), times, START[:1]).shape == (1, 4)
    assert run(solver, mixture(process), times, START[:0]).shape == (0, 4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_own_times_of_samples_equal_separate_runs(solver):
    process = VP()
    grid = torch.stack(
        [grids.log_snr(process, 12, start=s, end=e) for s, e in ((1.0, 0.0), (0.9, 1e-3), (0.5, 0.1))], 1
    )
    together = run(solver, mixture(process), grid, START[:3])
    for i in range(3):
        alone = run(solver, mixture(process), grid[:, i], START[i : i + 1])
        assert (together[i] - alone[0]).abs().max() < 1e-12


@pytest.mark.parametrize("solver", [UniPC(2), UniPC(3)])
def test_inversion_converges(solver):
    process = VP()
    denoiser = GaussianDenoiser(MEANS[0], 0.5, process)
    exact = denoiser.flow(START, 1e-3, 1.0)
    errors = [
        (run(solver, denoiser, grids.log_snr(process, n, end=1e-3).flip(0), START) - exact).abs().max()
        for n in (40, 80)
    ]
    assert errors[1] < errors[0] / 2 ** (solver.order - 0.4)


def test_a_constant_denoiser_is_first_order():
    denoiser = tw.FunctionDenoiser(lambda x, t: MEANS[:1].expand_as(x), VP())
    times = grids.uniform(VP(), 8)
    first = run(DDIM(), denoiser, times, START)
    assert (run(UniPC(4), denoiser, times, START) - first).abs().max() < 1e-13


def test_refusals():
    for options in ({"order": 0}, {"order": 7}, {"variant": "bh3"}, {"form": "velocity"}):
        with pytest.raises(InputError):
            UniPC(**options)
    with pytest.raises(InputError):
        UniPC.published(0)
    with pytest.raises(IncompatibleError, match="alpha = 0"):
        tw.sample(mixture(RectifiedFlow()), 4, solver=UniPC(form="noise"), steps=5)
