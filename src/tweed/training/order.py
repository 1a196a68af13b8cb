"""The order in which samples are seen: a pure function of (seed, position)."""

from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from tweed.core import random
from tweed.errors import InputError

_ORDER = 0x70  # the stream of a seed that the order of the data is drawn from


@lru_cache(maxsize=3)
def _epoch(length: int, seed: int, epoch: int) -> Int[Tensor, " n"]:
    return torch.randperm(length, generator=random.generator(seed, _ORDER, epoch))


def indices(length: int, seed: int, first: int, count: int) -> Int[Tensor, " count"]:
    """The data indices at positions `first ... first + count - 1` of a run: one shuffle of the data after another.

    Each epoch is a permutation of its own, and a batch may lie across two. Nothing depends on the size of batches.

    Raises:
        InputError: there are no data.
    """
    if length < 1:
        raise InputError(f"data: {length} samples were given; expected at least one")
    parts = []
    while count > 0:
        epoch, place = divmod(first, length)
        part = _epoch(length, seed, epoch)[place : place + count]
        parts.append(part)
        first, count = first + len(part), count - len(part)
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)
