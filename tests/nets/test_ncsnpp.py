"""NCSN++: its published size, and what its parts must do."""

import pytest
import torch
from net_cases import shaken

from tweed import nets
from tweed.core.random import normal
from tweed.errors import InputError
from tweed.nets.ncsnpp import Resample

SMALL = {"name": "ncsnpp", "channels": 16, "multipliers": [1, 2], "blocks": 1, "attention_levels": [2], "patch": [2, 1]}


def complex_input(batch=3):
    shape = (batch, 1, 8, 6)
    return (
        normal(shape, 1, dtype=torch.complex64),
        normal(shape, 2, dtype=torch.complex64),
        torch.linspace(0.1, 1.0, batch),
    )


def test_the_published_network_has_the_published_size():
    with torch.device("meta"):
        count = sum(p.numel() for p in nets.build({"name": "ncsnpp"}).parameters())
    assert 65e6 < count < 66e6


def test_complex_states_go_in_and_out():
    x, y, t = complex_input()
    net = shaken(SMALL)
    with torch.no_grad():
        answer = net(x, t, y)
        each = torch.cat([net(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(3)])
        assert net(x[:0], t[:0], y[:0]).shape == (0, 1, 8, 6)
        real = shaken({**SMALL, "complex_state": False, "in_channels": 2, "endpoint_channels": 0})
        assert real(normal((3, 2, 8, 6), 3), t).shape == (3, 2, 8, 6)
    assert answer.dtype == torch.complex64
    assert answer.shape == x.shape
    torch.testing.assert_close(answer, each, atol=1e-4, rtol=1e-4)


def test_the_answer_is_divided_by_the_time():
    # Before the last 1 x 1 layer: what is left without that layer's bias is F / t.
    x, y, t = complex_input()
    divided, plain = shaken(SMALL), shaken({**SMALL, "divide_by_time": False})
    plain.load_state_dict(divided.state_dict())
    with torch.no_grad():
        for net in (divided, plain):
            net.answer.bias.zero_()
        torch.testing.assert_close(divided(x, t, y) * t[:, None, None, None], plain(x, t, y), atol=1e-4, rtol=1e-4)


def test_every_condition_reaches_the_answer():
    x, y, t = complex_input()
    net = shaken(SMALL)
    with torch.no_grad():
        base = net(x, t, y)
        for changed in (net(1j * x, t, y), net(x, t, 1j * y), net(x, 0.5 * t, y) * 0.5):
            assert (changed - base).abs().max() > 1e-3


def test_gains_multiply_what_is_known():
    # With the weights of the last layer at zero, its biases are the gains: the answer is c + 2 (a x + b y).
    x, y, t = complex_input()
    net = nets.build({**SMALL, "gains": 2.0, "divide_by_time": False})
    a, b, c = 0.3 - 0.1j, -0.2 + 0.5j, 0.7 + 0.4j
    with torch.no_grad():
        net.answer.weight.zero_()
        net.answer.bias.copy_(torch.tensor([c.real, a.real, b.real, c.imag, a.imag, b.imag]))
        torch.testing.assert_close(net(x, t, y), c + 2.0 * (a * x + b * y))
    plain = shaken({**SMALL, "complex_state": False, "in_channels": 2, "endpoint_channels": 0, "gains": 1.0})
    assert plain(normal((3, 2, 8, 6), 3), t).shape == (3, 2, 8, 6)


def test_one_row_needs_one_row_of_the_kernels():
    x, y, t = complex_input()
    flat = {**SMALL, "patch": [8, 1], "multipliers": [1], "attention_levels": []}
    full, thin = shaken(flat), nets.build({**flat, "kernel": [1, 3]})
    weights = full.state_dict()
    thin.load_state_dict(
        {k: v[:, :, 1:2] if v.ndim == 4 and v.shape[2] == 3 else v for k, v in weights.items()}, strict=True
    )
    assert sum(p.numel() for p in thin.parameters()) < 0.6 * sum(p.numel() for p in full.parameters())
    with torch.no_grad():
        torch.testing.assert_close(thin.eval()(x, t, y), full(x, t, y), atol=1e-5, rtol=1e-5)


def test_a_network_that_sees_magnitudes_alone_ignores_phases():
    x, y, t = complex_input()
    net = shaken({**SMALL, "multipliers": [1], "attention_levels": [], "patch": [1, 1], "magnitudes": True})
    turn = torch.polar(torch.ones(8, 6), normal((8, 6), 4) * 3)
    with torch.no_grad():
        assert (net(turn * x, t, turn * y) - net(x, t, y)).abs().max() > 1e-3
        net.input.weight[:, :4] = 0.0  # the real and imaginary parts
        torch.testing.assert_close(net(turn * x, t, turn * y), net(x, t, y), atol=1e-5, rtol=1e-5)
        assert (net(2.0 * x, t, y) - net(x, t, y)).abs().max() > 1e-3


def test_scale_multiplies_what_is_seen():
    x, y, t = complex_input()
    plain, scaled = shaken({**SMALL, "magnitudes": True}), shaken({**SMALL, "magnitudes": True, "scale": 3.0})
    with torch.no_grad():
        torch.testing.assert_close(scaled(x, t, y), plain(3.0 * x, t, 3.0 * y), atol=1e-5, rtol=1e-5)


def test_resampling_keeps_constants_and_a_ramp_away_from_the_border():
    ones, ramp = torch.ones(1, 2, 8, 8), torch.arange(16.0).expand(1, 1, 8, 16)
    for up in (False, True):
        torch.testing.assert_close(Resample(up)(ones)[..., 1:-1, 1:-1].mean(), torch.tensor(1.0))
        out = Resample(up)(ramp)[0, 0, 2, 2:-2]
        torch.testing.assert_close(out.diff(), torch.full_like(out.diff(), 0.5 if up else 2.0))


def test_halving_is_the_adjoint_of_doubling_up_to_the_gain():
    x, z = normal((1, 3, 8, 8), 1), normal((1, 3, 4, 4), 2)
    torch.testing.assert_close((Resample(False)(x) * z).sum() * 4, (x * Resample(True)(z)).sum())


def test_a_new_network_answers_its_bias_and_learns_everywhere():
    x, y, t = complex_input()
    net = nets.build(SMALL, seed=1)
    assert net(x, t, y).std() < 1e-6  # all of the last convolutions start at zero
    shaken_net = shaken(SMALL).train()
    shaken_net(x, t, y).abs().square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in shaken_net.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 7}, "channels"),
        ({"multipliers": []}, "multipliers"),
        ({"attention_levels": [8]}, "attention_levels"),
        ({"patch": [2]}, "patch"),
        ({"kernel": [2, 3]}, "kernel"),
        ({"scale": 0.0}, "scale"),
        ({"gains": -1.0}, "gains"),
        ({"gains": 1.0, "endpoint_channels": 2}, "gains"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(InputError, match=message):
        nets.build({**SMALL, **options})


def test_inputs_that_do_not_fit():
    x, y, t = complex_input()
    net = nets.build(SMALL)
    assert net.multiple == (4, 2)
    with pytest.raises(InputError, match="complex"):
        net(x.real, t, y)
    with pytest.raises(InputError, match="complex"):
        net(x, t, y.real)
    with pytest.raises(InputError, match="y"):
        net(x, t)
    with pytest.raises(InputError, match="multiple of 4"):
        net(x[:, :, :6], t, y[:, :, :6])
