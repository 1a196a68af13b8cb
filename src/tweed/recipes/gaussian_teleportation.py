"""Gaussian teleportation (Wang & Vastola, TMLR 2024, arXiv 2412.09726): the first steps of a run in closed form.

On the handwritten digits with their exact score, EDM's 18 levels and Heun's method: how many of the steps the flow of one
Gaussian replaces, against the ways to do without them that a layman would try. And why it works: how much of the score a
Gaussian explains at each noise level, for the exact score, a small network trained here, and the bundled one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tweed.core import grids, random
from tweed.core.denoiser import Denoiser
from tweed.core.exact import EmpiricalDenoiser, GaussianDenoiser, PrincipalGaussian, fit_gaussian
from tweed.core.starts import Start
from tweed.data import Digits
from tweed.metrics import frechet_distance
from tweed.recipes import Progress, Report, Row, at_least, check, info, less_than
from tweed.recipes import _teleportation_explained as explained
from tweed.recipes._figures import curves
from tweed.recipes._teleportation_explained import LEVELS, PROCESS, STD, Found
from tweed.recipes.report import span
from tweed.solvers import DPMSolver, Heun, UniPC, fit_grid, sample
from tweed.solvers.accuracy import converged, rmse
from tweed.starts import gaussian_jump, skip

STEPS = 18
SKIPPED = (0, 2, 4, 6, 8, 10)
STARTS = {"smoke": 32, "default": 96, "gpu": 1797}
TRAINING = {"smoke": 200, "default": 800, "gpu": 20000}
SHOWN = {"smoke": 4, "default": 48, "gpu": 512}


def run(seed: int, scale: str, progress: Progress) -> Report:
    starts = STARTS[scale]
    data = Digits(flat=True).x.double()
    model, gaussian = EmpiricalDenoiser(data, STD, PROCESS), fit_gaussian(data, PROCESS, noise=STD)
    progress("the converged flow", 0.0)
    with torch.no_grad():
        rows, skips = _skips(model, gaussian, seed, starts, progress)
        progress("sample quality", 0.25)
        rows += _quality(model, gaussian, seed, starts)
        progress("optimised grids", 0.35)
        rows += _grids(model, gaussian, seed, scale) if scale != "smoke" else []
    progress("explained variance", 0.5)
    found: dict[str, Found] = {}
    found["digits, exact score"], more = explained.exact(seed, 512)
    found["digits, trained network"], learned = explained.trained(seed, TRAINING[scale], span(progress, 0.5, 0.8))
    progress("the bundled network", 0.8)
    found["glyphs, bundled network"], bundled = explained.bundled(seed, SHOWN[scale], 900 if scale == "smoke" else 3600)
    return Report(
        slug="gaussian-teleportation",
        rows=[*rows, *more, *learned, *bundled],
        seed=seed,
        scale=scale,
        settings={"starts": starts, "steps": STEPS, "levels": LEVELS, "component std": STD},
        figures={"skips": lambda: _figure_skips(skips), "explained": lambda: _figure_explained(found)},
        notes=(
            "Errors are medians over the starts of the RMS distance to the converged flow, in units of the data.",
            "The published FID (1.93 on CIFAR-10 with 15 to 30 % of the steps skipped) needs EDM's networks.",
        ),
    )


def _median(made: Tensor, reference: Tensor) -> float:
    return (made - reference).square().mean(1).sqrt().median().item()


def _skips(
    model: Denoiser, gaussian: PrincipalGaussian, seed: int, starts: int, progress: Progress
) -> tuple[list[Row], dict[str, tuple[list[float], list[float]]]]:
    end, solver = PROCESS.t_min, Heun()
    x = PROCESS.prior((starts, 64), random.fold(seed, 0), dtype=torch.float64)
    reference = converged(model, x, end=end, tolerance=1e-4)
    mean = gaussian.mean
    trace = gaussian.variances.mean()
    wide = GaussianDenoiser(mean, trace, PROCESS)
    ends: dict[str, dict[int, float]] = {
        "teleport": {},
        "scale about the mean": {},
        "scale the noise": {},
        "shorter grid": {},
    }
    states: dict[str, dict[int, float]] = {"teleport": {}, "scale about the mean": {}}
    for number, k in enumerate(SKIPPED):
        progress(f"{k} of {STEPS} steps skipped", 0.05 + 0.2 * number / len(SKIPPED))
        t, times = skip(PROCESS, grids.karras, STEPS, k, end=end)
        sigma = t * PROCESS.sigma_max
        jumped = {
            "teleport": gaussian_jump(gaussian, x, t).x,
            "scale about the mean": wide.flow(x, 1.0, t),
            "scale the noise": x * t,
        }
        true = sample(model, x, solver=DPMSolver(3), times=grids.log_snr(PROCESS, 120, end=t)) if k else x
        for name, state in jumped.items():
            ends[name][k] = _median(sample(model, Start(state, t), solver=solver, times=times), reference)
            if name in states and sigma >= 3.0:
                states[name][k] = ((state - true).square().mean() / true.square().mean()).sqrt().item()
        short = grids.karras(PROCESS, STEPS - k, end=end)
        ends["shorter grid"][k] = _median(sample(model, x, solver=solver, times=short), reference)
    _, times = skip(PROCESS, grids.karras, STEPS, 0, end=end)
    plain, begun = (
        sample(model, start, solver=solver, times=times) for start in (x, gaussian_jump(gaussian, x, times[0].item()))
    )
    same = torch.equal(plain, begun)
    full, six = ends["teleport"][0], ends["teleport"][6]
    rows = [
        check("nothing skipped is the base sampler, bit for bit", same, "equal", here=full),
        less_than(
            "6 of 18 steps skipped: error",
            six,
            full,
            1.1,
            published="15 to 30 % of the steps",
            note="baseline: all steps",
        ),
        less_than("... against scaling the noise", six, ends["scale the noise"][6], 0.95),
        less_than("... 8 skipped, against scaling the noise", ends["teleport"][8], ends["scale the noise"][8], 0.6),
        less_than("... against a grid of as many steps", six, ends["shorter grid"][6], 0.75),
        info("... scaling about the mean", six, baseline=ends["scale about the mean"][6]),
    ]
    rows += [
        less_than(
            f"{k} skipped: relative error of the state jumped to",
            states["teleport"][k],
            states["scale about the mean"][k],
            0.5,
        )
        for k in states["teleport"]
        if k
    ]
    fine = [k for k in SKIPPED if ends["teleport"][k] <= 1.1 * full]
    rows.append(
        at_least("share of the steps skipped at 1.1 x the error", max(fine) / STEPS, 0.3, published="0.15 to 0.3")
    )
    curves_ = {name: (list(map(float, found)), list(found.values())) for name, found in ends.items()}
    return rows, curves_


def _quality(model: EmpiricalDenoiser, gaussian: PrincipalGaussian, seed: int, starts: int) -> list[Row]:
    """Frechet distance of samples to fresh draws of the data's density."""
    fresh = model.sample(max(starts, 150 if starts < 64 else 300), random.fold(seed, 1)).double()
    rows = []
    for name, solver in (("Heun", Heun()), ("DPM-Solver++ 2M", DPMSolver(2)), ("UniPC", UniPC(3))):
        found = []
        for k in (0, 6):
            t, times = skip(PROCESS, grids.karras, STEPS, k, end=PROCESS.t_min)
            start = gaussian_jump(gaussian, len(fresh), t, seed=random.fold(seed, 2), dtype=torch.float64)
            found.append(frechet_distance(sample(model, start, solver=solver, times=times), fresh))
        rows.append(
            less_than(
                f"{name}: Frechet distance, 6 of 18 skipped", found[1], found[0], 1.15, note="baseline: all steps"
            )
        )
    return rows


def _grids(model: Denoiser, gaussian: PrincipalGaussian, seed: int, scale: str) -> list[Row]:
    """The saving spent on an optimised grid: equal evaluations, all of them below the jump."""
    solver, end, starts = UniPC(3, form="noise"), PROCESS.t_min, 48
    x = PROCESS.prior((64, 64), random.fold(seed, 5), dtype=torch.float64)
    reference = converged(model, x, end=end, tolerance=1e-4)
    rows, fixed = [], "baseline: the better of Karras and log-SNR"
    for steps, bound in ((10, 0.5), (20, 0.5)) if scale == "gpu" else ((10, 0.5),):
        plain = min(
            _median(sample(model, x, solver=solver, times=grid(PROCESS, steps, end=end)), reference)
            for grid in (grids.karras, grids.log_snr)
        )
        options: dict[str, Any] = {"starts": starts, "seed": random.fold(seed, 6), "tries": 2}
        alone = fit_grid(model, solver, steps, **options)
        both = fit_grid(model, solver, steps, jump=lambda x, t: gaussian.flow(x, 1.0, t), **options)
        made = sample(model, x, solver=solver, times=alone(PROCESS, steps, end=end))
        t = both.start(PROCESS)
        jumped = sample(
            model, gaussian_jump(gaussian, x, t), solver=solver, times=both(PROCESS, steps, start=t, end=end)
        )
        rows += [
            less_than(
                f"{steps} evaluations, optimised grid: error",
                _median(made, reference),
                plain,
                0.75,
                note=fixed,
            ),
            less_than(
                "... and the jump",
                _median(jumped, reference),
                plain,
                bound,
                note=f"from sigma = {80 * t:.1f}; RMS {rmse(jumped, reference):.2g}",
            ),
        ]
    return rows


def _figure_skips(found: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Any:
    lines = {("" if name == "teleport" else "~") + name: line for name, line in found.items()}
    return curves(
        {f"Heun, {STEPS} levels, digits": lines},
        xlabel="steps skipped",
        ylabel="median distance to the converged flow",
        log="y",
        width=5.6,
    )


def _figure_explained(found: Mapping[str, Found]) -> Any:
    panels = {
        title: {name: (LEVELS, [max(each.score, -0.05) for each in values]) for name, values in lines.items()}
        for title, lines in found.items()
    }
    return curves(
        panels, xlabel="noise level sigma", ylabel="explained variance of the score", log="x", legend="lower right"
    )
