"""DiffusionMBIR (Chung et al., CVPR 2023, arXiv 2211.10655): volumes from few projections and a prior of slices.

Two worlds whose slices have a Gaussian prior, fitted to other volumes, so that its score is exact: three blobs, and many
upright fibres, which eight views do not tell apart. Sparse-view and limited-angle tomography and compressed-sensing magnetic
resonance, against the same sampler slice by slice and against total variation without a prior. At the scale `gpu` also
volumes of heads with a trained prior.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tweed.core import random
from tweed.recipes import Progress, Report, Row, at_least, at_most, info, less_than, span
from tweed.recipes import _mbir_exact as exact
from tweed.recipes import _mbir_heads as heads
from tweed.recipes import _mbir_worlds as worlds
from tweed.recipes._figures import curves
from tweed.recipes._mbir_worlds import ALONE, COUPLED, SIZE, SLICES, TV, TV_Z, Compared

LIMITED, MRI = "8 views within a third of a half turn", "a third of k-space"


@dataclass(frozen=True)
class Settings:
    """Noise levels, slices that the prior is fitted to, and volumes of each problem: (world, views) or (world, name)."""

    steps: int
    fitted: int
    volumes: Mapping[tuple[str, int | str], int]


SCALES = {
    "smoke": Settings(60, 2400, {("fibres", 4): 1}),
    "default": Settings(
        150,
        6000,
        {
            **{("blobs", views): n for views, n in ((2, 4), (4, 4), (8, 2))},
            **{("fibres", views): n for views, n in ((2, 2), (4, 2), (8, 4), (16, 2))},
            ("fibres", LIMITED): 2,
            ("fibres", MRI): 2,
        },
    ),
    "gpu": Settings(
        1000,
        24000,
        {
            **{(world, views): 10 for world in ("blobs", "fibres") for views in (2, 4, 8, 16)},
            ("fibres", LIMITED): 10,
            ("fibres", MRI): 10,
        },
    ),
}


def run(seed: int, scale: str, progress: Progress) -> Report:
    settings = SCALES[scale]
    progress("what is exact", 0.0)
    priors = {world: worlds.prior(world, seed, settings.fitted) for world in {world for world, _ in settings.volumes}}
    rows = exact.rows(priors["fibres"], seed)
    found = _compared(settings, priors, seed, span(progress, 0.05, 1.0 if scale != "gpu" else 0.2))
    rows += _short(found) if scale == "smoke" else _relations(found)
    shown = next(each for (world, _), each in found.items() if world == "fibres").shown
    figures: dict[str, Any] = {"volume": partial(volumes, shown)}
    if scale != "smoke":
        figures = {"views": partial(_views, found), **figures}
    if scale == "gpu":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        more, pictures = heads.rows(heads.Sizes(), seed, span(progress, 0.2, 1.0), device)
        rows += more
        figures["heads"] = partial(volumes, pictures)
    return Report(
        slug="diffusion-mbir",
        rows=rows,
        seed=seed,
        scale=scale,
        settings={
            "shape": [SLICES, SIZE, SIZE],
            "steps": settings.steps,
            "strength": worlds.METHOD.strength,
            "penalty": worlds.METHOD.penalty,
            "slices of the prior": settings.fitted,
            "volumes": {f"{world}, {name}": n for (world, name), n in settings.volumes.items()},
        },
        figures=figures,
        notes=(
            "PSNR of whole volumes, by the truth's largest value. Roughness: mean |difference across slices|, over the truth's.",
            "What few views leave open each slice draws on its own, which the coupling across slices forbids. With enough "
            "views nothing is open, and total variation only costs.",
            "Drawing from the prior against its mean is worth 3 dB where slices agree: no coupling gains much more.",
            "Strength and penalty are in units of |A|^2. The published network and medical data are not at hand.",
        ),
    )


def _compared(settings: Settings, priors: Mapping[str, Any], seed: int, progress: Progress) -> dict[Any, Compared]:
    total, done = sum(settings.volumes.values()), 0
    found = {}
    for (world, problem), n in settings.volumes.items():
        operator = (
            worlds.tomography(problem)
            if isinstance(problem, int)
            else worlds.tomography(8, math.pi / 3.0)
            if problem == LIMITED
            else worlds.resonance(seed)
        )
        truths = worlds.MAKE[world](SLICES, SIZE, random.fold(seed, 2), n=n)
        part = span(progress, done / total, (done + n) / total)
        found[world, problem] = worlds.compare(
            priors[world], operator, truths, settings.steps, seed, part, _name(world, problem)
        )
        done += n
    return found


def _name(world: str, problem: int | str) -> str:
    return f"{world}, {problem} views" if isinstance(problem, int) else f"{world}, {problem}"


def _short(found: Mapping[Any, Compared]) -> list[Row]:
    (key, each), *_ = found.items()
    return [
        at_least(f"{_name(*key)}: PSNR over slice by slice, dB", each.gain, 0.25),
        less_than("... roughness across slices", _rough(each, COUPLED), _rough(each, ALONE), 0.5),
    ]


def _rough(each: Compared, way: str) -> float:
    return each.scores[way].roughness


def _relations(found: Mapping[Any, Compared]) -> list[Row]:
    rows: list[Row] = []
    for (world, problem), each in found.items():
        name = _name(world, problem)
        score = each.scores[COUPLED]
        over = {way: score.psnr - each.scores[way].psnr for way in (TV_Z, TV)}
        if world == "blobs" and problem in (2, 4):
            rows += [
                at_least(f"{name}: PSNR over slice by slice, dB", each.gain, 1.5),
                at_least("... over total variation across slices, dB", over[TV_Z], 3.0),
                at_most("... roughness across slices", score.roughness, 2.0),
                at_least("... slice by slice", _rough(each, ALONE), 2.5),
            ]
        elif (world, problem) == ("fibres", 8):
            rows += [
                at_least(f"{name}: PSNR over slice by slice, dB", each.gain, 1.0),
                at_least("... over total variation, the better of both, dB", min(over.values()), 0.0),
                less_than("... roughness across slices", score.roughness, _rough(each, ALONE), 0.5),
            ]
        elif problem in (LIMITED, MRI):
            rows += [
                at_least(f"{name}: PSNR over slice by slice, dB", each.gain, 0.5),
                less_than("... roughness across slices", score.roughness, _rough(each, ALONE), 0.5),
            ]
    gain = {key: each.gain for key, each in found.items()}
    few = min(gain["blobs", 2], gain["blobs", 4])
    rows += [
        at_least("blobs: gain with 2 and with 4 views, above that with 8, dB", few - gain["blobs", 8], 1.0),
        at_least("fibres: gain with 8 views, above that with 16, dB", gain["fibres", 8] - gain["fibres", 16], 0.5),
    ]
    for key, each in found.items():
        for way, score in each.scores.items():
            rows.append(info(f"{_name(*key)}, {way}: PSNR, dB", score.psnr, note=f"roughness {score.roughness:.2f}"))
    return rows


def _views(found: Mapping[Any, Compared]) -> Any:
    panels: dict[str, Any] = {}
    gains: dict[str, Any] = {}
    for world in worlds.MAKE:
        each = {problem: one for (other, problem), one in found.items() if other == world and isinstance(problem, int)}
        views = [float(n) for n in each]
        panels[f"{world}: PSNR, dB"] = {
            ("" if way in (COUPLED, ALONE) else "~") + way: (views, [one.scores[way].psnr for one in each.values()])
            for way in (COUPLED, ALONE, TV_Z, TV)
        }
        gains[world] = (views, [one.gain for one in each.values()])
    panels["gain of the coupling, dB"] = gains
    return curves(panels, xlabel="views", ylabel="dB", log="x", ticks=(2.0, 4.0, 8.0, 16.0))


def volumes(shown: Mapping[str, Tensor]) -> Any:
    """A slice, a cut across slices, and along a line of it, of the truth and of each way."""
    from matplotlib.figure import Figure

    arrays = {name: volume.double().numpy() for name, volume in shown.items()}
    truth = arrays["truth"]
    middle, side = len(truth) // 2, truth.shape[-1] // 2
    # The line across slices on which the truth changes most.
    row, column = divmod(int(truth[:, 0].std(0).argmax()), truth.shape[-1])
    figure = Figure(figsize=(2.1 * len(shown) + 3.6, 4.5), layout="constrained")
    axes = figure.subplot_mosaic(
        [[*(f"a{k}" for k in range(len(shown))), "line"], [*(f"b{k}" for k in range(len(shown))), "line"]],
        width_ratios=[1.0] * len(shown) + [1.7],
    )
    top = float(truth.max())
    for k, (name, volume) in enumerate(arrays.items()):
        axes[f"a{k}"].imshow(volume[middle, 0], cmap="gray", vmin=0.0, vmax=top)
        axes[f"b{k}"].imshow(volume[:, 0, :, side], cmap="gray", vmin=0.0, vmax=top, aspect="auto")
        axes[f"a{k}"].set_title(name, fontsize=9)
        for axis in (axes[f"a{k}"], axes[f"b{k}"]):
            axis.set_xticks([])
            axis.set_yticks([])
    axes["a0"].set_ylabel("a slice", fontsize=9)
    axes["b0"].set_ylabel("across slices", fontsize=9)
    for name, style in (("truth", "k-"), (ALONE, "C1:"), (COUPLED, "C0-"), (TV, "C2--")):
        axes["line"].plot(arrays[name][:, 0, row, column], style, linewidth=1.4, label=name)
    axes["line"].set(xlabel="slice")
    axes["line"].set_title("one pixel across slices", fontsize=9)
    axes["line"].legend(fontsize=7.5)
    axes["line"].grid(alpha=0.25)
    return figure
