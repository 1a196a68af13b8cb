"""Keys and values that attention has computed already, kept for the next call."""

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.errors import InputError


class KVCache:
    """The keys and values of every layer at all positions of a sequence, written in place.

    A call of the network evaluates some positions, `first ... first + n - 1`: it writes theirs, and reads those of all
    others as they were left. So one cache serves a causal model, which extends it; a bidirectional one whose prefix is
    frozen, which writes everything behind the prefix; and one whose prefix and suffix are, which writes a block. Keys hold
    their rotation: a cache of one rotary base is useless to another.

    It is made for a run, and mutable: what a run remembers.

    Args:
        layers, batch, heads, capacity, head_dim: sizes; `heads` are those of keys and values.
        dtype, device: of the network.
        rope_base: of the rotary positions that its keys hold; the network refuses a cache of another base than its own.

    Attributes:
        length: how many positions from the first one hold something.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: int,
        capacity: int,
        head_dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        rope_base: float | None = None,
    ):
        shape = (layers, batch, heads, capacity, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.rope_base = rope_base
        self.length = 0

    @property
    def capacity(self) -> int:
        """The number of positions that it has room for."""
        return self.keys.shape[3]

    @property
    def batch(self) -> int:
        """The number of sequences."""
        return self.keys.shape[1]

    def check(self, first: int, count: int, batch: int) -> None:
        """Raise an `InputError` where `count` positions from `first` on cannot be written."""
        if batch != self.batch:
            raise InputError(f"cache: it was made for {self.batch} sequences; {batch} were given")
        if first > self.length:
            raise InputError(f"first: {first} was given; the cache holds {self.length} positions, and would have a gap")
        if first + count > self.capacity:
            raise InputError(f"tokens: {first + count} positions were given; the cache has room for {self.capacity}")

    def write(
        self, layer: int, first: int, keys: Float[Tensor, "b h n d"], values: Float[Tensor, "b h n d"], extent: int
    ) -> tuple[Float[Tensor, "b h extent d"], Float[Tensor, "b h extent d"]]:
        """Writes those of one layer from position `first` on, and gives the first `extent` of all."""
        last = first + keys.shape[2]
        self.keys[layer, :, :, first:last] = keys
        self.values[layer, :, :, first:last] = values
        return self.keys[layer, :, :, :extent], self.values[layer, :, :, :extent]

    def crop(self, length: int) -> None:
        """Forgets all positions from `length` on, as when tokens there were taken back.

        Raises:
            InputError: `length` is negative.
        """
        if length < 0:
            raise InputError(f"length: {length} was given; expected 0 or more")
        self.length = min(self.length, length)
