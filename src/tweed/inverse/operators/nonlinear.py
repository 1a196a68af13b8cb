"""Measurements that are not linear: phase retrieval, lossy compression, saturation. All can be differentiated through."""

import math

import torch

from tweed.errors import InputError
from tweed.inverse.operators.base import Operator


class PhaseRetrieval(Operator):
    """The magnitude of the Fourier transform of each channel, oversampled by zeros around it; real events (..., h, w).

    Args:
        event: (..., h, w).
        oversampling: zeros on each side, as a share of the side.
        offset: added before the transform (1 for images in [-1, 1], which are to be light on black).
    """

    def __init__(self, event: tuple[int, ...], oversampling: float = 0.5, offset: float = 1.0):
        if len(event) < 2 or not oversampling >= 0.0:
            raise InputError(
                f"event, oversampling: {tuple(event)}, {oversampling} were given; expected (..., h, w) and at least 0"
            )
        self.event, self.offset = tuple(event), offset
        pads = [round(oversampling * n) for n in event[-2:]]
        self._pad = (pads[1], pads[1], pads[0], pads[0])
        self.measured = (*self.event[:-2], event[-2] + 2 * pads[0], event[-1] + 2 * pads[1])

    def forward(self, x):
        padded = torch.nn.functional.pad(x + self.offset, self._pad)
        turned = torch.view_as_real(torch.fft.fft2(padded, norm="ortho"))
        # The square root of a sum has no gradient at zero.
        return (turned.square().sum(-1) + 1e-12).sqrt()


class HighDynamicRange(Operator):
    """Saturation: `clip(factor x, -1, 1)`, as a sensor with too little range; images in [-1, 1]."""

    def __init__(self, event: tuple[int, ...], factor: float = 2.0):
        self.event = self.measured = tuple(event)
        if not factor > 0.0:
            raise InputError(f"factor: {factor} was given; expected a positive number")
        self.factor = factor

    def forward(self, x):
        return (self.factor * x).clamp(-1.0, 1.0)


class JPEG(Operator):
    """Lossy compression as JPEG's: 8x8 cosine transforms, their coefficients rounded to the multiples of a table.

    Rounding passes gradients as if it were not there. Colours are taken through YCbCr, without subsampling; any other number
    of channels is compressed as it is. Images in [-1, 1] whose sides are multiples of 8.

    Args:
        event: (c, h, w).
        quality: 1 (worst) to 100, as in the reference software.
    """

    def __init__(self, event: tuple[int, ...], quality: int = 10):
        if len(event) != 3 or any(n % 8 for n in event[-2:]):
            raise InputError(f"event: {tuple(event)} was given; expected (c, h, w) with sides that are multiples of 8")
        if not 1 <= quality <= 100:
            raise InputError(f"quality: {quality} was given; expected from 1 to 100")
        self.event = self.measured = tuple(event)
        self.quality = quality
        scale = 5000.0 / quality if quality < 50 else 200.0 - 2.0 * quality
        colours = [_LUMINANCE] + [_CHROMINANCE] * 2 if event[0] == 3 else [_LUMINANCE] * event[0]
        tables = torch.tensor(colours, dtype=torch.float64).reshape(event[0], 8, 8)
        self.table = ((tables * scale + 50.0) / 100.0).floor().clamp(1.0, 255.0)
        k = torch.arange(8, dtype=torch.float64)
        basis = torch.cos(math.pi * (k + 0.5) * k[:, None] / 8.0) * 0.5
        basis[0] *= math.sqrt(0.5)
        self._basis = basis
        self._turn = torch.tensor(_YCBCR, dtype=torch.float64) if event[0] == 3 else None
        self._zero = torch.tensor([128.0, 0.0, 0.0], dtype=torch.float64).reshape(3, 1, 1)

    def forward(self, x):
        # Light from 0 to 255, less the 128 that the format takes off; Cb and Cr lie around zero.
        pixels = 127.5 * x - 0.5
        if self._turn is not None:
            pixels = torch.einsum("dc,bchw->bdhw", self._turn.to(x), pixels + 128.0) - self._zero.to(x)
        b, c, h, w = pixels.shape
        basis, table = self._basis.to(x), self.table.to(x)[:, None, None]
        blocks = pixels.reshape(b, c, h // 8, 8, w // 8, 8).transpose(3, 4)
        scaled = basis @ blocks @ basis.mT / table
        rounded = scaled + (scaled.round() - scaled).detach()
        back = basis.mT @ (rounded * table) @ basis
        pixels = back.transpose(3, 4).reshape(b, c, h, w)
        if self._turn is not None:
            inverse = torch.linalg.inv(self._turn).to(x)
            pixels = torch.einsum("dc,bchw->bdhw", inverse, pixels + self._zero.to(x)) - 128.0
        return ((pixels + 0.5) / 127.5).clamp(-1.0, 1.0)


_YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.168736, -0.331264, 0.5),
    (0.5, -0.418688, -0.081312),
)
# The tables of ITU-T T.81, Annex K, row by row.
_LUMINANCE = [
    *(16, 11, 10, 16, 24, 40, 51, 61),
    *(12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56),
    *(14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77),
    *(24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101),
    *(72, 92, 95, 98, 112, 100, 103, 99),
]
_CHROMINANCE = [
    *(17, 18, 24, 47, 99, 99, 99, 99),
    *(18, 21, 26, 66, 99, 99, 99, 99),
    *(24, 26, 56, 99, 99, 99, 99, 99),
    *(47, 66, 99, 99, 99, 99, 99, 99),
    *(99, 99, 99, 99, 99, 99, 99, 99),
    *(99, 99, 99, 99, 99, 99, 99, 99),
    *(99, 99, 99, 99, 99, 99, 99, 99),
    *(99, 99, 99, 99, 99, 99, 99, 99),
]
