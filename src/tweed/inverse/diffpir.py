"""DiffPIR: Zhu et al., "Denoising Diffusion Models for Plug-and-Play Image Restoration" (CVPR 2023 workshops, arXiv
2305.08995).

The denoised mean is moved to the minimum of `|y - A x|^2 + rho |x - x0hat|^2` with `rho = strength noise^2 alpha^2 / sigma^2`
(their Eqs. 12, 13), and the state of the next level is made anew from it:

    x <- alpha' x0 + sigma' (sqrt(1 - zeta) eps + sqrt(zeta) n),      eps = (x_t - alpha x0) / sigma.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tweed.core import random
from tweed.errors import IncompatibleError, InputError
from tweed.inverse.linear_algebra import conjugate_gradient
from tweed.inverse.measurement import Measurement
from tweed.inverse.method import Method, Run, levels


@dataclass(frozen=True)
class DiffPIR(Method):
    """Plug-and-play restoration; for linear operators. One evaluation a step, no gradients.

    Args:
        steps: of the sampler (100 as published).
        strength: how much the denoised mean counts, lambda of the paper (1 to 25).
        zeta: the share of fresh noise in a state.
        grid: a function of `tweed.grids`.
        iterations: of conjugate gradients, where the operator has no spectrum.

    Raises:
        InputError: a share outside 0 and 1, a strength that is not positive.
        IncompatibleError: (on use) a process whose sigma is 0 before its end.
    """

    steps: int = 100
    strength: float = 7.0
    zeta: float = 0.3
    grid: Callable[..., Tensor] | None = None
    iterations: int = 20

    def __post_init__(self):
        if not (self.strength > 0.0 and 0.0 <= self.zeta <= 1.0):
            raise InputError(
                f"strength, zeta: {self.strength}, {self.zeta} were given; expected a positive number and a share"
            )

    @torch.no_grad()
    def solve(self, denoiser, measurement, n=1, seed=0, *, cond=None, dtype=torch.float32, watch=None):
        run = Run(denoiser, measurement, n, cond, dtype, watch, "DiffPIR")
        times = levels(denoiser, self.steps, self.grid)
        marks = [run.process.level(t) for t in times]
        if any(mark.sigma == 0.0 for mark in marks[:-1]):
            raise IncompatibleError("denoiser: its process has no noise before the end of the grid")
        x = run.start(seed, times[0])
        for i, (t, here, there) in enumerate(zip(times, marks, marks[1:], strict=False)):
            x0 = run.estimate(x, t).x0
            run.record(x0, i / self.steps)
            rho = self.strength * (run.measurement.deviation * here.alpha / here.sigma) ** 2
            x0 = nearest(run.measurement, x0, rho, self.iterations)
            eps = (x - here.alpha * x0) / here.sigma
            fresh = random.normal(x.shape, seed, draw=i + 1, dtype=x.dtype, device=x.device)
            noise = (1.0 - self.zeta) ** 0.5 * eps + self.zeta**0.5 * fresh
            x = there.alpha * x0 + there.sigma * noise
        return run.solution(x)


def nearest(measurement: Measurement, x0: Tensor, rho: float, iterations: int) -> Tensor:
    """The minimum of `|y - A x|^2 + rho |x - x0|^2`; for rho = 0 the point nearest to `x0` that fits best."""
    operator = measurement.linear
    residual = measurement.residual(x0)
    spectrum = operator.spectrum
    if spectrum is not None:
        return x0 + spectrum.filtered(residual, lambda s: s / (s**2 + rho).clamp_min(1e-300))
    return x0 + conjugate_gradient(
        lambda v: operator.normal(v) + rho * v, operator.adjoint(residual), iterations=iterations
    )
