"""Targets: every pair converts to every other, as the published table says."""

import itertools
import math

import pytest
import torch
from process_cases import EVERY, GAUSSIAN, LINEAR, TWO_SIDED, inner

import tweed as tw
from tweed import processes, targets
from tweed.core.targets import convert, convert_given_endpoint, singular_at
from tweed.errors import IncompatibleError, InputError

TARGETS = (
    targets.Data(),
    targets.Noise(),
    targets.V(),
    targets.Velocity(),
    targets.Score(),
    targets.EDM(),
    targets.EDM(data_std=1.3),
    targets.DataResidual(),
    targets.K(),
    targets.K(0.8),
)
# Those that one process alone has.
OWN = {processes.MeanReverting: targets.MeanRevertingV(), processes.Resfusion: targets.Resnoise()}


def over(cases):
    return pytest.mark.parametrize("process", cases.values(), ids=cases.keys())


def world(process, n=61):
    generator = tw.random.generator(8)
    t = inner(n, 0.02, 0.97)
    x0, eps, y = (torch.randn(n, generator=generator, dtype=torch.float64) for _ in range(3))
    x = process.alpha(t) * x0 + process.beta(t) * y + process.sigma(t) * eps
    answers = {}
    for target in (*TARGETS, *(target for kind, target in OWN.items() if isinstance(process, kind))):
        row = target.row(process, t)
        answers[target] = row.data * x0 + row.noise * eps + row.endpoint * y
    return t, x, y, answers


@over(LINEAR)
def test_every_pair_converts_and_comes_back(process):
    t, x, y, answers = world(process)
    for given, wanted in itertools.product(answers, answers):
        there = convert(process, given, wanted, t)
        value = there.state * x + there.answer * answers[given] + there.endpoint * y
        scale = 1.0 + answers[wanted].abs().max()
        assert ((value - answers[wanted]).abs() / scale).max() < 1e-9, (given, wanted)
        back = convert(process, wanted, given, t)
        again = back.state * x + back.answer * value + back.endpoint * y
        scale = 1.0 + answers[given].abs().max()
        assert ((again - answers[given]).abs() / scale).max() < 1e-9, (given, wanted)


@over(LINEAR)
def test_a_number_takes_the_same_way_as_a_tensor(process):
    for given, wanted in itertools.product(TARGETS, TARGETS):
        number = convert(process, given, wanted, 0.37)
        tensor = convert(process, given, wanted, torch.tensor(0.37, dtype=torch.float64))
        assert all(isinstance(c, float) for c in number)
        assert tuple(number) == tuple(c.item() for c in tensor)
        x, answer, y = (torch.tensor([v], dtype=torch.float64) for v in (0.3, -1.1, 0.7))
        ends = {} if process.endpoint == "none" else {"y": y}
        by_number = tw.Estimate(x, 0.37, answer, process, given, **ends).to(wanted)
        by_tensor = tw.Estimate(x, torch.tensor([0.37], dtype=torch.float64), answer, process, given, **ends).to(wanted)
        torch.testing.assert_close(by_number, by_tensor, rtol=1e-12, atol=1e-12)


@over(GAUSSIAN)
def test_the_published_table(process):
    t, x, _, f = world(process)
    alpha, sigma = process.alpha(t), process.sigma(t)
    alpha_dot, sigma_dot = process.alpha_dot(t), process.sigma_dot(t)
    data, noise, v, velocity, score, raw = (f[target] for target in TARGETS[:6])
    determinant = alpha * sigma_dot - alpha_dot * sigma
    total = alpha**2 + sigma**2
    s, d = sigma / alpha, 0.5
    table = {
        (targets.Data(), "eps"): ((x - alpha * data) / sigma, noise),
        (targets.Data(), "score"): ((alpha * data - x) / sigma**2, score),
        (targets.Noise(), "x0"): ((x - sigma * noise) / alpha, data),
        (targets.Noise(), "score"): (-noise / sigma, score),
        (targets.Score(), "x0"): ((x + sigma**2 * score) / alpha, data),
        (targets.Score(), "eps"): (-sigma * score, noise),
        (targets.V(), "x0"): ((alpha * x - sigma * v) / total, data),
        (targets.V(), "eps"): ((sigma * x + alpha * v) / total, noise),
        (targets.Velocity(), "x0"): ((sigma_dot * x - sigma * velocity) / determinant, data),
        (targets.Velocity(), "eps"): ((alpha * velocity - alpha_dot * x) / determinant, noise),
        (targets.EDM(), "x0"): (
            d**2 / (s**2 + d**2) * x / alpha + s * d / (s**2 + d**2).sqrt() * raw,
            data,
        ),
    }
    for (given, name), (formula, truth) in table.items():
        estimate = tw.Estimate(x, t, f[given], process, given)
        scale = 1.0 + truth.abs().max()
        assert ((formula - truth).abs() / scale).max() < 1e-9
        assert ((getattr(estimate, name) - formula).abs() / scale).max() < 1e-9, (given, name)


@over(GAUSSIAN)
def test_velocity_is_drift_minus_half_the_squared_diffusion_times_score(process):
    t, x, _, f = world(process)
    flow = process.drift(x, t) - 0.5 * process.diffusion(t) ** 2 * f[targets.Score()]
    scale = 1.0 + flow.abs().max()
    assert ((flow - f[targets.Velocity()]).abs() / scale).max() < 1e-10


def test_edm_row_in_other_scalings_is_the_same_network():
    # F depends on the noise level s = sigma / alpha and on x / alpha alone, whatever the process.
    s = torch.tensor([0.01, 0.3, 1.0, 4.0], dtype=torch.float64)
    for process in (processes.VP(), processes.RectifiedFlow(), processes.SubVP(), processes.EDM()):
        row = targets.EDM(0.5).row(process, process.time(-s.log()))
        torch.testing.assert_close(row.data, s / (0.5 * (s**2 + 0.25).sqrt()), rtol=1e-9, atol=0)
        torch.testing.assert_close(row.noise, -0.5 / (s**2 + 0.25).sqrt(), rtol=1e-9, atol=0)


def test_unit_variance_edm_is_minus_v_on_a_variance_preserving_process():
    t = inner()
    row, v = targets.EDM(1.0).row(processes.VP(), t), targets.V().row(processes.VP(), t)
    torch.testing.assert_close(row.data, -v.data, rtol=1e-12, atol=0)
    torch.testing.assert_close(row.noise, -v.noise, rtol=1e-12, atol=0)


def test_trigonometric_velocity_is_v_times_half_pi():
    process, t = processes.Interpolant("trigonometric", one_sided=True), inner()
    velocity, v = targets.Velocity().row(process, t), targets.V().row(process, t)
    torch.testing.assert_close(velocity.data * 2 / math.pi, v.data, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(velocity.noise * 2 / math.pi, v.noise, rtol=1e-12, atol=1e-14)
    # ... and not elsewhere.
    row = targets.Velocity().row(processes.RectifiedFlow(), t)
    assert (row.data * 2 / math.pi - targets.V().row(processes.RectifiedFlow(), t).data).abs().max() > 0.1


def test_errors_in_one_target_weigh_as_published_in_the_others():
    t = inner(31, 0.05, 0.95)
    for process in (processes.VP(), processes.Cosine(), processes.RectifiedFlow(), processes.SubVP()):
        alpha, sigma = process.alpha(t), process.sigma(t)
        slope = process.alpha_dot(t) / alpha - process.sigma_dot(t) / sigma
        # How much an error of 1 in the noise is in each target.
        weight = {w: convert(process, targets.Noise(), w, t).answer for w in TARGETS}
        torch.testing.assert_close(weight[targets.Data()] ** 2, (sigma / alpha) ** 2)
        torch.testing.assert_close(weight[targets.Velocity()] ** 2, (sigma * slope) ** 2)
        torch.testing.assert_close(weight[targets.Score()] ** 2, sigma**-2)
        torch.testing.assert_close(weight[targets.V()] ** 2, ((alpha**2 + sigma**2) / alpha) ** 2)
        s = sigma / alpha
        edm = (s**2 + 0.25) / (0.5 * s) ** 2 * (sigma / alpha) ** 2
        torch.testing.assert_close(weight[targets.EDM()] ** 2, edm)


@pytest.mark.parametrize(
    ("process", "target", "at_zero", "at_one"),
    [
        (processes.RectifiedFlow(), targets.Data(), True, False),
        (processes.RectifiedFlow(), targets.Noise(), False, True),
        (processes.RectifiedFlow(), targets.V(), False, False),
        (processes.RectifiedFlow(), targets.Velocity(), False, False),
        (processes.RectifiedFlow(), targets.Score(), True, True),
        (processes.RectifiedFlow(), targets.EDM(), False, False),
        (processes.VP(), targets.Noise(), False, False),
        (processes.VP(), targets.Data(), True, False),
        (processes.VP(), targets.Velocity(), True, False),
        (processes.VE(), targets.Data(), False, False),
        (processes.VE(), targets.Score(), False, False),
        (processes.Cosine(), targets.Noise(), False, True),
        (processes.Cosine(), targets.V(), False, False),
        (processes.FromBetas.linear(zero_terminal_snr=True), targets.Noise(), False, True),
        (processes.FromBetas.linear(), targets.Noise(), False, False),
        (processes.Residual(), targets.Noise(), False, True),
        (processes.Residual(), targets.DataResidual(), True, False),
        (processes.Resfusion(), targets.Noise(), False, True),
        (processes.Resfusion(), targets.Resnoise(), False, False),
        (processes.MeanReverting(), targets.MeanRevertingV(), False, False),
        (processes.OUVE(), targets.Noise(), False, False),
        (processes.Interpolant(), targets.Velocity(), False, False),
    ],
)
def test_singular_at(process, target, at_zero, at_one):
    assert singular_at(process, target, 0.0) is at_zero
    assert singular_at(process, target, 1.0) is at_one
    assert not singular_at(process, target, 0.5)


@over(TWO_SIDED)
def test_a_two_sided_interpolant_leaves_one_unknown(process):
    for given, wanted in itertools.permutations(TARGETS, 2):
        with pytest.raises(IncompatibleError, match=f"target: {type(wanted).__name__} does not follow"):
            convert(process, given, wanted, 0.4)
        with pytest.raises(IncompatibleError, match="target"):
            convert(process, given, wanted, torch.tensor([0.4]))
    assert tuple(convert(process, targets.Velocity(), targets.Velocity(), 0.4)) == (0.0, 1.0, 0.0)


def test_a_known_end_makes_a_two_sided_interpolant_linear():
    process = processes.Interpolant("linear", "brownian")
    t, x, y, answers = world(process)
    for given, wanted in itertools.product(TARGETS, TARGETS):
        state, scale, shift = convert_given_endpoint(process, given, wanted, t)
        value = state * x + scale * answers[given] + shift * y
        torch.testing.assert_close(value, answers[wanted], rtol=1e-9, atol=1e-9)
        estimate = tw.Estimate(x, t, answers[given], process, given, y)
        torch.testing.assert_close(estimate.to(wanted), answers[wanted], rtol=1e-9, atol=1e-9)


def test_targets_are_values():
    assert targets.EDM() == targets.EDM(0.5)
    assert targets.EDM() != targets.EDM(1.0)
    assert len({*TARGETS, *(type(t)() for t in TARGETS)}) == len(TARGETS)
    for name, kind in targets.BY_NAME.items():
        assert getattr(targets, name) is kind
    with pytest.raises(InputError, match="data_std: 0"):
        targets.EDM(0)


@over(EVERY)
def test_rows_have_the_shape_of_the_time(process):
    for target in TARGETS:
        for shape in ((), (3,), (3, 2), (0,)):
            assert all(c.shape == shape for c in target.row(process, torch.full(shape, 0.3, dtype=torch.float64)))
