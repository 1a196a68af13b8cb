"""First-hitting and ancestral sampling: exact laws, limits, times of events, draws in float64 and float32."""

import math

import pytest
import torch

import tweed as tw
from tweed.core import random
from tweed.core.processes import MaskedProcess, UniformProcess
from tweed.core.token_denoiser import TokenDenoiser
from tweed.data import MarkovChain, TabularJoint
from tweed.errors import IncompatibleError, InputError
from tweed.solvers.base import Problem
from tweed.tokens import Ancestral, Blockwise, DualCache, FirstHitting, TokenClassifierFree, draw_tokens
from tweed.tokens.ancestral import _uniform_posterior
from tweed.tokens.categorical import gumbel_tokens
from tweed.tokens.first_hitting import hitting_levels, hitting_times
from tweed.tokens.truncation import (
    LARGEST_FLOAT32,
    LARGEST_FLOAT64,
    entropy,
    masked_step,
    masked_step_on_grid,
    truncated_gumbel_probs,
)

F64 = torch.float64
JOINT = TabularJoint.random(3, 3, seed=8)


def off(x, joint=JOINT):
    return (joint.histogram(x) - joint.table).abs().sum().item() / 2


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_one_token_a_call_is_exact(schedule):
    denoiser = JOINT.denoiser(MaskedProcess(3, schedule))
    x = tw.sample(denoiser, 40000, solver=FirstHitting(), seed=1)
    assert off(x) < 0.012


def test_all_at_once_is_the_product_of_the_marginals():
    x = tw.sample(JOINT.denoiser(), 40000, solver=FirstHitting(3), seed=1)
    alone = JOINT.marginals(torch.full((1, 3), 3))[0]
    product = alone[0][:, None, None] * alone[1][:, None] * alone[2]
    assert (JOINT.histogram(x) - product).abs().sum().item() / 2 < 0.012
    assert off(x) > 0.1


def test_ancestral_sampling_goes_to_the_same_law_as_steps_grow():
    coarse, fine = (off(tw.sample(JOINT.denoiser(), 30000, solver=Ancestral(), steps=s, seed=2)) for s in (2, 64))
    assert fine < 0.02
    assert coarse > 3 * fine


@pytest.mark.parametrize("draws", ["jumps", "joint"])
def test_both_ways_to_draw_have_one_law(draws):
    x = tw.sample(JOINT.denoiser(), 30000, solver=Ancestral(draws), steps=3, seed=4)
    y = tw.sample(JOINT.denoiser(), 30000, solver=Ancestral(), steps=3, seed=5)
    assert (JOINT.histogram(x) - JOINT.histogram(y)).abs().sum().item() / 2 < 0.02


def test_masks_are_lifted_as_often_as_the_grid_says():
    process = MaskedProcess(6, "cosine")
    denoiser = TokenDenoiser(lambda x: torch.zeros(*x.shape, 6), process, event=(50,))
    states = tw.sample(denoiser, 400, solver=Ancestral(), steps=5, trajectory=True)
    for i, state in enumerate(states):
        sigma = process.sigma(1.0 - i / 5).item()
        share = (state == 6).double().mean().item()
        assert abs(share - sigma) < 4.5 * math.sqrt(sigma * (1 - sigma) / 20000) + 1e-12


def test_the_uniform_process_backwards_is_exact_in_the_limit():
    process = UniformProcess(3)
    denoiser = JOINT.denoiser(process)
    coarse, fine = (off(tw.sample(denoiser, 20000, solver=Ancestral(), steps=s, seed=3)) for s in (3, 96))
    assert fine < 0.025
    assert coarse > 2 * fine


def test_one_uniform_step_to_the_data_draws_from_the_posterior():
    process = UniformProcess(3)
    x = torch.tensor([[0, 2, 1]]).expand(30000, -1)
    law = JOINT.denoiser(process)(x[:1], 0.5).probs(F64)[0]
    y = tw.sample(JOINT.denoiser(process), x, solver=Ancestral(), times=[0.5, 0.0], seed=6)
    for i in range(3):
        shares = torch.bincount(y[:, i], minlength=3).double() / 30000
        torch.testing.assert_close(shares, law[i], rtol=0, atol=0.013)


def test_one_uniform_step_is_bayes_by_enumeration():
    law = torch.tensor([0.2, 0.5, 0.3], dtype=F64)
    alpha_t, alpha_s = 0.3, 0.7
    for xt in range(3):
        truth = torch.zeros(3, dtype=F64)
        for x0 in range(3):
            kept = [alpha_s * (x0 == xs) + (1 - alpha_s) / 3 for xs in range(3)]
            step = [alpha_t / alpha_s * (xs == xt) + (1 - alpha_t / alpha_s) / 3 for xs in range(3)]
            both = torch.tensor([a * b for a, b in zip(kept, step, strict=True)], dtype=F64)
            assert both.sum().item() == pytest.approx(alpha_t * (x0 == xt) + (1 - alpha_t) / 3)
            truth += law[x0] * both / both.sum()
        ours = _uniform_posterior(torch.tensor([[xt]]), law.log()[None, None], alpha_t, alpha_s)[0, 0].exp()
        torch.testing.assert_close(ours, truth)
        assert ours.sum().item() == pytest.approx(1.0)


def test_the_exact_uniform_posterior_is_bayes():
    process, t = UniformProcess(3), 0.4
    x0 = JOINT.sample(200000, 1)
    xt = process.perturb(x0, t, random.uniform(x0.shape, 2, dtype=F64))
    where = (xt == torch.tensor([1, 0, 2])).all(1)
    shares = torch.bincount(x0[where][:, 1], minlength=3).double() / where.sum()
    law = JOINT.denoiser(process)(torch.tensor([[1, 0, 2]]), t).probs(F64)[0, 1]
    torch.testing.assert_close(shares, law, rtol=0, atol=0.03)


def test_events_come_when_the_last_of_n_uniform_times_does():
    process = MaskedProcess(3, "cosine")
    u = random.uniform((20000, 5), 1, dtype=F64)
    times = hitting_times(process, 5, u)
    assert bool((times.diff(dim=1) < 0).all())
    # The shares that are masked are order statistics of uniform numbers: means 5/6, 4/6 ...
    means = process.sigma(times).mean(0)
    torch.testing.assert_close(means, torch.arange(5, 0, -1, dtype=F64) / 6, rtol=0, atol=0.006)
    first, last = hitting_levels(torch.ones(2, dtype=F64), torch.tensor([5, 0]), u[:2])
    assert first[0].item() == pytest.approx(u[0, 0].item() ** 0.2)
    assert first[1] == last[1] == 1.0


def test_a_timed_network_is_told_the_event_s_time():
    seen = []

    def network(x, t):
        seen.append((t, (x == 3).sum(1)))
        return torch.zeros(*x.shape, 3)

    denoiser = TokenDenoiser(network, MaskedProcess(3), timed=True, event=(4,))
    tw.sample(denoiser, 3000, solver=FirstHitting(), seed=2)
    assert [int(count[0]) for _, count in seen] == [4, 3, 2, 1]
    means = [t.double().mean().item() for t, _ in seen]
    assert means == pytest.approx([0.8, 0.6, 0.4, 0.2], abs=0.02)


def test_a_timed_network_has_one_law_along_a_fine_grid_and_by_events():
    # A token is 1 with the time it is drawn at for its probability. Those times are independent and uniform: so are the tokens.
    def network(x, t):
        return torch.stack((1.0 - t, t), -1).log()[:, None].expand(-1, x.shape[1], -1)

    denoiser = TokenDenoiser(network, MaskedProcess(2), timed=True, event=(3,))
    powers = torch.tensor([4, 2, 1])
    for solver, options in ((FirstHitting(), {}), (Ancestral(), {"steps": 200})):
        x = tw.sample(denoiser, 8000, solver=solver, seed=7, **options)
        shares = torch.bincount((x * powers).sum(1), minlength=8).double() / 8000
        torch.testing.assert_close(shares, torch.full((8,), 0.125, dtype=F64), rtol=0, atol=0.017)


@pytest.mark.parametrize("mask", [0, 3, 7])
def test_the_mask_may_be_any_number_and_is_never_drawn(mask):
    logits = torch.zeros(7)
    denoiser = TokenDenoiser(lambda x: logits.expand(*x.shape, 7), MaskedProcess(mask), event=(5,))
    for solver in (FirstHitting(2), FirstHitting(2, 2), FirstHitting(9), Ancestral(), Ancestral("joint")):
        options = {"steps": 3} if isinstance(solver, Ancestral) else {}
        x = tw.sample(denoiser, 200, solver=solver, seed=1, **options)
        assert set(x.unique().tolist()) == set(range(7)) - {mask}


def test_what_an_observer_is_told_ends_at_time_0():
    seen = []
    tw.sample(
        JOINT.denoiser(), 2, solver=FirstHitting(2), observer=lambda x, t, i: seen.append((t, (x == 3).sum(1).tolist()))
    )
    assert seen == [(pytest.approx(1 / 3), [1, 1]), (0.0, [0, 0])]


def test_nothing_to_do_costs_nothing():
    run = Problem(JOINT.denoiser(), (1.0, 0.0), seed=1)
    for start in (torch.tensor([[0, 1, 2]]), torch.zeros(0, 3).long(), torch.zeros(2, 0).long()):
        done = FirstHitting().decode(run, start)
        assert torch.equal(done.tokens, start)
        assert done.calls == 0


def test_rows_with_fewer_masks_end_earlier_and_given_tokens_stay():
    x = torch.tensor([[3, 3, 3], [0, 3, 1], [2, 1, 0]])
    done = FirstHitting().decode(Problem(JOINT.denoiser(), (1.0, 0.0), seed=1), x)
    assert done.calls == 3
    assert not (done.tokens == 3).any()
    assert torch.equal(done.tokens[x != 3], x[x != 3])
    assert torch.equal(done.tokens[2], x[2])


def test_given_a_part_the_rest_has_its_conditional_law():
    x = torch.tensor([[3, 1, 3]]).expand(30000, -1)
    y = tw.sample(JOINT.denoiser(), x, solver=FirstHitting(), seed=3)
    truth = JOINT.table[:, 1] / JOINT.table[:, 1].sum()
    shares = torch.bincount(y[:, 0] * 3 + y[:, 2], minlength=9).double() / 30000
    assert (shares - truth.flatten()).abs().sum().item() / 2 < 0.015


def test_calls_are_counted_and_what_did_not_change_is_not_asked_again():
    counted = tw.CountingDenoiser(JOINT.denoiser())
    tw.sample(counted, 1, solver=FirstHitting(2))
    assert counted.evaluations == 2
    run = Problem(JOINT.denoiser(), tuple(1.0 - i / 100 for i in range(101)), seed=1)
    start = torch.full((1, 3), 3)
    often, seldom = (Ancestral(reuse=reuse).decode(run, start) for reuse in (False, True))
    assert torch.equal(often.tokens, seldom.tokens)
    assert (often.calls, seldom.calls) == (100, 4) or seldom.calls <= 4


def test_sample_i_is_the_same_in_any_batch():
    for solver, options in ((FirstHitting(2), {}), (Ancestral(), {"steps": 4}), (Ancestral("joint"), {"steps": 4})):
        whole = tw.sample(JOINT.denoiser(), 6, solver=solver, seed=5, **options)
        assert torch.equal(tw.sample(JOINT.denoiser(), 2, solver=solver, seed=5, index=4, **options), whole[4:])


def test_extrapolation_is_exact_where_probabilities_are_linear_in_the_masks():
    def network(x):
        share = (x == 4).double().mean(1)[:, None].expand(-1, x.shape[1])
        return torch.stack((share, 1.0 - share), -1).log()

    denoiser = TokenDenoiser(network, MaskedProcess(4), event=(8,))
    counts = {}
    for name, solver in {"exact": FirstHitting(), "first": FirstHitting(4), "second": FirstHitting(4, 2)}.items():
        counts[name] = tw.sample(denoiser, 20000, solver=solver, seed=4).double().sum(1).mean().item()
    # The second call's tokens: levels 4/8 .. 1/8; first order takes 4/8 for all. The first call has nothing to extrapolate.
    exact = sum(1 - n / 8 for n in range(1, 9))
    assert counts["exact"] == pytest.approx(exact, abs=0.04)
    assert counts["first"] == pytest.approx(4 * 0.0 + 4 * 0.5, abs=0.04)
    assert counts["second"] == pytest.approx(sum(1 - n / 8 for n in range(1, 5)), abs=0.04)


def test_draws_by_inversion_follow_the_law_and_never_take_the_impossible():
    logits = torch.tensor([-math.inf, 0.0, -math.inf, math.log(3.0), -math.inf])
    u = random.uniform((40000, 1), 1, dtype=F64)[:, 0]
    x = draw_tokens(logits.expand(40000, -1), u)
    assert set(x.unique().tolist()) == {1, 3}
    assert (x == 3).double().mean().item() == pytest.approx(0.75, abs=0.01)
    tiny = torch.finfo(F64).tiny
    assert draw_tokens(logits[None], torch.tensor([tiny], dtype=F64)).item() == 1
    assert draw_tokens(logits[None], torch.tensor([1.0 - 2.0**-53], dtype=F64)).item() == 3


def test_truncation_s_formula_is_what_draws_do():
    p = torch.tensor([0.02, 0.08, 0.2, 0.3, 0.4], dtype=F64)
    formula = truncated_gumbel_probs(p, 1.5)
    published = torch.tensor([8.7e-7, 0.01295, 0.15613, 0.32539, 0.50553], dtype=F64)
    torch.testing.assert_close(formula, published, rtol=1e-3, atol=1e-5)
    assert formula.sum().item() == pytest.approx(1.0)
    # Gumbel noise given that it is below 1.5, by inversion.
    u = random.uniform((300000, 5), 2, dtype=F64) * math.exp(-math.exp(-1.5))
    drawn = (p.log() - (-u.log()).log()).argmax(1)
    shares = torch.bincount(drawn, minlength=5).double() / 300000
    torch.testing.assert_close(shares, formula, rtol=0, atol=0.004)


def test_without_truncation_it_is_the_law_itself():
    p = torch.tensor([0.0, 0.5, 0.3, 0.2], dtype=F64)
    torch.testing.assert_close(truncated_gumbel_probs(p, LARGEST_FLOAT64), p, rtol=1e-9, atol=1e-12)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(truncated_gumbel_probs(p[order], 3.0), truncated_gumbel_probs(p, 3.0)[order])


def test_float32_lowers_the_temperature_of_masked_sampling():
    zipf = 1.0 / torch.arange(1, 50258, dtype=F64)
    zipf /= zipf.sum()
    published = {64: 7.18, 256: 6.54, 1024: 5.72, 4096: 4.89}
    for steps, value in published.items():
        assert entropy(masked_step(zipf, 2 / steps, LARGEST_FLOAT32)[1]) == pytest.approx(value, abs=0.02)
    assert entropy(masked_step(zipf, 2 / 1024, LARGEST_FLOAT64)[1]) == pytest.approx(entropy(zipf), abs=1e-3)


def test_draws_on_a_grid_follow_its_formula_and_not_that_of_cut_off_noise():
    bits, jump = 10, 0.02
    tokens = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=F64)
    law = torch.cat((jump * tokens, torch.tensor([1 - jump], dtype=F64)))
    u = random.uniform((600000, 5), 3, dtype=F64)
    u[:, :4] = (u[:, :4] * 2**bits).floor() / 2**bits  # the mask's own are 0 too often on so coarse a grid
    shares = torch.bincount((law.log() - (-u.log()).log()).argmax(1), minlength=5).double()[:4] / 600000
    lifted, drawn = masked_step_on_grid(tokens, jump, bits)
    cut, cut_off = masked_step(tokens, jump, bits * math.log(2))
    for rank, error in ((0, 0.0006), (1, 0.0005), (2, 0.0003), (3, 0.0002)):
        assert shares[rank].item() == pytest.approx(lifted * drawn[rank].item(), abs=error)
    assert abs(shares.sum().item() - cut) > 5 * abs(shares.sum().item() - lifted)
    assert shares[2:].sum().item() > 1.1 * cut * cut_off[2:].sum().item()


def test_a_fine_grid_and_a_likely_law_lose_nothing():
    tokens = torch.tensor([0.0, 0.4, 0.6], dtype=F64)
    lifted, law = masked_step_on_grid(tokens, 0.5, 53)
    assert lifted == pytest.approx(0.5)
    torch.testing.assert_close(law, tokens)


def test_gumbel_draws_follow_the_law():
    probs = torch.tensor([0.2, 0.3, 0.5], dtype=F64).expand(3000, 1, 3)
    for dtype in (torch.float32, F64):
        shares = torch.bincount(gumbel_tokens(probs.to(dtype), 1, 0, 0)[:, 0], minlength=3).double() / 3000
        torch.testing.assert_close(shares, probs[0, 0], rtol=0, atol=0.04)


def test_in_float32_noise_ends_at_24_log_2(monkeypatch):
    # The noise of the first token is the largest of float64. Its log probability is -20: 24 log 2 = 16.6 is not enough.
    u = torch.tensor([[[1.0 - 2.0**-53, 0.5]]], dtype=F64)
    monkeypatch.setattr(random, "uniform", lambda *args, **options: u)
    probs = torch.tensor([[[math.exp(-20.0), 1.0]]], dtype=F64)
    assert gumbel_tokens(probs, 1, 0, 0).item() == 0
    assert gumbel_tokens(probs.float(), 1, 0, 0).item() == 1
    # For -16 it is.
    near = torch.tensor([[[math.exp(-16.0), 1.0]]], dtype=F64)
    assert gumbel_tokens(near.float(), 1, 0, 0).item() == 0


def test_guidance_of_tokens():
    config = {"name": "text-transformer", "vocab": 8, "width": 16, "depth": 1, "heads": 2}
    denoiser = TokenDenoiser(tw.nets.build(config, 1), MaskedProcess(7))
    x = torch.tensor([[1, 2, 7, 7, 7, 7], [3, 0, 7, 7, 7, 7]])
    alone = x.clone()
    alone[:, :2] = 7
    given, free = denoiser(x).logits, denoiser(alone).logits
    for scale in (0.0, 1.0, 2.5):
        guided = TokenClassifierFree(denoiser, scale, 2)(x).logits
        torch.testing.assert_close(guided, free + scale * (given - free), rtol=1e-4, atol=1e-5)
    guided = TokenClassifierFree(denoiser, 2.0, 2)
    whole = tw.sample(guided, x, solver=Blockwise(), steps=1)
    assert torch.equal(tw.sample(guided, x, solver=Blockwise(caching=DualCache()), steps=1), whole)
    assert torch.equal(tw.sample(guided, x, solver=FirstHitting(temperature=0.0), seed=1)[:, :2], x[:, :2])


def test_guided_tokens_have_the_tilted_law_and_scale_1_the_plain_one():
    x = torch.tensor([[1, 2, 3]]).expand(20000, -1)
    denoiser = JOINT.denoiser()
    plain = tw.sample(denoiser, x[:500], solver=FirstHitting(), seed=2)
    assert torch.equal(tw.sample(TokenClassifierFree(denoiser, 1.0, 1), x[:500], solver=FirstHitting(), seed=2), plain)
    given, free = JOINT.table[1, 2], JOINT.table[:, 2].sum(0)
    law = (given / given.sum()) ** 1.5 * (free / free.sum()) ** -0.5
    y = tw.sample(tw.CountingDenoiser(TokenClassifierFree(denoiser, 1.5, 1)), x, solver=FirstHitting(), seed=2)
    shares = torch.bincount(y[:, 2], minlength=3).double() / 20000
    torch.testing.assert_close(shares, law / law.sum(), rtol=0, atol=0.016)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guidance_keeps_out_what_is_impossible(scale):
    logits = torch.tensor([0.0, -math.inf, 1.0])
    denoiser = TokenDenoiser(lambda x: logits.expand(*x.shape, 3), MaskedProcess(3))
    x = torch.tensor([[0, 3, 3, 3]]).expand(100, -1)
    y = tw.sample(TokenClassifierFree(denoiser, scale, 1), x, solver=FirstHitting(), seed=1)
    assert set(y[:, 1:].unique().tolist()) == {0, 2}


def test_mistakes_are_named():
    denoiser = JOINT.denoiser()
    uniform = JOINT.denoiser(UniformProcess(3))
    chain = MarkovChain.random(3).denoiser(3)
    cases = [
        (lambda: FirstHitting(0), "tokens_per_call: 0"),
        (lambda: FirstHitting(order=3), "order: 3"),
        (lambda: FirstHitting(temperature=-1.0), "temperature"),
        (lambda: Ancestral("some"), "draws"),
        (lambda: Ancestral(precision="float32"), "expected joint draws"),
        (lambda: tw.sample(uniform, 2, solver=FirstHitting()), "needs a MaskedProcess"),
        (lambda: tw.sample(uniform, 2, solver=Ancestral("joint"), steps=2), "expected a MaskedProcess"),
        (lambda: tw.sample(denoiser, 2, solver=FirstHitting(), steps=3), "chooses its own steps"),
        (lambda: masked_step_on_grid(torch.ones(1), 0.5, 0), "bits: 0"),
        (lambda: masked_step_on_grid(torch.ones(1), 0.0, 24), "jump: 0.0"),
        (lambda: truncated_gumbel_probs(torch.ones(3)), "expected probabilities"),
        (lambda: TokenClassifierFree(chain, 1.0, 0), "prompt: 0"),
        (lambda: TokenClassifierFree(uniform, 1.0, 1), "with a mask"),
        (lambda: draw_tokens(torch.zeros(2, 3), torch.zeros(3)), "u: shape"),
    ]
    for call, words in cases:
        with pytest.raises((InputError, IncompatibleError), match=words):
            call()
