"""Is a learned score a gradient? Circulation around loops, and asymmetry of its Jacobian, noise level by noise level.

Around a closed loop at one time the integral of a gradient vanishes (Horvat & Pfister, ICLR 2024; "Are We Really Learning
the Score Function?", TMLR 2025, arXiv 2509.00336). Loops are circles about noised data: a trapezoid rule on M points is
exact to rounding on smooth fields.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.analysis.jacobian import asymmetry
from tweed.core import random
from tweed.core.denoiser import Denoiser
from tweed.errors import InputError


@dataclass(frozen=True)
class Conservativity:
    """Medians over the samples at one time; all 0 for a gradient field.

    Attributes:
        t: the time.
        circulation: `|loop integral s . dl| / loop integral |s . dl|`, between 0 and 1.
        curl: root mean square of the loop integral over the enclosed area, in units of the score over a length.
        asymmetry: `|J - J^T| / |J + J^T|`.
    """

    t: float
    circulation: float
    curl: float
    asymmetry: float


def circulation(
    denoiser: Denoiser,
    centre: Float[Tensor, "b *event"],
    first: Float[Tensor, "b *event"],
    second: Float[Tensor, "b *event"],
    radius: float,
    t: float,
    points: int = 64,
    **cond: Tensor,
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """The integrals of `s . dl` and `|s . dl|` around circles in the planes of two orthonormal directions; float64.

    Raises:
        InputError: fewer than 3 points, or a radius that is not positive.
    """
    if points < 3 or not radius > 0.0:
        raise InputError(f"points, radius: {points}, {radius} were given; expected at least 3, and a positive number")
    total = torch.zeros(len(centre), dtype=torch.float64, device=centre.device)
    size = torch.zeros_like(total)
    angles = torch.arange(points, dtype=torch.float64) * (2.0 * torch.pi / points)
    with torch.no_grad():
        for cosine, sine in zip(angles.cos().tolist(), angles.sin().tolist(), strict=True):
            score = denoiser(centre + radius * (cosine * first + sine * second), t, **cond).score
            along = (score * (cosine * second - sine * first)).double().flatten(1).sum(1)
            total, size = total + along, size + along.abs()
    step = 2.0 * torch.pi * radius / points
    return total * step, size * step


def planes(
    shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Float[Tensor, "b *event"], Float[Tensor, "b *event"]]:
    """Two orthonormal directions for each sample, drawn at random."""
    a, b = (random.normal(shape, seed, draw=k, dtype=torch.float64).flatten(1) for k in range(2))
    a = a / a.norm(dim=1, keepdim=True)
    b = b - (a * b).sum(1, keepdim=True) * a
    b = b / b.norm(dim=1, keepdim=True)
    return a.reshape(shape).to(dtype), b.reshape(shape).to(dtype)


def conservativity(
    denoiser: Denoiser,
    data: Float[Tensor, "n *event"],
    times: Iterable[float],
    *,
    radius: float = 1.0,
    points: int = 64,
    probes: int = 4,
    seed: int = 0,
    cond: dict[str, Tensor] | None = None,
) -> list[Conservativity]:
    """The report: at each time, data noised to it, circles of `radius` noise standard deviations about it, and probes."""
    held, found = dict(cond or {}), []
    for number, t in enumerate(times):
        noise = random.normal(data.shape, seed, draw=number, dtype=torch.float64, device=data.device)
        x = denoiser.process.perturb(data.double(), t, noise).to(data.dtype)
        size = radius * denoiser.process.level(t).sigma
        a, b = planes(tuple(x.shape), random.fold(seed, number), x.dtype)
        around, path = circulation(denoiser, x, a, b, size, t, points, **held)
        skew = asymmetry(denoiser, x, t, probes, random.fold(seed, 7, number), **held)
        curl = (around / (torch.pi * size**2)).square().mean().sqrt().item()
        found.append(Conservativity(t, (around.abs() / path).median().item(), curl, skew.median().item()))
    return found
