"""Phantoms: images and volumes of ellipses, whose projections everybody knows.

Shepp & Logan (1974) with the contrast of Toft (1996); in three dimensions the ellipsoids of Schabel's extension of it.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tweed.core import random
from tweed.data.dataset import check_indices, one
from tweed.errors import InputError

# Intensity, half axes, centre, angle in degrees; coordinates in [-1, 1], y up.
_SHEPP_LOGAN = (
    (1.0, 0.69, 0.92, 0.0, 0.0, 0.0),
    (-0.8, 0.6624, 0.874, 0.0, -0.0184, 0.0),
    (-0.2, 0.11, 0.31, 0.22, 0.0, -18.0),
    (-0.2, 0.16, 0.41, -0.22, 0.0, 18.0),
    (0.1, 0.21, 0.25, 0.0, 0.35, 0.0),
    (0.1, 0.046, 0.046, 0.0, 0.1, 0.0),
    (0.1, 0.046, 0.046, 0.0, -0.1, 0.0),
    (0.1, 0.046, 0.023, -0.08, -0.605, 0.0),
    (0.1, 0.023, 0.023, 0.0, -0.606, 0.0),
    (0.1, 0.023, 0.046, 0.06, -0.605, 0.0),
)
# The same with a third half axis and centre.
_HEAD = (
    (1.0, 0.69, 0.92, 0.81, 0.0, 0.0, 0.0, 0.0),
    (-0.8, 0.6624, 0.874, 0.78, 0.0, -0.0184, 0.0, 0.0),
    (-0.2, 0.11, 0.31, 0.22, 0.22, 0.0, 0.0, -18.0),
    (-0.2, 0.16, 0.41, 0.28, -0.22, 0.0, 0.0, 18.0),
    (0.1, 0.21, 0.25, 0.41, 0.0, 0.35, -0.15, 0.0),
    (0.1, 0.046, 0.046, 0.05, 0.0, 0.1, 0.25, 0.0),
    (0.1, 0.046, 0.046, 0.05, 0.0, -0.1, 0.25, 0.0),
    (0.1, 0.046, 0.023, 0.05, -0.08, -0.605, 0.0, 0.0),
    (0.1, 0.023, 0.023, 0.02, 0.0, -0.606, 0.0, 0.0),
    (0.1, 0.023, 0.046, 0.02, 0.06, -0.605, 0.0, 0.0),
)
_FINER = 4


def ellipses(size: int, table: Float[Tensor, "b k 6"], finer: int = _FINER) -> Float[Tensor, "b 1 h w"]:
    """Sums of ellipses, each (intensity, half axes a and b, centre x and y, angle in degrees), antialiased by averaging
    `finer`^2 points a pixel; float32 (b, 1, size, size)."""
    if size < 1:
        raise InputError(f"size: {size} was given; expected at least 1 pixel")
    fine = size * finer
    line = (torch.arange(fine, dtype=torch.float64) + 0.5) * 2.0 / fine - 1.0
    x, y = line[None, :], -line[:, None]
    images = torch.zeros(len(table), fine, fine, dtype=torch.float64)
    for k in range(table.shape[1]):
        value, a, b, cx, cy, degrees = table[:, k, :, None, None].unbind(1)
        angle = degrees * math.pi / 180.0
        u = (x - cx) * angle.cos() + (y - cy) * angle.sin()
        v = (y - cy) * angle.cos() - (x - cx) * angle.sin()
        images += value * ((u / a) ** 2 + (v / b) ** 2 <= 1.0)
    return torch.nn.functional.avg_pool2d(images[:, None], finer).float()


def shepp_logan(size: int = 256) -> Float[Tensor, "1 1 h w"]:
    """The modified Shepp-Logan phantom, values in [0, 1]."""
    return ellipses(size, torch.tensor([_SHEPP_LOGAN], dtype=torch.float64))


class Phantoms:
    """Random heads: the ellipses of Shepp and Logan, each moved, turned and scaled, some left out; values in [0, 1].

    A slice is that of a random volume at a random height, so that it is a prior for slices of volumes.

    Args:
        n: how many.
        size: of a side, in pixels.
        seed: sample `i` under a seed is the same whatever `n`.
    """

    num_classes = None
    conditions = ()

    def __init__(self, n: int = 1000, size: int = 32, seed: int = 0):
        if n < 0 or size < 4:
            raise InputError(f"n, size: {n}, {size} were given; expected at least 0, and at least 4 pixels")
        self._n, self._size, self._seed = n, size, seed
        self.shape = (1, size, size)

    def __len__(self) -> int:
        return self._n

    def batch(self, indices: Int[Tensor, " n"]) -> dict[str, Tensor]:
        indices = check_indices(indices, self._n)
        table = head_table(self._seed, indices)
        height = 1.4 * random.uniform((len(indices), 1), self._seed, index=indices, draw=9, dtype=torch.float64) - 0.7
        return {"x": ellipses(self._size, _slices(table, height)[:, 0], 2).clamp(0.0, 1.0)}

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return one(self, i)


def head_table(seed: int, indices: Int[Tensor, " n"], jitter: float = 1.0) -> Float[Tensor, "n k 8"]:
    """The ellipsoids of random heads: (intensity, half axes a, b, c, centre x, y, z, degrees)."""
    base = torch.tensor(_HEAD, dtype=torch.float64)
    n, k = len(indices), len(base)
    u = random.uniform((n, k, 8), seed, index=indices, dtype=torch.float64) * 2.0 - 1.0
    table = base.expand(n, k, 8).clone()
    # The skull moves little, what is inside it more; the smallest features most.
    skull = (torch.arange(k) < 2).double()[:, None]
    table[..., 1:4] *= 1.0 + jitter * (0.05 * skull + 0.35 * (1.0 - skull)) * u[..., 1:4]
    table[:, 1, 1:4] = table[:, 0, 1:4] * torch.tensor([0.96, 0.95, 0.963], dtype=torch.float64)
    table[:, 2:, 4:7] += jitter * 0.12 * u[:, 2:, 4:7]
    table[:, 2:, 7] += jitter * 30.0 * u[:, 2:, 7]
    table[:, 2:, 0] *= 1.0 + 0.5 * jitter * u[:, 2:, 0]
    return table


def _slices(table: Float[Tensor, "n k 8"], height: Float[Tensor, "n z"]) -> Float[Tensor, "n z k 6"]:
    """The ellipses in which ellipsoids meet planes at given heights; of no size where they do not."""
    value, a, b, c, x, y, z, degrees = table[:, None].unbind(-1)
    share = (1.0 - ((height[..., None] - z) / c) ** 2).clamp_min(0.0).sqrt().clamp_min(1e-9)
    plain = [part.expand_as(share) for part in (x, y, degrees)]
    return torch.stack((value.expand_as(share), a * share, b * share, *plain), -1)


def head_volume(size: int = 64, slices: int | None = None, seed: int | None = None) -> Float[Tensor, "z 1 h w"]:
    """A volume of a head, slice by slice from -0.8 to 0.8 of its half height, values in [0, 1].

    Args:
        size: of a side of a slice, in pixels.
        slices: as many as `size` where not given.
        seed: of a random head (see `Phantoms`); the standard one where not given.
    """
    count = slices or size
    index = torch.zeros(1, dtype=torch.int64)
    table = head_table(seed or 0, index, 0.0 if seed is None else 1.0)
    height = torch.linspace(-0.7, 0.7, count, dtype=torch.float64)[None]
    return ellipses(size, _slices(table, height)[0], 2).clamp(0.0, 1.0)


def moving_blobs(slices: int, size: int, seed: int, n: int = 1) -> Float[Tensor, "n z 1 h w"]:
    """Volumes of three Gaussian blobs each, whose centres move in a line from slice to slice, by up to 0.12 pixels each.

    Float64, about in [0, 1].
    """
    u = random.uniform((n, 3, 6), seed, dtype=torch.float64)
    center = (0.25 + 0.5 * u[..., :2]) * (size - 1)
    speed = 0.24 * (u[..., 2:4] - 0.5)
    width, height = size * (0.08 + 0.1 * u[..., 4]), 0.3 + 0.4 * u[..., 5]
    k = torch.arange(slices, dtype=torch.float64) - 0.5 * (slices - 1)
    place = center[:, None] + speed[:, None] * k[:, None, None]
    line = torch.arange(size, dtype=torch.float64)
    dy = (line - place[..., 0, None]) ** 2
    dx = (line - place[..., 1, None]) ** 2
    distance = dy[..., :, None] + dx[..., None, :]
    blobs = height[:, None, :, None, None] * torch.exp(-0.5 * distance / width[:, None, :, None, None] ** 2)
    return blobs.sum(2)[:, :, None]
