"""A corpus that every Python carries: the documentation of its standard library, and its licences."""

import ast
import functools
import re
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from tweed.data.dataset import one
from tweed.data.text_tokens import TextTokenizer, pack, train_tokenizer
from tweed.errors import InputError, choose

_LEFT_OUT = frozenset({"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "__pycache__"})
_SHORTEST = 24  # characters of a documentation string that is kept
_HELD_OUT = 10  # one of so many modules


@functools.lru_cache(maxsize=1)
def documents() -> tuple[tuple[str, str], ...]:
    """`(module, text)` in a fixed order: each documentation string under its name, each paragraph of the licences.

    Modules are parsed and never imported. Another Python has another text: 3.11's has some 1.6 million characters.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if _LEFT_OUT.isdisjoint(parts):
            module = ".".join(parts).removesuffix(".__init__")
            found += [(module, text) for text in _documented(path, module)]
    for path in sorted(root.glob("LICENSE*")):
        paragraphs = re.split(r"\n\s*\n", _cleaned(path.read_text(encoding="utf-8", errors="replace")))
        found += [("LICENSE", paragraph.strip("\n")) for paragraph in paragraphs if len(paragraph) >= _SHORTEST]
    return tuple(found)


def _documented(path: Path, module: str) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    waiting: list[tuple[str, ast.AST]] = [(module, tree)]
    while waiting:
        name, node = waiting.pop(0)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None and len(text) >= _SHORTEST:
                yield f"{name}\n\n{_cleaned(text)}"
        named = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        waiting += [(f"{name}.{inner.name}", inner) for inner in ast.iter_child_nodes(node) if isinstance(inner, named)]


def _cleaned(text: str) -> str:
    lines = [line.rstrip().expandtabs(4) for line in text.splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def texts(split: str = "all") -> list[str]:
    """The texts of "train" or "test" modules, or of "all"; a module belongs to one of them, by its name.

    Raises:
        InputError: an unknown split.
    """
    choose("split", split, ("all", "train", "test"))
    return [text for module, text in documents() if split == "all" or (split == "test") == _held_out(module)]


def _held_out(module: str) -> bool:
    return zlib.crc32(module.encode()) % _HELD_OUT == 0


@functools.lru_cache(maxsize=4)
def corpus_tokenizer(vocabulary: int = 2048) -> TextTokenizer:
    """The tokenizer of the training part, of so many tokens; see `train_tokenizer`."""
    return train_tokenizer(texts("train"), vocabulary)


class Corpus:
    """The corpus in rows of tokens, documents packed one after another: `x`, `segments` and `fixed`.

    Args:
        split: "train", "test" or "all".
        length: tokens of a row.
        vocabulary: the number of tokens; 259 is the bytes and the special tokens alone.

    Attributes:
        tokenizer: the tokenizer, of the training part.
        characters_per_token: of this split.

    Raises:
        InputError: an argument is out of its range.
    """

    num_classes = None
    conditions = ("segments", "fixed")

    def __init__(self, split: str = "train", length: int = 128, vocabulary: int = 2048):
        self.tokenizer = corpus_tokenizer(vocabulary)
        chosen = texts(split)
        encoded = [list(row.ids) for row in self.tokenizer.inner.encode_batch(chosen, add_special_tokens=False)]
        if length < 2:
            raise InputError(f"length: {length} was given; expected at least 2 tokens")
        assert self.tokenizer.end is not None
        assert self.tokenizer.pad is not None
        self._rows = pack(encoded, length, self.tokenizer.end, self.tokenizer.pad)
        self.shape = (length,)
        self.characters_per_token = sum(map(len, chosen)) / sum(map(len, encoded))

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: Int[Tensor, " n"]) -> dict[str, Tensor]:
        return self._rows.batch(indices)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return one(self, i)


def rows(data: Corpus) -> dict[str, Tensor]:
    """All rows of a corpus as one batch."""
    return data.batch(torch.arange(len(data)))
