"""A denoiser under another process: exact, at every level, and the same samples."""

import pytest
import torch

import tweed
from tweed import processes, random
from tweed.core.rescheduled import Rescheduled
from tweed.errors import IncompatibleError
from tweed.solvers import DPMSolver

MEANS = random.normal((4, 3), 2, dtype=torch.float64)
ALL = [processes.VP(), processes.Cosine(), processes.EDM(), processes.VE(), processes.RectifiedFlow()]


def mixture(process):
    return tweed.MixtureDenoiser(MEANS, 0.1, None, process)


@pytest.mark.parametrize("outer", ALL, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("inner", ALL, ids=lambda p: type(p).__name__)
def test_the_answer_is_that_of_the_same_data_under_the_other_process(inner, outer):
    denoiser, exact = Rescheduled(mixture(inner), outer), mixture(outer)
    for t in (0.2, 0.5, 0.8):
        x = outer.perturb(mixture(outer).sample(6), t, random.normal((6, 3), 1, dtype=torch.float64))
        # Within the levels that both know.
        if not inner.level(inner.t_max).log_snr <= outer.level(t).log_snr <= inner.level(inner.t_min).log_snr:
            continue
        for made, known in zip(
            (denoiser(x, t), denoiser(x, torch.full((6,), t))), (exact(x, t), exact(x, t)), strict=True
        ):
            torch.testing.assert_close(made.x0, known.x0, rtol=1e-7, atol=1e-7)
            torch.testing.assert_close(made.score, known.score, rtol=1e-6, atol=1e-6)


def test_a_run_in_log_snr_ends_in_the_same_samples():
    inner, outer = processes.VP(), processes.EDM(0.002, 80.0)
    levels = torch.linspace(-4.0, 4.0, 12, dtype=torch.float64)
    x = random.normal((5, 3), 0, dtype=torch.float64)
    ends = []
    for denoiser in (mixture(inner), Rescheduled(mixture(inner), outer)):
        process = denoiser.process
        times = process.time(levels)
        start = x * process.sigma(times[0])
        made = tweed.sample(denoiser, start, solver=DPMSolver(2), times=times)
        ends.append(made / process.alpha(times[-1]))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("outer", ALL, ids=lambda p: type(p).__name__)
def test_both_ends_of_time_are_finite(outer):
    denoiser = Rescheduled(mixture(processes.VP()), outer)
    x = random.normal((2, 3), 0, dtype=torch.float64)
    for t in (0.0, 1.0):
        assert bool(torch.isfinite(denoiser(x, t).x0).all())
        assert bool(torch.isfinite(denoiser(x, torch.full((2,), t)).x0).all())


def test_processes_with_an_endpoint_are_refused():
    with pytest.raises(IncompatibleError, match="process"):
        Rescheduled(mixture(processes.VP()), processes.MeanReverting())
    with pytest.raises(IncompatibleError, match="denoiser"):
        Rescheduled(mixture(processes.MeanReverting()), processes.VP())
