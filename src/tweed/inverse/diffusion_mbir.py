"""DiffusionMBIR: Chung et al., "Solving 3D Inverse Problems using Pre-trained 2D Diffusion Models" (CVPR 2023, arXiv
2211.10655).

A volume is reconstructed slice by slice measurement, with a prior for slices alone, and total variation across slices only.
Every noise level takes a predictor and a corrector step of the slices' reverse diffusion, then one sweep of the alternating
direction method of multipliers on the whole (noisy) volume for `|A x - y|^2 / 2 + strength |D_z x|_1`:

    one conjugate-gradient step on (A^T A + penalty D_z^T D_z) x = A^T y + penalty D_z^T (w - u), from x
    w <- shrink(D_z x + u, strength / penalty),      u <- u + D_z x - w

with w and u kept from the first level to the last: that is what makes one sweep a level enough. States are `x / alpha`, so
that any Gaussian process serves; strength and penalty are in units of `|A|^2` (the published 0.04 and 10 belong to a Radon
transform that is not normalised). The release's corrector scores the state at the level before the predictor's step; here at
its own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import grids, random
from tweed.errors import IncompatibleError, InputError, choose
from tweed.inverse.linear_algebra import Boundary, conjugate_gradient, difference, difference_adjoint, soft_threshold
from tweed.inverse.measurement import Measurement
from tweed.inverse.method import Method, Run, levels
from tweed.inverse.operators import LinearOperator


@dataclass(frozen=True)
class DiffusionMBIR(Method):
    """Volumes from slice-wise linear measurements and a prior of slices.

    The batch of the measurement is the stack of slices, in order; the `n` of `solve` is the number of volumes drawn.

    Args:
        steps: noise levels (2000 as published).
        strength: of the total variation, in units of |A|^2.
        penalty: of the splitting, likewise; at most about 0.1. w remembers the differences of the noisier state before: where
            a sweep restores more than half of them, the noise never leaves, however many the steps. With 0 there is no
            coupling: every slice is a problem of its own.
        snr: of the corrector's Langevin step; 0 for no corrector.
        iterations: of conjugate gradients a level; 1 as published; more restore more.
        boundary: of D_z, "neumann", or "periodic" as in the release.
        slice_batch: slices that the denoiser sees at a time; the result does not depend on it.
        project: end with `x + A^T (y - A x) / A^T A 1`, as published for tomography.
        grid: a function of `tweed.grids`; even in log-SNR where not given, as the published schedule is in time.

    The measurement's noise is not used, as published.

    Raises:
        InputError: numbers out of range, an unknown boundary; (on use) no slices.
        IncompatibleError: (on use) an operator that is not linear or measures nothing, or a process whose alpha is 0 at the
            first time.
    """

    steps: int = 2000
    strength: float = 2e-3
    penalty: float = 0.1
    snr: float = 0.16
    iterations: int = 1
    boundary: Boundary = "neumann"
    slice_batch: int = 12
    project: bool = True
    grid: Callable[..., Tensor] | None = None

    def __post_init__(self):
        choose("boundary", self.boundary, ("neumann", "periodic"))
        if min(self.strength, self.penalty, self.snr) < 0.0 or min(self.iterations, self.slice_batch) < 1:
            raise InputError(
                f"strength, penalty, snr, iterations, slice_batch: {self.strength}, {self.penalty}, {self.snr}, "
                f"{self.iterations}, {self.slice_batch} were given; expected none below 0, and the last two at least 1"
            )

    @torch.no_grad()
    def solve(self, denoiser, measurement, n=1, seed=0, *, cond=None, dtype=torch.float32, watch=None):
        run = Run(denoiser, measurement, n, cond, dtype, watch, "DiffusionMBIR")
        if run.b == 0:
            raise InputError("y: no slices were given; expected at least one")
        operator = measurement.linear
        norm = operator.norm()
        if norm == 0.0:
            raise IncompatibleError(f"operator: {type(operator).__name__} measures nothing")
        grid = self.grid or grids.log_snr
        times = levels(denoiser, self.steps, partial(grid, end=run.process.t_min), finite=True)
        marks = [run.process.level(t) for t in times]
        volumes = (n, run.b, *run.event)
        sweep = _Sweep(self, run, operator, norm, volumes)
        x = run.start(seed, times[0]) / marks[0].alpha
        for i in range(self.steps):
            here, there = (marks[k].sigma / marks[k].alpha for k in (i, i + 1))
            x0 = self._denoised(run, x, times[i], marks[i].alpha)
            run.record(x0, i / self.steps)
            step = here**2 - there**2
            x = x + step / here**2 * (x0 - x) + math.sqrt(step) * self._noise(run, seed, 2 * i)
            if self.snr > 0.0:
                x = self._corrected(run, x, times[i + 1], marks[i + 1].alpha, there, seed, 2 * i + 1, volumes)
            x = sweep(x)
        if self.project:
            ones = torch.ones(1, *run.event, dtype=dtype, device=run.device)
            reach = operator.normal(ones)
            x = x + torch.where(reach > 1e-6 * norm**2, operator.adjoint(run.measurement.residual(x)) / reach, 0.0)
        return run.solution(x)

    def _denoised(self, run: Run, x: Tensor, t: float, alpha: float) -> Tensor:
        before = run.evaluations
        pieces = []
        for first in range(0, len(x), self.slice_batch):
            part = slice(first, first + self.slice_batch)
            cond = {name: value[part] for name, value in run.cond.items()}
            pieces.append(run.denoiser(alpha * x[part], t, **cond).x0)
        run.evaluations = before + 1
        return torch.cat(pieces)

    def _noise(self, run: Run, seed: int, draw: int) -> Tensor:
        return random.normal((run.rows, *run.event), seed, draw=draw + 1, dtype=run.dtype, device=run.device)

    def _corrected(self, run, x, t, alpha, sigma, seed, draw, volumes) -> Tensor:
        score = (self._denoised(run, x, t, alpha) - x) / sigma**2
        noise = self._noise(run, seed, draw)
        # Norms of whole volumes, or of slices where nothing ties them together.
        shape = volumes if self.penalty > 0.0 else (run.rows, *run.event)
        size = [part.reshape(shape).flatten(1).norm(dim=1).clamp_min(1e-12) for part in (noise, score)]
        step = (2.0 * (self.snr * size[0] / size[1]) ** 2).reshape(-1, *(1,) * (len(shape) - 1))
        moved = x.reshape(shape) + step * score.reshape(shape) + (2.0 * step).sqrt() * noise.reshape(shape)
        return moved.reshape(x.shape)


class _Sweep:
    """One sweep of the splitting a call; it keeps w and u from one to the next, within one run."""

    def __init__(
        self, method: DiffusionMBIR, run: Run, operator: LinearOperator, norm: float, volumes: tuple[int, ...]
    ):
        self.method, self.operator, self.volumes = method, operator, volumes
        self.strength, self.penalty = method.strength * norm**2, method.penalty * norm**2
        self.fit = operator.adjoint(run.measurement.y)
        self.w = self.u = torch.zeros(volumes, dtype=run.dtype, device=run.device)

    def __call__(self, x: Tensor) -> Tensor:
        if self.penalty == 0.0:
            return conjugate_gradient(self.operator.normal, self.fit, x=x, iterations=self.method.iterations)
        d, dt = (partial(f, axis=1, boundary=self.method.boundary) for f in (difference, difference_adjoint))

        def normal(v: Tensor) -> Tensor:
            flat = self.operator.normal(v.reshape(x.shape)).reshape(self.volumes)
            return flat + self.penalty * dt(d(v))

        b = self.fit.reshape(self.volumes) + self.penalty * dt(self.w - self.u)
        moved = conjugate_gradient(normal, b, x=x.reshape(self.volumes), iterations=self.method.iterations)
        change = d(moved)
        self.w = soft_threshold(change + self.u, self.strength / self.penalty)
        self.u = self.u + change - self.w
        return moved.reshape(x.shape)


def slice_wise(method: DiffusionMBIR) -> DiffusionMBIR:
    """The same without anything across slices: the baseline that every slice is on its own."""
    return replace(method, strength=0.0, penalty=0.0)


@torch.no_grad()
def total_variation(
    measurement: Measurement,
    *,
    strength: float,
    penalty: float = 0.1,
    axes: Literal["z", "all"] = "z",
    boundary: Boundary = "neumann",
    sweeps: int = 30,
    iterations: int = 20,
) -> Float[Tensor, "z *event"]:
    """`|A x - y|^2 / 2 + strength sum |D x|_1` by the same splitting, without a prior: the classical reconstruction.

    Args:
        axes: differences across slices alone, or along the last two axes too (anisotropic).
        strength, penalty: in units of |A|^2.
        sweeps, iterations: of the splitting, and of conjugate gradients in each.
    """
    operator = measurement.linear
    norm = operator.norm()
    fit = operator.adjoint(measurement.y)
    along = (0,) if axes == "z" else (0, fit.ndim - 2, fit.ndim - 1)
    rho, threshold = penalty * norm**2, strength / penalty
    x = torch.zeros_like(fit)
    w = [torch.zeros_like(fit) for _ in along]
    u = [torch.zeros_like(fit) for _ in along]

    def normal(v: Tensor) -> Tensor:
        v = v[0]
        rough = sum((difference_adjoint(difference(v, k, boundary), k, boundary) for k in along), torch.zeros_like(v))
        return (operator.normal(v) + rho * rough)[None]

    for _ in range(sweeps):
        b = fit + rho * sum(
            (difference_adjoint(w[j] - u[j], k, boundary) for j, k in enumerate(along)), torch.zeros_like(fit)
        )
        x = conjugate_gradient(normal, b[None], x=x[None], iterations=iterations)[0]
        for j, k in enumerate(along):
            change = difference(x, k, boundary)
            w[j] = soft_threshold(change + u[j], threshold)
            u[j] = u[j] + change - w[j]
    return x
