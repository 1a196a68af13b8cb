"""The convolutional U-Net of diffusion models, on sequences (1-D) and images (2-D).

Ho et al., "Denoising Diffusion Probabilistic Models" (2020); Dhariwal & Nichol, "Diffusion Models Beat GANs on Image
Synthesis" (2021) for the scale-shift norm; Rombach et al. (2022) for cross-attention to tokens.

Every part is a named submodule: `down.{level}.{block}`, `middle.{i}`, `up.{level}.{block}` are `Stage`s (`.residual`,
`.attention`, `.cross`), `downsample.{level}` and `upsample.{level}` change the resolution, and each skip connection
meets the stream in `join.{level}.{block}`, so hooks reach gates, caches and skip scaling by name.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tweed.errors import InputError, choose
from tweed.nets.attention import AttentionKind, CrossAttention, SelfAttention, head_count
from tweed.nets.embeddings import Conditioning, TimeEmbedding, TimeFeatures, batch_times, float_dtype, with_endpoint
from tweed.nets.registry import register, zero
from tweed.nets.routing import ChannelRouting, RoutingMode
from tweed.nets.skips import SkipKind, SkipScale
from tweed.nets.unet_blocks import (
    Join,
    Norm,
    Resample,
    Residual,
    SpatialAttention,
    Stage,
    downsample,
    fold,
    layout,
    unfold,
    upsample,
)


@register("unet")
class UNet(nn.Module):
    """U-Net on (b, in_channels, length) or (b, in_channels, height, width).

    Any size that `patch * 2^(levels - 1)` divides goes in. On the CPU the memory layout is chosen inside; on
    other devices that of the input and of the weights decides. `net.to(memory_format=torch.channels_last)` is the
    fastest for images everywhere (make the weights contiguous again before saving them).

    Args:
        in_channels: channels of the input, without those of the endpoint.
        out_channels: channels of the output; None for `in_channels`.
        dims: 1 for sequences, 2 for images.
        channels: channels at the finest level.
        multipliers: channels of each level, as multiples of `channels`; their number is that of the levels.
        blocks: residual blocks a level on the way down (one more on the way up), one number or one a level.
        attention_levels: the downsampling factors (1, 2, 4, ..., after `patch`) at which attention is used; None for
            the coarsest level only.
        middle_attention: attention at the bottom.
        heads: attention heads, where `head_dim` is None.
        head_dim: features a head; then wider levels have more heads.
        scale_shift: the embedding scales and shifts, rather than shifts.
        groups: groups of the group normalisation; must divide all channel counts.
        dropout: probability within the residual blocks.
        num_classes: number of labels, 0 for no label condition.
        vector_dim: size of the vector condition, 0 for none.
        token_dim: size of one condition token, 0 for none; tokens enter by cross-attention, wherever attention is.
        endpoint_channels: channels of the endpoint `y`, concatenated to the input; 0 for none.
        patch: side of the patches folded into channels at the input, and unfolded at the output.
        embedding_dim: size of the embedding of time and conditions; None for `4 * channels`.
        time_features: `"sinusoidal"` or `"gaussian"`.
        time_scale: see `TimeEmbedding`.
        zero_init: start the last convolution of each block, of the network, and attention's outputs at zero.
        attention: `"sdpa"`, or `"math"` for second derivatives through the network.
        gradient_checkpointing: in training, recompute each stage in the backward pass rather than keep it.
        resample: changes of resolution by `"conv"` (strided; repeated and convolved), or without parameters by `"pool"`
            (maxima; interpolation) or `"alias-free"` (low-pass filters, see `AliasFreeDown`).
        filtered_activations: nonlinearities at twice the resolution and filtered (see `AliasFreeActivation`), at 4^dims / 2^dims
            times their cost.
        skip_scale, skip_kappa: scaling of the long skips, see `SkipScale`.
        routing: share of the channels that a residual block sees at one time (see `ChannelRouting`); 1 for all. The time must
            then be that of the process, in [0, 1].
        routing_power, routing_mode: how the window slides, and "random" for the baseline.

    Raises:
        InputError: the options do not fit together.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int | None = None,
        *,
        dims: Literal[1, 2] = 2,
        channels: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int | Sequence[int] = 2,
        attention_levels: Sequence[int] | None = None,
        middle_attention: bool = True,
        heads: int = 4,
        head_dim: int | None = None,
        scale_shift: bool = False,
        groups: int = 32,
        dropout: float = 0.0,
        num_classes: int = 0,
        vector_dim: int = 0,
        token_dim: int = 0,
        endpoint_channels: int = 0,
        patch: int = 1,
        embedding_dim: int | None = None,
        time_features: TimeFeatures = "sinusoidal",
        time_scale: float | None = None,
        zero_init: bool = True,
        attention: AttentionKind = "sdpa",
        gradient_checkpointing: bool = False,
        resample: Resample = "conv",
        filtered_activations: bool = False,
        skip_scale: SkipKind = "none",
        skip_kappa: float = 0.7,
        routing: float = 1.0,
        routing_power: float = 4.0,
        routing_mode: RoutingMode = "window",
    ) -> None:
        super().__init__()
        choose("resample", resample, ("conv", "pool", "alias-free"))
        levels = len(multipliers)
        counts = [blocks] * levels if isinstance(blocks, int) else list(blocks)
        widths = [channels * multiplier for multiplier in multipliers]
        if attention_levels is None:
            attention_levels = (2 ** (levels - 1),)
        _check_options(channels, widths, counts, attention_levels, groups, patch)
        conv: Any = nn.Conv1d if dims == 1 else nn.Conv2d
        width = 4 * channels if embedding_dim is None else embedding_dim
        self.in_channels, self.dims, self.patch, self.levels = in_channels, dims, patch, levels
        self.out_channels = in_channels if out_channels is None else out_channels
        self.endpoint_channels, self.gradient_checkpointing = endpoint_channels, gradient_checkpointing

        def attend(here: int, cross: bool) -> nn.Module:
            count = head_count(here, heads, head_dim)
            if cross:
                return SpatialAttention(
                    here, groups, CrossAttention(here, token_dim, count, attention, zero_init=zero_init)
                )
            return SpatialAttention(here, groups, SelfAttention(here, count, attention, zero_init=zero_init))

        def stage(before: int, here: int, attends: bool) -> Stage:
            residual = Residual(
                conv, before, here, width, groups, dropout, scale_shift, zero_init, filtered_activations
            )
            routed.add(before)
            return Stage(
                residual,
                attend(here, False) if attends else None,
                attend(here, True) if attends and token_dim else None,
            )

        routed: set[int] = set()  # channels of the blocks' inputs
        self.time = TimeEmbedding(channels, width, time_features, time_scale)
        self.condition = Conditioning(width, num_classes, vector_dim, token_dim)
        self.activation = nn.SiLU()
        self.input = conv((in_channels + endpoint_channels) * patch**dims, channels, 3, padding=1)

        self.down, self.downsample = nn.ModuleList(), nn.ModuleList()
        current, skips = channels, [channels]
        for level, here in enumerate(widths):
            stages = nn.ModuleList()
            for _ in range(counts[level]):
                stages.append(stage(current, here, 2**level in attention_levels))
                current = here
                skips.append(current)
            self.down.append(stages)
            if level < levels - 1:
                self.downsample.append(downsample(resample, conv, current))
                skips.append(current)
        self.skips = SkipScale(skip_scale, skips, skip_kappa)

        self.middle = nn.ModuleList([stage(current, current, middle_attention), stage(current, current, False)])

        # On the way up, lists are indexed by level too: 0 is the finest.
        up, join = [nn.ModuleList() for _ in widths], [nn.ModuleList() for _ in widths]
        self.upsample = nn.ModuleList(upsample(resample, conv, widths[level]) for level in range(1, levels))
        for level in reversed(range(levels)):
            for _ in range(counts[level] + 1):
                join[level].append(Join())
                up[level].append(stage(current + skips.pop(), widths[level], 2**level in attention_levels))
                current = widths[level]
        self.up, self.join = nn.ModuleList(up), nn.ModuleList(join)
        routings = sorted(routed) if routing != 1.0 else []
        self.routing = nn.ModuleDict(
            {str(n): ChannelRouting(n, routing, routing_power, routing_mode) for n in routings}
        )

        self.norm = Norm(groups, current)
        self.output = conv(current, self.out_channels * patch**dims, 3, padding=1)
        if zero_init:
            zero(self.output)

    def forward(
        self,
        x: Float[Tensor, "b c *size"],
        t: Float[Tensor, " b"],
        label: Int[Tensor, " b"] | None = None,
        vector: Float[Tensor, "b v"] | None = None,
        tokens: Float[Tensor, "b n d"] | None = None,
        drop: Bool[Tensor, " b"] | None = None,
        y: Float[Tensor, "b e *size"] | None = None,
    ) -> Float[Tensor, "b o *size"]:
        """The network's answer at `x` and `t`, in the dtype of `x`.

        Raises:
            InputError: a shape does not fit, or a condition was given that the network was not built for.
        """
        self._check_input(x)
        told, context = self.condition(x, label, vector, tokens, drop)
        t = batch_times(t, x.shape[0])
        time = self.time(t)
        embedding = self.activation(time if told is None else time + told)
        masks = {int(name): routing(t) for name, routing in self.routing.items()}

        h = with_endpoint(x.to(float_dtype(self)), y, self.endpoint_channels, 1)
        h = self.input(layout(fold(h, self.patch), self.input))
        skips = [h]
        for level in range(self.levels):
            for stage in self.down[level]:  # type: ignore[union-attr]
                h = self._run(stage, h, embedding, context, masks)
                skips.append(h)
            if level < self.levels - 1:
                h = layout(self.downsample[level](h), self.downsample[level])
                skips.append(h)
        for stage in self.middle:
            h = self._run(stage, h, embedding, context, masks)
        for level in reversed(range(self.levels)):
            for join, stage in zip(self.join[level], self.up[level], strict=True):  # type: ignore[arg-type]
                skip = skips.pop()
                h = self._run(stage, join(h, self.skips(skip, len(skips))), embedding, context, masks)
            if level > 0:
                h = self.upsample[level - 1](h)
        out = unfold(self.output(F.silu(self.norm(h))), self.patch).to(x.dtype)
        return out if x.stride(1) == 1 else out.contiguous()

    def _run(
        self, stage: nn.Module, h: Tensor, embedding: Tensor, context: Tensor | None, masks: dict[int, Tensor]
    ) -> Tensor:
        mask = masks.get(h.shape[1])
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(stage, h, embedding, context, mask, use_reentrant=False)  # type: ignore[return-value]
        return stage(h, embedding, context, mask)

    def _check_input(self, x: Tensor) -> None:
        size = ("length",) if self.dims == 1 else ("height", "width")
        if x.ndim != self.dims + 2 or x.shape[1] != self.in_channels:
            expected = f"(b, {self.in_channels}, {', '.join(size)})"
            raise InputError(f"x: shape {tuple(x.shape)} was given; expected {expected}")
        factor = self.patch * 2 ** (self.levels - 1)
        for name, n in zip(size, x.shape[2:], strict=True):
            if n % factor or n == 0:
                why = f"patch {self.patch} and {self.levels - 1} downsamplings"
                raise InputError(f"x: {name} {n} was given; expected a multiple of {factor} ({why})")


def _check_options(
    channels: int, widths: list[int], counts: list[int], attention_levels: Sequence[int], groups: int, patch: int
) -> None:
    if not widths or len(counts) != len(widths) or min(counts) < 1:
        raise InputError(f"blocks: {counts} for {len(widths)} levels; expected one positive number, or one a level")
    if patch < 1:
        raise InputError(f"patch: {patch} was given; expected at least 1")
    for width in (channels, *widths):
        if width < 1 or groups < 1 or width % groups:
            raise InputError(f"groups: {groups} was given; expected a divisor of the {width} channels of a level")
    factors = [2**level for level in range(len(widths))]
    for factor in attention_levels:
        if factor not in factors:
            raise InputError(f"attention_levels: {factor} was given; expected downsampling factors among {factors}")


def ddpm_cifar() -> dict[str, Any]:
    """The 35.7M-parameter network of DDPM for 32x32 images (Ho et al., 2020, appendix B), as a config for `build`."""
    return {
        "name": "unet",
        "in_channels": 3,
        "channels": 128,
        "multipliers": [1, 2, 2, 2],
        "blocks": 2,
        "attention_levels": [2],
        "heads": 1,
        "groups": 32,
        "dropout": 0.1,
    }
