"""Sampling while the picture turns: the same start gives one object at any angle.

"Advancing Diffusion Models: Alias-Free Resampling and Enhanced Rotational Equivariance" (2024, arXiv 2411.09174): after each step
the state is rotated a little. It works as far as the network feels rotations little.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.errors import InputError
from tweed.solvers.base import Observer


def rotate(x: Float[Tensor, "*b height width"], angle: float) -> Float[Tensor, "*b height width"]:
    """Images turned about their centre, anticlockwise as they are shown; what leaves at one side comes in at the other.

    Quarter turns are exact. The rest is three shears, each a shift of rows or columns by the Fourier theorem (Larkin, Oldfield &
    Klemm, "Fast Fourier method for the accurate rotation of sampled images", 1997): the inverse is exact, and noise stays
    white through any number of turns, where interpolation would smooth it away.

    Args:
        x: square images.
        angle: in degrees.

    Raises:
        InputError: the images are not square, or the angle is not finite.
    """
    if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        raise InputError(f"x: shape {tuple(x.shape)} was given; expected square images (..., side, side)")
    if not math.isfinite(angle):
        raise InputError(f"angle: {angle} was given; expected a finite number of degrees")
    quarters = round(angle / 90.0)
    rest = math.radians(angle - 90.0 * quarters)
    x = torch.rot90(x, quarters % 4, (-2, -1))
    if rest == 0.0 or x.numel() == 0:
        return x
    # Rows count downwards: anticlockwise on the screen is a negative angle of the indices.
    along, across = math.tan(0.5 * rest), -math.sin(rest)
    x = _shear(x, along)
    x = _shear(x.mT, across).mT
    return _shear(x, along)


def _shear(x: Tensor, slope: float) -> Tensor:
    # Row r moves to the right by slope (r - centre).
    side = x.shape[-1]
    shift = slope * (torch.arange(side, device=x.device, dtype=torch.float64) - 0.5 * (side - 1))
    phase = -2.0 * math.pi * shift[:, None] * torch.fft.rfftfreq(side, device=x.device, dtype=torch.float64)
    turn = torch.polar(torch.ones_like(phase), phase)
    if side % 2 == 0:
        turn[:, -1] = 1.0  # the highest frequency of an even side has no phase: it stays, and so does the energy
    working = torch.promote_types(x.dtype, torch.float32)
    turned = torch.fft.rfft(x.to(working)) * turn.to(torch.promote_types(working, torch.complex64))
    return torch.fft.irfft(turned, n=side).to(x.dtype)


def rotating(angle: float, steps: int) -> Observer:
    """An observer for `tweed.sample` that turns the state by `angle / steps` after each of `steps` steps.

    For solvers that remember no earlier estimates (`DDIM`, `Ancestral`, `Euler`, `Heun` ...): what others remember is not turned.

    Args:
        angle: in degrees, in all; 0 leaves the run as it is, bit for bit.
        steps: of the run.

    Raises:
        InputError: there is no step, or the angle is not finite.
    """
    if steps < 1 or not math.isfinite(angle):
        raise InputError(f"angle, steps: {angle}, {steps} were given; expected a finite angle, and at least 1 step")

    def observer(x: Tensor, t: float | Tensor, i: int) -> Tensor | None:
        return None if angle == 0.0 else rotate(x, angle / steps)

    return observer
