"""Perplexity along a document, chunk by chunk: how far a model can read."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from tweed.core import random
from tweed.core.denoiser import Denoiser
from tweed.core.processes import MaskedProcess
from tweed.core.token_denoiser import TokenDenoiser, without
from tweed.errors import IncompatibleError, InputError


class ChunkPerplexity(NamedTuple):
    """Of each chunk of some documents, given all before it.

    Attributes:
        nats: the mean cross-entropy a token, (b, chunks), float64.
        chunk: tokens of a chunk.
    """

    nats: Float[Tensor, "b chunks"]
    chunk: int

    @property
    def ends(self) -> list[int]:
        """The length read at the end of each chunk."""
        return [self.chunk * (i + 1) for i in range(self.nats.shape[1])]

    @property
    def perplexity(self) -> Float[Tensor, " chunks"]:
        """Of each chunk, over all documents."""
        return self.nats.mean(0).exp()

    @property
    def running(self) -> Float[Tensor, " chunks"]:
        """The geometric mean of the perplexities up to each chunk."""
        means = self.nats.mean(0)
        return (means.cumsum(0) / torch.arange(1, len(means) + 1, dtype=means.dtype, device=means.device)).exp()


@torch.no_grad()
def masked_chunk_perplexity(
    denoiser: Denoiser,
    tokens: Int[Tensor, "b length"],
    chunk: int = 64,
    draws: int = 8,
    *,
    seed: int = 0,
    batch: int = 64,
) -> ChunkPerplexity:
    """The protocol of LongLLaDA (2025, arXiv 2506.14429) for masked models.

    A chunk stands at the end of what is read, behind all chunks before it. In each draw k of its tokens are masked, k uniform
    in `1 ... chunk`, and the cross-entropy is averaged over them, without weights; then over the draws. It compares models
    and lengths; it is no bound on the likelihood, and no perplexity of a causal model.

    Args:
        denoiser: of masked tokens.
        tokens: documents of one length; what is left over behind the last whole chunk is not read.
        chunk: tokens of a chunk.
        draws: of masks, of each chunk.
        seed: of the masks; those of chunk i of document j are the same whatever else is read.
        batch: rows of an evaluation.

    Raises:
        InputError: no documents, shorter ones than a chunk, or a count below 1.
        IncompatibleError: the denoiser is none of masked tokens.
    """
    if not isinstance(denoiser.process, MaskedProcess):
        raise IncompatibleError(
            f"denoiser: its process is {type(denoiser.process).__name__}; expected a MaskedProcess, whose masks are filled"
        )
    _check(tokens, chunk, draws=draws, batch=batch)
    mask = denoiser.process.mask
    rows, count = len(tokens), tokens.shape[1] // chunk
    nats = torch.zeros(rows, count, dtype=torch.float64, device=tokens.device)
    # Each document, repeated for its draws.
    document = torch.arange(rows, device=tokens.device).repeat_interleave(draws)
    for i in range(count):
        low, high = i * chunk, (i + 1) * chunk
        hidden = _hidden(rows, draws, chunk, random.fold(seed, i), tokens.device)
        found = []
        for first in range(0, rows * draws, batch):
            part = slice(first, first + batch)
            x0 = tokens[document[part], :high]
            where = torch.zeros_like(x0, dtype=torch.bool)
            where[:, low:high] = hidden[part]
            found.append(_mean_nats(denoiser, x0, where, low, high, mask))
        nats[:, i] = torch.cat(found).reshape(rows, draws).mean(1)
    return ChunkPerplexity(nats, chunk)


def _hidden(rows: int, draws: int, chunk: int, seed: int, device: torch.device) -> Tensor:
    # (rows * draws, chunk): the k smallest of uniform numbers.
    u = random.uniform((rows, draws, chunk + 1), seed, dtype=torch.float64, device=device).flatten(0, 1)
    k = (chunk * u[:, :1]).ceil().clamp(1, chunk)
    return u[:, 1:].argsort(1).argsort(1) < k


def _mean_nats(denoiser: Denoiser, x0: Tensor, where: Tensor, low: int, high: int, mask: int) -> Float[Tensor, " n"]:
    x = x0.masked_fill(where, mask)
    if isinstance(denoiser, TokenDenoiser) and not denoiser.timed and not denoiser._forward_hooks:
        logits = denoiser.read(x, (low, high))
    else:
        # What is before the chunk is given: the time is that of the share of masks in it.
        share = where[:, low:high].double().mean(1)
        estimate = denoiser(x, denoiser.process.time_kept(1.0 - share))  # type: ignore[attr-defined]
        logits = estimate.logits[:, low:high]  # type: ignore[attr-defined]
    each = _cross_entropy(without(logits.double(), mask), x0[:, low:high])
    scored = where[:, low:high]
    # Not by a product: a token of no probability that is not scored does not count.
    return torch.where(scored, each, 0.0).sum(1) / scored.sum(1)


@torch.no_grad()
def causal_chunk_perplexity(
    denoiser: TokenDenoiser, tokens: Int[Tensor, "b length"], chunk: int = 64, *, batch: int = 64
) -> ChunkPerplexity:
    """The same of an autoregressive model: the mean cross-entropy of each chunk's tokens given all before them.

    The first token of a document is given. A whole document is read at once, which is the same for a causal network.

    Raises:
        InputError: no documents, shorter ones than a chunk, or chunks of fewer than two tokens.
        IncompatibleError: the network is not causal.
    """
    if not getattr(getattr(denoiser, "network", None), "causal", False):
        raise IncompatibleError(f"denoiser: {type(denoiser).__name__} holds no causal network")
    _check(tokens, chunk, batch=batch)
    if chunk < 2:
        raise InputError(f"chunk: {chunk} was given; expected at least 2: the first token of all is given")
    length = tokens.shape[1] // chunk * chunk
    found = []
    for first in range(0, len(tokens), batch):
        x = tokens[first : first + batch, :length]
        logits = denoiser.network(x).double()
        if isinstance(denoiser.process, MaskedProcess):
            logits = without(logits, denoiser.process.mask)
        each = F.pad(_cross_entropy(logits[:, :-1], x[:, 1:]), (1, 0))
        sums = each.reshape(len(x), -1, chunk).sum(2)
        counts = torch.full((length // chunk,), float(chunk), dtype=sums.dtype, device=sums.device)
        counts[0] -= 1
        found.append(sums / counts)
    return ChunkPerplexity(torch.cat(found), chunk)


def _cross_entropy(logits: Float[Tensor, "b n size"], x: Int[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    return F.cross_entropy(logits.transpose(1, 2), x, reduction="none")


def _check(tokens: Tensor, chunk: int, **counts: int) -> None:
    for name, value in {"chunk": chunk, **counts}.items():
        if value < 1:
            raise InputError(f"{name}: {value} was given; expected at least 1")
    if tokens.ndim != 2 or tokens.is_floating_point() or len(tokens) == 0 or tokens.shape[1] < chunk:
        raise InputError(
            f"tokens: {tokens.dtype} {tuple(tokens.shape)} was given; expected documents of at least a chunk, {chunk} tokens"
        )
