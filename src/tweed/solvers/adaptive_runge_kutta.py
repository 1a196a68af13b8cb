"""Adaptive Runge-Kutta methods on the velocity, through torchdiffeq (Chen et al., "Neural ODEs", NeurIPS 2018).

The published black-box ODE sampler of Song et al. (ICLR 2021), Sec. 4.3 (there scipy's RK45 at 1e-5).
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tweed.errors import InputError, NumericalError, choose
from tweed.solvers.adaptive_dpm import denoise, ends
from tweed.solvers.base import Problem, Solver, State

METHODS = {"dopri5": (5, 6), "dopri8": (8, 13), "bosh3": (3, 3), "fehlberg2": (2, 2), "adaptive_heun": (2, 1)}
"""Order, and evaluations of an accepted step, of every method."""


@dataclass(frozen=True)
class AdaptiveRungeKutta(Solver):
    """`dx/dt = velocity` on any process, two-sided and endpoint-conditioned ones too, in either direction of time.

    The steps are common to the batch, and every sample meets the tolerance: the error is the largest, over samples, of
    its root mean square over the event in units of `atol + rtol |x|`. So a sample depends on its company, within the
    tolerance. The device is read at each step. A Gaussian process whose noise vanishes at the end (`sigma = 0`, where
    the velocity of most targets is singular) is followed to `process.t_min`, and then one first-order step further. A
    grid of more than two times stops at each of them (for a trajectory, say).

    Args:
        method: "dopri5", "dopri8", "bosh3", "fehlberg2" or "adaptive_heun".
        rtol, atol: the tolerances.
        max_steps: before giving up, in one interval of the grid.

    Raises:
        InputError: an unknown method, or a tolerance that is not positive.
        NumericalError: `max_steps` was reached, or the velocity is not finite; the time is named.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 10_000
    adaptive: ClassVar[bool] = True

    def __post_init__(self):
        choose("method", self.method, METHODS)
        check_tolerances(self.rtol, self.atol, self.max_steps)

    @property
    def order(self) -> int:
        return METHODS[self.method][0]

    @property
    def evaluations(self) -> int:
        """Of an accepted step (the last stage of one is the first of the next)."""
        return METHODS[self.method][1]

    def step(self, problem: Problem, state: State, i: int) -> State:
        """From `problem.times[i]` to `problem.times[i + 1]`, in as many steps as it takes."""
        process, x = problem.process, state.x
        here, there = ends(problem, x, i)
        last = there
        if process.endpoint != "drawn":
            silent = process.sigma(there) == 0.0
            last = torch.where(silent, torch.clamp(here, max=process.t_min), there)
        shape = torch.view_as_real(x).shape if x.is_complex() else x.shape

        def velocity(t: Tensor, value: Tensor) -> Tensor:
            at = value.reshape(shape)
            at = torch.view_as_complex(at) if x.is_complex() else at
            v = problem.estimate(at, t).velocity
            return torch.view_as_real(v).reshape(value.shape) if x.is_complex() else v

        # One row a sample, so that the norm of the error is taken over each.
        flat = torch.view_as_real(x).flatten(1) if x.is_complex() else x
        result = solve(velocity, flat, here, last, self.method, self.rtol, self.atol, self.max_steps, worst_sample)
        x = torch.view_as_complex(result.reshape(shape)) if x.is_complex() else result
        return State(denoise(problem, x, last, there) if bool((last != there).any()) else x)


def solve(
    field: Callable[[Tensor, Any], Any],
    start: Any,
    here: Tensor,
    there: Tensor,
    method: str,
    rtol: float,
    atol: float,
    max_steps: int,
    norm: Callable[[Any], Tensor],
) -> Any:
    """The solution of `d state / dt = field(t, state)` from times `here` to `there`, shape (b,).

    Args:
        start: a tensor with the batch first, or a tuple of such tensors.
        norm: of a state (the error in units of the tolerance), to be at most 1.

    Raises:
        NumericalError: too many steps, or something is not finite.
    """
    import torchdiffeq

    if not len(here):
        return start
    # One clock u for all samples, running from 1 to 0 where time falls: precise at small times in any type.
    low, high = torch.minimum(here, there), torch.maximum(here, there)
    falls = bool((here >= there).all())
    if not falls and bool((here > there).any()):
        raise InputError("times: they fall for some samples and rise for others; expected one direction for all")
    common = bool((low == low[0]).all() & (high == high[0]).all())
    if bool((low == high).all()):
        return start
    if common:
        low, high = low[0], high[0]
    slope, reached = high - low, low

    def scaled(u: Tensor, state: Any) -> Any:
        nonlocal reached
        # The guess of a first step may look beyond the end.
        reached = low + u.to(torch.float64).clamp(0.0, 1.0) * slope
        change = field(reached, state)
        return tuple(_times(slope, c) for c in change) if isinstance(change, tuple) else _times(slope, change)

    clock = torch.tensor([1.0, 0.0] if falls else [0.0, 1.0], dtype=torch.float64, device=here.device)
    # Steps that end at the end, rather than beyond it, where there may be no velocity.
    options = {"norm": norm, "max_num_steps": max_steps, "step_t": clock[1:]}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = torchdiffeq.odeint(scaled, start, clock, rtol=rtol, atol=atol, method=method, options=options)
    except AssertionError as error:
        raise NumericalError(f"{method}: stopped at t = {float(reached.max()):.6g}: {str(error)[:80]}") from None
    return tuple(p[-1] for p in path) if isinstance(path, tuple) else path[-1]


def worst_sample(error: Tensor) -> Tensor:
    """The largest, over samples, of the root mean square of `error`, shape (b, *event)."""
    return error.flatten(1).square().mean(1).amax().sqrt()


def check_tolerances(rtol: float, atol: float, max_steps: int) -> None:
    """Raise an `InputError` unless tolerances are positive and there is at least one step."""
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not value > 0.0:
            raise InputError(f"{name}: {value} was given; expected a positive number")
    if max_steps < 1:
        raise InputError(f"max_steps: {max_steps} was given; expected at least 1")


def _times(slope: Tensor, change: Tensor) -> Tensor:
    return change * slope.to(change.dtype).reshape(
        slope.shape + (1,) * (change.ndim - slope.ndim) if slope.ndim else ()
    )
