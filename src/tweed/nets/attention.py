"""Scaled dot-product attention, and the two ways of computing it.

`"sdpa"` is torch's fused kernel. It has no forward-mode derivative and, on most devices, no second derivative;
`"math"` writes the softmax out and has both. Inside forward-mode differentiation (`torch.func.jvp`,
`torch.autograd.forward_ad`) the plain formula is taken in either case.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from tweed.errors import InputError
from tweed.nets.embeddings import rotate
from tweed.nets.registry import zero

AttentionKind = Literal["sdpa", "math"]


def attend(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b h m d"],
    value: Float[Tensor, "b h m d"],
    kind: AttentionKind = "sdpa",
) -> Float[Tensor, "b h n d"]:
    """`softmax(q k^T / sqrt(d)) v` (Vaswani et al., 2017)."""
    if kind == "sdpa" and getattr(forward_ad, "_current_level", -1) < 0:
        return F.scaled_dot_product_attention(query, key, value)
    weights = (query / math.sqrt(query.shape[-1])) @ key.transpose(-2, -1)
    return torch.softmax(weights, dim=-1).to(value.dtype) @ value


def head_count(width: int, heads: int, head_dim: int | None) -> int:
    """The number of heads for `width` features: `width / head_dim` where `head_dim` is given, else `heads`.

    Raises:
        InputError: they do not divide.
    """
    if head_dim is not None:
        if head_dim < 1 or width % head_dim:
            raise InputError(f"head_dim: {head_dim} was given; expected a divisor of the {width} channels it serves")
        return width // head_dim
    if heads < 1 or width % heads:
        raise InputError(f"heads: {heads} was given; expected a divisor of the {width} channels they serve")
    return heads


class SelfAttention(nn.Module):
    """Attention of tokens to one another: one projection to query, key and value, one back.

    Args:
        width: features of a token.
        heads: a divisor of `width`.
        kind: `"sdpa"` or `"math"`.
        qk_norm: RMS-normalise queries and keys, a head at a time (Dehghani et al., 2023).
        zero_init: start with a zero output.
    """

    def __init__(
        self, width: int, heads: int, kind: AttentionKind = "sdpa", *, qk_norm: bool = False, zero_init: bool = False
    ) -> None:
        super().__init__()
        self.heads = head_count(width, heads, None)
        self.kind: AttentionKind = kind
        self.qkv = nn.Linear(width, 3 * width)
        self.query_norm = nn.RMSNorm(width // heads, eps=1e-6) if qk_norm else None
        self.key_norm = nn.RMSNorm(width // heads, eps=1e-6) if qk_norm else None
        self.out = nn.Linear(width, width)
        if zero_init:
            zero(self.out)

    def forward(
        self, x: Float[Tensor, "b n d"], rotation: tuple[Tensor, Tensor] | None = None
    ) -> Float[Tensor, "b n d"]:
        """The answer for each token; `rotation` is what `rotary` returns."""
        batch, count, width = x.shape
        qkv = self.qkv(x).view(batch, count, 3, self.heads, width // self.heads)
        query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))
        if self.query_norm is not None and self.key_norm is not None:  # in the weights' precision, under autocast too
            precision = self.qkv.weight.dtype
            query = self.query_norm(query.to(precision)).to(value.dtype)
            key = self.key_norm(key.to(precision)).to(value.dtype)
        if rotation is not None:
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        return self.out(attend(query, key, value, self.kind).transpose(1, 2).reshape(batch, count, width))


class CrossAttention(nn.Module):
    """Attention of tokens to a context, such as an encoded text; starts with a zero output unless told otherwise.

    Args:
        width: features of a token.
        context_dim: features of a context token.
        heads: a divisor of `width`.
        kind: `"sdpa"` or `"math"`.
        zero_init: start with a zero output.
    """

    def __init__(
        self, width: int, context_dim: int, heads: int, kind: AttentionKind = "sdpa", *, zero_init: bool = True
    ) -> None:
        super().__init__()
        self.heads = head_count(width, heads, None)
        self.kind: AttentionKind = kind
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(context_dim, 2 * width)
        self.out = nn.Linear(width, width)
        if zero_init:
            zero(self.out)

    def forward(self, x: Float[Tensor, "b n d"], context: Float[Tensor, "b m c"]) -> Float[Tensor, "b n d"]:
        """The answer for each token of `x`."""
        batch, count, width = x.shape
        query = self.query(x).view(batch, count, self.heads, width // self.heads).transpose(1, 2)
        pair = self.key_value(context).view(batch, context.shape[1], 2, self.heads, width // self.heads)
        key, value = (part.transpose(1, 2) for part in pair.unbind(2))
        return self.out(attend(query, key, value, self.kind).transpose(1, 2).reshape(batch, count, width))
