"""Controlled equations: closed forms, orders, reparametrisation, adjoints, and what is refused."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from tweed.core import random
from tweed.errors import InputError
from tweed.nets import VectorField
from tweed.science import MatrixField, NeuralCDE, NeuralODE, cdeint, hermite, linear, rectilinear, with_time

F64 = torch.float64
TS = torch.tensor([0.0, 0.4, 0.5, 1.3, 2.0, 2.1], dtype=F64)


def series(b=3, c=2):
    return random.normal((b, len(TS), c), 1, dtype=F64)


def field(hidden=4, channels=2):
    return MatrixField(hidden, channels, width=8, depth=1, activation="tanh", bounded=True, time=False).double()


def start(b=3, hidden=4):
    return random.normal((b, hidden), 2, dtype=F64)


@pytest.mark.parametrize("kind", [linear, hermite])
def test_a_scalar_linear_equation_is_an_exponential_of_the_path(kind):
    # dz = z (u . dX) has the solution z0 exp(u . (X_t - X_0)), whatever the path.
    x, u = series(), torch.tensor([0.7, -0.4], dtype=F64)
    path = cdeint(kind(TS, x), lambda t, z: z[:, :, None] * u, start(3, 1), TS, step=0.004)
    exact = start(3, 1)[None] * ((x - x[:, :1]) @ u).exp().T[:, :, None]
    torch.testing.assert_close(path, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [linear, hermite])
@pytest.mark.parametrize(("method", "order"), [("heun", 2), ("rk4", 4)])
def test_fixed_methods_keep_their_order_across_the_knots(kind, method, order):
    control, f, z0 = kind(TS, series()), field(), start()
    exact = cdeint(control, f, z0, step=0.002)[-1]
    errors = [(cdeint(control, f, z0, method=method, step=h)[-1] - exact).norm().item() for h in (0.1, 0.05, 0.025)]
    for coarse, fine in pairwise(errors):
        assert 0.6 * 2**order < coarse / fine < 2.5 * 2**order


def test_adaptive_methods_agree_with_fixed_ones():
    for kind in (linear, hermite):
        control, f, z0 = kind(TS, series()), field(), start()
        fixed, adaptive = (
            cdeint(control, f, z0, [0.1, 0.5, 1.7], step=0.005),
            cdeint(control, f, z0, [0.1, 0.5, 1.7], method="dopri5", rtol=1e-9, atol=1e-10),
        )
        torch.testing.assert_close(fixed, adaptive, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [linear, hermite])
def test_without_a_channel_for_time_the_speed_does_not_matter(kind):
    # A linear change of time maps either kind of path to itself; for straight lines any monotone change does.
    changes = [lambda t: 3.0 * t - 1.0] + ([lambda t: t**2 + t] if kind is linear else [])
    x, f, z0 = series(), field(), start()
    here = cdeint(kind(TS, x), f, z0, step=0.005)[-1]
    for change in changes:
        there = cdeint(kind(change(TS), x), f, z0, step=0.005)[-1]
        torch.testing.assert_close(here, there, rtol=0, atol=1e-6)
    timed = field(4, 3)
    a, b = (cdeint(kind(s, with_time(s, x)), timed, z0, step=0.01)[-1] for s in (TS, 3.0 * TS))
    assert (a - b).norm() > 1e-2


def test_a_control_that_is_the_time_gives_an_ordinary_equation():
    net = VectorField(3, width=8, activation="tanh", time=False).double()
    y0 = start(2, 3)
    clock = TS[None, :, None].expand(2, -1, 1)
    ode = NeuralODE(net, method="rk4", step=0.01)(y0, TS)
    cde = cdeint(linear(TS, clock), lambda t, z: net(t, z)[:, :, None], y0, TS, step=0.01)
    torch.testing.assert_close(ode, cde, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", [linear, hermite])
@pytest.mark.parametrize(("method", "adjoint"), [("heun", "checkpoint"), ("reversible_heun", "reversible")])
def test_adjoints_give_the_gradients_of_the_steps_even_to_the_observations(kind, method, adjoint):
    found = []
    for how in ("direct", adjoint):
        x, f = series().requires_grad_(), field()
        z = cdeint(kind(TS, x), f, start(), TS, method=method, step=0.1, adjoint=how)
        found.append(torch.autograd.grad(z.square().sum(), [x, *f.parameters()]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_the_model_online_on_a_causal_path_does_not_see_the_future():
    x = series()
    x[1, 2] = float("nan")
    later = x.clone()
    later[:, 4:] += 2.0
    model = NeuralCDE(3, 4, 2).double()
    with torch.no_grad():
        a, b = (model.path(c, c.knots[::2]) for c in (rectilinear(TS, x), rectilinear(TS, later)))
    assert torch.equal(a[:4], b[:4])
    assert (a[4] - b[4]).abs().max() > 1e-4


def test_a_sample_does_not_depend_on_its_batch_nor_weights_on_the_global_generator():
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    model, other = NeuralCDE(3, 4, 2, seed=5), NeuralCDE(3, 4, 2, seed=6)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(model.readout.weight, NeuralCDE(3, 4, 2, seed=5).readout.weight)
    assert not torch.equal(model.readout.weight, other.readout.weight)
    x = with_time(TS, series()).float()
    whole = model(hermite(TS, x))
    for i in range(3):
        torch.testing.assert_close(model(hermite(TS, x[i : i + 1]))[0], whole[i], rtol=1e-5, atol=1e-6)
    assert model(hermite(TS, x[:0])).shape == (0, 2)


def test_bad_input():
    control, f, z0 = hermite(TS, series()), field(), start()
    with pytest.raises(InputError, match="strictly rising"):
        cdeint(control, f, z0, [1.0, 0.5])
    with pytest.raises(InputError, match="known from"):
        cdeint(control, f, z0, [0.0, 3.0])
    with pytest.raises(InputError, match="3 series"):
        cdeint(control, f, z0[:2])
    with pytest.raises(InputError, match="channels"):
        cdeint(control, lambda t, z: z, z0)


class Still(nn.Module):
    def forward(self, t, y):
        return torch.zeros_like(y)


def test_a_neural_ode_with_known_physics_augmentation_and_energy():
    y0 = start(4, 2)
    model = NeuralODE(Still(), known=lambda t, y: -y, augment=1, method="rk4", step=0.02)
    path, energy = model.with_energy(y0, [0.0, 0.5, 1.0])
    torch.testing.assert_close(path[-1], y0 * torch.exp(torch.tensor(-1.0, dtype=F64)), rtol=1e-7, atol=1e-9)
    exact = y0.square().sum(1) * (1.0 - torch.exp(torch.tensor(-2.0, dtype=F64))) / 2.0
    torch.testing.assert_close(energy[-1], exact, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(model(y0, [0.0, 0.5, 1.0]), path)
    with pytest.raises(InputError, match="augment"):
        NeuralODE(Still(), augment=-1)
