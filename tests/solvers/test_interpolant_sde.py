"""Interpolant SDEs: the marginals are those of the process whatever the noise."""

import itertools
import math

import pytest
import torch

import tweed as tw
from tweed.core.processes import Interpolant, RectifiedFlow
from tweed.errors import IncompatibleError, InputError
from tweed.solvers import AdaptiveRungeKutta, EulerMaruyama, InterpolantSDE

N = 1000
DATA = tw.MixtureDenoiser(torch.tensor([[-3.0, 0.0], [3.0, 0.0], [0.0, 3.0]]), 0.3)
OTHER = tw.MixtureDenoiser(torch.tensor([[2.0, 2.0], [-2.0, 2.0], [-2.0, -2.0], [2.0, -2.0], [0.0, 0.0]]), 0.2)


def sliced_w2(a, b):
    angles = torch.linspace(0, math.pi, 33, dtype=torch.float64)[:-1]
    axes = torch.stack((angles.cos(), angles.sin()))
    return ((a.double() @ axes).sort(0)[0] - (b.double() @ axes).sort(0)[0]).square().mean().sqrt().item()


TRUTH = DATA.sample(N, 100)
# The distance of two true samples: the mean of several pairs.
CHANCE = sum(sliced_w2(DATA.sample(N, 2 * i), DATA.sample(N, 2 * i + 1)) for i in range(8)) / 8
COMBINATIONS = [
    *itertools.product(("linear", "trigonometric"), ("brownian", "quadratic", "sine", "sigmoid")),
    ("encoder-decoder", "sine"),
]


@pytest.mark.parametrize(("path", "latent"), COMBINATIONS)
def test_any_noise_carries_one_mixture_to_the_other(path, latent):
    denoiser = tw.MixtureInterpolantDenoiser(DATA, OTHER, Interpolant(path, latent))
    start = OTHER.sample(N, 101)
    ode = tw.sample(denoiser, start, solver=AdaptiveRungeKutta(rtol=1e-3, atol=1e-3))
    sde = tw.sample(denoiser, start, solver=InterpolantSDE(1.0), steps=100)
    # Chance alone exceeds twice the mean distance in less than one of a hundred pairs.
    assert sliced_w2(ode, TRUTH) < 2 * CHANCE
    assert sliced_w2(sde, TRUTH) < 2 * CHANCE
    assert sliced_w2(start, TRUTH) > 4 * CHANCE


def test_the_marginal_halfway():
    process = Interpolant("linear", "brownian")
    denoiser = tw.MixtureInterpolantDenoiser(DATA, OTHER, process)
    truth = process.perturb(
        DATA.sample(N, 5), 0.5, tw.random.normal((N, 2), 6, dtype=torch.float64), OTHER.sample(N, 7)
    )
    solver = InterpolantSDE(1.0, denoise_last=False)
    half = tw.sample(denoiser, OTHER.sample(N, 8), solver=solver, times=torch.linspace(1.0, 0.5, 50))
    assert sliced_w2(half, truth) < 2 * CHANCE


@pytest.mark.parametrize("epsilon", ["constant", "linear", "sine", "decreasing", "sigma", "sbdm", 0.3])
def test_one_sided_profiles_keep_a_gaussian_s_moments(epsilon):
    mean, variance, n = torch.tensor([1.0, -0.5]), torch.tensor([1.0, 0.25]), 6000
    for process in (RectifiedFlow(), Interpolant("trigonometric", one_sided=True), Interpolant("vp", one_sided=True)):
        denoiser = tw.GaussianDenoiser(mean, variance, process)
        x = tw.sample(denoiser, n, solver=InterpolantSDE(epsilon), steps=120)
        assert ((x.mean(0) - mean).abs() < 5 * (variance / n).sqrt() + 0.02).all()
        assert ((x.var(0) / variance - 1).abs() < 5 * (2 / n) ** 0.5 + 0.05).all()


def variance_after(order, steps):
    """The variance a chain has in truth on a centred Gaussian, from two deterministic runs and the noise's share."""
    process = Interpolant("linear", "brownian")
    unit = tw.GaussianDenoiser(torch.zeros(1), 0.5), tw.GaussianDenoiser(torch.zeros(1), 2.0)
    denoiser = tw.MixtureInterpolantDenoiser(*unit, process)
    solver = InterpolantSDE(0.5, order=order, limit=math.inf, denoise_last=False)
    times = tuple(torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64).tolist())
    problem = tw.solvers.Problem(denoiser, times)
    level = process.level(0.9)
    variance = level.alpha**2 * 0.5 + level.beta**2 * 2.0 + level.sigma**2
    one = torch.ones(1, 1, dtype=torch.float64)
    for i in range(steps):
        # The step is affine in the state and the noise: x -> gain x + kick z.
        moved = solver.step(problem, tw.solvers.State(torch.cat((0 * one, one))), i).x
        still, z = moved[0, 0].item(), problem.noise(torch.zeros(2, 1, dtype=torch.float64), i)
        kick = still / z[0, 0].item()
        gain = moved[1, 0].item() - kick * z[1, 0].item()
        variance = gain**2 * variance + kick**2
    level = process.level(0.1)
    return variance - (level.alpha**2 * 0.5 + level.beta**2 * 2.0 + level.sigma**2)


@pytest.mark.parametrize("order", [1, 2])
def test_weak_order(order):
    errors = [abs(variance_after(order, n)) for n in ((80, 160, 320) if order == 1 else (20, 40, 80))]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)
    assert math.log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.25)


def test_no_noise_is_euler_on_the_velocity():
    denoiser = tw.GaussianDenoiser(torch.ones(2), 0.5, RectifiedFlow())
    start = tw.random.normal((5, 2), 1)
    euler = tw.sample(denoiser, start, solver=EulerMaruyama(probability_flow=True), steps=9)
    for solver in (InterpolantSDE(0.0), InterpolantSDE("sine", scale=0.0)):
        assert not solver.stochastic
        torch.testing.assert_close(tw.sample(denoiser, start, solver=solver, steps=9), euler)
    back = tw.invert(denoiser, start, solver=InterpolantSDE(0.0), steps=9)
    torch.testing.assert_close(back, tw.invert(denoiser, start, solver=EulerMaruyama(True), steps=9))
    start = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    plain = tw.MixtureInterpolantDenoiser(DATA, OTHER, Interpolant())
    torch.testing.assert_close(
        tw.sample(plain, start, solver=InterpolantSDE(0.0), steps=9),
        tw.sample(plain, start, solver=EulerMaruyama(True), steps=9),
    )


def test_noise_forgets_the_errors_of_the_velocity():
    """N(0, 1) to two modes with a perturbed velocity: the SDE's histogram is far nearer (Albergo et al., Sec. 2.4)."""
    n, process = 3000, Interpolant("linear", "brownian")
    data = tw.MixtureDenoiser(torch.tensor([[-2.0], [2.0]]), 0.09)
    exact = tw.MixtureInterpolantDenoiser(data, tw.GaussianDenoiser(torch.zeros(1), 1.0), process)
    wrong = tw.InterpolantDenoiser(
        lambda x, t: exact(x, t).velocity + (3 * x).sin(), lambda x, t: exact(x, t).eps, process
    )
    edges = torch.linspace(-5, 5, 101, dtype=torch.float64)
    density = data.log_prob((0.5 * (edges[1:] + edges[:-1]))[:, None]).exp() * 0.1

    def divergence(solver):
        x = tw.sample(wrong, tw.random.normal((n, 1), 3), solver=solver, steps=100)
        share = torch.histogram(x[:, 0].double(), edges)[0] / n
        here = share > 0
        return (share[here] * (share[here] / density[here].clamp_min(1e-12)).log()).sum().item()

    ode, little, much = (divergence(InterpolantSDE(e)) for e in (0.0, 0.5, 2.0))
    assert little < 0.1 * ode
    assert much < little


def test_evaluations_complex_grids_and_batches():
    denoiser = tw.CountingDenoiser(tw.GaussianDenoiser(torch.ones(2), 0.5, RectifiedFlow()))
    tw.sample(denoiser, 2, solver=InterpolantSDE(order=2), steps=5)
    assert denoiser.evaluations == 9
    solver = InterpolantSDE("sine")
    x = tw.sample(denoiser, 6, solver=solver, steps=5, seed=3)
    torch.testing.assert_close(tw.sample(denoiser, 2, solver=solver, steps=5, seed=3, index=4), x[4:])
    start = tw.random.normal((2, 2), 5)
    times = torch.linspace(0.9, 0.1, 7, dtype=torch.float64)
    for order in (1, 2):
        kind = InterpolantSDE("sine", order=order)
        common = tw.sample(denoiser, start, solver=kind, times=times)
        each = tw.sample(denoiser, start, solver=kind, times=times[:, None].expand(-1, 2))
        torch.testing.assert_close(each, common)


def test_what_does_not_fit_is_named():
    with pytest.raises(IncompatibleError, match="latent noise"):
        tw.sample(
            tw.MixtureInterpolantDenoiser(DATA, OTHER, Interpolant()), torch.zeros(2, 2), solver=InterpolantSDE(1.0)
        )
    latent = tw.MixtureInterpolantDenoiser(DATA, OTHER, Interpolant(latent="sine"))
    with pytest.raises(IncompatibleError, match="sbdm"):
        tw.sample(latent, torch.zeros(2, 2), solver=InterpolantSDE("sbdm"))
    with pytest.raises(InputError, match=r"epsilon.*sigma"):
        InterpolantSDE("sigmma")
    for options in ({"epsilon": -1.0}, {"scale": -1.0}, {"order": 3}, {"limit": 2.0}):
        with pytest.raises(InputError, match=next(iter(options))):
            InterpolantSDE(**options)
