"""EDICT against its published lines, and its inverse."""

import pytest
import torch
from solver_cases import case, mixture, noisy, slope

import tweed as tw
from tweed import processes
from tweed.core import grids
from tweed.errors import IncompatibleError, InputError
from tweed.solvers import DDIM, EDICT

TIMES = (0.9, 0.8, 0.6, 0.35, 0.2, 0.1)


@pytest.mark.parametrize("process", [processes.VP(), processes.EDM(sigma_max=5.0)], ids=repr)
def test_it_is_the_published_step(process):
    denoiser, p = mixture(process), 0.93
    x = y = noisy(process, TIMES[0])
    for i in range(len(TIMES) - 1):
        t, s = (process.level(TIMES[j]) for j in (i, i + 1))
        a = s.alpha / t.alpha
        b = s.sigma - a * t.sigma
        if i % 2:
            x, y = y, x
        x_ = a * x + b * denoiser(y, TIMES[i]).eps
        y_ = a * y + b * denoiser(x_, TIMES[i]).eps
        x = p * x_ + (1 - p) * y_
        y = p * y_ + (1 - p) * x
        if i % 2:
            x, y = y, x
    pair = tw.sample(denoiser, noisy(process, TIMES[0]), solver=EDICT(), times=TIMES, return_pair=True)
    torch.testing.assert_close(pair.x, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(pair.partner, y, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "process", [processes.VP(), processes.VE(sigma_max=5.0), processes.EDM(sigma_max=5.0), processes.OUVE()], ids=repr
)
def test_round_trips_are_exact(process):
    denoiser = mixture(process)
    x0 = noisy(process, 0.02, n=5, seed=3)
    cond = {"y": x0 + 0.3} if process.endpoint == "given" else {}
    counter = tw.CountingDenoiser(denoiser)
    for steps in (1, 2, 15):
        pair = tw.invert(counter, x0, solver=EDICT(), steps=steps, cond=cond)
        torch.testing.assert_close(tw.sample(counter, pair, cond=cond), x0, rtol=0, atol=1e-8)
    assert counter.evaluations == 2 * 2 * (1 + 2 + 15)
    noise = process.prior(x0.shape, 1, y=cond.get("y"), dtype=torch.float64)
    samples = tw.sample(denoiser, noise, solver=EDICT(), steps=15, cond=cond, return_pair=True)
    torch.testing.assert_close(tw.invert(denoiser, samples, cond=cond).x, noise, rtol=0, atol=1e-8)


def test_rectified_flow_from_inside():
    process = processes.RectifiedFlow()
    times = grids.uniform(process, 12, start=0.98, end=0.0)
    x0 = noisy(process, 0.01)
    pair = tw.invert(mixture(process), x0, solver=EDICT(), times=times)
    torch.testing.assert_close(tw.sample(mixture(process), pair), x0, rtol=0, atol=1e-9)
    with pytest.raises(IncompatibleError, match="alpha = 0"):
        tw.sample(mixture(process), 2, solver=EDICT(), steps=5)


def test_each_sample_may_have_a_grid_of_its_own():
    denoiser, x0 = mixture(), noisy(processes.VP(), 0.05, n=2)
    own = torch.stack([torch.linspace(top, 0.05, 9, dtype=torch.float64) for top in (0.9, 0.6)], 1)
    pair = tw.invert(denoiser, x0, solver=EDICT(), times=own)
    torch.testing.assert_close(tw.sample(denoiser, pair), x0, rtol=0, atol=1e-10)
    alone = tw.invert(denoiser, x0[1:], solver=EDICT(), times=own[:, 1])
    torch.testing.assert_close(pair.x[1:], alone.x, rtol=1e-9, atol=1e-9)


def test_first_order():
    denoiser, x, exact = case()
    assert slope(EDICT(), denoiser, x, exact, grids.uniform, (160, 320)) == pytest.approx(1.0, abs=0.2)


def test_the_coupling_keeps_the_copies_together():
    denoiser, x = mixture(), noisy(processes.VP(), 0.9)
    times = grids.uniform(processes.VP(), 50, start=0.9, end=0.05)

    def apart(p):
        pair = tw.sample(denoiser, x, solver=EDICT(p), times=times, return_pair=True)
        return (pair.x - pair.partner).norm().item()

    assert apart(0.8) < 0.5 * apart(1.0)
    assert (
        tw.sample(denoiser, x, solver=EDICT(), times=times) - tw.sample(denoiser, x, solver=DDIM(), times=times)
    ).abs().max() < 0.5


def test_bad_input_is_named():
    for p in (0.0, 1.2, -1.0):
        with pytest.raises(InputError, match="p:"):
            EDICT(p)
    with pytest.raises(InputError, match="amplifies rounding"):
        tw.invert(mixture(), noisy(processes.VP(), 0.01), solver=EDICT(0.5), steps=40)
    one = tw.MixtureDenoiser(torch.zeros(1, 2), 1.0)
    with pytest.raises(IncompatibleError, match="two-sided"):
        tw.sample(tw.MixtureInterpolantDenoiser(one, one, processes.Interpolant()), 2, solver=EDICT(), steps=3)
