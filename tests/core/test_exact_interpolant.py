"""Exact fields between two mixtures: continuity, Bayes by quadrature, the ends."""

import math

import pytest
import torch
from process_cases import TWO_SIDED

import tweed as tw
from tweed import processes
from tweed.errors import IncompatibleError, InputError

FIRST = tw.MixtureDenoiser(torch.tensor([[-1.5], [1.0]]), torch.tensor([0.1, 0.3]), torch.tensor([0.4, 0.6]))
SECOND = tw.MixtureDenoiser(torch.tensor([[0.0], [2.5], [-2.0]]), torch.tensor([0.5, 0.2, 0.1]))
GRID = torch.linspace(-6, 6, 241, dtype=torch.float64)[:, None]


def over(cases):
    return pytest.mark.parametrize("process", cases.values(), ids=cases.keys())


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=tw.random.generator(seed, 6), dtype=torch.float64)


def mixtures(d=3):
    a, b = draw(2, d, d, seed=1) / d**0.5, draw(3, d, d, seed=2) / d**0.5
    eye = 0.05 * torch.eye(d, dtype=torch.float64)
    return (
        tw.MixtureDenoiser(draw(2, d, seed=3), a @ a.mT + eye, torch.tensor([0.3, 0.7])),
        tw.MixtureDenoiser(2 * draw(3, d, seed=4), b @ b.mT + eye),
    )


@over(TWO_SIDED)
@pytest.mark.parametrize("t", [0.15, 0.4, 0.63, 0.9])
def test_velocity_solves_the_continuity_equation(process, t):
    denoiser, h = tw.MixtureInterpolantDenoiser(FIRST, SECOND, process), 1e-4

    def density(x, t):
        return denoiser.log_prob(x, t).exp()

    def flux(x):
        return denoiser(x, t).velocity[:, 0] * density(x, t)

    # Fourth-order differences.
    def slope(f, h):
        return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)

    change = slope(lambda k: density(GRID, t + k), h)
    divergence = slope(lambda k: flux(GRID + k), 1e-3)
    assert (change + divergence).abs().max() < 1e-6 * max(1.0, change.abs().max().item())


@over(TWO_SIDED)
def test_noise_and_score_are_the_gradient_of_the_density(process):
    denoiser = tw.MixtureInterpolantDenoiser(*mixtures(), process)
    x, t = draw(5, 3, seed=5).requires_grad_(), torch.linspace(0.15, 0.85, 5, dtype=torch.float64)
    gradient = torch.autograd.grad(denoiser.log_prob(x, t).sum(), x)[0]
    estimate = denoiser(x.detach(), t)
    if process.latent == "none":
        with pytest.raises(IncompatibleError):
            _ = estimate.score
        return
    torch.testing.assert_close(estimate.score, gradient, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(estimate.eps, -process.sigma(t)[:, None] * gradient, rtol=1e-9, atol=1e-9)


@over({name: process for name, process in TWO_SIDED.items() if process.latent != "none"})
@pytest.mark.parametrize("t", [0.2, 0.8])
def test_both_ends_and_the_noise_by_quadrature(process, t):
    denoiser, level, x = tw.MixtureInterpolantDenoiser(FIRST, SECOND, process), process.level(t), 0.6
    a = torch.linspace(-5, 5, 1001, dtype=torch.float64)[:, None]
    b = torch.linspace(-5, 6, 1101, dtype=torch.float64)[None]
    prior = FIRST.log_prob(a)[:, None] + SECOND.log_prob(b.T)[None]
    z = (x - level.alpha * a - level.beta * b) / level.sigma
    joint = (prior - 0.5 * z**2).exp()
    joint = joint / joint.sum()
    state = torch.tensor([[x]], dtype=torch.float64)
    estimate = denoiser(state, t)
    assert estimate.eps.item() == pytest.approx((joint * z).sum().item(), abs=1e-6)
    if level.alpha > 0:
        assert estimate.x0.item() == pytest.approx((joint * a).sum().item(), abs=1e-6)
    if level.beta > 0:
        assert estimate.x1.item() == pytest.approx((joint * b).sum().item(), abs=1e-6)
    velocity = level.alpha_dot * a + level.beta_dot * b + level.sigma_dot * z
    assert estimate.velocity.item() == pytest.approx((joint * velocity).sum().item(), abs=1e-5)


@over(TWO_SIDED)
def test_the_marginal_is_that_of_the_draws(process):
    n, (first, second) = 40000, mixtures()
    denoiser = tw.MixtureInterpolantDenoiser(first, second, process)
    x0, x1 = first.sample(n, 1), second.sample(n, 2)
    x = process.perturb(x0, 0.35, tw.random.normal((n, 3), 3, dtype=torch.float64), x1)
    # E[score] = 0 and E[score x'] = -I under the marginal.
    copy = x.clone().requires_grad_()
    score = torch.autograd.grad(denoiser.log_prob(copy, 0.35).sum(), copy)[0]
    assert (score.mean(0).abs() < 4.7 * score.std(0) / math.sqrt(n)).all()
    products = torch.einsum("bd,be->bde", score, x)
    error = 4.7 * products.std(0) / math.sqrt(n)
    assert ((products.mean(0) + torch.eye(3, dtype=torch.float64)).abs() < error).all()
    velocity = denoiser(x, 0.35).velocity
    level = process.level(0.35)
    z = (x - level.alpha * x0 - level.beta * x1) / level.sigma if level.sigma else torch.zeros_like(x)
    path = level.alpha_dot * x0 + level.beta_dot * x1 + level.sigma_dot * z
    for function in (torch.ones_like, torch.tanh, torch.cos):
        product = (velocity - path) * function(x)
        assert (product.mean(0).abs() < 4.7 * product.std(0) / math.sqrt(n)).all()


@over(TWO_SIDED)
def test_the_ends_are_the_two_mixtures(process):
    first, second = mixtures()
    denoiser = tw.MixtureInterpolantDenoiser(first, second, process)
    x = draw(5, 3, seed=5)
    torch.testing.assert_close(denoiser.log_prob(x, 0.0), first.log_prob(x), rtol=1e-9, atol=1e-9)
    end = first if process.path == "mirror" else second
    torch.testing.assert_close(denoiser.log_prob(x, 1.0), end.log_prob(x), rtol=1e-9, atol=1e-9)
    for t in (0.0, 1.0, torch.tensor([0.0, 0.3, 0.5, 0.7, 1.0])):
        assert denoiser(x, t).velocity.isfinite().all()


def test_the_linear_path_to_a_standard_normal_is_the_rectified_flow():
    first, _ = mixtures()
    normal = tw.GaussianDenoiser(torch.zeros(3), 1.0)
    two_sided = tw.MixtureInterpolantDenoiser(first, normal, processes.Interpolant())
    flow = tw.MixtureDenoiser(
        first.means,
        torch.einsum("kde,ke,kfe->kdf", first.vectors, first.values, first.vectors),
        first.log_weights.exp(),
        processes.RectifiedFlow(),
    )
    x, t = draw(5, 3, seed=5), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    torch.testing.assert_close(two_sided(x, t).velocity, flow(x, t).velocity, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(two_sided.log_prob(x, t), flow.log_prob(x, t), rtol=1e-9, atol=1e-9)


def test_shapes_types_and_kinds_of_covariance():
    means = draw(2, 2, 2)
    for covariances in (0.3, torch.tensor([0.1, 0.2]), 0.1 + draw(2, 2, 2) ** 2, torch.eye(4).expand(2, 4, 4)):
        one = tw.MixtureDenoiser(means, covariances)
        denoiser = tw.MixtureInterpolantDenoiser(one, one, processes.Interpolant("linear", "brownian"))
        assert denoiser.event == (2, 2)
        x = draw(3, 2, 2, seed=5)
        together = denoiser(x, torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64))
        for i, t in enumerate((0.2, 0.5, 0.8)):
            torch.testing.assert_close(together.velocity[i : i + 1], denoiser(x[i : i + 1], t).velocity)
            torch.testing.assert_close(together.eps[i : i + 1], denoiser(x[i : i + 1], t).eps)
        assert denoiser(x.float(), 0.5).x0.dtype == torch.float32
        assert denoiser(x[:0], 0.5).velocity.shape == (0, 2, 2)
        assert denoiser.log_prob(x[:0], torch.zeros(0)).shape == (0,)


def test_nothing_stays_behind_on_the_cpu():
    denoiser = tw.MixtureInterpolantDenoiser(*mixtures(), processes.Interpolant("linear", "brownian")).to("meta")
    x = torch.zeros(3, 3, device="meta")
    for t in (0.4, torch.full((3,), 0.4)):
        assert denoiser(x, t).velocity.device.type == "meta"
        assert denoiser(x, t).eps.device.type == "meta"


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (
            lambda: tw.MixtureInterpolantDenoiser(FIRST, SECOND, processes.Interpolant(one_sided=True)),
            "process: a one-",
        ),
        (lambda: tw.MixtureInterpolantDenoiser(FIRST, mixtures()[1], processes.Interpolant()), "other: events"),
        (
            lambda: tw.MixtureInterpolantDenoiser(FIRST, SECOND, processes.Interpolant())(torch.zeros(4, 2), 0.5),
            r"x: shape \(4, 2\) was given; expected \(batch, 1\)",
        ),
        (
            lambda: tw.MixtureInterpolantDenoiser(FIRST, SECOND, processes.Interpolant())(
                torch.zeros(4, 1), torch.rand(4, 1)
            ),
            r"t: shape \(4, 1\)",
        ),
        (
            lambda: tw.MixtureInterpolantDenoiser(FIRST, SECOND, processes.Interpolant())(torch.zeros(4, 1), 1.5),
            "t: 1.5",
        ),
    ],
)
def test_bad_input_is_named(build, named):
    with pytest.raises(InputError, match=named):
        build()
