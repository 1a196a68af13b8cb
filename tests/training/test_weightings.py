import pytest
import torch

import tweed as tw
from tweed.errors import IncompatibleError, InputError
from tweed.training import weightings

PROCESSES = [tw.processes.VP(), tw.processes.Cosine(), tw.processes.SubVP(), tw.processes.RectifiedFlow()]
PROCESSES += [tw.processes.EDM(), tw.processes.MeanReverting()]
# Of the processes here; those of one process alone are tested with it.
TARGETS = [kind() for name, kind in tw.targets.BY_NAME.items() if name not in ("MeanRevertingV", "Resnoise")]
EVERY = [kind() for kind in weightings.BY_NAME.values() if kind is not weightings.Uniform]
EVERY += [weightings.Uniform(on="Noise"), weightings.Uniform(on="Data"), weightings.Uniform(on="Velocity")]


def answers(process, t, x, y, x0):
    """Every target's answer at the state `x`, from an estimate of the data."""
    estimate = tw.Estimate(x, t, x0, process, tw.targets.Data(), y)
    return [estimate.to(target) for target in TARGETS]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("weighting", EVERY, ids=repr)
def test_loss_and_gradient_are_the_same_in_every_target(process, weighting):
    n, d = 5, 3
    t = torch.linspace(0.05, 0.95, n, dtype=torch.float64)
    x, y, truth = (tw.random.normal((n, d), 1, draw=i, dtype=torch.float64) for i in range(3))
    guess = tw.random.normal((n, d), 2, dtype=torch.float64).requires_grad_()
    losses, gradients = [], []
    for target, answer, exact in zip(
        TARGETS, answers(process, t, x, y, guess), answers(process, t, x, y, truth), strict=True
    ):
        weight = weighting.weight(process, target, t)
        loss = (weight[:, None] * (answer - exact) ** 2).sum()
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, guess, retain_graph=True)[0])
    for loss, gradient in zip(losses, gradients, strict=True):
        torch.testing.assert_close(loss, losses[0], rtol=1e-8, atol=0)
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-7, atol=1e-12)


def test_published_forms_on_vp():
    p, t = tw.processes.VP(), torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    snr = (p.alpha(t) / p.sigma(t)) ** 2
    noise, data, v = tw.targets.Noise(), tw.targets.Data(), tw.targets.V()
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-9, atol=0)  # noqa: E731
    close(weightings.MinSNR(5.0).weight(p, noise, t), snr.clamp_max(5.0) / snr)
    close(weightings.MinSNR(5.0).weight(p, v, t), snr.clamp_max(5.0) / (snr + 1.0))
    close(weightings.SNR().weight(p, data, t), snr)
    close(weightings.TruncatedSNR().weight(p, data, t), snr.clamp_min(1.0))
    close(weightings.P2(1.0, 0.5).weight(p, noise, t), (1.0 + snr) ** -0.5)
    close(weightings.Sigmoid(2.0, "time").weight(p, noise, t), torch.sigmoid(2.0 - snr.log()))
    speed = (p.alpha_dot(t) * p.sigma(t) - p.alpha(t) * p.sigma_dot(t)) / p.alpha(t)
    close(weightings.Uniform("Velocity").weight(p, noise, t), speed**2)
    close(weightings.EDM(0.5).weight(p, tw.targets.EDM(0.5), t), torch.ones_like(t))
    s = t.clone().requires_grad_()
    rate = -torch.autograd.grad((2.0 * p.log_snr(s)).sum(), s)[0]
    close(weightings.Likelihood().weight(p, noise, t), rate)


def test_log_snr_measure_does_not_depend_on_the_schedule():
    # An integral over log SNR in the sigmoid weighting: the same between equal ends for any schedule.
    totals = []
    for p in (tw.processes.VP(), tw.processes.Cosine(), tw.processes.RectifiedFlow()):
        ends = p.time(torch.tensor([4.0, -4.0], dtype=torch.float64))
        t = torch.linspace(*ends.tolist(), 20001, dtype=torch.float64)
        error = torch.sigmoid(-p.log_snr(t))  # any function of the noise level
        totals.append(torch.trapezoid(weightings.Sigmoid(1.0).weight(p, tw.targets.Noise(), t) * error, t))
    for total in totals[1:]:
        torch.testing.assert_close(total, totals[0], rtol=1e-5, atol=0)


def test_two_sided_takes_the_plain_regression_only():
    p, t = tw.processes.Interpolant(), torch.tensor([0.3], dtype=torch.float64)
    assert weightings.Uniform().weight(p, tw.targets.Velocity(), t) == 1.0
    with pytest.raises(IncompatibleError, match="two-sided"):
        weightings.SNR().weight(p, tw.targets.Velocity(), t)


def test_bad_options():
    with pytest.raises(InputError, match="Noise"):
        weightings.Uniform(on="Noize")
    with pytest.raises(InputError, match="gamma"):
        weightings.MinSNR(0.0)
    with pytest.raises(InputError, match="measure"):
        weightings.Sigmoid(measure="t")  # type: ignore[arg-type]
