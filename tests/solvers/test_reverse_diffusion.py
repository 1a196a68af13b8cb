"""The published predictors as special cases, and the marginals of both for any process."""

import pytest
import torch

import tweed as tw
from tweed.core.processes import OUVE, VE, VP, FromBetas, RectifiedFlow, SubVP
from tweed.errors import InputError
from tweed.solvers import DDPM, Ancestral, ReverseDiffusion

MEAN, VARIANCE = torch.tensor([1.0, -0.5, 0.0]), torch.tensor([1.0, 0.25, 0.04])


def one_step(solver, denoiser, times, x, noise_of_step=0):
    """A step that is not the last, and the noise that it drew."""
    problem = tw.solvers.Problem(denoiser, (*times, 0.0), seed=5)
    moved = solver.step(problem, solver.init(problem, x), noise_of_step).x
    return moved, problem.noise(x, noise_of_step)


def test_vp_formulas_on_discrete_betas():
    process = FromBetas.linear(10, 0.01, 0.3)
    denoiser = tw.GaussianDenoiser(MEAN, VARIANCE, process)
    x = tw.random.normal((5, 3), 1, dtype=torch.float64)
    beta = process.betas[6]
    score = denoiser(x, 0.7).score
    moved, z = one_step(ReverseDiffusion(), denoiser, (0.7, 0.6), x)
    torch.testing.assert_close(moved, (2 - (1 - beta) ** 0.5) * x + beta * score + beta**0.5 * z)
    moved, z = one_step(Ancestral(variance="forward"), denoiser, (0.7, 0.6), x)
    torch.testing.assert_close(moved, (x + beta * score) / (1 - beta) ** 0.5 + beta**0.5 * z)


def test_ve_formulas():
    process = VE(0.01, 20.0)
    denoiser = tw.GaussianDenoiser(MEAN, VARIANCE, process)
    x = 3 * tw.random.normal((5, 3), 1, dtype=torch.float64)
    high, low = process.level(0.7).sigma ** 2, process.level(0.6).sigma ** 2
    score = denoiser(x, 0.7).score
    moved, z = one_step(ReverseDiffusion(), denoiser, (0.7, 0.6), x)
    torch.testing.assert_close(moved, x + (high - low) * score + (high - low) ** 0.5 * z)
    moved, z = one_step(Ancestral(), denoiser, (0.7, 0.6), x)
    torch.testing.assert_close(moved, x + (high - low) * score + (low * (high - low) / high) ** 0.5 * z)


@pytest.mark.parametrize("process", [VP(), VE(0.01, 20.0), SubVP(), RectifiedFlow()])
def test_ancestral_with_the_posterior_s_variance_is_ddpm(process):
    denoiser = tw.GaussianDenoiser(MEAN, VARIANCE, process)
    start = process.prior((6, 3), dtype=torch.float64)
    times = torch.linspace(1.0, 0.0, 13)
    ours = tw.sample(denoiser, start, solver=Ancestral(denoise_last=False), times=times)
    torch.testing.assert_close(ours, tw.sample(denoiser, start, solver=DDPM(), times=times))


@pytest.mark.parametrize("process", [VP(), VE(0.01, 20.0), SubVP(), RectifiedFlow()])
@pytest.mark.parametrize("solver", [ReverseDiffusion(), Ancestral(), Ancestral(variance="forward")])
def test_samples_have_the_data_s_moments(process, solver):
    n = 8000
    denoiser = tw.GaussianDenoiser(MEAN, VARIANCE, process)
    x = tw.sample(denoiser, n, solver=solver, steps=300)
    assert ((x.mean(0) - MEAN).abs() < 5 * (VARIANCE / n).sqrt() + 0.01).all()
    # First order: the smallest variance, 0.04, is 5 to 10 % off at 300 steps uniform in time.
    assert ((x.var(0) / VARIANCE - 1).abs() < 5 * (2 / n) ** 0.5 + 0.12).all()


@pytest.mark.parametrize("rising", [False, True])
@pytest.mark.parametrize("process", [VP(), VE(0.01, 20.0), SubVP()])
def test_probability_flow_has_order_one_in_both_directions(process, rising):
    denoiser = tw.GaussianDenoiser(MEAN, VARIANCE, process)
    low, high = 0.05, 1.0
    ends = (low, high) if rising else (high, low)
    x = process.level(ends[0]).sigma * tw.random.normal((16, 3), 2, dtype=torch.float64)
    exact = denoiser.flow(x, *ends)
    errors = []
    for n in (400, 800):
        times = torch.linspace(high, low, n + 1)
        run = tw.invert if rising else tw.sample
        errors.append((run(denoiser, x, solver=ReverseDiffusion(True), times=times) - exact).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.2)
    assert errors[1] < 0.1 * exact.abs().max()


def test_an_endpoint_process_with_a_complex_state_has_the_right_second_moments():
    process, n = OUVE(), 4000
    y = torch.full((n, 2), 1.0 + 0.5j, dtype=torch.complex64)
    x0 = torch.tensor([0.7 - 0.2j, 1.3 + 0.9j])

    def data_given_state(x, t, y):
        # Data N(x0, 0.1^2), circular.
        level = process.level(t)
        gain = level.alpha * 0.01 / (level.alpha**2 * 0.01 + level.sigma**2)
        return x0 + gain * (x - level.beta * y - level.alpha * x0)

    denoiser = tw.FunctionDenoiser(data_given_state, process, event=(2,))
    start = process.perturb(x0 + 0.1 * tw.random.normal((n, 2), 8, dtype=torch.complex64), 1.0,
                            tw.random.normal((n, 2), 9, dtype=torch.complex64), y)  # fmt: skip
    x = tw.sample(denoiser, start, solver=ReverseDiffusion(), steps=200, cond={"y": y})
    assert x.dtype == torch.complex64
    assert ((x.mean(0) - x0).abs() < 5 * 0.1 * n**-0.5 + 0.005).all()
    spread = x - x.mean(0)
    assert (spread.abs().square().mean(0) / 0.01 - 1).abs().max() < 5 * n**-0.5 + 0.06
    # Circular: E z^2 = 0.
    assert (spread.square().mean(0) / 0.01).abs().max() < 5 * n**-0.5


def test_unknown_variance_is_named():
    with pytest.raises(InputError, match=r"variance.*posterior"):
        Ancestral(variance="posterio")  # type: ignore[arg-type]
