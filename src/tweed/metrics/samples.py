"""What the metrics share: samples as rows in float64, and distances between them in blocks of bounded memory."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from tweed.errors import InputError

BLOCK = 1 << 22  # distances held at once, 32 MiB in float64


def rows(name: str, x: Shaped[Tensor, "n *event"], least: int = 1) -> Float[Tensor, "n d"]:
    """`x` flattened to (n, d) in float64; shape (n,) counts as n numbers.

    Raises:
        InputError: fewer than `least` samples, samples without elements, or values that are not finite.
    """
    if x.ndim == 0 or x.is_complex():
        raise InputError(f"{name}: {x.dtype} of shape {tuple(x.shape)} was given; expected real samples, (n, *event)")
    if x.shape[0] < least or x[0].numel() == 0:
        raise InputError(
            f"{name}: shape {tuple(x.shape)} was given; expected at least {least} sample{'s' * (least > 1)} (n, *event)"
        )
    flat = x.detach().reshape(x.shape[0], -1).double()
    if not bool(flat.isfinite().all()):
        raise InputError(f"{name}: values that are not finite were given; expected finite samples")
    return flat


def pair(
    x: Shaped[Tensor, "n *event"], y: Shaped[Tensor, "m *event"], least: int = 1, names: tuple[str, str] = ("x", "y")
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
    """Two sample sets as rows.

    Raises:
        InputError: as for `rows`, or samples of different shapes.
    """
    if x.shape[1:] != y.shape[1:]:
        expected = f"{tuple(x.shape[1:])} like {names[0]}"
        raise InputError(f"{names[1]}: samples of shape {tuple(y.shape[1:])} were given; expected {expected}")
    return rows(names[0], x, least), rows(names[1], y, least)


def distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Euclidean distances, without the cancellation of the inner-product form in the dimensions where that is cheap."""
    exact = x.shape[1] <= 128
    return torch.cdist(x, y, compute_mode=f"{'donot_' if exact else ''}use_mm_for_euclid_dist")


def blocks(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], chunk: int | None = None
) -> Iterator[tuple[int, Float[Tensor, "c m"]]]:
    """The rows of the distance matrix in order, `chunk` at a time, each with the number of its first row.

    Raises:
        InputError: `chunk` below 1.
    """
    if chunk is not None and chunk < 1:
        raise InputError(f"chunk: {chunk} was given; expected at least 1 row")
    size = chunk or max(1, BLOCK // max(1, y.shape[0]))
    # A common centre keeps the inner-product form accurate for samples far from 0.
    center = y.mean(0)
    x, y = x - center, y - center
    for start in range(0, x.shape[0], size):
        yield start, distances(x[start : start + size], y)


def mean_over_pairs(x: Tensor, y: Tensor, function, chunk: int | None = None, distinct: bool = False) -> float:
    """Mean of `function(distance)` over all pairs of a row of `x` and one of `y`.

    With `distinct` (for `y` being `x`) a sample is not paired with itself.
    """
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for start, d in blocks(x, y, chunk):
        value = function(d)
        total += value.sum()
        if distinct:
            total -= value.diagonal(start).sum()
    return float(total) / (x.shape[0] * (y.shape[0] - distinct))
