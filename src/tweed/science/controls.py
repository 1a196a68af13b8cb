"""Paths through irregular observations, which drive a controlled differential equation.

Kidger, Morrill, Foster & Lyons, "Neural controlled differential equations for irregular time series" (NeurIPS 2020,
arXiv 2005.08926); Morrill, Kidger, Yang & Lyons, "Neural controlled differential equations for online prediction tasks"
(2021, arXiv 2106.11028), for the choice of paths. Observations are (b, k, c) at times (k,) that the batch shares; a value
that was not observed is NaN, so series with times of their own are put on the union of all times.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.errors import InputError


@dataclass(frozen=True)
class Control:
    """A piecewise cubic path, `a + b r + c r^2 + d r^3` with r the time since the knot at the left.

    Attributes:
        knots: shape (k,), strictly rising, float64.
        coefficients: a, b, c, d, shape (4, b, k - 1, channels).
        smooth: whether the derivative is continuous; an integrator must stop at every knot where it is not.
        causal: whether the path up to a knot depends on observations up to that knot alone.
    """

    knots: Float[Tensor, " k"]
    coefficients: Float[Tensor, "4 b j c"]
    smooth: bool
    causal: bool

    @property
    def channels(self) -> int:
        return self.coefficients.shape[-1]

    def piece(self, t: Float[Tensor, ""]) -> tuple[Tensor, Float[Tensor, "4 b c"]]:
        """The time since the knot at the left, and the coefficients there; the last piece holds at the end."""
        i = (torch.searchsorted(self.knots, t.detach().to(self.knots)[None], right=True) - 1).clamp(
            0, len(self.knots) - 2
        )
        return t - self.knots[i][0].to(t), self.coefficients.index_select(2, i)[:, :, 0]

    def value(self, t: Float[Tensor, ""]) -> Float[Tensor, "b c"]:
        """X at time t."""
        r, (a, b, c, d) = self.piece(t)
        return a + r * (b + r * (c + r * d))

    def derivative(self, t: Float[Tensor, ""]) -> Float[Tensor, "b c"]:
        """dX/dt at time t; from the right where it jumps."""
        r, (_, b, c, d) = self.piece(t)
        return b + r * (2.0 * c + 3.0 * r * d)

    def restricted(self, i: int) -> "Control":
        """The piece between the knots i and i + 1 alone."""
        return Control(self.knots[i : i + 2], self.coefficients[:, :, i : i + 1], True, self.causal)


def linear(
    ts: Sequence[float] | Float[Tensor, " k"], x: Float[Tensor, "b k c"], *, empty: float | None = None
) -> Control:
    """Straight lines between the observations of each channel. Its derivative jumps at the knots.

    Up to a knot it has seen the observations up to that knot alone (`causal`), unless values are missing.

    Args:
        ts: strictly rising, at least two.
        x: finite, or NaN where nothing was observed; before the first and after the last observation of a channel its
            nearest one holds.
        empty: what a channel is that was never observed in a series; None refuses it.

    Raises:
        InputError: bad shapes or times; infinite values; a channel that was never observed, with `empty=None`.
    """
    knots = check_knots(ts, x)
    full = fill_missing(knots, x, empty=empty)
    return _lines(knots, full, causal=not bool(x.isnan().any()))


def hermite(
    ts: Sequence[float] | Float[Tensor, " k"], x: Float[Tensor, "b k c"], *, empty: float | None = None
) -> Control:
    """Cubic Hermite splines with backward differences: once continuously differentiable, and causal like straight lines.

    On `[t_i, t_{i+1}]`, of length D, the path goes from x_i to x_{i+1}; its slope is the difference quotient `d_{i-1}` of
    the interval before at the left (d_0 at the start) and `d_i` at the right:

        x(t_i + r) = x_i + d_{i-1} r + 2 (d_i - d_{i-1}) r^2 / D - (d_i - d_{i-1}) r^3 / D^2.

    An observation changes the path only from the knot before it on, where a natural spline changes throughout. Missing
    values are filled in as by `linear`, which looks ahead; `rectilinear` does not. Arguments and errors as for `linear`.
    """
    knots = check_knots(ts, x)
    full = fill_missing(knots, x, empty=empty)
    step = knots.diff().to(full)[None, :, None]
    slope = full.diff(dim=1) / step
    before = torch.cat((slope[:, :1], slope[:, :-1]), 1)
    bend = (slope - before) / step
    coefficients = torch.stack((full[:, :-1], before, 2.0 * bend, -bend / step))
    return Control(knots, coefficients, smooth=True, causal=not bool(x.isnan().any()))


def rectilinear(
    ts: Sequence[float] | Float[Tensor, " k"], x: Float[Tensor, "b k c"], *, before: float | None = None
) -> Control:
    """First the time moves and the values stay, then the values jump: causal, missing values included.

    Time becomes channel 0, and the path runs over 2 k - 1 knots 0, 1, 2, ...: from (t_i, x_i) to (t_{i+1}, x_i) to
    (t_{i+1}, x_{i+1}). Knot 2 i is the observation i, so a prediction there has seen the observations up to it and no
    others. A missing value is the last one observed.

    Args:
        before: what a channel is until it is first observed; None refuses a series whose first values are missing.

    Raises:
        InputError: as `linear`, and where first values are missing with `before=None`.
    """
    times = check_knots(ts, x)
    seen = x.isfinite()
    index = torch.arange(len(times), device=x.device)[None, :, None]
    last = torch.where(seen, index, -1).cummax(1).values
    if before is None and bool((last < 0).any()):
        raise InputError("x: the first values of a series are missing; expected a number for `before`")
    held = x.nan_to_num().gather(1, last.clamp(min=0))
    held = torch.where(last < 0, torch.as_tensor(0.0 if before is None else before).to(x), held)
    clock = times.to(x)[None, :, None].expand(len(x), -1, 1)
    corners = torch.cat((torch.cat((clock, held), 2)[:, :-1], torch.cat((clock[:, 1:], held[:, :-1]), 2)), 2)
    corners = corners.reshape(len(x), 2 * (len(times) - 1), x.shape[2] + 1)
    path = torch.cat((corners, torch.cat((clock, held), 2)[:, -1:]), 1)
    return _lines(torch.arange(path.shape[1], dtype=torch.float64, device=x.device), path, causal=True)


def with_time(
    ts: Sequence[float] | Float[Tensor, " k"], x: Float[Tensor, "b k c"], *, counts: bool = False
) -> Float[Tensor, "b k d"]:
    """The time as channel 0, and with `counts` the number of observations of each channel so far as last channels.

    Without a channel for time a CDE cannot tell how fast its path is run through. How often something was observed may
    tell a lot (a patient who is measured every hour); the count is divided by the number of times.
    """
    clock = check_knots(ts, x).to(x)[None, :, None].expand(len(x), -1, 1)
    parts = [clock, x]
    if counts:
        parts.append(x.isfinite().to(x.dtype).cumsum(1) / x.shape[1])
    return torch.cat(parts, 2)


def fill_missing(
    knots: Float[Tensor, " k"], x: Float[Tensor, "b k c"], *, empty: float | None = None
) -> Float[Tensor, "b k c"]:
    """NaN replaced on the straight line between the neighbours that were observed, or by the nearest one at the ends.

    Raises:
        InputError: a channel of a series has no observation, and `empty` is None.
    """
    seen, count = ~x.isnan(), x.shape[1]
    never = ~seen.any(1, keepdim=True)
    if empty is None and bool(never.any()):
        row, _, channel = never.nonzero()[0].tolist()
        raise InputError(
            f"x: channel {channel} of series {row} is NaN everywhere; expected an observation, or a number for `empty`"
        )
    index = torch.arange(count, device=x.device)[None, :, None]
    left = torch.where(seen, index, -1).cummax(1).values
    right = torch.where(seen, index, count).flip(1).cummin(1).values.flip(1)
    left, right = torch.where(left < 0, right, left), torch.where(right >= count, left, right)
    left, right = left.clamp(0, count - 1), right.clamp(0, count - 1)
    known = torch.where(seen, x, torch.zeros_like(x))
    gap = (knots[right] - knots[left]).to(x)
    weight = (knots[index] - knots[left]).to(x) / torch.where(gap > 0, gap, torch.ones_like(gap))
    low = known.gather(1, left)
    full = low + weight.clamp(0.0, 1.0) * (known.gather(1, right) - low)
    # What was observed stays to the last bit.
    full = torch.where(seen, known, full)
    return full if empty is None else torch.where(never, torch.full_like(full, empty), full)


def check_knots(ts: Sequence[float] | Float[Tensor, " k"], x: Float[Tensor, "b k c"]) -> Float[Tensor, " k"]:
    """The times in float64 on the device of x.

    Raises:
        InputError: they are not at least two, strictly rising and finite; x is no real (b, k, c), or infinite somewhere.
    """
    knots = torch.as_tensor(ts, dtype=torch.float64, device=x.device).detach()
    if knots.ndim != 1 or len(knots) < 2:
        raise InputError(f"ts: shape {tuple(knots.shape)} was given; expected (k,), with at least two times")
    if not bool(knots.isfinite().all()) or not bool((knots.diff() > 0).all()):
        raise InputError("ts: expected finite times that strictly rise")
    if x.ndim != 3 or x.shape[1] != len(knots) or not x.shape[2] or not x.is_floating_point():
        raise InputError(
            f"x: shape {tuple(x.shape)}, {x.dtype}, was given; expected floating (b, {len(knots)}, channels) for the times"
        )
    if bool(x.isinf().any()):
        raise InputError("x: infinite values were given; expected numbers, or NaN where nothing was observed")
    return knots


def _lines(knots: Tensor, full: Tensor, causal: bool) -> Control:
    slope = full.diff(dim=1) / knots.diff().to(full)[None, :, None]
    zero = torch.zeros_like(slope)
    return Control(knots, torch.stack((full[:, :-1], slope, zero, zero)), smooth=False, causal=causal)
