"""DPS: Chung et al., "Diffusion Posterior Sampling for General Noisy Inverse Problems" (ICLR 2023, arXiv 2209.14687).

The likelihood of a noisy state is taken for that of its denoised mean, `p(y | x_t) ~ N(y; A(x0hat(x_t)), noise^2 I)`, whose
gradient goes through the network. As published (Algorithm 1) a step of the sampler is followed by

    x <- x - step * grad_{x_t} |y - A(x0hat(x_t))|,

the norm itself, whatever the noise level of the measurement. With `weight="likelihood"` the score is added the gradient of
the log-likelihood, `-1/2 grad |y - A(x0hat)|^2 / noise^2`, which is what the derivation says.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tweed.errors import InputError, choose
from tweed.inverse.method import GuidedSampler, size, with_score
from tweed.solvers import DDPM, Solver


@dataclass(frozen=True)
class DPS(GuidedSampler):
    """Diffusion posterior sampling; for any operator that can be differentiated.

    Args:
        steps: of the sampler (1000 as published).
        step: the step size; for states scaled to unit variance, so that it means the same under any process.
        weight: "norm", as published; or "likelihood", `step` times the gradient of the Gaussian log-likelihood.
        solver: any with one evaluation a step; the published is DDPM.
        grid: a function of `tweed.grids`.

    Raises:
        InputError: a step size that is not positive, an unknown weight.
    """

    steps: int = 1000
    step: float = 1.0
    weight: Literal["norm", "likelihood"] = "norm"
    solver: Solver = field(default_factory=DDPM)
    grid: Callable[..., Tensor] | None = None
    backward: ClassVar[bool] = True

    def __post_init__(self):
        choose("weight", self.weight, ("norm", "likelihood"))
        if not self.step > 0.0:
            raise InputError(f"step: {self.step} was given; expected a positive number")

    @property
    def sampler(self) -> Solver:
        return self.solver

    def guide(self, run, x, estimate, t, u):
        squared = run.measurement.squared(estimate.x0)
        if self.weight == "norm":
            # The root of zero has no gradient: an exact fit stays where it is.
            loss = squared.clamp_min(torch.finfo(squared.dtype).tiny).sqrt()
            (gradient,) = torch.autograd.grad(loss.sum(), x)
            return estimate, -self.step * size(run.process, t) ** 2 * gradient
        noise = run.measurement.noise
        if noise == 0.0:
            raise InputError(
                "measurement: its noise is 0; the likelihood then has no weight (weight='norm' needs none)"
            )
        (gradient,) = torch.autograd.grad(squared.sum(), x)
        return with_score(estimate, -0.5 * self.step / noise**2 * gradient, t), None
