"""The Radon transform: adjoint, symmetries, closed forms, the projection-slice theorem, and filtered back-projection."""

import math

import pytest
import torch

from tweed.core import random
from tweed.data.phantoms import ellipses, shepp_logan
from tweed.errors import InputError
from tweed.inverse.operators import adjoint_error
from tweed.inverse.operators import radon as module
from tweed.inverse.operators.base import LinearOperator
from tweed.inverse.operators.radon import Radon, parallel_angles

F64 = torch.float64
CASES = {
    "square": lambda: Radon((1, 16, 16), parallel_angles(12)),
    "odd": lambda: Radon((2, 15, 15), parallel_angles(7)),
    "oblong": lambda: Radon((12, 17), parallel_angles(8)),
    "limited": lambda: Radon((1, 16, 16), parallel_angles(9, math.pi / 3.0, -0.4)),
    "few detectors": lambda: Radon((1, 16, 16), parallel_angles(6), detectors=9),
    "circle": lambda: Radon((1, 16, 16), parallel_angles(6), circle=True),
    "any": lambda: Radon((3, 2, 9, 9), torch.tensor([0.3, 4.0, -1.0, 0.3])),
}


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "-"))
def radon(request) -> Radon:
    return CASES[request.param]()


def rms(x):
    return float(x.square().mean().sqrt())


def test_the_adjoint_is_one(radon):
    for seed in range(3):
        assert adjoint_error(radon, seed) < 1e-12
        assert adjoint_error(radon, seed, torch.float32) < 1e-6


def test_shared_and_streamed_weights_are_those_of_each_angle(radon, monkeypatch):
    x = random.normal((3, *radon.event), 1, dtype=F64)
    y, back = radon(x), radon.adjoint(radon(x))
    alone = [Radon(radon.event, angle[None], radon.detectors, radon.circle) for angle in radon.angles]
    for each in alone:  # neither mirrored nor shared
        each._kept, each._mirrors, each._place = each.angles.tolist(), [0], torch.zeros(1, dtype=torch.int64)
    torch.testing.assert_close(torch.cat([each(x) for each in alone], -2), y, rtol=0, atol=1e-6)
    monkeypatch.setattr(module, "_KEPT", 0)
    torch.testing.assert_close(radon(x), y, rtol=0, atol=1e-12)
    torch.testing.assert_close(radon.adjoint(y), back, rtol=0, atol=1e-11)
    assert radon(x[:0]).shape == (0, *radon.measured)


def test_evenly_spaced_angles_keep_a_quarter_of_the_weights():
    assert len(Radon((1, 8, 8), parallel_angles(180))._kept) == 46
    assert len(Radon((1, 8, 9), parallel_angles(180))._kept) == 91


def test_light_is_neither_lost_nor_made():
    radon = Radon((1, 15, 15), parallel_angles(11))
    x = random.uniform((2, 1, 15, 15), 3, dtype=F64)
    torch.testing.assert_close(radon(x).sum(-1), x.sum((-2, -1))[..., None].expand(2, 1, 11), rtol=1e-6, atol=0)
    # At no angle and at a right one these are sums of columns and of rows (from the bottom).
    radon = Radon((1, 15, 15), parallel_angles(2), detectors=15)
    torch.testing.assert_close(radon(x)[:, 0, 0], x.sum(-2)[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(radon(x)[:, 0, 1], x.sum(-1)[:, 0].flip(-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.0, 2.0, 2.9])
def test_the_shadow_of_an_ellipse(angle):
    size, a, b, cx, cy, turn = 128, 0.5, 0.3, 0.2, -0.15, 25.0
    x = ellipses(size, torch.tensor([[[1.0, a, b, cx, cy, turn]]], dtype=F64), 8).double()
    y = Radon((1, size, size), torch.tensor([angle]))(x)[0, 0, 0]
    s = (torch.arange(len(y), dtype=F64) - 0.5 * (len(y) - 1)) / (0.5 * size)
    beta = angle - math.radians(turn)
    reach2 = (a * math.cos(beta)) ** 2 + (b * math.sin(beta)) ** 2
    t = s - cx * math.cos(angle) - cy * math.sin(angle)
    exact = 2.0 * a * b * (reach2 - t**2).clamp_min(0.0).sqrt() / reach2 * 0.5 * size
    assert (y - exact).abs().mean() < 0.003 * exact.max()
    assert (y - exact).abs().max() < 0.08 * exact.max()  # at the ends, where the shadow is steep


def test_a_turned_image_moves_the_angles():
    x = random.normal((1, 1, 12, 12), 2, dtype=F64)
    radon = Radon((1, 12, 12), parallel_angles(8))
    turned = radon(x.rot90(1, (-2, -1)))
    torch.testing.assert_close(turned[..., 4:, :], radon(x)[..., :4, :], atol=1e-9, rtol=0)
    torch.testing.assert_close(turned[..., :4, :], radon(x)[..., 4:, :].flip(-1), atol=1e-5, rtol=0)


def test_gradients_are_adjoints():
    radon = Radon((1, 6, 6), parallel_angles(4))
    x = random.normal((2, 1, 6, 6), 1, dtype=F64).requires_grad_()
    weight = random.normal((2, *radon.measured), 2, dtype=F64)
    (gradient,) = torch.autograd.grad((weight * radon(x)).sum(), x)
    torch.testing.assert_close(gradient, radon.adjoint(weight))
    assert torch.autograd.gradgradcheck(lambda v: radon(v).square(), (x,), atol=1e-3)


def test_filtered_back_projection_converges():
    errors = []
    for size, views in ((32, 48), (64, 96), (128, 192)):
        # A smooth bump: no edges that limit the order.
        line = torch.linspace(-1.0, 1.0, size + 1, dtype=F64)[:-1] + 1.0 / size
        x = torch.exp(-12.0 * (line[:, None] ** 2 + (line - 0.1) ** 2))[None, None]
        radon = Radon((1, size, size), parallel_angles(views))
        errors.append(rms(radon.filtered_back_projection(radon(x)) - x))
    assert errors[0] > 3.0 * errors[1] > 9.0 * errors[2]
    assert errors[2] < 1e-3


def test_filters_and_the_crude_inverse():
    x = shepp_logan(64).double()
    radon = Radon((1, 64, 64), parallel_angles(90))
    y = radon(x)
    assert torch.equal(radon.pseudo_inverse(y), radon.filtered_back_projection(y))
    noisy = y + 0.5 * random.normal(tuple(y.shape), 1, dtype=F64)
    damage = {
        f: rms(radon.filtered_back_projection(noisy, f) - radon.filtered_back_projection(y, f))
        for f in ("ramp", "cosine", "hann")
    }
    assert damage["ramp"] > 1.3 * damage["cosine"] > 1.3 * damage["hann"]
    for filter in ("ramp", "cosine", "hann"):
        assert rms(radon.filtered_back_projection(y, filter) - x) < 0.5 * rms(x)
    # The least-squares solution explains the measurement better than the crude one.
    fitted = LinearOperator.pseudo_inverse(radon, y, iterations=30)
    assert rms(radon(fitted) - y) < 0.2 * rms(radon(radon.pseudo_inverse(y)) - y)


def test_outside_the_circle_nothing_is_seen():
    radon = Radon((1, 16, 16), parallel_angles(8), circle=True)
    assert radon.measured == (1, 8, 16)
    x = torch.zeros(1, 1, 16, 16, dtype=F64)
    x[..., 0, 0] = 1.0
    assert float(radon(x).abs().sum()) == 0.0
    inside = radon.adjoint(torch.ones(1, *radon.measured, dtype=F64))
    assert float(inside[0, 0, 0, 0]) == 0.0
    assert float(inside[0, 0, 8, 8]) == pytest.approx(8.0, rel=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Radon((4,), parallel_angles(2)), "event, angles"),
        (lambda: Radon((4, 4), torch.zeros(0)), "event, angles"),
        (lambda: Radon((4, 4), torch.tensor([math.nan])), "finite"),
        (lambda: Radon((4, 4), parallel_angles(2), detectors=0), "detectors"),
        (lambda: parallel_angles(0), "n:"),
        (lambda: Radon((4, 4), parallel_angles(2)).filtered_back_projection(torch.zeros(1, 2, 6), "box"), "filter"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InputError, match=message):
        make()
