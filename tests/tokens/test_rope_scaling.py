"""Raised rotary bases: published factors, angles, exact relations of the network, what is shared and what is saved."""

import math

import pytest
import torch

import tweed as tw
from tweed.core import random
from tweed.core.processes import MaskedProcess
from tweed.core.token_denoiser import TokenDenoiser
from tweed.errors import IncompatibleError, InputError
from tweed.tokens.rope_coverage import rope_coverage
from tweed.tokens.rope_scaling import critical_dimension, extended, ntk_factor, ntk_rope_base

LLADA, LLAMA = (500000.0, 128, 4096), (500000.0, 128, 8192)


def small(context=32, base=100.0, **options):
    config = {"name": "text-transformer", "vocab": 12, "width": 32, "depth": 2, "heads": 2, "context": context}
    net = tw.nets.build({**config, "rope_base": base, **options}, 3).eval()
    return TokenDenoiser(net, MaskedProcess(11), event=(context,))


def tokens(rows=2, length=24):
    return (11 * random.uniform((rows, length), 5)).long()


@pytest.mark.parametrize(
    ("model", "critical", "targets"),
    [
        (LLADA, 64, {8192: 4, 16384: 14, 24576: 31, 32768: 55}),
        (LLAMA, 70, {16384: 4, 32768: 13}),
        ((1e6, 128, 2048), 54, {4096: 5}),
    ],
)
def test_published_factors(model, critical, targets):
    assert critical_dimension(*model) == critical
    for target, factor in targets.items():
        assert ntk_rope_base(*model, target) == factor * model[0]
        # The critical pair takes the target for a turn; slower ones turn about as far as in training.
        base = ntk_rope_base(*model, target)
        assert 2 * math.pi * base ** (critical / 128) >= target
        for j in range(critical // 2, 64):
            assert target * base ** (-2 * j / 128) <= 1.1 * model[2] * model[0] ** (-2 * j / 128)


def test_before_rounding_the_critical_period_is_the_target():
    for base, dim, train, target in ((500000.0, 128, 4096, 20000), (100.0, 32, 64, 256), (10000.0, 64, 512, 513)):
        critical = critical_dimension(base, dim, train)
        raised = base * ntk_factor(base, dim, train, target)
        assert 2 * math.pi * raised ** (critical / dim) == pytest.approx(target, rel=1e-12)


@pytest.mark.parametrize("model", [LLADA, LLAMA, (100.0, 32, 64), (10000.0, 64, 1024), (100.0, 32, 1024)])
@pytest.mark.parametrize("both", [False, True])
def test_the_training_length_itself_needs_nothing(model, both):
    base, dim, train = model
    assert ntk_factor(base, dim, train, train, both) <= 1.0 + 1e-12
    for target in (train, train // 2, 1):
        assert ntk_rope_base(base, dim, train, target, both) == base
    bases = [ntk_rope_base(base, dim, train, k * train, both) for k in (1, 2, 4, 8)]
    assert bases == sorted(bases)
    assert bases[-1] > base


def test_counting_both_signs_doubles_both_lengths():
    for target in (8192, 16384):
        doubled = ntk_factor(500000.0, 128, 8192, 2 * target)
        assert ntk_factor(*LLADA, target, bidirectional=True) == pytest.approx(doubled, rel=1e-12)
    assert critical_dimension(*LLADA, bidirectional=True) == critical_dimension(*LLAMA)


def test_factor_one_is_the_same_network():
    denoiser = small()
    assert torch.equal(extended(denoiser, 32).read(tokens()), denoiser.read(tokens()))  # type: ignore[attr-defined]
    changed = extended(denoiser, 64).read(tokens())  # type: ignore[attr-defined]
    assert (changed - denoiser.read(tokens())).abs().max() > 1e-3


def test_weights_are_shared_and_the_original_stays_as_it_was():
    denoiser = small()
    denoiser.tokenizer = object()
    before = denoiser.read(tokens())
    longer = extended(denoiser, 256)
    assert [id(p) for p in longer.parameters()] == [id(p) for p in denoiser.parameters()]
    assert longer.tokenizer is denoiser.tokenizer  # type: ignore[attr-defined]
    assert torch.equal(denoiser.read(tokens()), before)
    assert (denoiser.network.rope_base, denoiser.network.context) == (100.0, 32)
    with torch.no_grad():
        denoiser.network.embedding.weight.mul_(0.5)
    assert torch.equal(longer.network.embedding.weight, denoiser.network.embedding.weight)  # type: ignore[attr-defined]


def test_extended_again_is_extended_at_once():
    # The rounding of the first factor is all that is between.
    once, twice = extended(small(), 256), extended(extended(small(), 64), 256)
    assert twice.network.rope_base == pytest.approx(once.network.rope_base, rel=0.35)  # type: ignore[attr-defined]
    assert twice.network.context == 256  # type: ignore[attr-defined]
    assert torch.equal(extended(extended(small(), 64), 64).read(tokens()), extended(small(), 64).read(tokens()))  # type: ignore[attr-defined]


def test_it_is_saved_with_its_base(tmp_path):
    longer = extended(small(), 128)
    tw.save(longer, tmp_path / "longer")
    loaded = tw.load(tmp_path / "longer")
    assert loaded.network.rope_base == ntk_rope_base(100.0, 16, 32, 128) > 100.0
    assert loaded.network.context == 128
    assert torch.equal(loaded.read(tokens()), longer.read(tokens()))  # type: ignore[attr-defined]


def test_a_wrapped_denoiser_is_extended_inside():
    class Wrapper(tw.Denoiser):
        def __init__(self, denoiser):
            super().__init__()
            self.denoiser, self.process = denoiser, denoiser.process

        def forward(self, x, t, **cond):
            return self.denoiser(x, t, **cond)

    inner = small()
    longer = extended(Wrapper(inner), 128)
    assert longer.denoiser.network.rope_base == extended(inner, 128).network.rope_base  # type: ignore[attr-defined]
    assert inner.network.rope_base == 100.0


@pytest.mark.parametrize("base", [100.0, 800.0, 500000.0])
@pytest.mark.parametrize("by", [17, 100000])
def test_logits_do_not_see_where_a_sequence_begins(base, by):
    denoiser, x = small(base=base), tokens()
    # As padding that is not looked at, computed or not.
    if by < 1000:
        padded = torch.cat((torch.zeros(2, by, dtype=torch.long), x), 1)
        moved = denoiser.network(padded, mask=torch.arange(by + 24).expand(2, -1) >= by)[:, by:]
        assert (moved - denoiser.read(x)).abs().max() < 1e-4
    cache = denoiser.caching(2, by + 24)
    cache.length = by
    moved = denoiser.network(x, first=by, cache=cache, mask=torch.arange(by + 24).expand(2, -1) >= by)
    assert (moved - denoiser.read(x)).abs().max() < 1e-4


def test_order_is_seen_at_any_base():
    for denoiser in (small(), extended(small(), 256)):
        x = tokens()
        turned = denoiser.read(torch.cat((x[:, 12:], x[:, :12]), 1)).roll(12, 1)  # type: ignore[attr-defined]
        assert (turned - denoiser.read(x)).abs().max() > 1e-2  # type: ignore[attr-defined]


def test_keys_of_another_base_are_refused():
    denoiser, x = small(), tokens()
    cache = denoiser.caching(2, 24)
    denoiser.read(x, cache=cache)
    longer = extended(denoiser, 256)
    with pytest.raises(InputError, match="cache: its keys have the rotary base 100"):
        longer.read(x, (12, 24), evaluate=(12, 24), cache=cache)  # type: ignore[attr-defined]
    own = longer.caching(2, 24)  # type: ignore[attr-defined]
    longer.read(x, cache=own)  # type: ignore[attr-defined]
    part = longer.read(x, (12, 24), evaluate=(12, 24), cache=own)  # type: ignore[attr-defined]
    torch.testing.assert_close(part, longer.read(x)[:, 12:], rtol=0, atol=1e-5)  # type: ignore[attr-defined]


def test_errors_name_the_argument():
    with pytest.raises(InputError, match="target_length: 31 was given; expected at least the network's context, 32"):
        extended(small(), 31)
    with pytest.raises(IncompatibleError, match="no base of rotary positions"):
        extended(TokenDenoiser(lambda x: torch.zeros(*x.shape, 4), MaskedProcess(4)), 64)
    for arguments, text in (
        ((1.0, 32, 64), "base: 1.0"),
        ((100.0, 31, 64), "head_dim: 31"),
        ((100.0, 32, 6), "train_len: 6"),
    ):
        with pytest.raises(InputError, match=text):
            critical_dimension(*arguments)
    with pytest.raises(InputError, match="target_len: 0"):
        ntk_rope_base(100.0, 32, 64, 0)


class TestCoverage:
    """What training shows of each pair."""

    def test_bidirectional_training_shows_both_signs_of_every_sine(self):
        for model in (LLADA, LLAMA):
            both, causal = (rope_coverage(*model, kind) for kind in (False, True))
            assert both.both_signs.all()
            # Those that pass half a turn.
            speeds = model[0] ** (-torch.arange(64, dtype=torch.float64) / 64)
            assert torch.equal(causal.both_signs, (model[2] - 1) * speeds > math.pi)
            assert 0 < causal.both_signs.sum() < 64

    def test_circles_are_passed_at_half_the_length(self):
        both, causal = rope_coverage(10000.0, 64, 513, False), rope_coverage(10000.0, 64, 1025, True)
        torch.testing.assert_close(both.turned, causal.turned)
        assert (both.angle[:, 0] == -both.angle[:, 1]).all()
        assert (causal.angle[:, 0] == 0).all()

    def test_one_position_shows_nothing(self):
        for kind in (False, True):
            alone = rope_coverage(100.0, 8, 1, kind)
            assert (alone.turned == 0).all()
            assert (alone.cos == 1).all()
            assert not alone.both_signs.any()

    def test_errors_name_the_argument(self):
        for arguments, text in (((0.0, 8, 4), "base"), ((100.0, 7, 4), "head_dim"), ((100.0, 8, 0), "train_len")):
            with pytest.raises(InputError, match=text):
                rope_coverage(*arguments, causal=False)
