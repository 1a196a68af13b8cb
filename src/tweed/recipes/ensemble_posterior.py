"""AFDPS (2025, arXiv 2506.03979): posteriors by weighted particles, against a mixture whose posterior is known.

Three Gaussians in the plane, one noisy linear measurement: the mean, the weights of the modes and the evidence p(y) have
closed forms. Then the calibration of every method for inverse problems, on a Gaussian and on the mixture: which of them
sample the posterior, and which only find likely points.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tweed.core import grids, random
from tweed.core.exact import GaussianDenoiser, MixtureDenoiser, MixturePosterior
from tweed.core.particles import systematic
from tweed.core.processes import EDM, VP
from tweed.errors import InputError
from tweed.inverse import (
    DDRM,
    DPS,
    DiffPIR,
    EnsemblePosterior,
    FlowChef,
    Measurement,
    Method,
    PiGDM,
    REDDiff,
    Solution,
)
from tweed.inverse.calibration import Calibration, calibrate
from tweed.inverse.operators import Matrix
from tweed.recipes import Progress, Report, Row, at_least, at_most, check, info, less_than, span, within
from tweed.recipes._figures import curves

F64 = torch.float64
PROCESS = VP(beta_min=0.1, beta_max=10.0)
NOISE, Y, EVIDENCE = 0.5, 0.4, -0.8776
GRID = partial(grids.uniform, end=1e-3)
SIZES = (64, 512)


def prior(process: Any = PROCESS) -> MixtureDenoiser:
    means = torch.tensor([[-1.2, -0.6], [0.0, 0.9], [1.2, -0.6]])
    return MixtureDenoiser(means, torch.tensor([0.06, 0.12]).expand(3, 2), torch.tensor([0.3, 0.4, 0.3]), process)


MATRIX = torch.tensor([[1.0, 0.5]], dtype=F64)


def run(seed: int, scale: str, progress: Progress) -> Report:
    runs, steps, most = {"smoke": (8, 60, 512), "default": (32, 200, 2048), "gpu": (128, 1000, 16384)}[scale]
    rows = _invariances(seed)
    more, errors = _against_the_posterior(seed, runs, steps, most, span(progress, 0.0, 0.55), scale)
    rows += more
    tables = {} if scale == "smoke" else _calibrations(seed, span(progress, 0.55, 1.0))
    rows += _calibration_rows(tables)
    return Report(
        slug="ensemble-posterior",
        rows=rows,
        seed=seed,
        scale=scale,
        settings={"runs": runs, "steps": steps, "particles": [*SIZES, most]},
        figures={
            "particles": lambda: curves(
                {"error of the posterior mean": errors},
                xlabel="particles",
                ylabel="distance, mean over runs",
                ticks=SIZES,
            )
        }
        | ({"calibration": lambda: _figure(tables)} if tables else {}),
        notes=(
            "V^2 / g^2 is the noise of the particles. In two dimensions less noise is better; noise is what sets particles apart "
            "again after resampling, which many dimensions need.",
            "Low noise starts from the prior with its weights: draws of the tilted prior get later weights of heavy tails.",
            "DPS with the likelihood's own factor does well on this mild problem; its published step does not.",
            "Calibration: bias of the posterior mean in posterior standard deviations, ratio of variances, and the p-value of "
            "simulation-based ranks. Approximate methods have no bound: the row says what they are.",
        ),
    )


def _solve(method: Method, runs: int, n: int, seed: int, process: Any = PROCESS) -> Solution:
    y = torch.full((runs, 1), Y, dtype=F64)
    return method.solve(prior(process), Measurement(Matrix((2,), MATRIX), y, NOISE), n, seed, dtype=F64)


def _invariances(seed: int) -> list[Row]:
    """What must be exact whatever the randomness."""
    exact = MixturePosterior(prior(), MATRIX, NOISE)
    evidence = exact.log_evidence(torch.tensor([[Y]])).item()
    gaps = []
    for steps in (100, 400):
        quiet = EnsemblePosterior(steps=steps, noise=0.0, threshold=0.0, start="prior", grid=GRID)
        found = _solve(quiet, 1, 200, seed)
        misfit = -(found.samples[:, 0] @ MATRIX.T - Y).square()[:, 0] / (2.0 * NOISE**2)
        gaps.append((found.log_weights[:, 0] - misfit.log_softmax(0)).abs().max().item())  # type: ignore[index]
    weights = random.normal((50, 6), random.fold(seed, 1), dtype=F64)
    children = torch.stack([systematic(weights, torch.full((6,), u, dtype=F64)) for u in (0.01, 0.5, 0.99)])
    counts = torch.nn.functional.one_hot(children, 50).sum(1)
    rounding = (counts - 50 * weights.softmax(0).T).abs().max().item()
    stiff = EnsemblePosterior(steps=100, drift="euler")
    try:
        _solve(stiff, 1, 8, seed, EDM(0.002, 10.0))
        refused = False
    except InputError as error:
        refused = "stiffness" in str(error)
    return [
        within("log p(y) in closed form", evidence, EVIDENCE, 1e-4),
        less_than(
            "no noise, 400 steps: log weights off the likelihood at the paths' ends, against 100", gaps[1], gaps[0], 0.4
        ),
        at_most("systematic resampling: children off n w by", rounding, 1.0),
        check("Euler's drift with sigma from 10 in 100 steps", refused, "refused as too stiff"),
    ]


def _against_the_posterior(
    seed: int, runs: int, steps: int, most: int, progress: Progress, scale: str
) -> tuple[list[Row], dict[str, tuple[list[float], list[float]]]]:
    exact = MixturePosterior(prior(), MATRIX, NOISE)
    y = torch.tensor([[Y]], dtype=F64)
    mean, masses = exact.moments(y)[0], exact.components(y)[1].exp()[0]

    def errors(solution: Solution, n: int) -> tuple[float, float, Tensor | None]:
        responsible = prior().responsibilities(solution.samples.reshape(-1, 2), 0.0).reshape(n, runs, 3)
        mass = (solution.weights[..., None] * responsible).sum(0)
        off = (solution.mean - mean).norm(dim=1).mean().item()
        return off, 0.5 * (mass - masses).abs().sum(1).mean().item(), solution.log_evidence

    found: dict[tuple[str, int], tuple[float, float, Tensor | None]] = {}
    kinds = {
        "V = 0": EnsemblePosterior(steps=steps, noise=0.0, threshold=0.0, start="prior", grid=GRID),
        "V^2 = 0.02 g^2": EnsemblePosterior(steps=steps, noise=0.02, threshold=0.25, start="prior", grid=GRID),
        "V^2 = 0.1 g^2": EnsemblePosterior(steps=steps, noise=0.1, threshold=0.25, start="prior", grid=GRID),
        "V = g": EnsemblePosterior(steps=steps, noise=1.0, grid=GRID),
        "V = g, discrete": EnsemblePosterior(steps=steps, mode="discrete", grid=GRID),
    }
    for number, (name, method) in enumerate(kinds.items()):
        for n in (*SIZES, most) if name == "V = 0" and most > SIZES[-1] else SIZES:
            progress(f"{name}, {n} particles", number / (len(kinds) + 1))
            found[name, n] = errors(_solve(method, runs, n, random.fold(seed, 2)), n)
    progress("DPS", 0.9)
    dps = {
        "DPS, published, step 0.3": DPS(steps=steps, step=0.3),
        "DPS, likelihood": DPS(steps=steps, weight="likelihood"),
    }
    many = 512
    for name, method in dps.items():
        found[name, many] = errors(_solve(method, runs, many, random.fold(seed, 3)), many)
    low = "V^2 = 0.02 g^2"
    few, more = SIZES
    strict = scale != "smoke"
    published = found["DPS, published, step 0.3", many][0]
    rows = [
        at_most(
            f"{low}, {more} particles: error of the posterior mean",
            found[low, more][0],
            0.1 if strict else 0.25,
            published=0.065,
        ),
        less_than(f"... against {few} particles", found[low, more][0], found[low, few][0], 0.5 if strict else 0.8),
        less_than("... against DPS as published", found[low, more][0], published, 0.4 if strict else 0.6),
        within("... log p(y), mean over runs", _mean(found[low, more][2]), EVIDENCE, 0.15 if strict else 0.4),
        at_most(
            f"V = 0, {most} particles: error of the posterior mean",
            found["V = 0", most][0],
            0.05 if strict else 0.15,
            published=0.025,
        ),
        within("... log p(y), mean over runs", _mean(found["V = 0", most][2]), EVIDENCE, 0.02 if strict else 0.1),
    ]
    for (name, n), (off, masses_off, log_evidence) in found.items():
        said = "" if log_evidence is None else f"log p(y) {log_evidence.mean():.3f} +- {log_evidence.std():.3f} a run"
        rows.append(
            info(f"{name}, {n} samples: error of the mean", off, note=f"mode weights off by {masses_off:.3f}; {said}")
        )
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for (name, n), each in found.items():
        x, values = lines.setdefault(("~" if name.startswith("DPS") else "") + name, ([], []))
        x.append(float(n))
        values.append(each[0])
    return rows, lines


def _mean(values: Tensor | None) -> float:
    return float("nan") if values is None else values.mean().item()


def _calibrations(seed: int, progress: Progress) -> dict[str, dict[str, Calibration]]:
    covariance = torch.tensor([[1.0, 0.6, 0.0], [0.6, 0.8, 0.2], [0.0, 0.2, 0.5]], dtype=F64)
    wide = torch.tensor([[1.0, 0.5, -0.3]], dtype=F64)
    problems: dict[str, tuple[MixtureDenoiser, Tensor]] = {
        "standard normal": (GaussianDenoiser(torch.zeros(3), 1.0, PROCESS), wide),
        "Gaussian": (GaussianDenoiser(torch.tensor([0.3, -0.2, 0.1]), covariance, PROCESS), wide),
        "mixture": (prior(), MATRIX),
    }
    methods: dict[str, tuple[Method, int]] = {
        "ensemble, V = 0": (EnsemblePosterior(steps=100, noise=0.0, threshold=0.0, start="prior", grid=GRID), 400),
        "ensemble, V^2 = 0.02 g^2": (
            EnsemblePosterior(steps=100, noise=0.02, threshold=0.25, start="prior", grid=GRID),
            400,
        ),
        "PiGDM": (PiGDM(steps=100), 100),
        "DDRM": (DDRM(steps=50), 100),
        "DPS, likelihood": (DPS(steps=200, weight="likelihood"), 100),
        "DPS, published": (DPS(steps=200, step=0.3), 100),
        "FlowChef": (FlowChef(steps=50), 100),
        "DiffPIR": (DiffPIR(steps=100), 100),
        "RED-diff": (REDDiff(steps=200), 100),
    }
    tables: dict[str, dict[str, Calibration]] = {}
    for k, (problem, (model, matrix)) in enumerate(problems.items()):
        tables[problem] = {}
        for j, (name, (method, n)) in enumerate(methods.items()):
            progress(f"calibration: {name} on a {problem}", (k + j / len(methods)) / len(problems))
            tables[problem][name] = calibrate(
                method, model, matrix, NOISE, n=n, repeats=32, draws=100, seed=random.fold(seed, 5)
            )
    return tables


EXACT = {
    "standard normal": ("ensemble, V = 0", "ensemble, V^2 = 0.02 g^2", "PiGDM"),
    "Gaussian": ("ensemble, V = 0", "ensemble, V^2 = 0.02 g^2"),
    "mixture": ("ensemble, V = 0", "ensemble, V^2 = 0.02 g^2"),
}
"""Who samples the posterior: the ensemble always, PiGDM the data that it assumes."""


def _calibration_rows(tables: Mapping[str, Mapping[str, Calibration]]) -> list[Row]:
    rows: list[Row] = []
    for problem, table in tables.items():
        for name, each in table.items():
            text = f"{name} on a {problem}"
            note = f"bias {each.bias:.3f} posterior standard deviations, uniform ranks p = {each.uniformity:.2g}"
            if name in EXACT[problem]:
                rows.append(at_most(f"{text}: posterior mean off, in standard errors", each.deviation, 4.5, note=note))
                rows.append(within("... variance, over the posterior's", each.variance_ratio, 1.0, 0.1))
                rows.append(at_least("... p-value of uniform ranks", each.uniformity, 1e-4))
            else:
                rows.append(info(f"{text}: variance, over the posterior's", each.variance_ratio, note=note))
    return rows


def _figure(tables: Mapping[str, Mapping[str, Calibration]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.0, 4.0), layout="constrained")
    for axes, (problem, table) in zip(figure.subplots(1, len(tables), sharey=True), tables.items(), strict=True):
        for number, (name, each) in enumerate(table.items()):
            exact = name in EXACT[problem]
            axes.plot(each.bias, each.variance_ratio, "o" if exact else "x", color="#1f6fb4" if exact else "#b03a2e")
            place = (5, -9 if number % 2 else 4)
            at = (each.bias, each.variance_ratio)
            axes.annotate(name, at, xytext=place, textcoords="offset points", fontsize=7)
        axes.axhspan(0.9, 1.1, color="#1f6fb4", alpha=0.1, linewidth=0)
        axes.set(xlabel="bias of the posterior mean, posterior std", xlim=(-0.02, None))
        axes.set_title(problem, fontsize=10)
        axes.grid(alpha=0.25)
        axes.margins(x=0.25)
    figure.axes[0].set_ylabel("variance over the posterior's")
    return figure
