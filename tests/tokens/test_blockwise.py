"""Blockwise decoding: counts follow the schedule, limits, remasking, infilling, stopping."""

import itertools

import pytest
import torch

import tweed as tw
from tweed.core.processes import MaskedProcess, UniformProcess
from tweed.core.token_denoiser import TokenDenoiser
from tweed.data import MarkovChain, TabularJoint
from tweed.errors import IncompatibleError, InputError
from tweed.solvers.base import Problem
from tweed.tokens import Blockwise, LowConfidence, RunningConfidence

CHAIN = MarkovChain.stepping()
EXACT = CHAIN.denoiser(24)
REMASKS = [LowConfidence(), RunningConfidence()]


def problem(denoiser, steps, seed=0):
    return Problem(denoiser, tuple(1.0 - i / steps for i in range(steps + 1)), {}, seed, 0)


@pytest.mark.parametrize("remask", REMASKS, ids=repr)
@pytest.mark.parametrize("schedule", ["linear", "cosine", "geometric"])
@pytest.mark.parametrize("block", [None, 8, 7])
def test_as_many_masks_are_left_as_the_schedule_says(remask, schedule, block):
    process = MaskedProcess(6, schedule)
    denoiser = TokenDenoiser(EXACT.network, process, event=(24,))
    blocks = 1 if block is None else -(-24 // block)
    steps = 5 * blocks
    fills = list(
        Blockwise(block, remask=remask, temperature=1.0).fills(problem(denoiser, steps), process.prior((3, 24)))
    )
    assert len(fills) == steps
    for i, fill in enumerate(fills):
        low, high = fill.block
        t = 1.0 - (i % 5 + 1) / 5
        expected = int((high - low) * process.sigma(t).item() + 1e-9)
        assert bool(((fill.after[:, low:high] == 6).sum(1) == expected).all())
        assert not (fill.after[:, :low] == 6).any()
        assert bool((fill.after[:, high:] == 6).all())
        assert not (fill.filled[:, low:high] == 6).any()
    assert not (fills[-1].after == 6).any()


def test_one_step_takes_the_most_probable_token_everywhere():
    x = tw.sample(EXACT, 2, solver=Blockwise(), steps=1)
    assert torch.equal(x, EXACT(MaskedProcess(6).prior((2, 24))).x0)


def test_one_token_a_step_at_temperature_one_draws_from_the_joint():
    # In random order every conditional is exact: the chain rule.
    joint = TabularJoint.random(3, 3, seed=2)
    x = tw.sample(joint.denoiser(), 40000, solver=Blockwise(confidence="random", temperature=1.0), steps=3, seed=5)
    assert (joint.histogram(x) - joint.table).abs().sum().item() / 2 < 0.012
    # All at once they are independent.
    x = tw.sample(joint.denoiser(), 40000, solver=Blockwise(confidence="random", temperature=1.0), steps=1, seed=5)
    alone = joint.marginals(torch.full((1, 3), 3))[0]
    product = alone[0][:, None, None] * alone[1][:, None] * alone[2]
    assert (joint.histogram(x) - product).abs().sum().item() / 2 < 0.012
    assert (joint.table - product).abs().sum().item() / 2 > 0.1


def test_a_token_once_kept_stays_but_for_running_confidence():
    revised = {}
    for remask in REMASKS:
        fills = list(
            Blockwise(remask=remask, temperature=1.0).fills(problem(EXACT, 8), MaskedProcess(6).prior((200, 24)))
        )
        changes = 0
        for before, after in itertools.pairwise(fills):
            kept = before.after != 6
            changes += int((after.after[kept] != before.after[kept]).sum())
        revised[type(remask).__name__] = changes
    assert revised["LowConfidence"] == 0
    assert revised["RunningConfidence"] > 100


@pytest.mark.parametrize("steps", [1, 2])
def test_with_one_or_two_steps_both_remaskings_are_the_same(steps):
    draws = [tw.sample(EXACT, 50, solver=Blockwise(temperature=1.0, remask=r), steps=steps, seed=3) for r in REMASKS]
    assert torch.equal(*draws)


def test_running_confidence_repairs_what_was_drawn_together():
    def violations(remask, steps):
        x = tw.sample(EXACT, 1500, solver=Blockwise(temperature=1.0, remask=remask), steps=steps, seed=1)
        step = (x[:, 1:] - x[:, :-1]) % 6
        return ((step != 1) & (step != 2)).double().mean().item()

    for steps in (6, 8):
        assert violations(RunningConfidence(), steps) < 0.5 * violations(LowConfidence(), steps)


@pytest.mark.parametrize("remask", REMASKS, ids=repr)
def test_given_tokens_stay_whatever_their_place(remask):
    x = CHAIN.sample(30, 24, 3)
    holes = torch.rand(30, 24, generator=torch.Generator().manual_seed(1)) < 0.4
    start = x.masked_fill(holes, 6)
    out = tw.sample(EXACT, start, solver=Blockwise(8, temperature=1.0, remask=remask), steps=9, seed=2)
    assert torch.equal(out[~holes], x[~holes])
    assert not (out == 6).any()


def test_a_threshold_above_one_is_a_token_a_step_and_zero_a_block_a_step():
    x = MaskedProcess(6).prior((1, 24))
    for threshold, calls in ((1.5, 24), (0.0, 3)):
        decoded = Blockwise(8, threshold=threshold).decode(problem(EXACT, 1), x)
        assert decoded.calls == calls
        assert decoded.positions == 24 * calls
    sure = Blockwise(8, threshold=0.9).decode(problem(EXACT, 1), x)
    assert 3 < sure.calls <= 24


def test_no_token_below_the_threshold_is_kept_but_the_surest():
    fills = list(Blockwise(threshold=0.6).fills(problem(EXACT, 1), MaskedProcess(6).prior((5, 24))))
    for fill in fills:
        new = (fill.before == 6) & (fill.after != 6)
        low = new & (fill.confidence < 0.6)
        assert bool((low.sum(1) <= 1).all())
        assert bool((new.sum(1) >= (fill.before == 6).any(1).long()).all())


def test_sample_i_is_the_same_in_any_batch():
    solver = Blockwise(8, temperature=1.0, confidence="random")
    whole = tw.sample(EXACT, 5, solver=solver, steps=12, seed=7)
    assert torch.equal(tw.sample(EXACT, 2, solver=solver, steps=12, seed=7, index=3), whole[3:])
    assert not torch.equal(tw.sample(EXACT, 5, solver=solver, steps=12, seed=8), whole)


def test_blocks_behind_an_end_are_not_decoded():
    def ends(x):
        logits = torch.zeros(*x.shape, 6)
        logits[:, 5, 2] = 50.0
        return logits

    denoiser = TokenDenoiser(ends, MaskedProcess(6), event=(24,))
    decoded = Blockwise(8, stop=2).decode(problem(denoiser, 6), MaskedProcess(6).prior((2, 24)))
    assert decoded.calls == 2
    assert bool((decoded.tokens[:, 8:] == 2).all())
    assert bool((decoded.tokens[:, 5] == 2).all())


def test_nothing_to_do_and_nobody_to_do_it_for():
    x = CHAIN.sample(2, 24, 1)
    assert torch.equal(tw.sample(EXACT, x, solver=Blockwise(), steps=3), x)
    assert tw.sample(EXACT, 0, solver=Blockwise(), steps=3).shape == (0, 24)
    assert Blockwise().decode(problem(EXACT, 3), x).calls == 0


def test_trajectories_and_observers():
    states = tw.sample(EXACT, 2, solver=Blockwise(), steps=4, trajectory=True)
    assert states.shape == (5, 2, 24)
    assert (states == 6).sum((1, 2)).tolist() == [48, 36, 24, 12, 0]


def test_mistakes_are_named():
    cases = [
        (lambda: Blockwise(0), "block: 0"),
        (lambda: Blockwise(temperature=-1.0), "temperature"),
        (lambda: Blockwise(threshold=-0.1), "threshold"),
        (lambda: Blockwise(threshold=0.9, remask=RunningConfidence()), "remask"),
        (lambda: Blockwise(confidence="sure"), "confidence"),  # type: ignore[arg-type]
        (lambda: tw.sample(EXACT, 2, solver=Blockwise(8), steps=4), "a multiple of the 3 blocks"),
        (lambda: tw.sample(EXACT, 2, solver=Blockwise(threshold=0.9), steps=4), "chooses its own steps"),
        (
            lambda: tw.sample(
                TokenDenoiser(EXACT.network, UniformProcess(6), event=(24,)), 2, solver=Blockwise(), steps=4
            ),
            "needs a MaskedProcess",
        ),
    ]
    for call, words in cases:
        with pytest.raises((InputError, IncompatibleError), match=words):
            call()
