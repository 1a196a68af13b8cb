"""Pairs of clean and degraded pictures: shadows, rain and darkness, laid over any data set of images."""

import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from tweed.core import random
from tweed.data.dataset import Dataset, check_indices, one
from tweed.errors import InputError, choose

Images = Float[Tensor, "b c h w"]
Index = int | Int[Tensor, " b"]


def shadow(x: Images, seed: int, index: Index = 0) -> Images:
    """A cast shadow: the light behind a soft edge falls to a share of 0.25 to 0.6, a little less so of blue.

    The edge is a straight line bent by a slow wave, and lies within the picture. Args and errors as for `low_light`.
    """
    light = _light(x)
    b, c, h, w = x.shape
    u = random.uniform((b, 7), seed, index=index, dtype=torch.float64, device=x.device)[..., None, None].unbind(1)
    line, row = (torch.linspace(-1.0, 1.0, n, dtype=torch.float64, device=x.device) for n in (w, h))
    across, down = line[None, None, :], row[None, :, None]
    angle = 2.0 * math.pi * u[0]
    along = across * angle.sin() - down * angle.cos()
    edge = across * angle.cos() + down * angle.sin() - (u[1] - 0.5)
    edge = edge + 0.25 * u[2] * torch.sin(2.0 * math.pi * (along * (0.3 + 0.7 * u[3]) + u[4]))
    covered = (0.5 + edge / (0.04 + 0.12 * u[5])).clamp(0.0, 1.0)[:, None]
    share = 0.25 + 0.35 * u[6][:, None]
    if c == 3:
        share = share * torch.tensor([0.95, 1.0, 1.12], dtype=torch.float64, device=x.device)[:, None, None]
    return _picture(light * (1.0 - (1.0 - share) * covered), x)


def rain(x: Images, seed: int, index: Index = 0) -> Images:
    """Rain: bright streaks of one direction, within 25 degrees of upright, that screen what is behind them.

    With streaks `s` the light is `1 - (1 - light)(1 - s)`, so that nothing is darker than before. Args and errors as for
    `low_light`.
    """
    light = _light(x)
    b, _, h, w = x.shape
    u = random.uniform((b, 4), seed, index=index, dtype=torch.float64, device=x.device)
    length = max(3, min(h, w) // 4) // 2 * 2 + 1
    drops = random.uniform((b, h + length, w + length), seed, index=index, draw=1, dtype=torch.float64, device=x.device)
    density = (0.3 + 0.7 * u[:, 0, None, None]) / length**1.5
    # Each drop with a brightness of its own: the uniform number, given that it is below the density.
    drops = torch.where(drops < density, 0.3 + 0.7 * drops / density, torch.zeros_like(drops))
    place = torch.arange(length, dtype=torch.float64, device=x.device) - length // 2
    angle = (math.radians(50.0) * (u[:, 1] - 0.5))[:, None, None]
    beside = place * angle.cos() - place[:, None] * angle.sin()
    along = place * angle.sin() + place[:, None] * angle.cos()
    reach = (0.5 + 0.5 * u[:, 2, None, None]) * (length // 2)
    streak = (1.0 - beside.abs()).clamp_min(0.0) * (reach + 0.5 - along.abs()).clamp(0.0, 1.0)
    # One kernel a picture: the pictures are the groups of one convolution.
    streaks = F.conv2d(drops[None], streak[:, None], groups=b)[0] if b else drops
    screen = (0.6 * streaks[:, :h, :w]).clamp(0.0, 1.0)[:, None]
    return _picture(1.0 - (1.0 - light) * (1.0 - screen), x)


def low_light(x: Images, seed: int, index: Index = 0) -> Images:
    """Darkness: a share of 0.1 to 0.3 of the light after a gamma of 1 to 1.5, with the noise of photons and of reading.

    The variance of the noise is `dark / 800 + 0.01^2`, for light in [0, 1].

    Args:
        x: images in [-1, 1].
        seed: of all that is random.
        index: the number of the first image, or of each: image `i` is degraded alike in any batch.

    Raises:
        InputError: not images with a batch dimension.
    """
    light = _light(x)
    u = random.uniform((len(x), 2), seed, index=index, dtype=torch.float64, device=x.device)[..., None, None, None]
    dark = (0.1 + 0.2 * u[:, 0]) * light ** (1.0 + 0.5 * u[:, 1])
    noise = random.normal(x.shape, seed, index=index, draw=1, dtype=torch.float64, device=x.device)
    return _picture(dark + (dark / 800.0 + 1e-4).sqrt() * noise, x)


DEGRADATIONS: Mapping[str, Callable[[Images, int, Index], Images]] = {
    "shadow": shadow,
    "rain": rain,
    "low-light": low_light,
}
"""Every degradation by name: `(images, seed, index) -> images`, both in [-1, 1]."""


class Degraded:
    """A data set of images with the degraded image beside each: `x` as it was, and `y`.

    Args:
        data: of images (channels, height, width) in [-1, 1]; its own conditions are kept.
        kind: a name of `DEGRADATIONS`, or any function like them.
        seed: of the degradation.

    Raises:
        InputError: an unknown name, samples that are not images, or data that have a `y` already.
    """

    def __init__(self, data: Dataset, kind: str | Callable[[Images, int, Index], Images] = "shadow", seed: int = 0):
        self._degrade = choose("kind", kind, DEGRADATIONS) if isinstance(kind, str) else kind
        if len(data.shape) != 3:
            raise InputError(f"data: samples of shape {data.shape} were given; expected (channels, height, width)")
        if "y" in data.conditions:
            raise InputError("data: it has a condition 'y' already; expected clean images")
        self.data, self.seed = data, seed
        self.shape, self.num_classes = data.shape, data.num_classes
        self.conditions = (*data.conditions, "y")

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: Int[Tensor, " n"]) -> dict[str, Tensor]:
        indices = check_indices(indices, len(self))
        rows = self.data.batch(indices)
        return {**rows, "y": self._degrade(rows["x"], self.seed, indices)}

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return one(self, i)


def _light(x: Images) -> Tensor:
    if x.ndim != 4 or not x.is_floating_point():
        raise InputError(f"x: {x.dtype} of shape {tuple(x.shape)} was given; expected real images (b, c, h, w)")
    return ((x.double() + 1.0) * 0.5).clamp(0.0, 1.0)


def _picture(light: Tensor, like: Images) -> Images:
    return (light.clamp(0.0, 1.0) * 2.0 - 1.0).to(like.dtype)
