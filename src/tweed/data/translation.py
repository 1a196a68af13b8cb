"""A translation that is known: words by a table, neighbours swapped by their parity, two words by what stands beside them."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from tweed.core import random
from tweed.data.tokens import Tokens
from tweed.errors import InputError


@dataclass(frozen=True)
class Translation:
    """Sentences of an even number of words. Word w becomes a word of a random table; the first `ambiguous` words have two
    translations, and which one is right says the parity of their partner; the two words of a pair change places where the sum
    of their numbers is odd.

    Args:
        words: of the source language; the target language has `ambiguous` more.
        length: of a sentence, even.
        ambiguous: words with two translations.
        seed: of the table.

    Raises:
        InputError: an argument is out of its range.
    """

    words: int = 40
    length: int = 12
    ambiguous: int = 2
    seed: int = 0

    def __post_init__(self):
        if self.words < 2 or self.length < 2 or self.length % 2 or not 0 <= self.ambiguous <= self.words:
            raise InputError(
                f"words, length, ambiguous: {self.words}, {self.length}, {self.ambiguous} were given; expected at least 2, an "
                "even number, and at most all words"
            )

    @property
    def size(self) -> int:
        """The number of words of the target language."""
        return self.words + self.ambiguous

    def draw(self, n: int, seed: int = 0) -> Int[Tensor, "n length"]:
        """Source sentences."""
        u = random.uniform((n, self.length), seed, dtype=torch.float64)
        return (u * self.words).long().clamp_max(self.words - 1)

    def translate(self, source: Int[Tensor, "n length"]) -> Int[Tensor, "n length"]:
        """Their translations."""
        table = torch.randperm(self.size, generator=random.generator(self.seed))
        pairs = source.reshape(len(source), -1, 2)
        partner = pairs.flip(-1)
        other = (pairs < self.ambiguous) & (partner % 2 == 1)
        words = table[torch.where(other, self.words + pairs, pairs)]
        swapped = pairs.sum(-1, keepdim=True) % 2 == 1
        return torch.where(swapped, words.flip(-1), words).reshape(source.shape)

    def data(self, n: int, seed: int = 0) -> Tokens:
        """Translations `x`, and their sources."""
        source = self.draw(n, seed)
        return Tokens(self.translate(source), source=source)
