import pytest
import torch

from tweed import nets
from tweed.core.random import normal, uniform
from tweed.errors import InputError
from tweed.nets.dit import Block
from tweed.nets.embeddings import grid_positions, rotary

SEQUENCE = {
    "name": "dit",
    "dims": 1,
    "in_channels": 3,
    "patch": 1,
    "hidden": 24,
    "depth": 2,
    "heads": 2,
    "time_dim": 32,
}


def shaken(config):
    net = nets.build(config).eval().double()
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter += 0.1 * normal((1, *parameter.shape), 7, draw=i, dtype=torch.float64)[0]
    return net


def inputs(*event, batch=2):
    return normal((batch, *event), 1, dtype=torch.float64), uniform((batch, 1), 2, dtype=torch.float64)[:, 0]


@torch.no_grad()
def test_without_positions_tokens_are_a_set():
    x, t = inputs(7, 3)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    net = shaken({**SEQUENCE, "positions": "none"})
    torch.testing.assert_close(net(x[:, order], t), net(x, t)[:, order])
    for positions in ("sincos", "rotary"):
        net = shaken({**SEQUENCE, "positions": positions})
        assert (net(x[:, order], t) - net(x, t)[:, order]).abs().max() > 1e-4


@torch.no_grad()
def test_a_time_a_token_moves_with_its_token():
    x, _ = inputs(7, 3)
    t = uniform((2, 7), 3, dtype=torch.float64)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    net = shaken({**SEQUENCE, "positions": "none"})
    torch.testing.assert_close(net(x[:, order], t[:, order]), net(x, t)[:, order])


@pytest.mark.parametrize(
    ("options", "event", "count"),
    [({}, (6, 3), 6), ({"patch": 2}, (6, 3), 3), ({"dims": 2, "patch": 2, "num_classes": 4}, (3, 4, 6), 6)],
)
@torch.no_grad()
def test_a_constant_time_a_token_is_a_time_a_sample(options, event, count):
    net = shaken({**SEQUENCE, **options})
    x, t = inputs(*event)
    label = torch.tensor([1, 3]) if "num_classes" in options else None
    torch.testing.assert_close(net(x, t[:, None].expand(2, count), label=label), net(x, t, label=label))
    other = t[:, None].expand(2, count).clone()
    other[:, 0] *= 0.5
    assert (net(x, other, label=label) - net(x, t, label=label)).abs().max() > 1e-4
    with pytest.raises(InputError, match=r"^t: shape"):
        net(x, torch.rand(2, count + 1))


@torch.no_grad()
def test_rotary_positions_are_relative():
    net = shaken({**SEQUENCE, "positions": "rotary"})
    attention = net.blocks[0].attention
    h = normal((2, 9, 24), 5, dtype=torch.float64)
    positions = grid_positions((9,)).double()
    here, there = (attention(h, rotary(positions + offset, 12)) for offset in (0.0, 40.0))
    torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-5)
    assert (attention(h, rotary(positions * 2, 12)) - here).abs().max() > 1e-4
    x, t = inputs(9, 3)
    assert (net(x.flip(1), t).flip(1) - net(x, t)).abs().max() > 1e-4  # relative, but not blind to direction


@torch.no_grad()
def test_a_fresh_block_is_the_identity():
    net = nets.build({**SEQUENCE, "token_dim": 4})
    h = normal((2, 5, 24), 0)
    for block in net.blocks:
        assert isinstance(block, Block)
        assert torch.equal(block(h, normal((2, 1, 24), 1), None, normal((2, 3, 4), 2)), h)


@torch.no_grad()
def test_patches_keep_their_place():
    # With nothing but the patch projection and back (no blocks), each patch answers to its own pixels only.
    net = shaken({**SEQUENCE, "dims": 2, "patch": 2, "depth": 0})
    x, t = inputs(3, 6, 8)
    changed = x.clone()
    changed[0, 1, 3, 5] += 1.0
    where = (net(changed, t) - net(x, t)).abs().amax(dim=1) > 1e-12
    expected = torch.zeros(2, 6, 8, dtype=torch.bool)
    expected[0, 2:4, 4:6] = True
    assert torch.equal(where, expected)
    sequence = shaken({**SEQUENCE, "patch": 3, "depth": 0})
    x, t = inputs(9, 3)
    changed = x.clone()
    changed[1, 4, 0] += 1.0
    where = (sequence(changed, t) - sequence(x, t)).abs().amax(dim=2) > 1e-12
    assert where.nonzero().tolist() == [[1, 3], [1, 4], [1, 5]]


@torch.no_grad()
def test_the_number_of_null_tokens_is_immaterial_and_their_order_too():
    net = shaken({**SEQUENCE, "token_dim": 4})
    x, t = inputs(6, 3)
    tokens = normal((2, 5, 4), 4, dtype=torch.float64)
    drop = torch.ones(2, dtype=torch.bool)
    torch.testing.assert_close(net(x, t, tokens=tokens, drop=drop), net(x, t))
    torch.testing.assert_close(net(x, t, tokens=tokens.flip(1)), net(x, t, tokens=tokens))


def test_query_key_norm_bounds_the_scores():
    net = shaken({**SEQUENCE, "qk_norm": True}).double()
    x, t = inputs(6, 3)
    before = net(x, t)
    with torch.no_grad():
        for block in net.blocks:
            block.attention.qkv.weight[:48] *= 100.0  # queries and keys: their length is normalised away
            block.attention.qkv.bias[:48] *= 100.0
    torch.testing.assert_close(net(x, t), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "event", "message"),
    [
        ({"patch": 2}, (7, 3), "length 7 was given; expected a multiple of the patch, 2"),
        ({}, (7, 4), r"expected \(b, length, 3\)"),
        ({"dims": 2, "patch": 2}, (3, 4, 5), "width 5"),
        ({"dims": 2}, (4, 4, 3), r"expected \(b, 3, height, width\)"),
    ],
)
def test_other_sizes_are_named(options, event, message):
    with pytest.raises(InputError, match=message):
        nets.build({**SEQUENCE, **options})(torch.zeros(2, *event), torch.zeros(2))


def test_checkpointing_gives_the_same_gradients():
    x, t = inputs(6, 3)
    gradients = []
    for flag in (False, True):
        net = shaken({**SEQUENCE, "token_dim": 4, "positions": "rotary", "gradient_checkpointing": flag}).train()
        net(x, t, tokens=normal((2, 3, 4), 5, dtype=torch.float64)).square().mean().backward()
        gradients.append([p.grad for p in net.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_an_mlp_ratio_and_out_channels():
    net = nets.build({**SEQUENCE, "mlp_ratio": 2.5, "out_channels": 5})
    assert net.blocks[0].expand.out_features == 60
    assert net(*(v.float() for v in inputs(6, 3))).shape == (2, 6, 5)
