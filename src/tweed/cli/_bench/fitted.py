"""Grids fitted to a model, beside the solvers on fixed ones: how much closer they come, and what finding them takes."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from tweed.core import random
from tweed.core.exact import EmpiricalDenoiser, fit_gaussian
from tweed.core.starts import Start
from tweed.recipes._cases import Case
from tweed.recipes.report import Progress, span
from tweed.solvers import FittedGrid, Solver, fit_grid, sample
from tweed.solvers.accuracy import rmse
from tweed.solvers.grid_search import INITIAL
from tweed.solvers.registry import describe, parse

FITTED, JUMPED = "fitted", "jump, fitted"
BOUNDS = {(FITTED, 10): 0.7, (FITTED, 20): 0.7, (JUMPED, 10): 0.2, (JUMPED, 20): 0.15}
"""What a fitted grid, alone and below a jump, must reach on the digits, over the best of the peers."""
CROSS, HALVES = 1.1, 128
"""How much worse a grid may be on starts that it was not fitted to, and how many starts a half of them has."""
STARTS, TRIES = 64, 8
"""Of a fit to an exact score."""


def _leaders(rows: Sequence[Mapping[str, Any]], budget: int) -> list[str]:
    """Our solvers of one evaluation a step, the best first."""
    ranked = sorted(
        (row for row in rows if row["budget"] == budget and row["library"] == "tweed" and row["grid"] in INITIAL),
        key=lambda row: row["rmse"] if math.isfinite(row["rmse"]) else math.inf,
    )
    names = dict.fromkeys(row["method"] for row in ranked)
    return [name for name in names if parse(name).evaluations == 1]


def grids_for(
    case: Case,
    exact: bool,
    budget: int,
    rows: Sequence[Mapping[str, Any]],
    above: Tensor,
    seed: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Grids found for the leading solver, from other starts than those measured; on the digits also below a jump."""
    solver = parse(_leaders(rows, budget)[0])
    denoiser = case.denoiser
    theirs = [
        row["rmse"]
        for row in rows
        if row["budget"] == budget and row["library"] != "tweed" and math.isfinite(row["rmse"])
    ]
    few = STARTS if exact else min(8, len(case.x))
    options: dict[str, Any] = {"end": case.end, "shape": tuple(case.x.shape[1:]), "tries": TRIES if exact else 3}
    kinds: list[tuple[str, Any]] = [(FITTED, None)]
    if exact:
        gaussian = _gaussian(denoiser)
        kinds.append((JUMPED, lambda x, t: gaussian.flow(x, case.start, t)))
    found = []
    for number, (kind, jump) in enumerate(kinds):
        begun = time.perf_counter()
        tell = span(progress, number / 3, (number + 1) / 3)
        grid = fit_grid(
            denoiser,
            solver,
            budget,
            starts=few,
            seed=random.fold(seed, budget, number),
            jump=jump,
            progress=tell,
            **options,
        )
        seconds = time.perf_counter() - begun
        error = rmse(_run(case, solver, grid, jump), above)
        bound = BOUNDS.get((kind, budget)) if exact and theirs else None
        ratio = error / min(theirs) if theirs else None
        holds = None if bound is None or ratio is None else ratio <= bound
        found.append(
            {
                "row": {
                    "library": "tweed",
                    "method": describe(solver),
                    "grid": kind,
                    "budget": budget,
                    "evaluations": budget,
                    "rmse": error,
                },
                "grid": grid.as_dict(),
                "seconds": seconds,
                "ratio": ratio,
                "bound": bound,
                "cross": None,
                "holds": holds,
            }
        )
    if exact and budget == 10:
        progress("grids of two halves", 2 / 3)
        found[0]["cross"] = _cross(case, solver, budget, seed, options)
        found[0]["holds"] = found[0]["holds"] is not False and found[0]["cross"] <= CROSS
    return found


def _run(case: Case, solver: Solver, grid: FittedGrid, jump: Any = None) -> Tensor:
    process = case.denoiser.process
    start = grid.start(process) if jump is not None else case.start
    x = case.x if jump is None else jump(case.x, start).to(case.x)
    return sample(
        case.denoiser, Start(x, start), solver=solver, times=grid(process, grid.steps, start=start, end=case.end)
    )


def _cross(case: Case, solver: Solver, budget: int, seed: int, options: Mapping[str, Any]) -> float:
    """The error on one half of the starts of the grid found on the other, over that of its own; both ways, 128 each."""
    process, n = case.denoiser.process, HALVES
    whole = replace(
        case, x=process.prior((2 * n, *case.x.shape[1:]), random.fold(seed, 99), t=case.start, dtype=case.x.dtype)
    )
    reference = whole.reference()
    halves = [(replace(whole, x=whole.x[part]), reference[part]) for part in (slice(0, n), slice(n, 2 * n))]
    found = [
        fit_grid(half.denoiser, solver, budget, starts=half.x, reference=known, **options) for half, known in halves
    ]

    def error(grid: FittedGrid, half: Case, known: Tensor) -> float:
        return (_run(half, solver, grid) - known).square().flatten(1).mean(1).log().mean().mul(0.5).exp().item()

    own, other = (math.prod(error(found[(k + turn) % 2], *half) for k, half in enumerate(halves)) for turn in (0, 1))
    return math.sqrt(other / own)


def _gaussian(denoiser: Any) -> Any:
    assert isinstance(denoiser, EmpiricalDenoiser)
    return fit_gaussian(denoiser.data, denoiser.process, noise=denoiser.sigma0)
