"""A transformer on tokens: the one that masked language models are made of, and their causal relatives.

The layers are those of LLaMA (Touvron et al., 2023), and so of LLaDA (Nie et al., 2025), Dream (Ye et al., 2025) and
Qwen2: root-mean-square norms before attention and before a gated feed-forward layer, rotary positions, no biases but on
demand in the projections. It is not told a time: the number of masks says it (Ou et al., 2024; Zheng et al., 2024).
"""

from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tweed.errors import InputError
from tweed.nets.attention import head_count
from tweed.nets.embeddings import float_dtype, rotary, rotate
from tweed.nets.kv_cache import KVCache
from tweed.nets.registry import register

Rotation = tuple[Tensor, Tensor]


@lru_cache(maxsize=64)
def rotations(first: int, count: int, dim: int, base: float, device: torch.device) -> Rotation:
    """Cosines and sines of the positions `first ... first + count - 1`, float32, from angles in float64: far positions would lose
    their phase otherwise. Computed once."""
    with torch.inference_mode(False):
        positions = torch.arange(first, first + count, dtype=torch.float64, device=device)[:, None]
        cos, sin = rotary(positions, dim, period=base)
        return cos.float(), sin.float()


class GatedAttention(nn.Module):
    """Attention with rotary positions, fewer heads of keys than of queries where asked, and a cache.

    Args:
        width, heads: features and heads of the queries.
        kv_heads: heads of keys and values, a divisor of `heads`.
        head_dim: features of a head.
        bias: of the projections to queries, keys and values.
    """

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, bias: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.query = nn.Linear(width, heads * head_dim, bias=bias)
        self.key = nn.Linear(width, kv_heads * head_dim, bias=bias)
        self.value = nn.Linear(width, kv_heads * head_dim, bias=bias)
        self.out = nn.Linear(heads * head_dim, width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        rotation: Rotation,
        mask: Bool[Tensor, "..."] | None,
        causal: bool,
        layer: int,
        first: int,
        cache: KVCache | None,
        extent: int,
    ) -> Float[Tensor, "b n d"]:
        """The answer for each token of `x`."""
        batch, count, _ = x.shape
        query = self.query(x).view(batch, count, self.heads, self.head_dim).transpose(1, 2)
        key = self.key(x).view(batch, count, self.kv_heads, self.head_dim).transpose(1, 2)
        value = self.value(x).view(batch, count, self.kv_heads, self.head_dim).transpose(1, 2)
        query, key = rotate(query, *rotation), rotate(key, *rotation)
        if cache is not None:
            key, value = cache.write(layer, first, key, value, extent)
        shared = self.kv_heads != self.heads
        answer = F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal, enable_gqa=shared)
        return self.out(answer.transpose(1, 2).reshape(batch, count, self.heads * self.head_dim))


class GatedFeedForward(nn.Module):
    """`W_down (silu(W_gate x) * W_up x)` (Shazeer, "GLU Variants Improve Transformer", 2020)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """The answer for each token of `x`."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class TextBlock(nn.Module):
    """One layer: `x + attention(norm(x))`, then `x + feed_forward(norm(x))`; arguments as for `GatedAttention`."""

    def __init__(
        self, width: int, heads: int, kv_heads: int, head_dim: int, hidden: int, bias: bool, norm_eps: float
    ) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=norm_eps)
        self.attention = GatedAttention(width, heads, kv_heads, head_dim, bias)
        self.feed_forward_norm = nn.RMSNorm(width, eps=norm_eps)
        self.feed_forward = GatedFeedForward(width, hidden)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        rotation: Rotation,
        mask: Bool[Tensor, "..."] | None = None,
        causal: bool = False,
        layer: int = 0,
        first: int = 0,
        cache: KVCache | None = None,
        extent: int = 0,
    ) -> Float[Tensor, "b n d"]:
        """The next state of the residual stream."""
        x = x + self.attention(self.attention_norm(x), rotation, mask, causal, layer, first, cache, extent)
        return x + self.feed_forward(self.feed_forward_norm(x))


@register("text-transformer")
class TextTransformer(nn.Module):
    """Tokens to logits, with rotary positions whose base can be changed, and a cache of keys and values.

    Args:
        vocab: the number of tokens, masks and other special ones included.
        width: features of a token.
        depth: layers.
        heads: of attention, a divisor of `width` unless `head_dim` is given.
        kv_heads: heads of keys and values, a divisor of `heads`; all of them by default.
        head_dim: features of a head, even; `width / heads` by default.
        hidden: features inside the feed-forward layers; 8/3 of `width`, rounded up to a multiple of 8, by default.
        rope_base: of the rotary positions: pair j of a head turns by `position * rope_base^(-2 j / head_dim)`.
        context: the longest sequence that it was trained for. Longer ones are computed all the same.
        causal: each token sees those before it alone: an autoregressive model, whose logits at i are of token i + 1.
        qkv_bias: biases in the projections to queries, keys and values (Qwen2 and Dream have them).
        tied: the output layer is the embedding.
        norm_eps: of the norms.

    Raises:
        InputError: an option is out of its range.
    """

    def __init__(
        self,
        vocab: int,
        *,
        width: int = 256,
        depth: int = 6,
        heads: int = 4,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        hidden: int | None = None,
        rope_base: float = 10000.0,
        context: int = 1024,
        causal: bool = False,
        qkv_bias: bool = False,
        tied: bool = True,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        for name, value in (
            ("vocab", vocab),
            ("width", width),
            ("depth", depth),
            ("heads", heads),
            ("context", context),
        ):
            if value < 1:
                raise InputError(f"{name}: {value} was given; expected at least 1")
        if not rope_base > 0.0:
            raise InputError(f"rope_base: {rope_base} was given; expected a positive number")
        head_dim = width // head_count(width, heads, None) if head_dim is None else head_dim
        if head_dim < 2 or head_dim % 2:
            raise InputError(f"head_dim: {head_dim} was given; expected an even number of features")
        kv_heads = heads if kv_heads is None else kv_heads
        if kv_heads < 1 or heads % kv_heads:
            raise InputError(f"kv_heads: {kv_heads} was given; expected a divisor of the {heads} heads")
        hidden = -(-8 * width // 24) * 8 if hidden is None else hidden
        self.vocab, self.causal, self.context, self.rope_base = vocab, causal, context, float(rope_base)
        self.kv_heads, self.head_dim = kv_heads, head_dim
        self.embedding = nn.Embedding(vocab, width)
        self.blocks = nn.ModuleList(
            TextBlock(width, heads, kv_heads, head_dim, hidden, qkv_bias, norm_eps) for _ in range(depth)
        )
        self.norm = nn.RMSNorm(width, eps=norm_eps)
        self.output = None if tied else nn.Linear(width, vocab, bias=False)

    def cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache for `batch` sequences of up to `capacity` tokens."""
        return KVCache(
            len(self.blocks),
            batch,
            self.kv_heads,
            capacity,
            self.head_dim,
            dtype=float_dtype(self),
            device=self.embedding.weight.device,
            rope_base=self.rope_base,
        )

    def forward(
        self,
        tokens: Int[Tensor, "b n"],
        *,
        first: int = 0,
        cache: KVCache | None = None,
        extent: int | None = None,
        answer: tuple[int, int] | None = None,
        mask: Bool[Tensor, "b m"] | None = None,
        segments: Int[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b k vocab"]:
        """Logits of the tokens, at all positions given or at those that `answer` names.

        Args:
            tokens: the positions `first ... first + n - 1` of the sequences.
            first: the position of the first of them.
            cache: where the keys and values of all other positions come from, and of these go to.
            extent: how many positions are attended to: all that the cache holds, and these, by default.
            answer: from which position to before which the logits are wanted.
            mask: which positions are real, of all that are attended to; none but those are looked at (padding).
            segments: documents packed in one sequence, by number; a token sees its own alone. Not with a cache.

        Raises:
            InputError: a shape does not fit, or positions are missing in the cache.
        """
        if tokens.ndim != 2:
            raise InputError(f"tokens: shape {tuple(tokens.shape)} was given; expected (b, n)")
        batch, count = tokens.shape
        if cache is None:
            if first:
                raise InputError(f"first: {first} was given without a cache; expected 0")
            if extent not in (None, count):
                raise InputError(f"extent: {extent} was given without a cache; expected the {count} positions given")
            extent = count
        else:
            if segments is not None:
                raise InputError("segments: they were given with a cache; expected one or the other")
            if cache.rope_base not in (None, self.rope_base):
                raise InputError(
                    f"cache: its keys have the rotary base {cache.rope_base:g}; expected the network's own, {self.rope_base:g}"
                )
            cache.check(first, count, batch)
            cache.length = max(cache.length, first + count)
            extent = cache.length if extent is None else extent
            if not first + count <= extent <= cache.length:
                raise InputError(f"extent: {extent} was given; expected {first + count} .. {cache.length}")
        low, high = (first, first + count) if answer is None else answer
        if not first <= low <= high <= first + count:
            raise InputError(f"answer: {answer} was given; expected a part of {first} .. {first + count}")
        seen, causal = self._seen(first, count, extent, mask, segments, tokens)
        rotation = rotations(first, count, self.head_dim, self.rope_base, tokens.device)
        h = self.embedding(tokens)
        for layer, block in enumerate(self.blocks):
            h = block(h, rotation, seen, causal, layer, first, cache, extent)
        h = self.norm(h[:, low - first : high - first])
        return F.linear(h, self.embedding.weight) if self.output is None else self.output(h)

    def _seen(
        self, first: int, count: int, extent: int, mask: Tensor | None, segments: Tensor | None, tokens: Tensor
    ) -> tuple[Tensor | None, bool]:
        # The mask of attention, (b or 1, 1, n or 1, m), and whether the kernel's own causal one will do.
        seen = None
        if mask is not None:
            if mask.shape != (len(tokens), extent) or mask.dtype is not torch.bool:
                raise InputError(
                    f"mask: {mask.dtype} {tuple(mask.shape)} was given; expected bool, {(len(tokens), extent)}"
                )
            seen = mask[:, None, None, :]
        if segments is not None:
            if segments.shape != tokens.shape:
                raise InputError(f"segments: shape {tuple(segments.shape)} was given; expected {tuple(tokens.shape)}")
            same = (segments[:, :, None] == segments[:, None, :])[:, None]
            seen = same if seen is None else seen & same
        if not self.causal or (count == 1 and first + 1 == extent):
            return seen, False
        if seen is None and count == extent:
            return None, True
        positions = torch.arange(extent, device=tokens.device)
        before = (positions[None, :] <= positions[first : first + count, None])[None, None]
        return before if seen is None else seen & before, False
