"""Time grids that were found for a model: values that are kept with it, and used like any other grid."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tweed.core.grids import Grid, spaced
from tweed.core.processes import Process
from tweed.errors import CheckpointError, InputError


@dataclass(frozen=True)
class FittedGrid:
    """Levels of noise that were found to suit a solver, a model and a number of steps; a grid function.

    With the number of steps that it was found for it gives its own levels; with another, a monotone cubic curve through
    them (Fritsch & Carlson, 1980). It is a plain value: `as_dict` and `from_dict` carry it through JSON, and
    `tweed.solvers.keep_grid` puts it into what `tweed.save` writes with a model.

    Attributes:
        log_snr: log(alpha / sigma) of the levels, increasing; the finite ones of the run, so that an end at infinite
            log-SNR is one further step.
        solver: what it was found for, as `tweed.solvers.registry.parse` reads it.
        steps: of the run that it was found for, such further steps included.
        error: the distance to the converged solution that it reached: the geometric mean over the starts of the root
            mean square over a sample, in units of the data.
        baseline: the same for the best of the fixed grids that the search began from.
        jump: whether the run began below the prior, at `log_snr[0]`, from a start in closed form.
    """

    log_snr: tuple[float, ...]
    solver: str
    steps: int
    error: float
    baseline: float
    jump: bool = False

    def __post_init__(self):
        rises = all(a < b for a, b in pairwise(self.log_snr))
        if len(self.log_snr) < 2 or not rises or not all(map(math.isfinite, self.log_snr)):
            raise InputError(f"log_snr: {self.log_snr} was given; expected at least two finite, increasing levels")
        if not len(self.log_snr) - 1 <= self.steps <= len(self.log_snr) + 1:
            raise InputError(
                f"steps: {self.steps} was given for {len(self.log_snr)} levels; expected as many, or one off"
            )

    def start(self, process: Process) -> float:
        """The time of the first level on `process`: where a jump has to go."""
        return process.time(self.log_snr[0]).item()

    def __call__(self, process: Process, steps: int, *, start: float = 1.0, end: float = 0.0) -> Grid:
        """Times from `start` to `end`; see `tweed.grids`."""
        levels = torch.tensor(self.log_snr, dtype=torch.float64)

        def space(first: float, last: float, u: Tensor) -> Tensor:
            shares = (levels - levels[0]) / (levels[-1] - levels[0])
            if len(u) != len(levels):
                shares = torch.from_numpy(_curve(shares.numpy(), u.numpy()))
            return first + (last - first) * shares

        first, last = (process.time(level).item() for level in (self.log_snr[0], self.log_snr[-1]))
        return spaced(process, steps, start, end, space, (first, last))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"log_snr": list(self.log_snr)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "FittedGrid":
        """The grid that `as_dict` described.

        Raises:
            CheckpointError: an entry is missing, unknown, or not of its type.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != names:
            given = sorted(values) if isinstance(values, Mapping) else type(values).__name__
            raise CheckpointError(f"grid: the entries {given} were given; expected {sorted(names)}")
        try:
            levels = tuple(float(level) for level in values["log_snr"])
            numbers = {name: float(values[name]) for name in ("error", "baseline")}
            return cls(levels, str(values["solver"]), int(values["steps"]), jump=bool(values["jump"]), **numbers)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"grid: {error}") from None


def _curve(shares, u):
    from scipy.interpolate import PchipInterpolator

    return PchipInterpolator(torch.linspace(0.0, 1.0, len(shares), dtype=torch.float64).numpy(), shares)(u)
