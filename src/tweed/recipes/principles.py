"""Recipe of "The Principles of Diffusion Models" (2025): one field in three views, and the maps that jump along it.

The first part measures, on models in closed form, what must be true of any library of this grammar: every conversion
between targets, the agreement of the variational, score and flow views, the table of weights, the identities of flow
maps. The second trains small networks on eight Gaussians in the plane: flow matching and its ODE against networks that
jump in one or two steps (a mean flow, and consistency models distilled from the exact ODE and trained alone).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from tweed.core import processes, random, targets
from tweed.core.denoiser import NetworkDenoiser
from tweed.core.flow_map import ConsistencyModel, FlowMap, MeanFlow, TwoTimes
from tweed.data.mixtures import ring_mixture
from tweed.metrics import sliced_wasserstein
from tweed.nets import build
from tweed.recipes import _principles_exact as exact
from tweed.recipes.report import Progress, Report, Row, at_most, info, less_than, span
from tweed.solvers import Euler, Heun, sample
from tweed.solvers.flow_map import sample_flow_map
from tweed.training import fit, flow_matching
from tweed.training.flow_maps import ConsistencyLoss, MeanFlowLoss

_DATA, _TRUTH, _OTHER, _LATENT = 1, 2, 3, 4  # streams of the seed


@dataclass(frozen=True)
class Settings:
    """Sizes at one scale; `steps` of flow matching, and the same of each flow map."""

    steps: int
    width: int
    samples: int
    depth: int = 3
    batch_size: int = 256
    lr: float = 2e-3
    ema: float = 0.99
    data: int = 50_000
    projections: int = 64
    bound_samples: int = 400_000
    middle: float = 1.0  # the noise level of a second consistency step
    intervals: tuple[int, int] = (10, 80)
    log_level: tuple[float, float] = (-0.4, 1.6)  # mean and standard deviation of the pairs' log noise level


SCALES = {
    "smoke": Settings(steps=300, width=96, samples=16384),
    "default": Settings(steps=3000, width=128, samples=32768),
    "gpu": Settings(steps=20000, width=256, samples=65536, batch_size=1024),
}


def run(seed: int, scale: str, progress: Progress) -> Report:
    """The report; raises nothing of its own."""
    settings = SCALES[scale]
    progress("conversions", 0.0)
    errors = exact.conversion_errors(seed)
    rows = exact.conversions(errors)
    share = 0.3 if scale == "smoke" else 0.05
    parts: list[tuple[str, Callable[[], list[Row]]]] = [
        ("the flow view", lambda: exact.views(seed)),
        ("the variational and the score view", lambda: exact.posterior(seed)),
        ("weights", lambda: exact.weights(seed)),
        ("the variational bound", lambda: exact.bound(seed, settings.bound_samples)),
        ("identities of flow maps", lambda: exact.flow_maps(seed)),
    ]
    for i, (text, part) in enumerate(parts):
        progress(text, share * (i + 1) / (len(parts) + 1))
        rows += part()
    more, samples = trained(seed, settings, span(progress, share, 1.0))
    return Report(
        slug="principles",
        rows=rows + more,
        seed=seed,
        scale=scale,
        settings=vars(settings),
        figures={"samples": lambda: _samples_figure(samples), "conversions": lambda: _conversions_figure(errors)},
        notes=(
            "The monograph claims no figures; what is checked is what it says must be equal, and that one step of a "
            "flow map does what one step of an ODE solver cannot.",
            "Distances are sliced 2-Wasserstein between equal numbers of samples, drawn in symmetric sets of eight so that "
            "every Gaussian has its share; `samples of the truth` is what two exact draws of that size are apart. Margins are those of twelve seeds at both scales.",
            "In the plane nothing is said of which flow map scales best to images.",
        ),
    )


def trained(seed: int, settings: Settings, progress: Progress) -> tuple[list[Row], dict[str, tuple[Tensor, float]]]:
    """Rows of the trained models, and samples with their distance to the truth for the figure."""
    ring = ring_mixture(8)
    data = ring.sample(settings.data, random.fold(seed, _DATA)).float()
    n, device = settings.samples, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    truth, other = (_turned(ring.sample(n // 8, random.fold(seed, stream)).float()) for stream in (_TRUTH, _OTHER))
    latent = _turned(random.normal((n // 8, 2), random.fold(seed, _LATENT))).to(device)
    flow, edm = processes.RectifiedFlow(), processes.EDM()
    teacher = exact.mixture(edm).to(device)
    noise = latent * edm.level(1.0).sigma
    net = {"name": "mlp", "dim": 2, "width": settings.width, "depth": settings.depth, "norm": False, "time_dim": 32}

    def train(model: Any, objective: Any, number: int, text: str) -> Any:
        part = span(progress, number / 4, (number + 1) / 4)
        calls = iter(range(1, 11))
        # Nothing is drawn: a look at the model is the loop's way to say how far it is.
        told = cast(Callable[[Any], None], lambda _: part(text, min(next(calls, 10) / 10, 1.0)))
        part(text, 0.0)
        result = fit(
            model,
            data,
            steps=settings.steps,
            objective=objective,
            batch_size=settings.batch_size,
            lr=settings.lr,
            schedule="cosine",
            ema=settings.ema,
            seed=seed,
            device=device,
            precision="no",
            sample_every=math.ceil(settings.steps / 10),
            sampler=told,
            progress=False,
        )
        return result.denoiser

    smooth = {**net, "time_scale": 10.0}
    told = {**net, "time_scale": 2.0}  # of log(sigma) / 4, which spans -1.6 to 1.1
    first, last = settings.intervals
    mean, std = settings.log_level
    pairs = {"steps": settings.steps, "first": first, "last": last, "mean": mean, "std": std}
    matched = train(
        NetworkDenoiser(build(smooth, seed), flow, targets.Velocity(), event=(2,)),
        flow_matching(),
        0,
        "flow matching",
    )
    mean_flow = train(
        MeanFlow(TwoTimes(build({**smooth, "vector_dim": TwoTimes.width()}, seed)), flow, event=(2,)),
        MeanFlowLoss(equal=0.5),
        1,
        "mean flow",
    )
    distilled, alone = (
        train(
            ConsistencyModel(build(told, seed), edm, data_std=1.0, event=(2,)),
            ConsistencyLoss(**pairs, teacher=guide),
            number,
            text,
        )
        for number, guide, text in ((2, teacher, "consistency distillation"), (3, None, "consistency training"))
    )

    def jump(model: FlowMap, start: Tensor, *times: float, renoise: float = 0.0) -> Tensor:
        return sample_flow_map(model, start, times=times, renoise=renoise, seed=seed)

    middle = settings.middle / edm.sigma_max
    sets = {
        "truth": other,
        "exact ODE, 50 evaluations": sample(teacher, noise, solver=Heun(), steps=25),
        "flow matching, 50 steps": sample(matched, latent, solver=Euler(), steps=50),
        "flow matching, 1 step": sample(matched, latent, solver=Euler(), steps=1),
        "mean flow, 1 step": jump(mean_flow, latent, 1.0, 0.0),
        "mean flow, 2 steps": jump(mean_flow, latent, 1.0, 0.5, 0.0),
        "distilled, 1 step": jump(distilled, noise, 1.0, 0.0),
        "distilled, 2 steps": jump(distilled, noise, 1.0, middle, 0.0, renoise=1.0),
        "consistency, 1 step": jump(alone, noise, 1.0, 0.0),
    }
    away = {name: sliced_wasserstein(x.cpu(), truth, settings.projections, seed=seed) for name, x in sets.items()}
    ends = sets["exact ODE, 50 evaluations"]
    straight = sample(teacher, noise, solver=Euler(), times=(1.0, 0.0))
    rms = {
        name: (x - ends).square().sum(1).mean().sqrt().item()
        for name, x in (("one", straight), ("cd", sets["distilled, 1 step"]))
    }
    followed = sample(mean_flow.denoiser(), latent, solver=Euler(), steps=50)
    one, best = away["flow matching, 1 step"], away["flow matching, 50 steps"]
    rows = [
        info("sliced W2: samples of the truth", away["truth"]),
        info("sliced W2: the exact ODE, 50 evaluations", away["exact ODE, 50 evaluations"]),
        less_than("sliced W2: mean flow, 1 step; flow matching, 1 step of Euler", away["mean flow, 1 step"], one, 0.4),
        info("sliced W2: mean flow, 2 steps", away["mean flow, 2 steps"]),
        info("sliced W2: the mean flow's own field, 50 steps of Euler", _distance(followed, truth, settings, seed)),
        less_than(
            "sliced W2: consistency distillation, 1 step; flow matching, 1 step", away["distilled, 1 step"], one, 0.4
        ),
        less_than(
            "sliced W2: consistency training, 1 step; flow matching, 1 step", away["consistency, 1 step"], one, 0.4
        ),
        at_most(
            "sliced W2: distillation, 2 steps",
            away["distilled, 2 steps"],
            away["distilled, 1 step"],
            note="bound: 1 step",
        ),
        less_than("rms distance to the exact ODE's end: distilled, 1 step; Euler, 1 step", rms["cd"], rms["one"], 0.5),
        less_than("sliced W2: flow matching, 50 steps; mean flow, 1 step", best, away["mean flow, 1 step"]),
        less_than(
            "sliced W2: the exact ODE, 50 evaluations; distilled, 1 step",
            away["exact ODE, 50 evaluations"],
            away["distilled, 1 step"],
        ),
    ]
    return rows, {name: (x[:3000].cpu(), away[name]) for name, x in sets.items()}


def _turned(x: Tensor) -> Tensor:
    """Each point in its eight rotations, which leave the truth and the noise as they are.

    So both give every Gaussian the same share, and the error of sampling does not hide that of the models.
    """
    angle = torch.arange(8) * (math.pi / 4.0)
    turns = torch.stack((angle.cos(), angle.sin(), -angle.sin(), angle.cos()), dim=-1).reshape(8, 2, 2)
    return torch.einsum("kij,nj->nki", turns.to(x), x).flatten(0, 1)


def _distance(x: Tensor, truth: Tensor, settings: Settings, seed: int) -> float:
    return sliced_wasserstein(x.cpu(), truth, settings.projections, seed=seed)


def _samples_figure(samples: dict[str, tuple[Tensor, float]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 9.6), layout="constrained")
    axes = figure.subplots(3, 3, sharex=True, sharey=True)
    for ax, (name, (x, distance)) in zip(axes.flat, samples.items(), strict=True):
        ax.scatter(
            x[:, 0], x[:, 1], s=2.0, alpha=0.35, linewidths=0, color="tab:gray" if name == "truth" else "tab:blue"
        )
        ax.set_title(f"{name}\nsliced W2 {distance:.3f}", fontsize=10)
        ax.set(xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), aspect="equal", xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    return figure


def _conversions_figure(errors: dict[str, Tensor]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.25))
    stacked = torch.stack(list(errors.values())).clamp_min(1e-17).log10()
    names = list(exact.TARGETS)
    for ax, values, lines, label, title in (
        (left, stacked.amax(0), names, "given", f"largest over {len(errors)} processes"),
        (right, stacked.amax(1), list(errors), "", "largest over the given targets"),
    ):
        image = ax.imshow(values, vmin=-17.0, vmax=-9.0, cmap="viridis", aspect="auto")
        ax.set_xticks(range(len(names)), names, rotation=30, ha="right")
        ax.set_yticks(range(len(lines)), lines)
        ax.set(xlabel="wanted", ylabel=label, title=title)
        for i, line in enumerate(values.tolist()):
            for j, value in enumerate(line):
                text = "0" if value <= -17.0 else f"{value:.1f}"
                ax.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if value < -12.0 else "black")
    figure.colorbar(image, ax=[left, right], label="log10 of the relative error, there and back")
    return figure
