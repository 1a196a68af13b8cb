"""RED-diff: Mardani et al., "A Variational Perspective on Solving Inverse Problems with Diffusion Models" (ICLR 2024,
arXiv 2305.04391).

The posterior is approximated by a point `mu` (the limit of a narrow Gaussian), and found by stochastic descent of the
measurement's misfit plus a regulariser, whose gradient needs no gradient of the network (their Eq. 10):

    grad R = E_{t, n} w(t) [eps(alpha mu + sigma n, t) - n];

the noise that was put in is a control variate of mean zero. With the weight `sigma / alpha` a term is
`mu - x0hat(x_t)`: the residual of regularisation by denoising, at every noise level alike. The levels fall along the run, from
coarse to fine, with one step of Adam each. It seeks a mode: seeds differ little, and it is no sampler.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import random
from tweed.core.denoiser import Denoiser
from tweed.errors import InputError, choose
from tweed.inverse.method import Method, Run
from tweed.inverse.operators import LinearOperator

WEIGHTS: dict[str, Callable[[float], float]] = {
    "linear": lambda r: r,
    "sqrt": math.sqrt,
    "square": lambda r: r**2,
    "log": math.log1p,
    "clipped": lambda r: min(r, 1.0),
    "two_thirds": lambda r: r ** (2.0 / 3.0),
    "constant": lambda r: 1.0,
}
"""Of the noise regression, as functions of `r = sigma / alpha`; "linear" weighs all levels alike in units of the data."""

_HIGHEST = 1e-2


@dataclass(frozen=True)
class REDDiff(Method):
    """Regularisation by denoising over all noise levels; for any operator that can be differentiated.

    Args:
        steps: of Adam, each with one evaluation and no gradient through it (1000 for the published tables).
        strength: of the regulariser, lambda of the paper, beside a misfit of weight 1.
        weight: one of `WEIGHTS`.
        rate: Adam's step size, in units of the data; its averages are 0.9 and 0.99, as published.
        order: of the levels: "descending" as published, "ascending" or "random".
        reduction: whether misfit and regulariser are means over their own elements, as in the release, or sums. The means
            count a measurement of few elements as much as one of many; sums are those of the derivation.
        batch: levels an Adam step, evenly spread around its own, their gradients averaged; 1 as published.
        spread: the standard deviation of the variational Gaussian, 0 as published.

    Raises:
        InputError: unknown names, numbers out of range.
    """

    steps: int = 1000
    strength: float = 0.25
    weight: Literal["linear", "sqrt", "square", "log", "clipped", "two_thirds", "constant"] = "linear"
    rate: float = 0.1
    order: Literal["descending", "ascending", "random"] = "descending"
    reduction: Literal["mean", "sum"] = "mean"
    batch: int = 1
    spread: float = 0.0

    def __post_init__(self):
        choose("weight", self.weight, WEIGHTS)
        choose("order", self.order, ("descending", "ascending", "random"))
        choose("reduction", self.reduction, ("mean", "sum"))
        if self.steps < 1 or self.batch < 1:
            raise InputError(f"steps, batch: {self.steps}, {self.batch} were given; expected at least 1")
        if not (self.strength >= 0.0 and self.rate > 0.0 and self.spread >= 0.0):
            raise InputError(
                f"strength, rate, spread: {self.strength}, {self.rate}, {self.spread} were given; expected at least 0, "
                "a positive number, and at least 0"
            )

    def solve(self, denoiser, measurement, n=1, seed=0, *, cond=None, dtype=torch.float32, watch=None, init=None):
        """As for every method; `init`, shape (b, *event), is where mu begins: the pseudo-inverse of a linear operator and zero
        for another where not given. The n samples differ by their noise alone."""
        run = Run(denoiser, measurement, n, cond, dtype, watch, "RED-diff")
        mu = self._begin(run, init)
        # Where alpha is nearly 0 the weight sigma / alpha has no bound.
        times = [t for t in self._times(denoiser, seed) if run.process.level(t).alpha > _HIGHEST]
        measured = max(math.prod(run.measurement.operator.measured), 1)
        elements = math.prod(run.event) if self.reduction == "mean" else 1
        misfit_scale = 1.0 / measured if self.reduction == "mean" else 1.0
        optimiser = torch.optim.Adam([mu], lr=self.rate, betas=(0.9, 0.99))
        for i in range(0, len(times), self.batch):
            chosen = times[i : i + self.batch]
            push = torch.zeros_like(mu)
            for j, t in enumerate(chosen):
                push += self._push(run, mu.detach(), t, random.fold(seed, i + j)) / len(chosen)
            optimiser.zero_grad()
            # Each sample's terms are its own: a sum over the batch leaves Adam's steps alone.
            squared = run.measurement.squared(mu)
            (0.5 * misfit_scale * squared.sum()).backward()
            assert mu.grad is not None
            mu.grad += self.strength / elements * push
            optimiser.step()
            run.record(mu, i / len(times))
        return run.solution(mu.detach())

    def _begin(self, run: Run, init: Tensor | None) -> Tensor:
        operator = run.measurement.operator
        if init is not None:
            if tuple(init.shape) != (run.b, *run.event):
                raise InputError(f"init: shape {tuple(init.shape)} was given; expected {(run.b, *run.event)}")
            mu = init.to(run.device, run.dtype).repeat(run.n, *(1,) * len(run.event))
        elif isinstance(operator, LinearOperator):
            mu = operator.pseudo_inverse(run.measurement.y).to(run.dtype)
        else:
            mu = torch.zeros(run.rows, *run.event, dtype=run.dtype, device=run.device)
        return mu.clone().requires_grad_()

    def _times(self, denoiser: Denoiser, seed: int) -> list[float]:
        """Evenly spaced times, the first at the most noise, none at 0."""
        count = self.steps * self.batch
        times = [denoiser.t_max * (1.0 - i / count) for i in range(count)]
        if self.order == "ascending":
            return times[::-1]
        if self.order == "random":
            place = random.uniform((1, count), seed, draw=1, dtype=torch.float64)[0].argsort().tolist()
            return [times[k] for k in place]
        return times

    @torch.no_grad()
    def _push(self, run: Run, mu: Tensor, t: float, seed: int) -> Tensor:
        if self.spread > 0.0:
            mu = mu + self.spread * random.normal(mu.shape, seed, draw=1, dtype=mu.dtype, device=mu.device)
        noise = random.normal(mu.shape, seed, dtype=mu.dtype, device=mu.device)
        run.evaluations += 1
        return red_diff_gradient(run.denoiser, mu, t, noise, self.weight, **run.cond)


@torch.no_grad()
def red_diff_gradient(
    denoiser: Denoiser,
    mu: Float[Tensor, "b *event"],
    t: float,
    noise: Float[Tensor, "b *event"],
    weight: str = "linear",
    **cond: Tensor,
) -> Float[Tensor, "b *event"]:
    """One term of the regulariser's gradient, `w(t) (eps(alpha mu + sigma n, t) - n)`: that of score distillation too."""
    level = denoiser.process.level(t)
    estimate = denoiser(level.alpha * mu + level.sigma * noise, t, **cond)
    return WEIGHTS[weight](level.sigma / level.alpha) * (estimate.eps - noise)
