"""How much a computation keeps for its backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import finalize

import torch
from torch import Tensor


@dataclass
class Meter:
    """Bytes held by autograd graphs: `now`, and `peak`, the most there ever were.

    A storage that several graph nodes keep counts once. Parameters and other leaves that live anyway are left out.
    """

    now: int = 0
    peak: int = 0
    _counts: dict[int, int] = field(default_factory=dict, repr=False)

    def _keep(self, address: int, size: int) -> None:
        if not self._counts.get(address):
            self.now += size
            self.peak = max(self.peak, self.now)
        self._counts[address] = self._counts.get(address, 0) + 1

    def _release(self, address: int, size: int) -> None:
        self._counts[address] -= 1
        if not self._counts[address]:
            del self._counts[address]
            self.now -= size


class _Held:
    """A tensor that a graph keeps; the meter hears of it when the graph lets it go."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor):
        self.tensor = tensor


@contextmanager
def saved_bytes() -> Iterator[Meter]:
    """Measure what graphs built inside keep for the backward pass, forward and backward.

        with saved_bytes() as meter:
            odeint(f, y0, ts, adjoint="checkpoint").sum().backward()
        meter.peak

    Counts the tensors saved by the operations of torch (by `saved_tensors_hooks`), those of graphs that an adjoint makes
    on the way back included.
    """
    meter = Meter()

    def pack(tensor: Tensor) -> Any:
        if tensor.is_leaf and tensor.requires_grad:
            return tensor
        # Detached: an operation's own output would hold its node, and the node this.
        held, storage = _Held(tensor.detach()), tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        meter._keep(address, size)
        finalize(held, meter._release, address, size)
        return held

    def unpack(kept: Any) -> Tensor:
        return kept.tensor if isinstance(kept, _Held) else kept

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield meter
