"""Text as tokens: byte-level vocabularies, rows of a fixed length, and tokenizers that are files of JSON."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tweed.data.tokens import Tokens
from tweed.errors import CheckpointError, InputError

TOKENIZER = "tokenizer.json"
MASK, END, PAD = "[MASK]", "[END]", "[PAD]"
_SPECIAL = (MASK, END, PAD)
_BYTES = 256
_MASKS = (MASK, "<|mdm_mask|>", "<|mask|>", "<mask>")
_ENDS = (END, "<|endoftext|>", "<|eot_id|>", "<|im_end|>", "</s>", "[SEP]")
_PADS = (PAD, "<|endoftext|>", "<pad>")


@dataclass(frozen=True, eq=False)
class TextTokenizer:
    """A tokenizer of the library `tokenizers`, with the special tokens that models of masked text need.

    Args:
        inner: the tokenizer itself.
        mask, end, pad: numbers of the mask, of the token that ends a text, and of what fills up a row; None where it has none.
    """

    inner: Any
    mask: int | None = None
    end: int | None = None
    pad: int | None = None

    @property
    def size(self) -> int:
        """The number of tokens, special ones included."""
        return self.inner.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text; names of special tokens in it become them.

        Raises:
            InputError: a part of the text has no token.
        """
        encoded = self.inner.encode(text, add_special_tokens=False)
        unknown = getattr(self.inner.model, "unk_token", None)
        if unknown is not None and unknown in encoded.tokens:
            place = encoded.tokens.index(unknown)
            first, last = encoded.offsets[place]
            raise InputError(f"text: {text[first:last]!r} is an unknown token to this tokenizer")
        if not encoded.ids and text:
            raise InputError(f"text: {text!r} has no tokens in this tokenizer")
        return list(encoded.ids)

    def decode(self, tokens: Iterable[int], *, special: bool = False) -> str:
        """The text of tokens; with `special`, the names of special ones in it."""
        return self.inner.decode(list(tokens), skip_special_tokens=not special)

    @cached_property
    def json(self) -> str:
        """All of it, as the file that `load_tokenizer` reads."""
        return self.inner.to_str(pretty=False)

    def write(self, folder: str | Path) -> Path:
        """Writes `tokenizer.json` to a folder, whole or not at all."""
        path = Path(folder) / TOKENIZER
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(self.json, encoding="utf-8")
        temporary.replace(path)
        return path


def train_tokenizer(texts: Iterable[str], size: int = 2048) -> TextTokenizer:
    """Byte-pair encoding of bytes (Sennrich et al., 2016; Radford et al., 2019), so that no text is unknown to it.

    Its first tokens are `[MASK]`, `[END]` and `[PAD]`: 0, 1 and 2.

    Args:
        size: of the vocabulary; 259, the smallest, is the bytes and the special tokens alone.

    Raises:
        InputError: `size` is less than that.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    least = _BYTES + len(_SPECIAL)
    if size < least:
        raise InputError(f"size: {size} was given; expected at least {least}, the bytes and {', '.join(_SPECIAL)}")
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return TextTokenizer(inner, 0, 1, 2)


def load_tokenizer(folder: str | Path, *, mask: int | None = None, end: int | None = None) -> TextTokenizer:
    """The tokenizer that a folder keeps in `tokenizer.json`: ours, or any that the library `tokenizers` reads.

    Args:
        folder: or the file itself.
        mask, end: their numbers, where the file's own names of special tokens do not tell.

    Raises:
        CheckpointError: there is none, or it is damaged. It is parsed; nothing of it is run.
    """
    from tokenizers import Tokenizer

    path = Path(folder)
    path = path / TOKENIZER if path.is_dir() else path
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; expected a tokenizer in it")
    try:
        inner = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises plain exceptions of its own
        raise CheckpointError(f"{path}: it is no tokenizer ({error})") from None
    return TextTokenizer(
        inner,
        _first(inner, _MASKS) if mask is None else mask,
        _first(inner, _ENDS) if end is None else end,
        _first(inner, _PADS),
    )


def _first(inner: Any, names: Sequence[str]) -> int | None:
    return next((inner.token_to_id(name) for name in names if inner.token_to_id(name) is not None), None)


def pack(documents: Iterable[Sequence[int]], length: int, end: int, pad: int) -> Tokens:
    """Rows of `length` tokens: one document after another, each with its `end`, cut where a row is full.

    Every token is in them once. `segments` numbers the documents of a row; the last row is filled up with `pad`, which is
    `fixed` and a segment of its own.

    Raises:
        InputError: `length` is not positive, or there are no documents.
    """
    if length < 1:
        raise InputError(f"length: {length} was given; expected at least 1 token")
    stream: list[int] = []
    owner: list[int] = []
    for number, document in enumerate(documents):
        stream += [*document, end]
        owner += [number] * (len(document) + 1)
    if not stream:
        raise InputError("documents: none were given; expected at least one")
    missing = -len(stream) % length
    x = torch.tensor(stream + [pad] * missing).reshape(-1, length)
    segments = torch.tensor(owner + [owner[-1] + 1] * missing).reshape(-1, length)
    fixed = torch.zeros_like(x, dtype=torch.bool)
    if missing:
        fixed[-1, -missing:] = True
    return Tokens(x, segments=segments - segments[:, :1], fixed=fixed)


def padded(
    rows: Sequence[Sequence[int]], pad: int, *, left: bool = False, length: int | None = None
) -> Int[Tensor, "n length"]:
    """Rows of different lengths as one tensor, filled up with `pad` on the right, or on the left.

    Raises:
        InputError: a row is longer than `length`.
    """
    longest = max((len(row) for row in rows), default=0)
    length = longest if length is None else length
    if longest > length:
        raise InputError(f"length: {length} was given; expected at least {longest}, the longest row")
    filled = [
        [pad] * (length - len(row)) + list(row) if left else list(row) + [pad] * (length - len(row)) for row in rows
    ]
    return torch.tensor(filled, dtype=torch.int64).reshape(len(rows), length)
