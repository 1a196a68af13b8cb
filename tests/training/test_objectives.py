import math

import pytest
import torch
from torch import nn

import tweed as tw
from tweed.core.denoiser import FunctionDenoiser, InterpolantDenoiser
from tweed.errors import IncompatibleError, InputError
from tweed.training import DenoisingLoss, InterpolantLoss, flow_matching, times, weightings

GAUSSIAN = [tw.processes.VP(), tw.processes.RectifiedFlow(), tw.processes.EDM()]
# Of the processes here; those of one process alone are tested with it.
TARGETS = [kind() for name, kind in tw.targets.BY_NAME.items() if name not in ("MeanRevertingV", "Resnoise")]


def gaussian(process, mean, std):
    """The exact data estimate for data N(mean, std^2)."""

    def x0(x, t, **cond):
        a, s = (process.alpha(t)[:, None], process.sigma(t)[:, None])
        if cond.get("y") is not None:
            x = x - process.beta(t)[:, None] * cond["y"]
        return mean + a * std**2 / (a**2 * std**2 + s**2) * (x - a * mean)

    return FunctionDenoiser(x0, process, tw.targets.Data())


@pytest.mark.parametrize("process", GAUSSIAN, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: type(t).__name__)
def test_loss_of_the_exact_denoiser_of_a_gaussian(process, target):
    n, std, t = 40000, 0.7, 0.4
    x = 0.3 + std * tw.random.normal((n, 1), 1, dtype=torch.float64)
    loss = DenoisingLoss(target)(gaussian(process, 0.3, std), {"x": x}, t=torch.full((n,), t, dtype=torch.float64))
    assert loss.shape == (n,)
    # The posterior variance of the data, times (a_F - b_F alpha / sigma)^2: the error of the data is minus that of
    # the noise times sigma / alpha.
    a, s = process.alpha(t), process.sigma(t)
    row = target.row(process, torch.tensor(t, dtype=torch.float64))
    expected = std**2 * s**2 / (a**2 * std**2 + s**2) * (row.data - row.noise * a / s) ** 2
    assert abs(loss.mean() / expected - 1.0) < 4.0 * math.sqrt(2.0 / n)


def test_the_minimiser_is_the_conditional_mean_under_any_weighting():
    # A linear answer k x at each of five times: the least-squares k is that of the exact denoiser.
    process, n = tw.processes.VP(), 4000
    x = tw.random.normal((n, 1), 0, dtype=torch.float64) * 0.5
    for weighting in (weightings.Uniform(), weightings.MinSNR(), weightings.Likelihood()):
        for t in (0.1, 0.5, 0.9):
            k = torch.zeros((), dtype=torch.float64, requires_grad=True)
            denoiser = FunctionDenoiser(lambda x, t, k=k: k * x, process, tw.targets.Noise())
            loss = DenoisingLoss(weighting=weighting)
            given = {"t": torch.full((n,), t, dtype=torch.float64)}
            value = loss(denoiser, {"x": x}, **given).mean()
            slope = torch.autograd.grad(value, k, create_graph=True)[0]
            best = -(slope / torch.autograd.grad(slope, k)[0]).item()
            a, s = process.alpha(t).item(), process.sigma(t).item()
            assert best == pytest.approx(s / (a**2 * 0.25 + s**2), rel=0.1)


def test_huber_is_the_square_for_small_and_the_norm_for_large_errors():
    process, x = tw.processes.RectifiedFlow(), torch.zeros(3, 4)
    for size, expected in ((1e-3, 0.5 * 4 * 1e-6 / 2.0), (1e4, 2e4)):
        denoiser = FunctionDenoiser(lambda x, t, s=size: torch.full_like(x, s), process, tw.targets.Data())
        loss = DenoisingLoss(loss="huber", huber=1.0)(denoiser, {"x": x})
        assert loss.shape == (3,)
        assert torch.allclose(loss, torch.full((3,), expected), rtol=1e-2 if size > 1 else 5e-2)


def test_endpoint_conditioned_process_reaches_the_network_and_the_row():
    process = tw.processes.Residual()
    x, y = tw.random.normal((64, 2), 0), tw.random.normal((64, 2), 1)
    given = {"t": torch.full((64,), 0.5, dtype=torch.float64), "noise": torch.zeros(64, 2)}

    def velocity(state, t, y=None):
        assert y is not None
        return y - x  # at noise 0 the "average"-like path: alpha' x + beta' y with alpha' = -1 at t = 1/2

    denoiser = FunctionDenoiser(velocity, process, tw.targets.Velocity())
    assert process.beta_dot(0.5) == 1.0
    assert DenoisingLoss()(denoiser, {"x": x, "y": y}, **given).max() < 1e-12
    with pytest.raises(InputError, match="'y'"):
        DenoisingLoss()(denoiser, {"x": x})


def test_rows_of_a_batch_do_not_depend_on_how_it_is_cut():
    process, x = tw.processes.RectifiedFlow(), tw.random.normal((12, 3), 0)
    loss = flow_matching()
    whole = loss.prepare(process, {"x": x}, seed=4, step=9)
    for first, last in ((0, 5), (5, 12)):
        part = loss.prepare(process, {"x": x[first:last]}, seed=4, step=9, offset=first, total=12)
        assert torch.equal(part["t"], whole["t"][first:last])
        assert torch.equal(part["noise"], whole["noise"][first:last])
    following = loss.prepare(process, {"x": x}, seed=4, step=10)
    assert not torch.equal(following["noise"], whole["noise"])
    with pytest.raises(InputError, match="total"):
        loss.prepare(process, {"x": x}, seed=0, step=0, offset=3, total=12)


def test_common_noise_and_time_can_be_given():
    x, noise = tw.random.normal((6, 2), 0), tw.random.normal((6, 2), 1)
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    denoiser = FunctionDenoiser(lambda x, t: torch.zeros_like(x), tw.processes.RectifiedFlow(), tw.targets.Velocity())
    loss = DenoisingLoss()(denoiser, {"x": x}, t=t, noise=noise)
    torch.testing.assert_close(loss, (noise - x).square().mean(1))


TWO_SIDED = tw.processes.Interpolant("linear", "brownian", scale=1.0)


def exact_two_sided(process):
    """Velocity and noise for x_0 ~ N(1, 0.25), x_1 ~ N(-1, 1): joint Gaussians, so linear regressions."""
    means, variances = (1.0, -1.0, 0.0), (0.25, 1.0, 1.0)

    def regress(coefficients):
        def answer(x, t, **cond):
            t = t.double()
            a = [c(t)[:, None] for c in (process.alpha, process.beta, process.sigma)]
            b = [c(t)[:, None] for c in coefficients]
            centre = sum(c * m for c, m in zip(a, means, strict=True))
            spread = sum(c**2 * v for c, v in zip(a, variances, strict=True))
            cross = sum(c * d * v for c, d, v in zip(a, b, variances, strict=True))
            shift = sum(d * m for d, m in zip(b, means, strict=True))
            return shift + cross / spread * (x - centre)

        return answer

    zero, one = torch.zeros_like, torch.ones_like
    velocity = regress((process.alpha_dot, process.beta_dot, process.sigma_dot))
    return velocity, regress((zero, zero, one))


def ends(n, seed=0):
    x = 1.0 + 0.5 * tw.random.normal((n, 1), seed, draw=1, dtype=torch.float64)
    return {"x": x, "y": -1.0 + tw.random.normal((n, 1), seed, draw=2, dtype=torch.float64)}


@pytest.mark.parametrize("kind", ["velocity", "noise", "score"])
@pytest.mark.parametrize("antithetic", [True, False])
def test_minimum_of_the_interpolant_losses_is_minus_half_the_mean_square(kind, antithetic):
    n = 40000
    denoiser = InterpolantDenoiser(*exact_two_sided(TWO_SIDED), TWO_SIDED)
    loss = InterpolantLoss(kind, antithetic=antithetic, times=times.Uniform(low=0.1, high=0.9))
    batch = loss.prepare(TWO_SIDED, ends(n), seed=1, step=0)
    value = loss(denoiser, batch)
    estimate = denoiser(TWO_SIDED.perturb(batch["x"], batch["t"], batch["noise"], batch["y"]), batch["t"])
    field = {"velocity": estimate.velocity, "noise": estimate.eps, "score": estimate.score}[kind]
    expected = -0.5 * field.square().mean()
    assert abs(value.mean() - expected) < 5.0 * (value.std() + 0.5 * field.square().std()) / math.sqrt(n)
    assert value.mean() < -0.01
    # And it is a minimum: any other field has a larger loss.
    for factor in (0.8, 1.2):
        scaled = [lambda x, t, f=f, k=factor: k * f(x, t) for f in exact_two_sided(TWO_SIDED)]
        assert loss(InterpolantDenoiser(*scaled, TWO_SIDED), batch).mean() > value.mean()


def test_antithetic_gradients_have_a_fraction_of_the_variance_near_the_end():
    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1)).double()
            with torch.no_grad():
                for i, p in enumerate(self.parameters()):
                    p.copy_(tw.random.normal((p.shape[0], p[0].numel()), i, dtype=torch.float64).reshape(p.shape) * 0.5)

        def forward(self, x, t):
            return self.layers(torch.cat((x, t.double()[:, None]), 1))

    field = Field()
    denoiser = InterpolantDenoiser(field, None, TWO_SIDED)
    variances = {}
    for antithetic in (True, False):
        loss = InterpolantLoss("velocity", antithetic=antithetic, times=times.Uniform("independent", high=0.02))
        gradients = []
        for step in range(200):
            value = loss(denoiser, ends(16, seed=step), seed=3, step=step).mean()
            grads = torch.autograd.grad(value, list(field.parameters()))
            gradients.append(torch.cat([g.flatten() for g in grads]))
        variances[antithetic] = torch.stack(gradients).var(0).sum().item()
    assert variances[True] < variances[False] / 5.0


def test_velocity_loss_and_plain_regression_have_the_same_gradient():
    k = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    denoiser = tw.NetworkDenoiser(lambda x, t: k * x + t.double()[:, None], TWO_SIDED, tw.targets.Velocity())
    batch = DenoisingLoss(times=times.Uniform(low=0.1, high=0.9)).prepare(TWO_SIDED, ends(50), seed=0, step=0)
    half = torch.autograd.grad(InterpolantLoss("velocity", antithetic=False)(denoiser, batch).sum(), k)[0]
    plain = torch.autograd.grad(DenoisingLoss()(denoiser, batch).sum(), k)[0]
    torch.testing.assert_close(2.0 * half, plain)


def test_bad_input():
    denoiser = FunctionDenoiser(lambda x, t: x, tw.processes.VP(), tw.targets.Noise())
    with pytest.raises(InputError, match="'x'"):
        DenoisingLoss()(denoiser, {"image": torch.zeros(2, 2)})
    with pytest.raises(InputError, match="loss"):
        DenoisingLoss(loss="l1")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="kind"):
        InterpolantLoss("b")  # type: ignore[arg-type]
    flat = tw.processes.Interpolant()
    with pytest.raises(IncompatibleError, match="latent"):
        InterpolantLoss("noise")(InterpolantDenoiser(lambda x, t: x, None, flat), ends(3))
    assert DenoisingLoss()(denoiser, {"x": torch.zeros(0, 2)}).shape == (0,)
