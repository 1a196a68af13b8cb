"""MDPO: signals and advantages, losses against REINFORCE, rollouts along the decoding, training."""

import copy

import pytest
import torch

import tweed as tw
from tweed.core.processes import MaskedProcess, UniformProcess
from tweed.core.token_denoiser import TokenDenoiser
from tweed.data.puzzles import RunningSums
from tweed.errors import IncompatibleError, InputError
from tweed.tokens import Blockwise, RunningConfidence
from tweed.tokens.policy_gradient import (
    MDPO,
    RandomMaskGRPO,
    clipped_loss,
    group_advantages,
    mdpo_advantages,
    over_denoised,
    rollout,
    step_signals,
    steps_that_matter,
    token_log_probs,
    train_policy,
)

PUZZLE = RunningSums(2)


def policy(seed=1):
    config = {"name": "text-transformer", "vocab": 12, "width": 32, "depth": 1, "heads": 2, "tied": False}
    return TokenDenoiser(tw.nets.build(config, seed), MaskedProcess(11))


def test_signals_are_the_change_and_what_comes_after():
    rewards = torch.tensor([[0.0], [1.0], [0.0], [1.0]], dtype=torch.float64)
    # (R_s - R_(s-1)) + mean of the later ones; the last counts itself.
    expected = torch.tensor([0.0 + 2 / 3, 1.0 + 0.5, -1.0 + 1.0, 1.0 + 1.0], dtype=torch.float64)
    torch.testing.assert_close(step_signals(rewards)[:, 0], expected)
    torch.testing.assert_close(step_signals(rewards[:1]), 2 * rewards[:1])


def test_advantages_have_mean_zero_and_nothing_to_say_of_equal_rewards():
    rewards = torch.rand(5, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).round()
    advantages = mdpo_advantages(rewards)
    assert float(advantages.mean(-1).abs().max()) < 1e-12
    assert float(advantages.std(-1).max()) <= 1.0
    assert float(mdpo_advantages(torch.ones(5, 3, 8)).abs().max()) == 0.0
    shifted = group_advantages(rewards + 1.0)
    torch.testing.assert_close(shifted, group_advantages(rewards))


def test_the_steps_with_the_largest_advantages_are_taken():
    advantages = torch.zeros(4, 2, 3)
    advantages[1, 0] = torch.tensor([3.0, -3.0, 0.0])
    advantages[3, 0] = torch.tensor([1.0, -1.0, 0.0])
    advantages[0, 1] = torch.tensor([-2.0, 2.0, 0.0])
    advantages[2, 1] = torch.tensor([-5.0, 5.0, 0.0])
    assert steps_that_matter(advantages, 2).T.tolist() == [[1, 3], [0, 2]]
    assert steps_that_matter(advantages, 9).shape == (4, 2)


def test_what_was_right_and_is_wrong_at_the_end():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    assert over_denoised(rewards).tolist() == [True, False, False, False]
    assert over_denoised(rewards[:1]).tolist() == [False] * 4


def test_a_rollout_keeps_what_the_decoding_saw():
    x = PUZZLE.asked(PUZZLE.draw(5, 1))
    solver = Blockwise(temperature=1.0, remask=RunningConfidence())
    made = rollout(policy(), x, solver, 4, seed=2)
    assert made.states.shape == made.predictions.shape == (4, 5, 6)
    assert torch.equal(made.states[0], x)
    assert (made.states == 11).sum(2).tolist() == [[4] * 5, [3] * 5, [2] * 5, [1] * 5]
    assert not (made.predictions == 11).any()
    assert torch.equal(made.predictions[-1], made.final)
    assert torch.equal(made.predictions[:, :, :2], x[:, :2].expand(4, -1, -1))
    masked = made.states == 11
    assert bool((made.confidence[masked] > 0).all())
    assert bool((made.confidence[~masked] == 0).all())
    assert torch.equal(made.final, tw.sample(policy(), x, solver=solver, steps=4, seed=2))


def test_where_the_ratio_is_one_the_gradient_is_reinforce_s():
    denoiser = policy()
    x = PUZZLE.asked(PUZZLE.draw(6, 1))
    tokens, gain = PUZZLE.draw(6, 1), torch.tensor([1.0, -1.0, 0.5, 2.0, -0.3, 0.0])
    masked, answer = x == 11, (x == 11).sum(1)
    now = token_log_probs(denoiser, x, tokens, 0.7)
    loss = clipped_loss(now, now.detach(), None, gain, masked, answer).mean()
    ours = torch.autograd.grad(loss, denoiser.parameters(), retain_graph=True, allow_unused=True)
    plain = -(gain[:, None] * now * masked).sum(1) / masked.sum(1)
    theirs = torch.autograd.grad(plain.mean(), denoiser.parameters(), allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_beyond_the_clip_there_is_no_gradient_the_good_way():
    now = torch.log(torch.tensor([[1.5, 0.5]])).requires_grad_()
    old, masked, answer = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), torch.tensor([2])
    for gain, expected in ((1.0, [0.0, -0.25]), (-1.0, [0.75, 0.0])):
        (slope,) = torch.autograd.grad(clipped_loss(now, old, None, torch.tensor([gain]), masked, answer).sum(), now)
        torch.testing.assert_close(slope, torch.tensor([expected]))


def test_few_masks_weigh_as_the_bound_says():
    now = torch.zeros(2, 4)
    masked = torch.tensor([[True] * 4, [True, False, False, False]])
    loss = clipped_loss(now, now, None, torch.ones(2), masked, torch.tensor([4, 4]))
    torch.testing.assert_close(loss, torch.tensor([-1.0, -4.0]))


@pytest.mark.parametrize("method", [MDPO(4, 4, 2), RandomMaskGRPO(4, 4, 2)], ids=repr)
def test_equal_rewards_leave_the_pull_to_the_reference_alone(method):
    denoiser, x = policy(), PUZZLE.asked(PUZZLE.draw(3, 1))

    def always(tokens):
        return torch.ones(len(tokens))

    loss, mean = method.loss(denoiser, None, x, always, 1)
    assert mean == 1.0
    assert loss.item() == 0.0
    same, _ = method.loss(denoiser, copy.deepcopy(denoiser), x, always, 1)
    assert same.item() == pytest.approx(0.0, abs=1e-9)
    other, _ = method.loss(denoiser, policy(5), x, always, 1)
    assert other.item() > 0.0


@pytest.mark.parametrize("method", [MDPO(4, 4, 2, temperature=1.0), RandomMaskGRPO(4, 4, 2, temperature=1.0)], ids=repr)
def test_training_raises_the_reward_and_is_a_function_of_the_seed(method):
    def reward(tokens):
        return (tokens[:, -1] == 7).float()

    x = PUZZLE.asked(PUZZLE.draw(4, 1))
    histories = []
    for _ in range(2):
        denoiser = policy()
        histories.append(train_policy(denoiser, method, lambda update: x, reward, updates=25, lr=3e-3, seed=3))
    assert histories[0] == histories[1]
    assert sum(histories[0][-5:]) / 5 > sum(histories[0][:5]) / 5 + 0.3


def test_mistakes_are_named():
    x = PUZZLE.asked(PUZZLE.draw(2, 1))
    uniform = TokenDenoiser(policy().network, UniformProcess(12))
    cases = [
        (lambda: rollout(policy(), x, Blockwise(threshold=0.5), 4), "without a threshold"),
        (lambda: rollout(policy(), x, Blockwise(2), 4), "one block"),
        (lambda: rollout(policy(), PUZZLE.draw(2, 1), Blockwise(), 4), "it has no masks"),
        (lambda: MDPO(group=1), "a group of at least 2"),
        (lambda: MDPO(temperature=0.0), "all of a group are the same"),
        (lambda: steps_that_matter(torch.zeros(2, 2, 2), 0), "count: 0"),
        (lambda: token_log_probs(uniform, x, x, 1.0), "has no mask"),
        (lambda: train_policy(policy(), MDPO(), lambda u: x, PUZZLE.right, updates=-1), "updates: -1"),
    ]
    for call, words in cases:
        with pytest.raises((InputError, IncompatibleError), match=words):
            call()
