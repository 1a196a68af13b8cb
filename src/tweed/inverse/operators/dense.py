"""Operators given by a matrix: on whole events, or on their channels alone."""

import math
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.errors import InputError
from tweed.inverse.operators.base import LinearOperator, Spectrum


class Matrix(LinearOperator):
    """`y = M x` on flattened events; measurements have shape (m,).

    Args:
        event: the shape of a sample, of d elements.
        matrix: shape (m, d), real.
    """

    def __init__(self, event: tuple[int, ...], matrix: Float[Tensor, "m d"]):
        self.event = tuple(event)
        self._matrix = torch.as_tensor(matrix).double()
        if self._matrix.ndim != 2 or self._matrix.shape[1] != math.prod(self.event):
            raise InputError(
                f"matrix: shape {tuple(self._matrix.shape)} was given; expected (m, {math.prod(self.event)})"
            )
        self.measured = (len(self._matrix),)

    def forward(self, x):
        return x.flatten(1) @ self._matrix.mT.to(x)

    def adjoint(self, y):
        return (y @ self._matrix.to(y)).reshape(len(y), *self.event)

    @cached_property
    def _decomposed(self) -> tuple[Tensor, Tensor, Tensor]:
        return _full_svd(self._matrix)

    @property
    def spectrum(self) -> Spectrum:
        left, values, right = self._decomposed
        return Spectrum(
            values,
            lambda x: x.flatten(1) @ right.mT.to(x),
            lambda c: (c @ right.to(c)).reshape(len(c), *self.event),
            lambda y: y @ left.mT.to(y),
        )


class ChannelProjection(LinearOperator):
    """`y = M x` over the channels (the first axis of an event): grey from colour, or any mixing of bands.

    Args:
        event: (c, ...).
        matrix: shape (m, c), real; the mean of the channels where not given.
    """

    def __init__(self, event: tuple[int, ...], matrix: Float[Tensor, "m c"] | None = None):
        self.event = tuple(event)
        c = self.event[0]
        self._matrix = torch.full((1, c), 1.0 / c) if matrix is None else torch.as_tensor(matrix)
        self._matrix = self._matrix.double()
        if self._matrix.ndim != 2 or self._matrix.shape[1] != c:
            raise InputError(f"matrix: shape {tuple(self._matrix.shape)} was given; expected (m, {c})")
        self.measured = (len(self._matrix), *self.event[1:])

    def _mix(self, matrix: Tensor, x: Tensor) -> Tensor:
        return torch.einsum("mc,bc...->bm...", matrix.to(x), x)

    def forward(self, x):
        return self._mix(self._matrix, x)

    def adjoint(self, y):
        return self._mix(self._matrix.mT, y)

    @property
    def spectrum(self) -> Spectrum:
        left, values, right = _full_svd(self._matrix)
        pixels = math.prod(self.event[1:])
        return Spectrum(
            values.repeat_interleave(pixels),
            lambda x: self._mix(right, x).flatten(1),
            lambda c: self._mix(right.mT, c.reshape(len(c), *self.event)),
            lambda y: self._mix(left, y).flatten(1),
        )


def _full_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`U^T` (d, m), values (d,), `V^T` (d, d), those beyond the rank zero."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=True)
    d = matrix.shape[1]
    values, left = s.new_zeros(d), s.new_zeros(d, len(matrix))
    kept = s > 1e-12 * s.max().clamp_min(1e-300)
    values[: len(s)], left[: len(s)] = torch.where(kept, s, 0.0), u.mT[: len(s)]
    return left, values, vh
