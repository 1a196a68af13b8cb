"""DDRM: Kawar et al., "Denoising Diffusion Restoration Models" (NeurIPS 2022, arXiv 2201.11793).

In the basis of the operator's singular vectors a linear measurement is one of single coefficients, each with noise
`noise / s_i` of its own, and zero singular values are not measured at all. A step to noise level `s` (of x / alpha) draws
each coefficient by one of three rules (their Eqs. 7 and 8, `y_i` the measured and `x_i` the denoised coefficient):

    not measured:          x_i + sqrt(1 - eta^2) (s / s') (x'_i - x_i)         + eta s n
    s < noise / s_i:       x_i + sqrt(1 - eta^2) (s s_i / noise) (y_i - x_i)   + eta s n
    s >= noise / s_i:      (1 - eta_b) x_i + eta_b y_i                         + sqrt(s^2 - eta_b^2 noise^2 / s_i^2) n
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tweed.core import random
from tweed.errors import IncompatibleError, InputError
from tweed.inverse.method import Method, Run, levels


@dataclass(frozen=True)
class DDRM(Method):
    """Denoising diffusion restoration; for linear operators with a spectrum. One evaluation a step, no gradients.

    Args:
        steps: of the sampler (20 as published).
        eta: the share of fresh noise in what is not, or hardly, measured.
        eta_b: the share of the measurement where it is sharper than the state.
        grid: a function of `tweed.grids`.

    Raises:
        InputError: a share outside 0 and 1.
        IncompatibleError: (on use) the operator has no spectrum.
    """

    steps: int = 20
    eta: float = 0.85
    eta_b: float = 1.0
    grid: Callable[..., Tensor] | None = None

    def __post_init__(self):
        if not (0.0 <= self.eta <= 1.0 and 0.0 <= self.eta_b <= 1.0):
            raise InputError(f"eta, eta_b: {self.eta}, {self.eta_b} were given; expected shares from 0 to 1")

    @torch.no_grad()
    def solve(self, denoiser, measurement, n=1, seed=0, *, cond=None, dtype=torch.float32, watch=None):
        run = Run(denoiser, measurement, n, cond, dtype, watch, "DDRM")
        spectrum = measurement.linear.spectrum
        if spectrum is None:
            raise IncompatibleError(
                f"operator: DDRM needs singular values; {type(measurement.operator).__name__} has none. Use PiGDM or DiffPIR"
            )
        times = levels(denoiser, self.steps, self.grid, finite=True)
        marks = [run.process.level(t) for t in times]
        s = spectrum.values.to(run.device, dtype)
        known = s > 0.0
        y = torch.where(known, spectrum.observed(run.measurement.y) / s, 0.0)
        # Of a coefficient's measurement; that of one which is not measured is never used. An exact one stays exact, but
        # where the singular value is so small that rounding would be seen.
        spread = run.measurement.deviation / s
        spread = torch.where(known & (spread > (0.0 if run.measurement.noise else 1e-3)), spread, 0.0)

        def noise(step: int) -> Tensor:
            shape = (run.rows, *run.event)
            drawn = random.normal(shape, seed, draw=step, dtype=dtype, device=run.device)
            return spectrum.coefficients(drawn)

        first = marks[0].sigma / marks[0].alpha
        blurred = (first**2 - spread**2).clamp_min(0.0).sqrt()
        c = torch.where(known, y, 0.0) + torch.where(known, blurred, first) * noise(0)
        for i in range(self.steps):
            here, there = marks[i].sigma / marks[i].alpha, marks[i + 1].sigma / marks[i + 1].alpha
            estimate = run.estimate(marks[i].alpha * spectrum.event(c), times[i])
            run.record(estimate.x0, i / self.steps)
            x0 = spectrum.coefficients(estimate.x0)
            kept = (1.0 - self.eta**2) ** 0.5 * there
            free = x0 + kept / here * (c - x0)
            blunt = x0 + torch.where(spread > 0.0, kept / spread, 0.0) * (y - x0)
            sharp = x0 + self.eta_b * (y - x0)
            is_sharp = known & (there >= spread)
            mean = torch.where(is_sharp, sharp, torch.where(known, blunt, free))
            width = (there**2 - (self.eta_b * spread) ** 2).clamp_min(0.0).sqrt()
            c = mean + torch.where(is_sharp, width, self.eta * there) * noise(i + 1)
        return run.solution(marks[-1].alpha * spectrum.event(c))
