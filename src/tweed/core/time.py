"""Times and how they broadcast against states."""

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.errors import InputError

Time = float | Float[Tensor, "*time"]
"""A time in [0, 1]: a number, or a tensor that broadcasts against a state from the left: shape (), (b,), (b, l) ..."""


def as_time(t: Time) -> Float[Tensor, "*time"]:
    """`t` as a float64 tensor; coefficients are always computed in float64.

    Raises:
        InputError: a number outside [0, 1] (tensors are not inspected, which would wait for the device).
    """
    if isinstance(t, Tensor):
        return t.to(torch.float64)
    if not 0.0 <= t <= 1.0:
        raise InputError(f"t: {t} was given; expected a time in [0, 1] (0 is data, 1 is noise)")
    return torch.tensor(float(t), dtype=torch.float64)


def left(coefficient: Float[Tensor, "*time"], x: Tensor) -> Tensor:
    """`coefficient` with trailing ones, so that it broadcasts against `x` from the left, in the real type of `x`.

    Raises:
        InputError: its shape is neither () nor a leading part of `x.shape` (1 stands for any length).
    """
    shape = coefficient.shape
    fits = len(shape) <= x.ndim and all(n in (1, m) for n, m in zip(shape, x.shape, strict=False))
    if not fits:
        raise InputError(
            f"t: shape {tuple(shape)} was given for a state of shape {tuple(x.shape)}; expected (), "
            f"({x.shape[0] if x.ndim else 1},) or a longer leading part of the state's shape"
        )
    dtype = x.dtype.to_real() if x.dtype.is_complex else x.dtype
    if not dtype.is_floating_point:
        dtype = torch.float32
    return coefficient.to(device=x.device, dtype=dtype).reshape(shape + (1,) * (x.ndim - len(shape)))


def working_dtype(x: Tensor) -> torch.dtype:
    """The type that states are kept in: that of `x`, but float32 or better."""
    dtype = x.dtype
    return dtype if dtype in _WORKING else torch.promote_types(dtype, torch.float32)


_WORKING = frozenset((torch.float32, torch.float64, torch.complex64, torch.complex128))


def invert_increasing(function, value: Float[Tensor, "*n"], low: float = 0.0, high: float = 1.0) -> Float[Tensor, "*n"]:
    """The argument in [low, high] at which an increasing `function` takes `value`, by bisection to the last bit.

    For schedules whose inverse has no closed form; values beyond the ends give the ends.
    """
    a, b = torch.full_like(value, low), torch.full_like(value, high)
    for _ in range(64):
        middle = (a + b) / 2
        below = function(middle) < value
        a, b = torch.where(below, middle, a), torch.where(below, b, middle)
    a = torch.where(value <= function(torch.full_like(value, low)), low, a)
    return torch.where(value >= function(torch.full_like(value, high)), high, a)


_ZERO = {dtype: torch.zeros((), dtype=dtype) for dtype in _WORKING}


def times_number(x: Tensor, number: float) -> Tensor:
    """`x * number` for a state, at half the cost: an addition takes a Python number without wrapping it as a tensor."""
    zero = _ZERO.get(x.dtype)
    return x * number if zero is None else torch.add(zero, x, alpha=number)
