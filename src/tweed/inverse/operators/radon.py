"""The parallel-beam Radon transform: line integrals of an image at a set of angles, and filtered back-projection.

A pixel is a square of light. Its projection at an angle is a trapezoid of unit area, and a detector, one pixel wide, sees the
part of it that falls on it: at most three neighbouring detectors see a pixel. Where they fit in memory all these weights are
kept as a sparse matrix and its transpose, otherwise they are computed angle by angle; either way the adjoint is the transpose
of the same numbers. Detector s of angle a sees the rays at distance `s - (detectors - 1) / 2` from the centre along
`(cos a, sin a)` (x to the right, y up).

Mirrored in an axis or a diagonal an image has the projections of other angles: `a`, `pi - a` and, for a square,
`pi / 2 - a`, `pi / 2 + a` share their weights. So evenly spaced angles need a quarter of the matrix, times four images.
"""

import math
import warnings
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tweed.errors import InputError, choose
from tweed.inverse.operators.base import LinearOperator

_KEPT = 4 * 10**7
_TAPS = 3
_NEAR = 1e-9
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
        detectors: how many; by default as many as see all of the image at any angle, or of its circle.
        circle: whether what is outside the inscribed circle is left out: it is not seen, and comes back as 0.

    Raises:
        InputError: an event without two axes, no angles or some that are not finite, no detectors.
    """

    def __init__(
        self,
        event: tuple[int, ...],
        angles: Float[Tensor, " a"],
        detectors: int | None = None,
        circle: bool = False,
    ):
        self.event = tuple(event)
        self.angles = torch.as_tensor(angles, dtype=torch.float64)
        if len(event) < 2 or self.angles.ndim != 1 or len(self.angles) == 0 or not bool(self.angles.isfinite().all()):
            raise InputError(
                f"event, angles: {self.event}, {tuple(self.angles.shape)} were given; expected (..., h, w) and (a,), "
                "at least one finite angle"
            )
        h, w = event[-2:]
        self.circle = circle
        self.detectors = detectors if detectors is not None else min(h, w) if circle else math.ceil(math.hypot(h, w))
        if self.detectors < 1:
            raise InputError(f"detectors: {detectors} was given; expected at least 1")
        self.measured = (*self.event[:-2], len(self.angles), self.detectors)
        self._kept, self._mirrors, self._place = _plan(self.angles, h == w)
        self._made: dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]] = {}

    def forward(self, x):
        images = x.reshape(-1, *self.event[-2:])
        return _Product.apply(images, self, False).reshape(len(x), *self.measured)

    def adjoint(self, y):
        rows = y.reshape(-1, len(self.angles), self.detectors)
        return _Product.apply(rows, self, True).reshape(len(y), *self.event)

    def _project(self, images: Float[Tensor, "c h w"]) -> Float[Tensor, "c a s"]:
        stack = torch.stack([_mirrored(images, way) for way in self._mirrors])
        lines = self._product(stack.flatten(2).flatten(0, 1), False)
        lines = lines.reshape(len(self._mirrors), len(images), len(self._kept), self.detectors).transpose(1, 2)
        return lines.flatten(0, 1)[self._place.to(images.device)].transpose(0, 1)

    def _smear(self, rows: Float[Tensor, "c a s"]) -> Float[Tensor, "c h w"]:
        lines = rows.new_zeros(len(self._mirrors) * len(self._kept), len(rows), self.detectors)
        lines.index_add_(0, self._place.to(rows.device), rows.transpose(0, 1))
        lines = lines.reshape(len(self._mirrors), len(self._kept), len(rows), -1).transpose(1, 2)
        images = self._product(lines.flatten(2).flatten(0, 1), True)
        images = images.reshape(len(self._mirrors), len(rows), *self.event[-2:])
        return sum(_mirrored(images[j], way, undo=True) for j, way in enumerate(self._mirrors))  # type: ignore[return-value]

    def _product(self, rows: Float[Tensor, "c n"], transposed: bool) -> Float[Tensor, "c m"]:
        """Of each row with the transform at the kept angles, or its adjoint."""
        h, w = self.event[-2:]
        if _TAPS * h * w * len(self._kept) <= _KEPT:
            return (self._matrices(rows.dtype, rows.device)[transposed] @ rows.mT.contiguous()).mT
        many = rows.reshape(len(rows), len(self._kept), self.detectors) if transposed else None
        parts, total = [], rows.new_zeros(len(rows), h * w)
        for k in range(len(self._kept)):
            place, weight = (torch.from_numpy(part).to(rows.device) for part in self._footprint(k))
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

    def _footprint(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Which detectors see each pixel at kept angle k, int32 (h w, 3), and how much of it, float32."""
        h, w = self.event[-2:]
        cos, sin = math.cos(self._kept[k]), math.sin(self._kept[k])
        x, y = np.arange(w) - 0.5 * (w - 1), (0.5 * (h - 1) - np.arange(h))[:, None]
        center = (x * cos + y * sin).ravel() + 0.5 * (self.detectors - 1)
        nearest = np.round(center)
        # The trapezoid is the convolution of two boxes, its integral a second difference of ramps squared.
        wide, narrow = (max(size, 1e-6) for size in sorted((abs(cos), abs(sin)), reverse=True))
        outer, inner = 0.5 * (wide + narrow), 0.5 * (wide - narrow)
        edges = (nearest - center)[:, None] + np.array([-1.5, -0.5, 0.5, 1.5])
        below = np.zeros_like(edges)
        for sign, shift in ((1, outer), (-1, inner), (-1, -inner), (1, -outer)):
            below += sign * np.maximum(edges + shift, 0.0) ** 2
        weight = np.diff(below / (2.0 * wide * narrow), axis=1)
        place = nearest.astype(np.int32)[:, None] + np.arange(-1, 2, dtype=np.int32)
        seen = (place >= 0) & (place < self.detectors)
        if self.circle:
            seen &= ((x**2 + y**2).ravel() <= (0.5 * min(h, w)) ** 2)[:, None]
        return place.clip(0, self.detectors - 1), np.where(seen, weight, 0.0).astype(np.float32)

    @cached_property
    def _sparse(self) -> tuple[Any, Any]:
        """The transform at the kept angles and its transpose, scipy's compressed rows."""
        from scipy.sparse import csr_matrix

        n, angles = math.prod(self.event[-2:]), len(self._kept)
        columns, weights = np.empty((n, angles, _TAPS), np.int32), np.empty((n, angles, _TAPS), np.float32)
        for k in range(angles):
            place, weights[:, k] = self._footprint(k)
            columns[:, k] = place + k * self.detectors
        bounds = np.arange(n + 1, dtype=np.int32) * (_TAPS * angles)
        back = csr_matrix((weights.ravel(), columns.ravel(), bounds), shape=(n, angles * self.detectors))
        return back.T.tocsr(), back

    def _matrices(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        if (dtype, device) not in self._made:
            self._made[dtype, device] = tuple(_as_tensor(matrix, dtype, device) for matrix in self._sparse)
        return self._made[dtype, device]

    def filtered_back_projection(
        self, y: Float[Tensor, "b *measured"], filter: Filter = "ramp"
    ) -> Float[Tensor, "b *event"]:
        """The classical inverse: each projection filtered by |frequency|, and smeared back along its rays.

        For angles evenly over half a turn; with a limited angle it is only a crude inverse. "hann" and "cosine" damp high
        frequencies.

        Raises:
            InputError: an unknown filter.
        """
        rows = y.reshape(-1, *self.measured[-2:])
        filtered = _filtered(rows, choose("filter", filter, ("ramp", "hann", "cosine")))
        # What an evenly lit detector sees of a pixel is one, whatever the angle: the adjoint is the smearing back.
        return self.adjoint(filtered.reshape(y.shape)) * (math.pi / len(self.angles))

    def pseudo_inverse(self, y, *, floor=1e-6, iterations=50):
        """Filtered back-projection: what one starts from. The least-squares solution is that of `LinearOperator`."""
        return self.filtered_back_projection(y)


class _Product(torch.autograd.Function):
    """The transform or its adjoint, each the derivative of the other."""

    @staticmethod
    def forward(ctx, rows, operator, transposed):
        ctx.operator, ctx.transposed = operator, transposed
        return operator._smear(rows) if transposed else operator._project(rows)

    @staticmethod
    def backward(ctx, *gradients):
        return _Product.apply(gradients[0], ctx.operator, not ctx.transposed), None, None


def _mirrored(images: Float[Tensor, "c h w"], way: int, undo: bool = False) -> Tensor:
    """Mirrored by x -> -x where `way` has its first bit, then by x <-> y (y is up: the other diagonal) for its second."""
    if undo:
        images = _diagonal(images) if way & 2 else images
        return images.flip(-1) if way & 1 else images
    images = images.flip(-1) if way & 1 else images
    return _diagonal(images) if way & 2 else images


def _diagonal(images: Tensor) -> Tensor:
    return images.flip(-1, -2).mT


def _plan(angles: Float[Tensor, " a"], square: bool) -> tuple[list[float], list[int], Tensor]:
    """The angles to keep weights of, the ways to mirror an image, and which (way, kept angle) each angle is, flat."""
    found = []
    for angle in angles.tolist():
        way = 0
        if 0.0 <= angle < math.pi:
            if angle > 0.5 * math.pi:
                way, angle = 1, math.pi - angle
            if square and angle > 0.25 * math.pi:
                way, angle = way + 2, 0.5 * math.pi - angle
        found.append((way, angle))
    ways = sorted({way for way, _ in found})
    kept: dict[int, float] = {}
    for _, angle in found:
        kept.setdefault(round(angle / _NEAR), angle)
    if len(ways) * len(kept) > 1.5 * len(found):
        return angles.tolist(), [0], torch.arange(len(found))
    where = {key: k for k, key in enumerate(kept)}
    place = [ways.index(way) * len(kept) + where[round(angle / _NEAR)] for way, angle in found]
    return list(kept.values()), ways, torch.tensor(place)


def _as_tensor(matrix: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    with warnings.catch_warnings():
        # Compressed rows are called beta; they come from scipy, whose invariants are these.
        warnings.simplefilter("ignore", UserWarning)
        bounds, columns, values = (torch.from_numpy(part) for part in (matrix.indptr, matrix.indices, matrix.data))
        made = torch.sparse_csr_tensor(bounds, columns, values.to(dtype), matrix.shape, check_invariants=False)
        return made.to(device)


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
