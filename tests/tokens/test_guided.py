"""Guided decoding: the guide's answer under the greedy rule, its law under sampling, and what looser rules keep."""

import pytest
import torch

import tweed as tw
from tweed.core.processes import MaskedProcess
from tweed.core.token_denoiser import TokenDenoiser
from tweed.data import MarkovChain
from tweed.errors import IncompatibleError, InputError
from tweed.solvers.base import Problem
from tweed.tokens import Blockwise, FreeCache, Guided

CHAIN = MarkovChain.random(5, spread=2.0, seed=1)
MASK = 5


def net(seed=1, causal=False, vocab=6):
    config = {"name": "text-transformer", "vocab": vocab, "width": 32, "depth": 2, "heads": 2, "causal": causal}
    return tw.nets.build({**config, "tied": False}, seed)


def start(rows=2, length=14, first=1):
    x = torch.full((rows, length), MASK)
    x[:, :first] = torch.arange(first) % 5
    return x


def run(denoiser):
    return Problem(denoiser, (1.0, 0.0), seed=3)


@pytest.mark.parametrize("chunk", [1, 3, 32])
def test_the_greedy_answer_is_the_guide_s_whatever_is_drafted(chunk):
    guide = net(2, causal=True)
    x = start()
    for place in range(1, 14):
        x[:, place] = guide(x[:, :place])[:, -1, :5].argmax(-1)
    for seed in (3, 4):
        denoiser = TokenDenoiser(net(seed), MaskedProcess(MASK))
        done = Guided(guide, "greedy", chunk=chunk).decode(run(denoiser), start())
        assert torch.equal(done.tokens, x)
        assert done.calls <= 2 * 13
        assert done.extra["rejections"] in (done.calls, done.calls - 1, done.calls - 2)


def test_under_sampling_the_answer_has_the_guide_s_law():
    n, x = 3000, start(1, 4)
    solver = Guided(CHAIN.next_log_probs, "sampling")
    denoiser = CHAIN.denoiser()
    draws = torch.cat([solver.decode(Problem(denoiser, (1.0, 0.0), seed=7, index=i), x).tokens for i in range(n)])
    index = draws[:, 1] * 25 + draws[:, 2] * 5 + draws[:, 3]
    shares = torch.bincount(index, minlength=125).double() / n
    t = CHAIN.transition
    truth = (t[0][:, None, None] * t[:, :, None] * t[None]).reshape(-1)
    assert (shares - truth).abs().sum().item() / 2 < 0.055


def test_a_guide_that_agrees_takes_one_call():
    denoiser = TokenDenoiser(net(3), MaskedProcess(MASK))
    answer = Blockwise().decode(run(denoiser), start(1)).tokens

    def agrees(x):
        return torch.nn.functional.one_hot(answer[:, 1 : x.shape[1] + 1], 6).float() * 20

    done = Guided(agrees, "greedy").decode(run(denoiser), start(1))
    assert (done.calls, done.extra["rejections"]) == (1, 0)
    assert torch.equal(done.tokens, answer)


def test_looser_rules_accept_more_and_all_is_the_draft_itself():
    denoiser = CHAIN.denoiser()
    x = start(4, 30)
    calls = [Guided(CHAIN.next_log_probs, "top-k", k=k).decode(run(denoiser), x).calls for k in (1, 2, 5)]
    assert calls[0] >= calls[1] >= calls[2] == 4
    everything = Guided(CHAIN.next_log_probs, "top-k", k=5).decode(run(denoiser), x).tokens
    assert torch.equal(everything[:, 1:], denoiser(x).x0[:, 1:])
    one = Guided(CHAIN.next_log_probs, "top-k", k=1).decode(run(denoiser), x).tokens
    assert torch.equal(one, Guided(CHAIN.next_log_probs, "greedy").decode(run(denoiser), x).tokens)
    none = Guided(CHAIN.next_log_probs, "threshold", share=1.0).decode(run(denoiser), x)
    assert none.extra["rejections"] == 4 * 29
    strict = Guided(CHAIN.next_log_probs, "relative", k=5, share=1.0).decode(run(denoiser), x).tokens
    assert torch.equal(strict, one)


def test_given_tokens_between_masks_stay():
    x = start(2, 14)
    x[:, 6] = 3
    x[1, 9] = 0
    done = Guided(CHAIN.next_log_probs, "greedy").decode(run(CHAIN.denoiser()), x).tokens
    assert torch.equal(done[x != MASK], x[x != MASK])
    assert not (done == MASK).any()


def test_the_guide_s_own_cache_changes_nothing():
    guide = net(2, causal=True)
    denoiser = TokenDenoiser(net(5), MaskedProcess(MASK))
    options = {"accept": "top-k", "k": 2, "chunk": 4}
    cached = Guided(guide, **options).decode(run(denoiser), start(3, 20, 2))
    plain = Guided(lambda x: guide(x), **options).decode(run(denoiser), start(3, 20, 2))
    assert torch.equal(cached.tokens, plain.tokens)
    assert cached.extra == plain.extra


def test_with_a_cache_of_the_denoiser_s_fewer_positions_are_evaluated():
    denoiser = TokenDenoiser(net(5), MaskedProcess(MASK))
    whole = Guided(CHAIN.next_log_probs, "greedy").decode(run(denoiser), start(2, 20))
    part = Guided(CHAIN.next_log_probs, "greedy", caching=FreeCache(clean=False)).decode(run(denoiser), start(2, 20))
    assert torch.equal(whole.tokens, part.tokens)
    assert part.positions < 0.8 * whole.positions


def test_an_end_fills_the_rest():
    def ends(x):
        logits = torch.zeros(*x.shape, 5)
        logits[..., 4] = 9.0
        return logits

    done = Guided(ends, "greedy", stop=4).decode(run(CHAIN.denoiser()), start(1, 14))
    assert bool((done.tokens[0, 1:] == 4).all())
    assert done.calls == 1


def test_nothing_to_do_and_mistakes():
    denoiser = CHAIN.denoiser()
    x = CHAIN.sample(2, 6, 1)
    assert torch.equal(Guided(CHAIN.next_log_probs).decode(run(denoiser), x).tokens, x)
    assert tw.sample(denoiser, x[:0], solver=Guided(CHAIN.next_log_probs)).shape == (0, 6)
    cases = [
        (lambda: Guided(CHAIN.next_log_probs, "best"), "accept"),
        (lambda: Guided(CHAIN.next_log_probs, k=0), "k, chunk: 0"),
        (lambda: Guided(CHAIN.next_log_probs, share=2.0), "share"),
        (lambda: Guided(net()), "is not causal"),
        (lambda: tw.sample(denoiser, start(1, 6, 0), solver=Guided(CHAIN.next_log_probs)), "its first token is masked"),
        (
            lambda: tw.sample(denoiser, start(1, 6), solver=Guided(CHAIN.next_log_probs), steps=3),
            "chooses its own steps",
        ),
        (
            lambda: tw.sample(denoiser, start(1, 20), solver=Guided(lambda x: torch.zeros(*x.shape, 2), "greedy")),
            "expected the denoiser's vocabulary",
        ),
    ]
    for call, words in cases:
        with pytest.raises((InputError, IncompatibleError), match=words):
            call()
