"""Bounds on the likelihood of tokens, and metrics of sequences."""

import math

import pytest
import torch

from tweed.data import MarkovChain, TabularJoint
from tweed.errors import InputError
from tweed.metrics import distinct, generative_perplexity, sequence_entropy
from tweed.tokens import exact_bound, likelihood_bound

JOINT = TabularJoint.random(3, 4, seed=3)


def test_for_exact_conditionals_the_bound_is_the_likelihood():
    x = JOINT.sample(20, 1)
    truth = -JOINT.table.flatten()[JOINT.index(x)].log() / 4
    bound = exact_bound(JOINT.denoiser(), x)
    # Every order of the tokens has the same product of conditionals.
    torch.testing.assert_close(bound.nats, truth)
    assert bound.perplexity == pytest.approx(math.exp(truth.mean().item()))


def test_draws_agree_with_the_sum_within_their_error():
    x = JOINT.sample(60, 2)
    exact, drawn = exact_bound(JOINT.denoiser(), x), likelihood_bound(JOINT.denoiser(), x, draws=200, seed=1, batch=64)
    assert 0.0 < drawn.error < 0.03
    assert abs(drawn.mean - exact.mean) < 4.5 * drawn.error


def test_given_a_prompt_it_is_the_conditional_likelihood():
    chain = MarkovChain.random(4, seed=1)
    x = chain.sample(40, 6, 2)
    fixed = (torch.arange(6) < 3).expand(40, -1)
    bound = likelihood_bound(chain.denoiser(), x, fixed=fixed, draws=400, seed=2)
    truth = -(chain.log_prob(x) - chain.log_prob(x[:, :3])) / 3
    assert abs(bound.mean - truth.mean().item()) < 4.5 * bound.error


def test_the_exact_sum_given_a_prompt_is_the_conditional_likelihood():
    x = JOINT.sample(12, 3)
    # Rows differ in what is given; one has nothing left.
    fixed = torch.zeros(12, 4, dtype=torch.bool)
    fixed[:6, :2] = True
    fixed[6:11, 1] = True
    fixed[11] = True
    p, rows = JOINT.table, x.tolist()
    given = [p[a, b].sum() for a, b, _, _ in rows[:6]] + [p[:, b].sum() for _, b, _, _ in rows[6:11]]
    counts = torch.tensor([2.0] * 6 + [3.0] * 5, dtype=torch.float64)
    truth = -(p.flatten()[JOINT.index(x[:11])] / torch.stack(given)).log() / counts
    bound = exact_bound(JOINT.denoiser(), x, fixed=fixed)
    torch.testing.assert_close(bound.nats[:11], truth)
    assert bound.nats[11].item() == 0.0
    drawn = likelihood_bound(JOINT.denoiser(), x[:6], fixed=fixed[:6], draws=400, seed=4)
    assert abs(drawn.mean - bound.nats[:6].mean().item()) < 4.5 * drawn.error + 1e-9


def test_the_entropy_of_a_sequence_is_that_of_its_histogram():
    x = torch.tensor([[1, 1, 1, 1], [0, 1, 2, 3], [5, 5, 9, 9]])
    torch.testing.assert_close(sequence_entropy(x), torch.tensor([0.0, math.log(4), math.log(2)], dtype=torch.float64))


def test_distinct_counts_different_grams():
    x = torch.tensor([[0, 1, 0, 1], [0, 1, 0, 1]])
    assert distinct(x, 1) == pytest.approx(2 / 8)
    assert distinct(x, 2) == pytest.approx(2 / 6)


def test_generative_perplexity_is_the_chain_s_own():
    chain = MarkovChain.random(4, seed=6)
    x = chain.sample(50, 9, 1)
    steps = chain.transition.log()[x[:, :-1], x[:, 1:]]
    assert generative_perplexity(x, chain.next_log_probs) == pytest.approx(math.exp(-steps.mean().item()))


def test_mistakes_are_named():
    cases = [
        (lambda: exact_bound(JOINT.denoiser(), torch.zeros(1, 20).long()), "at most 12"),
        (lambda: exact_bound(JOINT.denoiser(), torch.zeros(0, 4).long()), "not empty"),
        (lambda: likelihood_bound(JOINT.denoiser(), torch.zeros(0, 4).long()), "0 sequences"),
        (lambda: sequence_entropy(torch.zeros(2, 0).long()), "x: torch.int64"),
        (lambda: distinct(torch.zeros(2, 3).long(), 4), "n: 4"),
        (lambda: generative_perplexity(torch.zeros(2, 1).long(), lambda x: x), "at least two"),
    ]
    for call, words in cases:
        with pytest.raises(InputError, match=words):
            call()
