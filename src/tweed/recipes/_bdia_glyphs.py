"""What the recipe `bdia` measures on the bundled model `glyphs`: round trips, and edits of a class."""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from tweed.core import grids, random
from tweed.core.denoiser import CountingDenoiser, Denoiser
from tweed.core.processes import Process
from tweed.data import Glyphs
from tweed.guidance import ClassifierFree
from tweed.recipes.report import Progress, Row, at_least, at_most, check, greater_than, info, span
from tweed.solvers import BDIA, DDIM, EDICT, Solver, invert, sample
from tweed.training import load

GUIDANCE = 2.0
EDIT_GAMMA, STRENGTH, SHIFT = 0.9, 0.8, 7
SHOWN: dict[str, Solver] = {"BDIA": BDIA(EDIT_GAMMA), "EDICT": EDICT(), "DDIM": DDIM()}


@dataclass(frozen=True)
class Sizes:
    """Images for the round trips and for the edits, the steps of all runs, and noises a decision on a class."""

    trips: int
    edits: int
    steps: int
    noises: int


def run(seed: int, sizes: Sizes, progress: Progress) -> tuple[list[Row], dict[str, Tensor]]:
    """The rows, and lines of images: sources, reconstructions, edits."""
    model = load("glyphs")
    rows = _round_trips(model, seed, sizes, span(progress, 0.0, 0.6))
    progress("edits", 0.6)
    more, lines = _edits(model, seed, sizes)
    return rows + more, lines


def _characters(n: int, seed: int, draw: int) -> tuple[Tensor, Tensor]:
    data = Glyphs(split="test")
    chosen = (random.uniform((n, 1), seed, draw=draw, dtype=torch.float64)[:, 0] * len(data)).long()
    batch = data.batch(chosen)
    return batch["x"], batch["label"]


def _grid(process: Process, steps: int, start: float = 1.0) -> Tensor:
    return grids.uniform(process, steps, start=start, end=process.t_min)


def _trip(model: Denoiser, solver: Solver, x: Tensor, label: Tensor, times: Tensor) -> tuple[float, int]:
    """The largest difference after noise and back, and the evaluations of both ways."""
    counter, cond = CountingDenoiser(model), {"label": label}
    latent = invert(counter, x, solver=solver, times=times, cond=cond)
    back = sample(counter, latent, solver=solver, times=times, cond=cond)
    return (back - x).abs().max().item(), counter.evaluations


def _round_trips(model: Denoiser, seed: int, sizes: Sizes, progress: Progress) -> list[Row]:
    x, label = _characters(sizes.trips, seed, draw=1)
    times, steps = _grid(model.process, sizes.steps), sizes.steps
    double, rows = deepcopy(model).double(), []
    for number, (name, scale) in enumerate((("unguided", 0.0), (f"guidance {GUIDANCE:g}", GUIDANCE))):
        progress(f"round trips, {name}", number / 2)
        guided, exact = (m if scale == 0.0 else ClassifierFree(m, scale) for m in (model, double))
        ddim, _ = _trip(guided, DDIM(), x, label, times)
        ours, cost = _trip(guided, BDIA(), x, label, times)
        narrow, _ = _trip(guided, BDIA(float64=False), x, label, times)
        edict, twice = _trip(guided, EDICT(), x, label, times)
        wide, _ = _trip(exact, BDIA(), x[:1].double(), label[:1], times)
        rows += [
            at_most(f"glyphs, {name}: image to noise to image, float32", ours, 1e-5, baseline=ddim),
            at_most("... float64, network and all", wide, 1e-10, baseline=ddim, note="the first image"),
            at_most("... float32 states throughout", narrow, 1e-4, baseline=ddim, note="BDIA(float64=False)"),
            at_most("... EDICT", edict, 1e-5, baseline=ddim, note=f"{twice} evaluations against {cost}"),
            greater_than("... DDIM inversion against BDIA", ddim, max(ours, 1e-5), 1e3),
            check(
                "... evaluations, both ways", cost == 2 * steps - 1, f"= 2 x {steps} - 1", here=cost, baseline=2 * steps
            ),
        ]
        noise = random.normal(x.shape, seed, draw=2)
        pair = sample(guided, noise, solver=BDIA(), times=times, cond={"label": label}, return_pair=True)
        found = invert(guided, pair, cond={"label": label})
        rows.append(at_most("... noise to image to noise, float32", (found.states - noise).abs().max().item(), 1e-5))
    return rows


def _edits(model: Denoiser, seed: int, sizes: Sizes) -> tuple[list[Row], dict[str, Tensor]]:
    """A class for another: inverted under its own label and sampled under the other, both guided."""
    x, source = _characters(sizes.edits, seed, draw=3)
    target = (source + SHIFT) % 36
    guided, times = ClassifierFree(model, GUIDANCE), _grid(model.process, sizes.steps, STRENGTH)
    lines, rows = {"image": x}, []
    # How much better the target's label explains an image than the source's, before and after.
    margins = {"image": _margin(model, x, source, target, seed, sizes.noises)}
    for name, solver in SHOWN.items():
        latent = invert(guided, x, solver=solver, times=times, cond={"label": source})
        if name != "EDICT":
            lines[f"back, {name}"] = sample(guided, latent, solver=solver, times=times, cond={"label": source})
        edited = sample(guided, latent, solver=solver, times=times, cond={"label": target})
        lines[f"other class, {name}"] = edited
        margins[name] = _margin(model, edited.clamp(-1.0, 1.0), source, target, seed, sizes.noises)
    identity = (lines["back, BDIA"] - x).abs().max().item()
    lost = (lines["back, DDIM"] - x).abs().max().item()
    rows += [
        at_most(
            f"glyphs: the identity edit, gamma {EDIT_GAMMA:g}", identity, 1e-5, baseline=lost, note="baseline: DDIM"
        ),
        at_least("... DDIM inversion", lost, 0.02),
        info("share of images that the model explains better by the other label: before", _share(margins["image"])),
        at_least("... after the edit by BDIA", _share(margins["BDIA"]), 0.6, baseline=_share(margins["DDIM"]))
        if sizes.edits >= 4
        else info("... after the edit by BDIA", _share(margins["BDIA"])),
        info("... after the edit by EDICT", _share(margins["EDICT"]), baseline=_share(margins["DDIM"])),
    ]
    return rows, lines


def _margin(model: Denoiser, x: Tensor, source: Tensor, target: Tensor, seed: int, noises: int) -> Tensor:
    """How much lower the error of the data estimate is under the target's label, by sample."""
    process, total = model.process, torch.zeros(len(x))
    for i in range(noises):
        t = 0.3 + 0.4 * (i + 0.5) / noises
        noisy = process.perturb(x, t, random.normal(x.shape, seed, draw=10 + i))
        both = torch.cat((noisy, noisy))
        with torch.no_grad():
            errors = (
                (model(both, t, label=torch.cat((source, target))).x0 - torch.cat((x, x))).square().flatten(1).mean(1)
            )
        under_source, under_target = errors.chunk(2)
        total += under_source - under_target
    return total


def _share(margin: Tensor) -> float:
    return (margin > 0.0).double().mean().item()
