"""Puzzles in tokens whose answers can be verified: running sums, and countdown."""

import ast
import itertools
import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tweed.core import random
from tweed.data.tokens import Tokens
from tweed.errors import InputError

_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}


@dataclass(frozen=True)
class RunningSums:
    """`d_1 ... d_n s_1 ... s_n = s_n`: digits, their running sums modulo 10, and the last one again.

    Tokens: the digits, "=" (10), the mask (11). The answer is what stands behind the digits, n + 2 tokens.

    Args:
        digits: n.

    Raises:
        InputError: `digits` is not positive.
    """

    digits: int = 6

    def __post_init__(self):
        if self.digits < 1:
            raise InputError(f"digits: {self.digits} was given; expected at least 1")

    mask = 11
    size = 12

    @property
    def length(self) -> int:
        """Tokens of a puzzle with its answer."""
        return 2 * self.digits + 2

    def draw(self, n: int, seed: int = 0, *, corrupted: float = 0.0) -> Int[Tensor, "n length"]:
        """Puzzles with answers, of which a share `corrupted` has every sum replaced by a random digit with probability 1/2."""
        u = random.uniform((n, 4 * self.digits + 2), seed, dtype=torch.float64)
        digits = (10.0 * u[:, : self.digits]).long().clamp_max(9)
        sums = digits.cumsum(1) % 10
        answer = torch.cat((sums, torch.full((n, 1), 10), sums[:, -1:]), 1)
        wrong = (10.0 * u[:, self.digits : 2 * self.digits + 1]).long().clamp_max(9)
        places = [*range(self.digits), self.digits + 1]
        chosen = (u[:, -1:] < corrupted) & (u[:, 2 * self.digits + 1 : 3 * self.digits + 2] < 0.5)
        answer[:, places] = torch.where(chosen, wrong, answer[:, places])
        return torch.cat((digits, answer), 1)

    def data(self, n: int, seed: int = 0, *, corrupted: float = 0.0) -> Tokens:
        """The same as a data set, digits `fixed`."""
        return Tokens(self.draw(n, seed, corrupted=corrupted), fixed=self.given(n))

    def given(self, n: int) -> Bool[Tensor, "n length"]:
        """Which tokens are the puzzle's own."""
        return (torch.arange(self.length) < self.digits).expand(n, -1)

    def asked(self, x: Int[Tensor, "n length"]) -> Int[Tensor, "n length"]:
        """Puzzles with the answer masked."""
        return torch.where(self.given(len(x)).to(x.device), x, torch.full_like(x, self.mask))

    def right(self, x: Int[Tensor, "... length"]) -> Bool[Tensor, "..."]:
        """Whether the last token is the sum of the digits."""
        return x[..., -1] == x[..., : self.digits].sum(-1) % 10


@dataclass(frozen=True)
class Countdown:
    """Reach a number with three others, each used once: `3 5 2 : 1 3 = 3 + 5 * 2`.

    Tokens: the digits, then + - * = : (10 to 14), the mask (15). The target has two digits, 00 to 99; the answer is what stands
    behind "=", five tokens.
    """

    mask = 15
    size = 16
    length = 12
    _SYMBOLS = "0123456789+-*=:"

    def draw(self, n: int, seed: int = 0) -> Int[Tensor, "n length"]:
        """Puzzles, each with an answer that is right, whose value is in 0 .. 99."""
        u = random.uniform((n, 3), seed, dtype=torch.float64)
        numbers = 1 + (9.0 * u).long().clamp_max(8)
        rows = [self._row(each, random.fold(seed, i)) for i, each in enumerate(numbers.tolist())]
        return torch.tensor(rows).reshape(n, self.length)

    def _row(self, numbers: list[int], seed: int) -> list[int]:
        found = []
        for order in itertools.permutations(numbers):
            for first, second in itertools.product("+-*", repeat=2):
                text = f"{order[0]}{first}{order[1]}{second}{order[2]}"
                value = value_of(text)
                if value is not None and 0 <= value <= 99:
                    found.append((text, value))
        text, value = found[seed % len(found)]
        return self.encode(f"{''.join(map(str, numbers))}:{value:02d}={text}")

    def encode(self, text: str) -> list[int]:
        """The tokens of a text without spaces.

        Raises:
            InputError: a sign that is no token.
        """
        for sign in text:
            if sign not in self._SYMBOLS:
                raise InputError(f"text: {sign!r} is no token; expected one of {self._SYMBOLS}")
        return [self._SYMBOLS.index(sign) for sign in text]

    def text(self, x: Int[Tensor, " length"]) -> str:
        """The text of a row; a mask is "_"."""
        return "".join((self._SYMBOLS + "_")[token] for token in x.tolist())

    def given(self, n: int) -> Bool[Tensor, "n length"]:
        """Which tokens are the puzzle's own."""
        return (torch.arange(self.length) < 7).expand(n, -1)

    def asked(self, x: Int[Tensor, "n length"]) -> Int[Tensor, "n length"]:
        """Puzzles with the answer masked."""
        return torch.where(self.given(len(x)).to(x.device), x, torch.full_like(x, self.mask))

    def data(self, n: int, seed: int = 0) -> Tokens:
        """A data set of puzzles, all but the answer `fixed`."""
        return Tokens(self.draw(n, seed), fixed=self.given(n))

    def right(self, x: Int[Tensor, "n length"]) -> Bool[Tensor, " n"]:
        """Whether an answer uses each number once and has the value asked for; it is parsed, and not run."""
        return torch.tensor([self._right(self.text(row)) for row in x.reshape(-1, self.length)]).reshape(x.shape[:-1])

    def _right(self, text: str) -> bool:
        numbers, target, answer = text[:3], text[4:6], text[7:]
        return (
            sorted(sign for sign in answer if sign.isdigit()) == sorted(numbers)
            and target.isdigit()
            and value_of(answer) == int(target)
        )


def value_of(text: str) -> int | None:
    """The value of an expression of whole numbers with + - and *, or None where it is none. It is parsed, and not run."""
    try:
        return _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError):
        return None


def _value(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError("no sum, difference or product of whole numbers")
