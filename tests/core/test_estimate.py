"""Estimates: types, shapes, and the two-sided estimate's identities."""

import math

import pytest
import torch
from process_cases import GAUSSIAN, TWO_SIDED

import tweed as tw
from tweed import processes, targets
from tweed.core.estimate import TwoSidedEstimate
from tweed.errors import IncompatibleError, InputError

READINGS = ("x0", "eps", "score", "velocity", "v")
VP = processes.VP()


@pytest.mark.parametrize("t", [0.4, torch.tensor(0.4), torch.full((3,), 0.4), torch.full((3, 2), 0.4)])
@pytest.mark.parametrize(
    ("state", "answer", "expected"),
    [
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float16, torch.float16, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float32, torch.float64, torch.float32),
        (torch.float64, torch.float32, torch.float64),
        (torch.float64, torch.bfloat16, torch.float64),
        (torch.complex64, torch.complex64, torch.complex64),
        (torch.complex128, torch.complex64, torch.complex128),
    ],
)
def test_readings_are_in_float32_or_better(t, state, answer, expected):
    x, a = torch.randn(3, 2, 4).to(state), torch.randn(3, 2, 4).to(answer)
    for target in (targets.Noise(), targets.Data(), targets.V(), targets.Velocity(), targets.Score(), targets.EDM()):
        estimate = tw.Estimate(x, t, a, VP, target)
        for name in READINGS:
            value = getattr(estimate, name)
            assert value.dtype == expected
            assert value.shape == x.shape


def test_low_precision_answers_are_converted_in_high_precision():
    x, a = torch.randn(64), torch.randn(64).bfloat16()
    low = tw.Estimate(x, 0.9, a, VP, targets.Noise()).x0
    exact = (x.double() - VP.sigma(0.9) * a.double()) / VP.alpha(0.9)
    torch.testing.assert_close(low.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("process", GAUSSIAN.values(), ids=GAUSSIAN.keys())
def test_times_of_any_shape_read_like_single_times(process):
    generator = tw.random.generator(2)
    x, a = (torch.randn(3, 4, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    for shape in ((3,), (3, 4), (3, 4, 2), (1, 4)):
        t = 0.1 + 0.8 * torch.rand(shape, generator=generator, dtype=torch.float64)
        full = t.reshape(shape + (1,) * (3 - len(shape))).expand(3, 4, 2)
        for name in READINGS:
            together = getattr(tw.Estimate(x, t, a, process, targets.V()), name)
            each = getattr(tw.Estimate(x.flatten(), full.flatten(), a.flatten(), process, targets.V()), name)
            torch.testing.assert_close(together.flatten(), each, rtol=1e-12, atol=1e-12)


def test_the_own_target_is_returned_as_it_is():
    x, a = torch.randn(2, 3), torch.randn(2, 3)
    assert tw.Estimate(x, 0.3, a, VP, targets.Noise()).eps is a
    assert tw.Estimate(x, 0.0, a, VP, targets.Data()).x0 is a


def test_replace_keeps_the_state_and_takes_the_answer():
    x, a, y = torch.randn(2, 3), torch.randn(2, 3), torch.randn(2, 3)
    estimate = tw.Estimate(x, 0.3, a, processes.OUVE(), targets.Noise(), y, variance=torch.ones(2, 3))
    changed = estimate.replace(targets.Data(), 2 * a)
    assert changed.x is x
    assert changed.y is y
    assert changed.t == 0.3
    assert torch.equal(changed.x0, 2 * a)
    assert torch.equal(estimate.eps, a)
    # What is replaced comes back through any reading.
    again = changed.replace(targets.Velocity(), changed.velocity)
    torch.testing.assert_close(again.x0, 2 * a, rtol=1e-5, atol=1e-5)


def test_log_snr_is_that_of_the_process():
    t = torch.tensor([0.2, 0.7])
    x = torch.zeros(2, 1)
    torch.testing.assert_close(tw.Estimate(x, t, x, VP, targets.Data()).log_snr, VP.log_snr(t))


def test_a_missing_endpoint_is_named():
    x = torch.zeros(2, 1)
    with pytest.raises(InputError, match="y: the process is conditioned"):
        _ = tw.Estimate(x, 0.3, x, processes.OUVE(), targets.Noise()).x0


def test_a_time_that_does_not_fit_is_named():
    x = torch.zeros(4, 2)
    with pytest.raises(InputError, match=r"t: shape \(3,\)"):
        _ = tw.Estimate(x, torch.rand(3), x, VP, targets.Noise()).x0


@pytest.mark.parametrize("process", TWO_SIDED.values(), ids=TWO_SIDED.keys())
@pytest.mark.parametrize("t", [0.2, 0.77, torch.tensor([0.1, 0.45, 0.6, 0.9], dtype=torch.float64)])
def test_two_sided_readings_recover_both_ends_and_the_noise(process, t):
    generator = tw.random.generator(1)
    x0, x1, z = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    c = {
        name: getattr(process, name)(t).reshape(-1, 1)
        for name in ("alpha", "beta", "sigma", "alpha_dot", "beta_dot", "sigma_dot")
    }
    x = c["alpha"] * x0 + c["beta"] * x1 + c["sigma"] * z
    velocity = c["alpha_dot"] * x0 + c["beta_dot"] * x1 + c["sigma_dot"] * z
    estimate = TwoSidedEstimate(x, t, velocity, z, process)
    assert torch.equal(estimate.velocity, velocity)
    assert torch.equal(estimate.eps, z)
    has_data = (c["alpha"] != 0).expand(4, 3)
    has_other = (c["beta"] != 0).expand(4, 3)
    torch.testing.assert_close(estimate.x0[has_data], x0[has_data], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(estimate.x1[has_other], x1[has_other], rtol=1e-9, atol=1e-9)
    v = c["alpha"] * z - c["sigma"] * x0
    torch.testing.assert_close(estimate.v[has_data], v[has_data], rtol=1e-9, atol=1e-9)
    if process.latent != "none":
        torch.testing.assert_close(estimate.score, -z / c["sigma"])
        # b = v - gamma gamma' s, with v the velocity of the interpolant without its noise.
        bare = velocity - c["sigma_dot"] * z
        gamma = 0.5 * process.variance_dot(t).reshape(-1, 1)
        torch.testing.assert_close(estimate.velocity, bare - gamma * estimate.score, rtol=1e-10, atol=1e-10)
    low = TwoSidedEstimate(x.bfloat16(), t, velocity.bfloat16(), z.bfloat16(), process)
    assert {getattr(low, name).dtype for name in ("velocity", "eps", "x0", "x1", "score", "v")} == {torch.float32}


def test_a_velocity_alone_says_nothing_else():
    x = torch.randn(2, 3)
    estimate = TwoSidedEstimate(x, 0.3, x, None, processes.Interpolant())
    assert torch.equal(estimate.velocity, x)
    for name in ("x0", "eps", "score", "v", "x1"):
        with pytest.raises(IncompatibleError, match="noise of the interpolant"):
            getattr(estimate, name)


def test_singular_readings_are_not_hidden():
    x = torch.ones(1, 1)
    flow = processes.RectifiedFlow()
    assert not math.isfinite(tw.Estimate(x, 1.0, x, flow, targets.Noise()).x0.item())
    assert tw.Estimate(x, 1.0, 2 * x, flow, targets.Velocity()).x0.item() == -1.0
    assert tw.Estimate(x, 0.0, 2 * x, flow, targets.Velocity()).eps.item() == 3.0
    assert tw.Estimate(x, 0.0, 2 * x, VP, targets.Noise()).x0.item() == 1.0
