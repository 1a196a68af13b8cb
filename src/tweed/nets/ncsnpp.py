"""NCSN++: the score network of continuous-time diffusion, on pictures and on complex spectrograms.

Song et al., "Score-Based Generative Modeling through SDEs" (ICLR 2021), Appendix H: BigGAN's residual blocks, which
resample inside, with anti-aliasing FIR filters; the input, reduced, joins each level on the way down, and each level adds
to an output pyramid on the way up; all sums are divided by sqrt(2). For speech, Richter et al. (TASLP 2023), Section IV-B:
real and imaginary parts as channels, the noisy spectrogram beside the state, log time in Gaussian Fourier features, the
answer divided by the time.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from tweed.errors import InputError
from tweed.nets.attention import SelfAttention, head_count
from tweed.nets.embeddings import TimeEmbedding, batch_times, float_dtype, with_endpoint
from tweed.nets.registry import register, zero
from tweed.nets.unet_blocks import Norm, Pointwise, SpatialAttention, layout

_HALF = 0.5**0.5
Kernel = tuple[int, int]


class Resample(nn.Module):
    """Halves or doubles both sides with the filter (1, 3, 3, 1), which passes a constant unchanged (but at the border)."""

    def __init__(self, up: bool) -> None:
        super().__init__()
        self.up = up

    def forward(self, h: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """`h` at the other resolution."""
        taps = torch.tensor((1.0, 3.0, 3.0, 1.0), dtype=h.dtype, device=h.device) / (4.0 if self.up else 8.0)
        kernel = (taps[:, None] * taps).expand(h.shape[1], 1, 4, 4)
        if self.up:
            return F.conv_transpose2d(h, kernel, stride=2, padding=1, groups=h.shape[1])
        return F.conv2d(h, kernel, stride=2, padding=1, groups=h.shape[1])


def _convolution(channels: int, out_channels: int, kernel: Kernel) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, kernel, padding=(kernel[0] // 2, kernel[1] // 2))


def _norm(channels: int) -> Norm:
    return Norm(math.gcd(min(max(channels // 4, 1), 32), channels), channels)


class ResidualBlock(nn.Module):
    """BigGAN's block: norm, (resampling,) convolution, embedding, norm, convolution; the sum with the shortcut / sqrt(2)."""

    def __init__(
        self, channels: int, out_channels: int, kernel: Kernel, width: int, resample: Resample | None, dropout: float
    ) -> None:
        super().__init__()
        self.resample = nn.Identity() if resample is None else resample
        self.norm1 = _norm(channels)
        self.conv1 = _convolution(channels, out_channels, kernel)
        self.embedding = nn.Linear(width, out_channels)
        self.norm2 = _norm(out_channels)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = zero(_convolution(out_channels, out_channels, kernel))
        changed = channels != out_channels or resample is not None
        self.shortcut = Pointwise(channels, out_channels, 1) if changed else nn.Identity()

    def forward(self, h: Float[Tensor, "b c h w"], embedding: Float[Tensor, "b e"]) -> Float[Tensor, "b o h2 w2"]:
        """The block's answer; `embedding` has been through its nonlinearity already."""
        inner = layout(self.resample(F.silu(self.norm1(h))), self.conv1)
        inner = self.conv1(inner) + self.embedding(embedding)[:, :, None, None]
        inner = self.conv2(self.dropout(F.silu(self.norm2(inner))))
        return (self.shortcut(layout(self.resample(h), self.conv1)) + inner) * _HALF


class Attention(nn.Module):
    """Self-attention over all positions; the sum with the shortcut / sqrt(2)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        norm = _norm(channels)
        inner = SelfAttention(channels, head_count(channels, heads, None), zero_init=True)
        self.attend = SpatialAttention(channels, norm.num_groups, inner)

    def forward(self, h: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """`h` and what attention adds."""
        return self.attend(h) * _HALF


@register("ncsnpp")
class NCSNpp(nn.Module):
    """NCSN++ on (b, in_channels, height, width), real or complex, with an endpoint `y` beside the state.

    The defaults are those published for speech (65 million parameters). Sides must be multiples of
    `patch * 2^(levels - 1)`. Weights are real; a complex state, and then its endpoint, is seen as twice the channels.

    Args:
        in_channels: channels of the state, and of the answer.
        endpoint_channels: channels of the endpoint `y`; 0 for none.
        complex_state: whether state, endpoint and answer are complex.
        channels: channels at the finest level.
        multipliers: channels of each level, as multiples of `channels`.
        blocks: residual blocks a level on the way down (one more on the way up).
        attention_levels: the downsampling factors (1, 2, 4, ..., after `patch`) at which attention is used.
        heads: of attention.
        dropout: probability within the residual blocks.
        patch: rows and columns of the patches folded into channels at the input, for cheap networks; (1, 1) as published.
        kernel: rows and columns of the convolutions, odd; (3, 3) as published. Where all rows are folded into channels,
            (1, 3) is the same network for a third of the work.
        divide_by_time: divide the answer by `t`, as published: the score of a process that widens like `t`. Then `t = 0`
            has no answer.
        log_time: embed `log t` rather than `t`.
        magnitudes: also show the network the absolute value of each bin of the state and of the endpoint (not published).
        scale: what multiplies all that the network sees: about one over the standard deviation of the data.
        gains: where positive, each bin also gets a gain for the state and one for the endpoint, `gains` times what the
            network says, and the answer is `a x + b y + c` (not published: such masks are learned in far fewer steps). It is
            about one over the standard deviation of the state, in units of the answer's.

    Raises:
        InputError: the options do not fit together.
    """

    def __init__(
        self,
        in_channels: int = 1,
        endpoint_channels: int = 1,
        *,
        complex_state: bool = True,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 2, 2, 2),
        blocks: int = 2,
        attention_levels: Sequence[int] = (16,),
        heads: int = 1,
        dropout: float = 0.0,
        patch: Sequence[int] = (1, 1),
        kernel: Sequence[int] = (3, 3),
        divide_by_time: bool = True,
        log_time: bool = True,
        magnitudes: bool = False,
        scale: float = 1.0,
        gains: float = 0.0,
    ) -> None:
        super().__init__()
        levels, factors = len(multipliers), [2**level for level in range(len(multipliers))]
        if not multipliers or min(multipliers) < 1 or blocks < 1 or channels < 2 or channels % 2:
            raise InputError(
                f"channels, multipliers, blocks: {channels}, {list(multipliers)}, {blocks} were given; expected an even "
                "number, positive multipliers, and at least one block"
            )
        for factor in attention_levels:
            if factor not in factors:
                raise InputError(f"attention_levels: {factor} was given; expected downsampling factors among {factors}")
        if gains < 0.0 or (gains and endpoint_channels not in (0, in_channels)):
            raise InputError(f"gains: {gains} was given; expected at least 0, and an endpoint like the state or none")
        if len(patch) != 2 or min(patch) < 1:
            raise InputError(f"patch: {list(patch)} was given; expected two positive numbers, rows and columns")
        if len(kernel) != 2 or min(kernel) < 1 or not all(k % 2 for k in kernel):
            raise InputError(f"kernel: {list(kernel)} was given; expected two odd numbers, rows and columns")
        if not scale > 0.0:
            raise InputError(f"scale: {scale} was given; expected a positive number")
        self.in_channels, self.endpoint_channels, self.complex_state = in_channels, endpoint_channels, complex_state
        self.patch, self.levels, self.divide_by_time, self.log_time = tuple(patch), levels, divide_by_time, log_time
        parts = 2 if complex_state else 1
        self.gains, self.magnitudes, self.scale = gains, magnitudes, scale
        seen = (parts + (1 if magnitudes else 0)) * (in_channels + endpoint_channels)
        answers = parts * in_channels * ((2 if endpoint_channels == 0 else 3) if gains else 1)
        folded, width, widths = seen * patch[0] * patch[1], 4 * channels, [channels * m for m in multipliers]
        told, window = max(seen, answers), (kernel[0], kernel[1])

        self.time = TimeEmbedding(2 * channels, width, "gaussian")
        self.activation = nn.SiLU()
        self.input = _convolution(folded, channels, window)
        self.reduce, self.enlarge = Resample(up=False), Resample(up=True)

        def attend(level: int, here: int) -> nn.Module:
            return Attention(here, heads) if factors[level] in attention_levels else nn.Identity()

        self.down, self.down_attention = nn.ModuleList(), nn.ModuleList()
        self.downsample, self.join_input = nn.ModuleList(), nn.ModuleList()
        current, skips = channels, [channels]
        for level, here in enumerate(widths):
            self.down.append(nn.ModuleList())
            self.down_attention.append(nn.ModuleList())
            for _ in range(blocks):
                self.down[-1].append(ResidualBlock(current, here, window, width, None, dropout))  # type: ignore[union-attr]
                self.down_attention[-1].append(attend(level, here))  # type: ignore[union-attr]
                current = here
                skips.append(current)
            if level < levels - 1:
                self.downsample.append(ResidualBlock(current, current, window, width, self.reduce, dropout))
                self.join_input.append(Pointwise(folded, current, 1))
                skips.append(current)

        self.middle = nn.ModuleList(ResidualBlock(current, current, window, width, None, dropout) for _ in range(2))
        self.middle_attention = Attention(current, heads)

        # On the way up, lists are indexed by level too: 0 is the finest.
        up, up_attention, output = ([nn.Module() for _ in widths] for _ in range(3))
        upsample: list[nn.Module] = [nn.Module() for _ in widths[1:]]
        for level in reversed(range(levels)):
            here = widths[level]
            stack = nn.ModuleList()
            for _ in range(blocks + 1):
                stack.append(ResidualBlock(current + skips.pop(), here, window, width, None, dropout))
                current = here
            up[level], up_attention[level] = stack, attend(level, here)
            output[level] = nn.Sequential(
                _norm(here), nn.SiLU(), zero(_convolution(here, told * patch[0] * patch[1], window))
            )
            if level > 0:
                upsample[level - 1] = ResidualBlock(current, current, window, width, self.enlarge, dropout)
        self.up, self.up_attention, self.output = (nn.ModuleList(m) for m in (up, up_attention, output))
        self.upsample = nn.ModuleList(upsample)
        self.answer = nn.Conv2d(told, answers, 1)

    def forward(
        self,
        x: Shaped[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        y: Shaped[Tensor, "b e h w"] | None = None,
        drop: Bool[Tensor, " b"] | None = None,
    ) -> Shaped[Tensor, "b c h w"]:
        """The network's answer at `x` and `t > 0`, in the dtype of `x`; `drop` has nothing to act on.

        Raises:
            InputError: a shape does not fit, or `x` or `y` is complex where it must not be, or the reverse.
        """
        self._check(x, y)
        t = batch_times(t, x.shape[0])
        embedding = self.activation(self.time(t.log() if self.log_time else t))
        seen = with_endpoint(
            self._real(x), None if y is None else self._real(y), self._parts * self.endpoint_channels, 1
        )
        if self.magnitudes:
            seen = torch.cat((seen, *(known.abs() for known in (x, y) if known is not None)), dim=1)
        pyramid = self._fold(self.scale * seen.to(float_dtype(self)))
        h = self.input(layout(pyramid, self.input))
        skips = [h]
        for level in range(self.levels):
            for block, attention in zip(self.down[level], self.down_attention[level], strict=True):  # type: ignore[arg-type]
                h = attention(block(h, embedding))
                skips.append(h)
            if level < self.levels - 1:
                pyramid = self.reduce(pyramid)
                h = self.downsample[level](h, embedding) + self.join_input[level](pyramid)
                skips.append(h)
        h = self.middle[1](self.middle_attention(self.middle[0](h, embedding)), embedding)
        total: Tensor | None = None
        for level in reversed(range(self.levels)):
            for block in self.up[level]:  # type: ignore[union-attr]
                h = block(torch.cat((h, skips.pop()), dim=1), embedding)
            h = self.up_attention[level](h)
            total = self.output[level](h) if total is None else self.enlarge(total) + self.output[level](h)
            if level > 0:
                h = self.upsample[level - 1](h, embedding)
        assert total is not None
        out = self._unfold(total)
        if self.divide_by_time:
            out = out / t.to(out.dtype)[:, None, None, None]
        answer = self._like(self.answer(out), x)
        if not self.gains:
            return answer
        answer, *gains = answer.split(self.in_channels, dim=1)
        for gain, known in zip(gains, (x,) if y is None else (x, y), strict=True):
            answer = answer + self.gains * gain * known
        return answer

    @property
    def multiple(self) -> tuple[int, int]:
        """What height and width must be multiples of."""
        return self.patch[0] * 2 ** (self.levels - 1), self.patch[1] * 2 ** (self.levels - 1)

    @property
    def _parts(self) -> int:
        return 2 if self.complex_state else 1

    def _real(self, x: Tensor) -> Tensor:
        return torch.cat((x.real, x.imag), dim=1) if self.complex_state else x

    def _like(self, out: Tensor, x: Tensor) -> Tensor:
        if not self.complex_state:
            return out.to(x.dtype).contiguous()
        real, imaginary = out.to(x.dtype.to_real()).chunk(2, dim=1)
        return torch.complex(real.contiguous(), imaginary.contiguous())

    def _fold(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        p, q = self.patch
        return x.reshape(b, c, h // p, p, w // q, q).permute(0, 1, 3, 5, 2, 4).reshape(b, c * p * q, h // p, w // q)

    def _unfold(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        p, q = self.patch
        return x.reshape(b, c // (p * q), p, q, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // (p * q), h * p, w * q)

    def _check(self, x: Tensor, y: Tensor | None) -> None:
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise InputError(f"x: shape {tuple(x.shape)} was given; expected (b, {self.in_channels}, height, width)")
        for name, value in (("x", x), ("y", y)):
            if value is not None and value.is_complex() != self.complex_state:
                raise InputError(f"{name}: {value.dtype} was given; the option complex_state is {self.complex_state}")
        for name, n, factor in zip(("height", "width"), x.shape[2:], self.multiple, strict=True):
            if n == 0 or n % factor:
                raise InputError(f"x: {name} {n} was given; expected a multiple of {factor}")
