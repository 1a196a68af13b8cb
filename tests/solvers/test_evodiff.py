"""EVODiff against the published formulas written out, its limits, and what it may not depend on."""

import math

import pytest
import torch
from solver_cases import mixture, run

import tweed
from tweed import processes, random
from tweed.core import grids
from tweed.core.denoiser import CountingDenoiser, FunctionDenoiser
from tweed.core.rescheduled import Rescheduled
from tweed.errors import IncompatibleError, InputError
from tweed.guidance import ClassifierFree
from tweed.solvers import DDIM, EVODiff, sample

EDM = processes.EDM(0.002, 80.0)
F64 = torch.float64


def dot(a, b):
    dims = (1,) if a.ndim == 2 else tuple(range(2, a.ndim))
    return (a * b).sum(dims, keepdim=True)


def project(a, b):
    return (dot(a, b) / dot(b, b)).clamp(-2.0, 2.0)


def published(denoise, x, sigmas, official):
    """The sampler for `alpha = 1`, one line a formula, with `denoise(x, sigma)`; no step is shared with ours."""
    n, logistic = len(sigmas) - 1, torch.sigmoid
    m1 = denoise(x, sigmas[0])
    x = sigmas[1] / sigmas[0] * x + sigmas[1] * (1 / sigmas[1] - 1 / sigmas[0]) * m1
    m0 = denoise(x, sigmas[1])
    for i in range(2, n):
        k2, k1, k = sigmas[i - 2], sigmas[i - 1], sigmas[i]
        h, rho = 1 / k - 1 / k1, k / k1
        euler = rho * x + k * h * m0
        ratio = math.log(k2 / k1) / math.log(k1 / k)
        share = 0.5 * (1 - ((k + sigmas[-1]) / (sigmas[0] + sigmas[-1])) ** 2)
        beta = math.sqrt(rho / (k1 / k2))
        r1 = (1 - share) * beta + share * project(m0, m1)
        d1 = m0 - r1 * m1
        r = (logistic(r1.abs() / 4) * ratio).clamp(ratio / 4, 1.5 * ratio)
        probe = euler + k * h / (2 * r) * d1
        mt = denoise(probe, k)
        d2 = mt - ((1 - share) * beta + share * project(mt, m0)) * m0
        before, after = d1 / (ratio * h), ratio * d2 / h
        eta = logistic((project(after + before, after - before) / 2).abs()) / 2
        b = -(eta / ratio) * d1 + ratio * (1 - eta) * d2
        p = probe - euler - k * h / (2 * r) * b
        zeta = project(p, d1) / (h * k)
        if n <= 20:
            zeta = logistic(zeta.abs() - 0.5)
        else:
            c = logistic(project(m0, (m0 - m1) / h) * (2 - rho**2))
            zeta = logistic(-(zeta.abs() - 0.5) * c)
        x = euler + k * h / (2 * zeta) * b
        m1, m0 = m0, mt
    k1, k = sigmas[-2], sigmas[-1]
    h, rho = 1 / k - 1 / k1, k / k1
    euler = rho * x + k * h * m0
    if not official:
        return euler
    q = 1 - (math.sqrt(rho) if rho < 0.5 else math.sqrt(rho - 0.5)) / 2
    return (1 - math.sqrt(k * k1)) * euler + k * h / 2 * (m0 - q * m1)


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("steps", [3, 8, 20, 24])
@pytest.mark.parametrize("shape", [(5, 4), (3, 2, 3, 3)], ids=["vectors", "channels"])
def test_it_is_the_published_sampler(shape, steps, official):
    means = random.normal((4, *shape[1:]), 3, dtype=F64)
    model = tweed.MixtureDenoiser(means, 0.1, None, EDM)
    times = grids.karras(EDM, steps, end=EDM.t_min)
    x = 80.0 * random.normal(shape, 1, dtype=F64)
    expected = published(lambda x, s: model(x, s / 80.0).x0, x, (80.0 * times).tolist(), official)
    made = run(EVODiff("official" if official else "euler"), model, times, x)
    torch.testing.assert_close(made, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2])
def test_very_few_steps_are_euler(steps):
    x = 80.0 * random.normal((4, 2), 1, dtype=F64)
    model, times = mixture(EDM), grids.log_snr(EDM, steps, end=EDM.t_min)
    torch.testing.assert_close(run(EVODiff(), model, times, x), run(DDIM(), model, times, x))


def test_a_constant_estimate_gives_euler_exactly():
    model = FunctionDenoiser(lambda x, t: torch.ones_like(x), EDM)
    x, times = 80.0 * random.normal((4, 3), 1, dtype=F64), grids.log_snr(EDM, 9, end=EDM.t_min)
    torch.testing.assert_close(run(EVODiff(), model, times, x), run(DDIM(), model, times, x), rtol=0, atol=1e-12)
    nothing = FunctionDenoiser(lambda x, t: torch.zeros_like(x), EDM)
    torch.testing.assert_close(run(EVODiff(), nothing, times, x), run(DDIM(), nothing, times, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 21])
@pytest.mark.parametrize("end", [0.0, EDM.t_min])
def test_n_steps_cost_n_evaluations(steps, end):
    counter = CountingDenoiser(mixture(EDM))
    sample(
        counter,
        80.0 * random.normal((2, 2), 1),
        solver=EVODiff(),
        steps=steps,
        grid=lambda *a, **k: grids.karras(*a, **k | {"end": end}),
    )
    assert counter.evaluations == steps


@pytest.mark.parametrize(
    "process", [processes.VP(), processes.Cosine(), processes.RectifiedFlow()], ids=lambda p: type(p).__name__
)
def test_the_run_is_that_under_any_process(process):
    inner = mixture(EDM)
    levels = torch.linspace(-3.5, 5.0, 11, dtype=F64)
    x = random.normal((5, 2), 0, dtype=F64)
    ends = []
    for model in (inner, Rescheduled(inner, process)):
        times = model.process.time(levels)
        made = run(EVODiff("official"), model, times, x * model.process.sigma(times[0]))
        ends.append(made / model.process.alpha(times[-1]))
    torch.testing.assert_close(*ends, rtol=1e-7, atol=1e-7)


def test_it_goes_along_in_the_shifted_variable_of_an_endpoint():
    process, y = processes.MeanReverting(), random.normal((4, 2), 8, dtype=F64)
    times = grids.log_snr(process, 9, start=0.9, end=0.05)
    model = mixture(process)
    x = process.perturb(model.sample(4), 0.9, random.normal((4, 2), 3, dtype=F64), y)

    class Shifted(processes.Process):
        """The same coefficients without the endpoint."""

        _alpha, _sigma = staticmethod(process._alpha), staticmethod(process._sigma)
        _alpha_dot, _sigma_dot = staticmethod(process._alpha_dot), staticmethod(process._sigma_dot)
        _time = staticmethod(process._time)

    plain = mixture(Shifted())
    first, last = process.level(0.9).beta, process.level(times[-1].item()).beta
    made = run(EVODiff(), model, times, x, cond={"y": y})
    expected = run(EVODiff(), plain, times, x - first * y) + last * y
    torch.testing.assert_close(made, expected, rtol=1e-9, atol=1e-9)


def test_samples_do_not_see_one_another_and_an_empty_batch_is_fine():
    model, times = mixture(EDM), grids.log_snr(EDM, 8, end=EDM.t_min)
    x = 80.0 * random.normal((6, 2), 1, dtype=F64)
    whole = run(EVODiff(), model, times, x)
    torch.testing.assert_close(run(EVODiff(), model, times, x.flip(0)), whole.flip(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(run(EVODiff(), model, times, x[2:3]), whole[2:3], rtol=1e-12, atol=1e-12)
    assert run(EVODiff(), model, times, x[:0]).shape == (0, 2)


def test_units_of_the_data_do_not_matter_up_to_twenty_steps():
    times = grids.log_snr(EDM, 12, end=EDM.t_min).tolist()
    x = random.normal((5, 2), 1, dtype=F64)
    wide = processes.EDM(0.02, 800.0)
    means = torch.tensor([[1.0, 0.5], [-0.7, 0.3]], dtype=F64)
    small = run(EVODiff(), tweed.MixtureDenoiser(means, 0.1, None, EDM), times, 80.0 * x)
    large = run(EVODiff(), tweed.MixtureDenoiser(10.0 * means, 10.0, None, wide), times, 800.0 * x)
    torch.testing.assert_close(10.0 * small, large, rtol=1e-9, atol=1e-9)


def test_guidance_and_gradients_pass_through():
    labels = torch.tensor([0, 1, 0])
    inner = mixture(processes.VP())
    model = tweed.MixtureDenoiser(inner.means, inner.values[:, 0], None, processes.VP(), labels)
    guided, cond = ClassifierFree(model, 2.0), {"label": torch.tensor([0, 1, 0, 1])}
    x = random.normal((4, 2), 1, dtype=F64).requires_grad_()
    times = grids.log_snr(processes.VP(), 7, end=1e-2)
    made = sample(guided, x, solver=EVODiff(), times=times, cond=cond, gradients=True)
    (gradient,) = torch.autograd.grad(made.sum(), x)
    h = 1e-6 * torch.tensor([[1.0, -2.0]], dtype=F64).expand(4, 2)
    ahead, behind = (sample(guided, x.detach() + s * h, solver=EVODiff(), times=times, cond=cond) for s in (1, -1))
    torch.testing.assert_close((gradient * h).sum(), (ahead - behind).sum() / 2, rtol=1e-4, atol=1e-12)


def test_starts_of_pure_noise_are_fine():
    process = processes.Cosine()
    x = random.normal((5, 2), 1, dtype=F64)
    ours = sample(mixture(process), x, solver=EVODiff(), steps=40, grid=grids.log_snr)
    fine = sample(mixture(process), x, solver=tweed.solvers.DPMSolver(2), steps=400, grid=grids.log_snr)
    assert (ours - fine).square().mean().sqrt().item() < 0.05


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="final"):
        EVODiff("other")
    with pytest.raises(InputError, match="long"):
        EVODiff(long="no")
    x = random.normal((2, 2), 1)
    with pytest.raises(IncompatibleError, match="rise"):
        tweed.invert(mixture(processes.VP()), x, solver=EVODiff(), steps=4)
    with pytest.raises(IncompatibleError, match="each sample"):
        sample(mixture(EDM), x, solver=EVODiff(), times=torch.tensor([[1.0, 1.0], [0.1, 0.2]]))
    with pytest.raises(IncompatibleError, match="two-sided"):
        sample(FunctionDenoiser(lambda x, t: x, processes.Interpolant()), x, solver=EVODiff(), steps=3)
