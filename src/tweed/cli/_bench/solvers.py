"""How far the samples of a solver are from the converged solution, at equal numbers of evaluations."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from tweed.cli._bench import fitted, peers
from tweed.cli._bench.frechet import distances_of
from tweed.core import grids, processes
from tweed.core.denoiser import CountingDenoiser
from tweed.errors import IncompatibleError, choose
from tweed.recipes._cases import Case, digits_mixture, loaded
from tweed.recipes.report import Progress, span
from tweed.solvers import (
    BDIA,
    DDIM,
    DEIS,
    DPM2,
    LMS,
    PNDM,
    DPMSolver,
    EVODiff,
    Heun,
    RungeKutta,
    Solver,
    UniPC,
    sample,
)
from tweed.solvers.accuracy import compare, rmse
from tweed.solvers.grid_search import INITIAL

OURS: tuple[Solver, ...] = (
    DDIM(),
    *(DPMSolver(order, form=form) for order in (2, 3) for form in ("data", "noise")),
    DPMSolver(3, solver_type="midpoint"),
    *(DPMSolver(order, kind="singlestep") for order in (2, 3)),
    *(DPMSolver(order, kind="singlestep", group=True) for order in (2, 3)),
    DPMSolver(3, kind="singlestep", form="noise", group=True),
    *(UniPC(order, form=form) for order in (2, 3, 4) for form in ("data", "noise")),
    *(DEIS(order) for order in (2, 3, 4)),
    LMS(4),
    PNDM(4, "heun"),
    Heun(),
    DPM2(),
    RungeKutta("heun3", form="noise"),
    EVODiff(),
    *(BDIA(gamma) for gamma in (0.5, 1.0)),
)
"""The deterministic solvers that are compared, where they fit the model's process."""

PEERS_GRID = "karras, to 0"
REQUIRED = (10, 20)
"""The budgets at which the best of ours must not be behind the best of the peers'."""

EXACT = "digits-mixture"
PROCESSES = {"own": None, "VP": processes.VP(), "EDM": processes.EDM(), "RectifiedFlow": processes.RectifiedFlow()}


def case_of(model: str, starts: int, seed: int, process: str = "own", scale: float = 1.0) -> Case:
    """What is compared on: the digits with their exact score, or a model by name, under its own or another process."""
    chosen = choose("process", process, PROCESSES)
    return digits_mixture(starts, seed, chosen) if model == EXACT else loaded(model, starts, seed, chosen, scale)


def run(
    model: str,
    budgets: Sequence[int],
    starts: int,
    seed: int,
    progress: Progress,
    *,
    process: str = "own",
    scale: float = 1.0,
    fit: Sequence[int] = (),
    frechet: int = 0,
) -> dict[str, Any]:
    """All rows, the fitted grids, and for each budget the best of ours beside the best of the peers'."""
    case = case_of(model, starts, seed, process, scale)
    progress("the converged solution", 0.0)
    with torch.no_grad():
        above = case.reference(150 if model == EXACT else 60)
        clean = above if case.end == 0.0 else sample(case.denoiser, above, solver=DDIM(), times=[case.end, 0.0])
        rows = _ours(case, budgets, above, clean, span(progress, 0.1, 0.5))
        rows += _theirs(case, budgets, clean, span(progress, 0.5, 0.6))
        found: list[dict[str, Any]] = []
        for number, budget in enumerate(fit):
            part = span(progress, 0.6 + 0.3 * number / len(fit), 0.6 + 0.3 * (number + 1) / len(fit))
            found += fitted.grids_for(case, model == EXACT, budget, rows, above, seed, part)
        rows += [each["row"] for each in found]
        _rank(rows)
        summary = [_best(rows, budget) for budget in budgets]
        tell = span(progress, 0.9, 1.0)
        distances = distances_of(case, model, rows, found, budgets, frechet, seed, tell) if frechet else []
    bounds = [each["holds"] for each in found if each["holds"] is not None]
    return {
        "bench": "solvers",
        "model": model,
        "process": repr(case.denoiser.process),
        "scale": scale,
        "starts": starts,
        "seed": seed,
        "rows": rows,
        "grids": found,
        "frechet": distances,
        "summary": summary,
        "peers": peers.versions(),
        "holds": all(line["holds"] is not False for line in summary) and all(bounds),
    }


def _rank(rows: list[dict[str, Any]]) -> None:
    rows.sort(key=lambda row: (row["budget"], row["rmse"] if math.isfinite(row["rmse"]) else math.inf))


def row_of(library: str, method: str, grid: str, budget: int, evaluations: int, error: float) -> dict[str, Any]:
    return {
        "library": library,
        "method": method,
        "grid": grid,
        "budget": budget,
        "evaluations": evaluations,
        "rmse": error,
    }


def fits(solver: Solver, case: Case) -> bool:
    """Whether a solver can follow the case's process."""
    try:
        solver.check(case.denoiser.process)
    except IncompatibleError:
        return False
    return True


def _ours(case: Case, budgets: Sequence[int], above: Tensor, clean: Tensor, progress: Progress) -> list[dict[str, Any]]:
    ours = [solver for solver in OURS if fits(solver, case)]
    # Equal steps in EDM's time, which is the noise level, spend all of them at high noise.
    named = dict(INITIAL)
    if isinstance(case.denoiser.process, processes.EDM):
        del named["uniform"]
    parts = [(case.end, named, above, span(progress, 0.0, 0.75))]
    if case.end > 0.0:
        parts.append((0.0, {PEERS_GRID: grids.karras}, clean, span(progress, 0.75, 1.0)))
    found = [
        row
        for end, named, reference, tell in parts
        for row in compare(
            case.denoiser,
            case.x,
            ours,
            budgets,
            start=case.start,
            end=end,
            named_grids=named,
            reference=reference,
            progress=tell,
        )
    ]
    # compare goes through solvers, grids and budgets in this order.
    wanted = [budget for _, named, _, _ in parts for _ in ours for _ in named for budget in budgets]
    return [
        row_of("tweed", f.solver, f.grid, budget, f.evaluations, f.rmse)
        for f, budget in zip(found, wanted, strict=True)
        if f.evaluations
    ]


def _theirs(case: Case, budgets: Sequence[int], clean: Tensor, progress: Progress) -> list[dict[str, Any]]:
    process, rows = case.denoiser.process, []
    first, last = process.level(case.start), process.level(case.end)
    known = peers.peers()
    for number, peer in enumerate(known):
        progress(f"{peer.library} {peer.name}", number / len(known))
        for budget in budgets:
            levels = peer.levels(budget)
            if levels == 0:
                continue
            counter = CountingDenoiser(case.denoiser)
            field = peers.Field(counter, case.x / first.alpha, math.exp(-first.log_snr), math.exp(-last.log_snr))
            error = rmse(peer.run(field, levels), clean)
            rows.append(row_of(peer.library, peer.name, PEERS_GRID, budget, counter.evaluations, error))
    return rows


def _best(rows: list[dict[str, Any]], budget: int) -> dict[str, Any]:
    finite = [row for row in rows if row["budget"] == budget and math.isfinite(row["rmse"])]
    ours = [row for row in finite if row["library"] == "tweed"]
    theirs = min((row for row in finite if row["library"] != "tweed"), key=lambda row: row["rmse"], default=None)
    best = min(ours, key=lambda row: row["rmse"])
    same = min((row for row in ours if row["grid"] == PEERS_GRID), key=lambda row: row["rmse"], default=None)
    line: dict[str, Any] = {"budget": budget, "ours": best, "ours_on_their_grid": same, "peers": theirs}
    line["ratio"] = None if theirs is None else best["rmse"] / theirs["rmse"]
    line["ratio_on_their_grid"] = None if theirs is None or same is None else same["rmse"] / theirs["rmse"]
    line["holds"] = None if line["ratio"] is None or budget not in REQUIRED else line["ratio"] <= 1.0
    return line


def pareto(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that no other one beats with as small a budget, from the smallest budget to the largest."""
    front: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row["budget"], row["rmse"])):
        if math.isfinite(row["rmse"]) and (not front or row["rmse"] < front[-1]["rmse"]):
            front.append(row)
    return front


def figure(result: dict[str, Any]) -> Any:
    """Error against evaluations, with both Pareto fronts."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    made = Figure(figsize=(7.0, 4.4), layout="constrained")
    axes = made.subplots()
    # Beside one another, so that no library hides another one.
    styles = {
        "tweed": ("#1f6fb4", "o", 0.95),
        "k-diffusion": ("#d1722a", "^", 1.0),
        "diffusers": ("#7a7a7a", "s", 1.05),
    }
    for library, (color, marker, shift) in styles.items():
        rows = [row for row in result["rows"] if row["library"] == library and math.isfinite(row["rmse"])]
        if rows:
            x, y = [shift * row["budget"] for row in rows], [row["rmse"] for row in rows]
            axes.plot(x, y, marker, color=color, alpha=0.4, markersize=4, label=library, markeredgewidth=0)
    for name, ours, color in (("tweed", True, "#1f6fb4"), ("peers", False, "#a03d2b")):
        front = pareto(row for row in result["rows"] if (row["library"] == "tweed") == ours)
        if front:
            x, y = [row["budget"] for row in front], [row["rmse"] for row in front]
            axes.plot(x, y, "-", marker="_", color=color, linewidth=1.8, label=f"Pareto front, {name}")
    axes.set(xscale="log", yscale="log", xlabel="evaluations allowed", ylabel="RMSE to the converged solution")
    axes.set_title(f"{result['model']}, {result['starts']} starts", fontsize=10)
    # A run that left the data far behind is not worth half the figure.
    finite = sorted(row["rmse"] for row in result["rows"] if math.isfinite(row["rmse"]))
    axes.set_ylim(0.7 * finite[0], min(2.0 * finite[-1], 2.0))
    axes.minorticks_off()
    axes.set_xticks(sorted({row["budget"] for row in result["rows"]}))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return made
