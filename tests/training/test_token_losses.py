"""Losses of tokens: the bound against its own sum and integral, what is scored, determinism, training."""

import itertools
import math

import pytest
import torch

import tweed as tw
from tweed.core import random
from tweed.core.processes import MaskedProcess, UniformProcess
from tweed.core.token_denoiser import TokenDenoiser
from tweed.data import MarkovChain, TabularJoint, Tokens
from tweed.errors import IncompatibleError, InputError
from tweed.training import NextTokenLoss, TokenLoss

F64 = torch.float64
JOINT = TabularJoint.random(3, 4, seed=1)


def any_law(x, size=3, seed=9):
    # A fixed, wrong law of each token given what is seen: a random table of all partly masked states.
    powers = (size + 1) ** torch.arange(x.shape[1])
    table = random.normal(((size + 1) ** x.shape[1], x.shape[1] * size), seed, dtype=F64)
    return table[(x * powers).sum(1)].reshape(*x.shape, size)


def bound(x0: torch.Tensor) -> float:
    """The time-free bound of one sequence, a token: the mean over n of the mean cross-entropy over all choices of n."""
    length = len(x0)
    total = 0.0
    for n in range(1, length + 1):
        subsets = list(itertools.combinations(range(length), n))
        each = 0.0
        for subset in subsets:
            x = x0.clone()
            x[list(subset)] = 3
            log_probs = any_law(x[None])[0].log_softmax(-1)
            each += -sum(log_probs[i, x0[i]].item() for i in subset) / n
        total += each / len(subsets)
    return total / length


@pytest.mark.parametrize("schedule", ["linear", "cosine", "geometric"])
@pytest.mark.parametrize("form", ["time-free", "time"])
def test_both_forms_are_unbiased_for_the_same_bound_whatever_the_schedule(form, schedule):
    x0 = torch.tensor([2, 0, 1, 1])
    n = 20000
    denoiser = TokenDenoiser(any_law, MaskedProcess(3, schedule))
    losses = TokenLoss(form)(denoiser, {"x": x0.expand(n, -1)}, seed=3)
    assert losses.dtype == F64
    error = losses.std().item() / math.sqrt(n)
    assert abs(losses.mean().item() - bound(x0)) < 4.5 * error
    assert error < 0.05


def test_for_the_exact_law_the_bound_lies_above_the_entropy():
    x = JOINT.sample(20000, 2)
    loss = TokenLoss()(JOINT.denoiser(), {"x": x}, seed=1)
    entropy = -torch.special.xlogy(JOINT.table, JOINT.table).sum().item() / 4
    # With the exact conditionals each order of tokens decomposes the joint: the bound is the entropy itself.
    assert loss.mean().item() == pytest.approx(entropy, abs=4.5 * loss.std().item() / math.sqrt(20000))


def test_the_number_of_masks_is_spread_over_a_batch():
    seen = []

    def network(x):
        seen.append((x == 3).sum(1))
        return torch.zeros(*x.shape, 3)

    TokenLoss()(TokenDenoiser(network, MaskedProcess(3)), {"x": torch.zeros(40, 10).long()}, seed=5)
    counts = torch.bincount(seen[0], minlength=11)
    assert torch.equal(counts[1:], torch.full((10,), 4))
    assert counts[0] == 0


def test_fixed_tokens_are_neither_masked_nor_scored():
    seen = []

    def network(x):
        seen.append(x)
        return any_law(x)

    x = torch.tensor([[2, 0, 1, 1]]).expand(50, -1)
    fixed = torch.tensor([[True, True, False, False]]).expand(50, -1)
    loss = TokenLoss()
    denoiser = TokenDenoiser(network, MaskedProcess(3))
    losses = loss(denoiser, {"x": x, "fixed": fixed}, seed=1)
    assert bool((seen[0][:, :2] == x[:, :2]).all())
    assert bool((seen[0][:, 2:] == 3).any(1).all())
    assert losses.isfinite().all()
    nothing = loss(denoiser, {"x": x, "fixed": torch.ones_like(fixed)}, seed=1)
    assert torch.equal(nothing, torch.zeros(50, dtype=F64))


def test_under_the_uniform_process_all_tokens_are_scored():
    losses = TokenLoss("plain")(
        TokenDenoiser(lambda x: torch.zeros(*x.shape, 5), UniformProcess(5)), {"x": torch.zeros(6, 4).long()}
    )
    torch.testing.assert_close(losses, torch.full((6,), math.log(5.0)))


def test_a_share_of_a_batch_has_the_losses_it_has_in_the_whole():
    denoiser, x = JOINT.denoiser(), JOINT.sample(12, 3)
    loss = TokenLoss()
    whole = loss(denoiser, {"x": x}, seed=4, step=7)
    prepared = loss.prepare(denoiser.process, {"x": x[5:9]}, seed=4, step=7, offset=5, total=12)
    torch.testing.assert_close(loss(denoiser, prepared, seed=4, step=7), whole[5:9])


def test_training_reaches_the_entropy_of_a_chain():
    chain = MarkovChain.stepping(4, (1,), 0.1)
    data = Tokens(chain.sample(4000, 8, 1))
    net = tw.nets.build({"name": "text-transformer", "vocab": 5, "width": 32, "depth": 2, "heads": 2}, 1)
    result = tw.fit(
        TokenDenoiser(net, MaskedProcess(4)), data, steps=250, batch_size=64, lr=3e-3, progress=False, device="cpu"
    )
    assert result.denoiser.event == (8,)
    held = {"x": chain.sample(2000, 8, 2)}
    with torch.no_grad():
        loss = TokenLoss()(result.denoiser, held, seed=1).mean().item()
    least = -chain.log_prob(held["x"]).mean().item() / 8
    assert least < loss + 0.03
    assert loss < least + 0.15


def test_the_next_token_s_loss_is_the_chain_s_own_log_probability():
    chain = MarkovChain.random(4, seed=6)
    x = chain.sample(30, 7, 1)

    class Exact(torch.nn.Module):
        causal = True

        def forward(self, x, segments=None):
            return chain.next_log_probs(x)

    denoiser = TokenDenoiser(Exact(), MaskedProcess(4))
    losses = NextTokenLoss()(denoiser, {"x": x})
    expected = -(chain.log_prob(x) - chain.initial.log()[x[:, 0]]) / 6
    torch.testing.assert_close(losses, expected)
    segments = (torch.arange(7) >= 3).long().expand(30, -1)
    parts = NextTokenLoss()(denoiser, {"x": x, "segments": segments})
    steps = -chain.transition.log()[x[:, :-1], x[:, 1:]]
    torch.testing.assert_close(parts, (steps.sum(1) - steps[:, 2]) / 5)


def test_mistakes_are_named():
    x = torch.zeros(2, 4).long()
    masked = TokenDenoiser(any_law, MaskedProcess(3))
    cases = [
        (lambda: TokenLoss("tiem"), "form"),  # type: ignore[arg-type]
        (lambda: TokenLoss()(masked, {"x": x.float()}), "expected an entry 'x' of tokens"),
        (lambda: TokenLoss()(masked, {"x": x, "fixed": x}), "fixed: torch.int64"),
        (lambda: TokenLoss()(TokenDenoiser(any_law, UniformProcess(3)), {"x": x}), "expected a MaskedProcess"),
        (lambda: NextTokenLoss()(masked, {"x": x}), "needs a TokenDenoiser with a causal network"),
    ]
    for call, words in cases:
        with pytest.raises((InputError, IncompatibleError), match=words):
            call()


def test_they_are_known_to_configurations():
    for loss in (TokenLoss("time"), NextTokenLoss()):
        config = tw.training.to_config(loss)
        assert tw.training.from_config(config, tw.training.objectives.BY_NAME) == loss
