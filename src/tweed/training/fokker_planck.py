"""Fokker-Planck regularisation: the gap between a model's ODE and its SDE, closed where it arises.

Deveney et al., "Closing the ODE-SDE gap in score-based diffusion models through the Fokker-Planck equation" (2023,
arXiv 2311.15996). A learned score need not be that of any one density that evolves by the forward process; then the laws
of the ODE and of the SDE run with it differ. The log density of the process `dx = f x dt + g dw` satisfies

    d_t phi = - d f - f x . grad phi + (g^2 / 2) (|grad phi|^2 + lap phi),

and what a potential network misses of it, the residual R, is added to the regression, on states where it is used. In units
of the process's own clock, `R sigma^2 / g^2` has no unit, and one weight serves all noise levels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tweed.core import random, targets
from tweed.core.denoiser import Denoiser
from tweed.core.potential import PotentialDenoiser
from tweed.core.processes import Process
from tweed.core.time import left
from tweed.errors import IncompatibleError, InputError, choose
from tweed.training.objectives import Batch, DenoisingLoss, conditions

LogDensity = Callable[[Tensor, Tensor], Tensor]
"""`(x, t) -> (b,)`, differentiable in both; `t` of shape (b,)."""

_ADDED = ("place", "probe_row")


def log_fp_residual(
    phi: LogDensity,
    process: Process,
    x: Float[Tensor, "b *event"],
    t: Float[Tensor, " b"],
    trace: Literal["exact", "hutchinson"] = "exact",
    *,
    seed: int = 0,
    probes: int = 1,
    index: int | Int[Tensor, " b"] = 0,
    scaled: bool = False,
) -> Float[Tensor, " b"]:
    """The residual of the log Fokker-Planck equation at states and times, shape (b,); zero for a true log density.

    A constant added to `phi` does not change it; `c t` adds c.

    Args:
        phi: the log density.
        trace: of the Hessian: "exact", with one second derivative for each element, or "hutchinson", an unbiased estimate
            with random signs.
        seed, probes, index: of the estimate: its address, the number of sign vectors, and the rows of the samples (see
            `tweed.core.random`).
        scaled: in units of the process's clock, times `sigma^2 / g^2`. At t = 0, and at t = 1 where alpha is 0 there, it
            may be 0 / 0: times strictly between are meant.

    Raises:
        IncompatibleError: the process has an endpoint.
        InputError: `t` is not one time a sample, or no probes.
    """
    choose("trace", trace, ("exact", "hutchinson"))
    if process.endpoint != "none":
        raise IncompatibleError(f"process: {type(process).__name__} has an endpoint; expected a Gaussian process")
    if t.shape != (len(x),):
        raise InputError(f"t: shape {tuple(t.shape)} was given; expected one time a sample, ({len(x)},)")
    if probes < 1:
        raise InputError(f"probes: {probes} was given; expected at least 1")
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        x, t = x.detach().requires_grad_(), t.detach().double().requires_grad_()
        value = phi(x, t)
        gradient, speed = torch.autograd.grad(value.sum(), (x, t), create_graph=True, materialize_grads=True)
        laplacian = _laplacian(gradient, x, trace, seed, probes, index, keep)
    with torch.set_grad_enabled(keep):
        rate = (process.alpha_dot(t) / process.alpha(t)).detach()
        square = process.diffusion(t).detach() ** 2
        flat, state = gradient.flatten(1), x.detach().flatten(1)
        growth = rate * (state.shape[1] + (state * flat).sum(1))
        residual = speed + growth - 0.5 * square * (flat.square().sum(1) + laplacian)
        return residual * (process.sigma(t).detach() ** 2 / square) if scaled else residual


def _laplacian(
    gradient: Tensor, x: Tensor, trace: str, seed: int, probes: int, index: int | Tensor, keep: bool
) -> Float[Tensor, " b"]:
    """The trace of the Jacobian of `gradient`."""

    def second(direction: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(
            (gradient * direction).sum(), x, create_graph=keep, retain_graph=True, materialize_grads=True
        )
        return (product * direction).flatten(1).sum(1)

    if trace == "hutchinson":
        options: dict[str, Any] = {"index": index, "dtype": x.dtype, "device": x.device}
        signs = (random.rademacher(x.shape, seed, draw=k, **options) for k in range(probes))
        return sum((second(sign) for sign in signs), torch.zeros(len(x), dtype=x.dtype, device=x.device)) / probes
    total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for k in range(x[0].numel() if len(x) else 0):
        direction = torch.zeros_like(x)
        direction.flatten(1)[:, k] = 1.0
        total = total + second(direction)
    return total


@dataclass(frozen=True)
class FokkerPlanck:
    """A regression of the score with the squared, scaled residual added: an objective for `PotentialDenoiser`.

    Each sample has one point at which the residual is taken: its own noised state, or, for a share of the batch, a point
    drawn evenly from a box at the same time. Begin with a model that was trained without it (`weight = 0`), or let it
    rise: from scratch, a large weight is met by a density that solves the equation and has nothing to do with the data.

    Args:
        weight: of the residual.
        base: the regression; of the noise where not given, which weighs all levels alike.
        ramp: the steps over which the weight rises from 0.
        box: half the side of the box; `share` of the points lie in it.
        share: of the batch, in [0, 1].
        trace: see `log_fp_residual`; "hutchinson" for more than a few dimensions.
        bound: residuals are clipped at it (in absolute value), so that single points near t = 0 do not decide a step.

    Raises:
        InputError: a negative weight, a share outside [0, 1], a box or a bound that is not positive, or a negative ramp.
        IncompatibleError: (on use) the denoiser has no potential.
    """

    weight: float = 1.0
    base: DenoisingLoss = field(default_factory=lambda: DenoisingLoss(target=targets.Noise()))
    ramp: int = 0
    box: float = 3.0
    share: float = 0.25
    trace: Literal["exact", "hutchinson"] = "exact"
    bound: float = 30.0

    def __post_init__(self):
        choose("trace", self.trace, ("exact", "hutchinson"))
        if not self.bound > 0.0:
            raise InputError(f"bound: {self.bound} was given; expected a positive number")
        if not self.weight >= 0.0 or not 0.0 <= self.share <= 1.0 or not self.box > 0.0 or self.ramp < 0:
            raise InputError(
                f"weight, share, box, ramp: {self.weight}, {self.share}, {self.box}, {self.ramp} were given; expected "
                "a weight of at least 0, a share in [0, 1], a positive box, a ramp of at least 0 steps"
            )

    def prepare(self, process, batch, *, seed, step, offset=0, total=None):
        """The batch with times and noise, as for the regression, and where the residual is taken, `place`.

        `probe_row` is the row of each sample in the whole batch, which its random signs are addressed by: a slice of a
        prepared batch has the losses that it has in the whole.
        """
        batch = self.base.prepare(process, batch, seed=seed, step=step, offset=offset, total=total)
        x, rows = batch["x"], len(batch["x"])
        first = step * (total or offset + rows) + offset
        drawn = random.uniform(
            (rows, math.prod(x.shape[1:]) + 1), random.fold(seed, 0xF9), index=first, device=x.device
        )
        inside = (2.0 * drawn[:, 1:] - 1.0).reshape(x.shape) * self.box
        own = process.perturb(x, batch["t"], batch["noise"])
        place = torch.where(left(drawn[:, 0] < self.share, own) > 0, inside.to(own), own)
        return {**batch, "place": place, "probe_row": torch.arange(offset, offset + rows, device=x.device)}

    def __call__(self, denoiser: Denoiser, batch: Batch, *, seed: int = 0, step: int = 0) -> Float[Tensor, " b"]:
        """The loss of each sample, shape (b,)."""
        if not isinstance(denoiser, PotentialDenoiser):
            raise IncompatibleError(
                f"denoiser: {type(denoiser).__name__} has no log density; expected a PotentialDenoiser"
            )
        process = denoiser.process
        if not all(name in batch for name in _ADDED):
            batch = self.prepare(process, batch, seed=seed, step=step)
        place = batch["place"]
        plain = {name: value for name, value in batch.items() if name not in _ADDED}
        loss = self.base(denoiser, plain, seed=seed, step=step)
        weight = self.weight * min(1.0, (step + 1) / self.ramp) if self.ramp else self.weight
        if weight == 0.0:
            return loss
        cond = conditions(process, plain)
        residual = log_fp_residual(
            lambda x, t: denoiser.log_density(x, t, **cond),
            process,
            place,
            batch["t"].double(),
            self.trace,
            seed=random.fold(seed, step),
            index=batch["probe_row"],
            scaled=True,
        )
        return loss + weight * residual.clamp(-self.bound, self.bound).square().to(loss.dtype)
