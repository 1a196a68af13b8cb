"""Euler in each of its forms, between Gaussians and between two distributions."""

import pytest
import torch
from solver_cases import END, START, case, flow, mixture, noisy, run, slope

import tweed
from tweed import processes, random, solvers, targets
from tweed.core import grids
from tweed.errors import IncompatibleError, InputError


@pytest.mark.parametrize("form", ["velocity", "noise", "data"])
@pytest.mark.parametrize("process", [processes.VP(), processes.EDM(sigma_max=3.0), processes.RectifiedFlow()], ids=repr)
def test_first_order(form, process):
    denoiser, x, exact = case(process)
    order = slope(solvers.Euler(form), denoiser, x, exact, grids.uniform, (80, 160))
    assert order == pytest.approx(1.0, abs=0.15)


def test_the_reference_flow_is_the_closed_form_on_a_gaussian():
    denoiser = tweed.GaussianDenoiser(torch.tensor([0.3, -0.4]), torch.tensor([0.2, 1.5]))
    x = noisy(denoiser.process, START)
    torch.testing.assert_close(flow(denoiser, x, START, END), denoiser.flow(x, START, END), rtol=0, atol=1e-11)


def test_a_constant_velocity_is_followed_exactly():
    process = processes.RectifiedFlow()
    denoiser = tweed.FunctionDenoiser(lambda x, t: torch.full_like(x, 0.25), process, targets.Velocity())
    x = noisy(process, 1.0)
    torch.testing.assert_close(run(solvers.Euler(), denoiser, (1.0, 0.3, 0.0), x), x - 0.25, rtol=0, atol=1e-15)


def test_noise_and_data_are_exact_where_the_data_is_one_point():
    # One step, whatever its length: the estimate is constant in these variables, but not in time.
    process, point = processes.VP(), torch.tensor([0.7, -0.2], dtype=torch.float64)
    denoiser, x = tweed.GaussianDenoiser(point, 0.0, process), noisy(process, 0.9)
    exact = denoiser.flow(x, 0.9, 0.2)
    for form in ("noise", "data"):
        torch.testing.assert_close(run(solvers.Euler(form), denoiser, (0.9, 0.2), x), exact, rtol=0, atol=1e-12)
    assert (run(solvers.Euler(), denoiser, (0.9, 0.2), x) - exact).abs().max() > 0.1


class TestTwoSided:
    """Between N(m, v) and N(n, w) the flow of an interpolant moves means and scales deviations."""

    process = processes.Interpolant(path="trigonometric")

    def denoiser(self):
        ends = [tweed.GaussianDenoiser(torch.tensor(m), v) for m, v in (([1.0, 0.0], 0.3), ([-0.5, 2.0], 1.2))]
        return tweed.MixtureInterpolantDenoiser(ends[0], ends[1], self.process)

    def moments(self, t):
        a, b, s = (c(t).item() for c in (self.process.alpha, self.process.beta, self.process.sigma))
        mean = a * torch.tensor([1.0, 0.0]).double() + b * torch.tensor([-0.5, 2.0]).double()
        return mean, (a**2 * 0.3 + b**2 * 1.2 + s**2) ** 0.5

    def exact(self, x, t, s):
        (here, std), (there, other) = self.moments(t), self.moments(s)
        return there + other / std * (x - here)

    @pytest.mark.parametrize(
        ("solver", "order"),
        [
            (solvers.Euler(), 1),
            (solvers.Heun("velocity"), 2),
            (solvers.RungeKutta("rk4"), 4),
            (solvers.AdamsBashforth(3, "velocity", start="runge-kutta"), 3),
        ],
        ids=repr,
    )
    def test_velocity_solvers_go_from_end_to_end_with_their_order(self, solver, order):
        x = self.moments(1.0)[0] + 1.2**0.5 * random.normal((5, 2), 0, dtype=torch.float64)
        exact = self.exact(x, 1.0, 0.0)
        measured = slope(solver, self.denoiser(), x, exact, grids.uniform, (80, 160), 1.0, 0.0)
        assert measured == pytest.approx(order, abs=0.15)

    @pytest.mark.parametrize(
        "solver", [solvers.Euler("noise"), solvers.Heun(), solvers.LMS(), solvers.PNDM()], ids=repr
    )
    def test_noise_solvers_say_what_to_use_instead(self, solver):
        with pytest.raises(IncompatibleError, match="velocity"):
            tweed.sample(self.denoiser(), noisy(processes.VP(), 1.0), solver=solver, steps=3)

    def test_a_brownian_latent_ends_by_euler(self):
        # The velocity of the path is infinite there, so that nobody has trained for it.
        process = processes.Interpolant(latent="brownian")
        rows = solvers.Heun("velocity").table(process, (1.0, 0.5, 0.0)).steps
        assert [len(step) for step in rows] == [2, 1]
        assert all(0.0 < row.t <= 1.0 for step in rows for row in step)


def test_inversion_and_back():
    denoiser = mixture()
    x = 0.3 * random.normal((4, 2), 0, dtype=torch.float64)
    errors = []
    for steps in (100, 200):
        times = grids.log_snr(denoiser.process, steps, start=1.0, end=0.01)
        noise = tweed.invert(denoiser, x, solver=solvers.Euler("noise"), times=times)
        errors.append((tweed.sample(denoiser, noise, solver=solvers.Euler("noise"), times=times) - x).abs().max())
    assert errors[0] < 0.2
    assert 1.7 < errors[0] / errors[1] < 2.3


def test_an_endpoint_condition_changes_nothing_but_the_origin():
    # Gaussian in x - beta y: a run from a shifted start ends shifted by beta(end) y.
    process = processes.OUVE()
    denoiser = mixture(process)
    x, y = noisy(process, 0.9, n=2), torch.tensor([[2.0, -1.0]], dtype=torch.float64).expand(2, 2)
    times = (0.9, 0.6, 0.4, 0.2)
    for solver in (
        solvers.Euler("noise"),
        solvers.Heun(),
        solvers.RungeKutta("rk4", "noise"),
        solvers.LMS(),
        solvers.PNDM(),
    ):
        with_y = run(solver, denoiser, times, x + process.level(0.9).beta * y, cond={"y": y})
        without = run(solver, denoiser, times, x, cond={"y": 0 * y})
        torch.testing.assert_close(with_y, without + process.level(0.2).beta * y, rtol=0, atol=1e-12)
    fine = torch.linspace(0.9, 0.2, 61, dtype=torch.float64)
    start = x + process.level(0.9).beta * y
    exact = flow_with_endpoint(denoiser, start, y, 0.9, 0.2)
    for form in ("velocity", "noise"):
        got = run(solvers.RungeKutta("rk4", form), denoiser, fine, start, cond={"y": y})
        assert (got - exact).abs().max() < 1e-6


def flow_with_endpoint(denoiser, x, y, t, s):
    from scipy.integrate import solve_ivp

    def velocity(time, flat):
        return denoiser(torch.from_numpy(flat).reshape(x.shape), float(time), y=y).velocity.numpy().ravel()

    result = solve_ivp(velocity, (t, s), x.numpy().ravel(), method="DOP853", rtol=1e-9, atol=1e-9)
    return torch.from_numpy(result.y[:, -1]).reshape(x.shape)


def test_unknown_form():
    with pytest.raises(InputError, match="form"):
        solvers.Euler("score")  # type: ignore[arg-type]
