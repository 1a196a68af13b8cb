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
    """Sums of ellipses, each (intensity, half axes a and b, centre x and y, angle in degrees), float32.

    A pixel has the share of it that an ellipse covers: exactly along its row, as a mean of `finer` lines across it.

    Raises:
        InputError: a size below 1, or a table that is not one.
    """
    if size < 1 or finer < 1 or table.ndim != 3 or table.shape[-1] != 6:
        raise InputError(
            f"size, table, finer: {size}, {tuple(table.shape)}, {finer} were given; expected at least 1, (b, k, 6), and "
            "at least 1"
        )
    lines = size * finer
    height = 1.0 - (torch.arange(lines, dtype=torch.float64, device=table.device) + 0.5) * 2.0 / lines
    left = torch.arange(size, dtype=torch.float64, device=table.device)
    images = torch.zeros(len(table), lines, size, dtype=torch.float64, device=table.device)
    for k in range(table.shape[1]):
        value, a, b, cx, cy, degrees = table[:, k, :, None].double().unbind(1)
        cos, sin = (degrees * math.pi / 180.0).cos(), (degrees * math.pi / 180.0).sin()
        y = height - cy
        # Where the line meets the ellipse: square x^2 + 2 mixed x y + ... = 1, x and y from its centre.
        square, mixed = (cos / a) ** 2 + (sin / b) ** 2, cos * sin * (a**-2 - b**-2)
        half = (square - (y / (a * b)) ** 2).clamp_min(0.0).sqrt() / square
        middle = cx - mixed * y / square
        ends = [((middle + sign * half + 1.0) * 0.5 * size)[..., None] - left for sign in (-1.0, 1.0)]
        images += value[..., None] * (ends[1].clamp_(0.0, 1.0) - ends[0].clamp_(0.0, 1.0))
    return images.reshape(len(table), 1, size, finer, size).mean(3).float()


def shepp_logan(size: int = 256) -> Float[Tensor, "1 1 h w"]:
    """The modified Shepp-Logan phantom, values in [0, 1]."""
    return ellipses(size, torch.tensor([_SHEPP_LOGAN], dtype=torch.float64)).clamp(0.0, 1.0)


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
    return _moving(slices, size, seed, n, 3, margin=0.25, width=(0.08, 0.18), length=1.0)


def moving_fibres(slices: int, size: int, seed: int, n: int = 1, count: int = 12) -> Float[Tensor, "n z 1 h w"]:
    """Volumes of many upright fibres, Gaussian and four times as long as wide, that move like the blobs.

    A few projections do not tell them apart, and slices have a grain that total variation does not know. Float64.
    """
    return _moving(slices, size, seed, n, count, margin=0.15, width=(0.04, 0.08), length=4.0)


def _moving(
    slices: int, size: int, seed: int, n: int, count: int, *, margin: float, width: tuple[float, float], length: float
) -> Float[Tensor, "n z 1 h w"]:
    if min(slices, size, count) < 1 or n < 0:
        raise InputError(f"slices, size, n: {slices}, {size}, {n} were given; expected at least 1, 1 and 0")
    u = random.uniform((n, count, 6), seed, dtype=torch.float64)
    center = (margin + (1.0 - 2.0 * margin) * u[..., :2]) * (size - 1)
    speed = 0.24 * (u[..., 2:4] - 0.5)
    spread, height = size * (width[0] + (width[1] - width[0]) * u[..., 4]), 0.3 + 0.4 * u[..., 5]
    k = torch.arange(slices, dtype=torch.float64) - 0.5 * (slices - 1)
    place = center[:, None] + speed[:, None] * k[:, None, None]
    line = torch.arange(size, dtype=torch.float64)
    down, across = (
        torch.exp(-0.5 * ((line - place[..., axis, None]) / (longer * spread)[:, None, :, None]) ** 2)
        for axis, longer in ((0, length), (1, 1.0))
    )
    return torch.einsum("nzkh,nzkw,nk->nzhw", down, across, height)[:, :, None]
