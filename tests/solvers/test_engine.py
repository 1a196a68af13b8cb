"""The table engine, and what holds for every solver that runs on it or beside it."""

import inspect
import itertools
from functools import partial

import pytest
import torch
from solver_cases import END, START, mixture, noisy, run

import tweed
from tweed import processes, solvers, targets
from tweed.core import grids
from tweed.errors import IncompatibleError, TweedError
from tweed.solvers import Problem, Row, Solver, State, Table, TableSolver
from tweed.solvers.euler import ODESolver


def public_solvers():
    """Every solver that `tweed.solvers` offers, with its default options."""
    found = {}
    for name in solvers.__all__:
        entry = getattr(solvers, name)
        if not callable(entry) or inspect.isabstract(entry):
            continue
        if inspect.isclass(entry) and not issubclass(entry, Solver):
            continue
        needed = [p for p in inspect.signature(entry).parameters.values() if p.default is p.empty]
        if needed:
            continue
        solver = entry()
        if isinstance(solver, Solver):
            found[name] = solver
    return found


ALL = public_solvers()
FIXED = {name: solver for name, solver in ALL.items() if not solver.adaptive}


def follows(solver, process):
    try:
        solver.check(process)
    except IncompatibleError:
        return False
    return True


VP = processes.VP()
GAUSSIAN = {name: solver for name, solver in FIXED.items() if follows(solver, VP)}
TABLES = {name: solver for name, solver in GAUSSIAN.items() if isinstance(solver, TableSolver)}
DETERMINISTIC = {name: solver for name, solver in TABLES.items() if not solver.stochastic}
STOCHASTIC = {"DDPM": solvers.DDPM(), "churn": solvers.Heun(churn=4.0), "half": solvers.DDIM(eta=0.5)}
TIMES = (0.9, 0.7, 0.4, 0.2, 0.05)


def elementwise(x, t, **cond):
    """A network without reductions: what it answers for a sample cannot depend on the batch."""
    t = t.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    return x / (1 + x * x) * (1 - t) + 0.25 * t


def network(process=VP, target=None):
    return tweed.NetworkDenoiser(elementwise, process, target or targets.Data())


def by_name(table):
    return pytest.mark.parametrize("solver", [pytest.param(s, id=n) for n, s in table.items()])


def test_every_family_of_solver_is_found():
    assert {"DDIM", "DDPM", "Euler", "Heun", "RungeKutta", "AdamsBashforth", "LMS", "PNDM", "DPM2"} <= set(
        DETERMINISTIC
    ) | {"DDPM"}
    assert len(GAUSSIAN) >= 9


class TestTable:
    def test_two_stages_equal_the_textbook_loop_in_time(self):
        denoiser = mixture()
        x = expected = noisy(VP, START)
        for t, s in itertools.pairwise(TIMES):
            h = s - t
            k1 = denoiser(expected, t).velocity
            k2 = denoiser(expected + h * 2 / 3 * k1, t + h * 2 / 3).velocity
            expected = expected + h * (k1 / 4 + 3 * k2 / 4)
        got = run(solvers.RungeKutta("ralston2"), denoiser, TIMES, x)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)

    def test_two_stages_equal_the_textbook_loop_in_noise_level(self):
        denoiser, x = mixture(), noisy(VP, START)
        expected = x
        for t, s in itertools.pairwise(TIMES):
            a, b, r, q = VP.alpha(t), VP.alpha(s), VP.sigma(t) / VP.alpha(t), VP.sigma(s) / VP.alpha(s)
            middle = VP.time(-(0.5 * (r + q)).log())
            k1 = denoiser(expected, t).eps
            k2 = denoiser(VP.alpha(middle) * (expected / a + 0.5 * (q - r) * k1), middle).eps
            expected = b * (expected / a + (q - r) * k2)
        torch.testing.assert_close(
            run(solvers.RungeKutta("midpoint", "noise"), denoiser, TIMES, x), expected, rtol=0, atol=1e-12
        )

    def test_any_table_is_the_sum_that_it_says(self):
        rows = (
            (Row(0.9, 0.8, (0.3,)), Row(0.8, 1.1, (0.2, -0.1), noise=0.5)),
            (Row(0.5, 1.0, noise=0.1, evaluate=False), Row(0.4, 0.9, (0.1, 0.2, 0.3))),
        )

        class Given(TableSolver):
            order = evaluations = 1  # type: ignore[assignment]

            def table(self, process, times):
                return Table("data", rows)

        denoiser, x = mixture(), noisy(VP, START)
        problem = Problem(denoiser, (0.9, 0.5, 0.1), seed=3)
        e0 = denoiser(x, 0.9).x0
        x1 = 0.8 * x + 0.3 * e0
        e1 = denoiser(x1, 0.8).x0
        x2 = 1.1 * x1 + 0.2 * e1 - 0.1 * e0 + 0.5 * problem.noise(x, 0, 1)
        x3 = x2 + 0.1 * problem.noise(x, 1, 0)
        e2 = denoiser(x3, 0.4).x0
        expected = 0.9 * x3 + 0.1 * e2 + 0.2 * e1 + 0.3 * e0
        torch.testing.assert_close(Given().integrate(problem, x), expected, rtol=0, atol=1e-14)

    @by_name(DETERMINISTIC)
    def test_evaluations_are_what_the_solver_says(self, solver):
        times = grids.log_snr(VP, 12, start=START, end=END)
        counted = tweed.CountingDenoiser(mixture())
        run(solver, counted, times, noisy(VP, START))
        levels = tuple(times.tolist())
        assert counted.evaluations == solver.table(VP, levels).evaluations
        # Full steps cost what is claimed; only starts and ends may differ.
        middle = solver.table(VP, levels).steps[6]
        if not getattr(solver, "group", False):
            assert sum(row.evaluate for row in middle) == solver.evaluations

    @by_name(DETERMINISTIC)
    def test_integrate_equals_its_steps(self, solver):
        problem, x = Problem(mixture(), TIMES), noisy(VP, START)
        state = solver.init(problem, x)
        for i in range(problem.steps):
            state = solver.step(problem, state, i)
        assert torch.equal(solver.finish(problem, state), solver.integrate(problem, x))


class TestDevice:
    """A tensor on the meta device has no value, so that whatever asks for one (item, bool, a copy) fails."""

    @by_name(GAUSSIAN)
    def test_no_value_is_read_in_the_loop(self, solver):
        x = torch.empty(3, 2, 4, 4, device="meta")
        result = solver.integrate(Problem(network(), TIMES), x)
        assert result.shape == x.shape
        assert result.device.type == "meta"

    @by_name(TABLES)
    def test_no_value_is_read_with_times_of_its_own_a_sample(self, solver):
        x = torch.empty(3, 5, device="meta")
        times = torch.tensor(TIMES, dtype=torch.float64)[:, None].expand(-1, 3)
        assert solver.integrate(Problem(network(), times), x).device.type == "meta"

    @by_name({n: s for n, s in TABLES.items() if isinstance(s, ODESolver | solvers.DDIM)})
    def test_nor_to_build_the_table_of_such_times(self, solver):
        x = torch.empty(3, 5, device="meta")
        times = torch.empty(6, 3, dtype=torch.float64, device="meta")
        assert solver.integrate(Problem(network(), times), x).device.type == "meta"

    def test_the_meta_device_does_catch_a_read(self):
        class Reading(solvers.DDIM):
            def step(self, problem, state, i):
                if state.x.abs().max() > 0:
                    return state
                return super().step(problem, state, i)

            integrate = Solver.integrate

        with pytest.raises((RuntimeError, NotImplementedError)):
            Reading().integrate(Problem(network(), TIMES), torch.empty(3, 2, device="meta"))

    @pytest.mark.parametrize("solver", [solvers.Heun(), solvers.AdamsBashforth(3)], ids=repr)
    def test_the_loop_is_captured_whole(self, solver):
        problem, x = Problem(network(), TIMES), noisy(VP, START).float()
        expected = solver.integrate(problem, x)
        memory = solver.init(problem, x).memory

        def loop(x):
            state = State(x, memory)
            for i in range(problem.steps):
                state = solver.step(problem, state, i)
            return state.x

        torch._dynamo.reset()
        captured = torch.compile(loop, backend="eager", fullgraph=True)
        torch.testing.assert_close(captured(x), expected)


class TestGradients:
    @pytest.mark.parametrize(
        "solver",
        [solvers.DDIM(), solvers.Heun(), solvers.RungeKutta("rk4"), solvers.AdamsBashforth(3), solvers.DDPM()],
        ids=repr,
    )
    def test_gradients_through_sampling_equal_finite_differences(self, solver):
        x = noisy(VP, START, n=2).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: run(solver, mixture(), TIMES, x), (x,), eps=1e-6, atol=1e-7)

    def test_gradients_reach_the_network(self):
        weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        denoiser = tweed.FunctionDenoiser(lambda x, t: weight * x, VP)
        result = run(solvers.Heun(), denoiser, TIMES, noisy(VP, START)).square().sum()
        (gradient,) = torch.autograd.grad(result, weight)
        values = [
            run(solvers.Heun(), tweed.FunctionDenoiser(lambda x, t, w=w: w * x, VP), TIMES, noisy(VP, START))
            .square()
            .sum()
            for w in (0.7 - 1e-6, 0.7 + 1e-6)
        ]
        assert gradient.item() == pytest.approx((values[1] - values[0]).item() / 2e-6, rel=1e-6)


class TestBatches:
    @by_name(DETERMINISTIC | STOCHASTIC)
    def test_a_sample_does_not_depend_on_its_batch(self, solver):
        start = noisy(VP, 0.9, n=64, shape=(3, 5)).float()
        problem = partial(Problem, network(), TIMES, seed=5)
        whole = solver.integrate(problem(index=100), start)
        seven = solver.integrate(problem(index=100 + 20), start[20:27])
        assert torch.equal(seven, whole[20:27])
        for i in (0, 33, 63):
            assert torch.equal(solver.integrate(problem(index=100 + i), start[i : i + 1]), whole[i : i + 1])

    @by_name(GAUSSIAN)
    def test_an_empty_batch_stays_empty(self, solver):
        assert solver.integrate(Problem(network(), TIMES), torch.empty(0, 3)).shape == (0, 3)

    @pytest.mark.parametrize("process", [VP, processes.RectifiedFlow(), processes.EDM()], ids=repr)
    @by_name(TABLES)
    def test_times_of_its_own_a_sample_equal_separate_runs(self, solver, process):
        # From the very end (alpha = 0 for a rectified flow) and from inside, to clean data and to some noise.
        grid_a = torch.tensor([1.0, 0.8, 0.5, 0.3, 0.1, 0.02], dtype=torch.float64)
        grid_b = torch.tensor([0.7, 0.6, 0.45, 0.2, 0.05, 0.0], dtype=torch.float64)
        grid_c = torch.tensor([1.0, 0.6, 0.45, 0.2, 0.05, 0.0], dtype=torch.float64)
        x = noisy(process, 0.7, n=3)
        denoiser = mixture(process)
        try:
            alone = [run(solver, denoiser, g, x[i : i + 1], index=i) for i, g in enumerate((grid_a, grid_b, grid_c))]
        except TweedError:
            pytest.skip("the solver refuses this end of the process")
        together = run(solver, denoiser, torch.stack((grid_a, grid_b, grid_c), 1), x)
        assert torch.isfinite(together).all()
        scale = process.level(1.0).sigma
        torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-10 * scale)


class TestTypes:
    @by_name(GAUSSIAN)
    def test_float64_stays_float64(self, solver):
        x = noisy(VP, START)
        assert solver.integrate(Problem(network(), TIMES), x).dtype == torch.float64

    def test_a_bfloat16_network_moves_a_float32_state(self):
        layer = torch.nn.Linear(2, 2).bfloat16()
        seen = []

        class Half(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = layer

            def forward(self, x, t):
                seen.append(x.dtype)
                return self.layer(x)

        denoiser = tweed.NetworkDenoiser(Half(), VP, targets.Data())
        result = tweed.sample(denoiser, noisy(VP, 1.0).bfloat16(), solver=solvers.Heun(), steps=4)
        assert set(seen) == {torch.bfloat16}
        assert result.dtype == torch.float32


class TestTransitions:
    @pytest.mark.parametrize("solver", [solvers.DDPM(), solvers.DDIM(eta=0.3)], ids=repr)
    def test_a_transition_is_the_gaussian_that_the_step_draws_from(self, solver):
        problem, x = Problem(mixture(), TIMES, seed=2), noisy(VP, START)
        state = solver.init(problem, x)
        for i in range(problem.steps):
            transition = solver.transition(problem, state, i)
            following = solver.step(problem, state, i)
            z = problem.noise(x, i, 0)
            torch.testing.assert_close(following.x, transition.mean + transition.std * z, rtol=0, atol=1e-14)
            normal = torch.distributions.Normal(transition.mean, transition.std)
            torch.testing.assert_close(transition.log_prob(following.x), normal.log_prob(following.x).sum(1))
            state = following

    def test_a_transition_with_times_of_its_own_a_sample(self):
        times = torch.tensor([[0.9, 0.8], [0.5, 0.3]], dtype=torch.float64)
        problem, x = Problem(mixture(), times), noisy(VP, START, n=2)
        solver = solvers.DDPM()
        transition = solver.transition(problem, solver.init(problem, x), 0)
        for i in range(2):
            one = Problem(mixture(), tuple(times[:, i].tolist()))
            alone = solver.transition(one, solver.init(one, x[i : i + 1]), 0)
            torch.testing.assert_close(transition.mean[i], alone.mean[0])
            torch.testing.assert_close(transition.log_prob(x)[i], alone.log_prob(x[i : i + 1])[0])

    def test_churn_is_no_gaussian_transition(self):
        solver = solvers.Heun(churn=4.0)
        problem, x = Problem(mixture(), TIMES), noisy(VP, START)
        with pytest.raises(IncompatibleError, match="no Gaussian transition"):
            solver.transition(problem, solver.init(problem, x), 0)

    @by_name(STOCHASTIC)
    def test_seeds_differ_and_repeat(self, solver):
        x = noisy(VP, START)
        one, again, two = (run(solver, mixture(), TIMES, x, seed=seed) for seed in (0, 0, 1))
        assert torch.equal(one, again)
        assert (one - two).abs().min() > 1e-6
