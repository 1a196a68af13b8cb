import pytest
import torch
from torch import nn

from tweed import nets
from tweed.errors import InputError
from tweed.nets import registry


def test_names():
    assert {"mlp", "unet", "dit"} <= set(nets.names())
    assert nets.names() == sorted(nets.names())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "unett"}, "did you mean 'unet'"),
        ({"name": "unet", "chanels": 8}, "did you mean 'channels'"),
        ({"name": "unet", "channels": "8"}, "option 'channels' of 'unet': '8' was given; expected int"),
        ({"name": "unet", "channels": True}, "True was given; expected int"),
        ({"name": "unet", "multipliers": [1, 2.5]}, "option 'multipliers'"),
        ({"name": "unet", "multipliers": "12"}, "option 'multipliers'"),
        ({"name": "unet", "dims": 3}, r"Literal\[1, 2\]"),
        ({"name": "unet", "attention": "flash"}, "option 'attention'"),
        ({"name": "unet", "dropout": float("nan")}, "option 'dropout'"),
        ({"name": "unet", "channels": 48}, "groups: 32 was given"),
        ({"name": "unet", "attention_levels": [16]}, "attention_levels: 16 was given"),
        ({"name": "unet", "multipliers": [1, 2], "blocks": [1, 1, 1]}, "blocks: "),
        ({"name": "unet", "multipliers": []}, "blocks: "),
        ({"name": "unet", "heads": 3}, "heads: 3 was given"),
        ({"name": "unet", "head_dim": 48}, "head_dim: 48 was given"),
        ({"name": "dit", "hidden": 30, "heads": 5, "positions": "rotary"}, "hidden / heads: 6 was given"),
        ({"name": "dit", "hidden": 30, "heads": 5}, "hidden: 30 was given"),
        ({"name": "dit", "time_dim": 7}, "dim: 7 was given"),
        ({"name": "mlp"}, "option 'dim' of 'mlp' is missing"),
        ({"name": "mlp", "dim": 0}, "dim: 0 was given"),
        ({"channels": 8}, "expected a mapping with a 'name'"),
        ({"name": 3}, "expected a mapping with a 'name'"),
    ],
)
def test_bad_configs_are_refused(config, message):
    with pytest.raises(InputError, match=message):
        nets.build(config)


def test_integers_serve_as_floats_and_none_as_default():
    assert nets.build({"name": "dit", "hidden": 24, "heads": 2, "depth": 1, "mlp_ratio": 2}).config["mlp_ratio"] == 2
    assert nets.build({"name": "mlp", "dim": 2, "out_dim": None}).config["out_dim"] is None


def test_direct_construction_is_seed_zero_and_says_its_config():
    direct, built = nets.MLP(2, width=8, depth=1), nets.build({"name": "mlp", "dim": 2, "width": 8, "depth": 1})
    assert direct.config == built.config
    assert all(
        torch.equal(a, b) for a, b in zip(direct.state_dict().values(), built.state_dict().values(), strict=True)
    )


def test_weights_ignore_the_global_generator_and_the_rest_of_the_network():
    torch.rand(3)
    small = nets.build({"name": "mlp", "dim": 2, "width": 8, "depth": 1}, seed=3).state_dict()
    large = nets.build({"name": "mlp", "dim": 2, "width": 8, "depth": 3, "num_classes": 2}, seed=3).state_dict()
    assert all(torch.equal(small[k], large[k]) for k in small)


def test_initial_law_of_a_layer():
    weight = nets.MLP(400, width=400, depth=0, zero_init=False).input.weight
    assert abs(weight.mean()) < 4 * (1 / 1200**0.5) / 400
    assert weight.abs().max() <= 1 / 20
    assert abs(weight.var() * 1200 - 1) < 0.02  # 160 000 draws: one standard error is 0.002


def test_a_new_net_registers_once_and_round_trips():
    class Tiny(nn.Module):
        def __init__(self, width: int = 3) -> None:
            super().__init__()
            self.layer = registry.zero(nn.Linear(width, width))

    try:
        cls = nets.register("tiny-test-net")(Tiny)
        net = nets.build({"name": "tiny-test-net", "width": 5})
        assert net.config == {"name": "tiny-test-net", "width": 5}
        assert not net.layer.weight.any()
        assert not net.layer.bias.any()
        with pytest.raises(InputError, match="already registered"):
            nets.register("tiny-test-net")(cls)
    finally:
        registry._NETS.pop("tiny-test-net", None)


def test_meta_device_costs_nothing():
    with torch.device("meta"):
        net = nets.build({"name": "dit", "hidden": 1024, "heads": 16, "depth": 24})
    assert all(p.is_meta for p in net.parameters())
