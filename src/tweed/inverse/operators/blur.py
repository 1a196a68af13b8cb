"""Blur: convolution with a kernel, periodic, by the fast Fourier transform; for signals, images and volumes."""

import math
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.errors import InputError
from tweed.inverse.operators.base import LinearOperator, Spectrum


class Blur(LinearOperator):
    """Periodic convolution over the last axes, as many as the kernel has; channels keep to themselves.

    Args:
        event: the shape of a sample.
        kernel: real, its centre at `size // 2`; no side longer than the event's.

    Raises:
        InputError: the kernel has more axes than the event, or is larger.
    """

    def __init__(self, event: tuple[int, ...], kernel: Float[Tensor, "*kernel"]):
        self.event = self.measured = tuple(event)
        self.kernel = torch.as_tensor(kernel).double()
        sides = self.event[len(self.event) - self.kernel.ndim :]
        if not 1 <= self.kernel.ndim <= len(self.event) or any(
            k > n for k, n in zip(self.kernel.shape, sides, strict=False)
        ):
            raise InputError(
                f"kernel: shape {tuple(self.kernel.shape)} was given for events {self.event}; expected one no larger than "
                "their last axes"
            )
        self._axes = tuple(range(-self.kernel.ndim, 0))
        self._sides = sides

    @cached_property
    def response(self) -> Tensor:
        """The kernel's Fourier transform, complex, the shape of the last axes."""
        whole = torch.zeros(self._sides, dtype=torch.float64)
        whole[tuple(slice(0, k) for k in self.kernel.shape)] = self.kernel
        shift = tuple(-(k // 2) for k in self.kernel.shape)
        return torch.fft.fftn(whole.roll(shift, self._axes))

    def _filter(self, x: Tensor, response: Tensor) -> Tensor:
        if x.numel() == 0:
            return x
        kind = torch.complex64 if x.real.dtype == torch.float32 else torch.complex128
        moved = torch.fft.ifftn(torch.fft.fftn(x, dim=self._axes) * response.to(x.device, kind), dim=self._axes)
        return moved if x.is_complex() else moved.real

    def forward(self, x):
        return self._filter(x, self.response)

    def adjoint(self, y):
        return self._filter(y, self.response.conj())

    @property
    def spectrum(self) -> Spectrum:
        size = self.response.abs()
        values = torch.where(size > 1e-12 * size.max(), size, 0.0)
        phase = torch.where(values > 0.0, self.response / size, 1.0)

        def forth(x: Tensor) -> Tensor:
            return torch.fft.fftn(x, dim=self._axes, norm="ortho").flatten(1)

        def back(c: Tensor) -> Tensor:
            return torch.fft.ifftn(c.reshape(len(c), *self.event), dim=self._axes, norm="ortho").real

        def observed(y: Tensor) -> Tensor:
            turned = torch.fft.fftn(y, dim=self._axes, norm="ortho")
            return (turned * phase.conj().to(turned)).flatten(1)

        return Spectrum(values.expand(self.event).flatten(), forth, back, observed)


def gaussian_kernel(std: float, axes: int = 2, truncate: float = 3.0) -> Float[Tensor, "*kernel"]:
    """A Gaussian of `std` pixels on every axis, cut at `truncate` of them, of sum 1.

    Raises:
        InputError: `std` is not positive.
    """
    if not std > 0.0:
        raise InputError(f"std: {std} was given; expected a positive number of pixels")
    reach = math.ceil(truncate * std)
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / std) ** 2)
    kernel = line
    for _ in range(axes - 1):
        kernel = kernel[..., None] * line
    return kernel / kernel.sum()


def motion_kernel(length: float, angle: float) -> Float[Tensor, "k k"]:
    """A straight motion of `length` pixels at `angle` radians (counter-clockwise from the right), of sum 1.

    A line of many points, each shared between the four pixels around it.
    """
    if not length > 0.0:
        raise InputError(f"length: {length} was given; expected a positive number of pixels")
    reach = math.ceil(0.5 * length) + 1
    size = 2 * reach + 1
    along = torch.linspace(-0.5 * length, 0.5 * length, max(16 * math.ceil(length), 2), dtype=torch.float64)
    row, column = reach - along * math.sin(angle), reach + along * math.cos(angle)
    kernel = torch.zeros(size, size, dtype=torch.float64)
    r, c = row.floor().long(), column.floor().long()
    for i, wr in ((0, 1.0 - (row - r)), (1, row - r)):
        for j, wc in ((0, 1.0 - (column - c)), (1, column - c)):
            kernel.index_put_((r + i, c + j), wr * wc, accumulate=True)
    return kernel / kernel.sum()
