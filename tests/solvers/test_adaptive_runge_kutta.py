"""Adaptive Runge-Kutta: agreement with closed forms at the tolerance, both directions, every kind of process."""

import pytest
import torch

import tweed as tw
from tweed.core.processes import VE, VP, Cosine, Interpolant, MeanReverting, RectifiedFlow, SubVP
from tweed.errors import InputError, NumericalError
from tweed.solvers import AdaptiveRungeKutta

MEAN, VARIANCE = torch.tensor([1.0, -0.5, 0.0, 0.3]), torch.tensor([1.0, 0.25, 0.04, 2.0])


@pytest.mark.parametrize("process", [VP(), VE(0.01, 20.0), SubVP(), RectifiedFlow(), Cosine()])
@pytest.mark.parametrize(("method", "tolerance"), [("dopri5", 1e-5), ("dopri5", 1e-8), ("dopri8", 1e-8)])
def test_agrees_with_the_closed_form_at_the_tolerance(process, method, tolerance):
    denoiser = tw.GaussianDenoiser(MEAN, VARIANCE, process)
    start = process.prior((16, 4), dtype=torch.float64)
    solver = AdaptiveRungeKutta(method, tolerance, tolerance)
    end = 1e-3
    x = tw.sample(denoiser, start, solver=solver, times=(1.0, end))
    assert (x - denoiser.flow(start, 1.0, end)).abs().max() < 100 * tolerance
    # What a tolerance on noise of size 1 (20 on VE) leaves of it, on the way back.
    scale = start.abs().max()
    assert (tw.invert(denoiser, x, solver=solver, times=(1.0, end)) - start).abs().max() < 1000 * tolerance * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_encoding_then_decoding_returns(dtype):
    means = 2 * tw.random.normal((4, 6), 1)
    denoiser = tw.MixtureDenoiser(means, 0.1, None, VP())
    x = denoiser.sample(32).to(dtype)
    solver = AdaptiveRungeKutta()
    z = tw.invert(denoiser, x, solver=solver, times=(1.0, 1e-3))
    assert z.dtype == dtype
    assert (tw.sample(denoiser, z, solver=solver, times=(1.0, 1e-3)) - x).abs().max() < 1e-3
    finer = AdaptiveRungeKutta(rtol=1e-9, atol=1e-9)
    z = tw.invert(denoiser, x.double(), solver=finer, times=(1.0, 1e-3))
    assert (tw.sample(denoiser, z, solver=finer, times=(1.0, 1e-3)) - x).abs().max() < 1e-6


@pytest.mark.parametrize("process", [VP(), RectifiedFlow(), Cosine(), SubVP()])
def test_a_run_to_clean_data(process):
    denoiser = tw.GaussianDenoiser(MEAN, VARIANCE, process)
    start = process.prior((16, 4), dtype=torch.float64)
    x = tw.sample(denoiser, start, solver=AdaptiveRungeKutta())
    assert (x - denoiser.flow(start, 1.0, 0.0)).abs().max() < 0.01


@pytest.mark.parametrize("path", ["linear", "trigonometric", "encoder-decoder"])
def test_two_sided_interpolants_in_both_directions(path):
    latent = "sine" if path == "encoder-decoder" else "brownian"
    data = tw.GaussianDenoiser(torch.tensor([2.0, 0.0]), torch.tensor([0.3, 1.0]))
    other = tw.GaussianDenoiser(torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 0.2]))
    denoiser = tw.MixtureInterpolantDenoiser(data, other, Interpolant(path, latent))
    solver = AdaptiveRungeKutta(rtol=1e-7, atol=1e-7)
    x1 = other.sample(64, 2)
    x0 = tw.sample(denoiser, x1, solver=solver)
    # Diagonal Gaussians: the flow is monotone in each coordinate, so it is the affine map.
    exact = data.means + (data.values / other.values).sqrt() * (x1 - other.means)
    torch.testing.assert_close(x0, exact, rtol=0, atol=1e-4)
    torch.testing.assert_close(tw.invert(denoiser, x0, solver=solver), x1, rtol=0, atol=1e-4)


def test_endpoint_processes_times_of_each_sample_and_stops():
    process = MeanReverting()
    denoiser = tw.GaussianDenoiser(MEAN, VARIANCE, process)
    y = tw.random.normal((3, 4), 3, dtype=torch.float64)
    start = process.prior((3, 4), y=y, dtype=torch.float64)
    solver = AdaptiveRungeKutta(rtol=1e-8, atol=1e-8)
    path = tw.sample(denoiser, start, solver=solver, times=(1.0, 0.5, 0.01), cond={"y": y}, trajectory=True)
    for x, t in zip(path, (1.0, 0.5, 0.01), strict=True):
        torch.testing.assert_close(x, denoiser.flow(start, 1.0, t, y), rtol=0, atol=1e-6)
    times = torch.tensor([[1.0, 0.7, 0.4], [0.01, 0.02, 0.03]], dtype=torch.float64)
    x = tw.sample(denoiser, start, solver=solver, times=times, cond={"y": y})
    for i in range(3):
        exact = denoiser.flow(start[i : i + 1], times[0, i].item(), times[1, i].item(), y[i : i + 1])
        torch.testing.assert_close(x[i : i + 1], exact, rtol=0, atol=1e-6)


def test_complex_states_batches_of_one_and_none():
    process = tw.processes.OUVE()

    def data(x, t, y):
        return 0.9 * y

    denoiser = tw.FunctionDenoiser(data, process, event=(2,))
    y = torch.tensor([[1.0 + 1.0j, -0.5j]])
    start = process.prior((1, 2), y=y, dtype=torch.complex64)
    x = tw.sample(denoiser, start, solver=AdaptiveRungeKutta(), cond={"y": y})
    assert x.dtype == torch.complex64
    torch.testing.assert_close(x, 0.9 * y, rtol=0, atol=1e-3)
    empty = tw.sample(tw.GaussianDenoiser(MEAN, VARIANCE, VP()), 0, solver=AdaptiveRungeKutta())
    assert empty.shape == (0, 4)


def test_the_worst_sample_sets_the_pace():
    """A difficult sample is met as well among many easy ones as alone."""
    denoiser = tw.MixtureDenoiser(torch.tensor([[-3.0], [3.0]]), 1e-3, None, VP())
    hard, easy = torch.tensor([[0.02]]).double(), torch.full((199, 1), 3.0).double()
    times, solver = (1.0, 1e-3), AdaptiveRungeKutta(rtol=1e-4, atol=1e-4)
    truth = tw.sample(denoiser, hard, solver=AdaptiveRungeKutta(rtol=1e-10, atol=1e-10), times=times)
    among = tw.sample(denoiser, torch.cat((hard, easy)), solver=solver, times=times)[:1]
    assert (among - truth).abs().item() < 0.02


def test_it_gives_up_by_name():
    denoiser = tw.GaussianDenoiser(MEAN, VARIANCE, VP())
    with pytest.raises(NumericalError, match=r"dopri5.*t = 0\.\d+.*max_num_steps"):
        tw.sample(denoiser, 4, solver=AdaptiveRungeKutta(max_steps=2))
    broken = tw.FunctionDenoiser(lambda x, t: x / (torch.as_tensor(t) > 0.5).double(), VP(), event=(2,))
    with pytest.raises(NumericalError, match="dopri5"):
        tw.sample(broken, 4, solver=AdaptiveRungeKutta())
    for options in ({"method": "rk4"}, {"rtol": 0.0}, {"atol": -1.0}, {"max_steps": 0}):
        with pytest.raises(InputError, match=next(iter(options))):
            AdaptiveRungeKutta(**options)
