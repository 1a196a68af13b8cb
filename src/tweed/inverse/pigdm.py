"""PiGDM: Song et al., "Pseudoinverse-Guided Diffusion Models for Inverse Problems" (ICLR 2023).

What a noisy state says of the data is taken for N(x0hat, r^2 I) with `r^2 = sigma^2 / (alpha^2 + sigma^2)` (data of unit
variance). Then y given x_t is Gaussian, and the score of its likelihood (their Eq. 7)

    g = (d x0hat / d x_t)^T A^T (r^2 A A^T + noise^2 I)^{-1} (y - A x0hat)

is added to the model's. It is exact for standard normal data. The release multiplies g by `r^2` once more where the
measurement is exact; here the derivation is followed, and `strength` scales it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from tweed.errors import InputError
from tweed.inverse.linear_algebra import conjugate_gradient
from tweed.inverse.measurement import Measurement
from tweed.inverse.method import GuidedSampler, with_score
from tweed.solvers import DDIM, Solver


@dataclass(frozen=True)
class PiGDM(GuidedSampler):
    """Pseudoinverse guidance; for linear operators.

    Args:
        steps: of the sampler (100 as published).
        strength: a factor of g.
        data_variance: of an element of the data, which gives `r^2 = v sigma^2 / (alpha^2 v + sigma^2)`; 1 as published.
        solver: any with one evaluation a step; the published is DDIM with eta = 1.
        grid: a function of `tweed.grids`.
        iterations: of conjugate gradients, where the operator has no spectrum.
    """

    steps: int = 100
    strength: float = 1.0
    data_variance: float = 1.0
    solver: Solver = field(default_factory=lambda: DDIM(eta=1.0))
    grid: Callable[..., Tensor] | None = None
    iterations: int = 20
    backward: ClassVar[bool] = True

    def __post_init__(self):
        if not (self.strength > 0.0 and self.data_variance > 0.0):
            raise InputError(
                f"strength, data_variance: {self.strength}, {self.data_variance} were given; expected positive numbers"
            )

    @property
    def sampler(self) -> Solver:
        return self.solver

    def guide(self, run, x, estimate, t, u):
        level = run.process.level(t)
        v = self.data_variance
        spread = v * level.sigma**2 / (level.alpha**2 * v + level.sigma**2)
        if spread == 0.0:
            return estimate, None
        x0 = estimate.x0
        pull = weighed_back(run.measurement, x0.detach(), spread, run.measurement.deviation**2, self.iterations)
        (g,) = torch.autograd.grad(x0, x, pull)
        return with_score(estimate, self.strength * g, t), None


def weighed_back(measurement: Measurement, x0: Tensor, spread: float, noise2: float, iterations: int) -> Tensor:
    """`A^T (spread A A^T + noise2 I)^{-1} (y - A x0)`, shape of `x0`; directions that are not measured stay out of it."""
    operator = measurement.linear
    residual = measurement.residual(x0)
    spectrum = operator.spectrum
    if spectrum is not None:
        return spectrum.filtered(residual, lambda s: s / (spread * s**2 + noise2).clamp_min(1e-300))
    # The same by the push-through identity: (spread A^T A + noise2 I)^{-1} A^T.
    return conjugate_gradient(
        lambda v: spread * operator.normal(v) + noise2 * v, operator.adjoint(residual), iterations=iterations
    )
