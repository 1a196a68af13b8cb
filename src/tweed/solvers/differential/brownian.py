"""Brownian motion as a function of time: the same path whatever is asked, in whatever order, however often.

Everything is addressed by (seed, sample, place in a binary tree) through `tweed.core.random`, so sample i has the same path
in any batch and on any device. An interval that is split at a fraction l / h (q = h - l) is given to its halves by the
Brownian bridge, for the increment W and the space-time Levy area

    H_{s,u} = 1 / (u - s) Int_s^u (W_r - W_s - (r - s) / (u - s) W_{s,u}) dr ~ N(0, (u - s) / 12), independent of W_{s,u}

(Foster, Lyons & Oberhauser, SIAM J. Numer. Anal. 2020; Jelincic, Foster & Kidger, "Single-seed generation of Brownian paths
and integrals", 2024). Numbers are computed in float64 and rounded at the end.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import random
from tweed.errors import IncompatibleError, InputError


class Piece(NamedTuple):
    """What a path does over an interval: increment `w`, and Levy area `area` where it is known."""

    w: Tensor
    area: Tensor | None


class BrownianPath(ABC):
    """A Brownian motion on [t0, t1] with independent entries, `shape` = (batch, channels ...).

    Attributes:
        t0, t1: the ends, t0 < t1.
        shape: of an increment; sample `index + i` of the seed is row i.
        area: whether the space-time Levy area may be asked for.
    """

    def __init__(
        self,
        t0: float,
        t1: float,
        shape: Sequence[int],
        seed: int,
        *,
        index: int = 0,
        area: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ):
        """
        Args:
            t0, t1: the interval.
            shape: (batch, channels ...); a batch may be empty.
            seed: any integer.
            index: the number of the first sample.
            area: make the Levy areas too (another path than without them, equally distributed).
            dtype, device: of the increments.

        Raises:
            InputError: the interval is empty, not finite or falling; `shape` has no batch; `dtype` is not a float.
        """
        if not (math.isfinite(t0) and math.isfinite(t1) and t0 < t1):
            raise InputError(f"t0, t1: {t0}, {t1} were given; expected finite times with t0 < t1")
        if len(shape) == 0:
            raise InputError("shape: () was given; expected a batch first, (batch, ...)")
        if not dtype.is_floating_point:
            raise InputError(f"dtype: {dtype} was given; expected a floating type")
        self.t0, self.t1, self.shape, self.seed = float(t0), float(t1), tuple(int(n) for n in shape), int(seed)
        self.index, self.area, self.dtype, self.device = int(index), bool(area), dtype, device

    @abstractmethod
    def piece(self, s: float, t: float) -> Piece:
        """Over [s, t], t0 <= s < t <= t1, in float64."""

    def increment(self, s: float, t: float) -> Float[Tensor, "b *m"]:
        """`W_t - W_s`; for s > t its negative, exactly.

        Raises:
            InputError: a time outside [t0, t1].
        """
        return self._ask(s, t).w.to(self.dtype)

    def increment_and_area(self, s: float, t: float) -> tuple[Float[Tensor, "b *m"], Float[Tensor, "b *m"]]:
        """`W_t - W_s` and `H_{s,t}`; backwards in time W changes its sign and H does not.

        Raises:
            InputError: a time outside [t0, t1].
            IncompatibleError: the path was made without areas.
        """
        if not self.area:
            raise IncompatibleError("area: the path was made with area=False, and the Levy area was asked for")
        w, area = self._ask(s, t)
        assert area is not None
        return w.to(self.dtype), area.to(self.dtype)

    def _ask(self, s: float, t: float) -> Piece:
        s, t = float(s), float(t)
        for name, value in (("s", s), ("t", t)):
            if not self.t0 <= value <= self.t1:
                raise InputError(f"{name}: {value} was given; expected a time in [{self.t0}, {self.t1}]")
        if s == t:
            zero = torch.zeros(self.shape, dtype=torch.float64, device=self.device)
            return Piece(zero, zero.clone() if self.area else None)
        if s < t:
            return self.piece(s, t)
        w, area = self.piece(t, s)
        return Piece(-w, area)

    def _normals(self, seed: int, draw: int) -> Tensor:
        return random.normal(self.shape, seed, index=self.index, draw=draw, dtype=torch.float64, device=self.device)

    def _root(self) -> Piece:
        h = self.t1 - self.t0
        seed = random.fold(self.seed, 0)
        area = self._normals(seed, 1) * math.sqrt(h / 12.0) if self.area else None
        return Piece(self._normals(seed, 0) * math.sqrt(h), area)

    def split(self, piece: Piece, l: float, q: float, seed: int) -> tuple[Piece, Piece]:
        """The two halves, of lengths l and q, of a piece; the noise is that of `seed`."""
        h, (w, area) = l + q, piece
        x = self._normals(seed, 0)
        if area is None:
            left = w * (l / h) + x * math.sqrt(l * q / h)
            return Piece(left, None), Piece(w - left, None)
        y = self._normals(seed, 1)
        v = 0.5 * math.sqrt(l * q / (l**3 + q**3))
        a, b, c = v * l * l / h, v * q * q / h, v / math.sqrt(3.0)
        left = w * (l / h) + area * (6.0 * l * q / h**2) + x * (2.0 * (a * l + b * q) / h)
        areas = area * (l / h) ** 2 - a * x + (c * q) * y, area * (q / h) ** 2 - b * x - (c * l) * y
        return Piece(left, areas[0]), Piece(w - left, areas[1])


def join(left: Piece, l: float, right: Piece, q: float) -> Piece:
    """The piece over two neighbouring intervals of lengths l and q."""
    w = left.w + right.w
    if left.area is None or right.area is None:
        return Piece(w, None)
    h = l + q
    # Int (W_r - W_s) dr is h (W / 2 + H) on each half, and W_left more on the right one.
    area = (l * left.area + q * right.area + 0.5 * (q * left.w - l * right.w)) / h
    return Piece(w, area)
