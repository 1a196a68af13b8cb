"""Processes: coefficients, their derivatives and inverses, closed forms, marginals, priors."""

import copy
import math
import pickle

import pytest
import torch
from process_cases import ENDPOINT, EVERY, GAUSSIAN, LINEAR, TWO_SIDED, inner

import tweed as tw
from tweed import processes
from tweed.errors import IncompatibleError, InputError

T0, T1 = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
ENDS = torch.tensor([0.0, 1e-9, 1e-6, 1e-4, 1 - 1e-4, 1 - 1e-6, 1 - 1e-9, 1.0], dtype=torch.float64)


def over(cases):
    return pytest.mark.parametrize("process", cases.values(), ids=cases.keys())


def close(actual, expected, rtol=1e-12, atol=1e-12):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=rtol, atol=atol)


@over(LINEAR)
def test_time_inverts_log_snr_everywhere(process):
    t = torch.cat(
        [ENDS, torch.linspace(0, 1, 4001, dtype=torch.float64), torch.logspace(-9, 0, 200, dtype=torch.float64)]
    )
    assert (process.time(process.log_snr(t)) - t).abs().max() < 1e-10
    for number in (0.0, 1e-9, 0.3, 1.0):
        assert abs(process.time(process.log_snr(number).item()).item() - number) < 1e-10


@over(LINEAR)
def test_log_snr_inverts_time(process):
    high, low = process.level(process.t_min or 1e-3).log_snr, process.level(process.t_max).log_snr
    values = torch.linspace(high, low, 301, dtype=torch.float64)
    close(process.log_snr(process.time(values)), values, atol=1e-7, rtol=1e-7)


@over(LINEAR)
def test_log_snr_beyond_the_ends_gives_the_ends(process):
    t = process.time(torch.tensor([math.inf, 800.0, -800.0, -math.inf], dtype=torch.float64))
    close(t, [0.0, 0.0, 1.0, 1.0], atol=1e-9)
    assert process.time(process.log_snr(1.0)).item() <= 1.0


@over(LINEAR)
def test_log_snr_is_log_of_alpha_over_sigma_and_falls(process):
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)
    value = process.log_snr(t)
    assert not value.isnan().any()
    assert (value[1:] < value[:-1]).all()
    inside = inner()
    close(process.log_snr(inside), (process.alpha(inside) / process.sigma(inside)).log(), atol=1e-11)


@over(EVERY)
def test_derivatives_are_those_of_autograd(process):
    t = inner(501).requires_grad_()
    for name in ("alpha", "beta", "sigma"):
        value = getattr(process, name)(t)
        slope = torch.autograd.grad(value.sum(), t, allow_unused=True)[0] if value.requires_grad else None
        analytic = getattr(process, f"{name}_dot")(t.detach())
        close(analytic, torch.zeros_like(t) if slope is None else slope.nan_to_num(0.0), rtol=1e-8, atol=1e-10)
    variance = process.sigma(t) ** 2
    slope = torch.autograd.grad(variance.sum(), t)[0] if variance.requires_grad else torch.zeros_like(t)
    close(process.variance_dot(t.detach()), slope, rtol=1e-8, atol=1e-9)


@over(EVERY)
def test_derivatives_hold_at_the_ends(process):
    # One-sided differences; a square root leaves its end with an infinite slope, a variance with a finite one.
    h = 1e-7
    for end, step in ((0.0, h), (1.0, -h)):
        for name in ("alpha", "beta", "sigma"):
            f, slope = getattr(process, name), getattr(process, f"{name}_dot")(end).item()
            difference = (f(end + step) - f(end)).item() / step
            assert not math.isnan(slope)
            if math.isinf(slope):
                assert abs(difference) > 100
                assert difference * slope > 0
            else:
                assert difference == pytest.approx(slope, rel=1e-4, abs=1e-4)
        difference = (process.sigma(end + step) ** 2 - process.sigma(end) ** 2).item() / step
        scale = max(1.0, process.sigma(1.0).item() ** 2)
        assert process.variance_dot(end).item() == pytest.approx(difference, rel=1e-4, abs=1e-4 * scale)


@over(LINEAR)
def test_diffusion_follows_from_the_marginals(process):
    t = inner()
    expected = process.variance_dot(t) - 2.0 * process.alpha_dot(t) / process.alpha(t) * process.sigma(t) ** 2
    close(process.diffusion(t) ** 2, expected, rtol=1e-9, atol=1e-9 * expected.max().item())
    # g^2 = -2 sigma^2 (log-SNR)'
    t = t.requires_grad_()
    slope = torch.autograd.grad(process.log_snr(t).sum(), t)[0]
    close(process.diffusion(t.detach()) ** 2, -2.0 * process.sigma(t.detach()) ** 2 * slope, rtol=1e-7, atol=1e-9)


@over(LINEAR)
def test_forward_sde_reproduces_mean_and_variance(process):
    steps, end = 4000, 0.97
    h = end / steps
    middle = (torch.arange(steps, dtype=torch.float64) + 0.5) * h
    ones, zeros = torch.ones(steps, dtype=torch.float64), torch.zeros(steps, dtype=torch.float64)
    given = process.endpoint == "given"
    rate = process.drift(ones, middle, zeros if given else None).tolist()
    pull = process.drift(zeros, middle, ones if given else None).tolist()
    growth = (process.diffusion(middle) ** 2).tolist()
    x0, y = 1.3, -0.7
    mean, variance = process.alpha(0.0).item() * x0, process.sigma(0.0).item() ** 2
    for f, towards, g2 in zip(rate, pull, growth, strict=True):
        # The variance is that of the step from its beginning; the mean is taken to its middle.
        middle_mean = mean + 0.5 * h * (f * mean + towards * y)
        mean += h * (f * middle_mean + towards * y)
        middle_variance = variance + 0.5 * h * (2.0 * f * variance + g2)
        variance += h * (2.0 * f * middle_variance + g2)
    expected = (process.alpha(end) * x0 + process.beta(end) * y).item()
    assert mean == pytest.approx(expected, rel=5e-3, abs=1e-3)
    assert math.sqrt(variance) == pytest.approx(process.sigma(end).item(), rel=5e-3)


@over(LINEAR)
def test_ends(process):
    assert process.alpha(0.0).item() == pytest.approx(1.0, abs=1e-15)
    assert process.beta(0.0).item() == 0.0
    assert process.sigma(0.0).item() == (process.sigma_min if isinstance(process, processes.VE) else 0.0)
    assert process.alpha(1.0).item() >= 0.0
    assert 0.0 <= process.t_min <= process.t_max <= 1.0
    assert process.t_min < process.t_max or process.steps == 1
    assert math.isfinite(process.level(process.t_max).log_snr)
    assert process.t_max < 1.0 or math.isfinite(process.level(1.0).log_snr)


@over(EVERY)
def test_coefficients_are_float64_of_the_shape_of_t(process):
    for t in (0.3, torch.tensor(0.3), torch.rand(4), torch.rand(4, 3), torch.rand(2, 3, 5), torch.zeros(0)):
        shape = t.shape if isinstance(t, torch.Tensor) else ()
        for name in ("alpha", "beta", "sigma", "alpha_dot", "beta_dot", "sigma_dot", "variance_dot", "log_snr"):
            value = getattr(process, name)(t)
            assert value.shape == shape
            assert value.dtype == torch.float64


@over(EVERY)
def test_level_holds_the_same_numbers(process):
    level = process.level(0.37)
    for name in ("alpha", "beta", "sigma", "alpha_dot", "beta_dot", "sigma_dot", "log_snr"):
        assert getattr(level, name) == getattr(process, name)(0.37).item()


@over(EVERY)
def test_values_are_hashable_and_equal_by_value(process):
    twin = copy.deepcopy(process)
    assert twin == process
    assert hash(twin) == hash(process)
    assert pickle.loads(pickle.dumps(process)) == process
    assert process not in [other for other in EVERY.values() if other is not process]
    with pytest.raises(AttributeError):
        process.beta_min = 1.0


# Closed forms


def test_vp_and_sub_vp_are_those_of_the_sde_paper():
    t = inner()
    vp, sub = processes.VP(0.1, 20.0), processes.SubVP(0.1, 20.0)
    beta, integral = 0.1 + 19.9 * t, 0.1 * t + 19.9 * t**2 / 2
    x = torch.linspace(-3, 3, len(t), dtype=torch.float64)
    for process in (vp, sub):
        close(process.drift(x, t), -0.5 * beta * x)
        close(process.alpha(t), (-0.5 * integral).exp())
    close(vp.diffusion(t), beta.sqrt())
    close(vp.alpha(t) ** 2 + vp.sigma(t) ** 2, torch.ones_like(t))
    close(sub.sigma(t), 1 - (-integral).exp())
    close(sub.diffusion(t), (beta * (1 - (-2 * integral).exp())).sqrt())
    assert (sub.sigma(t) <= vp.sigma(t)).all()
    assert (vp.sigma(1.0) - sub.sigma(1.0)).item() < 1e-4


def test_ve_and_edm():
    t = inner()
    ve = processes.VE(0.01, 50.0)
    close(ve.sigma(t), 0.01 * (50.0 / 0.01) ** t)
    close(ve.diffusion(t), ve.sigma(t) * math.sqrt(2 * math.log(50.0 / 0.01)))
    close(ve.drift(t, t), torch.zeros_like(t))
    edm = processes.EDM()
    close(edm.sigma(t), 80.0 * t)
    close(edm.diffusion(t) ** 2, 2 * 80.0 * edm.sigma(t))
    assert edm.sigma(edm.t_min).item() == pytest.approx(0.002, rel=1e-14)


def test_cosine_is_that_of_improved_ddpm():
    t, s = inner(), 0.008
    process = processes.Cosine(s)
    bar = ((t + s) / (1 + s) * math.pi / 2).cos() ** 2 / math.cos(s / (1 + s) * math.pi / 2) ** 2
    close(process.alpha(t) ** 2, bar)
    close(process.sigma(t) ** 2, 1 - bar)
    assert process.alpha(1.0).item() == 0.0
    assert process.log_snr(process.t_max).item() == pytest.approx(-5.1, abs=1e-9)


def test_rectified_flow_and_one_sided_paths():
    t = inner()
    close(processes.RectifiedFlow().log_snr(t), ((1 - t) / t).log())
    linear, flow = processes.Interpolant(one_sided=True), processes.RectifiedFlow()
    for name in ("alpha", "sigma", "alpha_dot", "sigma_dot", "log_snr", "diffusion"):
        close(getattr(linear, name)(t), getattr(flow, name)(t))
    trigonometric = processes.Interpolant("trigonometric", one_sided=True)
    close(trigonometric.alpha(t), (math.pi * t / 2).cos())
    close(trigonometric.sigma(t), (math.pi * t / 2).sin())
    vp = processes.Interpolant("vp", one_sided=True)
    close(vp.alpha(t) ** 2 + vp.sigma(t) ** 2, torch.ones_like(t))
    # A variance-preserving diffusion: the drift is -beta x / 2 and the diffusion sqrt(beta).
    close(vp.drift(torch.ones_like(t), t), -0.5 * vp.diffusion(t) ** 2, rtol=1e-10)


@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_from_betas_is_the_discrete_process_at_its_own_times(steps):
    betas = (
        torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)
        if steps > 1
        else torch.tensor([0.3], dtype=torch.float64)
    )
    process = processes.FromBetas(betas)
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    bar = (1 - betas).cumprod(0)
    close(process.alpha(t), bar.sqrt())
    close(process.sigma(t), (1 - bar).sqrt(), atol=1e-12)
    close(process.index(t), torch.arange(steps, dtype=torch.float64), atol=1e-9)
    assert process.index(0.0).item() == 0.0
    assert process.steps == steps
    dense = torch.linspace(0, 1, 1001, dtype=torch.float64)
    close(process.alpha(dense) ** 2 + process.sigma(dense) ** 2, torch.ones_like(dense))


def test_from_betas_schedules_are_the_published_ones():
    linear = torch.tensor(processes.FromBetas.linear().betas, dtype=torch.float64)
    close(linear[[0, -1]], [1e-4, 0.02])
    close(linear.diff(), torch.full((999,), (0.02 - 1e-4) / 999))
    scaled = torch.tensor(processes.FromBetas.scaled_linear().betas, dtype=torch.float64)
    close(scaled[[0, -1]], [0.00085, 0.012])
    assert scaled.sqrt().diff().std() < 1e-15
    cosine = processes.FromBetas.cosine(1000)
    assert max(cosine.betas) == 0.999
    t = torch.arange(1, 990, dtype=torch.float64) / 1000
    close(cosine.alpha(t), processes.Cosine().alpha(t), atol=1e-10)


def test_zero_terminal_snr_keeps_the_first_level_and_ends_in_pure_noise():
    plain = processes.FromBetas.scaled_linear()
    process = processes.FromBetas.scaled_linear(zero_terminal_snr=True)
    assert process.alpha(1.0).item() == 0.0
    assert process.sigma(1.0).item() == 1.0
    close(process.alpha(1 / 1000), plain.alpha(1 / 1000))
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    root = plain.alpha(t)
    close(process.alpha(t), (root - root[-1]) * root[0] / (root[0] - root[-1]), atol=1e-12)
    assert process.t_max == 0.999
    assert process != plain


def test_vp_is_the_limit_of_ddpm():
    t = torch.arange(1, 11, dtype=torch.float64) / 10
    errors = []
    for n in (200, 400, 800):
        middle = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        discrete = processes.FromBetas((0.1 + 19.9 * middle) / n)
        errors.append((discrete.alpha(t) - processes.VP().alpha(t)).abs().max().item())
    assert errors[2] < 1e-3 * 2
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.15)
    assert errors[1] / errors[2] == pytest.approx(2.0, abs=0.15)


def test_ouve_is_that_of_sgmse():
    t, process = inner(), processes.OUVE(1.5, 0.05, 0.5)
    log = math.log(10.0)
    close(process.sigma(t) ** 2, 0.05**2 * (10.0 ** (2 * t) - (-3.0 * t).exp()) * log / (1.5 + log))
    close(process.alpha(t), (-1.5 * t).exp())
    close(process.beta(t), 1 - (-1.5 * t).exp())
    close(process.diffusion(t), 0.05 * 10.0**t * math.sqrt(2 * log))
    x, y = torch.randn(len(t), dtype=torch.float64), torch.randn(len(t), dtype=torch.float64)
    close(process.drift(x, t, y), 1.5 * (y - x))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_mean_reverting_is_ir_sde(schedule):
    process = processes.MeanReverting(noise=0.3, remainder=0.02, schedule=schedule)
    t = torch.linspace(0, 1, 20001, dtype=torch.float64)
    shape = {
        "constant": torch.ones_like(t),
        "linear": 1e-4 + (0.02 - 1e-4) * t,
        "cosine": 1 - (((t + 0.008) / 1.008 * math.pi / 2).cos() / math.cos(0.008 / 1.008 * math.pi / 2)) ** 2,
    }[schedule]
    integral = torch.cat([T0[None], torch.cumulative_trapezoid(shape, t)])
    gain = -math.log(0.02) / integral[-1]
    h = gain * integral
    close(process.alpha(t), (-h).exp(), atol=1e-7)
    close(process.beta(t), 1 - (-h).exp(), atol=1e-7)
    close(process.sigma(t) ** 2, 0.3**2 * (1 - (-2 * h).exp()), atol=1e-7)
    close(process.diffusion(t) ** 2, 2 * 0.3**2 * gain * shape, atol=1e-6)
    x = torch.full_like(t, 0.4)
    close(process.drift(x, t, torch.full_like(t, -1.0)), gain * shape * (-1.0 - 0.4), atol=1e-6)
    assert process.alpha(1.0).item() == pytest.approx(0.02, rel=1e-12)


@pytest.mark.parametrize("kind", ["decreased", "increased", "average"])
def test_residual_is_the_limit_of_rddm(kind):
    def error(n):
        i = torch.arange(1, n + 1, dtype=torch.float64)
        weights = {"decreased": n + 1 - i, "increased": i, "average": torch.ones_like(i)}[kind]
        sums = (weights / weights.sum()).cumsum(0)
        process = processes.Residual(kind, kind, noise=0.25)
        close(process.alpha(i / n) + process.beta(i / n), torch.ones_like(i))
        residual = (process.beta(i / n) - sums).abs().max().item()
        variance = (process.sigma(i / n) ** 2 - 0.25 * sums).abs().max().item()
        assert variance == pytest.approx(0.25 * residual, abs=1e-12)
        return residual

    assert error(1000) < 1e-3
    if kind != "average":
        assert error(1000) / error(2000) == pytest.approx(2.0, abs=0.02)


@over(TWO_SIDED)
def test_two_sided_ends_are_exact(process):
    for end, (alpha, beta) in ((0.0, (1.0, 0.0)), (1.0, (0.0, 1.0))):
        if process.path == "mirror":
            alpha, beta = 1.0, 0.0
        assert process.alpha(end).item() == pytest.approx(alpha, abs=1e-15)
        assert process.beta(end).item() == pytest.approx(beta, abs=1e-15)
        assert process.sigma(end).item() == pytest.approx(0.0, abs=1e-14)
    assert (process.sigma(inner()) > 0).all() or process.latent == "none"


def test_trigonometric_interpolants_keep_the_variance():
    t = torch.linspace(0, 1, 501, dtype=torch.float64)
    for latent in ("none", "brownian", "quadratic", "sine", "sigmoid"):
        process = processes.Interpolant("trigonometric", latent)
        close(process.alpha(t) ** 2 + process.beta(t) ** 2 + process.sigma(t) ** 2, torch.ones_like(t))
    kink = processes.Interpolant("trigonometric", "sine", 1.0)
    assert math.isfinite(kink.alpha_dot(0.5).item())


def test_encoder_decoder_passes_through_pure_noise():
    process = processes.Interpolant("encoder-decoder", "sine")
    assert process.alpha(0.5).item() == 0.0
    assert process.beta(0.5).item() == 0.0
    assert process.sigma(0.5).item() == pytest.approx(1.0, abs=1e-15)
    t = inner()
    assert (process.beta(t[t < 0.5]) == 0).all()
    assert (process.alpha(t[t > 0.5]) == 0).all()
    close(process.alpha(t[t < 0.5]), (math.pi * t[t < 0.5]).cos() ** 2)


def test_latents_are_the_published_ones():
    t = inner()
    close(processes.Interpolant("linear", "brownian", 3.0).sigma(t) ** 2, 3.0 * t * (1 - t))
    close(processes.Interpolant("linear", "brownian", 3.0).variance_dot(t), 3.0 * (1 - 2 * t))
    close(processes.Interpolant("linear", "quadratic", 3.0).sigma(t), 3.0 * t * (1 - t))
    close(processes.Interpolant("linear", "sine", 3.0).sigma(t), 3.0 * (math.pi * t).sin() ** 2)


# Marginals and priors


@over(EVERY)
def test_perturb_for_every_shape_of_time(process):
    generator = tw.random.generator(3)
    x0, noise, y = (torch.randn(4, 3, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    ends = {} if process.endpoint == "none" else {"y": y}
    for t in (0.4, torch.tensor(0.4), torch.rand(4), torch.rand(4, 3), torch.rand(1, 3), torch.rand(4, 3, 5)):
        full = torch.as_tensor(t, dtype=torch.float64)
        full = full.reshape(full.shape + (1,) * (3 - full.ndim)).expand(4, 3, 5)
        expected = process.alpha(full) * x0 + process.beta(full) * y + process.sigma(full) * noise
        close(process.perturb(x0, t, noise, **ends), expected)
        mean, std = process.marginal(x0, t, **ends)
        close(mean + std * noise, expected)
        assert mean.shape == x0.shape
    half = process.perturb(x0.bfloat16(), 0.4, noise.bfloat16(), **({"y": y.float()} if ends else {}))
    assert half.dtype == torch.float32
    assert process.perturb(x0[:0], torch.rand(0), noise[:0], **{k: v[:0] for k, v in ends.items()}).shape == (0, 3, 5)


@over(LINEAR)
def test_drift_for_every_shape_of_time(process):
    generator = tw.random.generator(4)
    x, y = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    ends = () if process.endpoint == "none" else (y,)
    t = 0.1 + 0.8 * torch.rand(4, 3, generator=generator, dtype=torch.float64)
    together = process.drift(x, t, *ends)
    for i in range(4):
        for j in range(3):
            one = process.drift(x[i : i + 1, j : j + 1], t[i, j].item(), *(e[i : i + 1, j : j + 1] for e in ends))
            close(together[i, j], one[0, 0])


@over(EVERY)
def test_prior_is_addressed_by_seed_and_index(process):
    y = 5.0 + torch.arange(30000, dtype=torch.float32).reshape(10000, 3) % 3
    ends = {} if process.endpoint == "none" else {"y": y}
    whole = process.prior((10000, 3), seed=11, **ends)
    assert whole.dtype == torch.float32
    part = process.prior((7, 3), seed=11, index=93, **{k: v[93:100] for k, v in ends.items()})
    assert torch.equal(part, whole[93:100])
    level = process.level(1.0)
    # With a given endpoint the data, of which it is a guess, starts as it; mirrors reflect all of theirs.
    mirror = process in (TWO_SIDED["mirror-brownian-1.0"], TWO_SIDED["mirror-sigmoid-2.0"])
    share = level.beta + (level.alpha if process.endpoint == "given" else 0.0)
    share = 1.0 if mirror else share
    residual = (whole - share * y if ends else whole).double()
    assert residual.std().item() == pytest.approx(level.sigma, rel=0.02, abs=1e-6)
    assert abs(residual.mean().item()) < 5 * max(level.sigma, 1e-6) / math.sqrt(30000)
    earlier = process.prior((10000, 3), seed=11, t=0.5, **ends)
    noise = process.level(0.5).sigma
    assert earlier.std(0).max().item() == pytest.approx(noise, rel=0.05, abs=1e-5)


def test_complex_states_on_ouve():
    process = processes.OUVE()
    n = 20000
    x0, y = torch.full((n, 2), 1 + 2j), torch.full((n, 2), -1 + 0.5j)
    noise = tw.random.normal((n, 2), 5, dtype=torch.complex64)
    x = process.perturb(x0, torch.full((n,), 0.6), noise, y)
    assert x.dtype == torch.complex64
    mean = process.alpha(0.6).item() * (1 + 2j) + process.beta(0.6).item() * (-1 + 0.5j)
    assert abs(x.mean().item() - mean) < 5 * process.sigma(0.6).item() / math.sqrt(2 * n)
    assert (x - mean).abs().square().mean().sqrt().item() == pytest.approx(process.sigma(0.6).item(), rel=0.02)
    drift = process.drift(x, 0.6, y)
    close(drift, 1.5 * (y - x), atol=1e-5, rtol=1e-5)
    # A complex endpoint makes a complex prior, whatever type was named.
    prior = process.prior((n, 2), 1, y=y)
    assert prior.dtype == torch.complex64
    assert abs(prior.mean().item() - (-1 + 0.5j)) < 0.01


# Errors


@over(EVERY)
@pytest.mark.parametrize("t", [-0.1, 1.0001, math.nan, math.inf])
def test_a_time_outside_is_refused(process, t):
    for call in (
        process.alpha,
        process.log_snr,
        process.level,
        lambda t: process.perturb(torch.zeros(1), t, torch.zeros(1)),
    ):
        with pytest.raises(InputError, match="t:"):
            call(t)


def test_shapes_that_do_not_fit_are_refused():
    process, x = processes.VP(), torch.zeros(4, 3)
    for t in (torch.rand(3), torch.rand(4, 2), torch.rand(4, 3, 1), torch.rand(5)):
        with pytest.raises(InputError, match=r"t: shape .* state of shape \(4, 3\)"):
            process.perturb(x, t, x)
        with pytest.raises(InputError, match="t: shape"):
            process.drift(x, t)
    with pytest.raises(InputError, match=r"noise: shape \(4, 2\)"):
        process.perturb(x, 0.5, torch.zeros(4, 2))


@over(ENDPOINT)
def test_a_missing_or_misshapen_endpoint_is_refused(process):
    x = torch.zeros(4, 3)
    with pytest.raises(InputError, match=r"y: \w+.marginal needs the endpoint"):
        process.perturb(x, 0.5, x)
    with pytest.raises(InputError, match=r"y: \w+.drift needs"):
        process.drift(x, 0.5)
    with pytest.raises(InputError, match=r"y: \w+.prior needs"):
        process.prior((4, 3))
    for y in (torch.zeros(5, 3), torch.zeros(3), torch.zeros(4, 2)):
        for call in (lambda y: process.perturb(x, 0.5, x, y), lambda y: process.drift(x, 0.5, y)):
            with pytest.raises(InputError, match=r"y: shape"):
                call(y)
        with pytest.raises(InputError, match=r"y: shape"):
            process.prior((4, 3), y=y)


@over(TWO_SIDED)
def test_a_two_sided_interpolant_has_no_sde_nor_inverse(process):
    x = torch.zeros(2, 3)
    with pytest.raises(IncompatibleError, match="drift"):
        process.drift(x, 0.5)
    with pytest.raises(IncompatibleError, match="diffusion"):
        process.diffusion(0.5)
    with pytest.raises(IncompatibleError, match="time"):
        process.time(0.0)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: processes.VP(beta_min=0.0), "beta_min"),
        (lambda: processes.VP(beta_min=3.0, beta_max=1.0), "beta_min, beta_max: 3.0, 1.0"),
        (lambda: processes.SubVP(beta_max=math.nan), "beta_max"),
        (lambda: processes.Cosine(offset=-0.1), "offset: -0.1"),
        (lambda: processes.VE(sigma_min=0.0), "sigma_min"),
        (lambda: processes.EDM(sigma_min=3.0, sigma_max=2.0), "sigma_min, sigma_max: 3.0, 2.0"),
        (lambda: processes.EDM(sigma_max=math.inf), "sigma_max"),
        (lambda: processes.FromBetas([]), "betas: shape"),
        (lambda: processes.FromBetas([[0.1]]), "betas: shape"),
        (lambda: processes.FromBetas([0.1, 1.0, 0.1]), r"betas\[1\] = 1.0"),
        (lambda: processes.FromBetas([0.1, math.nan]), r"betas\[1\]"),
        (lambda: processes.FromBetas([0.0]), r"betas\[0\] = 0.0"),
        (lambda: processes.FromBetas([0.5], zero_terminal_snr=True), "betas: one beta"),
        (lambda: processes.MeanReverting(noise=0.0), "noise"),
        (lambda: processes.MeanReverting(remainder=1.0), "remainder"),
        (lambda: processes.MeanReverting(schedule="cosin"), "did you mean 'cosine'"),
        (lambda: processes.OUVE(stiffness=0.0), "stiffness"),
        (lambda: processes.OUVE(sigma_min=1.0), "sigma_min"),
        (lambda: processes.Residual(residual="falling"), "residual: 'falling'"),
        (lambda: processes.Residual(variance="rising"), "variance: 'rising'"),
        (lambda: processes.Residual(noise=-1.0), "noise: -1.0"),
        (lambda: processes.Interpolant("trig"), "did you mean 'trigonometric'"),
        (lambda: processes.Interpolant(latent="brown"), "latent: 'brown'"),
        (lambda: processes.Interpolant(latent="brownian", scale=0.0), "scale"),
        (lambda: processes.Interpolant(latent="brownian", one_sided=True), "latent"),
        (lambda: processes.Interpolant("mirror", one_sided=True), "path"),
        (lambda: processes.Interpolant("vp"), "one_sided"),
        (lambda: processes.Interpolant("mirror"), "latent"),
        (lambda: processes.Interpolant("encoder-decoder"), "latent"),
        (lambda: processes.Interpolant("encoder-decoder", "brownian"), "sine"),
        (lambda: processes.Interpolant("trigonometric", "brownian", 5.0), "scale: 5.0"),
    ],
)
def test_bad_options_are_named(build, named):
    with pytest.raises(InputError, match=named):
        build()


def test_every_process_is_listed_by_its_name():
    assert {type(p).__name__ for p in EVERY.values()} == set(processes.BY_NAME)
    for name, kind in processes.BY_NAME.items():
        assert getattr(processes, name) is kind
    assert {type(p) for p in GAUSSIAN.values()} | {type(p) for p in ENDPOINT.values()} == set(
        processes.BY_NAME.values()
    )
