"""Denoising task routing: windows that slide, and what masked channels do and do not feel."""

import math

import pytest
import torch
from net_cases import shaken

from tweed.core.random import normal
from tweed.errors import InputError
from tweed.nets.routing import ChannelRouting

DIT = {
    "name": "dit",
    "in_channels": 1,
    "dims": 1,
    "patch": 1,
    "hidden": 20,
    "depth": 2,
    "heads": 1,
    "positions": "none",
}
UNET = {"name": "unet", "in_channels": 2, "channels": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4, "heads": 1}
TIMES = torch.linspace(0.0, 1.0, 101)


@pytest.mark.parametrize("mode", ["window", "random"])
@pytest.mark.parametrize(("channels", "share"), [(96, 0.8), (7, 0.5), (10, 0.7), (5, 1.0)])
def test_every_mask_has_its_share(mode, channels, share):
    masks = ChannelRouting(channels, share, mode=mode)(TIMES)
    assert masks.shape == (101, channels)
    assert (masks.sum(1) == math.floor(share * channels + 1e-9)).all()
    assert ((masks == 0) | (masks == 1)).all()


def test_a_window_slides_from_one_end_to_the_other():
    routing = ChannelRouting(96, 0.8, 4.0)
    masks = routing(TIMES)
    first = masks.argmax(1)
    assert (first[0], first[-1]) == (0, 96 - 76)
    assert (first.diff() >= 0).all()
    for row, start in zip(masks, first.tolist(), strict=True):
        assert row[start : start + 76].all()
    # Half of the way is left to the times above 0.5^(1/4).
    middle = TIMES[(first < 10).sum()]
    assert middle.item() == pytest.approx(0.5**0.25, abs=0.02)
    overlap = masks @ masks.T
    expected = (76 - (first[:, None] - first).abs()).clamp_min(0)
    assert torch.equal(overlap, expected.float())


def test_random_masks_do_not_keep_neighbours_together():
    window, scattered = (
        masks @ masks.T for masks in (ChannelRouting(100, 0.5, mode=m)(TIMES) for m in ("window", "random"))
    )
    assert window.diagonal(1).min() >= 47
    assert scattered.diagonal(1).float().mean().item() == pytest.approx(25.0, abs=1.5)


@pytest.mark.parametrize("config", [DIT, UNET], ids=["dit", "unet"])
def test_all_channels_is_the_plain_network_and_none_adds_a_parameter(config):
    x = normal((3, 4, 1) if config is DIT else (3, 2, 8, 8), 1)
    t = torch.tensor([0.1, 0.5, 0.9])
    plain, whole, routed = shaken(config), shaken({**config, "routing": 1.0}), shaken({**config, "routing": 0.75})
    assert torch.equal(plain(x, t), whole(x, t))
    assert list(plain.state_dict()) == list(routed.state_dict())
    assert (plain(x, t) - routed(x, t)).abs().max() > 1e-3
    each = torch.cat([routed(x[i : i + 1], t[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(routed(x, t), each, atol=1e-5, rtol=1e-5)


def test_a_masked_channel_goes_round_the_block():
    # The blocks see a window; the gradient of what passes by is one for one.
    net = shaken({**DIT, "routing": 0.75, "depth": 1})
    hidden = []
    net.blocks[0].register_forward_hook(lambda module, given, made: hidden.append((given[0], made)))
    net(normal((2, 4, 1), 1), torch.tensor([0.0, 1.0]))
    seen, made = hidden[0]
    assert (seen[0, :, 15:] == 0).all()
    assert (seen[1, :, :5] == 0).all()
    assert (seen[0, :, :15] != 0).all()
    assert (made[0, :, 15:] != 0).any()  # the block writes to all channels


def test_each_token_has_the_channels_of_its_own_time():
    net = shaken({**DIT, "routing": 0.75})
    x, t = normal((2, 4, 1), 1), torch.tensor([[0.0, 0.3, 0.6, 1.0], [1.0, 1.0, 1.0, 1.0]])
    torch.testing.assert_close(net(x, t)[1:], net(x[1:], torch.ones(1)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{"share": 0.0}, {"share": 1.1}, {"power": 0.5}, {"mode": "both"}])
def test_options_out_of_range(options):
    with pytest.raises(InputError):
        ChannelRouting(8, **options)
    with pytest.raises(InputError, match="share"):
        ChannelRouting(2, 0.3)
