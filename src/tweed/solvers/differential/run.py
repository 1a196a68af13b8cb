"""A plan with the adjoint that was asked for."""

import math
from typing import Literal

import torch
from torch import Tensor

from tweed.errors import IncompatibleError, InputError, NumericalError
from tweed.solvers.differential.adjoints import checkpointed
from tweed.solvers.differential.backsolve import backsolved
from tweed.solvers.differential.field import check_parameters
from tweed.solvers.differential.plan import Plan
from tweed.solvers.differential.reversible_adjoint import reversible

Adjoint = Literal["direct", "checkpoint", "reversible", "backsolve"]
ADJOINTS = ("direct", "checkpoint", "reversible", "backsolve")


def check_adjoint(adjoint: str, method: str, checkpoints: int | None) -> None:
    """Raise unless a method can do with an adjoint, and `checkpoints` belongs to it.

    Raises:
        IncompatibleError: the reversible adjoint of a method that cannot be inverted.
        InputError: `checkpoints` without checkpointing, or fewer than one.
    """
    if adjoint == "reversible" and method != "reversible_heun":
        raise IncompatibleError(
            f"adjoint: 'reversible' was given with method={method!r}, whose steps cannot be inverted; "
            "expected method='reversible_heun', or adjoint='checkpoint'"
        )
    if checkpoints is not None and (adjoint != "checkpoint" or checkpoints < 1):
        raise InputError(
            f"checkpoints: {checkpoints} was given with adjoint={adjoint!r}; expected at least 1, with adjoint='checkpoint'"
        )


def integrate(
    plan: Plan, y0: Tensor, params: tuple[Tensor, ...], adjoint: str, checkpoints: int | None, backward: str
) -> Tensor:
    """The path, differentiable by the adjoint.

    Args:
        backward: the explicit method that solves the adjoint equation, for `backsolve`.
    """
    wanted = torch.is_grad_enabled() and (y0.requires_grad or bool(params))
    if adjoint == "direct" or not (wanted and plan.steps):
        if adjoint != "direct":
            check_parameters(plan.field, plan.grid[0], y0, params)
        return plan.run(y0)
    check_parameters(plan.field, plan.grid[0], y0, params)
    if adjoint == "checkpoint":
        return checkpointed(plan, y0, params, checkpoints or math.isqrt(2 * plan.steps))
    if adjoint == "reversible":
        return reversible(plan, y0, params)
    return backsolved(plan, y0, params, backward)


def check_finite(path: Tensor, times: tuple[float, ...], name: str) -> Tensor:
    """The path, if it is finite.

    Raises:
        NumericalError: it is not; the first such time is named.
    """
    finite = path.detach().isfinite().flatten(1).all(1) if path[0].numel() else None
    if finite is not None and not bool(finite.all()):
        first = int(finite.logical_not().nonzero()[0])
        raise NumericalError(f"{name}: the solution is not finite at t = {times[first]:.6g}; expected smaller steps")
    return path
