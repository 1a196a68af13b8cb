"""Processes of tokens: schedules against their inverses and derivatives, marginals against frequencies."""

import math

import pytest
import torch

import tweed as tw
from tweed.core import random
from tweed.core.processes import CategoricalProcess, MaskedProcess, UniformProcess
from tweed.errors import IncompatibleError, InputError

F64 = torch.float64
SCHEDULES = ("linear", "cosine", "geometric")
PROCESSES: list[CategoricalProcess] = [
    kind(5, schedule) for kind in (MaskedProcess, UniformProcess) for schedule in SCHEDULES
]


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_everything_is_kept_at_the_start_and_nothing_at_the_end(process):
    assert process.alpha(0.0).item() == pytest.approx(1.0, abs=1e-15)
    assert process.alpha(1.0).item() == pytest.approx(0.0, abs=1e-15)
    t = torch.linspace(0, 1, 50, dtype=F64)
    torch.testing.assert_close(process.alpha(t) + process.sigma(t), torch.ones_like(t), rtol=0, atol=1e-15)
    assert bool((process.alpha(t).diff() < 0).all())


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_derivatives_are_those_of_autograd(process):
    t = torch.linspace(0.01, 0.99, 23, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(process.alpha(t).sum(), t)
    torch.testing.assert_close(process.alpha_dot(t), slope, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(process.sigma_dot(t), -slope, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_time_inverts_the_share_that_is_kept_and_its_odds(process):
    t = torch.linspace(0.02, 0.98, 25, dtype=F64)
    torch.testing.assert_close(process.time_kept(process.alpha(t)), t, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(process.time(process.log_snr(t)), t, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        process.log_snr(t), (process.alpha(t) / (1 - process.alpha(t))).log(), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tokens_are_masked_as_often_as_sigma_says(schedule):
    process, n = MaskedProcess(7, schedule), 40000
    x0 = torch.arange(n)[:, None] % 7
    noise = random.uniform((n, 1), 3, dtype=F64)
    for t in (0.0, 0.3, 0.8, 1.0):
        share = (process.perturb(x0, t, noise) == 7).double().mean().item()
        sigma = process.sigma(t).item()
        assert abs(share - sigma) <= 4.5 * math.sqrt(sigma * (1 - sigma) / n) + 1e-12


def test_a_uniform_token_is_any_with_equal_probability_and_only_where_exchanged():
    process, n = UniformProcess(4), 60000
    x0 = torch.full((n, 1), 2)
    x = process.perturb(x0, 0.6, random.uniform((n, 1), 5, dtype=F64))
    shares = torch.bincount(x[:, 0], minlength=4).double() / n
    expected = torch.tensor([0.15, 0.15, 0.55, 0.15], dtype=F64)
    assert bool(((shares - expected).abs() < 4.5 * (expected * (1 - expected) / n).sqrt()).all())
    assert torch.equal(process.perturb(x0, 0.0, random.uniform((n, 1), 5, dtype=F64)), x0)


def test_every_token_may_have_a_time_of_its_own():
    process = MaskedProcess(9)
    x0 = torch.arange(8).reshape(2, 4)
    t = torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0]])
    x = process.perturb(x0, t, torch.full((2, 4), 0.5, dtype=F64))
    assert torch.equal(x == 9, t == 1.0)
    rows = process.perturb(x0, torch.tensor([0.2, 0.9]), torch.full((2, 4), 0.5, dtype=F64))
    assert torch.equal((rows == 9).all(1), torch.tensor([False, True]))


def test_the_start_of_sampling():
    assert torch.equal(MaskedProcess(3).prior((2, 5)), torch.full((2, 5), 3))
    uniform = UniformProcess(6)
    whole = uniform.prior((5, 4), 1)
    assert torch.equal(uniform.prior((2, 4), 1, index=3), whole[3:])
    many = uniform.prior((20000, 1), 2)
    assert many.min() == 0
    assert many.max() == 5
    shares = torch.bincount(many[:, 0]).double() / 20000
    assert bool(((shares - 1 / 6).abs() < 0.012).all())


def test_grids_of_any_process_serve_tokens_too():
    process = MaskedProcess(3, "cosine")
    for grid in (tw.grids.uniform, tw.grids.quadratic, tw.grids.log_snr):
        t = grid(process, 10)
        assert t[-1] == 0.0
        assert bool((t.diff() < 0).all())


def test_what_tokens_have_not_is_named():
    process = MaskedProcess(3)
    for call in (
        lambda: process.marginal(torch.zeros(1, 2), 0.5),
        lambda: process.drift(torch.zeros(1, 2), 0.5),
        lambda: process.diffusion(0.5),
        lambda: tw.NetworkDenoiser(lambda x, t: x, process, tw.targets.Data()),
    ):
        with pytest.raises(IncompatibleError, match="token"):
            call()
    with pytest.raises(InputError, match=r"x0: torch\.float32 was given; expected tokens"):
        process.perturb(torch.zeros(1, 2), 0.5, torch.zeros(1, 2))
    with pytest.raises(InputError, match="noise"):
        process.perturb(torch.zeros(1, 2, dtype=torch.long), 0.5, torch.zeros(1, 3))
    with pytest.raises(InputError, match="t: shape"):
        process.perturb(torch.zeros(1, 2, dtype=torch.long), torch.zeros(3), torch.zeros(1, 2))
    with pytest.raises(InputError, match="mask: -1"):
        MaskedProcess(-1)
    with pytest.raises(InputError, match="size: 0"):
        UniformProcess(0)
    with pytest.raises(InputError, match="schedule"):
        MaskedProcess(1, "linaer")  # type: ignore[arg-type]


def test_they_are_written_and_read_as_any_process():
    for process in PROCESSES:
        assert tw.training.plain.process_from_config(tw.training.to_config(process)) == process
