"""Stochastic differential equations, Ito's and Stratonovich's, with a choice of methods and of gradients."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.errors import IncompatibleError, InputError, choose
from tweed.solvers.differential.brownian import BrownianPath
from tweed.solvers.differential.brownian_interval import BrownianInterval
from tweed.solvers.differential.field import Calculus, Field, Function, Noise, NoiseType, parameters
from tweed.solvers.differential.plan import Plan, check_state, check_times, fixed_grid
from tweed.solvers.differential.run import ADJOINTS, Adjoint, check_adjoint, check_finite, integrate
from tweed.solvers.differential.steppers import (
    EulerHeun,
    EulerMaruyama,
    ExplicitRungeKutta,
    Milstein,
    ReversibleHeun,
    Stepper,
    StochasticRungeKutta,
)

SDE_METHODS: dict[str, Stepper] = {
    "euler_maruyama": EulerMaruyama(),
    "milstein": Milstein(),
    "srk": StochasticRungeKutta(),
    "heun": ExplicitRungeKutta("heun"),
    "midpoint": ExplicitRungeKutta("midpoint"),
    "euler_heun": EulerHeun(),
    "reversible_heun": ReversibleHeun(),
}
NOISES = ("diagonal", "scalar", "additive", "general")
BACKWARD = {"midpoint": "midpoint", "reversible_heun": "midpoint"}
"""The explicit method that solves the adjoint equation of a Stratonovich method, if it is not Heun's."""


def sdeint(
    drift: Function,
    diffusion: Function,
    y0: Float[Tensor, "b *n"],
    ts: Sequence[float] | Float[Tensor, " t"],
    *,
    noise: NoiseType,
    calculus: Calculus,
    method: str,
    adjoint: Adjoint = "direct",
    brownian: BrownianPath | None = None,
    seed: int | None = None,
    step: float | None = None,
    checkpoints: int | None = None,
    params: Iterable[Tensor] | None = None,
) -> Float[Tensor, "t b *n"]:
    """One path a sample of `dy = f(t, y) dt + g(t, y) dW`, `y(ts[0]) = y0`, at all of `ts`.

    | method | solves | noise | strong order (additive; commuting; general) |
    |---|---|---|---|
    | "euler_maruyama" | Ito | any | 1; 1/2; 1/2 |
    | "milstein" | both | diagonal, scalar, additive | 1; 1 |
    | "srk" | both | additive | 3/2 |
    | "heun", "midpoint", "euler_heun" | Stratonovich | any | 1; 1; 1/2 |
    | "reversible_heun" | Stratonovich | any | 1; 1/2; 1/2 |

    With additive noise the two calculi are one, and any method may be used. Steps are equal, of at most `step`, between
    the times. Falling times run the equation backwards along the same path. The adjoints are those of `odeint`;
    "backsolve" is for Stratonovich equations (Heun's or the midpoint method goes back), and "reversible" for
    "reversible_heun".

    Args:
        drift: `f(t, y)`, shape (b, *n). diffusion: `g(t, y)`.
        noise: "diagonal": g of shape (b, *n), for Milstein's order g_i a function of y_i; "scalar": the same shape, one
            Brownian motion a sample; "general": (b, n, m); "additive": either of the shapes, without y in it.
        calculus: "ito" or "stratonovich": what the equation means; see `ito_to_stratonovich`.
        brownian: the path, of shape (b, *n), (b, 1) or (b, m) by the noise; or `seed`, for a `BrownianInterval` whose
            sample i is a function of (seed, i).
        checkpoints, params: as for `odeint`, of drift and diffusion.

    Raises:
        InputError: bad shapes, times, names or numbers; neither or both of `brownian` and `seed`; a parameter left out.
        IncompatibleError: a method on the other calculus, on noise, or with an adjoint, that it is not made for; a path
            of another shape, or without the areas that "srk" needs.
        NumericalError: the solution is not finite; the time is named.
    """
    stepper = choose("method", method, SDE_METHODS)
    choose("adjoint", adjoint, ADJOINTS)
    choose("noise", noise, NOISES)
    choose("calculus", calculus, ("ito", "stratonovich"))
    check_state(y0)
    times = check_times(ts)
    check_adjoint(adjoint, method, checkpoints)
    _check_method(stepper, method, noise, calculus, adjoint)
    if isinstance(stepper, Milstein):
        stepper = Milstein(ito=calculus == "ito")
    field = Field(drift, diffusion, noise)
    shape = noise_shape(field, times[0], y0)
    grid, keep = fixed_grid(times, step)
    if (brownian is None) == (seed is None):
        raise InputError("brownian, seed: expected exactly one of them")
    if brownian is None:
        assert seed is not None
        low, high = min(grid), max(grid)
        high = high if high > low else low + 1.0
        brownian = BrownianInterval(
            low, high, shape, seed, area=stepper.area, times=grid, dtype=y0.dtype, device=y0.device
        )
    elif brownian.shape != shape:
        raise IncompatibleError(f"brownian: its shape is {brownian.shape}; this equation expects {shape}")
    elif stepper.area and not brownian.area:
        raise IncompatibleError(f"brownian: {method} needs Levy areas; expected a path made with area=True")
    path = brownian

    def noise_of(a: float, b: float) -> Noise:
        made = path.increment_and_area(a, b) if stepper.area else (path.increment(a, b), None)
        return Noise(made[0].to(y0), None if made[1] is None else made[1].to(y0))

    plan = Plan(field, stepper, grid, keep, noise_of)
    tensors = parameters(params, drift, diffusion)
    result = integrate(plan, y0, tensors, adjoint, checkpoints, BACKWARD.get(method, "heun"))
    return check_finite(result, times, "sdeint")


def _check_method(stepper: Stepper, method: str, noise: str, calculus: str, adjoint: str) -> None:
    if noise not in stepper.noises:
        raise IncompatibleError(
            f"method: {method!r} was given with noise={noise!r}; it takes {', '.join(sorted(stepper.noises))}"
        )
    if noise == "additive":
        return
    if calculus not in stepper.calculus:
        raise IncompatibleError(
            f"method: {method!r} solves {' and '.join(sorted(stepper.calculus))} equations, and calculus={calculus!r} "
            "was declared; expected the other kind of method, or a drift converted by ito_to_stratonovich"
        )
    if adjoint == "backsolve" and calculus == "ito":
        raise IncompatibleError(
            "adjoint: 'backsolve' was given with calculus='ito'; expected a Stratonovich equation (ito_to_stratonovich "
            "makes one), or another adjoint"
        )


def noise_shape(field: Field, t: float, y0: Tensor) -> tuple[int, ...]:
    """The shape of an increment of the Brownian motion that an equation needs, from one evaluation.

    Raises:
        InputError: drift or diffusion of a shape that does not fit the noise.
    """
    with torch.no_grad():
        _, g = field(t, y0)
    if not isinstance(g, Tensor):
        raise InputError(f"diffusion: {type(g).__name__} was answered; expected a tensor")
    matrix = field.noise == "general" or (field.noise == "additive" and g.ndim == y0.ndim + 1)
    wanted = (*y0.shape, g.shape[-1]) if matrix and g.ndim else tuple(y0.shape)
    try:
        fits = tuple(torch.broadcast_shapes(g.shape, wanted)) == wanted
    except RuntimeError:
        fits = False
    if not fits or (matrix and (g.ndim < 2 or y0.ndim != 2)):
        shape = "(b, n, m)" if matrix else str(tuple(y0.shape))
        raise InputError(f"diffusion: its shape is {tuple(g.shape)}; expected {shape} for noise={field.noise!r}")
    if matrix:
        return (y0.shape[0], g.shape[-1])
    return (y0.shape[0], *(1 for _ in y0.shape[1:])) if field.noise == "scalar" else tuple(y0.shape)


def ito_to_stratonovich(drift: Function, diffusion: Function, noise: NoiseType) -> Function:
    """The drift of the Stratonovich equation with the same solution: `f - (1/2) sum_k (dg_k/dy) g_k`.

    One diffusion, and its Jacobian times a vector for each Brownian motion, by forward-mode differentiation; diagonal
    noise takes g_i for a function of y_i. Differentiable.
    """
    return _corrected(drift, diffusion, noise, -0.5)


def stratonovich_to_ito(drift: Function, diffusion: Function, noise: NoiseType) -> Function:
    """The drift of the Ito equation with the same solution: `f + (1/2) sum_k (dg_k/dy) g_k`; see `ito_to_stratonovich`."""
    return _corrected(drift, diffusion, noise, 0.5)


def _corrected(drift: Function, diffusion: Function, noise: str, half: float) -> Function:
    choose("noise", noise, NOISES)

    def corrected(t: Tensor, y: Tensor) -> Tensor:
        f = drift(t, y)
        if noise == "additive":
            return f
        g = diffusion(t, y)
        if noise != "general":
            along = torch.func.jvp(lambda at: diffusion(t, at), (y,), (g.expand_as(y),))[1]
            return f + half * along
        total = f
        for k in range(g.shape[-1]):
            along = torch.func.jvp(lambda at, k=k: diffusion(t, at)[..., k], (y,), (g[..., k],))[1]
            total = total + half * along
        return total

    return corrected
