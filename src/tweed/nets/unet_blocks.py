"""The parts of the convolutional U-Net: residual blocks, attention over positions, changes of resolution and layout."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tweed.nets.alias_free import AliasFreeActivation, AliasFreeDown, AliasFreeUp
from tweed.nets.registry import zero

Resample = Literal["conv", "pool", "alias-free"]


class Pointwise(nn.Conv2d):
    """A 1x1 convolution; on channels-last input one matrix product, without a copy."""

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h w"]:
        """The convolution of `input`."""
        if input.stride(1) == 1:
            return F.linear(input.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        return super().forward(input)


class Norm(nn.GroupNorm):
    """Group normalisation; on a CPU in float32, whose kernel is several times faster than that of bfloat16."""

    def forward(self, input: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *size"]:
        """The normalised `input`, in its type."""
        if input.dtype is not torch.bfloat16 or input.device.type != "cpu":
            return super().forward(input)
        weight, bias = self.weight.float(), self.bias.float()
        return F.group_norm(input.float(), self.num_groups, weight, bias, self.eps).to(input.dtype)


class Residual(nn.Module):
    """Two normalised convolutions around the embedding of time and conditions, plus a shortcut.

    The embedding enters as a shift after the first convolution, or, with `scale_shift`, as a scale and a shift after
    the second normalisation.
    """

    def __init__(
        self,
        conv: type[nn.Conv1d] | type[nn.Conv2d],
        channels: int,
        out_channels: int,
        width: int,
        groups: int,
        dropout: float,
        scale_shift: bool,
        zero_init: bool,
        filtered: bool = False,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        dims: Any = 1 if conv is nn.Conv1d else 2
        self.activation = AliasFreeActivation(nn.SiLU(), dims) if filtered else nn.SiLU()
        self.norm1 = Norm(groups, channels)
        self.conv1 = conv(channels, out_channels, 3, padding=1)
        self.embedding = nn.Linear(width, 2 * out_channels if scale_shift else out_channels)
        self.norm2 = Norm(groups, out_channels)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = conv(out_channels, out_channels, 3, padding=1)
        if zero_init:
            zero(self.conv2)
        pointwise = Pointwise if conv is nn.Conv2d else conv
        self.shortcut = pointwise(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(
        self,
        h: Float[Tensor, "b c *size"],
        embedding: Float[Tensor, "b w"],
        mask: Float[Tensor, "b c"] | None = None,
    ) -> Float[Tensor, "b o *size"]:
        """The block's answer; `embedding` has been through its nonlinearity already.

        The convolutions see the channels that `mask` leaves, the shortcut all.
        """
        seen = h if mask is None else h * mask.reshape(*mask.shape, *[1] * (h.ndim - 2)).to(h.dtype)
        inner = self.conv1(self.activation(self.norm1(seen)))
        told = self.embedding(embedding).to(inner.dtype)
        told = told.reshape(*told.shape, *[1] * (h.ndim - 2))
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            inner = torch.addcmul(shift, self.norm2(inner), 1 + scale)
        else:
            inner = self.norm2(inner + told)
        return self.shortcut(h) + self.conv2(self.dropout(self.activation(inner)))


class SpatialAttention(nn.Module):
    """Normalisation, attention over all positions (to one another, or to a context), and a shortcut."""

    def __init__(self, channels: int, groups: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm = Norm(groups, channels)
        self.attention = attention

    def forward(self, h: Float[Tensor, "b c *size"], *context: Tensor) -> Float[Tensor, "b c *size"]:
        """`h` plus what attention adds; `context` (b, n, d) for cross-attention."""
        tokens = self.norm(h).flatten(2).transpose(1, 2)  # a view where h is channels-last
        return h + self.attention(tokens, *context).transpose(1, 2).reshape(h.shape)


class Stage(nn.Module):
    """One residual block with the attention that follows it at this resolution: the unit of the network."""

    def __init__(self, residual: Residual, attention: nn.Module | None, cross: nn.Module | None) -> None:
        super().__init__()
        self.residual, self.attention, self.cross = residual, attention, cross

    def forward(
        self,
        h: Float[Tensor, "b c *size"],
        embedding: Float[Tensor, "b w"],
        context: Float[Tensor, "b n d"] | None,
        mask: Float[Tensor, "b c"] | None = None,
    ) -> Float[Tensor, "b o *size"]:
        """The state after this stage, whose residual block sees the channels that `mask` leaves."""
        h = self.residual(h, embedding, mask)
        if self.attention is not None:
            h = self.attention(h)
        if self.cross is not None and context is not None:
            h = self.cross(h, context)
        return h


class Upsample(nn.Module):
    """Doubles every side by repetition, then convolves."""

    def __init__(self, conv: type[nn.Conv1d] | type[nn.Conv2d], channels: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels, 3, padding=1)

    def forward(self, h: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *double"]:
        """The state at twice the resolution."""
        return self.conv(F.interpolate(layout(h, self.conv, growth=4), scale_factor=2.0, mode="nearest"))


def downsample(kind: Resample, conv: type[nn.Conv1d] | type[nn.Conv2d], channels: int) -> nn.Module:
    """Halves every side: a strided convolution, or, without parameters, the maximum of each 2 x 2, or a low-pass filter."""
    if kind == "conv":
        return conv(channels, channels, 3, stride=2, padding=1)
    one = conv is nn.Conv1d
    return AliasFreeDown(1 if one else 2) if kind == "alias-free" else (nn.MaxPool1d if one else nn.MaxPool2d)(2)


def upsample(kind: Resample, conv: type[nn.Conv1d] | type[nn.Conv2d], channels: int) -> nn.Module:
    """Doubles every side: repetition and a convolution, or, without parameters, linear interpolation, or a filter."""
    if kind == "conv":
        return Upsample(conv, channels)
    one = conv is nn.Conv1d
    return (
        AliasFreeUp(1 if one else 2)
        if kind == "alias-free"
        else nn.Upsample(scale_factor=2.0, mode="linear" if one else "bilinear")
    )


class Join(nn.Module):
    """Where a skip connection meets the stream: they are concatenated along the channels."""

    def forward(self, h: Float[Tensor, "b c *size"], skip: Float[Tensor, "b s *size"]) -> Float[Tensor, "b cs *size"]:
        """Stream and skip side by side."""
        return torch.cat((h, skip), dim=1)


def layout(h: Tensor, conv: nn.Module, growth: int = 1) -> Tensor:
    """`h` in the memory layout that suits `conv`, before which the map grows by a factor `growth`.

    On the CPU, channels-last convolutions are faster on large maps (from 16 x 16), but not worth a copy of the weights
    on small ones. Elsewhere `h` is left as it is.
    """
    # Permutations rather than memory formats, which vmap cannot follow.
    if h.ndim != 4 or h.device.type != "cpu":
        return h
    if growth * h.shape[2] * h.shape[3] >= 256 or getattr(conv, "weight", h).stride(1) == 1:
        return h.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return h.contiguous()


def fold(x: Tensor, patch: int) -> Tensor:
    """Patches into channels, in the order of `F.pixel_unshuffle` (which lets an empty batch through unchanged)."""
    if patch == 1:
        return x
    if x.ndim == 4:
        b, c, rows, columns = x.shape[0], x.shape[1], x.shape[2] // patch, x.shape[3] // patch
        x = x.reshape(b, c, rows, patch, columns, patch).permute(0, 1, 3, 5, 2, 4)
        return x.reshape(b, c * patch**2, rows, columns)
    b, c, length = x.shape[0], x.shape[1], x.shape[2] // patch
    return x.reshape(b, c, length, patch).transpose(2, 3).reshape(b, c * patch, length)


def unfold(x: Tensor, patch: int) -> Tensor:
    """The inverse of `fold`."""
    if patch == 1:
        return x
    if x.ndim == 4:
        b, c, rows, columns = x.shape[0], x.shape[1] // patch**2, x.shape[2], x.shape[3]
        x = x.reshape(b, c, patch, patch, rows, columns).permute(0, 1, 4, 2, 5, 3)
        return x.reshape(b, c, rows * patch, columns * patch)
    b, c, length = x.shape[0], x.shape[1] // patch, x.shape[2]
    return x.reshape(b, c, patch, length).transpose(2, 3).reshape(b, c, length * patch)
