"""How accurate a solver is at how many evaluations: distance to the converged solution from the same starts."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tweed.core import grids
from tweed.core.denoiser import CountingDenoiser, Denoiser
from tweed.core.processes import Process
from tweed.errors import IncompatibleError, InputError, NumericalError
from tweed.solvers.base import Solver
from tweed.solvers.dpm_solver import DPMSolver
from tweed.solvers.registry import describe
from tweed.solvers.sampling import sample
from tweed.solvers.table import TableSolver

GridFunction = Callable[..., Tensor]


@dataclass(frozen=True)
class Accuracy:
    """One measurement.

    Attributes:
        solver: as `tweed.solvers.registry.parse` reads it.
        grid: the name of the time grid.
        evaluations: of the denoiser, counted.
        rmse: root mean squared difference from the converged solution, in units of the data; infinite where
            the run did not stay finite, NaN where the solver cannot do with so few evaluations or on this grid.
    """

    solver: str
    grid: str
    evaluations: int
    rmse: float


def converged(
    denoiser: Denoiser,
    x: Float[Tensor, "b *event"],
    *,
    end: float,
    start: float = 1.0,
    steps: int = 150,
    tolerance: float = 1e-4,
    cond: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "b *event"]:
    """Where the probability-flow ODE carries `x` from time `start` to `end`, to `tolerance` (RMS), float64.

    Third-order DPM-Solver on twice the steps until two results agree.

    Raises:
        InputError: they do not agree after 16 times the steps; the field is not smooth, or `tolerance` too small.
    """
    x = x.double()

    def at(count: int) -> Tensor:
        times = grids.log_snr(denoiser.process, count, start=start, end=end)
        return sample(denoiser, x, solver=DPMSolver(order=3), times=times, cond=cond)

    coarse, distance = at(steps), math.inf
    for _ in range(4):
        steps *= 2
        fine = at(steps)
        distance = rmse(coarse, fine)
        if distance <= tolerance:
            return fine
        coarse = fine
    raise InputError(f"tolerance: {tolerance} was given; {steps // 2} and {steps} steps agree to {distance:.1e} only")


def rmse(a: Tensor, b: Tensor) -> float:
    """The root mean squared difference of two tensors of one shape."""
    return (a.double() - b.double()).square().mean().sqrt().item()


def times_within(
    process: Process, solver: Solver, evaluations: int, grid: GridFunction, *, start: float = 1.0, end: float = 0.0
) -> Float[Tensor, " steps+1"] | None:
    """The finest grid on which a solver takes at most so many evaluations; None where it cannot make a step."""
    for count in range(evaluations // max(solver.evaluations, 1) + 1, 0, -1):
        times = grid(process, count, start=start, end=end)
        if isinstance(solver, TableSolver):
            cost = solver.table(process, tuple(times.tolist())).evaluations
        else:
            cost = count * solver.evaluations
        if cost <= evaluations:
            return times
    return None


def measure(
    denoiser: Denoiser,
    x: Float[Tensor, "b *event"],
    reference: Float[Tensor, "b *event"],
    solver: Solver,
    evaluations: int,
    *,
    end: float,
    start: float = 1.0,
    grid: GridFunction = grids.karras,
    name: str | None = None,
    cond: Mapping[str, Tensor] | None = None,
) -> Accuracy:
    """The accuracy of one solver on the finest grid that a budget of evaluations allows; see `compare`."""
    shown, label = describe(solver), name or getattr(grid, "__name__", "grid")
    counter = CountingDenoiser(denoiser)
    try:
        times = times_within(denoiser.process, solver, evaluations, grid, start=start, end=end)
        if times is None:
            return Accuracy(shown, label, 0, math.nan)
        distance = rmse(sample(counter, x, solver=solver, times=times, cond=cond), reference)
    except NumericalError:
        distance = math.inf
    except IncompatibleError:
        # This grid is not for this solver: noise estimates say nothing at alpha = 0, say.
        return Accuracy(shown, label, 0, math.nan)
    return Accuracy(shown, label, counter.evaluations, distance)


def compare(
    denoiser: Denoiser,
    x: Float[Tensor, "b *event"],
    solvers: Iterable[Solver],
    budgets: Iterable[int],
    *,
    end: float,
    start: float = 1.0,
    named_grids: Mapping[str, GridFunction] | None = None,
    reference: Float[Tensor, "b *event"] | None = None,
    cond: Mapping[str, Tensor] | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> list[Accuracy]:
    """All solvers on all grids at all budgets, from the same starts; see `measure`.

    Args:
        x: the starts, shape (b, *event), at time `start`.
        end: the last level of the grids and of the reference (above 0 where log-SNR(0) is infinite).
        reference: the converged solution, where it is known; `converged` otherwise.
    """
    solvers, budgets = list(solvers), list(budgets)
    named_grids = named_grids or {"karras": grids.karras}
    if reference is None:
        reference = converged(denoiser, x, start=start, end=end, cond=cond)
    found, total = [], len(solvers) * len(budgets) * len(named_grids)
    for solver in solvers:
        for name, grid in named_grids.items():
            for budget in budgets:
                if progress is not None:
                    progress(describe(solver), len(found) / total)
                found.append(
                    measure(
                        denoiser, x, reference, solver, budget, start=start, end=end, grid=grid, name=name, cond=cond
                    )
                )
    return found
