"""The text transformer: caches, causality, relative positions, packing."""

import pytest
import torch

import tweed as tw
from tweed.errors import InputError
from tweed.nets import KVCache, TextTransformer

CONFIG = {"name": "text-transformer", "vocab": 15, "width": 32, "depth": 3, "heads": 4}


def build(**options):
    return tw.nets.build({**CONFIG, **options}, 2).double()


def tokens(batch=2, length=12):
    return torch.randint(0, 15, (batch, length), generator=torch.Generator().manual_seed(1))


KINDS = [
    {},
    {"causal": True},
    {"kv_heads": 2},
    {"kv_heads": 1, "causal": True, "qkv_bias": True, "tied": False, "head_dim": 6, "hidden": 20},
]


@pytest.mark.parametrize("options", KINDS)
def test_its_config_builds_it_again(options):
    net = tw.nets.build({**CONFIG, **options}, 5)
    again = tw.nets.build(net.config, 5)
    assert torch.equal(net(tokens()), again(tokens()))
    assert net(tokens()).shape == (2, 12, 15)


@pytest.mark.parametrize("options", KINDS)
def test_a_part_read_against_a_full_cache_is_that_part(options):
    net, x = build(**options), tokens()
    whole, cache = net(x), net.cache(2, 12)
    torch.testing.assert_close(net(x, cache=cache), whole)
    assert cache.length == 12
    for first, last in ((0, 12), (3, 7), (5, 12), (11, 12)):
        part = net(x[:, first:last], first=first, cache=cache)
        torch.testing.assert_close(part, whole[:, first:last], rtol=0, atol=1e-12)
    torch.testing.assert_close(net(x[:, 4:], first=4, cache=cache, answer=(6, 9)), whole[:, 6:9], rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [KINDS[1], KINDS[3]])
def test_a_causal_network_extends_its_cache_token_by_token(options):
    net, x = build(**options), tokens()
    whole, cache = net(x), net.cache(2, 12)
    pieces = [net(x[:, :5], cache=cache)]
    pieces += [net(x[:, i : i + 1], first=i, cache=cache) for i in range(5, 8)]
    pieces.append(net(x[:, 8:], first=8, cache=cache))
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-12)


def test_a_cropped_cache_has_forgotten_what_came_after():
    net, x = build(causal=True), tokens()
    cache = net.cache(2, 12)
    wrong = x.clone()
    wrong[:, 6:] = (x[:, 6:] + 1) % 15
    net(wrong, cache=cache)
    cache.crop(6)
    assert cache.length == 6
    torch.testing.assert_close(net(x[:, 6:], first=6, cache=cache), net(x)[:, 6:], rtol=0, atol=1e-12)


def test_a_causal_network_does_not_see_what_follows_and_the_other_does():
    x = tokens()
    changed = x.clone()
    changed[:, -1] = (x[:, -1] + 1) % 15
    causal, both = build(causal=True), build()
    assert torch.equal(causal(x)[:, :-1], causal(changed)[:, :-1])
    assert (both(x)[:, 0] - both(changed)[:, 0]).abs().max() > 1e-6


@pytest.mark.parametrize("causal", [False, True])
def test_only_differences_of_positions_matter(causal):
    # Padding on the left shifts all positions; masked, it changes nothing.
    net, x = build(causal=causal), tokens()
    padded = torch.cat((torch.zeros(2, 7, dtype=torch.long), x), 1)
    mask = torch.arange(19)[None].expand(2, -1) >= 7
    torch.testing.assert_close(net(padded, mask=mask)[:, 7:], net(x), rtol=0, atol=1e-6)


def test_positions_matter_at_all():
    net, x = build(), tokens()
    order = torch.arange(12).flip(0)
    assert (net(x[:, order])[:, order] - net(x)).abs().max() > 1e-4


@pytest.mark.parametrize("causal", [False, True])
def test_packed_documents_do_not_see_one_another(causal):
    net, x = build(causal=causal), tokens()
    segments = (torch.arange(12) >= 5).long().expand(2, -1)
    packed = net(x, segments=segments)
    torch.testing.assert_close(packed[:, :5], net(x[:, :5]), rtol=0, atol=1e-12)
    torch.testing.assert_close(packed[:, 5:], net(x[:, 5:]), rtol=0, atol=1e-6)


def test_far_positions_keep_their_phase():
    # The angle of the fastest pair at 1e6 + 1 is one radian past that at 1e6.
    from tweed.nets.text_transformer import rotations

    cos, sin = rotations(10**6, 2, 8, 500000.0, torch.device("cpu"))
    angle = torch.atan2(sin[:, 0].double(), cos[:, 0].double())
    assert ((angle[1] - angle[0] - 1.0 + torch.pi) % (2 * torch.pi) - torch.pi).abs() < 1e-6


def test_an_empty_batch_and_a_single_token():
    net = build()
    assert net(torch.zeros(0, 4, dtype=torch.long)).shape == (0, 4, 15)
    assert net(torch.zeros(3, 1, dtype=torch.long)).shape == (3, 1, 15)


def test_mistakes_are_named():
    net, x = build(), tokens()
    cache = net.cache(2, 12)
    cases = [
        (lambda: net(x[0]), "tokens: shape"),
        (lambda: net(x, first=2), "first: 2 was given without a cache"),
        (lambda: net(x[:, 3:], first=3, cache=cache), "the cache holds 0 positions, and would have a gap"),
        (lambda: net(tokens(2, 13), cache=cache), "room for 12"),
        (lambda: net(x[:1], cache=cache), "made for 2 sequences; 1 were given"),
        (lambda: net(x, answer=(5, 14)), "answer"),
        (lambda: net(x, mask=torch.ones(2, 3, dtype=torch.bool)), "mask: torch.bool"),
        (lambda: net(x, segments=torch.zeros(2, 3)), "segments: shape"),
        (lambda: net(x, segments=torch.zeros(2, 12), cache=cache), "segments: they were given with a cache"),
        (lambda: TextTransformer(0), "vocab: 0"),
        (lambda: TextTransformer(5, width=30, heads=4), "heads"),
        (lambda: TextTransformer(5, width=32, heads=4, kv_heads=3), "kv_heads: 3"),
        (lambda: TextTransformer(5, head_dim=5), "head_dim: 5"),
        (lambda: TextTransformer(5, rope_base=0.0), "rope_base"),
        (lambda: KVCache(1, 1, 1, 4, 2).crop(-1), "length: -1"),
    ]
    for call, words in cases:
        with pytest.raises(InputError, match=words):
            call()
