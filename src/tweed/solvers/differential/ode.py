"""Ordinary differential equations, with a choice of methods and of gradients."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.errors import IncompatibleError, InputError, NumericalError, choose
from tweed.solvers.adaptive_runge_kutta import METHODS
from tweed.solvers.differential.controller import PIDController, adaptive_grid, first_step, worst
from tweed.solvers.differential.field import Field, Function, check_parameters, parameters
from tweed.solvers.differential.plan import Plan, check_state, check_times, fixed_grid
from tweed.solvers.differential.run import ADJOINTS, Adjoint, check_adjoint, check_finite, integrate
from tweed.solvers.differential.steppers import ExplicitRungeKutta, ReversibleHeun, Stepper
from tweed.solvers.differential.tableaus import EXPLICIT, PAIRS

PEER = tuple(METHODS)
"""The adaptive methods of torchdiffeq."""
ODE_METHODS = tuple(sorted({*EXPLICIT, *PEER, "reversible_heun"}))


def odeint(
    f: Function,
    y0: Float[Tensor, "b *n"],
    ts: Sequence[float] | Float[Tensor, " t"],
    *,
    method: str = "dopri5",
    adjoint: Adjoint = "direct",
    step: float | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    controller: PIDController | None = None,
    checkpoints: int | None = None,
    params: Iterable[Tensor] | None = None,
    max_steps: int = 10_000,
) -> Float[Tensor, "t b *n"]:
    """The solution of `dy/dt = f(t, y)`, `y(ts[0]) = y0`, at all of `ts`, differentiable in y0 and in the parameters of f.

    How the gradient is computed is `adjoint`:

    | adjoint | gradient | memory for N steps | steps made again on the way back |
    |---|---|---|---|
    | "direct" | of the steps | N graphs | none |
    | "checkpoint" | of the steps | C states and one graph | 2 N for C = sqrt(2 N), about N log N for C = log N |
    | "reversible" | of the steps, up to round-off | one state and one graph | N; `method="reversible_heun"` only |
    | "backsolve" | of the equation: approximate | one state and one graph | N, of three equations |

    Adaptive methods ("bosh3", "dopri5", "tsit5"; "dopri8", "fehlberg2" and "adaptive_heun" too) adapt where `step` is None.
    They run in torchdiffeq, with its dense output, except where something is asked for that it has not: "tsit5", a
    `controller`, or checkpointing. Then the accepted steps are found first, without gradients, and integrated as a fixed
    grid through all of `ts`: no gradient passes through the controller. The tolerance is met by each sample.
    Fixed methods ("euler", "midpoint", "heun", "heun3", "rk4", "reversible_heun", and the pairs with a `step`) take equal
    steps of at most `step` between the times, or one where it is None.

    Args:
        f: `f(t, y)`, with t a scalar tensor in the dtype of y; any function or module, deterministic.
        y0: shape (b, *n), real. `ts`: shape (t,), strictly rising or falling; kept in float64.
        rtol, atol: tolerances of adaptive methods.
        controller: how adaptive steps are chosen.
        checkpoints: how many states "checkpoint" keeps; default sqrt(2 N).
        params: the tensors that f reads and that gradients are wanted for, all of them unless `adjoint="direct"`; by
            default the parameters of f if it is a module.
        max_steps: of an adaptive method between two times.

    Raises:
        InputError: bad shapes, times, names or numbers; f reads a tensor with a gradient that is not in `params`.
        IncompatibleError: an adjoint, a step or a controller that the method cannot use.
        NumericalError: too many steps, or the solution is not finite; the time is named.
    """
    choose("method", method, ODE_METHODS)
    choose("adjoint", adjoint, ADJOINTS)
    check_state(y0)
    times = check_times(ts)
    check_adjoint(adjoint, method, checkpoints)
    field, tensors = Field(f), parameters(params, f)
    adaptive = step is None and (method in PAIRS or method in PEER)
    for name, value in (("rtol", rtol), ("atol", atol), ("max_steps", max_steps)):
        if not value > 0:
            raise InputError(f"{name}: {value} was given; expected a positive number")
    if controller is not None and not (adaptive and method in PAIRS):
        raise IncompatibleError(
            f"controller: one was given with method={method!r}, step={step}; expected one of {', '.join(PAIRS)} and no step"
        )
    if method not in EXPLICIT and method != "reversible_heun" and (step is not None or adjoint == "checkpoint"):
        raise IncompatibleError(
            f"method: {method!r} adapts inside torchdiffeq; it takes no step and no checkpoints "
            f"(expected one of {', '.join(PAIRS)} for those)"
        )
    if adaptive and method in PEER and controller is None and adjoint != "checkpoint":
        return _peer(field, y0, times, method, adjoint, rtol, atol, tensors, max_steps)
    if adaptive:
        control = controller or PIDController()
        grid, keep = adaptive_grid(field, PAIRS[method], times, y0, control, rtol, atol, max_steps)
    else:
        grid, keep = fixed_grid(times, step)
    stepper: Stepper = ReversibleHeun() if method == "reversible_heun" else ExplicitRungeKutta(method)
    backward = method if method in EXPLICIT else "midpoint"
    path = integrate(Plan(field, stepper, grid, keep), y0, tensors, adjoint, checkpoints, backward)
    return check_finite(path, times, "odeint")


def _peer(
    field: Field,
    y0: Tensor,
    times: tuple[float, ...],
    method: str,
    adjoint: str,
    rtol: float,
    atol: float,
    params: tuple[Tensor, ...],
    max_steps: int,
) -> Tensor:
    """By torchdiffeq; its answer begins with y0."""
    import torchdiffeq

    if len(times) == 1 or not y0.numel():
        return y0.expand(len(times), *y0.shape).clone()
    reached = times[0]

    def slope(t: Tensor, y: Tensor) -> Tensor:
        nonlocal reached
        reached = t
        return field.drift(t.to(y.dtype), y)

    clock = torch.tensor(times, dtype=torch.float64, device=y0.device)
    common: dict[str, Any] = {"rtol": rtol, "atol": atol, "method": method}
    # A first step found here, so that no gradient passes through the choice of any step.
    first = first_step(field, times, y0, METHODS[method][0] - 1, rtol, atol)
    options = {"max_num_steps": max_steps, "norm": lambda error: worst(error.reshape(y0.shape)), "first_step": first}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if adjoint == "direct":
                return torchdiffeq.odeint(slope, y0, clock, **common, options=options)  # type: ignore[return-value]
            check_parameters(field, times[0], y0, params)
            back = {"max_num_steps": max_steps}
            return torchdiffeq.odeint_adjoint(  # type: ignore[return-value]
                slope, y0, clock, **common, options=options, adjoint_params=params, adjoint_options=back
            )
    except AssertionError as error:
        raise NumericalError(f"odeint: {method} stopped at t = {float(reached):.6g}: {str(error)[:80]}") from None
