"""What every network promises, whatever it is made of."""

import copy
import json

import pytest
import torch
from torch.autograd import forward_ad

from tweed import nets
from tweed.core.random import normal, uniform
from tweed.errors import InputError

CONDITIONS = {"num_classes": 3, "vector_dim": 4, "token_dim": 6}
UNET = {"name": "unet", "channels": 16, "multipliers": [1, 2], "blocks": 1, "heads": 2, "groups": 8}
DIT = {"name": "dit", "hidden": 24, "depth": 2, "heads": 2, "time_dim": 32}
CASES = {
    "mlp": ({"name": "mlp", "dim": 6, "width": 24, "depth": 2, "num_classes": 3, "vector_dim": 4}, (2, 3)),
    "unet1d": ({**UNET, **CONDITIONS, "dims": 1, "in_channels": 2}, (2, 8)),
    "unet2d": ({**UNET, **CONDITIONS, "in_channels": 2, "scale_shift": True}, (2, 8, 4)),
    "unet2d-patch": ({**UNET, **CONDITIONS, "in_channels": 2, "patch": 2, "head_dim": 16}, (2, 8, 8)),
    "unet1d-patch": ({**UNET, **CONDITIONS, "dims": 1, "in_channels": 2, "patch": 2}, (2, 16)),
    "dit1d": ({**DIT, **CONDITIONS, "dims": 1, "in_channels": 2, "patch": 1, "positions": "rotary"}, (6, 2)),
    "dit2d": ({**DIT, **CONDITIONS, "in_channels": 2, "qk_norm": True, "time_features": "gaussian"}, (2, 4, 6)),
    "dit-experts": ({**DIT, **CONDITIONS, "in_channels": 2, "experts": 3, "experts_per_time": 2}, (2, 4, 6)),
}


@pytest.fixture(params=list(CASES))
def case(request):
    return CASES[request.param]


def shaken(config, seed=0):
    """The network in evaluation mode, with noise on all parameters, so that zero-initialised paths are open."""
    net = nets.build(config, seed=seed)
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter += 0.1 * normal((1, *parameter.shape), 7, draw=i)[0]
    return net.eval()


def conditions(config, batch):
    given = {"label": torch.arange(batch) % 3, "vector": normal((batch, 4), 2)}
    if "token_dim" in config:
        given["tokens"] = normal((batch, 5, 6), 3)
    return given


def inputs(event, batch=3):
    return normal((batch, *event), 1), uniform((batch, 1), 4)[:, 0]


@torch.no_grad()
def test_output_has_the_shape_and_dtype_of_the_input(case):
    config, event = case
    net = shaken(config)
    x, t = inputs(event)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        out = net(x.to(dtype), t, **conditions(config, 3))
        assert out.shape == x.shape
        assert out.dtype == dtype
        assert out.isfinite().all()
    assert net(x, t[0]).shape == x.shape  # one time for all
    half = copy.deepcopy(net).bfloat16()(x.bfloat16(), t, **conditions(config, 3))
    full = net(x, t, **conditions(config, 3))
    assert half.dtype == torch.bfloat16
    assert (half - full).norm() < 0.1 * full.norm()


@torch.no_grad()
def test_a_fresh_network_answers_zero(case):
    config, event = case
    x, t = inputs(event)
    assert (nets.build(config)(x, t) == 0).all()
    assert (nets.build({**config, "zero_init": False})(x, t) != 0).any()


@torch.no_grad()
def test_time_and_every_condition_change_the_output(case):
    config, event = case
    net = shaken(config)
    x, t = inputs(event)
    plain, given = net(x, t), conditions(config, 3)
    assert ((net(x, t * 0.9) - plain).flatten(1).norm(dim=1) > 1e-4).all()
    for name, value in given.items():
        told = net(x, t, **{name: value})
        assert ((told - plain).flatten(1).norm(dim=1) > 1e-4).all(), name
        other = value.roll(1, 0)
        assert ((net(x, t, **{name: other}) - told).flatten(1).norm(dim=1) > 1e-4).all(), name


@torch.no_grad()
def test_dropped_conditions_are_absent_ones(case):
    config, event = case
    net = shaken(config)
    x, t = inputs(event)
    given = conditions(config, 3)
    everything, nothing = net(x, t, **given), net(x, t)
    drop = torch.tensor([True, False, True])
    mixed = net(x, t, **given, drop=drop)
    torch.testing.assert_close(mixed[drop], nothing[drop], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mixed[~drop], everything[~drop], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch(case):
    config, event = case
    net = shaken(config)
    x, t = inputs(event, 5)
    given = conditions(config, 5)
    together = net(x, t, **given)
    alone = torch.cat(
        [net(x[i : i + 1], t[i : i + 1], **{k: v[i : i + 1] for k, v in given.items()}) for i in range(5)]
    )
    torch.testing.assert_close(alone, together, atol=1e-5 * together.abs().max().item(), rtol=1e-5)


def test_an_empty_batch_goes_through_and_back(case):
    config, event = case
    net = shaken(config)
    x, t = inputs(event, 3)
    out = net(x[:0], t[:0], **{k: v[:0] for k, v in conditions(config, 3).items()})
    assert out.shape == (0, *event)
    out.sum().backward()
    assert all(p.grad is None or (p.grad == 0).all() for p in net.parameters())


def test_gradients_reach_every_parameter(case):
    config, event = case
    net = shaken(config).train()
    x, t = inputs(event)
    net(x, t, **conditions(config, 3), drop=torch.tensor([True, False, False])).square().sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_every_parameter_is_in_the_graph_without_drop(case):
    # Distributed training waits for the gradient of every parameter, the learned nulls included.
    config, event = case
    net = shaken(config).train()
    x, t = inputs(event)
    net(x, t, **conditions(config, 3)).sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []


def test_forward_mode_derivative_is_the_finite_difference(case):
    config, event = case
    net = shaken(config).double()
    x, t = inputs(event, 2)
    x, t = x.double(), t.double()
    dx, dt = normal(x.shape, 9, dtype=torch.float64), torch.full_like(t, 0.01)
    given = {k: v.double() if v.is_floating_point() else v for k, v in conditions(config, 2).items()}

    def f(x, t):
        return net(x, t, **given)

    value, tangent = torch.func.jvp(f, (x, t), (dx, dt))
    h = 1e-5
    with torch.no_grad():
        difference = (f(x + h * dx, t + h * dt) - f(x - h * dx, t - h * dt)) / (2 * h)
        torch.testing.assert_close(value, f(x, t))
    assert (tangent - difference).norm() < 1e-5 * difference.norm()
    with forward_ad.dual_level():
        dual = f(forward_ad.make_dual(x, dx), forward_ad.make_dual(t, dt))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, tangent)


@torch.no_grad()
def test_vmap_sees_the_same_function(case):
    config, event = case
    net = shaken(config)
    x, t = inputs(event)
    mapped = torch.func.vmap(lambda x, t: net(x[None], t[None])[0])(x, t)
    torch.testing.assert_close(mapped, net(x, t), atol=1e-4, rtol=1e-4)


def test_math_attention_agrees_and_differentiates_twice(case):
    config, event = case
    if config["name"] == "mlp":
        pytest.skip("has no attention")
    fused, plain = shaken(config), shaken({**config, "attention": "math"})
    x, t = inputs(event, 1)
    x.requires_grad_()
    torch.testing.assert_close(fused(x, t), plain(x, t), atol=1e-5, rtol=1e-4)
    (gradient,) = torch.autograd.grad(plain(x, t).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    assert second.isfinite().all()
    assert second.any()


@pytest.mark.parametrize("name", ["mlp", "unet2d", "dit1d", "dit-experts"])
def test_one_graph_under_compile(name):
    config, event = CASES[name]
    net = shaken(config)
    x, t = inputs(event)
    given = conditions(config, 3)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, t, **given), net(x, t, **given))


@torch.no_grad()
def test_autocast_stays_close_and_returns_the_dtype_of_the_input(case):
    config, event = case
    net = shaken(config)
    x, t = inputs(event)
    exact = net(x, t, **conditions(config, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = net(x, t, **conditions(config, 3))
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).norm() < 0.1 * exact.norm()


def test_autocast_trains(case):
    config, event = case
    net = shaken(config).train()
    x, t = inputs(event)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net(x, t, **conditions(config, 3)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_config_rebuilds_the_network(case):
    config, _ = case
    net = nets.build(config, seed=5)
    again = nets.build(json.loads(json.dumps(net.config)), seed=5)
    assert again.config == net.config
    assert set(config) <= set(net.config)
    ours, theirs = net.state_dict(), again.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    other = nets.build(config, seed=6).state_dict()
    assert any(not torch.equal(ours[k], other[k]) for k in ours)
    assert copy.deepcopy(net).config == net.config


def test_building_leaves_the_global_generator_alone(case):
    config, _ = case
    before = torch.get_rng_state()
    nets.build(config)
    assert torch.equal(before, torch.get_rng_state())


def test_endpoint_is_part_of_the_input(case):
    config, event = case
    channels = 6 if config["name"] == "mlp" else 2
    net = shaken({**config, "endpoint_channels": channels})
    x, t = inputs(event)
    y = normal(x.shape, 11)
    with torch.no_grad():
        assert (net(x, t, y=y) - net(x, t, y=y + 1)).abs().max() > 1e-4
    with pytest.raises(InputError, match=r"^y: None"):
        net(x, t)
    with pytest.raises(InputError, match="endpoint_channels"):
        shaken(config)(x, t, y=y)


def test_bad_input_is_named(case):
    config, event = case
    net = shaken(config)
    x, t = inputs(event)
    with pytest.raises(TypeError):
        net(x, t, lable=torch.zeros(3, dtype=torch.long))
    for bad in ({"x": normal((3, 7), 0)}, {"t": torch.rand(2)}, {"drop": torch.zeros(3)}):
        given = {"x": x, "t": t, **bad}
        with pytest.raises(InputError, match=f"^{next(iter(bad))}: "):
            net(**given)
    for bad in ({"label": torch.zeros(2, dtype=torch.long)}, {"vector": torch.zeros(3, 5)}):
        with pytest.raises(InputError, match=f"^{next(iter(bad))}: shape"):
            net(x, t, **bad)
    if "token_dim" in config:
        with pytest.raises(InputError, match=r"^tokens: shape"):
            net(x, t, tokens=torch.zeros(3, 0, 6))
    bare = nets.build({k: v for k, v in config.items() if k not in CONDITIONS})
    with pytest.raises(InputError, match="num_classes"):
        bare(x, t, label=torch.zeros(3, dtype=torch.long))
