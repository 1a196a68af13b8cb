"""Adaptive DPM-Solver: error against tolerance, cost, ends, batches, giving up."""

import pytest
import torch

import tweed as tw
from tweed.core.processes import VE, VP, Cosine, MeanReverting, RectifiedFlow
from tweed.errors import IncompatibleError, InputError, NumericalError
from tweed.solvers import AdaptiveDPM, DPMSolver

MEAN, VARIANCE = torch.tensor([1.0, -0.5, 0.0, 0.3]), torch.tensor([1.0, 0.25, 0.04, 2.0])
END = 1e-3


def run(process, solver, ends=(1.0, END), n=32):
    """The error of a run against the closed-form flow, and its cost."""
    denoiser = tw.CountingDenoiser(tw.GaussianDenoiser(MEAN, VARIANCE, process))
    start = process.prior((n, 4), dtype=torch.float64)
    x = tw.sample(denoiser, start, solver=solver, times=ends)
    exact = denoiser.denoiser.flow(start, *ends)
    return (x - exact).square().mean().sqrt().item(), denoiser.evaluations


@pytest.mark.parametrize("process", [VP(), VE(0.01, 20.0)])
@pytest.mark.parametrize("order", [2, 3])
def test_error_falls_and_cost_rises_with_the_tolerance(process, order):
    errors, costs = zip(
        *(run(process, AdaptiveDPM(order, 0.0078 * f, 0.05 * f)) for f in (1.0, 1 / 8, 1 / 64, 1 / 512)), strict=True
    )
    assert list(errors) == sorted(errors, reverse=True)
    assert list(costs) == sorted(costs)
    assert errors[-1] < 1e-3
    assert errors[0] > 20 * errors[-1]


def test_steps_near_the_tolerance_follow_the_order_of_the_lower_method():
    """The local error of DPM-12 is O(h^2), so steps go as tol^(-1/2)."""
    costs = [run(VP(), AdaptiveDPM(2, 0.0078 * f, 0.05 * f))[1] for f in (1 / 256, 1 / 1024)]
    assert costs[1] / costs[0] == pytest.approx(2.0, abs=0.35)


def test_what_a_step_and_a_rejection_cost():
    # With no error to speak of, a first step of the given length and one for the rest.
    assert run(VP(), AdaptiveDPM(2, 1e9))[1] == 4
    assert run(VP(), AdaptiveDPM(3, 1e9))[1] == 6
    seen = []
    gaussian = tw.GaussianDenoiser(MEAN, VARIANCE, VP())

    def answer(x, t):
        seen.append(t.max().item())
        return gaussian(x, t).x0

    denoiser = tw.FunctionDenoiser(answer, VP(), event=(4,))
    tw.sample(denoiser, 1, solver=AdaptiveDPM(h_init=8.0), times=(1.0, END))
    # The first step is far too long and tried again: its beginning is evaluated once.
    assert seen[0] == pytest.approx(1.0)
    assert 1.0 > seen[2] > seen[1]
    assert sum(t == seen[0] for t in seen) == 1


def test_it_is_dpm_solver_where_one_step_suffices():
    denoiser = tw.GaussianDenoiser(MEAN, VARIANCE, VP())
    start = VP().prior((4, 4), dtype=torch.float64)
    times = (0.5, 0.4)
    one = AdaptiveDPM(3, 1e9, h_init=1e3)
    ours = tw.sample(denoiser, start, solver=one, times=times)
    theirs = tw.sample(denoiser, start, solver=DPMSolver(order=3, form="noise", kind="singlestep"), times=times)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", [VP(), Cosine(), RectifiedFlow(), VE(0.01, 20.0)])
def test_from_end_to_end_with_infinite_log_snr(process):
    denoiser = tw.GaussianDenoiser(MEAN, VARIANCE, process)
    start = process.prior((64, 4), dtype=torch.float64)
    x = tw.sample(denoiser, start, solver=AdaptiveDPM(2, 1e-4, 1e-4))
    # The first-order steps at both ends are short.
    exact = denoiser.flow(start, 1.0, 0.0)
    assert (x - exact).abs().max() < 0.02


def test_inversion_undoes_sampling():
    denoiser = tw.GaussianDenoiser(MEAN, VARIANCE, VP())
    solver = AdaptiveDPM(3, 1e-5, 1e-5)
    start = VP().prior((8, 4), dtype=torch.float64)
    x = tw.sample(denoiser, start, solver=solver, times=(1.0, END))
    assert (tw.invert(denoiser, x, solver=solver, times=(1.0, END)) - start).abs().max() < 1e-3


def test_a_sample_does_not_depend_on_its_batch_unless_asked():
    means = torch.tensor([[-2.0, 0.0], [2.0, 1.0]])
    denoiser = tw.MixtureDenoiser(means, 0.05, None, VP())
    start = VP().prior((12, 2), dtype=torch.float64)
    for error, same in (("sample", True), ("batch", False)):
        solver = AdaptiveDPM(error=error)
        x = tw.sample(denoiser, start, solver=solver, times=(1.0, END))
        alone = tw.sample(denoiser, start[3:4], solver=solver, times=(1.0, END))
        assert torch.allclose(x[3:4], alone, rtol=0, atol=1e-9) == same
    assert tw.sample(denoiser, start[:0], solver=AdaptiveDPM()).shape == (0, 2)


def test_endpoint_processes_and_times_of_each_sample():
    process = MeanReverting(schedule="constant")
    denoiser = tw.GaussianDenoiser(MEAN, VARIANCE, process)
    y = tw.random.normal((6, 4), 3, dtype=torch.float64)
    start = process.prior((6, 4), y=y, dtype=torch.float64)
    solver = AdaptiveDPM(3, 1e-4, 1e-4)
    x = tw.sample(denoiser, start, solver=solver, times=(1.0, 0.01), cond={"y": y})
    assert (x - denoiser.flow(start, 1.0, 0.01, y)).abs().max() < 1e-2
    times = torch.tensor([[1.0, 0.7, 0.4, 1.0, 0.7, 0.4], [0.01] * 6], dtype=torch.float64)
    x = tw.sample(denoiser, start, solver=solver, times=times, cond={"y": y})
    for i in range(6):
        exact = denoiser.flow(start[i : i + 1], times[0, i].item(), 0.01, y[i : i + 1])
        assert (x[i] - exact[0]).abs().max() < 1e-2


def test_giving_up_names_the_time():
    denoiser = tw.GaussianDenoiser(MEAN, VARIANCE, VP())
    with pytest.raises(NumericalError, match=r"3 steps did not suffice.*t = 0\.\d+"):
        tw.sample(denoiser, 4, solver=AdaptiveDPM(max_steps=3))
    broken = tw.FunctionDenoiser(lambda x, t: x / (torch.as_tensor(t) > 0.5).double().reshape(-1, 1), VP(), event=(2,))
    with pytest.raises(NumericalError, match=r"not finite in a step from t = 0\.\d+ to 0\.\d+"):
        tw.sample(broken, 4, solver=AdaptiveDPM())


def test_options_and_processes_that_do_not_fit():
    for options in ({"order": 1}, {"atol": 0.0}, {"rtol": -1.0}, {"h_init": 0.0}, {"safety": 1.0}, {"max_steps": 0}):
        with pytest.raises(InputError, match=next(iter(options))):
            AdaptiveDPM(**options)
    two_sided = tw.processes.Interpolant()
    mixture = tw.MixtureDenoiser(torch.zeros(1, 2), 1.0)
    with pytest.raises(IncompatibleError, match="two-sided"):
        tw.sample(tw.MixtureInterpolantDenoiser(mixture, mixture, two_sided), torch.zeros(2, 2), solver=AdaptiveDPM())
