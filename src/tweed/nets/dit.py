"""Diffusion transformer with adaLN-zero, on images (2-D) and sequences (1-D).

Peebles & Xie, "Scalable Diffusion Models with Transformers" (2023). Condition tokens enter by cross-attention in
every block (Chen et al., "PixArt-alpha", 2023): unlike tokens put into the sequence, their number then leaves the
null condition, and the positions of the sequence, unchanged.
"""

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tweed.errors import InputError, choose
from tweed.nets.attention import AttentionKind, CrossAttention, SelfAttention, head_count
from tweed.nets.embeddings import (
    Conditioning,
    TimeEmbedding,
    TimeFeatures,
    float_dtype,
    grid_positions,
    rotary,
    sincos_positions,
    with_endpoint,
)
from tweed.nets.experts import TimeExperts
from tweed.nets.registry import register, zero
from tweed.nets.routing import ChannelRouting, RoutingMode
from tweed.nets.skips import SkipKind, SkipScale


class Block(nn.Module):
    """Self-attention, cross-attention where there is a context, and an MLP, each modulated and gated.

    The gates, scales and shifts are linear in the embedding and start at zero: a fresh block is the identity.
    """

    def __init__(
        self, hidden: int, heads: int, ratio: float, token_dim: int, qk_norm: bool, dropout: float, kind: AttentionKind
    ) -> None:
        super().__init__()
        inner = int(hidden * ratio)
        self.modulation = zero(nn.Linear(hidden, 6 * hidden))
        self.norm1 = nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)
        self.attention = SelfAttention(hidden, heads, kind, qk_norm=qk_norm)
        self.cross_norm = nn.LayerNorm(hidden, eps=1e-6) if token_dim else None
        self.cross = CrossAttention(hidden, token_dim, heads, kind) if token_dim else None
        self.norm2 = nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)
        self.expand = nn.Linear(hidden, inner)
        self.activation = nn.GELU(approximate="tanh")
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.project = nn.Linear(inner, hidden)

    def forward(
        self,
        h: Float[Tensor, "b n d"],
        embedding: Float[Tensor, "b #n d"],
        rotation: tuple[Tensor, Tensor] | None,
        context: Float[Tensor, "b m c"] | None,
    ) -> Float[Tensor, "b n d"]:
        """The tokens after this block; `embedding` has been through its nonlinearity already."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(embedding).chunk(6, dim=-1)
        h = torch.addcmul(h, gate1, self.attention(torch.addcmul(shift1, self.norm1(h), 1 + scale1), rotation))
        if self.cross is not None and self.cross_norm is not None and context is not None:
            h = h + self.cross(self.cross_norm(h), context)
        inner = self.expand(torch.addcmul(shift2, self.norm2(h), 1 + scale2))
        return torch.addcmul(h, gate2, self.project(self.dropout(self.activation(inner))))


@register("dit")
class DiT(nn.Module):
    """Diffusion transformer on (b, in_channels, height, width), or, with `dims` = 1, on (b, length, in_channels).

    A token is a patch: `patch` x `patch` pixels, or `patch` steps of a sequence. Any size that `patch` divides goes in.
    The time may be one a sample, or one a token (b, n), tokens in row-major order (as in diffusion forcing).

    Args:
        in_channels: channels of the input, without those of the endpoint.
        out_channels: channels of the output; None for `in_channels`.
        dims: 1 for sequences (channels last), 2 for images (channels first).
        patch: side of a patch.
        hidden: features of a token.
        depth: number of blocks.
        heads: attention heads, a divisor of `hidden`.
        mlp_ratio: size of the MLP's inner layer, as a multiple of `hidden`.
        positions: `"sincos"` (added to the tokens), `"rotary"` (relative, in attention; axial on images) or `"none"`.
        qk_norm: RMS-normalise queries and keys.
        dropout: probability within the MLPs.
        num_classes: number of labels, 0 for no label condition.
        vector_dim: size of the vector condition, 0 for none.
        token_dim: size of one condition token, 0 for none; tokens enter by cross-attention in every block.
        endpoint_channels: channels of the endpoint `y`, concatenated to the input; 0 for none.
        time_dim: number of Fourier features of time, even.
        time_features: `"sinusoidal"` or `"gaussian"`.
        time_scale: see `TimeEmbedding`.
        zero_init: start with a zero output. (The gates of the blocks start at zero in any case.)
        attention: `"sdpa"`, or `"math"` for second derivatives through the network.
        gradient_checkpointing: in training, recompute each block in the backward pass rather than keep it.
        routing: share of the features that a block sees at one time (see `ChannelRouting`); 1 for all. The time must then be
            that of the process, in [0, 1].
        routing_power, routing_mode: how the window slides, and "random" for the baseline.
        experts: linear maps beside each block, which mask its input softly (see `TimeExperts`); 0 for none. Not with `routing`.
        experts_per_time: how many of them are used at one time.
        long_skips: join the first half of the blocks to the second, the first to the last, by concatenation and a linear
            layer (Bao et al., "All are Worth Words: a ViT Backbone for Diffusion Models", 2023).
        skip_scale, skip_kappa: scaling of the long skips, see `SkipScale`.

    Raises:
        InputError: the options do not fit together.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int | None = None,
        *,
        dims: Literal[1, 2] = 2,
        patch: int = 2,
        hidden: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        positions: Literal["sincos", "rotary", "none"] = "sincos",
        qk_norm: bool = False,
        dropout: float = 0.0,
        num_classes: int = 0,
        vector_dim: int = 0,
        token_dim: int = 0,
        endpoint_channels: int = 0,
        time_dim: int = 256,
        time_features: TimeFeatures = "sinusoidal",
        time_scale: float | None = None,
        zero_init: bool = True,
        attention: AttentionKind = "sdpa",
        gradient_checkpointing: bool = False,
        routing: float = 1.0,
        routing_power: float = 4.0,
        routing_mode: RoutingMode = "window",
        experts: int = 0,
        experts_per_time: int = 2,
        long_skips: bool = False,
        skip_scale: SkipKind = "none",
        skip_kappa: float = 0.7,
    ) -> None:
        super().__init__()
        choose("positions", positions, ("sincos", "rotary", "none"))
        if patch < 1:
            raise InputError(f"patch: {patch} was given; expected at least 1")
        share = {"sincos": hidden, "rotary": hidden // head_count(hidden, heads, None), "none": 0}[positions]
        if share % (2 * dims):
            option = "hidden" if positions == "sincos" else "hidden / heads"
            raise InputError(
                f"{option}: {share} was given; expected a multiple of {2 * dims} for {positions} positions"
            )
        self.in_channels, self.out_channels = in_channels, in_channels if out_channels is None else out_channels
        self.dims, self.patch, self.hidden, self.heads, self.positions = dims, patch, hidden, heads, positions
        self.endpoint_channels, self.gradient_checkpointing = endpoint_channels, gradient_checkpointing

        self.time = TimeEmbedding(time_dim, hidden, time_features, time_scale)
        self.condition = Conditioning(hidden, num_classes, vector_dim, token_dim)
        self.activation = nn.SiLU()
        self.input = nn.Linear((in_channels + endpoint_channels) * patch**dims, hidden)
        self.blocks = nn.ModuleList(
            Block(hidden, heads, mlp_ratio, token_dim, qk_norm, dropout, attention) for _ in range(depth)
        )
        self.modulation = zero(nn.Linear(hidden, 2 * hidden))
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)
        self.output = nn.Linear(hidden, self.out_channels * patch**dims)
        if zero_init:
            zero(self.output)
        self.routing = None if routing == 1.0 else ChannelRouting(hidden, routing, routing_power, routing_mode)
        if experts < 0 or (experts and not 1 <= experts_per_time <= experts):
            raise InputError(
                f"experts, experts_per_time: {experts}, {experts_per_time} were given; expected no experts, or 1 to all at a time"
            )
        if experts and self.routing is not None:
            raise InputError(f"experts, routing: {experts}, {routing} were given; expected one of the two masks")
        self.experts_per_time = experts_per_time
        self.experts = nn.ModuleList(
            TimeExperts(hidden, experts, experts_per_time) for _ in range(depth if experts else 0)
        )
        if skip_scale != "none" and not long_skips:
            raise InputError(f"skip_scale: {skip_scale!r} was given; expected long_skips with it")
        count = depth // 2 if long_skips else 0
        self.joins = nn.ModuleList(nn.Linear(2 * hidden, hidden) for _ in range(count))  # outermost first
        self.skips = SkipScale(skip_scale, [hidden] * count, skip_kappa, dim=-1)

    def forward(
        self,
        x: Float[Tensor, "b *event"],
        t: Float[Tensor, " b"] | Float[Tensor, "b n"],
        label: Int[Tensor, " b"] | None = None,
        vector: Float[Tensor, "b v"] | None = None,
        tokens: Float[Tensor, "b m d"] | None = None,
        drop: Bool[Tensor, " b"] | None = None,
        y: Float[Tensor, "b *event"] | None = None,
    ) -> Float[Tensor, "b *event"]:
        """The network's answer at `x` and `t`, in the dtype of `x`.

        Raises:
            InputError: a shape does not fit, or a condition was given that the network was not built for.
        """
        grid = self._grid(x)
        told, context = self.condition(x, label, vector, tokens, drop)
        times = self._times(t, x.shape[0], grid)
        clock = self.time(times)
        embedding = self.activation(clock if told is None else clock + told[:, None])
        clock = self.activation(clock) if self.experts else clock  # experts are chosen by the time alone

        joined = with_endpoint(x.to(float_dtype(self)), y, self.endpoint_channels, 1 if self.dims == 2 else 2)
        h = self.input(self._tokens(joined, grid))
        rotation = None
        if self.positions == "sincos":
            h = h + sincos_positions(grid_positions(grid, x.device), self.hidden).to(h.dtype)
        elif self.positions == "rotary":
            rotation = rotary(grid_positions(grid, x.device), self.hidden // self.heads)
        mask = None if self.routing is None else self.routing(times).to(h.dtype)
        held: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            behind = len(self.blocks) - 1 - number
            if behind < len(self.joins):
                h = self.joins[behind](torch.cat((h, self.skips(held.pop(), behind)), dim=-1))
            if self.experts:
                mask = self._run(self.experts[number], h, clock)
            if mask is None:
                h = self._run(block, h, embedding, rotation, context)
            else:
                seen = mask * h
                h = self._run(block, seen, embedding, rotation, context) + (h - seen)
            if number < len(self.joins):
                held.append(h)
        shift, scale = self.modulation(embedding).chunk(2, dim=-1)
        return self._image(self.output(torch.addcmul(shift, self.norm(h), 1 + scale)), grid).to(x.dtype)

    def gate_probabilities(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b depth m"]:
        """The probabilities of the experts of each block, before the choice, at times as the network is told them.

        Raises:
            InputError: the network has no experts.
        """
        if not self.experts:
            raise InputError("experts: this network has none; expected one with the option 'experts' above 0")
        clock = self.activation(self.time(t))
        return torch.stack([experts.probabilities(clock) for experts in self.experts], dim=-2)  # type: ignore[operator]

    def _run(self, block: nn.Module, *inputs: Any) -> Tensor:
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)  # type: ignore[return-value]
        return block(*inputs)

    def _grid(self, x: Tensor) -> tuple[int, ...]:
        """The number of patches along each side."""
        names, channel = (("length",), 2) if self.dims == 1 else (("height", "width"), 1)
        if x.ndim != self.dims + 2 or x.shape[channel] != self.in_channels:
            expected = [*names, str(self.in_channels)] if self.dims == 1 else [str(self.in_channels), *names]
            raise InputError(f"x: shape {tuple(x.shape)} was given; expected (b, {', '.join(expected)})")
        size = x.shape[1:2] if self.dims == 1 else x.shape[2:]
        for name, n in zip(names, size, strict=True):
            if n % self.patch or n == 0:
                raise InputError(f"x: {name} {n} was given; expected a multiple of the patch, {self.patch}")
        return tuple(n // self.patch for n in size)

    @staticmethod
    def _times(t: Tensor, batch: int, grid: tuple[int, ...]) -> Tensor:
        count = grid[0] if len(grid) == 1 else grid[0] * grid[1]
        if t.ndim == 0:
            return t.expand(batch, 1)
        if t.shape == (batch,):
            return t[:, None]
        if t.shape != (batch, count):
            expected = f"one time a sample, ({batch},), or a token, ({batch}, {count})"
            raise InputError(f"t: shape {tuple(t.shape)} was given; expected {expected}")
        return t

    def _tokens(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        if self.dims == 1:
            return x.reshape(x.shape[0], grid[0], self.patch * x.shape[2])
        rows, columns = grid
        x = x.reshape(x.shape[0], x.shape[1], rows, self.patch, columns, self.patch).permute(0, 2, 4, 1, 3, 5)
        return x.reshape(x.shape[0], rows * columns, x.shape[3] * self.patch**2)

    def _image(self, h: Tensor, grid: tuple[int, ...]) -> Tensor:
        batch, channels, patch = h.shape[0], self.out_channels, self.patch
        if self.dims == 1:
            return h.reshape(batch, grid[0] * patch, channels)
        rows, columns = grid
        h = h.reshape(batch, rows, columns, channels, patch, patch).permute(0, 3, 1, 4, 2, 5)
        return h.reshape(batch, channels, rows * patch, columns * patch)
