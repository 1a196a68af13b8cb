"""Exact worlds of tokens: marginals against brute force, draws against probabilities."""

import itertools
import math

import pytest
import torch

from tweed.data import MarkovChain, TabularJoint, Tokens, entropy_rate
from tweed.errors import InputError

F64 = torch.float64


def test_a_joint_draws_what_its_table_says():
    joint = TabularJoint.random(3, 3, seed=4)
    off = (joint.histogram(joint.sample(100000, 1)) - joint.table).abs().sum().item() / 2
    assert off < 0.01
    assert joint.table.sum().item() == pytest.approx(1.0)
    assert torch.equal(joint.index(joint.states), torch.arange(27))


def test_its_marginals_are_sums_over_the_table():
    joint = TabularJoint.random(3, 3, seed=5)
    x = torch.tensor([[3, 1, 3], [3, 3, 3], [0, 2, 1]])
    got = joint.marginals(x)
    part = joint.table[:, 1]
    torch.testing.assert_close(got[0, 0], part.sum(1) / part.sum())
    torch.testing.assert_close(got[0, 2], part.sum(0) / part.sum())
    torch.testing.assert_close(got[1, 1], joint.table.sum((0, 2)))
    assert torch.equal(got[2].argmax(-1), x[2])
    assert bool((got[2].amax(-1) == 1.0).all())


@pytest.mark.parametrize("seen", [(), (0,), (2,), (0, 3), (1, 2, 3)])
def test_a_chain_s_marginals_are_those_of_its_joint(seen):
    chain = MarkovChain.random(3, spread=1.5, seed=2)
    states = torch.tensor(list(itertools.product(range(3), repeat=4)))
    joint = TabularJoint(chain.log_prob(states).exp().reshape(3, 3, 3, 3))
    x = torch.full((2, 4), 3)
    for i in seen:
        x[:, i] = torch.tensor([i % 3, (i + 1) % 3])
    torch.testing.assert_close(chain.marginals(x), joint.marginals(x), rtol=1e-10, atol=1e-12)
    assert joint.table.sum().item() == pytest.approx(1.0)


def test_a_chain_draws_its_transitions():
    chain = MarkovChain.stepping(6, (1, 2), 0.03)
    torch.testing.assert_close(chain.transition.sum(1), torch.ones(6, dtype=F64))
    x = chain.sample(4000, 20, 7)
    step = (x[:, 1:] - x[:, :-1]) % 6
    share = ((step == 1) | (step == 2)).double().mean().item()
    assert abs(share - 0.97) < 4.5 * math.sqrt(0.97 * 0.03 / step.numel())
    # Per token, the mean log probability of draws is minus the entropy.
    first = math.log(6.0)
    rate = entropy_rate(chain)
    assert chain.log_prob(x).mean().item() == pytest.approx(-first - 19 * rate, rel=0.01)


def test_what_follows_a_token():
    chain = MarkovChain.random(4, seed=3)
    after = chain.next_log_probs(torch.tensor([[1, 4]])).exp()
    torch.testing.assert_close(after[0, 0], chain.transition[1])
    torch.testing.assert_close(after[0, 1], chain.initial)


def test_exact_denoisers_know_the_mask():
    chain = MarkovChain.random(4, seed=3)
    denoiser = chain.denoiser(5)
    assert denoiser.event == (5,)
    assert denoiser.process.mask == 4
    x = torch.tensor([[0, 4, 4, 4, 2]])
    torch.testing.assert_close(denoiser(x).probs(F64)[0, 1:4], chain.marginals(x)[0, 1:4])


def test_tokens_stay_integers():
    data = Tokens(torch.arange(12).reshape(4, 3), fixed=torch.zeros(4, 3, dtype=torch.bool))
    batch = data.batch(torch.tensor([2, 0]))
    assert batch["x"].dtype == torch.int64
    assert torch.equal(batch["x"], torch.tensor([[6, 7, 8], [0, 1, 2]]))
    assert data.conditions == ("fixed",)
    assert data.shape == (3,)
    assert torch.equal(data[-1]["x"], torch.tensor([9, 10, 11]))


def test_mistakes_are_named():
    cases = [
        (lambda: Tokens(torch.zeros(2, 3)), "x: torch.float32"),
        (lambda: Tokens(torch.zeros(2, 3).long(), fixed=torch.zeros(3, 3)), "fixed: shape"),
        (lambda: TabularJoint(torch.ones(2, 3)), "table: shape"),
        (lambda: TabularJoint(-torch.ones(2, 2)), "table"),
        (lambda: MarkovChain(torch.ones(2) / 2, torch.ones(2, 2)), "the sum 1"),
        (lambda: MarkovChain(torch.ones(3) / 3, torch.ones(2, 2) / 2), "initial, transition"),
    ]
    for call, words in cases:
        with pytest.raises(InputError, match=words):
            call()
