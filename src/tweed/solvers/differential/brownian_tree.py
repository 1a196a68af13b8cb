"""The virtual Brownian tree (Li, Wong, Chen & Duvenaud, "Scalable gradients for stochastic differential equations",
AISTATS 2020): no tree is kept, every value is found by bisection."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

from tweed.core import random
from tweed.errors import InputError
from tweed.solvers.differential.brownian import BrownianPath, Piece, join


class _Cell(NamedTuple):
    """An interval, the seed of the noise that splits it, what the path does over it, and over all before it."""

    start: float
    end: float
    seed: int
    piece: Piece
    before: Piece | None


class VirtualBrownianTree(BrownianPath):
    """The path at any time, by bisection of [t0, t1] down to cells of width `tol` and one bridge inside the last.

    A pure function of the seed: neither order nor history of the questions matters. A value costs
    `log2((t1 - t0) / tol)` splits, of which a neighbour's shares most, and as much is remembered. Each value has its exact
    law; two values inside the same cell are not jointly exact, so `tol` should be at most half the smallest step.

    Args:
        tol: the width of a cell, positive; at most half the smallest step.
        others: as for `BrownianPath`.

    Raises:
        InputError: what `BrownianPath` refuses; `tol` not in (0, t1 - t0], or finer than 2^-50 of it.
    """

    def __init__(self, t0: float, t1: float, shape: Sequence[int], seed: int, *, tol: float, **options: Any):
        super().__init__(t0, t1, shape, seed, **options)
        width = self.t1 - self.t0
        if not (width * 2.0**-50 <= tol <= width):
            raise InputError(f"tol: {tol} was given; expected a width in [{width * 2.0**-50:.1e}, {width}]")
        self.depth = math.ceil(math.log2(width / tol))
        # The way to the cell of the last question, which shares most of the next one's; and the last values, since a sweep
        # asks for each time twice. Both only save work.
        self._way: list[_Cell] = []
        self._recent: OrderedDict[float, Piece] = OrderedDict()

    def piece(self, s: float, t: float) -> Piece:
        before, after = self._until(s), self._until(t)
        assert after is not None
        if before is None:
            return after
        w = after.w - before.w
        if before.area is None or after.area is None:
            return Piece(w, None)
        # Integrals of W from t0: length (W / 2 + H).
        first, second = s - self.t0, t - self.t0
        integral = second * (0.5 * after.w + after.area) - first * (0.5 * before.w + before.area)
        h = t - s
        return Piece(w, integral / h - before.w - 0.5 * w)

    def _until(self, r: float) -> Piece | None:
        """Over [t0, r]; None where that is empty."""
        if r == self.t0:
            return None
        if r == self.t1:
            return self._way[0].piece if self._way else self._root()
        if r in self._recent:
            self._recent.move_to_end(r)
            return self._recent[r]
        cell = self._descend(r)
        before = cell.before
        if r > cell.start:
            left, _ = self.split(cell.piece, r - cell.start, cell.end - r, cell.seed)
            before = _extended(before, cell.start - self.t0, left, r - cell.start)
        assert before is not None
        self._recent[r] = before
        if len(self._recent) > 4:
            self._recent.popitem(last=False)
        return before

    def _descend(self, r: float) -> "_Cell":
        """The cell of the finest level whose half-open interval holds r; the way to it starts from the last one."""
        way = self._way or [_Cell(self.t0, self.t1, random.fold(self.seed, 1), self._root(), None)]
        while not way[-1].start <= r < way[-1].end:
            way.pop()
        for _ in range(len(way) - 1, self.depth):
            a, b, seed, piece, before = way[-1]
            cut = 0.5 * (a + b)
            left, right = self.split(piece, cut - a, b - cut, seed)
            if r < cut:
                way.append(_Cell(a, cut, random.fold(seed, 1), left, before))
            else:
                before = _extended(before, a - self.t0, left, cut - a)
                way.append(_Cell(cut, b, random.fold(seed, 2), right, before))
        self._way = way
        return way[-1]


def _extended(before: Piece | None, width: float, piece: Piece, length: float) -> Piece:
    return piece if before is None else join(before, width, piece, length)
