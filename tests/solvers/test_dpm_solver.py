import math

import numpy as np
import pytest
import torch

import tweed as tw
from tweed import CountingDenoiser, GaussianDenoiser, MixtureDenoiser, grids
from tweed.core.processes import EDM, OUVE, VE, VP, Cosine, MeanReverting, RectifiedFlow
from tweed.core.random import normal
from tweed.errors import IncompatibleError, InputError
from tweed.solvers import DDIM, DPMSolver, Problem
from tweed.solvers.exponential import phi

MEANS = 0.7 * normal((3, 4), 4, dtype=torch.float64)
VARIANCES = torch.tensor([0.3, 0.4, 0.5])
START = normal((8, 4), 1, dtype=torch.float64)
WORLDS = {"VP": (VP(), 1.0, 1e-3), "sigma": (EDM(), 14.6 / 80, 0.03 / 80)}


def mixture(process):
    return MixtureDenoiser(MEANS, VARIANCES, torch.tensor([0.3, 0.3, 0.4]), process)


def run(solver, denoiser, times, x, **options):
    times = times if isinstance(times, torch.Tensor) and times.ndim > 1 else tuple(torch.as_tensor(times).tolist())
    return solver.integrate(Problem(denoiser, times, **options), x)


def fitted_slope(steps, errors):
    x = torch.tensor(steps, dtype=torch.float64).log()
    y = torch.tensor(errors, dtype=torch.float64).log()
    return -(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()).item()


@pytest.fixture(scope="module")
def references():
    fine = DPMSolver(3, "singlestep", solver_type="taylor")
    made = {}
    for name, (process, start, end) in WORLDS.items():
        x = START * process.level(start).sigma
        made[name] = run(fine, mixture(process), grids.log_snr(process, 600, start=start, end=end), x)
    return made


def slope(solver, world, references, steps=(60, 200)):
    process, start, end = WORLDS[world]
    denoiser, x = mixture(process), START * process.level(start).sigma
    errors = []
    for n in steps:
        result = run(solver, denoiser, grids.log_snr(process, n, start=start, end=end), x)
        errors.append((result - references[world]).square().mean().sqrt().item())
    return fitted_slope(steps, errors)


@pytest.mark.parametrize("world", list(WORLDS))
@pytest.mark.parametrize("form", ["data", "noise"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("kind", ["multistep", "singlestep"])
def test_order(order, kind, form, world, references):
    # From sigma = 14.6 the published start-up, of lower order, shows at order 3; see the next test.
    start = "singlestep" if (kind, order, world) == ("multistep", 3, "sigma") else "lower"
    solver = DPMSolver(order, kind, form, start=start)
    assert slope(solver, world, references) == pytest.approx(order, abs=0.15)


def test_start_limits_order_three(references):
    assert slope(DPMSolver(3), "sigma", references, (160, 320)) < 2.6
    assert slope(DPMSolver(3, start="singlestep"), "sigma", references, (160, 320)) > 2.85


@pytest.mark.parametrize("form", ["data", "noise"])
def test_published_third_order_multistep_is_of_second_order(form, references):
    solver = DPMSolver(3, form=form, solver_type="midpoint", start="singlestep")
    assert slope(solver, "sigma", references) == pytest.approx(2.0, abs=0.15)


@pytest.mark.parametrize(
    "solver", [DPMSolver(2, solver_type="taylor"), DPMSolver(2, "singlestep", solver_type="taylor")]
)
def test_taylor_order_two(solver, references):
    assert slope(solver, "VP", references) == pytest.approx(2.0, abs=0.15)


def test_order_against_the_exact_flow():
    process = VP()
    denoiser = GaussianDenoiser(MEANS[0], torch.tensor([0.2, 0.5, 1.0, 2.0]), process)
    exact = denoiser.flow(START, 1.0, 1e-3)
    for solver in (DPMSolver(2), DPMSolver(3), DPMSolver(3, "singlestep", "noise")):
        steps = (60, 200)
        errors = [
            (run(solver, denoiser, grids.log_snr(process, n, end=1e-3), START) - exact).abs().max().item()
            for n in steps
        ]
        # On one Gaussian multistep 3 gains an order.
        assert solver.order - 0.15 < fitted_slope(steps, errors) < solver.order + 1.4


@pytest.mark.parametrize("solver", [DPMSolver(2), DPMSolver(3), DPMSolver(3, "singlestep"), DPMSolver(2, form="noise")])
def test_inversion_converges_and_returns(solver):
    process = VP()
    denoiser = GaussianDenoiser(MEANS[0], 0.5, process)
    exact = denoiser.flow(START, 1e-3, 1.0)
    errors = [
        (run(solver, denoiser, grids.log_snr(process, n, end=1e-3).flip(0), START) - exact).abs().max()
        for n in (40, 80)
    ]
    assert errors[1] < errors[0] / 2 ** (solver.order - 0.4)
    x0 = denoiser.sample(8, 0)
    times = grids.log_snr(process, 200, end=1e-3)
    back = tw.sample(denoiser, tw.invert(denoiser, x0, solver=solver, times=times), solver=solver, times=times)
    assert (back - x0).abs().max() < 4e-3


@pytest.mark.parametrize("form", ["data", "noise"])
@pytest.mark.parametrize("kind", ["multistep", "singlestep"])
def test_first_order_is_ddim(form, kind):
    denoiser, times = mixture(VP()), grids.uniform(VP(), 9, end=1e-3)
    assert (
        run(DPMSolver(1, kind, form), denoiser, times, START) - run(DDIM(), denoiser, times, START)
    ).abs().max() < 1e-14


def test_first_order_sde_is_ddpm():
    denoiser, times = mixture(VP()), grids.uniform(VP(), 9)
    difference = run(DPMSolver(1, eta=1.0), denoiser, times, START) - run(DDIM(eta=1.0), denoiser, times, START)
    assert difference.abs().max() < 1e-14


SOLVERS = [
    DPMSolver(2),
    DPMSolver(3),
    DPMSolver(3, start="singlestep"),
    DPMSolver(2, eta=0.7),
    DPMSolver(3, form="noise"),
    DPMSolver(3, "singlestep"),
    DPMSolver(2, "singlestep", "noise"),
    DPMSolver(3, "singlestep", group=True),
]


@pytest.mark.parametrize("solver", SOLVERS)
def test_invariance_of_the_process(solver):
    """The same levels of log-SNR give the same `x / alpha`, whatever the process."""
    levels = torch.linspace(-2.5, 3.0, 11, dtype=torch.float64)
    results = []
    for process in (VP(), VE(), EDM(), RectifiedFlow(), Cosine()):
        times = process.time(levels)
        alpha = process.alpha(times)
        results.append(run(solver, mixture(process), times, START * alpha[0] * math.exp(2.5)) / alpha[-1])
    for result in results[1:]:
        assert (result - results[0]).abs().max() < 1e-10


@pytest.mark.parametrize("process", [MeanReverting(0.5), OUVE()])
@pytest.mark.parametrize("solver", SOLVERS[:-1])
def test_endpoint_processes_are_gaussian_in_the_shifted_variable(process, solver):
    y = normal((8, 4), 9, dtype=torch.float64)
    levels = torch.linspace(process.level(0.9).log_snr, process.level(0.1).log_snr, 8, dtype=torch.float64)
    times = process.time(levels)
    x = START * process.sigma(times)[0]
    shifted = run(solver, mixture(process), times, x + process.beta(times)[0] * y, cond={"y": y})
    vp = VP()
    plain = run(solver, mixture(vp), vp.time(levels), x / process.alpha(times)[0] * vp.alpha(vp.time(levels))[0])
    expected = plain / vp.alpha(vp.time(levels))[-1] * process.alpha(times)[-1] + process.beta(times)[-1] * y
    assert (shifted - expected).abs().max() < 1e-10


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("solver", [s for s in SOLVERS if s.form == "data"])
@pytest.mark.parametrize("process", [RectifiedFlow(), Cosine(), VP()])
def test_infinite_ends(solver, steps, process):
    denoiser = CountingDenoiser(mixture(process))
    times = grids.uniform(process, steps)
    result = run(solver, denoiser, times, START)
    assert torch.isfinite(result).all()
    assert denoiser.evaluations == solver.table(process, tuple(times.tolist())).evaluations
    assert run(solver, mixture(process), times, START[:1]).shape == (1, 4)
    assert run(solver, mixture(process), times, START[:0]).shape == (0, 4)


def test_last_step_to_clean_data_is_the_estimate():
    process = RectifiedFlow()
    states = tw.sample(mixture(process), START, solver=DPMSolver(3), steps=6, trajectory=True)
    expected = mixture(process)(states[-2], 1 / 6).x0
    assert (states[-1] - expected).abs().max() < 1e-12


def test_evaluations():
    process, steps = VP(), 11
    times = grids.log_snr(process, steps, end=1e-3)
    for solver in SOLVERS:
        denoiser = CountingDenoiser(mixture(process))
        run(solver, denoiser, times, START)
        assert denoiser.evaluations == steps * solver.evaluations + (solver.start == "singlestep")


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("end", [0.0, 1e-3])
def test_own_times_of_samples_equal_separate_runs(solver, end):
    process = VP()
    starts = (1.0, 0.9, 0.5)
    grid = torch.stack([grids.log_snr(process, 12, start=s, end=end if s < 0.95 else 1e-3) for s in starts], 1)
    x = START[:3]
    together = run(solver, mixture(process), grid, x)
    for i in range(3):
        alone = run(solver, mixture(process), grid[:, i], x[i : i + 1], index=i)
        if solver.group and end == 0.0:
            continue  # groups are common to a batch, and one sample's grid has an infinite end
        assert (together[i] - alone[0]).abs().max() < 1e-12


@pytest.mark.parametrize("solver", [DPMSolver(3), DPMSolver(3, "singlestep"), DPMSolver(2, eta=1.0)])
def test_own_times_from_infinite_starts(solver):
    process = RectifiedFlow()
    grid = torch.stack([grids.uniform(process, 8, start=s) for s in (1.0, 0.8)], 1)
    together = run(solver, mixture(process), grid, START[:2])
    for i in range(2):
        alone = run(solver, mixture(process), grid[:, i], START[i : i + 1], index=i)
        assert (together[i] - alone[0]).abs().max() < 1e-12


def variance_ratio(solver, process, times, variance):
    """The exact variance that the solver gives N(0, variance) data, over the true one: everything is linear."""
    table = solver.table(process, tuple(times.tolist()))
    x = torch.zeros(len(times), dtype=torch.float64)
    true = [(level.alpha**2 * variance + level.sigma**2, level.alpha) for level in map(process.level, times.tolist())]
    x[0] = true[0][0] ** 0.5
    memory = []
    for i, (row,) in enumerate(table.steps):
        memory = [true[i][1] * variance / true[i][0] * x, *memory]
        x = row.state * x + sum(b * m for b, m in zip(row.estimates, memory, strict=False))
        x[i + 1] += row.noise
    return (x @ x).item() / true[-1][0]


@pytest.mark.parametrize(("order", "eta"), [(1, 0.0), (1, 0.4), (1, 1.0), (2, 0.0), (2, 0.4), (2, 1.0), (3, 1.0)])
def test_variance_converges(order, eta):
    steps = (80, 160, 320)
    process = VP()
    times = [grids.log_snr(process, n, end=1e-3) for n in steps]
    errors = [abs(variance_ratio(DPMSolver(order, eta=eta), process, t, 0.3) - 1) for t in times]
    assert fitted_slope(steps, errors) == pytest.approx(min(order, 2), abs=0.2)
    assert errors[-1] < 0.04 / order**3


def test_sampled_variance():
    process, n = VP(), 40_000
    denoiser = GaussianDenoiser(torch.zeros(1), 0.3, process)
    solver, times = DPMSolver(2, eta=1.0), grids.log_snr(process, 60, end=1e-3)
    x = run(solver, denoiser, times, normal((n, 1), 4, dtype=torch.float64), seed=8)
    level = process.level(1e-3)
    expected = variance_ratio(solver, process, times, 0.3) * (level.alpha**2 * 0.3 + level.sigma**2)
    assert x.var().item() == pytest.approx(expected, rel=4 * (2 / n) ** 0.5)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_sde_transition_is_exact_for_a_constant_denoiser(eta):
    """Data at one point: D is constant, and any number of steps gives the exact marginal."""
    process, times = VP(), grids.log_snr(VP(), 5, end=1e-3)
    for order in (1, 2, 3):
        assert variance_ratio(DPMSolver(order, eta=eta), process, times, 0.0) == pytest.approx(1.0, abs=1e-12)


def test_transition_is_the_step():
    problem = Problem(mixture(VP()), tuple(grids.log_snr(VP(), 6, end=1e-3).tolist()))
    solver = DPMSolver(2, eta=1.0)
    state = solver.init(problem, START)
    for i in range(6):
        transition, state = solver.transition(problem, state, i), solver.step(problem, state, i)
        assert (state.x - transition.mean - transition.std * problem.noise(START, i)).abs().max() < 1e-14


@pytest.mark.parametrize("kind", ["multistep", "singlestep"])
@pytest.mark.parametrize("form", ["data", "noise"])
def test_taylor_is_exact_on_estimates_linear_in_log_snr(kind, form):
    process, slope = VP(), normal((1, 4), 6, dtype=torch.float64)
    target = tw.targets.Data() if form == "data" else tw.targets.Noise()
    denoiser = tw.FunctionDenoiser(lambda x, t: (1 + process.level(t).log_snr) * slope.expand_as(x), process, target)
    coarse, fine = grids.log_snr(process, 6, end=1e-2), grids.log_snr(process, 600, end=1e-2)
    # Behind the first step, which has no past.
    results = {}
    for solver_type in ("taylor", "midpoint"):
        solver = DPMSolver(2, kind, form, solver_type, lower_order_final=False)
        problem = Problem(denoiser, tuple(coarse.tolist()))
        state = solver.step(problem, solver.init(problem, START), 0)
        exact = run(DPMSolver(2, "singlestep", form, "taylor"), denoiser, fine[100:], state.x)
        for i in range(1, 6):
            state = solver.step(problem, state, i)
        results[solver_type] = (state.x - exact).abs().max()
    assert results["taylor"] < 1e-10
    assert results["midpoint"] > 1e-3


def test_a_constant_denoiser_is_first_order():
    denoiser = tw.FunctionDenoiser(lambda x, t: MEANS[:1].expand_as(x), VP())
    times = grids.uniform(VP(), 8)
    first = run(DPMSolver(1), denoiser, times, START)
    for solver in (DPMSolver(2), DPMSolver(3), DPMSolver(3, "singlestep")):
        assert (run(solver, denoiser, times, START) - first).abs().max() < 1e-13


def test_lower_order_final():
    process = VP()
    denoiser = mixture(process)
    for grid in (grids.uniform, grids.log_snr):
        times = grid(process, 20, end=1e-3)
        default, on, off = (run(DPMSolver(3, lower_order_final=o), denoiser, times, START) for o in (None, True, False))
        # A last step ten times as long as the one before is not extrapolated into; even grids keep their order.
        assert torch.equal(default, on if grid is grids.uniform else off)
        fine = run(DPMSolver(3), denoiser, grids.log_snr(process, 300, end=1e-3), START)
        if grid is grids.uniform:
            assert (default - fine).square().mean() < 0.5 * (off - fine).square().mean()


def test_fewer_steps_than_ddim():
    process = VP()
    means = normal((8, 32), 5, dtype=torch.float64)
    denoiser = MixtureDenoiser(means, 0.05 * normal((8,), 6).mul(0.5).exp(), None, process)
    x = normal((32, 32), 1, dtype=torch.float64)
    exact = run(DPMSolver(3, "singlestep"), denoiser, grids.log_snr(process, 150, end=1e-3), x)

    def error(solver, n):
        result = run(solver, denoiser, grids.log_snr(process, n, end=1e-3), x)
        # The median: a start on the border of two modes may go either way.
        return (result - exact).square().mean(1).sqrt().median()

    for order in (2, 3):
        assert error(DPMSolver(order), 20) < 0.2 * error(DDIM(), 20)


def test_phi():
    z = torch.cat([-torch.logspace(-8, 2, 60), torch.logspace(-8, 1.5, 60), torch.zeros(1)]).double()
    nodes, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(100))
    u, w = 0.5 + 0.5 * nodes, 0.5 * weight
    for k in range(1, 6):
        integral = (((1 - u) * z[:, None]).exp() * u ** (k - 1) / math.factorial(k - 1) * w).sum(-1)
        assert ((phi(k, z) - integral) / integral).abs().max() < 2e-13


@pytest.mark.parametrize(
    "options",
    [
        {"order": 4},
        {"kind": "multi"},
        {"form": "velocity"},
        {"solver_type": "heun"},
        {"eta": 1.5},
        {"eta": 1.0, "kind": "singlestep"},
        {"group": True},
        {"start": "singlestep", "kind": "singlestep"},
    ],
)
def test_refusals(options):
    with pytest.raises(InputError):
        DPMSolver(**options)


def test_noise_form_cannot_leave_pure_noise():
    with pytest.raises(IncompatibleError, match="alpha = 0"):
        tw.sample(mixture(RectifiedFlow()), 4, solver=DPMSolver(form="noise"), steps=5)


def test_two_sided_processes_are_refused():
    process = tw.processes.Interpolant()
    with pytest.raises(IncompatibleError):
        DPMSolver().check(process)
