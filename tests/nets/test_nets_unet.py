import pytest
import torch
from torch.nn import functional as F

from tweed import nets
from tweed.core.random import normal, uniform
from tweed.errors import InputError
from tweed.nets.unet_blocks import Join, Pointwise, Stage, fold, unfold

SMALL = {"name": "unet", "channels": 16, "multipliers": [1, 2, 2], "blocks": 1, "groups": 8, "zero_init": False}


def inputs(*size, batch=2, channels=3):
    return normal((batch, channels, *size), 1), uniform((batch, 1), 2)[:, 0]


@pytest.mark.parity
def test_the_cifar_preset_is_the_network_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        theirs = diffusers.UNet2DModel(
            sample_size=32,
            block_out_channels=(128, 256, 256, 256),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=None,
        )
        ours = nets.build(nets.ddpm_cifar())
    count = sum(p.numel() for p in ours.parameters())
    assert count == sum(p.numel() for p in theirs.parameters()) == 35_746_307
    convolutions = [
        sorted(tuple(p.shape) for p in net.parameters() if p.ndim == 4) for net in (ours, theirs)
    ]  # attention's projections are fused here
    assert convolutions[0] == convolutions[1]


@pytest.mark.parametrize("size", [(4, 4), (8, 20), (32, 4)])
def test_any_divisible_size_goes_in(size):
    x, t = inputs(*size)
    assert nets.build(SMALL)(x, t).shape == x.shape


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({}, (8, 10), "width 10 was given; expected a multiple of 4"),
        ({}, (6, 8), "height 6"),
        ({"patch": 2}, (8, 12), "width 12 was given; expected a multiple of 8 .*patch 2"),
        ({"dims": 1}, (9,), "length 9 was given; expected a multiple of 4"),
        ({"dims": 1}, (8, 8), r"expected \(b, 3, length\)"),
        ({}, (0, 8), "height 0"),
    ],
)
def test_other_sizes_are_named(options, size, message):
    with pytest.raises(InputError, match=message):
        nets.build({**SMALL, **options})(*inputs(*size))


def test_attention_sits_where_it_is_asked():
    net = nets.build({**SMALL, "attention_levels": [2], "middle_attention": False, "token_dim": 4})
    with_attention = {n for n, m in net.named_modules() if isinstance(m, Stage) and m.attention is not None}
    assert with_attention == {"down.1.0", "up.1.0", "up.1.1"}
    assert with_attention == {n for n, m in net.named_modules() if isinstance(m, Stage) and m.cross is not None}
    default = nets.build(SMALL)
    found = {n for n, m in default.named_modules() if isinstance(m, Stage) and m.attention is not None}
    assert found == {"down.2.0", "middle.0", "up.2.0", "up.2.1"}


def test_blocks_a_level_and_out_channels():
    net = nets.build({**SMALL, "blocks": [1, 2, 3], "out_channels": 5})
    assert [len(level) for level in net.down] == [1, 2, 3]
    assert [len(level) for level in net.up] == [2, 3, 4]
    x, t = inputs(8, 8)
    assert net(x, t).shape == (2, 5, 8, 8)


def test_head_dim_gives_wider_levels_more_heads():
    net = nets.build({**SMALL, "attention_levels": [1, 2], "head_dim": 8})
    assert net.down[0][0].attention.attention.heads == 2
    assert net.down[1][0].attention.attention.heads == 4


@torch.no_grad()
def test_skips_meet_the_stream_in_the_joins():
    net = nets.build(SMALL).eval()
    x, t = inputs(8, 8)
    plain = net(x, t)
    joins = {n: m for n, m in net.named_modules() if isinstance(m, Join)}
    assert set(joins) == {f"join.{level}.{block}" for level in range(3) for block in range(2)}
    for name, join in joins.items():
        handle = join.register_forward_pre_hook(lambda _, given: (given[0], 0 * given[1]))
        assert (net(x, t) - plain).abs().max() > 1e-4, name
        handle.remove()
    assert torch.equal(net(x, t), plain)


@torch.no_grad()
def test_the_memory_layout_changes_nothing():
    net = nets.build({**SMALL, "scale_shift": True}).eval()
    x, t = inputs(32, 32)
    plain = net(x, t)
    assert plain.is_contiguous()
    last = net(x.contiguous(memory_format=torch.channels_last), t)
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, plain, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(net.to(memory_format=torch.channels_last)(x, t), plain, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_channels_last_weights_keep_the_layout_throughout():
    net = nets.build(SMALL).eval().to(memory_format=torch.channels_last)
    bad = []

    def look(name):
        return lambda _, given, out: (
            bad.append(name) if not out.is_contiguous(memory_format=torch.channels_last) else None
        )

    for name, module in net.named_modules():
        if isinstance(module, Stage | Join | torch.nn.Conv2d | torch.nn.GroupNorm):
            module.register_forward_hook(look(name))
    net(*inputs(16, 16))
    assert bad == []


def test_a_pointwise_convolution_is_a_convolution():
    layer = Pointwise(5, 7, 1)
    x = normal((2, 5, 3, 4), 0)
    expected = F.conv2d(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer(x.contiguous(memory_format=torch.channels_last)), expected)


def test_folding_is_pixel_unshuffle_and_inverts():
    x = normal((2, 3, 4, 8), 0)
    assert torch.equal(fold(x, 2), F.pixel_unshuffle(x, 2))
    assert torch.equal(unfold(fold(x, 2), 2), x)
    sequence = normal((2, 3, 8), 0)
    assert torch.equal(unfold(fold(sequence, 4), 4), sequence)
    assert torch.equal(fold(sequence, 4)[0, :4, 0], sequence[0, 0, :4])


@torch.no_grad()
def test_without_attention_it_commutes_with_shifts_by_the_coarsest_step():
    # A small picture on black, far from the border: convolutions see neighbours only, and the statistics of the group
    # normalisation do not change when it moves. A shift by half the coarsest step is not one of the coarse grid.
    net = (
        nets.build({**SMALL, "multipliers": [1, 1], "attention_levels": [], "middle_attention": False}).eval().double()
    )
    t = torch.tensor([0.4], dtype=torch.float64)
    x = torch.zeros(1, 3, 96, 96, dtype=torch.float64)
    x[..., 44:52, 44:52] = normal((1, 3, 8, 8), 0, dtype=torch.float64)
    inside = (..., slice(36, 60), slice(36, 60))
    here = net(x, t)[inside]

    def difference(*shift):
        moved = net(x.roll(shift, (2, 3)), t).roll([-n for n in shift], (2, 3))
        return (moved[inside] - here).norm() / here.norm()

    assert difference(2, -4) < 1e-6
    assert difference(1, -4) > 1e-3


def test_checkpointing_gives_the_same_gradients():
    x, t = inputs(8, 8)
    gradients = []
    for flag in (False, True):
        net = nets.build({**SMALL, "token_dim": 4, "gradient_checkpointing": flag}).train()
        net(x, t, tokens=normal((2, 3, 4), 5)).square().mean().backward()
        gradients.append([p.grad for p in net.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_checkpointing_keeps_less():
    x, t = inputs(16, 16)
    kept = {}
    for flag in (False, True):
        net = nets.build({**SMALL, "gradient_checkpointing": flag}).train()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda s, sizes=sizes: (sizes.append(s.numel()), s)[1], lambda s: s
        ):
            net(x, t)
        kept[flag] = sum(sizes)
    assert kept[True] < 0.5 * kept[False]
