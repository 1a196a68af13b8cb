"""Time grids: where a solver stops on its way. Each carries its last level explicitly.

A grid is a function `(process, steps, *, start, end) -> times`, float64, shape (steps + 1,), decreasing from `start` to
`end`. `end = 0` (the default) ends at clean data, with a last step from the smallest noise for the grids in log-SNR and
sigma; any other `end` is the last level itself. A tensor `start` of shape (b,) gives each sample a grid of its own from
there, shape (steps + 1, b). Options are set by `functools.partial`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core.processes import EDM, Process
from tweed.errors import IncompatibleError, InputError

Grid = Float[Tensor, "steps+1 *b"]
Begin = float | Float[Tensor, " b"]


def uniform(process: Process, steps: int, *, start: Begin = 1.0, end: float = 0.0, shift: float = 1.0) -> Grid:
    """Equal steps in time. `shift` > 1 spends more of them at high noise: `t -> shift t / (1 + (shift - 1) t)`.

    The shift is that of Esser et al., "Scaling Rectified Flow Transformers" (ICML 2024), Eq. 23.
    """
    _check(steps, start, end)
    if not shift > 0.0:
        raise InputError(f"shift: {shift} was given; expected a positive number")
    t = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
    t = _along(shift * t / (1.0 + (shift - 1.0) * t), start)
    return _pin(end + (start - end) * t, start, end)


def quadratic(process: Process, steps: int, *, start: Begin = 1.0, end: float = 0.0) -> Grid:
    """Equal steps in the square root of time: shorter and shorter ones towards the data (Song et al., DDIM, 2021)."""
    _check(steps, start, end)
    if isinstance(start, Tensor):
        u = _along(torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64), start)
        first = start.double().sqrt()
        return _pin((first + (end**0.5 - first) * u) ** 2, start, end)
    root = torch.linspace(start**0.5, end**0.5, steps + 1, dtype=torch.float64)
    return _pin(root**2, start, end)


def log_snr(process: Process, steps: int, *, start: Begin = 1.0, end: float = 0.0) -> Grid:
    """Equal steps in log(alpha / sigma) (Lu et al., DPM-Solver, 2022).

    Where log-SNR is infinite at an end, that end is one step away from `process.t_max` or `process.t_min`.
    """
    return spaced(process, steps, start, end, lambda high, low, u: high + (low - high) * u)


def karras(process: Process, steps: int, *, start: Begin = 1.0, end: float = 0.0, rho: float = 7.0) -> Grid:
    """Equal steps in `(sigma / alpha)^(1/rho)` (Karras et al., 2022, Eq. 5)."""
    if not rho > 0.0:
        raise InputError(f"rho: {rho} was given; expected a positive number")

    def space(high: Any, low: Any, u: Tensor) -> Tensor:
        ends = [torch.as_tensor(level, dtype=torch.float64).neg().div(rho).exp() for level in (high, low)]
        return -rho * (ends[0] + (ends[1] - ends[0]) * u).log()

    return spaced(process, steps, start, end, space)


def default(process: Process, steps: int, *, start: Begin = 1.0, end: float = 0.0) -> Grid:
    """What `tweed.sample` uses where no grid is given: `karras` on EDM's process, `uniform` on all others."""
    grid = karras if isinstance(process, EDM) else uniform
    return grid(process, steps, start=start, end=end)


BY_NAME = {"uniform": uniform, "quadratic": quadratic, "log_snr": log_snr, "karras": karras, "default": default}
"""Every grid by the name that configurations and the command line use."""


def each(
    grid: Callable[..., Tensor], process: Process, steps: int, start: Float[Tensor, " b"], end: float, first: float
) -> Float[Tensor, "steps+1 b"]:
    """A grid for each sample, from its own `start`: that of `grid`, or for a function that takes numbers alone (none of
    this module), its grid from `first` to `end`, shrunk in time."""
    plain = grid
    while isinstance(plain, partial):
        plain = plain.func
    if any(plain is known for known in BY_NAME.values()):
        return grid(process, steps, start=start, end=end)
    levels = grid(process, steps, start=first, end=end)
    share = ((levels - end) / (first - end))[:, None]
    return end + share.to(start.device) * (start.double()[None] - end)


def spaced(
    process: Process,
    steps: int,
    start: Begin,
    end: float,
    space: Callable[[Any, Any, Tensor], Tensor],
    outer: tuple[float, float] | None = None,
) -> Grid:
    """A grid whose levels in log-SNR are `space(first, last, u)`, u from 0 to 1 in equal steps.

    Where log-SNR is infinite at `start` or `end`, that end is one step away from the first or last of the levels:
    `process.t_max` and `process.t_min`, or the two times of `outer`.

    Raises:
        IncompatibleError: the process is two-sided.
    """
    _check(steps, start, end)
    if process.endpoint == "drawn":
        raise IncompatibleError(
            f"grid: {type(process).__name__} has no log-SNR that falls in time; use uniform or quadratic"
        )
    if isinstance(start, Tensor):
        return _spaced_each(process, steps, start.double(), end, space, outer)
    infinite = [process.level(t).log_snr in (float("inf"), float("-inf")) for t in (start, end)]
    high, low = outer or (process.t_max, process.t_min)
    first, last = start, end
    if infinite[0]:
        first = high if end < high else 0.5 * (start + end)
    if infinite[1]:
        last = low if low < first else 0.5 * (first + end)
    inner = steps - sum(infinite)
    if inner < 1:
        # One step from end to end (or two with one stop between): there is nothing to space.
        times = [start, end] if steps == 1 else [start, first if infinite[0] else last, end]
        return torch.tensor(times, dtype=torch.float64)
    u = torch.linspace(0.0, 1.0, inner + 1, dtype=torch.float64)
    times = _pin(process.time(space(process.level(first).log_snr, process.level(last).log_snr, u)), first, last)
    ends = [torch.tensor([t], dtype=torch.float64) for t in (start, end)]
    return torch.cat([*ends[:1][: infinite[0]], times, *ends[1:][: infinite[1]]])


def _spaced_each(
    process: Process,
    steps: int,
    start: Float[Tensor, " b"],
    end: float,
    space: Callable[[Any, Any, Tensor], Tensor],
    outer: tuple[float, float] | None,
) -> Grid:
    """`spaced` from a start of each sample's own: both cases of a start, with a finite log-SNR and without, selected."""
    high, low = outer or (process.t_max, process.t_min)
    silent, last_silent = process.log_snr(start).isinf(), process.level(end).log_snr == float("inf")

    def times(lead: bool) -> Tensor:
        first = torch.where(start > high, high, 0.5 * (start + end)) if lead else start
        last = torch.full_like(start, end)
        if last_silent:
            last = torch.where(low < first, low, 0.5 * (first + end))
        inner = steps - lead - last_silent
        begin, final = start[None], torch.full_like(start, end)[None]
        if inner < 1:
            return torch.cat([begin, final] if steps == 1 else [begin, (first if lead else last)[None], final])
        u = _along(torch.linspace(0.0, 1.0, inner + 1, dtype=torch.float64), start)
        found = _pin(process.time(space(process.log_snr(first), process.log_snr(last), u)), first, last)
        return torch.cat([*[begin] * lead, found, *[final] * last_silent])

    finite = times(False)
    return torch.where(silent, times(True), finite) if bool(silent.any()) else finite


def _along(u: Float[Tensor, " steps+1"], start: Begin) -> Tensor:
    """Fractions of a grid, (steps + 1, 1) on the device of a tensor `start`."""
    return u[:, None].to(start.device) if isinstance(start, Tensor) else u


def _pin(times: Grid, start: float | Tensor, end: float | Tensor) -> Grid:
    times[0], times[-1] = start, end
    return times


def _check(steps: int, start: Begin, end: float) -> None:
    if not (isinstance(steps, int) and steps >= 1):
        raise InputError(f"steps: {steps!r} was given; expected a whole number of at least 1")
    if isinstance(start, Tensor):
        if start.ndim != 1:
            raise InputError(
                f"start: shape {tuple(start.shape)} was given; expected a number, or one time a sample (b,)"
            )
        if not bool(((start > end) & (start <= 1.0)).all()) or end < 0.0:
            raise InputError(
                f"start, end: from {start.min():.6g} to {start.max():.6g}, and {end}; expected 0 <= end < start <= 1"
            )
        return
    if not 0.0 <= end < start <= 1.0:
        raise InputError(f"start, end: {start}, {end} were given; expected 0 <= end < start <= 1")
