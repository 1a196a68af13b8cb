"""Linear multistep methods: their weights, their orders, and PNDM as published."""

import itertools

import pytest
import torch
from scipy.integrate import quad
from solver_cases import END, START, case, flow, mixture, noisy, run, slope

import tweed
from tweed import processes, solvers, targets
from tweed.core import grids
from tweed.errors import InputError
from tweed.solvers.adams import _UNIFORM, adams_weights

VP = processes.VP()


class TestWeights:
    @pytest.mark.parametrize("order", [1, 2, 3, 4])
    def test_on_a_uniform_grid_they_are_the_classical_ones(self, order):
        assert adams_weights([-float(j) for j in range(order)]) == pytest.approx(list(_UNIFORM[order - 1]), abs=1e-14)

    def test_on_any_grid_they_are_the_integrals_of_the_lagrange_polynomials(self):
        nodes = [0.0, -0.3, -1.7, -2.0, -4.1]

        def lagrange(z, j):
            value = 1.0
            for m, other in enumerate(nodes):
                value *= 1.0 if m == j else (z - other) / (nodes[j] - other)
            return value

        expected = [quad(lagrange, 0, 1, args=(j,), epsabs=1e-13)[0] for j in range(5)]
        assert adams_weights(nodes) == pytest.approx(expected, abs=1e-12)

    def test_a_node_at_infinity_lowers_the_order(self):
        inf = float("inf")
        assert adams_weights([0.0, -0.7, -inf]) == pytest.approx([*adams_weights([0.0, -0.7]), 0.0])
        nodes = [torch.tensor([0.0, 0.0]), torch.tensor([-0.7, -0.7]), torch.tensor([-inf, -1.0])]
        rows = torch.stack(adams_weights([n.double() for n in nodes]))
        assert rows[:, 0].tolist() == pytest.approx([*adams_weights([0.0, -0.7]), 0.0], abs=1e-6)
        assert rows[:, 1].tolist() == pytest.approx(adams_weights([0.0, -0.7, -1.0]), abs=1e-6)


class TestAdamsBashforth:
    @pytest.mark.parametrize("form", ["velocity", "noise"])
    @pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
    def test_order(self, order, form):
        solver = solvers.AdamsBashforth(order, form, start="runge-kutta")
        denoiser, x, exact = case()
        counts = (80, 160) if order < 4 else (160, 320)
        assert slope(solver, denoiser, x, exact, grids.log_snr, counts) == pytest.approx(order, abs=0.15)

    @pytest.mark.parametrize("order", [2, 4])
    def test_an_euler_start_leaves_a_second_order_error(self, order):
        denoiser, x, exact = case()
        measured = slope(solvers.LMS(order), denoiser, x, exact, grids.log_snr, (640, 1280))
        assert measured == pytest.approx(2.0, abs=0.25)
        # It is small enough that higher orders still pay.
        errors = [
            (run(solvers.LMS(k), denoiser, grids.log_snr(VP, 40, start=START, end=END), x) - exact).abs().max()
            for k in (1, 2, 3, 4)
        ]
        assert errors[0] > 4 * errors[1] > 8 * errors[2] > 16 * errors[3]

    @pytest.mark.parametrize("order", [2, 3, 4])
    def test_a_polynomial_in_time_is_integrated_exactly_on_an_uneven_grid(self, order):
        process, degree = processes.RectifiedFlow(), order - 1
        denoiser = tweed.FunctionDenoiser(
            lambda x, t: torch.full_like(x, (degree + 1) * t**degree), process, targets.Velocity()
        )
        x, times = noisy(process, 1.0), (1.0, 0.93, 0.7, 0.66, 0.5, 0.3, 0.28, 0.1, 0.05)
        got = run(solvers.AdamsBashforth(order, "velocity", start="runge-kutta"), denoiser, times, x)
        torch.testing.assert_close(got, x + 0.05**order - 1.0, rtol=0, atol=1e-12)
        worse = run(solvers.AdamsBashforth(order - 1, "velocity", start="runge-kutta"), denoiser, times, x)
        assert (worse - got).abs().max() > 1e-5

    def test_out_of_pure_noise(self):
        process = processes.RectifiedFlow()
        denoiser, x, exact = case(process, 1.0)
        for solver in (solvers.AdamsBashforth(2), solvers.LMS(), solvers.PNDM(), solvers.PNDM(2, "heun")):
            errors = [
                (run(solver, denoiser, grids.uniform(process, n, end=END), x) - exact).abs().max() for n in (40, 80)
            ]
            assert errors[1] < errors[0] / 3 < 0.003

    def test_into_pure_noise(self):
        process = processes.RectifiedFlow()
        denoiser, x = mixture(process), noisy(process, 0.2)
        exact = flow(denoiser, x, 0.2, 1.0)
        for solver in (solvers.AdamsBashforth(2), solvers.LMS(), solvers.PNDM(4, "euler")):
            up = torch.linspace(0.2, 1.0, 81, dtype=torch.float64)
            assert (run(solver, denoiser, up, x) - exact).abs().max() < 0.02

    @pytest.mark.parametrize("steps", [1, 2, 3])
    def test_fewer_steps_than_its_order(self, steps):
        x, denoiser, times = noisy(VP, START), mixture(), grids.log_snr(VP, steps, start=START, end=END)
        lower = run(solvers.LMS(steps), denoiser, times, x)
        assert torch.equal(run(solvers.LMS(4), denoiser, times, x), lower)
        starting = run(solvers.RungeKutta("rk4", "noise"), denoiser, times, x)
        assert torch.equal(run(solvers.AdamsBashforth(4, start="runge-kutta"), denoiser, times, x), starting)


def transfer(x, eps, t, s):
    """Liu et al. (2022), Eq. 11, in continuous time."""
    a, b = VP.alpha(t) ** 2, VP.alpha(s) ** 2
    root = torch.sqrt
    change = (b - a) / (root(a) * (root((1 - b) * a) + root((1 - a) * b)))
    return root(b / a) * x - change * eps


class TestPNDM:
    def published(self, x, times, denoiser):
        """F-PNDM: three pseudo-Runge-Kutta steps, then the pseudo linear multistep formula."""
        history = []
        for i, (t, s) in enumerate(itertools.pairwise(times)):
            history.insert(0, denoiser(x, t).eps)
            e1 = history[0]
            if i < 3:
                middle = (t + s) / 2
                e2 = denoiser(transfer(x, e1, t, middle), middle).eps
                e3 = denoiser(transfer(x, e2, t, middle), middle).eps
                e4 = denoiser(transfer(x, e3, t, s), s).eps
                combined = (e1 + 2 * e2 + 2 * e3 + e4) / 6
            else:
                _, a, b, c = history[:4]
                combined = (55 * e1 - 59 * a + 37 * b - 9 * c) / 24
            x = transfer(x, combined, t, s)
        return x

    def small(self, x, times, denoiser):
        """S-PNDM: one pseudo improved Euler step, then the second-order formula."""
        before = None
        for t, s in itertools.pairwise(times):
            e = denoiser(x, t).eps
            combined = (e + denoiser(transfer(x, e, t, s), s).eps) / 2 if before is None else (3 * e - before) / 2
            before = e
            x = transfer(x, combined, t, s)
        return x

    @pytest.mark.parametrize("last", [0.05, 0.0])
    def test_as_published(self, last):
        times, denoiser, x = (0.9, 0.8, 0.65, 0.5, 0.35, 0.25, 0.1, last), mixture(), noisy(VP, 0.9)
        got = run(solvers.PNDM(), denoiser, times, x)
        torch.testing.assert_close(got, self.published(x, times, denoiser), rtol=0, atol=1e-11)
        got = run(solvers.PNDM(2, "heun"), denoiser, times, x)
        torch.testing.assert_close(got, self.small(x, times, denoiser), rtol=0, atol=1e-11)

    def test_fourth_order_where_the_noise_level_is_uniform(self):
        process = processes.EDM(sigma_max=2.0)
        denoiser, x = mixture(process), noisy(process, START)
        exact = flow(denoiser, x, START, 0.15)
        for start in ("runge-kutta", "heun"):
            measured = slope(solvers.PNDM(4, start), denoiser, x, exact, grids.uniform, (80, 160), START, 0.15)
            if start == "runge-kutta":
                assert measured == pytest.approx(4.0, abs=0.15)
            else:
                assert measured > 2.5

    @pytest.mark.parametrize("solver", [solvers.PNDM(), solvers.PNDM(4, "heun"), solvers.PNDM(2, "heun")], ids=repr)
    def test_second_order_elsewhere(self, solver):
        denoiser, x, exact = case()
        assert slope(solver, denoiser, x, exact, grids.log_snr, (80, 160)) == pytest.approx(2.0, abs=0.15)

    def test_order_one_is_ddim(self):
        x, times = noisy(VP, 0.9), (0.9, 0.5, 0.2, 0.0)
        got = run(solvers.PNDM(1), mixture(), times, x)
        torch.testing.assert_close(got, run(solvers.DDIM(), mixture(), times, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: solvers.AdamsBashforth(0),
        lambda: solvers.AdamsBashforth(7),
        lambda: solvers.AdamsBashforth(2.0),  # type: ignore[arg-type]
        lambda: solvers.PNDM(5),
        lambda: solvers.LMS(True),
    ],
)
def test_orders_that_do_not_exist(make):
    with pytest.raises(InputError, match="order"):
        make()


def test_names_that_do_not_exist():
    with pytest.raises(InputError, match="start"):
        solvers.PNDM(start="plms")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="form"):
        solvers.AdamsBashforth(form="data")
