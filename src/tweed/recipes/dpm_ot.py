"""DPM-OT (Li et al., ICCV 2023, arXiv 2307.11308): a transport map to slightly noisy data, then a few steps.

Twenty-five Gaussians on a grid with their exact score: how many samples end between the modes after 5 and 10 evaluations,
from pure noise and from the transported start. How good the map is, against exact discrete transport. And what it costs:
how near the samples are to the training set, by the noise that the start has.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tweed.core import grids, random
from tweed.core.denoiser import CountingDenoiser
from tweed.core.exact import MixtureDenoiser
from tweed.core.processes import VE
from tweed.core.starts import Start
from tweed.data import grid_mixture
from tweed.metrics import mode_mixture_rate
from tweed.recipes import Progress, Report, Row, at_most, check, info, less_than
from tweed.recipes.report import span
from tweed.solvers import DDIM, AnnealedLangevin, DPMSolver, PredictorCorrector, Solver, sample
from tweed.starts import OptimalTransport, fit_transport, transport

STD, SPACING = 0.05, 1.0
PROCESS = VE(0.01, 10.0)
RADIUS = 4.0 * STD
SIGMA = 0.15
SOLVERS: Mapping[str, Solver] = {"DDIM": DDIM(), "DPM-Solver++ 2M": DPMSolver(2), "DDPM (ancestral SDE)": DDIM(eta=1.0)}
F64 = torch.float64


def run(seed: int, scale: str, progress: Progress) -> Report:
    points, draws, steps = {"smoke": (100, 800, 300), "default": (200, 3000, 900), "gpu": (2000, 50000, 2000)}[scale]
    modes = grid_mixture(5, SPACING, STD).means
    model = MixtureDenoiser(modes, STD**2, None, PROCESS)
    # Each mode has its share of the data.
    data = modes.repeat(points // 25, 1) + STD * random.normal((points, 2), random.fold(seed, 1), dtype=F64)
    progress("the transport map", 0.0)
    map_ = transport(PROCESS, data, _time(SIGMA), random.fold(seed, 2), steps=steps, progress=span(progress, 0.0, 0.4))
    progress("samples", 0.4)
    rows, shown = _mixing(model, map_, modes, draws, seed)
    progress("the map itself", 0.6)
    rows += _map(map_, seed, scale)
    progress("memory", 0.8)
    more, distances = _memory(model, data, draws, seed, steps)
    return Report(
        slug="dpm-ot",
        rows=rows + more,
        seed=seed,
        scale=scale,
        settings={
            "points": points,
            "samples": draws,
            "Adam steps": steps,
            "radius": RADIUS,
            "sigma of the start": SIGMA,
        },
        figures={"samples": lambda: _figure(shown, map_, modes), "memory": lambda: _figure_memory(distances)},
        notes=(
            "Between the modes: further than four standard deviations from each of them.",
            "Evaluations of a run from the transported start are all below its noise level; the map itself asks nothing of "
            "the model, but is fitted once to training data that has to be at hand.",
            "The published FID and mode-mixture figures need NCSNv2 networks.",
        ),
    )


def _time(sigma: float) -> float:
    return PROCESS.time(-torch.tensor(sigma, dtype=F64).log()).item()


def _mixing(
    model: MixtureDenoiser, map_: OptimalTransport, modes: Tensor, draws: int, seed: int
) -> tuple[list[Row], dict[str, Tensor]]:
    rows, shown = [], {}
    for budget in (5, 10):
        found: dict[tuple[str, str], float] = {}
        for name, solver in SOLVERS.items():
            noise = random.fold(seed, 3)
            plain = sample(
                model, draws, solver=solver, times=grids.log_snr(PROCESS, budget, end=0.0), seed=noise, dtype=F64
            )
            found[name, "prior"] = mode_mixture_rate(plain, modes, RADIUS)
            for kind in ("stored", "fresh"):
                counter = CountingDenoiser(model)
                start = map_.start(draws, noise, noise=kind, dtype=F64)  # type: ignore[arg-type]
                times = grids.log_snr(PROCESS, budget, start=map_.t, end=0.0)
                made = sample(counter, start, solver=solver, times=times, seed=noise)
                found[name, kind] = mode_mixture_rate(made, modes, RADIUS)
                if budget == 5 and name == "DDIM" and kind == "stored":
                    shown = {"from noise": plain, "transported starts": start.x, "after 5 steps from them": made}
                    reached = len(torch.cdist(made, modes).argmin(1).unique())
                    rows += [
                        check("modes reached from the transported starts, of 25", reached == 25, "all", here=reached),
                        at_most("evaluations of a run of 5 steps", counter.evaluations, 5),
                    ]
            label = f"{name}, {budget} evaluations: share between the modes"
            stored, prior = found[name, "stored"], found[name, "prior"]
            if budget == 5:
                rows.append(less_than(label, stored, prior, 0.2))
            elif name == "DDIM":
                rows.append(less_than(label, stored, prior, 0.35))
            else:
                rows.append(info(label, stored, baseline=prior))
            rows.append(info("... with noise of its own for each sample", found[name, "fresh"], baseline=prior))
    langevin = _langevin(model, map_, draws, seed)
    rate = mode_mixture_rate(langevin, modes, RADIUS)
    rows.append(info("the published tail, annealed Langevin, 11 evaluations: share between", rate))
    return rows, shown


def _langevin(model: MixtureDenoiser, map_: OptimalTransport, draws: int, seed: int) -> Tensor:
    """Two levels of five Langevin steps each, as published for CIFAR-10, and a last denoising."""
    start, low = map_.start(draws, random.fold(seed, 4), dtype=F64), _time(0.05)
    langevin = PredictorCorrector(predictor=None, corrector=AnnealedLangevin(steps=5))
    moved = sample(model, start, solver=langevin, times=[map_.t, low, 0.0], seed=random.fold(seed, 5))
    return sample(model, Start(moved, low), solver=DDIM(), times=[low, 0.0])


def _map(map_: OptimalTransport, seed: int, scale: str) -> list[Row]:
    quality, points = map_.map.quality, map_.map.targets
    n, each = len(points), 8
    rows = [
        check("cells without mass", quality.empty == 0, "none", here=quality.empty),
        at_most(
            "relative error of the cells' masses, RMS, on 50 draws a point",
            quality.error,
            0.25,
            note="0.14 is the draws'",
        ),
    ]
    x = map_.map.draw(each * n, random.fold(seed, 6))
    ours = (x - map_.map.map(x)).square().sum(1).mean().item()
    nearest = (x - points[torch.cdist(x, points).argmin(1)]).square().sum(1).mean().item()
    order = torch.randperm(len(x), generator=random.generator(seed, 7))
    anyhow = (x - points.repeat_interleave(each, 0)[order]).square().sum(1).mean().item()
    exact = _exact_cost(x, points.repeat_interleave(each, 0))
    rows += [
        at_most("transport cost over that of exact discrete transport", ours / exact, 1.08),
        less_than("... and over that of random assignment", ours, anyhow, 0.9),
        info("... of the nearest points, which are no transport", nearest / exact),
    ]
    coarse = fit_transport(points, steps=20, tolerance=100.0, seed=random.fold(seed, 8)) if scale != "smoke" else None
    if coarse is not None:
        rows.append(less_than("error of the masses, against 20 steps", quality.error, coarse.quality.error, 0.5))
    return rows


def _exact_cost(x: Tensor, y: Tensor) -> float:
    """The mean squared distance of the best assignment."""
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(x, y).square().numpy()
    return float(cost[linear_sum_assignment(cost)].mean())


def _memory(
    model: MixtureDenoiser, data: Tensor, draws: int, seed: int, steps: int
) -> tuple[list[Row], dict[str, list[float]]]:
    """How near the samples are to the training set, by the noise of the start."""
    levels, found = [0.02, 0.05, 0.15, 0.5], {"stored noise": [], "fresh noise": []}
    for sigma in levels:
        map_ = transport(PROCESS, data, _time(sigma), random.fold(seed, 9), steps=steps // 2, tolerance=2.0)
        for kind, distances in found.items():
            start = map_.start(min(draws, 1000), random.fold(seed, 10), noise=kind.split()[0], dtype=F64)  # type: ignore[arg-type]
            made = sample(model, start, solver=DDIM(), times=grids.log_snr(PROCESS, 10, start=map_.t, end=0.0))
            distances.append(torch.cdist(made, data).amin(1).mean().item())
    truth = torch.cdist(model.sample(min(draws, 1000), random.fold(seed, 11)), data).amin(1).mean().item()
    near = found["fresh noise"]
    rows = [
        check(
            "distance to the nearest training sample, as the start's noise grows",
            all(b > a for a, b in pairwise(near[:3])),
            "grows to 0.15",
            here=near[0],
            baseline=truth,
            note="baseline: fresh draws of the data's density",
        ),
        info("... at 0.15", near[2], baseline=truth),
        info("... at 0.5, a start without memory", near[3], baseline=truth),
    ]
    return rows, {"sigma": levels, **found, "fresh draws of the density": [truth] * len(levels)}


def _figure(shown: Mapping[str, Tensor], map_: OptimalTransport, modes: Tensor) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14.0, 3.7), layout="constrained")
    panels = figure.subplots(1, 4)
    side = torch.linspace(-3.0, 3.0, 240, dtype=F64)
    x = torch.cartesian_prod(side, side)
    cells = map_.map.cell(x).reshape(240, 240).T
    mixed = torch.randperm(len(map_.map.targets), generator=random.generator(3))
    panels[0].imshow(
        mixed[cells].numpy(), origin="lower", extent=(-3, 3, -3, 3), cmap="prism", interpolation="nearest", alpha=0.7
    )
    panels[0].set_title("cells of the map, in noise", fontsize=10)
    for axes, (name, points) in zip(panels[1:], shown.items(), strict=True):
        far = torch.cdist(points.double(), modes).amin(1) > RADIUS
        axes.plot(*points[~far][:2500].T.numpy(), ".", markersize=1.6, color="#1f6fb4", label="at a mode")
        axes.plot(*points[far][:2500].T.numpy(), ".", markersize=2.2, color="#d1442a", label="between")
        axes.set_title(f"{name}: {far.double().mean().item():.1%} between", fontsize=10)
        axes.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
    panels[1].legend(fontsize=8, markerscale=5, loc="lower left")
    for axes in panels:
        axes.set_xticks([-2, 0, 2])
        axes.set_yticks([-2, 0, 2])
    return figure


def _figure_memory(found: Mapping[str, list[float]]) -> Any:
    from tweed.recipes._figures import curves

    lines = {
        ("~" if "draws" in name else "") + name: (found["sigma"], line)
        for name, line in found.items()
        if name != "sigma"
    }
    return curves(
        {"nearness to the training set": lines},
        xlabel="noise of the start, sigma",
        ylabel="mean distance to the nearest",
        width=5.2,
    )
