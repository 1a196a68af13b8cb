"""Gaussian teleportation (Wang & Vastola, TMLR 2024, arXiv 2412.09726): the first steps of a run in closed form.

On the handwritten digits with their exact score, EDM's 18 levels and Heun's method: how many of the steps the flow of one
Gaussian replaces, against the ways to do without them that a layman would try. And why it works: how much of the score a
Gaussian explains at each noise level, for the exact score, a small network trained here, and the bundled one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tweed.analysis import ExplainedVariance, explained_variance
from tweed.core import grids, random, targets
from tweed.core.denoiser import Denoiser, FunctionDenoiser
from tweed.core.exact import EmpiricalDenoiser, GaussianDenoiser, fit_gaussian, fit_mixture
from tweed.core.processes import EDM
from tweed.core.starts import Start
from tweed.data import Digits, Glyphs
from tweed.metrics import frechet_distance
from tweed.recipes import Progress, Report, Row, at_least, check, info, less_than
from tweed.recipes._digits import score_model
from tweed.recipes._figures import curves
from tweed.recipes.report import span
from tweed.solvers import DPMSolver, Heun, UniPC, fit_grid, sample
from tweed.solvers.accuracy import converged, rmse
from tweed.starts import gaussian_jump, skip
from tweed.training import DenoisingLoss
from tweed.training.times import LogNormal

PROCESS = EDM(0.002, 80.0)
STEPS, STD = 18, 0.15
LEVELS = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
SKIPPED = (0, 2, 4, 5, 6, 8, 10)
Found = Mapping[str, Sequence[ExplainedVariance]]


def run(seed: int, scale: str, progress: Progress) -> Report:
    starts = {"smoke": 64, "default": 160, "gpu": 1797}[scale]
    data = Digits(flat=True).x.double()
    model = EmpiricalDenoiser(data, STD, PROCESS)
    gaussian = fit_gaussian(data, PROCESS, noise=STD)
    progress("the converged flow", 0.0)
    with torch.no_grad():
        rows, skips = _skips(model, gaussian, seed, starts, progress)
        progress("sample quality", 0.25)
        rows += _quality(model, gaussian, data, seed, starts)
        progress("optimised grids", 0.35)
        rows += _grids(model, gaussian, seed, scale)
    progress("explained variance", 0.5)
    more, explained = _explained(model, data, seed, scale, span(progress, 0.5, 1.0))
    return Report(
        slug="gaussian-teleportation",
        rows=rows + more,
        seed=seed,
        scale=scale,
        settings={"starts": starts, "steps": STEPS, "levels": LEVELS, "component std": STD},
        figures={"skips": lambda: _figure_skips(skips), "explained": lambda: _figure_explained(explained)},
        notes=(
            "Errors are medians over the starts of the RMS distance to the converged flow, in units of the data.",
            "The published FID (1.93 on CIFAR-10 with 15 to 30 % of the steps skipped) needs EDM's networks.",
        ),
    )


def _median(made: Tensor, reference: Tensor) -> float:
    return (made - reference).square().mean(1).sqrt().median().item()


def _skips(
    model: Denoiser, gaussian: Any, seed: int, starts: int, progress: Progress
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
    full, six = ends["teleport"][0], ends["teleport"][6]
    rows = [
        check("nothing skipped is the base sampler, bit for bit", full == ends["shorter grid"][0], "equal", here=full),
        less_than(
            "6 of 18 steps skipped: error",
            six,
            full,
            1.1,
            published="15 to 30 % of the steps",
            note="baseline: all steps",
        ),
        less_than("... against scaling the noise", six, ends["scale the noise"][6], 0.5),
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


def _quality(model: EmpiricalDenoiser, gaussian: Any, data: Tensor, seed: int, starts: int) -> list[Row]:
    """Frechet distance of samples to fresh draws of the data's density."""
    fresh = model.sample(max(starts, 300), random.fold(seed, 1)).double()
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


def _grids(model: Denoiser, gaussian: Any, seed: int, scale: str) -> list[Row]:
    """The saving spent on an optimised grid: equal evaluations, all of them below the jump."""
    solver, end, starts = UniPC(3, form="noise"), PROCESS.t_min, 16 if scale == "smoke" else 48
    x = PROCESS.prior((64, 64), random.fold(seed, 5), dtype=torch.float64)
    reference = converged(model, x, end=end, tolerance=1e-4)
    rows, fixed = [], "baseline: the better of Karras and log-SNR"
    for steps, bound in ((10, 0.5), (20, 0.5)) if scale != "smoke" else ((10, 0.6),):
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


def _explained(
    model: EmpiricalDenoiser, data: Tensor, seed: int, scale: str, progress: Progress
) -> tuple[list[Row], dict[str, Found]]:
    noisy = model.sample(512, random.fold(seed, 3)).double()
    times = [sigma / PROCESS.sigma_max for sigma in LEVELS]
    gaussian = fit_gaussian(data, PROCESS, noise=STD)
    approximations = {
        "isotropic": GaussianDenoiser(gaussian.mean, gaussian.variances.mean(), PROCESS),
        "Gaussian": gaussian,
        "10 Gaussians": fit_mixture(data, 10, PROCESS, floor=STD**2, seed=seed),
    }
    found: dict[str, Found] = {}
    each: dict[str, Sequence[ExplainedVariance]] = {}
    for name, other in approximations.items():
        each[name] = explained_variance(model, other, noisy, times, seed=random.fold(seed, 4))
    exact = {
        name: {s: e.score for s, e in zip(LEVELS, each, strict=True)}
        for name, each in found["digits, exact score"].items()
    }
    missed = {name: 1 - each[0.5] for name, each in exact.items()}
    rows = [
        at_least("explained variance of the score at sigma = 4: Gaussian", exact["Gaussian"][4.0], 0.99),
        less_than(
            "... what a Gaussian misses at sigma = 0.5, against an isotropic one",
            1 - exact["Gaussian"][0.5],
            1 - exact["isotropic"][0.5],
            0.7,
        ),
        less_than("... by 10 Gaussians, against one", missed["10 Gaussians"], missed["Gaussian"], 0.9),
    ]
    trained, train_rows = _trained(data, seed, scale, span(progress, 0.1, 0.7))
    found["digits, trained network"] = trained
    if scale != "smoke":
        progress("the bundled network", 0.8)
        found["glyphs, bundled network"], more = _bundled(seed)
        train_rows += more
    return rows + train_rows, found


def _trained(data: Tensor, seed: int, scale: str, progress: Progress) -> tuple[Found, list[Row]]:
    """A perceptron of the digits themselves, early in training and later."""
    steps = {"smoke": 300, "default": 1500, "gpu": 20000}[scale]
    digits = Digits(flat=True)
    options: dict[str, Any] = {
        "network": {"name": "mlp", "dim": 64, "width": 256},
        "batch_size": 256,
        "lr": 2e-3,
        "seed": random.fold(seed, 9),
        "ema": 0.99,
        "objective": DenoisingLoss(times=LogNormal(-1.2, 1.2)),
    }
    early = score_model(
        PROCESS, targets.EDM(0.5), digits, steps=steps // 10, text="early", progress=span(progress, 0, 0.1), **options
    )
    late = score_model(
        PROCESS, targets.EDM(0.5), digits, steps=steps, text="training", progress=span(progress, 0.1, 1.0), **options
    )
    times = [sigma / PROCESS.sigma_max for sigma in LEVELS]
    approximations: dict[str, Denoiser] = {
        "Gaussian": fit_gaussian(data, PROCESS),
        "10 Gaussians": fit_mixture(data, 10, PROCESS, floor=1e-3, seed=seed),
        "the training points": EmpiricalDenoiser(data, 0.0, PROCESS),
    }
    chosen = data[_some(len(data), 512, seed)]
    found = {
        name: explained_variance(late, other, chosen, times, seed=random.fold(seed, 4))
        for name, other in approximations.items()
    }
    first = explained_variance(early, approximations["Gaussian"], chosen, times, **told)
    at = LEVELS.index
    rows = [
        at_least(
            "a network after a tenth of its training: explained by the Gaussian at sigma = 2",
            first[at(2.0)].score,
            0.95,
        ),
        less_than(
            "... trained: missed by 10 Gaussians at sigma = 0.2, against the training points",
            1 - found["10 Gaussians"][at(0.2)].score,
            1 - found["the training points"][at(0.2)].score,
            note="it has not learned its training points by heart",
        ),
        info("... trained: explained by the Gaussian at sigma = 2", found["Gaussian"][at(2.0)].score),
    ]
    return found, rows


def _bundled(seed: int) -> tuple[Found, list[Row]]:
    """The bundled network on its own data, at the same levels of its own process."""
    from tweed.training import load

    model, glyphs = load("glyphs"), Glyphs()
    batch = glyphs.batch(_some(len(glyphs), 3000, seed))
    x, label = batch["x"].double(), batch["label"]
    few, own = x[:96], label[:96]
    process = model.process
    times = [process.time(-torch.tensor(s, dtype=torch.float64).log()).item() for s in LEVELS]
    whole = fit_gaussian(x, process, rank=512)
    each = [fit_gaussian(x[label == k], process, noise=0.05) for k in range(36)]

    def of_class(state: Tensor, t: float) -> Tensor:
        made = torch.empty_like(state)
        for k in own.unique().tolist():
            made[own == k] = each[k](state[own == k], t).x0
        return made

    approximations: dict[str, Denoiser] = {
        "isotropic": GaussianDenoiser(whole.mean.reshape(x.shape[1:]), x.var(0).mean(), process),
        "Gaussian of all": whole,
        "Gaussian of the class": FunctionDenoiser(of_class, process),
    }
    options: dict[str, Any] = {"cond": {"label": own}, "seed": random.fold(seed, 4)}
    found = {name: explained_variance(model, other, few, times, **options) for name, other in approximations.items()}
    high, one = LEVELS.index(8.0), LEVELS.index(1.0)
    ours, theirs = found["Gaussian of the class"], found["Gaussian of all"]
    return found, [
        at_least("glyphs: score explained by the Gaussian of the class at sigma = 8", ours[high].score, 0.98),
        less_than(
            "... missed of the data estimate there, against one Gaussian of all",
            1 - ours[high].data,
            1 - theirs[high].data,
        ),
        info("... score explained at sigma = 1", ours[one].score, baseline=theirs[one].score, note="baseline: of all"),
    ]


def _some(n: int, count: int, seed: int) -> Tensor:
    """The numbers of `count` of `n` samples, each at most once."""
    return torch.randperm(n, generator=random.generator(seed, 13))[:count]


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
