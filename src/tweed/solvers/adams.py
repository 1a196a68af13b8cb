"""Linear multistep methods: one evaluation a step, and a polynomial through the last few.

Adams-Bashforth integrates the polynomial through the last k estimates over the step, exactly, on whatever grid. In the
noise form that is the LMS sampler of k-diffusion; PNDM (Liu et al., "Pseudo Numerical Methods for Diffusion Models on
Manifolds", ICLR 2022) keeps the weights of a uniform grid and moves the state by the exact transfer.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tweed.core.processes import Process
from tweed.errors import InputError, choose
from tweed.solvers.base import Form
from tweed.solvers.euler import ODESolver, clock, grid, transfer
from tweed.solvers.runge_kutta import TABLEAUS, as_rows, check_step_form, first_order, stage_steps, tableau_steps
from tweed.solvers.table import Row, Table

_UNIFORM = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@dataclass(frozen=True)
class AdamsBashforth(ODESolver):
    """Of order `order` on any grid, with one evaluation a step.

    Args:
        order: 1 (Euler) to 6.
        form: "noise" (in `sigma / alpha`) or "velocity" (in time, for any process).
        start: the first `order - 1` steps: "euler", the lower orders on what has been seen so far, at no cost, although
            its first step leaves an error of second order; "runge-kutta", steps of a Runge-Kutta method of that order.

    Raises:
        InputError: another order, form or start.
    """

    order: int = 2
    form: Form = "noise"
    start: Literal["euler", "runge-kutta"] = "euler"
    evaluations: ClassVar[int] = 1  # type: ignore[assignment]

    def __post_init__(self):
        check_step_form(self.form, False)
        check_order(self.order, 6)
        choose("start", self.start, ("euler", "runge-kutta"))

    def table(self, process: Process, times: Sequence[float] | Tensor) -> Table:
        t = grid(times)
        count = min(self.order - 1, len(t) - 1) if self.start == "runge-kutta" else 0
        startup: tuple[tuple[Row, ...], ...] = ()
        if count:
            tableau = TABLEAUS["rk4" if self.order <= 5 else "dormand-prince5"]
            startup = as_rows(
                tableau_steps(process, self.form, tableau, t[:count], t[1 : count + 1]), times[: count + 1]
            )
        clocks = clock(process, self.form, t)[0]
        alone = ~clocks[1:].isfinite()
        first = 0
        if not isinstance(times, Tensor):
            clocks, alone, first = clocks.tolist(), alone.tolist(), int(not clocks[0].isfinite())

        def weights(i: int) -> Weights:
            if alone[i] is True or i < first:
                return {i: 1.0}
            h = clocks[i + 1] - clocks[i]
            known = range(i, max(i - self.order, first - 1), -1)
            found = dict(zip(known, adams_weights([(clocks[n] - clocks[i]) / h for n in known]), strict=True))
            if isinstance(times, Tensor):
                found = {n: torch.where(alone[i], float(n == i), w) for n, w in found.items()}
            return found

        return _multistep(self.form, process, times, startup, weights)


def LMS(order: int = 4) -> AdamsBashforth:
    """The linear multistep sampler of k-diffusion, `AdamsBashforth(order, form="noise")`."""
    return AdamsBashforth(order, "noise")


@dataclass(frozen=True)
class PNDM(ODESolver):
    """Adams-Bashforth with the weights of a uniform grid on `eps`, and the exact transfer of the state.

    Of order `order` where the grid is uniform in `sigma / alpha`, and of second order on any other smooth grid, as its
    authors prove; the weights of `AdamsBashforth` follow the grid instead.

    Args:
        order: of the multistep formula, 1 to 4 (4 as published; with `start="heun"`, 2 is their S-PNDM).
        start: the first steps: "runge-kutta", `order - 1` pseudo-Runge-Kutta steps of four evaluations (F-PNDM);
            "heun", one step of two (PLMS, which diffusers calls `skip_prk_steps`); "euler", lower orders at first.

    Raises:
        InputError: another order, or an unknown start.
    """

    order: int = 4
    start: Literal["runge-kutta", "heun", "euler"] = "runge-kutta"
    form: ClassVar[Form] = "noise"
    evaluations: ClassVar[int] = 1  # type: ignore[assignment]

    def __post_init__(self):
        choose("start", self.start, ("runge-kutta", "heun", "euler"))
        check_order(self.order, 4)

    def table(self, process: Process, times: Sequence[float] | Tensor) -> Table:
        t = grid(times)
        pure: float | Tensor = (process.alpha(t[0]) == 0.0).double()
        if not isinstance(times, Tensor):
            pure = pure.item()

        def weights(i: int) -> Weights:
            # An estimate of pure noise counts for nothing: then there is one less.
            usual, fewer = (_UNIFORM[max(min(self.order, known), 1) - 1] for known in (i + 1, i))
            if not isinstance(pure, Tensor):
                return {i - j: w for j, w in enumerate(fewer if pure else usual)}
            padded = (*fewer, 0.0)
            return {i - j: (1.0 - pure) * w + pure * padded[j] for j, w in enumerate(usual)}

        return _multistep(self.form, process, times, self._startup(process, times, t), weights)

    def _startup(self, process: Process, times: Sequence[float] | Tensor, t: Tensor) -> tuple[tuple[Row, ...], ...]:
        count = {"runge-kutta": self.order - 1, "heun": min(self.order - 1, 1), "euler": 0}[self.start]
        count = min(count, len(t) - 1)
        if count == 0:
            return ()
        t, s = t[:count], t[1 : count + 1]
        if self.start == "heun":
            steps = tableau_steps(process, self.form, TABLEAUS["heun2"], t, s)
        else:
            # The stages lie half-way in time, and each is reached by the transfer.
            middle = 0.5 * (t + s)
            here, half, there = (clock(process, self.form, at)[0] for at in (t, middle, s))
            c = (half - here) / (there - here)
            a = ((), (c,), (0.0, c), (0.0, 0.0, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6))
            euler = first_order(process, self.form, t, s, ends=True)
            steps = stage_steps(process, self.form, t, s, (t, middle, middle, s), a, euler)
        return as_rows(steps, times[: count + 1])


Weights = Mapping[int, float | Tensor]
"""The weight in a step of the first estimate of each earlier step, by its number."""


def _multistep(
    form: Form,
    process: Process,
    times: Sequence[float] | Tensor,
    startup: tuple[tuple[Row, ...], ...],
    weights: Callable[[int], Weights],
) -> Table:
    """The lines `startup` and then one line a step, on the newest first estimates of the steps before."""
    t = grid(times)
    keep, move = transfer(process, form, t[:-1], t[1:])
    pure = not isinstance(times, Tensor) and form == "noise" and process.level(times[0]).alpha == 0.0
    at, keeps, moves = (c.unbind() if isinstance(times, Tensor) else c.tolist() for c in (t, keep, move))
    steps = list(startup)
    # What the memory holds, newest first: the step whose first estimate it is; None for that of a later stage.
    seen: list[int | None] = []
    for i, step in enumerate(moves):
        if i >= len(startup):
            share = weights(i)
            names = [i, *seen]
            names = names[: names.index(min(share)) + 1]
            estimates = tuple(step * share.get(n, 0.0) for n in names)
            steps.append((Row(at[i], keeps[i], estimates),))
        # Leaving pure noise, a grid of numbers takes DDIM's step, which remembers nothing.
        seen = [] if i == 0 and pure else [*[None] * (len(steps[i]) - 1), i, *seen]
    return Table(form, tuple(steps))


def adams_weights(nodes: Sequence[float] | Sequence[Tensor]) -> list:
    """The integrals over [0, 1] of the Lagrange polynomials of `nodes`, numbers or tensors of one shape.

    `nodes` are the places of the last estimates, newest first, in steps from the present one: 0, -1, -2, ... on a uniform
    grid. A node at infinity has no weight, and leaves the others the formula of one order less.
    """
    weights = []
    for j, own in enumerate(nodes):
        # The product over the other nodes m of 1 + (z - own) / (own - z_m), as a polynomial in z.
        polynomial: list = [1.0]
        for m, other in enumerate(nodes):
            if m == j:
                continue
            slope = 1.0 / (own - other)
            constant = 1.0 - own * slope
            shifted = [0.0, *(slope * c for c in polynomial)]
            polynomial = [constant * c + d for c, d in zip([*polynomial, 0.0], shifted, strict=True)]
        weight = sum(c / (n + 1) for n, c in enumerate(polynomial))
        if isinstance(own, Tensor):
            weight = torch.where(own.isfinite(), weight, 0.0)  # type: ignore[arg-type]
        elif not math.isfinite(own):
            weight = 0.0
        weights.append(weight)
    return weights


def check_order(order: int, highest: int) -> None:
    """Raise an `InputError` unless `order` is a whole number from 1 to `highest`."""
    if isinstance(order, bool) or not isinstance(order, int) or not 1 <= order <= highest:
        raise InputError(f"order: {order!r} was given; expected a whole number from 1 to {highest}")
