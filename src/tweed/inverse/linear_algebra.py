"""What iterative reconstruction is made of: conjugate gradients, soft thresholding, differences along an axis."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Map = Callable[[Tensor], Tensor]


def conjugate_gradient(
    normal: Map,
    b: Float[Tensor, "b *event"],
    *,
    x: Float[Tensor, "b *event"] | None = None,
    iterations: int = 50,
    joint: bool = False,
) -> Float[Tensor, "b *event"]:
    """`iterations` steps of conjugate gradients on `normal(x) = b`, from `x` (zero where not given).

    Each sample of the batch is a system of its own, unless `joint` (a volume whose slices are the batch, say). A system
    that is solved stays as it is; no value is read from the device.

    Args:
        normal: a symmetric positive semi-definite map of a batch.
    """
    solution = torch.zeros_like(b) if x is None else x
    residual = b - normal(solution) if x is not None else b
    direction, square = residual, _square(residual, joint)
    for _ in range(iterations):
        image = normal(direction)
        curvature = _product(direction, image, joint)
        rate = torch.where(curvature > 0.0, square / curvature, 0.0)
        solution = solution + rate * direction
        residual = residual - rate * image
        smaller = _square(residual, joint)
        direction = residual + torch.where(square > 0.0, smaller / square, 0.0) * direction
        square = smaller
    return solution


def _product(a: Tensor, b: Tensor, joint: bool) -> Tensor:
    """The real inner product, shaped to multiply the batch."""
    terms = (a * b.conj()).real if a.is_complex() else a * b
    return terms.sum() if joint else terms.flatten(1).sum(1).reshape(-1, *(1,) * (a.ndim - 1))


def _square(a: Tensor, joint: bool) -> Tensor:
    return _product(a, a, joint)


def soft_threshold(x: Float[Tensor, "*n"], threshold: float) -> Float[Tensor, "*n"]:
    """`sign(x) max(|x| - threshold, 0)`, the proximal map of `threshold |x|`; complex numbers keep their phase."""
    if x.is_complex():
        return x * (1.0 - threshold / x.abs().clamp_min(1e-300)).clamp_min(0.0)
    return x - x.clamp(-threshold, threshold)


Boundary = Literal["neumann", "periodic"]


def difference(x: Float[Tensor, "*n"], axis: int, boundary: Boundary = "neumann") -> Float[Tensor, "*n"]:
    """`x[k + 1] - x[k]` along an axis; the last one is 0 ("neumann") or `x[0] - x[-1]` ("periodic")."""
    result = x.roll(-1, axis) - x
    if boundary == "neumann":
        result.select(axis, -1).zero_()
    return result


def difference_adjoint(d: Float[Tensor, "*n"], axis: int, boundary: Boundary = "neumann") -> Float[Tensor, "*n"]:
    """The adjoint of `difference`."""
    if boundary == "neumann":
        d = d.clone()
        d.select(axis, -1).zero_()
    return d.roll(1, axis) - d
