"""Operators that act along rows and columns: `y = L x R^T`, channel by channel; super-resolution among them."""

import math
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.errors import InputError, choose
from tweed.inverse.operators.base import LinearOperator, Spectrum


class Separable(LinearOperator):
    """`y = L x R^T` for events (..., h, w).

    Its decomposition is that of the two small matrices: singular values are products of theirs.

    Args:
        event: the shape of a sample.
        rows: `L`, shape (m, h), real.
        columns: `R`, shape (n, w).

    Raises:
        InputError: shapes do not fit.
    """

    def __init__(self, event: tuple[int, ...], rows: Float[Tensor, "m h"], columns: Float[Tensor, "n w"]):
        self.event = tuple(event)
        self.rows, self.columns = rows.double(), columns.double()
        if len(event) < 2 or self.rows.shape[1:] != event[-2:-1] or self.columns.shape[1:] != event[-1:]:
            raise InputError(
                f"event, rows, columns: {self.event}, {tuple(rows.shape)}, {tuple(columns.shape)} were given; expected "
                "matrices (m, h) and (n, w) for events (..., h, w)"
            )
        self.measured = (*self.event[:-2], len(self.rows), len(self.columns))

    def _apply(self, left: Tensor, x: Tensor, right: Tensor) -> Tensor:
        left, right = left.to(x), right.to(x)
        return left @ x @ right.mT

    def forward(self, x):
        return self._apply(self.rows, x, self.columns)

    def adjoint(self, y):
        return self._apply(self.rows.mT, y, self.columns.mT)

    @cached_property
    def _decomposed(self) -> tuple[Tensor, ...]:
        parts = []
        for matrix in (self.rows, self.columns):
            u, s, vh = torch.linalg.svd(matrix, full_matrices=True)
            n = matrix.shape[1]
            # As many as the side has, those beyond the matrix's height being zero.
            values, left = s.new_zeros(n), matrix.new_zeros(n, matrix.shape[0])
            values[: len(s)], left[: len(s)] = s, u.mT[: len(s)]
            parts += [left, values, vh]
        return tuple(parts)

    @property
    def spectrum(self) -> Spectrum:
        left_u, left_s, left_v, right_u, right_s, right_v = self._decomposed
        grid = (left_s[:, None] * right_s).expand(*self.event[:-2], -1, -1)
        # Directions that are zero but for rounding are not measured.
        values = torch.where(grid > 1e-12 * grid.max(), grid, 0.0).flatten()
        return Spectrum(
            values,
            lambda x: self._apply(left_v, x, right_v).flatten(1),
            lambda c: self._apply(left_v.mT, c.reshape(len(c), *self.event), right_v.mT),
            lambda y: self._apply(left_u, y, right_u).flatten(1),
        )


class SuperResolution(Separable):
    """Low resolution: each side shrunk by `factor`, which divides it.

    Args:
        event: (..., h, w).
        factor: a whole number of at least 1.
        kernel: "average" of the factor^2 pixels, or "bicubic" (Keys' kernel with a = -1/2, widened by the factor against
            aliasing, edges reflected).
    """

    def __init__(self, event: tuple[int, ...], factor: int, kernel: Literal["average", "bicubic"] = "average"):
        choose("kernel", kernel, ("average", "bicubic"))
        if factor < 1 or len(event) < 2 or any(n % factor for n in event[-2:]):
            raise InputError(
                f"event, factor: {tuple(event)}, {factor} were given; expected a factor that divides the last two sides"
            )
        self.factor, self.kernel = factor, kernel
        make = average_matrix if kernel == "average" else bicubic_matrix
        super().__init__(event, make(event[-2], factor), make(event[-1], factor))


def average_matrix(n: int, factor: int) -> Float[Tensor, "m n"]:
    """Means of `factor` neighbours, shape (n / factor, n)."""
    return torch.eye(n // factor, dtype=torch.float64).repeat_interleave(factor, 1) / factor


def bicubic_matrix(n: int, factor: int) -> Float[Tensor, "m n"]:
    """Bicubic reduction of a line of `n` by `factor`: rows sum to 1, shape (n / factor, n)."""
    centers = (torch.arange(n // factor, dtype=torch.float64) + 0.5) * factor - 0.5
    reach = 2 * factor
    taps = torch.arange(-reach, reach + 1)
    places = centers.floor().long()[:, None] + taps
    weights = _cubic((places - centers[:, None]).abs() / factor)
    weights = weights / weights.sum(1, keepdim=True)
    return torch.zeros(n // factor, n, dtype=torch.float64).scatter_add_(1, reflected(places, n), weights)


def gaussian_matrix(n: int, std: float, truncate: float = 4.0) -> Float[Tensor, "n n"]:
    """A Gaussian blur of a line with reflected edges; `std` in pixels; rows sum to 1."""
    if not std > 0.0:
        raise InputError(f"std: {std} was given; expected a positive number of pixels")
    taps = torch.arange(-math.ceil(truncate * std), math.ceil(truncate * std) + 1)
    weights = torch.exp(-0.5 * (taps.double() / std) ** 2)
    weights = (weights / weights.sum()).expand(n, -1)
    places = torch.arange(n)[:, None] + taps
    return torch.zeros(n, n, dtype=torch.float64).scatter_add_(1, reflected(places, n), weights)


def reflected(places: Tensor, n: int) -> Tensor:
    """Places on a line continued by its mirror image, the edge repeated, as places in 0 .. n - 1."""
    turned = places % (2 * n)
    return torch.where(turned < n, turned, 2 * n - 1 - turned)


def _cubic(distance: Tensor, a: float = -0.5) -> Tensor:
    d2, d3 = distance**2, distance**3
    near = (a + 2.0) * d3 - (a + 3.0) * d2 + 1.0
    far = a * (d3 - 5.0 * d2 + 8.0 * distance - 4.0)
    return torch.where(distance <= 1.0, near, torch.where(distance < 2.0, far, 0.0))
