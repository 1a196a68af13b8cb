"""Frechet distances of the digits' pixels, or of a classifier's features: of samples to the data, and to the flow's own.

The distance to the data has the noise of two finite sets, and the model's own error, in it. That to what the same starts
become in many steps has neither: it is what the solver does to the law of the samples.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tweed.core import random
from tweed.core.exact import EmpiricalDenoiser
from tweed.core.fitted_grid import FittedGrid
from tweed.errors import InputError
from tweed.recipes._cases import Case, Labelled
from tweed.recipes.report import Progress
from tweed.solvers import sample
from tweed.solvers.accuracy import times_within
from tweed.solvers.grid_search import INITIAL
from tweed.solvers.registry import parse

COMPARED = ("DPMSolver", "UniPC")
_BATCH = 64
_CONVERGED = ("UniPC(order=3)", "log_snr", 100)


def distances_of(
    case: Case,
    model: str,
    rows: Sequence[Mapping[str, Any]],
    fitted: Sequence[Mapping[str, Any]],
    budgets: Sequence[int],
    n: int,
    seed: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """The three methods best by error, and DPM-Solver++ 2M and UniPC, each on its best grid, from `n` starts of their own."""
    progress("a judge of samples", 0.0)
    data, features = _judge(case, model, n, seed)
    progress("the solution of many steps", 0.02)
    name, grid, many = _CONVERGED
    solution = features(_samples(case, name, INITIAL[grid], many, n, seed))
    grids: dict[tuple[str, int], Any] = {
        (each["row"]["method"], each["row"]["budget"]): FittedGrid.from_dict(each["grid"])
        for each in fitted
        if each["row"]["grid"] == "fitted"
    }
    found = []
    for number, budget in enumerate(budgets):
        best: dict[str, Mapping[str, Any]] = {}
        for row in rows:
            if (
                row["budget"] == budget
                and row["library"] == "tweed"
                and (row["grid"] in INITIAL or row["grid"] == "fitted")
            ):
                best.setdefault(row["method"], row)
        chosen = dict.fromkeys([*list(best)[:3], *(name for name in COMPARED if name in best)])
        for name in chosen:
            progress(f"{n} samples of {name} at {budget}", (number + 0.1) / len(budgets))
            row = best[name]
            grid = grids[name, budget] if row["grid"] == "fitted" else INITIAL[row["grid"]]
            made = _samples(case, name, grid, budget, n, seed)
            entry = {"method": name, "grid": row["grid"], "budget": budget, "rmse": row["rmse"]}
            law = features(made)
            found.append(entry | {"frechet": _distance(law, data), "frechet_converged": _distance(law, solution)})
    return sorted(found, key=lambda each: (each["budget"], each["frechet_converged"]))


def _distance(x: Tensor, y: Tensor) -> float:
    from tweed.metrics import frechet_distance

    return frechet_distance(x, y)


def _samples(case: Case, name: str, grid: Any, budget: int, n: int, seed: int) -> Tensor:
    process, solver = case.denoiser.process, parse(name)
    times = times_within(process, solver, budget, grid, start=case.start, end=case.end)
    pieces = []
    for first in range(0, n, _BATCH):
        count = min(_BATCH, n - first)
        x = process.prior(
            (count, *case.x.shape[1:]), random.fold(seed, 51), index=first, t=case.start, dtype=case.x.dtype
        )
        denoiser = case.denoiser
        if isinstance(denoiser, Labelled) and denoiser.label is not None:
            rows = torch.arange(first, first + count) % denoiser.classes
            denoiser = Labelled(denoiser.denoiser, rows, denoiser.classes)
        pieces.append(sample(denoiser, x, solver=solver, times=times))
    return torch.cat(pieces)


def _judge(case: Case, model: str, n: int, seed: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Features of the data, and what gives those of samples."""
    denoiser = case.denoiser
    if isinstance(denoiser, EmpiricalDenoiser):
        return denoiser.sample(max(n, 1000), random.fold(seed, 52)), lambda x: x
    from tweed import data, metrics
    from tweed.training import load

    meta = getattr(load(model), "meta", {}).get("data", {})
    kind = getattr(data, str(meta.get("name")), None)
    if kind is None:
        raise InputError(f"frechet: {model!r} does not say which of tweed's data sets it was trained on; leave it out")
    known = kind(**{key: value for key, value in meta.items() if key != "name"})
    if not known.num_classes:
        raise InputError(f"frechet: the data of {model!r} has no classes to train a judge on; leave it out")
    with torch.enable_grad():
        classifier = metrics.train_classifier(known, steps=250, seed=random.fold(seed, 53), width=16)
    which = torch.randperm(len(known), generator=random.generator(seed, 54))[: max(2 * n, 1000)]
    return metrics.features(classifier, known.batch(which)["x"]), lambda x: metrics.features(classifier, x.float())
