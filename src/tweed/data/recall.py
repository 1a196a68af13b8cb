"""Recall as data: pairs of a key and a value in a haystack of noise, asked for at its end.

What retrieval from a long context is measured by, made small: "passkey" and "needle in a haystack" tests (Mohtashami & Jaggi,
2023; Kamradt, 2023), and the associative recall of Arora et al., "Zoology" (2023).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tweed.core import random
from tweed.data.tokens import Tokens
from tweed.errors import InputError


class Recalled(NamedTuple):
    """Sequences with questions.

    Attributes:
        x: whole sequences, answers and all.
        answers: which positions are answers, in the order of the questions.
        needles: which positions they are to be copied from.
    """

    x: Int[Tensor, "n length"]
    answers: Int[Tensor, "n questions"]
    needles: Int[Tensor, "n questions"]

    @property
    def distance(self) -> Int[Tensor, "n questions"]:
        """From each answer back to its needle."""
        return self.answers - self.needles

    @property
    def fixed(self) -> Bool[Tensor, "n length"]:
        """All tokens but the answers."""
        return torch.ones_like(self.x, dtype=torch.bool).scatter(1, self.answers, False)

    def asked(self, mask: int) -> Int[Tensor, "n length"]:
        """The sequences with `mask` in place of the answers."""
        return self.x.scatter(1, self.answers, mask)

    def data(self) -> Tokens:
        """The sequences as a data set whose answers alone are masked and scored."""
        return Tokens(self.x, fixed=self.fixed)


@dataclass(frozen=True)
class KeyValueRecall:
    """Random sequences `... k1 v1 ... k2 v2 ... | k2 v2 k1 v1`: noise with pairs in it, and behind it each key again, in another
    order, with its value as the answer.

    Keys of a sequence differ; values are any. The tokens are `0 ... keys - 1`, then the values, then the noise; `size` is the
    mask. Decoys are values in the haystack with no key before them. So an answer is found by what stands before it alone, and
    in two steps of attention: one to the token before, whose offset is exact, and one to whatever has the same key before it,
    anywhere. With a single pair and no decoys one step will do, to the only value there is.

    Args:
        keys, values, noise: how many tokens of each sort.
        pairs, decoys: in a sequence.

    Raises:
        InputError: a count is not positive (none below 0 for `decoys`), or there are more pairs than keys.
    """

    keys: int = 8
    values: int = 16
    noise: int = 16
    pairs: int = 4
    decoys: int = 0

    def __post_init__(self):
        for name, least in (("keys", 1), ("values", 1), ("noise", 1), ("pairs", 1), ("decoys", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: {getattr(self, name)} was given; expected at least {least}")
        if self.pairs > self.keys:
            raise InputError(f"pairs: {self.pairs} was given; expected at most the {self.keys} keys, which differ")

    @property
    def size(self) -> int:
        """The number of tokens, the mask not among them."""
        return self.keys + self.values + self.noise

    def sample(self, n: int, length: int, seed: int = 0, *, depth: float | None = None) -> Recalled:
        """Independent sequences; sequence i is the same whatever n.

        Args:
            length: of the whole, questions included.
            depth: where in the haystack the pair of the first question stands, from 0, its beginning, to 1, its end;
                anywhere by default. The others stand anywhere else.

        Raises:
            InputError: the pairs do not fit, or `depth` is not in [0, 1].
        """
        room = (length - 2 * self.pairs - 1) // 2  # of places for two tokens; one token is left over, for their parity
        taken = self.pairs + self.decoys
        if room < taken:
            raise InputError(
                f"length: {length} was given; expected at least {2 * (taken + self.pairs) + 1}, for {self.pairs} pairs, their "
                f"questions and {self.decoys} decoys"
            )
        if depth is not None and not 0.0 <= depth <= 1.0:
            raise InputError(f"depth: {depth} was given; expected a share in [0, 1]")
        x = self.keys + self.values + self._drawn(n, length, self.noise, seed, 0)
        places = self._order(n, room, seed, 1)[:, :taken]
        if depth is not None:
            places = _moved(places, round(depth * (room - 1)))
        # All of a sequence at even positions, or all at odd ones.
        places = 2 * places + self._drawn(n, 1, 2, seed, 2)
        values = self.keys + self._drawn(n, taken, self.values, seed, 4)
        x = x.scatter(1, places + 1, values)
        keys = self._order(n, self.keys, seed, 3)[:, : self.pairs]
        needles, values = places[:, : self.pairs] + 1, values[:, : self.pairs]
        answers = torch.arange(length - 2 * self.pairs + 1, length, 2).expand(n, -1)
        x = x.scatter(1, needles - 1, keys).scatter(1, answers - 1, keys).scatter(1, answers, values)
        return Recalled(x, answers, needles)

    def _drawn(self, n: int, count: int, size: int, seed: int, draw: int) -> Int[Tensor, "n count"]:
        return (size * self._uniform(n, count, seed, draw)).long().clamp_max(size - 1)

    def _order(self, n: int, size: int, seed: int, draw: int) -> Int[Tensor, "n size"]:
        return self._uniform(n, size, seed, draw).argsort(1)

    def _uniform(self, n: int, count: int, seed: int, draw: int) -> Float[Tensor, "n count"]:
        return random.uniform((n, count), seed, draw=draw, dtype=torch.float64)


def _moved(places: Int[Tensor, "n pairs"], first: int) -> Int[Tensor, "n pairs"]:
    # The first pair to the place `first`; one that stood there takes its place.
    swapped = torch.where(places == first, places[:, :1], places)
    return torch.cat((torch.full_like(places[:, :1], first), swapped[:, 1:]), 1)
