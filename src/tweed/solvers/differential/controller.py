"""Steps that adapt to a tolerance, and the grid that they make.

The grid is found without gradients and then integrated as a fixed one, so no gradient passes through the controller and
every adjoint of fixed steps serves adaptive ones too.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tweed.errors import InputError, NumericalError
from tweed.solvers.differential.field import Field
from tweed.solvers.differential.tableaus import Flow, Pair, explicit_step


@dataclass(frozen=True)
class PIDController:
    """The factor of the next step from the scaled errors `e` (accepted where `e <= 1`) of this and the last two:

        safety e^{-(p + i + d) / k} e_1^{(p + 2 d) / k} e_2^{-d / k},    k = order of the error + 1,

    between `factor_min` and `factor_max`, and at most 1 after a rejection (Soderlind, "Digital filters in adaptive
    time-stepping", ACM TOMS 2003; Hairer & Wanner, "Solving ODEs II", IV.2). Default: integral control alone;
    `p = 0.3, i = 0.4` changes its mind less often on mildly stiff problems.

    Args:
        p, i, d: proportional, integral and derivative coefficients.
        safety: in (0, 1].
        factor_min, factor_max: 0 < factor_min < 1 < factor_max.

    Raises:
        InputError: a number out of its range, or no positive `p + i + d`.
    """

    p: float = 0.0
    i: float = 1.0
    d: float = 0.0
    safety: float = 0.9
    factor_min: float = 0.2
    factor_max: float = 10.0

    def __post_init__(self):
        if not 0.0 < self.safety <= 1.0:
            raise InputError(f"safety: {self.safety} was given; expected a number in (0, 1]")
        if not 0.0 < self.factor_min < 1.0 < self.factor_max < math.inf:
            given = (self.factor_min, self.factor_max)
            raise InputError(f"factor_min, factor_max: {given} were given; expected 0 < factor_min < 1 < factor_max")
        if not self.p + self.i + self.d > 0.0:
            raise InputError(f"p, i, d: {(self.p, self.i, self.d)} were given; expected a positive sum")

    def factor(self, errors: Sequence[float], order: int, rejected: bool) -> float:
        """Of the next step, from the last errors, newest first; `rejected` says that this step or the last one was."""
        # Errors of zero, and those not there yet, count as ones on the tolerance.
        e, e1, e2 = (max(e, 1e-10) for e in (*errors, 1.0, 1.0, 1.0)[:3])
        k, (p, i, d) = order + 1, (self.p, self.i, self.d)
        if not math.isfinite(e):
            return self.factor_min
        factor = self.safety * e ** (-(p + i + d) / k) * e1 ** ((p + 2.0 * d) / k) * e2 ** (-d / k)
        return min(max(factor, self.factor_min), 1.0 if rejected else self.factor_max)


def scaled_error(error: Tensor, before: Tensor, after: Tensor, rtol: float, atol: float) -> Tensor:
    """The largest, over samples, of the root mean square of `error / (atol + rtol max(|before|, |after|))`; 0 if empty."""
    scale = atol + rtol * torch.maximum(before.abs(), after.abs())
    return worst(error / scale) if error.numel() else error.new_zeros(())


def worst(ratio: Tensor) -> Tensor:
    """The largest, over samples, of the root mean square, shape (b, *n)."""
    return ratio.reshape(ratio.shape[0], -1).square().mean(1).amax().sqrt()


@torch.no_grad()
def adaptive_grid(
    field: Field,
    pair: Pair,
    ts: Sequence[float],
    y0: Tensor,
    controller: PIDController,
    rtol: float,
    atol: float,
    max_steps: int,
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """The accepted steps of an embedded pair through all of `ts`: the grid, and the indices of `ts` in it.

    The device is read once a step.

    Raises:
        NumericalError: more than `max_steps` steps in an interval, or steps that vanish; the time is named.
    """
    tableau, weights = pair
    order = tableau.order - 1
    grid, keep, y, errors = [ts[0]], [0], y0.detach(), []
    size = first_step(field, ts, y, order, rtol, atol) if len(ts) > 1 else 0.0
    rejected, slope = False, field.slope(ts[0], y)
    for here, there in itertools.pairwise(ts):
        t, sign, count = here, math.copysign(1.0, there - here), 0
        while t != there:
            left = abs(there - t)
            # A rest of less than a step and a bit is taken at once, or halved, rather than leave a sliver.
            ends = size >= left * (1.0 - 1e-9)
            h = left if ends else min(size, 0.5 * left) if size > 0.5 * left else size
            end = there if ends else t + sign * h
            count += 1
            if count > max_steps or (end == t):
                what = f"{max_steps} steps were not enough" if count > max_steps else "the step vanished"
                raise NumericalError(f"odeint: {what}; stopped at t = {t:.6g} before {there:.6g}")
            flow = _flow(field, end - t)
            (after,), stages = explicit_step(tableau, flow, t, end, (y,), (slope * (end - t),))
            stages.append(flow(end, (after,)))
            difference = sum(w * k for w, (k,) in zip(weights, stages, strict=True) if w != 0.0)
            assert isinstance(difference, Tensor)
            error = float(scaled_error(difference, y, after, rtol, atol))
            accepted = error <= 1.0
            # The last stage of a step is the first of the next.
            slope = stages[-1][0] / (end - t) if accepted else slope
            factor = controller.factor([error, *errors], order, rejected or not accepted)
            proposal = h * factor
            if accepted:
                # A step that was cut to end at a time says nothing against the longer one before it.
                size = max(size, proposal) if ends and factor >= 1.0 else proposal
                t, y = end, after
                grid.append(t)
                errors = [error, *errors][:2]
            else:
                size = min(proposal, 0.9 * h)
            rejected = not accepted
        keep.append(len(grid) - 1)
    return tuple(grid), tuple(keep)


def _flow(field: Field, h: float) -> Flow:
    return lambda t, state: (field.flow(t, state[0], h, None),)


@torch.no_grad()
def first_step(field: Field, ts: Sequence[float], y: Tensor, order: int, rtol: float, atol: float) -> float:
    """The length of a first step by the algorithm of Hairer, Norsett & Wanner, "Solving ODEs I", II.4."""
    span = ts[1] - ts[0]
    f0 = field.flow(ts[0], y, 1.0, None)
    d0, d1 = (float(scaled_error(v, y, y, rtol, atol)) for v in (y, f0))
    h0 = 0.01 * d0 / d1 if d0 > 1e-5 and d1 > 1e-5 else 1e-6
    h0 = min(h0, abs(span))
    f1 = field.flow(ts[0] + math.copysign(h0, span), y + math.copysign(h0, span) * f0, 1.0, None)
    d2 = float(scaled_error(f1 - f0, y, y, rtol, atol)) / h0
    steepest = max(d1, d2)
    h1 = max(1e-6, h0 * 1e-3) if not steepest > 1e-15 else (0.01 / steepest) ** (1.0 / (order + 1))
    h = min(100.0 * h0, h1, abs(span))
    return h if math.isfinite(h) and h > 0.0 else abs(span) * 1e-6
