"""Scaled long skips: the order of the coefficients, and learned ones."""

import pytest
import torch
from net_cases import shaken

from tweed import nets
from tweed.core.random import normal
from tweed.errors import InputError
from tweed.nets.skips import SkipScale, constant_skip_coefficients

UNET = {"name": "unet", "in_channels": 2, "channels": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4, "heads": 1}
DIT = {
    "name": "dit", "in_channels": 2, "dims": 1, "patch": 1, "hidden": 16, "depth": 5, "heads": 2, "long_skips": True,
}  # fmt: skip


def test_the_innermost_skip_is_damped_the_most():
    assert constant_skip_coefficients(4, 0.5) == [1.0, 0.5, 0.25, 0.125]
    with pytest.raises(InputError, match="kappa"):
        constant_skip_coefficients(4, 0.0)


@pytest.mark.parametrize(("config", "count"), [(UNET, 4), (DIT, 2)], ids=["unet", "dit"])
def test_the_decoder_meets_them_in_that_order(config, count):
    net = shaken({**config, "skip_scale": "constant", "skip_kappa": 0.5})
    passed = []
    net.skips.register_forward_hook(lambda module, given, made: passed.append((given[1], made, given[0])))
    x = normal((2, 2, 8, 8) if config is UNET else (2, 8, 2), 1)
    net(x, torch.tensor([0.2, 0.7]))
    assert [number for number, *_ in passed] == list(reversed(range(count)))
    for number, made, given in passed:
        torch.testing.assert_close(made, 0.5**number * given)


@pytest.mark.parametrize("config", [UNET, DIT], ids=["unet", "dit"])
def test_kinds(config):
    x, t = normal((3, 2, 8, 8) if config is UNET else (3, 8, 2), 1), torch.tensor([0.2, 0.7, 0.9])
    plain = shaken(config)
    assert torch.equal(plain(x, t), shaken({**config, "skip_scale": "constant", "skip_kappa": 1.0})(x, t))
    for kind in ("inv-sqrt2", "constant"):
        other = shaken({**config, "skip_scale": kind})
        assert list(other.state_dict()) == list(plain.state_dict())
        assert (other(x, t) - plain(x, t)).abs().max() > 1e-4
    learned = shaken({**config, "skip_scale": "learned"})
    added = sum(p.numel() for p in learned.parameters()) - sum(p.numel() for p in plain.parameters())
    widths = {8, 16} if config is UNET else {16}
    assert added == sum(c * (c // 16 or 1) * 2 + (c // 16 or 1) + c for c in widths)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(learned(x[order], t[order]), learned(x, t)[order], atol=1e-5, rtol=1e-5)


def test_learned_factors_are_shares_of_each_channel_and_shared_by_equal_skips():
    scale = SkipScale("learned", [8, 16, 16])
    skip = normal((2, 16, 4, 4), 1)
    factor = scale(skip, 1) / skip
    assert factor.min() > 0
    assert factor.max() < 1
    torch.testing.assert_close(factor, factor[:, :, :1, :1].expand_as(factor))
    assert torch.equal(scale(skip, 1), scale(skip, 2))
    tokens = SkipScale("learned", [16], dim=-1)
    tokens.load_state_dict({k: v for k, v in scale.state_dict().items() if ".8." not in k})
    torch.testing.assert_close(tokens(skip.flatten(2).mT, 0).mT.reshape(skip.shape), scale(skip, 1))


def test_options_that_do_not_fit():
    with pytest.raises(InputError, match="kind"):
        SkipScale("half", [8])
    with pytest.raises(InputError, match="reduction"):
        SkipScale("learned", [8], reduction=0)
    with pytest.raises(InputError, match="long_skips"):
        nets.build({**DIT, "long_skips": False, "skip_scale": "constant"})
