"""Look-ahead gradient guidance: Guo, Yuan, Yang, Chen & Wang, "Gradient Guidance for Diffusion Models: An Optimization
Perspective" (NeurIPS 2024, arXiv 2404.14743); in the survey arXiv 2404.07771.

A direction g (the gradient of an objective at some point) is not added to the score itself, which would lead off the data's
support, but asked of the clean data that the state foretells:

    score + G,   G = -beta(t) grad_x (value - g . E[x_0 | x])^2 = 2 beta r J^T g,   r = value - g . E[x_0 | x],

J the Jacobian of the denoiser. For data on a linear subspace J^T g lies in it. As `Cov[x_0 | x] = sigma^2 J / alpha`
(Tweedie's second formula), the data estimate moves by `2 beta r Cov g`: a Kalman gain of one measurement.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import targets
from tweed.core.denoiser import Denoiser, Wrapper
from tweed.core.estimate import Estimate
from tweed.core.time import as_time, left, working_dtype
from tweed.errors import IncompatibleError, InputError

_DATA = targets.Data()


class LookAheadGuidance(Wrapper):
    """Guides towards `g . x_0 = value`; one backward pass through the denoiser an evaluation.

    With `beta` left out it is `1 / (2 (noise^2 + g . Cov[x_0 | x] g))`, the covariance read off the same backward pass: then a
    Gaussian's score becomes exactly that of its posterior given `value = g . x_0 + noise z`. For other data this takes the
    posterior of x_0 for a Gaussian. Where `alpha(t) = 0`, nothing is guided.

    The guidance pulls towards `value` from both sides: to raise `g . x_0`, the value must be above what the data have.

    Args:
        denoiser: differentiable in its state, on any process with Gaussian marginals.
        direction: g, shape (*event), or one for each sample, (b, *event).
        value: a number, or of shape () or (b,), in the unit of `g . x_0`.
        noise: the standard deviation that the value has about `g . x_0`, positive; not used where `beta` is given.
        beta: another weight, per unit of `(g . x_0)^2`: a number, or a function of the time (float64, shape () or (b,)).

    Raises:
        InputError: a shape does not fit, or neither `beta` nor a positive `noise` is given.
        IncompatibleError: the process is two-sided, or a state is given with times for parts of a sample.
    """

    direction: Tensor
    value: Tensor

    def __init__(
        self,
        denoiser: Denoiser,
        direction: Float[Tensor, "*event"],
        value: float | Float[Tensor, "*b"],
        noise: float = 0.0,
        beta: float | Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__(denoiser)
        if self.process.endpoint == "drawn":
            raise IncompatibleError(
                f"denoiser: {type(self.process).__name__} is two-sided; expected a process with Gaussian marginals"
            )
        if beta is None and not 0.0 < noise < math.inf:
            raise InputError(f"noise: {noise} was given without a beta; expected a positive number")
        value = torch.as_tensor(value, dtype=torch.float64)
        if value.ndim > 1:
            raise InputError(f"value: shape {tuple(value.shape)} was given; expected () or (b,)")
        if self.event is not None and tuple(direction.shape[-len(self.event) :]) != self.event:
            raise InputError(f"direction: shape {tuple(direction.shape)} was given; expected {self.event}")
        self.noise, self.beta = noise, beta
        self.register_buffer("direction", direction.detach())
        self.register_buffer("value", value.detach())

    def forward(self, x, t, **cond):
        if not len(x):
            return self.denoiser(x, t, **cond)
        g, value = self.direction, self.value
        if tuple(g.shape) not in (tuple(x.shape), tuple(x.shape[1:])):
            raise InputError(f"direction: shape {tuple(g.shape)} was given; expected {tuple(x.shape[1:])}")
        if value.ndim and len(value) != len(x):
            raise InputError(f"value: shape {tuple(value.shape)} was given; expected () or ({len(x)},)")
        time = as_time(t).to(x.device)
        if time.ndim > 1:
            raise IncompatibleError(f"t: shape {tuple(time.shape)} was given; look-ahead guidance needs () or (b,)")
        x = x.to(working_dtype(x))
        kept = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            state = x if kept else x.detach().requires_grad_()
            x0 = self.denoiser(state, t, **cond).x0
            g = g.to(x0)
            along = (g * x0).flatten(1).sum(1)
            # Samples do not meet in the denoiser, so that the gradient of the sum holds each one's own J^T g.
            (pulled,) = torch.autograd.grad(along.sum(), state, create_graph=kept)
        if not kept:
            x0, along = x0.detach(), along.detach()
        alpha, sigma = self.process.alpha(time), self.process.sigma(time)
        spread = left(torch.where(alpha > 0.0, sigma**2 / alpha, 0.0), x0) * pulled
        if self.beta is None:
            # A learned Jacobian need not be positive; a variance is.
            variance = (g * spread).flatten(1).sum(1).clamp_min(0.0)
            weight = 1.0 / (self.noise**2 + variance)
        else:
            weight = 2.0 * torch.as_tensor(self.beta(time) if callable(self.beta) else self.beta).to(x0)
        weight = weight * (value.to(x0) - along)
        return Estimate(x, t, x0 + left(weight, x0) * spread, self.process, _DATA, cond.get("y"))
