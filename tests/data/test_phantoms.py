"""Phantoms: areas and volumes of ellipses, symmetries, addresses of random ones."""

import math

import pytest
import torch

from tweed.data import Dataset
from tweed.data.phantoms import (
    Phantoms,
    ellipses,
    head_volume,
    moving_blobs,
    moving_fibres,
    shepp_logan,
)
from tweed.errors import InputError

F64 = torch.float64


def one(*numbers):
    return torch.tensor([[numbers]], dtype=F64)


@pytest.mark.parametrize("degrees", [0.0, 30.0, 90.0, -70.0])
def test_an_ellipse_has_its_area_and_centre(degrees):
    size, a, b, cx, cy = 64, 0.5, 0.2, 0.15, -0.2
    image = ellipses(size, one(2.0, a, b, cx, cy, degrees)).double()[0, 0]
    pixel = (2.0 / size) ** 2
    assert float(image.sum()) * pixel == pytest.approx(2.0 * math.pi * a * b, rel=2e-3)
    line = (torch.arange(size, dtype=F64) + 0.5) * 2.0 / size - 1.0
    assert float((image.sum(0) * line).sum() / image.sum()) == pytest.approx(cx, abs=5e-4)
    assert float((image.sum(1) * -line).sum() / image.sum()) == pytest.approx(cy, abs=5e-4)
    # The second moment along the long axis, of one that turns with it.
    angle = math.radians(degrees)
    u = (line - cx) * math.cos(angle) + (-line[:, None] - cy) * math.sin(angle)
    assert float((image * u**2).sum() / image.sum()) == pytest.approx(0.25 * a**2, rel=0.01)


def test_a_quarter_turn_turns_the_image():
    standing = ellipses(33, one(1.0, 0.6, 0.3, 0.2, 0.1, 20.0), 32)
    turned = ellipses(33, one(1.0, 0.6, 0.3, -0.1, 0.2, 110.0), 32)
    assert (standing.rot90(1, (-2, -1)) - turned).abs().max() < 0.02


def test_shepp_logan():
    image = shepp_logan(128)
    assert image.shape == (1, 1, 128, 128)
    assert image.dtype == torch.float32
    assert float(image.min()) == 0.0
    assert float(image.max()) == 1.0
    # Skull, brain, ventricle, the tumour above the middle.
    at = lambda x, y: float(image[0, 0, round((1 - y) * 64), round((1 + x) * 64)])  # noqa: E731
    assert at(0.0, 0.9) == 1.0
    assert at(0.4, 0.5) == pytest.approx(0.2, abs=1e-6)
    assert at(-0.22, 0.0) == pytest.approx(0.0, abs=1e-6)
    assert at(0.0, 0.4) == pytest.approx(0.3, abs=1e-6)
    area = sum(0.5 * s * a * b for s, a, b in ((1.0, 0.69, 0.92), (-0.8, 0.6624, 0.874), (-0.2, 0.11, 0.31)))
    area += 0.5 * (-0.2 * 0.16 * 0.41 + 0.1 * (0.21 * 0.25 + 2 * 0.046**2 + 2 * 0.046 * 0.023 + 0.023**2))
    # Where ventricles meet the tumour the sum stays within 0 and 1.
    assert float(image.double().mean()) * 2.0 == pytest.approx(math.pi * area, rel=2e-3)


def test_random_heads_are_addressed():
    data = Phantoms(50, size=16, seed=3)
    assert isinstance(data, Dataset)
    assert data.shape == (1, 16, 16)
    x = data.batch(torch.tensor([7, 3, 7]))["x"]
    assert torch.equal(x[0], x[2])
    assert torch.equal(data[3]["x"], x[1])
    assert torch.equal(Phantoms(8, 16, 3)[7]["x"], x[0])
    assert not torch.equal(Phantoms(8, 16, 4)[7]["x"], x[0])
    assert data.batch(torch.zeros(0, dtype=torch.int64))["x"].shape == (0, 1, 16, 16)
    every = data.batch(torch.arange(50))["x"]
    assert float(every.min()) >= 0.0
    assert float(every.max()) <= 1.0
    assert float(every.std(0).max()) > 0.1
    with pytest.raises(InputError, match="indices"):
        data.batch(torch.tensor([50]))


def test_a_volume_of_a_head():
    volume = head_volume(32, 96)
    assert volume.shape == (96, 1, 32, 32)
    assert head_volume(8).shape == (8, 1, 8, 8)
    # The head is widest near the middle, and its slices change little from one to the next.
    filled = (volume > 0.1).double().mean((1, 2, 3))
    assert filled[48] > filled[16] > filled[0]
    assert volume.diff(dim=0).abs().mean() < 0.3 * volume.diff(dim=-1).abs().mean()
    assert torch.equal(head_volume(16, seed=4), head_volume(16, seed=4))
    assert not torch.equal(head_volume(16, seed=4), head_volume(16, seed=5))
    assert not torch.equal(head_volume(16, seed=0), head_volume(16))


@pytest.mark.parametrize("make", [moving_blobs, moving_fibres])
def test_what_moves_does_so_in_a_line(make):
    volumes = make(24, 16, 1, n=3)
    assert volumes.shape == (3, 24, 1, 16, 16)
    torch.testing.assert_close(make(24, 16, 1, n=2), volumes[:2])
    assert not torch.equal(make(24, 16, 2, n=2), volumes[:2])
    # Slowly: a second difference is far below a first one.
    first, second = volumes.diff(dim=1).abs().mean(), volumes.diff(n=2, dim=1).abs().mean()
    assert 0.0 < second < 0.2 * first
    assert first < 0.05 * volumes.abs().mean() + 0.02


def test_fibres_stand():
    volume = moving_fibres(4, 32, 2, n=20)
    assert volume.diff(dim=-2).square().mean() < 0.15 * volume.diff(dim=-1).square().mean()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ellipses(0, one(1.0, 1.0, 1.0, 0.0, 0.0, 0.0)), "size"),
        (lambda: ellipses(4, torch.zeros(3, 6)), "table"),
        (lambda: Phantoms(-1), "n, size"),
        (lambda: Phantoms(3, 2), "n, size"),
        (lambda: moving_blobs(0, 8, 1), "slices"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InputError, match=message):
        make()
