"""Randomness as a pure function: every number is addressed by (seed, index, draw, element).

Sample `index + i` under `seed` is the same whatever the batch size, the device, the number of processes or the order in
which samples are made, because nothing has a state: each 64-bit word is SplitMix64 (Steele, Lea & Flood, "Fast
splittable pseudorandom number generators", OOPSLA 2014) of a counter, whose start is a hash of (seed, index, draw).
Normals come from Box-Muller in float64 and are rounded to the wanted type at the end.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tweed.errors import InputError

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def _signed(word: int) -> int:
    word &= _MASK
    return word - (1 << 64) if word >> 63 else word


def _shift(z: Tensor, bits: int) -> Tensor:
    # A logical right shift: torch shifts int64 arithmetically.
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _signed(_MIX_1)
    z = (z ^ _shift(z, 27)) * _signed(_MIX_2)
    return z ^ _shift(z, 31)


def _mix_int(z: int) -> int:
    z &= _MASK
    z = ((z ^ (z >> 30)) * _MIX_1) & _MASK
    z = ((z ^ (z >> 27)) * _MIX_2) & _MASK
    return z ^ (z >> 31)


def fold(seed: int, *words: int) -> int:
    """A new 63-bit seed from `seed` and any further integers (modulo 2^64); other words give an unrelated seed."""
    state = _mix_int(seed + _GOLDEN)
    for word in words:
        # Not symmetric: (3, 4) is not (4, 3), and (3, 3) is not (4, 4).
        state = _mix_int(state * _MIX_1 + _mix_int(word + _GOLDEN))
    return state >> 1


def _words(batch: int, count: int, seed: int, index: int | Int[Tensor, " b"], draw: int, device) -> Int[Tensor, "b n"]:
    base = _signed(_mix_int(fold(seed, draw) + _GOLDEN))
    if isinstance(index, Tensor):
        if index.shape != (batch,):
            raise InputError(f"index: shape {tuple(index.shape)} was given; expected one index a sample, ({batch},)")
        rows = index.to(device=device, dtype=torch.int64)
    else:
        rows = torch.arange(index, index + batch, device=device, dtype=torch.int64)
    start = _mix(_mix(rows + _signed(_GOLDEN)) ^ base)
    steps = torch.arange(1, count + 1, device=device, dtype=torch.int64) * _signed(_GOLDEN)
    return _mix(start[:, None] + steps)


def _split(shape: Sequence[int]) -> tuple[int, int]:
    if len(shape) == 0:
        raise InputError("shape: () was given; expected at least a batch dimension, (batch, ...)")
    return int(shape[0]), math.prod(int(n) for n in shape[1:])


def uniform(
    shape: Sequence[int],
    seed: int,
    *,
    index: int | Int[Tensor, " b"] = 0,
    draw: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Float[Tensor, "b ..."]:
    """Uniform numbers in the open interval (0, 1), shape `shape` = (batch, ...); 0 and 1 are not among them.

    Args:
        seed: any integer, modulo 2^64; 0 is a seed like the others.
        index: the number of the first sample (the rows are `index, index + 1, ...`), or the number of each, shape (b,).
        draw: which draw of these samples this is (a step of a sampler, say).
    """
    batch, width = _split(shape)
    z = _shift(_words(batch, width, seed, index, draw, device), 12)
    # 52 bits and a half are exact in float64; narrower types would round the largest to 1.
    limits = torch.finfo(dtype)
    u = ((z.double() + 0.5) * 2.0**-52).to(dtype).clamp_(limits.tiny, 1.0 - 0.5 * limits.eps)
    return u.reshape(tuple(shape))


def normal(
    shape: Sequence[int],
    seed: int,
    *,
    index: int | Int[Tensor, " b"] = 0,
    draw: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Float[Tensor, "b ..."]:
    """Standard normal numbers, shape `shape` = (batch, ...); arguments as for `uniform`.

    A complex `dtype` gives circular complex normals with E|z|^2 = 1 (real and imaginary variance 1/2 each).
    """
    if dtype.is_complex:
        parts = normal((*shape, 2), seed, index=index, draw=draw, dtype=dtype.to_real(), device=device)
        return torch.view_as_complex(parts * math.sqrt(0.5))
    batch, width = _split(shape)
    half = (width + 1) // 2
    z = _words(batch, half, seed, index, draw, device)
    radius = ((_shift(z, 32).double() + 0.5) * 2.0**-32).log_().mul_(-2.0).sqrt_()
    angle = ((z & 0xFFFFFFFF).double() + 0.5) * (2.0 * math.pi * 2.0**-32)
    pairs = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)
    return pairs.reshape(batch, 2 * half)[:, :width].to(dtype).reshape(tuple(shape))


def rademacher(
    shape: Sequence[int],
    seed: int,
    *,
    index: int | Int[Tensor, " b"] = 0,
    draw: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Float[Tensor, "b ..."]:
    """Signs, -1 or +1 with equal probability, shape `shape` = (batch, ...); arguments as for `uniform`."""
    batch, width = _split(shape)
    z = _words(batch, width, seed, index, draw, device)
    return (1.0 - 2.0 * _shift(z, 63).to(dtype)).reshape(tuple(shape))


def generator(seed: int, *words: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh torch generator for `(seed, *words)`, for code that needs torch's own distributions."""
    return torch.Generator(device=device).manual_seed(fold(seed, *words))
