"""The Brownian Interval (Kidger, Foster, Li & Lyons, "Efficient and accurate gradients for neural SDEs", NeurIPS 2021):
a binary tree of the intervals that were asked for."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tweed.core import random
from tweed.errors import InputError
from tweed.solvers.differential.brownian import BrownianPath, Piece, join


class _Node:
    """An interval, the seed of the noise that splits it, and its halves."""

    __slots__ = ("end", "halves", "parent", "seed", "start")

    def __init__(self, start: float, end: float, seed: int, parent: "_Node | None"):
        self.start, self.end, self.seed, self.parent = start, end, seed, parent
        self.halves: tuple[_Node, _Node] | None = None

    def divide(self, at: float) -> "tuple[_Node, _Node]":
        left = _Node(self.start, at, random.fold(self.seed, 1), self)
        self.halves = left, _Node(at, self.end, random.fold(self.seed, 2), self)
        return self.halves


class BrownianInterval(BrownianPath):
    """Increments over any intervals, exact in law, additive to round-off, and the same whenever they are asked for again.

    What is kept is the tree (a few numbers an interval) and the increments of the `cache` nodes used last; those that
    were dropped are computed anew from their parents. A search begins where the last one ended, so a sweep in either
    direction costs a constant a step.

    The answer to a *new* time depends on the intervals asked for before, as far as the law allows. Where two paths must
    be the same whatever the order of questions, give all times at once as `times`, or take a `VirtualBrownianTree`.

    Args:
        times: times in [t0, t1] at which the tree is divided in advance, evenly: the grid of a solver, say.
        cache: how many increments to keep, at least 4.
        others: as for `BrownianPath`.

    Raises:
        InputError: what `BrownianPath` refuses; a time outside the interval; a cache smaller than 4.
    """

    def __init__(
        self,
        t0: float,
        t1: float,
        shape: Sequence[int],
        seed: int,
        *,
        times: Sequence[float] | Tensor | None = None,
        cache: int = 64,
        **options: Any,
    ):
        super().__init__(t0, t1, shape, seed, **options)
        if cache < 4:
            raise InputError(f"cache: {cache} was given; expected at least 4")
        self.cache = cache
        self._top = _Node(self.t0, self.t1, random.fold(self.seed, 1), None)
        self._last = self._top
        self._known: OrderedDict[_Node, Piece] = OrderedDict()
        if times is not None:
            self._divide(torch.as_tensor(times, dtype=torch.float64).flatten().tolist())

    def _divide(self, times: list[float]) -> None:
        cuts = sorted(set(times))
        if cuts and not (self.t0 <= cuts[0] and cuts[-1] <= self.t1):
            raise InputError(f"times: {cuts[0]} to {cuts[-1]} were given; expected times in [{self.t0}, {self.t1}]")
        cuts = [cut for cut in cuts if self.t0 < cut < self.t1]
        pending = [(self._top, 0, len(cuts))]
        while pending:
            node, low, high = pending.pop()
            if low == high:
                continue
            middle = (low + high) // 2
            left, right = node.divide(cuts[middle])
            pending += [(left, low, middle), (right, middle + 1, high)]

    def piece(self, s: float, t: float) -> Piece:
        node = self._last
        while not (node.start <= s and t <= node.end):
            assert node.parent is not None
            node = node.parent
        # The nodes that make up [s, t], from left to right.
        parts, pending = [], [node]
        while pending:
            node = pending.pop()
            if node.end <= s or t <= node.start:
                continue
            if s <= node.start and node.end <= t:
                parts.append(node)
                continue
            pending += reversed(node.halves or node.divide(_cut(node, s, t)))
        self._last = parts[-1]
        result, width = self._value(parts[0]), parts[0].end - parts[0].start
        for part in parts[1:]:
            length = part.end - part.start
            result, width = join(result, width, self._value(part), length), width + length
        return result

    def _value(self, node: _Node) -> Piece:
        way = []
        while node not in self._known:
            if node.parent is None:
                self._keep(node, self._root())
                break
            way.append(node)
            node = node.parent
        self._known.move_to_end(node)
        value = self._known[node]
        for child in reversed(way):
            parent = child.parent
            assert parent is not None
            assert parent.halves is not None
            left, right = parent.halves
            values = self.split(value, left.end - left.start, right.end - right.start, parent.seed)
            # The half that is wanted now is kept last.
            wanted = 0 if child is left else 1
            self._keep(parent.halves[1 - wanted], values[1 - wanted])
            self._keep(child, values[wanted])
            value = values[wanted]
        return value

    def _keep(self, node: _Node, value: Piece) -> None:
        self._known[node] = value
        self._known.move_to_end(node)
        if len(self._known) > self.cache:
            self._known.popitem(last=False)


def _cut(node: _Node, s: float, t: float) -> float:
    """Where to divide a leaf for a question about [s, t]: in its middle while it is much wider, so that the tree stays
    flat, and at the end of the question that lies inside otherwise."""
    middle = 0.5 * (node.start + node.end)
    if node.end - node.start > 4.0 * (t - s) and node.start < middle < node.end:
        return middle
    return s if node.start < s else t
