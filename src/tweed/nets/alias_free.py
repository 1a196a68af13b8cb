"""Changes of resolution, and nonlinearities, that alias little: low-pass filters without parameters.

"Advancing Diffusion Models: Alias-Free Resampling and Enhanced Rotational Equivariance" (2024, arXiv 2411.09174), after
Karras et al., "Alias-Free Generative Adversarial Networks" (2021).
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tweed.errors import InputError, choose

Padding = Literal["replicate", "circular", "zeros"]


def low_pass_kernel(
    size: int = 7, cutoff: float = 0.5 * math.pi, beta: float = 2.0, normalise: bool = True, dims: Literal[1, 2] = 2
) -> Float[Tensor, "*sizes"]:
    """A windowed ideal low-pass filter, float64, in one dimension (sinc) or radially symmetric in two (jinc).

    In two dimensions `w J_1(w r) / (2 pi r)`, times a Kaiser window along each axis. Three taps, as in the official code, are
    hardly a low-pass; the default here is seven.

    Args:
        size: taps a side, odd.
        cutoff: `w` in radians a sample, in (0, pi].
        beta: of the Kaiser window.
        normalise: make the taps sum to 1, so that constants pass unchanged.
        dims: 1 or 2.

    Raises:
        InputError: an argument is out of its range.
    """
    if size < 1 or size % 2 == 0 or not 0.0 < cutoff <= math.pi or beta < 0.0:
        raise InputError(
            f"size, cutoff, beta: {size}, {cutoff}, {beta} were given; expected an odd number, (0, pi], at least 0"
        )
    place = torch.arange(size, dtype=torch.float64) - size // 2
    window = torch.kaiser_window(size, periodic=False, beta=beta, dtype=torch.float64)
    if dims == 1:
        kernel = cutoff / math.pi * torch.sinc(place * cutoff / math.pi) * window
    else:
        radius = (place.square()[:, None] + place.square()).sqrt()
        ideal = cutoff * torch.special.bessel_j1(cutoff * radius) / (2.0 * math.pi * radius)
        ideal[size // 2, size // 2] = cutoff**2 / (4.0 * math.pi)
        kernel = ideal * window[:, None] * window
    return kernel / kernel.sum() if normalise else kernel


class _Filter(nn.Module):
    """Every channel through one fixed kernel."""

    def __init__(
        self, dims: Literal[1, 2], size: int, beta: float, normalise: bool, padding: Padding, gain: float = 1.0
    ):
        super().__init__()
        self.dims, self.padding = dims, choose("padding", padding, {p: p for p in ("replicate", "circular", "zeros")})
        kernel = gain * low_pass_kernel(size, beta=beta, normalise=normalise, dims=dims)
        self.register_buffer("kernel", kernel.float(), persistent=False)

    def filtered(self, x: Float[Tensor, "b c *size"], stride: int = 1) -> Float[Tensor, "b c *other"]:
        kernel: Tensor = self.kernel  # type: ignore[assignment]
        half, channels = kernel.shape[0] // 2, x.shape[1]
        mode = "constant" if self.padding == "zeros" else self.padding
        if len(x):
            x = F.pad(x, [half] * (2 * self.dims), mode=mode)
        else:
            x = x.new_zeros(0, channels, *(n + 2 * half for n in x.shape[2:]))
        weight = kernel.to(x.dtype).expand(channels, 1, *kernel.shape)
        convolve = F.conv1d if self.dims == 1 else F.conv2d
        return convolve(x, weight, stride=stride, groups=channels)


class AliasFreeDown(_Filter):
    """Filters away what half the resolution cannot hold, and keeps every second sample of each side.

    Args:
        dims: 1 or 2.
        size, beta, normalise: of the filter, see `low_pass_kernel`.
        padding: "replicate", "circular" or "zeros", at the border.
    """

    def __init__(
        self,
        dims: Literal[1, 2] = 2,
        size: int = 7,
        beta: float = 2.0,
        normalise: bool = True,
        padding: Padding = "replicate",
    ):
        super().__init__(dims, size, beta, normalise, padding)

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *half"]:
        """`x` at half the resolution."""
        return self.filtered(x, stride=2)


class AliasFreeUp(_Filter):
    """Puts zeros between the samples and filters, so that the spectrum stays that of the input.

    Args:
        gain: 2 an axis keeps constants (None); the official code leaves it at 1.
        dims, size, beta, normalise, padding: as in `AliasFreeDown`.
    """

    def __init__(
        self,
        dims: Literal[1, 2] = 2,
        size: int = 7,
        beta: float = 2.0,
        normalise: bool = True,
        padding: Padding = "replicate",
        gain: float | None = None,
    ):
        super().__init__(dims, size, beta, normalise, padding, 2.0**dims if gain is None else gain)

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *double"]:
        """`x` at twice the resolution."""
        apart = x.new_zeros(*x.shape[:2], *(2 * n for n in x.shape[2:]))
        if self.dims == 1:
            apart[..., ::2] = x
        else:
            apart[..., ::2, ::2] = x
        return self.filtered(apart)


class AliasFreeActivation(nn.Module):
    """A nonlinearity at twice the resolution, whose new high frequencies are filtered away: up, `activation`, down.

    Args:
        activation: elementwise.
        dims, size, beta, padding: as in `AliasFreeDown`.
    """

    def __init__(
        self,
        activation: nn.Module,
        dims: Literal[1, 2] = 2,
        size: int = 7,
        beta: float = 2.0,
        padding: Padding = "replicate",
    ):
        super().__init__()
        self.up = AliasFreeUp(dims, size, beta, padding=padding)
        self.activation = activation
        self.down = AliasFreeDown(dims, size, beta, padding=padding)

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *size"]:
        """The nonlinearity of `x`, at its resolution."""
        return self.down(self.activation(self.up(x)))
