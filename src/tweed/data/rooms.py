"""Simulated rooms: the response between two points of a box, by the method of image sources.

Allen & Berkley, "Image method for efficiently simulating small-room acoustics" (JASA 1979). Each wall mirrors the source;
an image that is mirrored k times arrives with k factors of the wall's reflection and a spherical spreading 1 / distance.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tweed.errors import InputError

SPEED_OF_SOUND = 343.0  # metres a second, at 20 degrees
_TAPS = 40  # half width of the kernel that places an arrival between samples


def sabine_reflection(size: Sequence[float], reverberation: float) -> float:
    """The reflection of the walls of a box at which sound falls by 60 dB in `reverberation` seconds, by Sabine's formula.

    Raises:
        InputError: not even fully absorbing walls would let it fall so fast.
    """
    x, y, z = size
    area = 2.0 * (x * y + y * z + z * x)
    absorption = 24.0 * math.log(10.0) * x * y * z / (SPEED_OF_SOUND * area * reverberation)
    if not 0.0 < absorption < 1.0:
        raise InputError(f"reverberation: {reverberation} s was given; the walls would absorb {absorption:.3g} of 1")
    return math.sqrt(1.0 - absorption)


def room_response(
    size: Sequence[float],
    source: Sequence[float],
    microphone: Sequence[float],
    reflection: float,
    *,
    rate: int = 16000,
    length: int = 4800,
) -> Float[Tensor, " length"]:
    """The response from `source` to `microphone`, such that the direct sound is 1 at sample 0.

    A room so described keeps the time and the level of the direct sound: what it adds is reverberation alone. Arrivals
    between samples are placed by a windowed sinc.

    Args:
        size, source, microphone: in metres, (x, y, z); both points inside the box.
        reflection: of the pressure by every wall, in [0, 1).
        rate: in hertz.
        length: samples; later arrivals are left out.

    Raises:
        InputError: a point lies outside the box or both are the same, or another argument is out of its range.
    """
    box, here, there = (np.asarray(v, dtype=np.float64) for v in (size, source, microphone))
    if any(v.shape != (3,) for v in (box, here, there)):
        raise InputError("size, source, microphone: expected three lengths each, in metres")
    if not ((here > 0) & (here < box) & (there > 0) & (there < box)).all() or np.array_equal(here, there):
        raise InputError(f"source, microphone: {source}, {microphone} were given; expected two points inside {size}")
    if not 0.0 <= reflection < 1.0 or length < 1 or rate <= 0:
        raise InputError(
            f"reflection, length, rate: {reflection}, {length}, {rate} were given; expected [0, 1), >= 1, > 0"
        )
    direct = float(np.linalg.norm(here - there))
    reach = SPEED_OF_SOUND * length / rate + direct
    # Along an axis of length L the images lie at 2 n L + s (mirrored |2 n| times) and at 2 n L - s (|2 n - 1| times).
    offsets, bounces = [], []
    for side, s, m in zip(box, here, there, strict=True):
        n = np.arange(-math.ceil(reach / (2 * side)) - 1, math.ceil(reach / (2 * side)) + 2)
        offsets.append(np.concatenate((2 * n * side + s, 2 * n * side - s)) - m)
        bounces.append(np.concatenate((np.abs(2 * n), np.abs(2 * n - 1))))
    x, y, z = np.meshgrid(*(o**2 for o in offsets), indexing="ij", sparse=True)
    distance = np.sqrt(x + y + z)
    across, along, up = np.meshgrid(*bounces, indexing="ij", sparse=True)
    order = across + along + up
    near = distance < reach
    distance, order = distance[near], order[near]
    gain = direct / distance * reflection**order
    place = (distance - direct) * (rate / SPEED_OF_SOUND)
    response = np.zeros(length + 2 * _TAPS + 1)
    whole = np.round(place).astype(np.int64)
    for tap in range(-_TAPS, _TAPS + 1):
        u = tap - (place - whole)
        kernel = np.sinc(u) * np.cos(0.5 * np.pi * np.clip(u / (_TAPS + 1), -1.0, 1.0)) ** 2
        at = whole + tap + _TAPS
        keep = at < len(response)
        response += np.bincount(at[keep], gain[keep] * kernel[keep], minlength=len(response))
    return torch.from_numpy(response[_TAPS : _TAPS + length]).float()


def random_room(random: np.random.Generator, rate: int = 16000, reverberation: tuple[float, float] = (0.2, 0.6)):
    """The response of a box of 3 to 8 m a side and 2.5 to 4 m height, walls for a reverberation time in this range (s)."""
    size = random.uniform((3.0, 3.0, 2.5), (8.0, 8.0, 4.0))
    reflection = sabine_reflection(tuple(size), random.uniform(*reverberation))
    source, microphone = (0.4 + (size - 0.8) * random.uniform(size=3) for _ in range(2))
    points = (size.tolist(), source.tolist(), microphone.tolist())
    return room_response(*points, reflection, rate=rate, length=int(0.3 * rate))
