"""Caches of keys and values in decoding: exact where the card says so, fewer positions, right counts."""

import pytest
import torch

import tweed as tw
from tweed.core.processes import MaskedProcess
from tweed.core.token_denoiser import TokenDenoiser
from tweed.data import MarkovChain
from tweed.errors import IncompatibleError, InputError
from tweed.solvers.base import Problem
from tweed.tokens import Blockwise, DualCache, FreeCache, NoCache, PrefixCache, RunningConfidence

MASK = 10
CACHES = [FreeCache(), FreeCache(clean=False), FreeCache(refresh=2, clean=False), PrefixCache(), DualCache()]


def denoiser(causal=False, shift=False):
    config = {"name": "text-transformer", "vocab": 11, "width": 32, "depth": 2, "heads": 4, "causal": causal}
    return TokenDenoiser(tw.nets.build(config, 3).double(), MaskedProcess(MASK), shift=shift)


def start(batch=3, prompt=8, length=16):
    x = torch.randint(0, 10, (batch, prompt + length), generator=torch.Generator().manual_seed(2))
    x[:, prompt:] = MASK
    return x


def problem(made, steps):
    return Problem(made, tuple(1.0 - i / steps for i in range(steps + 1)))


@pytest.mark.parametrize(
    "caching", [FreeCache(clean=True), FreeCache(clean=True, window=3), PrefixCache(), DualCache()], ids=repr
)
@pytest.mark.parametrize("threshold", [None, 0.12])
def test_where_attention_is_causal_a_frozen_prefix_is_exact(caching, threshold):
    # A causal network is read shifted: the law of a token is what it answers before it.
    made = denoiser(causal=True, shift=True)
    options = {"block": 4, "temperature": 1.0, "threshold": threshold}
    whole = Blockwise(**options).decode(problem(made, 8), start())
    part = Blockwise(**options, caching=caching).decode(problem(made, 8), start())
    assert torch.equal(whole.tokens, part.tokens)
    assert part.positions < whole.positions


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("remask", [RunningConfidence(), None], ids=repr)
def test_with_one_block_and_no_prompt_nothing_is_frozen(shift, remask):
    made, options = denoiser(shift=shift), {"temperature": 1.0} | ({} if remask is None else {"remask": remask})
    alone = torch.full((2, 12), MASK)
    whole = Blockwise(**options).decode(problem(made, 6), alone)
    for caching in CACHES:
        part = Blockwise(**options, caching=caching).decode(problem(made, 6), alone)
        assert torch.equal(whole.tokens, part.tokens)
        assert part.positions == whole.positions == 72


@pytest.mark.parametrize("caching", CACHES, ids=repr)
@pytest.mark.parametrize("shift", [False, True])
def test_one_step_a_block_after_a_whole_evaluation_is_the_first_step_exactly(caching, shift):
    # Up to the first block's end a cache has seen what the plain loop has.
    made, x = denoiser(shift=shift), start()
    fills = [next(Blockwise(4, caching=c).fills(problem(made, 4), x)) for c in (NoCache(), caching)]
    assert torch.equal(fills[0].after, fills[1].after)
    torch.testing.assert_close(fills[0].confidence, fills[1].confidence)


def test_positions_are_those_that_the_policies_name():
    made, x = denoiser(), start()
    # 8 + 16 positions, 4 blocks of 4, two steps each.
    counts = {
        NoCache(): 8 * 24,
        FreeCache(clean=False): (24 + 16) + 2 * 12 + 2 * 8 + 2 * 4,
        PrefixCache(): 4 * 24 + (16 + 12 + 8 + 4),
        DualCache(): 4 * 24 + 4 * 4,
        FreeCache(window=2, clean=False): (14 + 6) + 2 * 6 + 2 * 6 + 2 * 4,
        FreeCache(refresh=2, clean=False): (24 + 16) + 2 * 12 + (24 + 8) + 2 * 4,
        FreeCache(): (24 + 16) + 16 + 2 * 12 + 12 + 2 * 8 + 8 + 2 * 4,
    }
    for caching, expected in counts.items():
        decoded = Blockwise(4, caching=caching).decode(problem(made, 8), x)
        assert decoded.positions == expected, caching
        assert decoded.calls == 8 + (3 if caching == FreeCache() else 0)
        assert not (decoded.tokens == MASK).any()
        assert torch.equal(decoded.tokens[:, :8], x[:, :8])


def test_with_shift_the_position_before_is_evaluated_too():
    decoded = Blockwise(4, caching=DualCache()).decode(problem(denoiser(shift=True), 8), start())
    assert decoded.positions == 4 * 24 + 4 * 5


def test_a_threshold_decodes_each_block_until_it_is_full():
    made = denoiser()
    one = Blockwise(4, threshold=1.5, caching=DualCache()).decode(problem(made, 1), start())
    assert (one.calls, one.positions) == (16, 4 * 24 + 12 * 4)
    all_ = Blockwise(4, threshold=0.0, caching=PrefixCache()).decode(problem(made, 1), start())
    assert (all_.calls, all_.positions) == (4, 4 * 24)


def test_they_need_a_network_that_keeps_something():
    chain = MarkovChain.random(4)
    timed = TokenDenoiser(denoiser().network, MaskedProcess(MASK), timed=True)
    for made, words in ((chain.denoiser(6), "keeps no keys and values"), (timed, "is told the time")):
        with pytest.raises(IncompatibleError, match=words):
            tw.sample(made, torch.full((1, 6), made.process.mask), solver=Blockwise(caching=DualCache()), steps=2)
    counted = tw.CountingDenoiser(denoiser())
    with pytest.raises(IncompatibleError, match="is evaluated as a whole"):
        tw.sample(counted, start(), solver=Blockwise(caching=DualCache()), steps=2)
    for wrong in ({"window": -1}, {"refresh": 0}):
        with pytest.raises(InputError):
            FreeCache(**wrong)
