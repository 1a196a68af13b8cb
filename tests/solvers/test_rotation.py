"""Rotation by shears, and sampling while the state turns."""

import math

import pytest
import torch

import tweed as tw
from tweed.core.denoiser import FunctionDenoiser
from tweed.core.exact import GaussianDenoiser
from tweed.core.processes import VP
from tweed.core.random import normal
from tweed.errors import InputError
from tweed.solvers import DDIM, Ancestral
from tweed.solvers.rotation import rotate, rotating


def blobs(side, angle=0.0):
    """Two Gaussian spots, turned anticlockwise on the screen by `angle` degrees, in closed form."""
    place = torch.arange(side, dtype=torch.float64) - 0.5 * (side - 1)
    turn, image = math.radians(angle), torch.zeros(side, side, dtype=torch.float64)
    for right, up, width in ((0.18 * side, 0.1 * side, 2.0), (-0.1 * side, 0.15 * side, 1.6)):
        column = right * math.cos(turn) - up * math.sin(turn)
        row = -(right * math.sin(turn) + up * math.cos(turn))
        image += torch.exp(-((place[:, None] - row) ** 2 + (place - column) ** 2) / (2 * width**2))
    return image


@pytest.mark.parametrize("side", [32, 33])
@pytest.mark.parametrize("angle", [10.0, -37.0, 45.0, 130.0, 300.0])
def test_smooth_images_turn_as_they_should(side, angle):
    torch.testing.assert_close(rotate(blobs(side), angle), blobs(side, angle), atol=2e-4, rtol=0)


@pytest.mark.parametrize("side", [8, 9])
def test_quarter_turns_are_exact_and_the_inverse_undoes(side):
    x = normal((2, 3, side, side), 1)
    assert torch.equal(rotate(x, 0.0), x)
    assert torch.equal(rotate(x, 90.0), x.rot90(1, (-2, -1)))
    assert torch.equal(rotate(x, -270.0), rotate(x, 450.0))
    torch.testing.assert_close(rotate(rotate(x.double(), 23.0), -23.0), x.double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("side", [16, 17])
def test_noise_stays_white_through_a_thousand_turns(side):
    x = normal((50, side, side), 2, dtype=torch.float64)
    turned = x
    for _ in range(1000):
        turned = rotate(turned, 0.36)
    torch.testing.assert_close(turned.square().sum(), x.square().sum(), rtol=1e-9, atol=0)
    neighbours = (turned[:, 1:] * turned[:, :-1]).mean() / turned.square().mean()
    assert abs(neighbours.item()) < 5 / (50 * side * side) ** 0.5


def test_what_commutes_with_rotations_is_sampled_turned():
    denoiser = FunctionDenoiser(lambda x, t: 0.7 * x, VP(), event=(1, 16, 16))
    start = normal((3, 1, 16, 16), 3, dtype=torch.float64)
    still = tw.sample(denoiser, start, solver=DDIM(), steps=7)
    turned = tw.sample(denoiser, start, solver=DDIM(), steps=7, observer=rotating(42.0, 7))
    expected = still
    for _ in range(7):
        expected = rotate(expected, 6.0)
    torch.testing.assert_close(turned, expected, atol=1e-10, rtol=0)
    assert (turned - still).abs().max() > 0.1


def test_no_angle_is_the_plain_run():
    denoiser = GaussianDenoiser(torch.zeros(1, 8, 8), 0.5, VP())
    runs = [
        tw.sample(denoiser, 2, solver=Ancestral(), steps=5, seed=4, observer=observer)
        for observer in (None, rotating(0.0, 5))
    ]
    assert torch.equal(*runs)


def test_arguments_out_of_range():
    with pytest.raises(InputError, match="square"):
        rotate(torch.zeros(2, 3), 1.0)
    for call in (lambda: rotate(torch.zeros(2, 2), math.nan), lambda: rotating(math.inf, 3), lambda: rotating(1.0, 0)):
        with pytest.raises(InputError, match="angle"):
            call()
    assert rotate(torch.zeros(0, 4, 4), 10.0).shape == (0, 4, 4)
