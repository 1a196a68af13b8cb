"""What a network is told besides its input: time, position, and conditioning with learned nulls.

Shapes: `b` batch, `n` tokens, `d` features. Phases are computed in float32 or better whatever the precision of the
network, because a time rounded to bfloat16 has only 8 bits.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tweed.errors import InputError
from tweed.nets.registry import fill

TimeFeatures = Literal["sinusoidal", "gaussian"]


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def sinusoidal(x: Float[Tensor, "*shape"], dim: int, *, scale: float = 1.0, period: float = 10000.0) -> Tensor:
    """`[cos(w_k scale x), sin(w_k scale x)]` with `w_k = period^(-2k / dim)`, shape (*shape, dim), float32 or better.

    The position features of "Attention Is All You Need" (Vaswani et al., 2017), cosines first.

    Raises:
        InputError: `dim` is odd or not positive.
    """
    _check_features(dim)
    phases = _wide(x).unsqueeze(-1) * (scale * _frequencies(dim // 2, period, x.device))
    return torch.cat((phases.cos(), phases.sin()), dim=-1)


def _check_features(dim: int) -> None:
    if dim < 2 or dim % 2:
        raise InputError(f"dim: {dim} was given; expected a positive even number of Fourier features")


def _frequencies(count: int, period: float, device: torch.device) -> Float[Tensor, " k"]:
    return torch.exp(torch.arange(count, device=device, dtype=torch.float32) * (-math.log(period) / count))


class SinusoidalFeatures(nn.Module):
    """`sinusoidal` as a module without parameters. `scale` = 1000 maps t in [0, 1] to the usual range of timesteps."""

    def __init__(self, dim: int, scale: float = 1000.0) -> None:
        super().__init__()
        _check_features(dim)
        self.dim, self.scale = dim, scale

    def forward(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape d"]:
        """Features of the times `t`, in float32 or better."""
        return sinusoidal(t, self.dim, scale=self.scale)


class GaussianFeatures(nn.Module):
    """Random Fourier features `[cos(2 pi f_k t), sin(2 pi f_k t)]`, `f_k ~ N(0, scale^2)`, drawn once, never learned.

    Tancik et al., "Fourier Features Let Networks Learn High Frequency Functions" (2020); for time, Song et al. (2021),
    with `scale` = 16. The frequencies stay in float32 when the network is moved to another precision.

    Raises:
        InputError: `dim` is odd or not positive.
    """

    def __init__(self, dim: int, scale: float = 16.0) -> None:
        super().__init__()
        _check_features(dim)
        self.scale = scale
        self.register_buffer("frequencies", torch.zeros(dim // 2, dtype=torch.float32))
        self.frequencies: Tensor

    def reset(self, draws: torch.Generator) -> None:
        """Draws the frequencies."""
        fill(self.frequencies, torch.randn(self.frequencies.shape, generator=draws, device="cpu") * self.scale)

    def _apply(self, fn, recurse: bool = True):
        exact = self.frequencies
        super()._apply(fn, recurse)
        if self.frequencies.dtype != torch.float32:  # a change of precision: keep the device, not the rounding
            self.frequencies = exact.to(self.frequencies.device)
        return self

    def forward(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape d"]:
        """Features of the times `t`, in float32 or better."""
        phases = _wide(t).unsqueeze(-1) * (self.frequencies * (2 * math.pi))
        return torch.cat((phases.cos(), phases.sin()), dim=-1)


def _time_features(kind: str, dim: int, scale: float | None) -> nn.Module:
    if kind == "sinusoidal":
        return SinusoidalFeatures(dim, 1000.0 if scale is None else scale)
    if kind == "gaussian":
        return GaussianFeatures(dim, 16.0 if scale is None else scale)
    raise InputError(f"time_features: {kind!r} was given; expected 'sinusoidal' or 'gaussian'")


class TimeEmbedding(nn.Module):
    """Fourier features of time, then Linear - SiLU - Linear: (*shape) -> (*shape, width).

    Args:
        dim: the number of features, even.
        width: the size of the embedding.
        kind: `"sinusoidal"` or `"gaussian"`.
        scale: what multiplies `t` (sinusoidal, default 1000) or the spread of the frequencies (gaussian, default 16).
    """

    def __init__(self, dim: int, width: int, kind: TimeFeatures = "sinusoidal", scale: float | None = None) -> None:
        super().__init__()
        self.features = _time_features(kind, dim, scale)
        self.expand = nn.Linear(dim, width)
        self.activation = nn.SiLU()
        self.project = nn.Linear(width, width)

    def forward(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape width"]:
        """The embedding of the times `t`, in the precision of the weights."""
        features = self.features(t).to(self.expand.weight.dtype)
        return self.project(self.activation(self.expand(features)))


class Conditioning(nn.Module):
    """Label, vector and token conditions, each with a learned null.

    The label and the vector become one embedding of size `width`, to be added to that of time. Tokens are normalised
    and returned for cross-attention; a null condition replaces every token by one learned token, so that attention
    gives the same answer however many there are.

    Args:
        width: the size of the embedding.
        num_classes: the number of labels, 0 for none. The label `num_classes` is the null one.
        vector_dim: the size of the vector, 0 for none.
        token_dim: the size of one token, 0 for none.
    """

    def __init__(self, width: int, num_classes: int = 0, vector_dim: int = 0, token_dim: int = 0) -> None:
        super().__init__()
        self.num_classes, self.vector_dim, self.token_dim = num_classes, vector_dim, token_dim
        if num_classes:
            self.label = nn.Embedding(num_classes + 1, width)
        if vector_dim:
            self.vector = nn.Linear(vector_dim, width)
            self.null_vector = nn.Parameter(torch.zeros(width))
        if token_dim:
            self.norm = nn.LayerNorm(token_dim)
            self.null_token = nn.Parameter(torch.zeros(token_dim))

    def reset(self, draws: torch.Generator) -> None:
        """Draws the learned nulls of vector and tokens."""
        for name in ("null_vector", "null_token"):
            null = getattr(self, name, None)
            if null is not None:
                fill(null, torch.randn(null.shape, generator=draws, device="cpu") * 0.02)

    def forward(
        self,
        x: Float[Tensor, "b ..."],
        label: Int[Tensor, " b"] | None = None,
        vector: Float[Tensor, "b v"] | None = None,
        tokens: Float[Tensor, "b n d"] | None = None,
        drop: Bool[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b width"] | None, Float[Tensor, "b n d"] | None]:
        """The embedding and the tokens for a batch like `x`; None for what the network is not conditioned on.

        Raises:
            InputError: a condition that the network was not built for, or of a wrong shape.
        """
        batch, device = x.shape[0], x.device
        _check("label", label, self.num_classes, "num_classes", (batch,))
        _check("vector", vector, self.vector_dim, "vector_dim", (batch, self.vector_dim))
        _check("tokens", tokens, self.token_dim, "token_dim", (batch, None, self.token_dim))
        if drop is None:
            drop = torch.zeros(batch, dtype=torch.bool, device=device)
        elif drop.shape != (batch,) or drop.dtype != torch.bool:
            raise InputError(f"drop: {drop.dtype} of shape {tuple(drop.shape)} was given; expected bool, ({batch},)")
        embedding = None
        if self.num_classes:
            null = torch.full((batch,), self.num_classes, dtype=torch.long, device=device)
            embedding = self.label(null if label is None else torch.where(drop, null, label))
        if self.vector_dim:
            part = self.null_vector.expand(batch, -1)
            if vector is not None:
                given = self.vector(vector.to(self.null_vector.dtype))
                part = torch.where(drop[:, None], part.to(given.dtype), given)
            embedding = part if embedding is None else embedding + part
        context = None
        if self.token_dim:
            context = self.null_token.expand(batch, 1, -1)
            if tokens is not None:
                given = self.norm(tokens.to(self.null_token.dtype))
                context = torch.where(drop[:, None, None], context.to(given.dtype), given)
        return embedding, context


def _check(name: str, value: Tensor | None, size: int, option: str, shape: tuple[int | None, ...]) -> None:
    if value is None:
        return
    if not size:
        raise InputError(f"{name}: a tensor was given; this network has no such condition (its option {option!r} is 0)")
    fits = value.ndim == len(shape) and all(want in (None, have) for have, want in zip(value.shape, shape, strict=True))
    if not fits or 0 in value.shape[1:]:
        expected = tuple("N > 0" if want is None else want for want in shape)
        raise InputError(f"{name}: shape {tuple(value.shape)} was given; expected {expected}")


def grid_positions(size: Sequence[int], device: torch.device | None = None) -> Float[Tensor, "n axes"]:
    """The integer coordinates of all cells of a grid of this size, in row-major order, as float32."""
    axes = [torch.arange(n, device=device, dtype=torch.float32) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, len(axes))


def sincos_positions(positions: Float[Tensor, "n axes"], dim: int) -> Float[Tensor, "n d"]:
    """Sine-cosine position embedding, the `dim` features shared evenly among the axes (Vaswani et al., 2017).

    Raises:
        InputError: `dim` is not a multiple of twice the number of axes.
    """
    axes = positions.shape[-1]
    if dim % (2 * axes):
        raise InputError(f"dim: {dim} was given; expected a multiple of {2 * axes} for positions on {axes} axes")
    return sinusoidal(positions, dim // axes).flatten(-2)


def rotary(
    positions: Float[Tensor, "n axes"], dim: int, *, period: float = 10000.0
) -> tuple[Float[Tensor, "n half"], Float[Tensor, "n half"]]:
    """Cosines and sines for `rotate`: each axis turns its own share of the `dim / 2` pairs of features.

    Su et al., "RoFormer" (2021); on several axes, axis by axis.

    Raises:
        InputError: `dim` is not a multiple of twice the number of axes.
    """
    axes = positions.shape[-1]
    if dim % (2 * axes):
        raise InputError(f"dim: {dim} was given; expected a multiple of {2 * axes} for rotary positions on {axes} axes")
    frequencies = _frequencies(dim // (2 * axes), period, positions.device)
    phases = (_wide(positions).unsqueeze(-1) * frequencies).flatten(-2)
    return phases.cos(), phases.sin()


def rotate(
    x: Float[Tensor, "... n d"], cos: Float[Tensor, "n half"], sin: Float[Tensor, "n half"]
) -> Float[Tensor, "... n d"]:
    """Turns the pairs `(x_k, x_{k + d/2})` by `rotary`'s angles: inner products then see relative positions only."""
    first, second = _wide(x).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def batch_times(t: Float[Tensor, "..."], batch: int) -> Float[Tensor, " b"]:
    """`t` as (b,): a single time is shared by the batch.

    Raises:
        InputError: `t` is neither of shape () nor (b,).
    """
    if t.ndim == 0:
        return t.expand(batch)
    if t.shape != (batch,):
        raise InputError(f"t: shape {tuple(t.shape)} was given; expected one time a sample, ({batch},)")
    return t


def with_endpoint(x: Tensor, y: Tensor | None, channels: int, dim: int) -> Tensor:
    """`x` with the endpoint `y` appended along `dim`, as the option `endpoint_channels` = `channels` asks.

    Raises:
        InputError: `y` is given but not expected, missing, or does not fit.
    """
    if not channels:
        if y is not None:
            raise InputError("y: an endpoint was given; this network takes none (its option 'endpoint_channels' is 0)")
        return x
    shape = list(x.shape)
    shape[dim] = channels
    if y is None or list(y.shape) != shape:
        raise InputError(
            f"y: {None if y is None else tuple(y.shape)} was given; expected an endpoint of {tuple(shape)}"
        )
    return torch.cat((x, y.to(x.dtype)), dim=dim)


def float_dtype(module: nn.Module) -> torch.dtype:
    """The precision of the first floating-point parameter of `module`, float32 if it has none."""
    for parameter in module.parameters():
        if parameter.is_floating_point():
            return parameter.dtype
    return torch.float32
