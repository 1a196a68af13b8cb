"""Imputation with an unconditional model: Song et al. (ICLR 2021), Sec. 5 and Appendix I.2-I.3.

What is known of a sample is overwritten after every step by a fresh draw of what it would be at that noise level,
`alpha_t y + sigma_t z`, and at the end by `y` itself; the rest moves as the model says. Inpainting knows pixels;
colorization knows one coordinate of each pixel's channels in a rotated basis, the grey one.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tweed.core import random
from tweed.core.denoiser import Denoiser
from tweed.core.processes import Process
from tweed.solvers import Solver, sample
from tweed.solvers.base import Observer


def grey_basis() -> Float[Tensor, "3 3"]:
    """An orthogonal matrix whose first column is (1, 1, 1) / sqrt(3), float64: its first coordinate is grey."""
    columns = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [1.0, 1.0, -2.0]], dtype=torch.float64)
    return (columns / columns.norm(dim=1, keepdim=True)).T


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of each of b samples.

    Args:
        y: the samples, shape (b, *event), where they are known; elsewhere anything finite. In the rotated coordinates
            where there is a `basis`.
        mask: True where they are known, broadcasts against `y`.
        basis: an orthogonal matrix (c, c), whose columns are directions of the first axis of an event; None for none.
    """

    y: Float[Tensor, "b *event"]
    mask: Bool[Tensor, "*shape"]
    basis: Float[Tensor, "c c"] | None = None

    def rotate(self, x: Float[Tensor, "b *event"]) -> Float[Tensor, "b *event"]:
        """`basis^T x` along the channels: the coordinates in which something is known."""
        return x if self.basis is None else torch.einsum("cd,bc...->bd...", self.basis.to(x), x)

    def back(self, u: Float[Tensor, "b *event"]) -> Float[Tensor, "b *event"]:
        """`basis u`, the inverse of `rotate`."""
        return u if self.basis is None else torch.einsum("cd,bd...->bc...", self.basis.to(u), u)

    def observer(self, process: Process, steps: int, seed: int) -> Observer:
        """What `tweed.sample` calls after each of its `steps` steps."""

        def overwrite(x: Tensor, t: float | Tensor, i: int) -> Tensor:
            known = self.y.to(x)
            if i < steps - 1:
                known = process.perturb(known, t, random.normal(x.shape, seed, draw=i, dtype=x.dtype, device=x.device))
            return self.back(torch.where(self.mask.to(x.device), known, self.rotate(x)))

        return overwrite


def impute(
    denoiser: Denoiser, known: Known, draws: int, *, solver: Solver, steps: int, seed: int = 0, end: float = 0.0
) -> Float[Tensor, "draws b *event"]:
    """`draws` samples of each of the b partly known ones, float64.

    Args:
        solver: stochastic; its last step returns its mean.
        end: the last time of the grid, which begins at 1 and is uniform.
    """
    each = Known(known.y.repeat(draws, *(1,) * (known.y.ndim - 1)), known.mask, known.basis)
    x = sample(
        denoiser,
        len(each.y),
        solver=solver,
        times=torch.linspace(1.0, end, steps + 1, dtype=torch.float64),
        shape=known.y.shape[1:],
        seed=random.fold(seed, 0),
        dtype=torch.float64,
        observer=each.observer(denoiser.process, steps, random.fold(seed, 1)),
    )
    return x.reshape(draws, *known.y.shape)
