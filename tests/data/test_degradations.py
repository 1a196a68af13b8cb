"""Degraded pictures: what shadow, rain and darkness may and may not do, addresses, and photographs to lay them over."""

import sys

import pytest
import torch

from tweed.core import random
from tweed.data import DEGRADATIONS, PHOTOGRAPHS, Degraded, Digits, Glyphs, Photographs, low_light, rain, shadow
from tweed.data.dataset import Tensors
from tweed.errors import InputError, MissingPackageError
from tweed.training.config import build_data


def images(n=5, c=3, size=32):
    return random.uniform((n, c, size, size), 3) * 2.0 - 1.0


def light(x):
    return 0.5 * (x.double() + 1.0)


def test_a_shadow_takes_one_share_of_the_light_behind_its_edge():
    x = images(c=1)
    share = light(shadow(x, 7)) / light(x)
    for one in share.flatten(1):
        lit, dark = one[one > 0.999], one[one < one.min() + 1e-4]
        # Lit and covered both, and little between: the edge.
        assert 0.25 <= one.min() <= 0.6
        assert one.max() <= 1.0 + 1e-5
        assert len(lit) + len(dark) > 0.6 * len(one)
        assert min(len(lit), len(dark)) > 0.05 * len(one)


def test_a_shadow_is_bluish():
    ratio = (light(shadow(images(), 7)) / light(images())).flatten(2).amin(2)
    torch.testing.assert_close(ratio[:, 0] / ratio[:, 1], torch.full((5,), 0.95).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(ratio[:, 2] / ratio[:, 1], torch.full((5,), 1.12).double(), atol=1e-4, rtol=0)


def test_rain_screens_and_is_the_same_in_every_channel():
    x = images()
    left = (1.0 - light(rain(x, 7))) / (1.0 - light(x))
    torch.testing.assert_close(left, left[:, :1].expand_as(left), atol=1e-4, rtol=0)
    assert left.max() <= 1.0 + 1e-5
    wet = (left[:, 0] < 0.99).double().flatten(1).mean(1)
    assert wet.min() > 0.02
    assert wet.max() < 0.6
    # Streaks are upright: neighbours below are more alike than neighbours beside.
    assert left[:, 0].diff(dim=1).abs().mean() < 0.6 * left[:, 0].diff(dim=2).abs().mean()


def test_darkness_has_its_noise():
    x = torch.full((400, 1, 16, 16), 0.2)
    y = light(low_light(x, 7)).flatten(1)
    # Of one level each picture: the mean is the darkness, within 0.1 to 0.3 of the light, or less by gamma.
    dark = y.mean(1)
    assert dark.min() + 0.005 > 0.1 * 0.6**1.5
    assert dark.max() < 0.3 * 0.6 + 0.005
    expected = dark / 800.0 + 1e-4
    assert (y.var(1) / expected).mean().item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_every_image_has_its_own_address(kind):
    degrade, x = DEGRADATIONS[kind], images(6)
    whole = degrade(x, 7, 10)
    alone = torch.cat([degrade(x[i : i + 1], 7, torch.tensor([10 + i])) for i in range(6)])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-6)
    assert (degrade(x, 8, 10) - whole).abs().max() > 0.05
    assert degrade(x[:0], 7).shape == (0, 3, 32, 32)
    assert whole.dtype is x.dtype
    assert whole.abs().max() <= 1.0
    with pytest.raises(InputError, match="x"):
        degrade(x[0], 7)


def test_pairs_from_any_images():
    data = Degraded(Glyphs(length=40), "rain", seed=2)
    assert data.conditions == ("label", "y")
    assert data.num_classes == 36
    rows = data.batch(torch.tensor([3, 39]))
    assert torch.equal(rows["x"], Glyphs(length=40).batch(torch.tensor([3, 39]))["x"])
    torch.testing.assert_close(rows["y"][1], data[-1]["y"])
    own = Degraded(Glyphs(length=4), lambda x, seed, index: -x)
    assert torch.equal(own[1]["y"], -own[1]["x"])
    with pytest.raises(InputError, match="kind"):
        Degraded(Glyphs(length=4), "hail")
    with pytest.raises(InputError, match="data"):
        Degraded(data)
    with pytest.raises(InputError, match="data"):
        Degraded(Tensors(torch.zeros(3, 2)))


def test_a_configuration_may_degrade():
    data = build_data({"name": "Digits", "degrade": "shadow"})
    assert isinstance(data, Degraded)
    assert isinstance(data.data, Digits)
    with pytest.raises(InputError, match="kind"):
        build_data({"name": "Digits", "degrade": "hail"})


class TestPhotographs:
    """What needs scikit-image."""

    @pytest.fixture(autouse=True)
    def installed(self):
        pytest.importorskip("skimage")

    def test_crops_are_of_the_photograph(self):
        from skimage import data

        astronaut = torch.from_numpy(data.astronaut().copy()).movedim(-1, 0)
        rows = Photographs(16, 200).batch(torch.arange(200))["x"]
        pixels = ((rows + 1.0) * 127.5).round().to(torch.uint8)
        # Every second crop is mirrored; some are of the astronaut at full resolution.
        windows = astronaut.unfold(1, 16, 1).unfold(2, 16, 1)
        found = 0
        for crop in pixels:
            for one in (crop, crop.flip(-1)):
                same = (windows[..., 0, 0] == one[:, :1, :1]).all(0).nonzero()
                found += any(torch.equal(windows[:, i, j], one) for i, j in same.tolist())
        assert found >= 8
        assert rows.shape == (200, 3, 16, 16)

    def test_addresses_and_splits(self):
        data = Photographs(24, 30, seed=5)
        torch.testing.assert_close(data.batch(torch.tensor([4, 29]))["x"][1], data[29]["x"])
        assert torch.equal(Photographs(24, 1000, seed=5)[29]["x"], data[29]["x"])
        assert not torch.equal(Photographs(24, 30, seed=6)[29]["x"], data[29]["x"])
        assert not set(PHOTOGRAPHS["train"]) & set(PHOTOGRAPHS["test"])
        assert data.batch(torch.zeros(0, dtype=torch.int64))["x"].shape == (0, 3, 24, 24)
        for wrong in ({"size": 97}, {"size": 3}, {"length": -1}, {"split": "all"}):
            with pytest.raises(InputError):
                Photographs(**wrong)

    def test_the_largest_crop_fits_every_photograph(self):
        for split in PHOTOGRAPHS:
            assert Photographs(96, 60, split).batch(torch.arange(60))["x"].shape == (60, 3, 96, 96)


def test_without_scikit_image_the_error_says_what_to_install(monkeypatch):
    from tweed.data import photographs

    photographs._photograph.cache_clear()
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(MissingPackageError, match=r"pip install tweed\[data\]"):
        Photographs(16)
