"""Magnetic resonance: samples of an image's Fourier transform, and the patterns in which they are taken."""

import math

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from tweed.core import random
from tweed.errors import InputError
from tweed.inverse.operators.base import LinearOperator, Spectrum


class MaskedFourier(LinearOperator):
    """The unitary Fourier transform of the last two axes, centred, where the mask is True and zero elsewhere.

    Measurements are complex. The adjoint is real for real measured events (`real=True`), and complex otherwise.

    Args:
        event: (..., h, w).
        mask: (h, w), the zero frequency at (h // 2, w // 2).
        real: whether samples are real.

    Raises:
        InputError: the mask does not fit.
    """

    def __init__(self, event: tuple[int, ...], mask: Bool[Tensor, "h w"], real: bool = True):
        self.event = self.measured = tuple(event)
        if len(event) < 2 or tuple(mask.shape) != self.event[-2:]:
            raise InputError(f"mask: shape {tuple(mask.shape)} was given; expected the last two axes of {self.event}")
        self.mask, self.real = mask.bool(), real

    def forward(self, x):
        if x.numel() == 0:
            return x.to(x.dtype.to_complex())
        turned = torch.fft.fft2(torch.fft.ifftshift(x, (-2, -1)), norm="ortho")
        return torch.fft.fftshift(turned, (-2, -1)) * self.mask.to(x.device)

    def adjoint(self, y):
        if y.numel() == 0:
            return y.real if self.real else y
        masked = torch.fft.ifftshift(y * self.mask.to(y.device), (-2, -1))
        x = torch.fft.fftshift(torch.fft.ifft2(masked, norm="ortho"), (-2, -1))
        return x.real if self.real else x

    @property
    def spectrum(self) -> Spectrum:
        """In the Fourier basis. A real sample's coefficients at opposite frequencies are conjugate, so that one that is
        measured says both: the singular value is sqrt(1 / 2) there, and 1 where both are measured."""
        mask = torch.fft.ifftshift(self.mask, (-2, -1)).double()
        values = (0.5 * (mask + _opposite(mask))).sqrt() if self.real else mask
        axes = (-2, -1)

        def forth(x: Tensor) -> Tensor:
            return torch.fft.fft2(torch.fft.ifftshift(x, axes), norm="ortho").flatten(1)

        def back(c: Tensor) -> Tensor:
            c = c.reshape(len(c), *self.event)
            x = torch.fft.fftshift(torch.fft.ifft2(c.to(c.dtype.to_complex()), norm="ortho"), axes)
            return x.real if self.real else x

        def observed(y: Tensor) -> Tensor:
            c = torch.fft.ifftshift(y, axes) * mask.to(y.device, y.real.dtype)
            if self.real:
                scale = torch.where(values > 0.0, 0.5 / values, 0.0).to(y.device, y.real.dtype)
                c = scale * (c + _opposite(c).conj())
            return c.flatten(1)

        return Spectrum(values.expand(self.event).flatten(), forth, back, observed)


def _opposite(c: Tensor) -> Tensor:
    """At minus the frequency, for the last two axes with the zero frequency first."""
    return c.flip(-1, -2).roll((1, 1), (-2, -1))


def cartesian_mask(
    shape: tuple[int, int], acceleration: float, center: float = 0.08, seed: int = 0
) -> Bool[Tensor, "h w"]:
    """Whole columns: a share `center` around the zero frequency, and others at random up to 1 / `acceleration` in all."""
    h, w = shape
    wanted = _count(w, acceleration)
    near = (torch.arange(w) - w // 2).abs() <= 0.5 * center * w
    order = random.uniform((1, w), seed, dtype=torch.float64)[0]
    # The centre first, then whatever has the least number.
    chosen = torch.where(near, order - 1.0, order).argsort()[: max(wanted, int(near.sum()))]
    columns = torch.zeros(w, dtype=torch.bool)
    columns[chosen] = True
    return columns.expand(h, w).clone()


def radial_mask(shape: tuple[int, int], spokes: int) -> Bool[Tensor, "h w"]:
    """`spokes` lines through the zero frequency at equal angles."""
    if spokes < 1:
        raise InputError(f"spokes: {spokes} was given; expected at least 1")
    h, w = shape
    reach = math.hypot(h, w)
    radius = torch.linspace(-0.5 * reach, 0.5 * reach, 4 * math.ceil(reach), dtype=torch.float64)
    angle = (math.pi / spokes * torch.arange(spokes, dtype=torch.float64))[:, None]
    row = (h // 2 + radius * angle.sin()).round().long().flatten()
    column = (w // 2 + radius * angle.cos()).round().long().flatten()
    inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[row[inside], column[inside]] = True
    return mask


def poisson_disc_mask(
    shape: tuple[int, int], acceleration: float, center: float = 0.08, seed: int = 0
) -> Bool[Tensor, "h w"]:
    """Points at random that keep apart, the more so the further from the zero frequency; about 1 / `acceleration` of all.

    Candidates come in random order and are kept where none is near (dart throwing); the radius `r0 (1 + 2 distance)` is found
    by bisection for the wanted number. A disc of a share `center` of the smaller side is sampled fully.
    """
    h, w = shape
    wanted = _count(h * w, acceleration)
    rows, columns = np.mgrid[:h, :w] - np.array([h // 2, w // 2])[:, None, None]
    distance = 2.0 * np.hypot(rows / h, columns / w)
    disc = np.hypot(rows, columns) <= 0.5 * center * min(h, w)
    order = random.uniform((1, h * w), seed, dtype=torch.float64)[0].argsort().tolist()

    def thrown(r0: float) -> np.ndarray:
        mask, blocked = disc.copy(), disc.copy()
        for i, j in (divmod(k, w) for k in order):
            if blocked[i, j]:
                continue
            mask[i, j] = True
            r = r0 * (1.0 + 2.0 * distance[i, j])
            reach = int(r)
            top, left = max(i - reach, 0), max(j - reach, 0)
            part = blocked[top : i + reach + 1, left : j + reach + 1]
            down, across = np.arange(top, top + part.shape[0]) - i, np.arange(left, left + part.shape[1]) - j
            part |= down[:, None] ** 2 + across**2 < r**2
        return mask

    low, high = 0.3, 0.5 * math.sqrt(acceleration) + 2.0
    best = thrown(low)
    for _ in range(8):
        middle = 0.5 * (low + high)
        found = thrown(middle)
        if abs(int(found.sum()) - wanted) < abs(int(best.sum()) - wanted):
            best = found
        low, high = (middle, high) if int(found.sum()) > wanted else (low, middle)
    return torch.from_numpy(best)


def _count(n: int, acceleration: float) -> int:
    if not acceleration >= 1.0:
        raise InputError(f"acceleration: {acceleration} was given; expected at least 1")
    return max(1, round(n / acceleration))
