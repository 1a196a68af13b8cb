"""Residual denoising diffusion (Liu et al., CVPR 2024, arXiv 2308.13712): restoration from the degraded image onwards.

Digits from noisy 2x2 means, the exact conditional law as the ideal network: the distance of samples to that law in few steps,
against conditional diffusion from pure noise. Then what is exact of the method: DDIM as a special case, any order of removal
with the true residual and noise, and the choice of the objective.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tweed.core import random, targets
from tweed.core.denoiser import FunctionDenoiser
from tweed.core.processes import VP, FromBetas, Residual
from tweed.data import Digits
from tweed.nets import build
from tweed.recipes import Progress, Report, Row, at_most, check, info, less_than, within
from tweed.recipes._digit_posterior import EVENT, Laws, laws
from tweed.recipes._figures import curves
from tweed.restoration.residual import noise_first, remove, select_objective, straight_path
from tweed.solvers import DDIM, DDPM, Solver, sample

F64 = torch.float64


def run(seed: int, scale: str, progress: Progress) -> Report:
    inputs, n, counts = {
        "smoke": (4, 24, (2, 5, 10)),
        "default": (16, 96, (2, 5, 10, 20)),
        "gpu": (64, 256, (2, 5, 10, 20, 50)),
    }[scale]
    rows = _exact(seed)
    progress("the exact laws", 0.05)
    compared = laws(seed, inputs, n)
    more, lines, shown = _compared(compared, seed, counts, progress, scale)
    rows += more
    progress("choosing the objective", 0.9)
    rows += _objective(seed, 60 if scale == "smoke" else 400)
    return Report(
        slug="residual-denoising",
        rows=rows,
        seed=seed,
        scale=scale,
        settings={"inputs": inputs, "samples of each": n, "measurement": "2x2 means, noise 0.05"},
        figures={
            "steps": lambda: curves(
                {"energy distance to the exact posterior": lines},
                xlabel="steps",
                ylabel="",
                ticks=[float(c) for c in counts],
            ),
            "images": lambda: _figure(shown),
        },
        notes=(
            "Energy distances are over the mean distance of two samples, the mean over inputs; of equal laws they are 0.",
            "One step gives the posterior mean, whose PSNR is the highest: PSNR alone rewards few steps.",
            "ISTD, LOL and RainDrop need their data; published 30.91, 25.39 and 32.51 dB in 2 to 10 steps.",
        ),
    )


def _exact(seed: int) -> list[Row]:
    process, vp = Residual(), VP()
    x0, y, eps = (random.normal((5, 6), random.fold(seed, k), dtype=F64) for k in (1, 2, 3))
    truth_r, truth_e = (lambda x, a, y: y - x0), (lambda x, b, y: eps)
    worst = 0.0
    for path in (straight_path(process, 7), noise_first(process, 7), [(1.0, 1.0), (0.2, 1.0), (0.2, 0.3), (0.0, 0.0)]):
        (a, b), x = path[0], y + path[0][1] * eps
        for c, d in path[1:]:
            x = remove(truth_r, truth_e, x, y, [(a, b), (c, d)])
            worst = max(worst, float((x - (x0 + c * (y - x0) + d * eps)).abs().max()))
            a, b = c, d
    # A noise network of a variance-preserving process, read as residual and noise with y = 0.
    weight = random.normal((6, 6), random.fold(seed, 4), dtype=F64) / 6.0
    network = FunctionDenoiser(lambda x, t: torch.tanh(x @ weight), vp, targets.Noise(), event=(6,))
    times = torch.linspace(0.9, 0.1, 9, dtype=F64).tolist()
    start = vp.prior((5, 6), seed, t=times[0], dtype=F64)
    ddim = sample(network, start, solver=DDIM(), times=times)
    x, zero = start, torch.zeros_like(start)
    for t, s in pairwise(times):
        here, there = vp.level(t), vp.level(s)
        noise = torch.tanh(x @ weight)
        residual = -(x - here.sigma * noise) / here.alpha
        a, c = 1.0 - here.alpha, 1.0 - there.alpha
        x = remove(lambda *_, r=residual: r, lambda *_, e=noise: e, x, zero, [(a, here.sigma), (c, there.sigma)])
    return [
        at_most("true residual and noise, any order of removal: off the forward formula", worst, 1e-12),
        at_most("schedules 1 - sqrt(abar), sqrt(1 - abar): off DDIM", (x - ddim).abs().max().item(), 1e-12),
        _ancestral(process),
    ]


def _ancestral(process: Residual) -> Row:
    """One ancestral step from t to s with x_0 known: the variance `(b_t^2 - b_s^2) b_s^2 / b_t^2`."""
    t, s = 0.6, 0.5
    drawn = DDPM().table(process, (t, s)).steps[0][0].noise
    b, c = process.level(t).sigma, process.level(s).sigma
    ratio = float(drawn) ** 2 / ((b**2 - c**2) * c**2 / b**2)
    return within("variance of an ancestral step, over (b^2 - c^2) c^2 / b^2", ratio, 1.0, 1e-9)


def _compared(
    compared: Laws, seed: int, counts: tuple[int, ...], progress: Progress, scale: str
) -> tuple[list[Row], dict[str, Any], dict[str, Tensor]]:
    noise_seed = random.fold(seed, 10)
    ways: dict[str, tuple[Any, Solver]] = {
        "residual, noise 0.01": (Residual(noise=0.01), DDIM()),
        "residual, noise 0.1": (Residual(noise=0.1), DDIM()),
        "residual, noise 1": (Residual(noise=1.0), DDIM()),
        "residual, noise 1, ancestral": (Residual(noise=1.0), DDPM()),
        "~DDIM from noise": (FromBetas.linear(), DDIM()),
        "~DDPM from noise": (FromBetas.linear(), DDPM()),
    }
    lines: dict[str, tuple[list[float], list[float]]] = {}
    sharpness: dict[str, float] = {}
    shown = {"degraded": compared.degraded[:8], "truth": compared.world.held[:8]}
    for number, (name, (process, solver)) in enumerate(ways.items()):
        values = []
        for steps in counts:
            progress(f"{name.removeprefix('~')}, {steps} steps", 0.1 + 0.8 * number / len(ways))
            made = compared.samples(process, solver, steps, noise_seed)
            values.append(max(compared.distance(made), 1e-5))
            if steps == 5:
                sharpness[name] = compared.psnr(made)
                if name in ("residual, noise 1", "~DDIM from noise"):
                    shown[f"{name.removeprefix('~')}, 5 steps"] = made[0, :8]
        lines[name] = ([float(c) for c in counts], values)
    mean = compared.denoiser(Residual()).moments(compared.y)[0].reshape(-1, *EVENT)
    at = {c: k for k, c in enumerate(counts)}
    levels = [
        compared.psnr(compared.degraded[None]),
        sharpness["residual, noise 1"],
        compared.psnr(mean[None]),
    ]
    strict = scale != "smoke"
    rows = [
        less_than(
            "energy distance in 5 steps, noise 1, against DDIM from noise",
            lines["residual, noise 1"][1][at[5]],
            lines["~DDIM from noise"][1][at[5]],
            0.55 if strict else 0.8,
            published="0.050 against 0.126",
        ),
        less_than(
            "... noise 0.01, against DDIM in 10 steps",
            lines["residual, noise 0.01"][1][at[5]],
            lines["~DDIM from noise"][1][at[10]],
            1.0 if strict else 1.5,
            published="0.027 against 0.038",
        ),
        less_than(
            "ancestral in 5 steps, against DDPM from noise",
            lines["residual, noise 1, ancestral"][1][at[5]],
            lines["~DDPM from noise"][1][at[5]],
            0.8,
            published="0.062 against 0.145",
        ),
        check(
            "PSNR rises from the input to 5 steps to the posterior mean",
            levels[0] + 2.0 < levels[1] < levels[2],
            "by at least 2 dB, in order",
            here=", ".join(f"{value:.1f}" for value in levels),
        ),
    ]
    rows += [
        info(
            f"{name.removeprefix('~')}: energy distance in {', '.join(map(str, counts))} steps",
            ", ".join(f"{v:.3g}" for v in values),
        )
        for name, (_, values) in lines.items()
    ]
    return rows, lines, shown


def _objective(seed: int, steps: int) -> list[Row]:
    """A task whose answer is known: a residual that every sample shares is the easier one."""
    digits = Digits("train", flat=True).x
    process = Residual(noise=0.25)

    def batch(step: int) -> Tensor:
        which = (random.uniform((64, 1), random.fold(seed, 20), draw=step)[:, 0] * len(digits)).long()
        return digits[which.clamp_max(len(digits) - 1)]

    def shared(step: int) -> tuple[Tensor, Tensor]:
        x0 = batch(step)
        return x0, x0 - 0.5

    network = build({"name": "mlp", "dim": 64, "width": 96, "depth": 2, "endpoint_channels": 64}, random.fold(seed, 21))
    chosen = select_objective(network, process, shared, steps=steps, rate=1e-3, seed=random.fold(seed, 22))
    return [
        check(
            "a residual that is the same for all: the objective that is chosen",
            chosen.objective == "residual",
            "residual",
            here=chosen.weights[-1],
            note=f"the learnt weight, after {len(chosen.weights) - 1} steps",
        )
    ]


def _figure(shown: dict[str, Tensor]) -> Any:
    from matplotlib.figure import Figure

    columns = min(len(next(iter(shown.values()))), 8)
    figure = Figure(figsize=(8.0, 0.85 * len(shown)), layout="constrained")
    for row, (name, images) in zip(figure.subplots(len(shown), columns), shown.items(), strict=True):
        for axis, image in zip(row, images, strict=False):
            axis.imshow(image[0], cmap="gray", vmin=-1, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    return figure
