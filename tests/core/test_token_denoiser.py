"""Token denoisers: SUBS, the shift of Dream, spans and caches against whole evaluations."""

import math

import pytest
import torch

import tweed as tw
from tweed.core.processes import MaskedProcess, UniformProcess
from tweed.core.token_denoiser import TokenDenoiser, TokenEstimate, without
from tweed.errors import IncompatibleError, InputError

NET = tw.nets.build({"name": "text-transformer", "vocab": 12, "width": 32, "depth": 2, "heads": 4}, 1)
MASK = 11


def tokens(batch=3, length=10, seed=0):
    return torch.randint(0, 11, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_the_mask_has_no_probability_and_seen_tokens_stay():
    x = tokens()
    x[:, 3:6] = MASK
    estimate = TokenDenoiser(NET, MaskedProcess(MASK))(x)
    probs = estimate.probs(torch.float64)
    torch.testing.assert_close(probs.sum(-1), torch.ones(3, 10, dtype=torch.float64))
    assert float(probs[..., MASK].detach().abs().max()) == 0.0
    seen = ~estimate.masked
    assert torch.equal(estimate.x0[seen], x[seen])
    assert bool((probs[seen].gather(-1, x[seen][:, None]) == 1.0).all())
    # Masked positions: a softmax of the other columns.
    expected = estimate.logits[..., :MASK].double().softmax(-1)
    torch.testing.assert_close(probs[~seen][..., :MASK], expected[~seen])


def test_a_mask_beyond_the_columns_is_no_column():
    logits = torch.randn(2, 4, 5)
    assert without(logits, 5) is logits
    assert without(logits, 2)[..., 2].isneginf().all()
    estimate = TokenEstimate(torch.tensor([[5, 1]]), 1.0, torch.zeros(1, 2, 5), MaskedProcess(5))
    torch.testing.assert_close(estimate.probs()[0, 0], torch.full((5,), 0.2))
    assert estimate.x0[0, 1] == 1


def test_under_the_uniform_process_no_token_is_sure():
    x = tokens()
    estimate = TokenDenoiser(NET, UniformProcess(12))(x)
    assert not estimate.masked.any()
    torch.testing.assert_close(estimate.log_probs(), estimate.logits.log_softmax(-1))
    assert math.isfinite(float(estimate.log_probs().detach().min()))


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("span", [(0, 10), (0, 1), (3, 7), (9, 10), (4, 4)])
def test_a_span_is_that_part_of_the_whole(shift, span):
    denoiser = TokenDenoiser(NET, MaskedProcess(MASK), shift=shift)
    x = tokens()
    whole = denoiser.read(x)
    torch.testing.assert_close(denoiser.read(x, span), whole[:, span[0] : span[1]], rtol=0, atol=1e-6)


def test_shifted_answers_are_those_of_the_position_before():
    x = tokens()
    plain, shifted = (TokenDenoiser(NET, MaskedProcess(MASK), shift=s).read(x) for s in (False, True))
    torch.testing.assert_close(shifted[:, 1:], plain[:, :-1])
    torch.testing.assert_close(shifted[:, 0], plain[:, 0])


@pytest.mark.parametrize("shift", [False, True])
def test_from_a_fresh_cache_a_part_is_what_the_whole_is(shift):
    denoiser = TokenDenoiser(NET, MaskedProcess(MASK), shift=shift)
    x = tokens()
    whole, cache = denoiser.read(x), denoiser.caching(3, 10)
    denoiser.read(x, cache=cache)
    for span, evaluate in (((4, 6), (4, 10)), ((4, 6), (4, 6)), ((0, 2), (0, 2)), ((7, 10), (2, 10))):
        part = denoiser.read(x, span, evaluate=evaluate, cache=cache)
        torch.testing.assert_close(part, whole[:, span[0] : span[1]], rtol=0, atol=1e-5)


def test_a_plain_function_is_a_network_too():
    def network(x, factor=1.0):
        return torch.nn.functional.one_hot(x, 12).float() * factor

    denoiser = TokenDenoiser(network, UniformProcess(12))
    x = tokens()
    assert torch.equal(denoiser(x, factor=2.0).logits, network(x, 2.0))
    assert torch.equal(denoiser.read(x, (2, 5)), network(x)[:, 2:5])
    with pytest.raises(IncompatibleError, match="keeps no keys and values"):
        denoiser.caching(1, 10)


def test_a_timed_network_is_told_float32_times():
    seen = []

    def network(x, t):
        seen.append(t)
        return torch.zeros(*x.shape, 3)

    denoiser = TokenDenoiser(network, MaskedProcess(3), timed=True)
    denoiser(tokens(), 0.25)
    denoiser(tokens(), torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))
    assert torch.equal(seen[0], torch.full((3,), 0.25))
    assert torch.equal(seen[1], torch.tensor([0.1, 0.2, 0.3]))


def test_mistakes_are_named():
    denoiser = TokenDenoiser(NET, MaskedProcess(MASK))
    with pytest.raises(InputError, match=r"process: VP"):
        TokenDenoiser(NET, tw.processes.VP())  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"event: \(2, 3\)"):
        TokenDenoiser(NET, MaskedProcess(MASK), event=(2, 3))
    with pytest.raises(InputError, match=r"x: torch.float32 \(2, 3\) was given; expected tokens"):
        denoiser(torch.zeros(2, 3))
    with pytest.raises(InputError, match="expected a cache"):
        denoiser.read(tokens(), (2, 4), evaluate=(2, 4))
    with pytest.raises(InputError, match="one in the other"):
        denoiser.read(tokens(), (2, 4), evaluate=(3, 4), cache=denoiser.caching(3, 10))
    with pytest.raises(InputError, match="its answer is"):
        TokenDenoiser(lambda x: torch.zeros(len(x), 3), MaskedProcess(3))(tokens())


def test_solvers_of_numbers_and_of_tokens_do_not_mix():
    denoiser = TokenDenoiser(NET, MaskedProcess(MASK), event=(10,))
    with pytest.raises(IncompatibleError, match="Euler moves numbers; MaskedProcess is a process of tokens"):
        tw.sample(denoiser, 2, solver=tw.solvers.Euler())
    gaussian = tw.GaussianDenoiser(torch.zeros(2), 1.0, tw.processes.VP())
    with pytest.raises(IncompatibleError, match="Blockwise moves tokens; VP is a process of numbers"):
        tw.sample(gaussian, 2, solver=tw.tokens.Blockwise())
    with pytest.raises(InputError, match=r"n_or_start: torch\.float32"):
        tw.sample(denoiser, torch.zeros(2, 10), solver=tw.tokens.Blockwise(), steps=2)


@pytest.mark.parametrize("shift", [False, True])
def test_a_checkpoint_brings_it_back(tmp_path, shift):
    denoiser = TokenDenoiser(NET, MaskedProcess(MASK, "cosine"), shift=shift, event=(10,))
    tw.save(denoiser, tmp_path, meta={"end": 3})
    back = tw.load(tmp_path)
    assert isinstance(back, TokenDenoiser)
    assert (back.process, back.shift, back.event, back.meta) == (denoiser.process, shift, (10,), {"end": 3})
    assert torch.equal(back.read(tokens()), denoiser.read(tokens()))


def test_evaluations_are_counted_through_a_wrapper():
    counted = tw.CountingDenoiser(TokenDenoiser(NET, MaskedProcess(MASK), event=(10,)))
    tw.sample(counted, 2, solver=tw.tokens.Blockwise(), steps=5)
    assert counted.evaluations == 5
    assert counted.samples == 10
