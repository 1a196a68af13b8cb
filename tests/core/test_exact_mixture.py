"""Gaussian and mixture denoisers against autograd, Bayes by quadrature, Monte Carlo and the flow's own equation."""

import math

import pytest
import torch
from process_cases import ENDPOINT, GAUSSIAN, LINEAR

import tweed as tw
from tweed import processes
from tweed.errors import IncompatibleError, InputError

KINDS = ("number", "isotropic", "diagonal", "full", "full-singular")


def generator(seed=0):
    return tw.random.generator(seed, 77)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def mixture(kind="full", process=None, k=3, event=(2, 2), **options):
    d = math.prod(event)
    if kind == "number":
        covariances = 0.3
    elif kind == "isotropic":
        covariances = torch.tensor([0.1, 0.5, 1.5], dtype=torch.float64)[:k]
    elif kind == "diagonal":
        covariances = 0.1 + draw(k, *event, seed=1) ** 2
    else:
        roots = draw(k, d, d if kind == "full" else d - 1, seed=2) / d**0.5
        covariances = roots @ roots.mT
    weights = torch.arange(1, k + 1, dtype=torch.float64)
    return tw.MixtureDenoiser(1.5 * draw(k, *event, seed=3), covariances, weights, process, **options)


def over(cases):
    return pytest.mark.parametrize("process", cases.values(), ids=cases.keys())


def times(shape, low=0.1, high=0.9):
    return low + (high - low) * torch.rand(shape, generator=generator(5), dtype=torch.float64)


def score_by_autograd(denoiser, x, t, **cond):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(denoiser.log_prob(x, t, **cond).sum(), x)[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [None, (), (5,), (1,), (5, 2), (1, 2), (5, 2, 2)])
def test_score_is_the_gradient_of_the_log_density(kind, shape):
    denoiser, x = mixture(kind), 1.5 * draw(5, 2, 2, seed=9)
    t = 0.4 if shape is None else times(shape)
    torch.testing.assert_close(denoiser(x, t).score, score_by_autograd(denoiser, x, t), rtol=1e-8, atol=1e-8)


@over(LINEAR)
def test_score_is_the_gradient_on_every_process(process):
    denoiser, x, y = mixture("full", process), 1.5 * draw(5, 2, 2, seed=9), draw(5, 2, 2, seed=10)
    cond = {} if process.endpoint == "none" else {"y": y}
    for t in (0.3, times((5,)), times((5, 2))):
        expected = score_by_autograd(denoiser, x, t, **cond)
        torch.testing.assert_close(denoiser(x, t, **cond).score, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_a_time_per_element_that_is_constant_is_one_time(kind):
    denoiser, x = mixture(kind), draw(5, 2, 2, seed=9)
    t = times((5,))
    for wide in (t[:, None].expand(5, 2), t[:, None, None].expand(5, 2, 2)):
        torch.testing.assert_close(denoiser(x, wide).x0, denoiser(x, t).x0, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(denoiser.log_prob(x, wide), denoiser.log_prob(x, t), rtol=1e-9, atol=1e-9)
    one = torch.cat([denoiser(x[i : i + 1], t[i].item()).x0 for i in range(5)])
    torch.testing.assert_close(denoiser(x, t).x0, one, rtol=1e-12, atol=1e-12)


def test_the_kinds_of_covariance_agree():
    means, x = draw(3, 2, 2), draw(5, 2, 2, seed=9)
    variances = torch.tensor([0.1, 0.5, 1.5], dtype=torch.float64)
    forms = (
        variances,
        variances[:, None, None].expand(3, 2, 2),
        variances[:, None, None] * torch.eye(4, dtype=torch.float64),
    )
    for t in (0.4, times((5,)), times((5, 2))):
        first, *others = (tw.MixtureDenoiser(means, form) for form in forms)
        for other in others:
            torch.testing.assert_close(other(x, t).x0, first(x, t).x0, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(other.log_prob(x, t), first.log_prob(x, t), rtol=1e-10, atol=1e-10)


@over(LINEAR)
def test_posterior_mean_and_variance_by_quadrature(process):
    means, variances = torch.tensor([[-1.2], [0.3], [2.0]], dtype=torch.float64), torch.tensor([0.05, 0.3, 0.1])
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    denoiser = tw.MixtureDenoiser(means, variances, weights, process)
    y = torch.tensor([[0.7]], dtype=torch.float64)
    cond = {} if process.endpoint == "none" else {"y": y}
    grid = torch.linspace(-6, 7, 40001, dtype=torch.float64)
    v = variances.double()[:, None]
    prior = (weights[:, None] * (-0.5 * (grid - means) ** 2 / v).exp() / (2 * math.pi * v).sqrt()).sum(0)
    for t in (0.2, 0.5, 0.85):
        level = process.level(t)
        x = level.alpha * 0.4 + level.beta * 0.7 + level.sigma * 0.9
        noise = (x - level.alpha * grid - level.beta * 0.7) / level.sigma
        joint = prior * (-0.5 * noise**2).exp() / (level.sigma * math.sqrt(2 * math.pi))
        evidence = torch.trapezoid(joint, grid).item()
        mean = torch.trapezoid(joint * grid, grid).item() / evidence
        spread = torch.trapezoid(joint * (grid - mean) ** 2, grid).item() / evidence
        state = torch.tensor([[x]], dtype=torch.float64)
        assert denoiser(state, t, **cond).x0.item() == pytest.approx(mean, abs=1e-7)
        assert denoiser.log_prob(state, t, **cond).item() == pytest.approx(math.log(evidence), abs=1e-7)
        assert denoiser.posterior_covariance(state, t, **cond).item() == pytest.approx(spread, rel=1e-6)


def test_posterior_mean_by_monte_carlo():
    # Among joint draws (x0, x_t), the error of the posterior mean is orthogonal to every function of x_t.
    n = 40000
    denoiser = mixture("full", processes.RectifiedFlow())
    x0 = denoiser.sample(n, 3)
    x = denoiser.process.perturb(x0, 0.5, tw.random.normal(x0.shape, 4, dtype=torch.float64))
    error = x0 - denoiser(x, 0.5).x0
    for function in (torch.ones_like, lambda x: x, torch.tanh, lambda x: x**2, torch.cos):
        product = (error * function(x)).flatten(1)
        assert (product.mean(0).abs() < 4.7 * product.std(0) / math.sqrt(n)).all()
    squared = error.flatten(1)
    predicted = denoiser.posterior_covariance(x, 0.5).mean(0)
    measured = squared.T @ squared / n
    torch.testing.assert_close(measured, predicted, rtol=0.05, atol=0.01)


@over(GAUSSIAN)
def test_density_integrates_to_one(process):
    denoiser = tw.MixtureDenoiser(torch.tensor([[-1.0], [2.0]]), torch.tensor([0.2, 0.5]), process=process)
    for t in (0.05, 0.5, 1.0):
        level = process.level(t)
        width = 9 * math.sqrt(level.sigma**2 + 0.5 * level.alpha**2) + 3 * level.alpha
        grid = torch.linspace(-width, width, 20001, dtype=torch.float64)
        density = denoiser.log_prob(grid[:, None], t).exp()
        assert torch.trapezoid(density, grid).item() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@over({name: LINEAR[name] for name in ("VP", "EDM", "RectifiedFlow", "OUVE", "Residual")})
def test_posterior_covariance_is_the_jacobian(kind, process):
    denoiser, x, y = mixture(kind, process), draw(3, 2, 2, seed=9), draw(3, 2, 2, seed=10)
    for t in (0.35, times((3,))):
        level = torch.as_tensor(t, dtype=torch.float64).expand(3)

        def mean(flat, i):
            cond = {} if process.endpoint == "none" else {"y": y[i : i + 1]}
            return denoiser(flat.reshape(1, 2, 2), level[i].item(), **cond).x0.flatten()  # noqa: B023

        jacobian = torch.stack(
            [torch.autograd.functional.jacobian(lambda z, i=i: mean(z, i), x[i].flatten()) for i in range(3)]
        )
        gain = (process.sigma(level) ** 2 / process.alpha(level))[:, None, None]
        cond = {} if process.endpoint == "none" else {"y": y}
        torch.testing.assert_close(denoiser.posterior_covariance(x, t, **cond), gain * jacobian, rtol=1e-7, atol=1e-9)


def test_tweedie():
    for process in (processes.VP(), processes.EDM(), processes.SubVP()):
        denoiser, x, t = mixture("full", process), draw(5, 2, 2, seed=9), times((5,))
        alpha, sigma = (c[:, None, None] for c in (process.alpha(t), process.sigma(t)))
        tweedie = (x + sigma**2 * score_by_autograd(denoiser, x, t)) / alpha
        torch.testing.assert_close(denoiser(x, t).x0, tweedie, rtol=1e-8, atol=1e-8)


def test_labels_restrict_and_drop_releases():
    labels = torch.tensor([0, 1, 1])
    whole, x = mixture("full", labels=labels), draw(4, 2, 2, seed=9)
    part = tw.MixtureDenoiser(
        whole.means[1:].reshape(2, 2, 2),
        torch.einsum("kde,ke,kfe->kdf", whole.vectors[1:], whole.values[1:], whole.vectors[1:]),
        whole.log_weights[1:].exp(),
    )
    ones, drop = torch.ones(4, dtype=torch.int64), torch.tensor([True, False, True, False])
    for t in (0.3, times((4,)), times((4, 2))):
        torch.testing.assert_close(whole(x, t, label=ones).x0, part(x, t).x0)
        torch.testing.assert_close(whole.log_prob(x, t, label=ones), part.log_prob(x, t))
        torch.testing.assert_close(whole(x, t, label=ones).score, score_by_autograd(whole, x, t, label=ones))
        mixed = whole(x, t, label=ones, drop=drop).x0
        expected = torch.where(drop[:, None, None], whole(x, t).x0, part(x, t).x0)
        torch.testing.assert_close(mixed, expected)
        by_density = torch.where(drop, whole.log_prob(x, t), part.log_prob(x, t))
        torch.testing.assert_close(whole.log_prob(x, t, label=ones, drop=drop), by_density)
    # Bayes over the classes: the whole density is the weighted sum of the parts.
    zeros = whole.log_prob(x, 0.3, label=torch.zeros(4, dtype=torch.int64))
    both = torch.logaddexp(zeros + math.log(1 / 6), whole.log_prob(x, 0.3, label=ones) + math.log(5 / 6))
    torch.testing.assert_close(both, whole.log_prob(x, 0.3))
    assert torch.equal(whole(x, 0.3, label=None, drop=drop).x0, whole(x, 0.3).x0)


def test_responsibilities_are_those_of_bayes():
    denoiser = tw.MixtureDenoiser(torch.tensor([[-1.0], [1.0]]), 0.25, torch.tensor([1.0, 3.0]))
    x = torch.tensor([[0.2], [-3.0]], dtype=torch.float64)
    weight = denoiser.responsibilities(x)
    odds = 3 * (-((x - 1) ** 2) / 0.5 + (x + 1) ** 2 / 0.5).exp()
    torch.testing.assert_close(weight[:, 1:] / weight[:, :1], odds)
    torch.testing.assert_close(weight.sum(1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_moments_and_their_own_numbers(kind):
    n, denoiser = 40000, mixture(kind)
    x = denoiser.sample(n, 5)
    assert x.dtype == torch.float64
    assert torch.equal(denoiser.sample(7, 5, index=90), x[90:97])
    assert denoiser.sample(0).shape == (0, 2, 2)
    flat, weights = x.flatten(1), denoiser.log_weights.exp()
    values = denoiser.values.expand(3, 4)
    vectors = torch.eye(4, dtype=torch.float64).expand(3, 4, 4) if denoiser.vectors is None else denoiser.vectors
    inside = torch.einsum("k,kde,ke,kfe->df", weights, vectors, values, vectors)
    mean = weights @ denoiser.means
    centered = denoiser.means - mean
    covariance = inside + torch.einsum("k,kd,kf->df", weights, centered, centered)
    error = 4.7 * covariance.diagonal().sqrt() / math.sqrt(n)
    assert ((flat.mean(0) - mean).abs() < error).all()
    torch.testing.assert_close(flat.T.cov(), covariance, rtol=0.05, atol=0.05)


def test_samples_follow_their_labels():
    denoiser = mixture("isotropic", labels=torch.tensor([4, 9, 9]))
    label = torch.tensor([4, 9] * 2000)
    x = denoiser.sample(4000, 1, label=label)
    first = x[::2].flatten(1)
    torch.testing.assert_close(first.mean(0), denoiser.means[0], rtol=0, atol=4.7 * math.sqrt(0.1 / 2000))
    rest = denoiser.log_weights[1:].softmax(0) @ denoiser.means[1:]
    assert (x[1::2].flatten(1).mean(0) - rest).abs().max() < 0.25


@pytest.mark.parametrize(
    ("kind", "process"),
    [("isotropic", LINEAR["VP"]), ("diagonal", LINEAR["OUVE"]), *(("full", p) for p in LINEAR.values())],
)
def test_gaussian_flow_is_that_of_its_velocity(process, kind):
    covariance = {"isotropic": 0.4, "diagonal": torch.tensor([0.2, 0.9, 1.5])}.get(kind)
    if covariance is None:
        root = draw(3, 3, seed=4)
        covariance = root @ root.T / 3
    denoiser = tw.GaussianDenoiser(torch.tensor([0.5, -1.0, 0.2]), covariance, process)
    y = draw(4, 3, seed=11)
    cond = {} if process.endpoint == "none" else {"y": y}
    steps, high, low = 60, 0.85, 0.3
    x = draw(4, 3, seed=12) * process.level(high).sigma
    state, h = x, (low - high) / steps

    def slope(z, t):
        return denoiser(z, t, **cond).velocity

    for i in range(steps):
        t = high + i * h
        k1 = slope(state, t)
        k2 = slope(state + 0.5 * h * k1, t + 0.5 * h)
        k3 = slope(state + 0.5 * h * k2, t + 0.5 * h)
        k4 = slope(state + h * k3, t + h)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    exact = denoiser.flow(x, high, low, **cond)
    # Schedules with joints (discrete betas) cost the Runge-Kutta method some of its order.
    base = process.base if isinstance(process, processes.Resfusion) else process
    bound = 1e-6 if not isinstance(base, processes.FromBetas) else 1e-3 if base is process else 1e-2
    assert (state - exact).abs().max() < bound * x.abs().max()
    # A flow: there and back, and through any stop.
    torch.testing.assert_close(denoiser.flow(exact, low, high, **cond), x, rtol=1e-9, atol=1e-9)
    stop = denoiser.flow(denoiser.flow(x, high, 0.5, **cond), 0.5, low, **cond)
    torch.testing.assert_close(stop, exact, rtol=1e-9, atol=1e-9)
    assert torch.equal(denoiser.flow(x[:0], high, low, **{k: v[:0] for k, v in cond.items()}), x[:0])


def test_gaussian_flow_satisfies_lagrange_and_euler():
    denoiser = tw.GaussianDenoiser(torch.tensor([0.5, -1.0]), torch.tensor([0.3, 1.2]), processes.VP())
    x, t, s, h = draw(3, 2), 0.7, 0.4, 1e-5
    velocity = denoiser(denoiser.flow(x, t, s), s).velocity
    difference = (denoiser.flow(x, t, s + h) - denoiser.flow(x, t, s - h)) / (2 * h)
    torch.testing.assert_close(difference, velocity, rtol=1e-8, atol=1e-8)
    along = denoiser(x, t).velocity
    total = (denoiser.flow(x + h * along, t + h, s) - denoiser.flow(x - h * along, t - h, s)) / (2 * h)
    assert total.abs().max() < 1e-8


def test_the_flow_of_standard_normal_data_under_vp_is_the_identity():
    denoiser, x = tw.GaussianDenoiser(torch.zeros(3), 1.0, processes.VP()), draw(4, 3)
    assert denoiser(x, 0.6).velocity.abs().max() < 1e-13
    torch.testing.assert_close(denoiser.flow(x, 1.0, 0.0), x, rtol=1e-14, atol=0)


def test_flow_carries_the_marginals():
    denoiser = tw.GaussianDenoiser(torch.tensor([2.0]), 0.25, processes.RectifiedFlow())
    x = denoiser.flow(tw.random.normal((40000, 1), 1, dtype=torch.float64), 1.0, 0.0)
    assert x.mean().item() == pytest.approx(2.0, abs=0.012)
    assert x.std().item() == pytest.approx(0.5, rel=0.02)


@over(LINEAR)
def test_both_ends_are_finite(process):
    x, y = draw(4, 2, 2, seed=9), draw(4, 2, 2, seed=10)
    cond = {} if process.endpoint == "none" else {"y": y}
    for kind in KINDS[:4]:
        denoiser = mixture(kind, process)
        for t in (0.0, 1e-9, 1.0, torch.tensor([0.0, 1e-9, 0.5, 1.0])):
            assert denoiser(x, t, **cond).x0.isfinite().all()
            assert denoiser.log_prob(x, t, **cond).isfinite().all()
        # At the clean end the data is the state.
        if process.level(0.0).sigma == 0.0:
            torch.testing.assert_close(denoiser(x, 0.0, **cond).x0, x, rtol=1e-9, atol=1e-9)


def test_types_devices_and_empty_batches():
    denoiser = mixture("full")
    assert denoiser(torch.zeros(3, 2, 2), 0.4).x0.dtype == torch.float32
    assert denoiser(torch.zeros(3, 2, 2).bfloat16(), 0.4).x0.dtype == torch.float32
    assert denoiser(draw(3, 2, 2), 0.4).x0.dtype == torch.float64
    assert denoiser.event == (2, 2)
    assert denoiser.process == processes.VP()
    for kind in KINDS:
        empty = torch.zeros(0, 2, 2)
        for t in (0.4, torch.zeros(0), torch.zeros(0, 2)):
            assert mixture(kind)(empty, t).x0.shape == (0, 2, 2)
            assert mixture(kind).log_prob(empty, t).shape == (0,)
        assert mixture(kind).posterior_covariance(empty, 0.4).shape == (0, 4, 4)


@pytest.mark.parametrize("kind", ["number", "isotropic", "diagonal", "full"])
def test_nothing_stays_behind_on_the_cpu(kind):
    # The meta device refuses to mix with tensors of the CPU, as an accelerator does.
    denoiser, x = mixture(kind, labels=torch.tensor([0, 1, 1])).to("meta"), torch.zeros(3, 2, 2, device="meta")
    for t in (0.4, torch.full((3,), 0.4), torch.full((3,), 0.4, device="meta")):
        assert denoiser(x, t, label=torch.zeros(3, dtype=torch.int64, device="meta")).x0.device.type == "meta"
        assert denoiser.log_prob(x, t).device.type == "meta"
        assert denoiser.posterior_covariance(x, t).device.type == "meta"
    assert denoiser.sample(4, 1).device.type == "meta"


@over(ENDPOINT)
def test_an_endpoint_process_is_a_gaussian_one_in_the_shifted_variable(process):
    class Shifted(processes.Process):
        """The same coefficients without the endpoint."""

        def __init__(self):
            self._alpha, self._sigma = process._alpha, process._sigma
            self._alpha_dot, self._sigma_dot = process._alpha_dot, process._sigma_dot

        _alpha = _sigma = _alpha_dot = _sigma_dot = _time = None

    x, y, t = draw(5, 2, 2, seed=9), draw(5, 2, 2, seed=10), times((5,))
    given, plain = mixture("full", process), mixture("full", Shifted())
    shift = process.beta(t)[:, None, None] * y
    torch.testing.assert_close(given(x, t, y=y).x0, plain(x - shift, t).x0, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(given(x, t, y=y).eps, plain(x - shift, t).eps, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(given.log_prob(x, t, y=y), plain.log_prob(x - shift, t), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: tw.MixtureDenoiser(torch.zeros(3), 1.0), r"means: shape \(3,\)"),
        (lambda: tw.MixtureDenoiser(torch.zeros(0, 2), 1.0), "means: shape"),
        (lambda: tw.MixtureDenoiser(torch.zeros(3, 2), torch.ones(2)), r"covariances: shape \(2,\)"),
        (lambda: tw.MixtureDenoiser(torch.zeros(3, 2), torch.ones(3, 3, 3)), "covariances: shape"),
        (lambda: tw.MixtureDenoiser(torch.zeros(3, 2), -1.0), "covariances: a variance of -1"),
        (lambda: tw.MixtureDenoiser(torch.zeros(1, 2), torch.tensor([[[1.0, 2.0], [2.0, 1.0]]])), "a variance of -1"),
        (lambda: tw.MixtureDenoiser(torch.zeros(1, 2), torch.tensor([[[1.0, 0.5], [0.0, 1.0]]])), "not symmetric"),
        (lambda: tw.MixtureDenoiser(torch.zeros(2, 2), 1.0, torch.tensor([1.0, 0.0])), "weights"),
        (lambda: tw.MixtureDenoiser(torch.zeros(2, 2), 1.0, torch.ones(3)), "weights: shape"),
        (lambda: tw.MixtureDenoiser(torch.zeros(2, 2), 1.0, labels=torch.zeros(3)), "labels: shape"),
        (lambda: mixture()(torch.zeros(4, 2), 0.5), r"x: shape \(4, 2\) was given; expected \(batch, 2, 2\)"),
        (lambda: mixture()(torch.zeros(4, 2, 2), torch.rand(3)), "t: shape"),
        (lambda: mixture()(torch.zeros(4, 2, 2), 1.5), "t: 1.5"),
        (lambda: mixture()(torch.zeros(4, 2, 2), 0.5, label=torch.zeros(4)), "label: this mixture has no classes"),
        (lambda: mixture(process=processes.OUVE())(torch.zeros(4, 2, 2), 0.5), "y: OUVE.denoiser needs"),
        (lambda: mixture().posterior_covariance(torch.zeros(4, 2, 2), torch.rand(4, 2)), "t: shape"),
        (lambda: tw.GaussianDenoiser(torch.tensor(1.0), 1.0), "means: shape"),
    ],
)
def test_bad_input_is_named(build, named):
    with pytest.raises(InputError, match=named):
        build()


def test_a_two_sided_interpolant_is_refused():
    with pytest.raises(IncompatibleError, match="MixtureInterpolantDenoiser"):
        mixture(process=processes.Interpolant())
