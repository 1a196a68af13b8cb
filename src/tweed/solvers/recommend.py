"""Which solver and grid to take for a model and a number of evaluations: what was measured, and from what.

The evidence is a file beside this one, `evidence.json`, that `tweed bench solvers --record` writes: for a few fields (exact
and networks, guided and not, on several processes) and budgets, the solvers and grids that came closest to the converged
solution. A grid that was fitted to the model itself and kept with it (`fit_grid`, `keep_grid`) goes before all of it.
"""

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from torch import Tensor

from tweed.core.denoiser import Denoiser
from tweed.core.exact import EmpiricalDenoiser, MixtureDenoiser, PrincipalGaussian
from tweed.errors import IncompatibleError, InputError
from tweed.solvers.accuracy import GridFunction, times_within
from tweed.solvers.base import Solver
from tweed.solvers.fit_grid import kept_grids
from tweed.solvers.grid_search import INITIAL
from tweed.solvers.heun import Heun
from tweed.solvers.registry import parse

EXACT = (MixtureDenoiser, EmpiricalDenoiser, PrincipalGaussian)


@dataclass(frozen=True)
class Recommendation:
    """What to pass to `tweed.sample`: `sample(model, n, solver=r.solver, steps=r.steps, grid=r.grid)`.

    Attributes:
        solver, grid, steps: the solver, a grid function, and the steps of it that keep within the budget.
        evaluations: the budget.
        error: the distance to the converged solution that was measured, in units of the data; None where nothing was.
        why: what it rests on, in words.
    """

    solver: Solver
    grid: GridFunction
    steps: int
    evaluations: int
    error: float | None
    why: str


def recommend(denoiser: Denoiser, steps: int = 10) -> Recommendation:
    """The solver and grid that the evidence supports for a denoiser, wrappers and all, and `steps` evaluations.

    Raises:
        InputError: no denoiser, or a budget below 1.
    """
    if not isinstance(denoiser, Denoiser):
        raise InputError(f"denoiser: {type(denoiser).__name__} was given; expected a tweed Denoiser")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps: {steps!r} was given; expected a whole number of evaluations, at least 1")
    process = denoiser.process
    if process.endpoint == "drawn":
        why = "a two-sided interpolant is followed by its velocity; second order, by rule and not by measurement"
        return Recommendation(Heun(form="velocity"), INITIAL["uniform"], max(steps // 2, 1), steps, None, why)
    kept = [grid for grid in kept_grids(denoiser) if grid.steps == steps and not grid.jump]
    if kept:
        best = min(kept, key=lambda grid: grid.error)
        why = (
            f"a grid fitted to this model with {best.solver}: {best.error:.3g} from the converged solution at {steps} steps, "
            f"against {best.baseline:.3g} on the best fixed grid"
        )
        return Recommendation(parse(best.solver), best, steps, steps, best.error, why)
    case, entry = _nearest(denoiser, steps)
    for row in entry["rows"]:
        solver, grid = parse(row["solver"]), INITIAL[row["grid"]]
        times = _within(denoiser, solver, grid, steps)
        if times is not None:
            why = (
                f"measured on {case['name']} ({case['process']}, {case['field']}) at {entry['budget']} evaluations: "
                f"{row['error']:.3g} from the converged solution, {row['gain']:.2g} x DPM-Solver++ 2M's; "
                "measure your own model with `tweed bench solvers --model`, or fit a grid to it with tweed.solvers.fit_grid"
            )
            return Recommendation(solver, grid, len(times) - 1, steps, row["error"], why)
    why = "fewer evaluations than any measured: DDIM's first order"
    return Recommendation(parse("DDIM"), INITIAL["log_snr"], steps, steps, None, why)


def _within(denoiser: Denoiser, solver: Solver, grid: GridFunction, budget: int) -> Tensor | None:
    """The grid that `tweed.sample` would use within the budget; None where the solver cannot follow any."""
    try:
        solver.check(denoiser.process)
        return times_within(denoiser.process, solver, budget, grid, start=denoiser.t_max, end=0.0)
    except IncompatibleError:
        # Noise estimates, say, on a process that begins at alpha = 0.
        return None


def _nearest(denoiser: Denoiser, steps: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The case most like the denoiser, and of its budgets the nearest in proportion."""
    inner, guided = denoiser, False
    while True:
        guided = guided or type(inner).__module__.startswith("tweed.guidance")
        nested = getattr(inner, "denoiser", None)
        if not isinstance(nested, Denoiser):
            break
        inner = nested
    exact, family = isinstance(inner, EXACT), _family(denoiser)

    def unlike(case: dict[str, Any]) -> tuple[bool, bool, bool]:
        return (
            (case["field"] == "exact score") != exact,
            case["guided"] != guided,
            case["family"] != family,
        )

    case = min(evidence()["cases"], key=unlike)
    entry = min(case["budgets"], key=lambda each: abs(math.log(each["budget"] / steps)))
    return case, entry


def _family(denoiser: Denoiser) -> str:
    name = type(denoiser.process).__name__
    return "EDM" if name in ("EDM", "VE") else "RectifiedFlow" if name == "RectifiedFlow" else "VP"


@lru_cache(maxsize=1)
def evidence() -> dict[str, Any]:
    """What was measured: the file, parsed."""
    return json.loads((resources.files("tweed.solvers") / "evidence.json").read_text(encoding="utf-8"))
