"""The parallel-beam Radon transform: line integrals of an image at a set of angles, and filtered back-projection.

A pixel is a square of light. Its projection at an angle is a trapezoid of unit area, and a detector, one pixel wide, sees the
part of it that falls on it: at most three neighbouring detectors see a pixel. Where they fit in memory all these weights are
kept as a sparse matrix and its transpose, otherwise they are computed angle by angle; either way the adjoint is the transpose
of the same numbers. Detector s of angle a sees the rays at distance `s - (detectors - 1) / 2` from the centre along
`(cos a, sin a)` (x to the right, y up).
"""

import math
import warnings
from functools import cached_property, lru_cache
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.errors import InputError, choose
from tweed.inverse.operators.base import LinearOperator

_KEPT = 5 * 10**7
_TAPS = 3
Filter = Literal["ramp", "hann", "cosine"]


def parallel_angles(n: int, span: float = math.pi, start: float = 0.0) -> Float[Tensor, " n"]:
    """`n` angles in radians, evenly over `span` without its end; a limited angle is a smaller span."""
    if n < 1:
        raise InputError(f"n: {n} was given; expected at least one angle")
    return start + span * torch.arange(n, dtype=torch.float64) / n


class Radon(LinearOperator):
    """Projections of events (..., h, w): measurements have shape (..., angles, detectors).

    Args:
        event: the shape of a sample.
        angles: in radians, shape (a,).
        detectors: how many; by default as many as see all of the image at any angle.

    Raises:
        InputError: an event without two axes, no angles, no detectors.
    """

    def __init__(self, event: tuple[int, ...], angles: Float[Tensor, " a"], detectors: int | None = None):
        self.event = tuple(event)
        self.angles = torch.as_tensor(angles, dtype=torch.float64)
        if len(event) < 2 or self.angles.ndim != 1 or len(self.angles) == 0:
            raise InputError(
                f"event, angles: {self.event}, {tuple(self.angles.shape)} were given; expected (..., h, w) and (a,)"
            )
        h, w = event[-2:]
        self.detectors = detectors if detectors is not None else math.ceil(math.hypot(h, w))
        if self.detectors < 1:
            raise InputError(f"detectors: {detectors} was given; expected at least 1")
        self.measured = (*self.event[:-2], len(self.angles), self.detectors)

    def forward(self, x):
        images = x.reshape(-1, math.prod(self.event[-2:]))
        return _Product.apply(images, self, False).reshape(len(x), *self.measured)

    def adjoint(self, y):
        rows = y.reshape(-1, len(self.angles) * self.detectors)
        return _Product.apply(rows, self, True).reshape(len(y), *self.event)

    def _product(self, rows: Float[Tensor, "c n"], transposed: bool) -> Float[Tensor, "c m"]:
        """Of each row with the transform or its adjoint."""
        h, w = self.event[-2:]
        if _TAPS * h * w * len(self.angles) <= _KEPT:
            return (self._matrices(rows.dtype, rows.device)[transposed] @ rows.mT.contiguous()).mT
        many = rows.reshape(len(rows), len(self.angles), self.detectors) if transposed else None
        parts, total = [], rows.new_zeros(len(rows), h * w)
        for k in range(len(self.angles)):
            place, weight = (part.to(rows.device) for part in self._footprint(k))
            weight = weight.to(rows.dtype)
            if many is None:
                line = rows.new_zeros(len(rows), self.detectors)
                for tap in range(_TAPS):
                    line.index_add_(1, place[:, tap], rows * weight[:, tap])
                parts.append(line)
            else:
                for tap in range(_TAPS):
                    total += weight[:, tap] * many[:, k].index_select(1, place[:, tap])
        return torch.cat(parts, 1) if many is None else total

    def _footprint(self, k: int) -> tuple[Tensor, Tensor]:
        """Which detectors see each pixel at angle k, int64 (h w, 3), and how much of it, float32."""
        h, w = self.event[-2:]
        angle = float(self.angles[k])
        cos, sin = math.cos(angle), math.sin(angle)
        x = torch.arange(w, dtype=torch.float64) - 0.5 * (w - 1)
        y = 0.5 * (h - 1) - torch.arange(h, dtype=torch.float64)
        center = (x * cos + (y * sin)[:, None]).flatten() + 0.5 * (self.detectors - 1)
        nearest = center.round()
        # The trapezoid is the convolution of two boxes, its integral a second difference of ramps squared.
        wide, narrow = (max(size, 1e-4) for size in sorted((abs(cos), abs(sin)), reverse=True))
        outer, inner = 0.5 * (wide + narrow), 0.5 * (wide - narrow)
        edges = (nearest - center)[:, None] + torch.tensor([-1.5, -0.5, 0.5, 1.5], dtype=torch.float64)
        below = sum(
            sign * (edges + shift).clamp_min(0.0) ** 2
            for sign, shift in ((1, outer), (-1, inner), (-1, -inner), (1, -outer))
        )
        weight = (below / (2.0 * wide * narrow)).diff(dim=1)  # type: ignore[operator]
        place = nearest.long()[:, None] + torch.arange(-1, 2)
        seen = (place >= 0) & (place < self.detectors)
        return place.clamp(0, self.detectors - 1), torch.where(seen, weight, 0.0).float()

    @cached_property
    def _sparse(self) -> tuple[Any, Any]:
        """The transform and its transpose, scipy's compressed rows."""
        from scipy.sparse import csr_matrix

        parts = [self._footprint(k) for k in range(len(self.angles))]
        n, m = math.prod(self.event[-2:]), len(self.angles) * self.detectors
        columns = torch.stack([place + k * self.detectors for k, (place, _) in enumerate(parts)], 1).int()
        weights = torch.stack([weight for _, weight in parts], 1)
        bounds = torch.arange(n + 1, dtype=torch.int32) * (_TAPS * len(parts))
        back = csr_matrix((weights.flatten().numpy(), columns.flatten().numpy(), bounds.numpy()), shape=(n, m))
        return back.T.tocsr(), back

    @lru_cache(maxsize=4)  # noqa: B019 (an operator lives as long as its matrices)
    def _matrices(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        return tuple(_as_tensor(matrix, dtype, device) for matrix in self._sparse)  # type: ignore[return-value]

    def filtered_back_projection(
        self, y: Float[Tensor, "b *measured"], filter: Filter = "ramp"
    ) -> Float[Tensor, "b *event"]:
        """The classical inverse: each projection filtered by |frequency|, and smeared back along its rays.

        For angles evenly over half a turn; with a limited angle it is only a crude inverse. "hann" and "cosine" damp high
        frequencies.
        """
        rows = y.reshape(-1, *y.shape[-2:])
        filtered = _filtered(rows, choose("filter", filter, ("ramp", "hann", "cosine")))
        # What an evenly lit detector sees of a pixel is one, whatever the angle: the adjoint is the smearing back.
        return self.adjoint(filtered.reshape(y.shape)) * (math.pi / len(self.angles))

    def pseudo_inverse(self, y, *, floor=1e-6, iterations=50):
        """Filtered back-projection: what one starts from. The least-squares solution is that of `LinearOperator`."""
        return self.filtered_back_projection(y)


class _Product(torch.autograd.Function):
    """A product with the transform or its transpose, each the derivative of the other."""

    @staticmethod
    def forward(ctx, rows, operator, transposed):
        ctx.operator, ctx.transposed = operator, transposed
        return operator._product(rows, transposed)

    @staticmethod
    def backward(ctx, *gradients):
        return _Product.apply(gradients[0], ctx.operator, not ctx.transposed), None, None


def _as_tensor(matrix: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    with warnings.catch_warnings():
        # Compressed rows are called beta; they come from scipy, whose invariants are these.
        warnings.simplefilter("ignore", UserWarning)
        parts = (torch.from_numpy(part) for part in (matrix.indptr, matrix.indices))
        values = torch.from_numpy(matrix.data).to(dtype)
        return torch.sparse_csr_tensor(*parts, values, matrix.shape, check_invariants=False).to(device)


def _filtered(rows: Float[Tensor, "c a s"], filter: str) -> Float[Tensor, "c a s"]:
    """Convolution with the band-limited ramp, from its values in space: no offset at zero frequency (Kak & Slaney, 1988)."""
    n = rows.shape[-1]
    size = max(64, 2 ** math.ceil(math.log2(2 * n)))
    k = torch.arange(size // 2 + 1, dtype=torch.float64)
    distance = torch.cat((k, k[1:-1].flip(0)))
    odd = distance % 2 == 1
    ramp = torch.where(odd, -1.0 / (math.pi * distance.clamp_min(1.0)) ** 2, 0.0)
    ramp[0] = 0.25
    response = torch.fft.rfft(ramp).real
    frequency = torch.linspace(0.0, 1.0, size // 2 + 1, dtype=torch.float64)
    if filter == "hann":
        response = response * (0.5 + 0.5 * (math.pi * frequency).cos())
    elif filter == "cosine":
        response = response * (0.5 * math.pi * frequency).cos()
    return torch.fft.irfft(torch.fft.rfft(rows, size) * response.to(rows), size)[..., :n]
