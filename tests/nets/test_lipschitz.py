"""LipSwish, clipping and the bound; the vector field; recurrent layers by seed."""

import pytest
import torch
from torch import nn

from tweed.core import random
from tweed.errors import InputError
from tweed.nets import LipSwish, VectorField, clip_linear, initialise, lipschitz_bound

F64 = torch.float64


def test_lipswish_has_a_slope_of_one_at_most_and_nearly_reaches_it():
    x = torch.linspace(-20.0, 20.0, 40_001, dtype=F64, requires_grad=True)
    slope = torch.autograd.grad(LipSwish()(x).sum(), x)[0].abs().max().item()
    assert 0.999 < slope <= 1.0


def test_a_clipped_network_is_lipschitz_in_the_maximum_norm():
    net = VectorField(5, 7, width=16, activation="lipswish", bounded=True, time=False).double()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(20.0)
    assert lipschitz_bound(net.layers) > 10.0
    before = [m.bias.clone() for m in net.modules() if isinstance(m, nn.Linear)]
    clip_linear(net)
    assert lipschitz_bound(net.layers) <= 1.0 + 1e-12
    assert all(
        torch.equal(a, m.bias)
        for a, m in zip(before, (m for m in net.modules() if isinstance(m, nn.Linear)), strict=True)
    )
    x, y = random.normal((500, 5), 1, dtype=F64), random.normal((500, 5), 2, dtype=F64)
    t = torch.zeros((), dtype=F64)
    ratio = (net(t, x) - net(t, y)).abs().amax(1) / (x - y).abs().amax(1)
    assert ratio.max() <= 1.0 + 1e-12
    again = [p.clone() for p in net.parameters()]
    clip_linear(net)
    assert all(torch.equal(a, b) for a, b in zip(again, net.parameters(), strict=True))


def test_the_bound_is_reached_by_a_linear_map():
    layer = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 1.0]]))
    bound = lipschitz_bound(nn.Sequential(layer))
    assert bound == pytest.approx(layer(torch.tensor([[1.0, -1.0, 1.0]])).abs().max().item()) == 3.5


def test_unknown_layers_and_bad_shapes_are_refused():
    with pytest.raises(InputError, match="LayerNorm"):
        lipschitz_bound(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
    with pytest.raises(InputError, match="width"):
        VectorField(2, width=0)
    with pytest.raises(InputError, match="expected \\(b, 2\\)"):
        VectorField(2)(torch.zeros(()), torch.zeros(1, 3))
    with pytest.raises(InputError, match="context"):
        VectorField(2)(torch.zeros(()), torch.zeros(1, 2), torch.zeros(1, 1))


def test_a_vector_field_reads_the_time_only_if_told():
    y = random.normal((3, 2), 0)
    for time in (True, False):
        net = VectorField(2, time=time)
        same = torch.equal(net(torch.tensor(0.0), y), net(torch.tensor(0.7), y))
        assert same is not time
    assert VectorField(2)(torch.tensor(0.0), y[:0]).shape == (0, 2)


def test_recurrent_layers_are_drawn_from_the_seed():
    nets = [nn.GRU(3, 16) for _ in range(3)]
    for net, seed in zip(nets, (1, 1, 2), strict=True):
        initialise(net, seed)
    a, b, c = (torch.cat([p.flatten() for p in net.parameters()]) for net in nets)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert 0.24 < a.abs().max() <= 0.25  # 1 / sqrt(16)
