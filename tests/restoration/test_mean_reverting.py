"""MRS: the published updates, and the properties that its samplers have exactly."""

import math
from itertools import pairwise

import pytest
import torch

import tweed as tw
from tweed import random
from tweed.core.denoiser import FunctionDenoiser
from tweed.core.exact import MixtureDenoiser
from tweed.core.processes import VP, MeanReverting
from tweed.core.targets import MeanRevertingV
from tweed.restoration.mean_reverting import mrs, remaining_grid
from tweed.solvers import DPMSolver

F64 = torch.float64
PROCESS = MeanReverting()


def mixture(process, shift=0.0):
    means = torch.tensor([[-0.5, 0.1], [0.6, 0.3]], dtype=F64) + shift
    return MixtureDenoiser(means, torch.tensor([0.02, 0.03]), torch.tensor([0.4, 0.6]), process)


def start(process, t, seed=1, n=6):
    y = random.normal((n, 2), random.fold(seed, 9), dtype=F64)
    return process.prior((n, 2), seed, y=y, t=t, dtype=F64), y


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("prediction", ["data", "noise"])
@pytest.mark.parametrize("kind", ["ode", "sde"])
@pytest.mark.parametrize("order", [1, 2])
def test_the_published_updates(order, kind, prediction, schedule):
    process = MeanReverting(noise=0.4, remainder=0.02, schedule=schedule)
    model, times = mixture(process), remaining_grid(process, 9, end=0.99).tolist()
    # Steps that are not even, so that the ratio of two of them matters.
    times = [*times[:3], *times[4:]]
    x, y = start(process, times[0])
    solver = mrs(order, kind, prediction, lower_order_final=False)
    ours = tw.sample(model, x, solver=solver, times=times, cond={"y": y}, seed=5)
    previous, h_previous, n = None, None, process.noise
    for i, (t, u) in enumerate(pairwise(times)):
        a_s, a_t = process.alpha(t).item(), process.alpha(u).item()
        s_s, s_t = n * math.sqrt(1 - a_s**2), n * math.sqrt(1 - a_t**2)
        h = math.log(a_t / s_t) - math.log(a_s / s_s)
        x0 = model(x, t, y=y).x0
        q = x0 if prediction == "data" else (x - a_s * x0 - (1 - a_s) * y) / s_s
        d = 0.0 if order == 1 or previous is None else (q - previous) * h / h_previous
        z = random.normal(x.shape, 5, draw=1 + 64 * i, dtype=F64)
        em, ep = math.exp(-h), math.exp(h)
        if (kind, prediction) == ("ode", "data"):
            x = s_t / s_s * x + a_t * (1 - em) * q + a_t * ((em - 1) / h + 1) * d
            x = x + y * (1 - s_t / s_s + s_t / s_s * a_s - a_t)
        elif (kind, prediction) == ("ode", "noise"):
            x = a_t / a_s * x - s_t * (ep - 1) * q - s_t * ((ep - 1) / h - 1) * d + y * (1 - a_t / a_s)
        elif prediction == "data":
            x = s_t / s_s * em * x + a_t * (1 - em**2) * q + a_t * (1 - (1 - em**2) / (2 * h)) * d
            x = x + s_t * math.sqrt(1 - em**2) * z + y * (1 - a_t / a_s * em**2 - a_t * (1 - em**2))
        else:
            x = a_t / a_s * x - 2 * s_t * (ep - 1) * q - 2 * s_t * ((ep - 1) / h - 1) * d
            x = x + s_t * math.sqrt(ep**2 - 1) * z + y * (1 - a_t / a_s)
        previous, h_previous = q, h
    assert (ours - x).abs().max() < 1e-9 * x.abs().max()


def test_third_order_has_the_weights_of_the_code():
    model, times = mixture(PROCESS), remaining_grid(PROCESS, 11).tolist()
    times = [*times[:4], *times[5:]]
    x, y = start(PROCESS, times[0])
    ours = tw.sample(model, x, solver=mrs(3, lower_order_final=False), times=times, cond={"y": y})
    seen, hs = [], []
    for t, u in pairwise(times):
        here, there = PROCESS.level(t), PROCESS.level(u)
        h = there.log_snr - here.log_snr
        q = model(x, t, y=y).x0
        new = there.sigma / here.sigma * (x - y) + there.alpha * (1 - math.exp(-h)) * (q - y)
        first = (math.exp(-h) - 1) / h + 1
        if len(seen) == 1:
            # The step before there are three estimates is DPM-Solver's own.
            new = new + 0.5 * there.alpha * (1 - math.exp(-h)) * (q - seen[0]) * h / hs[-1]
        elif len(seen) >= 2:
            r, r1 = hs[-1] / h, hs[-2] / h
            d10, d11 = (q - seen[-1]) / r, (seen[-1] - seen[-2]) / r1
            d1, d2 = d10 + (d10 - d11) * r / (r + r1), (d10 - d11) / (r + r1)
            new = new + there.alpha * (first * d1 - ((math.exp(-h) - 1 + h) / h**2 - 0.5) * d2)
        x = y + new
        seen, hs = [*seen, q], [*hs, h]
    assert (ours - x).abs().max() < 1e-9


def test_without_a_mean_it_is_dpm_solver_of_a_variance_preserving_process():
    process, vp = MeanReverting(noise=1.0, schedule="constant"), VP()
    times = remaining_grid(process, 12, start=0.01)
    other = vp.time(process.log_snr(times))
    assert (vp.alpha(other) - process.alpha(times)).abs().max() < 1e-9
    x = random.normal((6, 2), 3, dtype=F64)
    ours = tw.sample(mixture(process), x, solver=mrs(), times=times.tolist(), cond={"y": torch.zeros_like(x)})
    plain = tw.sample(mixture(vp), x, solver=DPMSolver(2, solver_type="taylor"), times=other.tolist())
    assert (ours - plain).abs().max() < 1e-6


@pytest.mark.parametrize("steps", [1, 4])
def test_a_constant_estimate_is_exact_in_steps_of_any_size(steps):
    times = remaining_grid(PROCESS, steps).tolist()
    x, y = start(PROCESS, times[0])
    model = FunctionDenoiser(lambda x, t, y: torch.full_like(x, 0.7), PROCESS)
    here, there = PROCESS.level(times[0]), PROCESS.level(times[-1])
    expected = there.sigma / here.sigma * (x - (1 - here.alpha) * y - 0.7 * here.alpha)
    expected = expected + (1 - there.alpha) * y + 0.7 * there.alpha
    for order in (1, 2, 3):
        made = tw.sample(model, x, solver=mrs(order), times=times, cond={"y": y})
        assert (made - expected).abs().max() < 1e-12


def test_first_order_is_the_same_from_data_and_from_noise():
    times = remaining_grid(PROCESS, 7).tolist()
    x, y = start(PROCESS, times[0])
    data, noise = (
        tw.sample(mixture(PROCESS), x, solver=mrs(1, prediction=p), times=times, cond={"y": y})
        for p in ("data", "noise")
    )
    assert (data - noise).abs().max() < 1e-12


@pytest.mark.parametrize("options", [{}, {"prediction": "noise"}, {"kind": "sde"}, {"order": 3}], ids=repr)
def test_a_shift_of_everything_shifts_the_result(options):
    times = remaining_grid(PROCESS, 8).tolist()
    x, y = start(PROCESS, times[0])
    here, there = (
        tw.sample(mixture(PROCESS, v), x + v, solver=mrs(**options), times=times, cond={"y": y + v}, seed=2)
        for v in (0.0, 0.37)
    )
    # Data and endpoint are shifted, and so is a state, whose shares of the two are one together.
    assert (there - here - 0.37).abs().max() < 1e-10


@pytest.mark.parametrize("order", [1, 2])
def test_the_sde_keeps_the_conditional_law_of_known_data(order):
    # x_t given x_0 is N(a x_0 + (1 - a) y, s^2): with the true x_0 the steps' factors and noises compose to it.
    times = remaining_grid(PROCESS, 6).tolist()
    table = mrs(order, "sde", lower_order_final=False).table(PROCESS, tuple(times))
    variance, mean = PROCESS.level(times[0]).sigma ** 2, PROCESS.level(times[0]).alpha
    for (row,), u in zip(table.steps, times[1:], strict=True):
        variance = row.state**2 * variance + row.noise**2
        mean = row.state * mean + sum(row.estimates)
        level = PROCESS.level(u)
        assert variance == pytest.approx(level.sigma**2, rel=1e-9)
        assert mean == pytest.approx(level.alpha, rel=1e-9)


def test_a_velocity_network_is_converted_as_published():
    times = remaining_grid(PROCESS, 6).tolist()
    x, y = start(PROCESS, times[0])
    model, n = mixture(PROCESS), PROCESS.noise

    def velocity(x, t, y):
        a, s = PROCESS.level(t).alpha, PROCESS.level(t).sigma
        x0 = model(x, t, y=y).x0
        u = (a * x + (1 - a) * y - x0) * n / s
        assert (((a * u + (x - y) * s / n) / n) - (x - a * x0 - (1 - a) * y) / s).abs().max() < 1e-9
        return u

    asked = FunctionDenoiser(velocity, PROCESS, MeanRevertingV())
    a, b = (tw.sample(m, x, solver=mrs(), times=times, cond={"y": y}) for m in (model, asked))
    assert (a - b).abs().max() < 1e-10
