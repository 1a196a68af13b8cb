"""FlowChef: Patel et al., "Steering Rectified Flow Models in the Vector Field for Controlled Image Generation" (ICCV 2025,
arXiv 2412.00100).

On a straight path the clean estimate `x0hat = z - t v` moves with z nearly one to one, so the gradient of a cost of x0hat
may be taken with respect to z with v held constant: no gradient goes through the network. At each time

    v = v(z, t);   then `inner` times:  z <- z - step grad_{x0hat} cost(z - t v);   then z <- z + (t' - t) v,

v being that of the beginning, in all of it. Any Gaussian model runs on this path too (it is carried over to the rectified
flow's process), but the curvier its own flow, the coarser the skipped Jacobian.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core.denoiser import Denoiser
from tweed.core.processes import RectifiedFlow
from tweed.core.rescheduled import Rescheduled
from tweed.errors import InputError, choose
from tweed.inverse.measurement import Measurement
from tweed.inverse.method import Method, Run, levels
from tweed.inverse.operators import LinearOperator

Cost = Callable[[Tensor], Tensor]
"""A cost of clean estimates, (b, *event) -> (b,), differentiable."""


@dataclass(frozen=True)
class FlowChef(Method):
    """Steering by skipped gradients; for any differentiable operator or cost, without a backward pass of the network.

    Args:
        steps: Euler steps.
        step: of the descent; for a linear operator in units of `1 / |A|^2`, where 1 is best and the largest that is
            stable for any `inner`.
        inner: descent steps a time.
        optimiser: "sgd", or "adam", made anew at each time as in the release: then `step` is about how far a value moves.
        stop_after: how many of the steps are steered; all but the last where not given, as published.
        grid: a function of `tweed.grids`.

    Raises:
        InputError: numbers out of range, an unknown optimiser.
    """

    steps: int = 100
    step: float = 1.0
    inner: int = 1
    optimiser: Literal["sgd", "adam"] = "sgd"
    stop_after: int | None = None
    grid: Callable[..., Tensor] | None = None

    def __post_init__(self):
        choose("optimiser", self.optimiser, ("sgd", "adam"))
        if not self.step >= 0.0 or self.inner < 0 or (self.stop_after is not None and self.stop_after < 0):
            raise InputError(
                f"step, inner, stop_after: {self.step}, {self.inner}, {self.stop_after} were given; expected none below 0"
            )

    def solve(self, denoiser, measurement, n=1, seed=0, *, cond=None, dtype=torch.float32, watch=None):
        run = Run(straight(denoiser), measurement, n, cond, dtype, watch, "FlowChef")
        step = self.step
        if isinstance(measurement.operator, LinearOperator):
            norm = measurement.operator.norm()
            step = self.step / norm**2 if norm > 0.0 else 0.0
        cost = misfit_cost(run.measurement)
        times = levels(run.denoiser, self.steps, self.grid)
        x = run.start(seed, times[0])

        def watched(x0: Tensor, i: int) -> None:
            run.record(x0, i / self.steps)

        def velocity(z: Tensor, t: float) -> Tensor:
            return run.estimate(z, t).velocity

        return run.solution(self._follow(velocity, None, cost, x, times, step, watched))

    @torch.no_grad()
    def steer(
        self,
        denoiser: Denoiser,
        cost: Cost,
        x: Float[Tensor, "b *event"],
        *,
        cond: Mapping[str, Tensor] | None = None,
        reference: Denoiser | None = None,
    ) -> Float[Tensor, "b *event"]:
        """Samples from the noise `x` that are steered to low cost: classifier guidance, edits with a mask.

        Args:
            denoiser: what the steps follow.
            cost: of clean estimates, one number a sample; `step` is in its own units.
            x: states at `denoiser.t_max`.
            cond: conditions of the denoiser.
            reference: whose clean estimate the cost is of; the denoiser itself where not given. For an edit, the model
                with the source's prompt (published for InstaFlow).
        """
        flow = straight(denoiser).start()
        other = None if reference is None else straight(reference).start()
        cond = dict(cond or {})
        times = levels(flow, self.steps, self.grid)

        def velocity(z: Tensor, t: float) -> Tensor:
            return flow(z, t, **cond).velocity

        def told(z: Tensor, t: float) -> Tensor:
            assert other is not None
            return other(z, t, **cond).velocity

        return self._follow(velocity, None if other is None else told, cost, x, times, self.step, None)

    @torch.no_grad()
    def _follow(
        self,
        velocity: Callable[[Tensor, float], Tensor],
        reference: Callable[[Tensor, float], Tensor] | None,
        cost: Cost,
        z: Tensor,
        times: tuple[float, ...],
        step: float,
        watched: Callable[[Tensor, int], None] | None,
    ) -> Tensor:
        steered = self.steps - 1 if self.stop_after is None else self.stop_after
        for i, (t, u) in enumerate(pairwise(times)):
            v = velocity(z, t)
            if watched is not None:
                watched(z - t * v, i)
            if i < steered and step > 0.0:
                seen = v if reference is None else reference(z, t)
                z = z + self._descent(cost, z - t * seen, step)
            z = z + (u - t) * v
        return z

    @torch.enable_grad()
    def _descent(self, cost: Cost, x0: Tensor, step: float) -> Tensor:
        """How far `inner` steps of descent move a clean estimate."""
        moved = x0.detach().clone().requires_grad_()
        kind = torch.optim.SGD if self.optimiser == "sgd" else torch.optim.Adam
        optimiser = kind([moved], lr=step)
        for _ in range(self.inner):
            (moved.grad,) = torch.autograd.grad(cost(moved).sum(), moved)
            optimiser.step()
        return moved.detach() - x0


def straight(denoiser: Denoiser) -> Denoiser:
    """The denoiser on the rectified flow's process; as it is, where that is its own."""
    return denoiser if isinstance(denoiser.process, RectifiedFlow) else Rescheduled(denoiser, RectifiedFlow())


def misfit_cost(measurement: Measurement) -> Cost:
    """`|y - A(x_0)|^2 / 2`."""
    return lambda x0: 0.5 * measurement.squared(x0)


def masked_reference(x: Float[Tensor, "b *event"], mask: Tensor) -> Cost:
    """`|mask (x_0 - x)|^2 / 2`: what is to be kept of a reference, for edits; the mask is 1 there."""

    def cost(x0: Tensor) -> Tensor:
        return 0.5 * (mask * (x0 - x)).square().flatten(1).sum(1)

    return cost


def classifier_cost(log_probability: Callable[[Tensor], Tensor], label: Tensor) -> Cost:
    """`-log p(label | x_0)` of a classifier of clean samples, (b, *event) -> (b, classes)."""

    def cost(x0: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(log_probability(x0), label, reduction="none")

    return cost
