"""Resfusion (Shi et al., NeurIPS 2024, arXiv 2311.14900): diffusion that starts from the noised degraded image, in five steps.

Digits from noisy 2x2 means with the exact conditional law as the ideal network, against conditional diffusion from noise at equal
steps; the published loop written out against tweed's ancestral sampler; and small networks trained on darkened digits, against
conditional diffusion of two targets.
"""

import math
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from tweed.core import random, targets
from tweed.core.denoiser import Denoiser, FunctionDenoiser, NetworkDenoiser
from tweed.core.processes import FromBetas, Process, Resfusion
from tweed.data import Digits, Tensors
from tweed.nets import build
from tweed.recipes import Progress, Report, Row, at_least, at_most, check, info, less_than
from tweed.recipes._digit_posterior import EVENT, Laws, laws, psnr
from tweed.recipes._figures import curves
from tweed.solvers import DDIM, DDPM, sample
from tweed.training import DenoisingLoss, fit

F64 = torch.float64


def run(seed: int, scale: str, progress: Progress) -> Report:
    inputs, n, schedules, training = {
        "smoke": (4, 24, (12, 20), 60),
        "default": (32, 96, (12, 20, 50), 500),
        "gpu": (64, 256, (12, 20, 50, 273), 20000),
    }[scale]
    rows = _exact(seed)
    progress("the exact laws", 0.05)
    more, lines = _compared(laws(seed, inputs, n), seed, schedules, progress, scale)
    rows += more
    more, shown = _trained(seed, training, progress, scale)
    rows += more
    return Report(
        slug="resfusion",
        rows=rows,
        seed=seed,
        scale=scale,
        settings={"inputs": inputs, "samples of each": n, "schedules": schedules, "training steps": training},
        figures={
            "steps": lambda: curves(
                {"energy distance to the exact posterior": lines}, xlabel="steps", ylabel="", ticks=(5.0, 10.0, 20.0)
            ),
            "images": lambda: _figure(shown),
        },
        notes=(
            "Energy distances are over the mean distance of two samples, the mean over inputs; of equal laws they are 0.",
            "The ideal network is told the measurement; the process itself starts from its pseudo-inverse.",
            "Trained networks: a noise network far from the data gives data of an error as large as its share of them is small, "
            "which five steps do not mend. A v network has no such error, and is level with Resfusion in PSNR.",
            "LOL, ISTD and Raindrop need their data; published 24.6, 31.8 and 32.6 dB in five steps.",
        ),
    )


def grid(process: Resfusion) -> list[float]:
    """The times of the published steps, t = 1 to 0."""
    steps = process.steps
    assert steps is not None
    return [k / steps for k in range(steps, -1, -1)]


def published(process: Resfusion, network: Any, y: Tensor, seed: int) -> Tensor:
    """The released sampling loop: DDPM's own, on the truncated schedule, from the noised degraded image."""
    assert isinstance(process.base, FromBetas)
    betas = torch.tensor(process.base.betas, dtype=F64)
    bar = (1.0 - betas).cumprod(0)
    n = len(betas)
    x = bar[-1].sqrt() * y + (1.0 - bar[-1]).sqrt() * random.normal(y.shape, seed, dtype=F64)
    for i, k in enumerate(range(n - 1, -1, -1)):
        x = (x - betas[k] / (1.0 - bar[k]).sqrt() * network(x, (k + 1) / n, y)) / (1.0 - betas[k]).sqrt()
        if k > 0:
            variance = (1.0 - bar[k - 1]) / (1.0 - bar[k]) * betas[k]
            x = x + variance.sqrt() * random.normal(y.shape, seed, draw=1 + 64 * i, dtype=F64)
    return x


def _exact(seed: int) -> list[Row]:
    process = Resfusion.linear(12)
    assert isinstance(process.base, FromBetas)
    y, x0, eps = (random.normal((5, 6), random.fold(seed, k), dtype=F64) for k in (1, 2, 3))
    weight = random.normal((6, 6), random.fold(seed, 4), dtype=F64) / 6.0

    def network(x: Tensor, t: Any, y: Tensor) -> Tensor:
        return torch.tanh(x @ weight + 0.2 * y + t)

    model = FunctionDenoiser(network, process, targets.Resnoise(), event=(6,))
    start = process.prior((5, 6), seed, y=y, dtype=F64)
    ours = sample(model, start, solver=DDPM(), times=grid(process), cond={"y": y}, seed=seed)
    loop = (ours - published(process, network, y, seed)).abs().max().item()
    # The forward chain, as moments: x <- sqrt(1 - b) x + (1 - sqrt(1 - b)) R + sqrt(b) eps.
    residual, mean, variance, off = y - x0, x0, 0.0, 0.0
    for k, beta in enumerate(process.base.betas):
        kept = math.sqrt(1.0 - beta)
        mean, variance = kept * mean + (1.0 - kept) * residual, kept**2 * variance + beta
        level = process.level((k + 1) / len(process.base.betas))
        off = max(off, float((mean - level.alpha * x0 - level.beta * y).abs().max()), abs(variance - level.sigma**2))
    # With the true answer a step is the Gaussian posterior of the chain around R.
    oracle = FunctionDenoiser(lambda x, t, y: _resnoise(process, x, t, x0, y), process, targets.Resnoise(), event=(6,))
    steps = grid(process)
    worst = 0.0
    for t, s in pairwise(steps[:-1]):
        here = process.perturb(x0, t, eps, y)
        there = sample(oracle, here, solver=DDIM(eta=0.0), times=[t, s], cond={"y": y})
        worst = max(worst, float((there - process.perturb(x0, s, eps, y)).abs().max()))
    none = Resfusion.linear(12)
    level = none.level(0.6)
    same = x0 * level.alpha + x0 * level.beta + level.sigma * eps
    plain = none.base.perturb(x0, 0.6, eps)
    counts = tuple(Resfusion.linear(steps).steps for steps in (12, 20, 50, 273))
    return [
        at_most("the published loop: off the ancestral sampler", loop, 1e-9),
        check(
            "steps that schedules of 12, 20, 50 and 273 leave",
            counts == (5, 8, 19, 100),
            "5, 8, 19, 100",
            here=", ".join(map(str, counts)),
        ),
        at_most("moments of the forward chain: off the process", off, 1e-12),
        at_most("with the true answer: a deterministic step off the forward formula", worst, 1e-9),
        at_most("at t = 1: the factor of the data", abs(none.level(1.0).alpha), 0.0),
        at_most(
            "an input that is not degraded: the state off the base process", (same - plain).abs().max().item(), 1e-12
        ),
    ]


def _resnoise(process: Resfusion, x: Tensor, t: float, x0: Tensor, y: Tensor) -> Tensor:
    level = process.level(t)
    eps = (x - level.alpha * x0 - level.beta * y) / level.sigma
    share = float(process.residual_share(torch.tensor(t, dtype=F64)))
    return eps + share * (y - x0)


def _compared(
    compared: Laws, seed: int, schedules: tuple[int, ...], progress: Progress, scale: str
) -> tuple[list[Row], dict[str, Any]]:
    noise_seed = random.fold(seed, 10)
    lines: dict[str, tuple[list[float], list[float]]] = {"Resfusion": ([], [])}
    sharp = math.nan
    for steps in schedules:
        process = Resfusion.linear(steps)
        assert process.steps is not None
        progress(f"Resfusion, {process.steps} steps", 0.1)
        made = compared.samples(process, DDPM(), process.steps, noise_seed, grid(process))
        lines["Resfusion"][0].append(float(process.steps))
        lines["Resfusion"][1].append(max(compared.distance(made), 1e-5))
        sharp = compared.psnr(made) if process.steps == 5 else sharp
    for name, solver in (("~DDIM from noise", DDIM()), ("~DDPM from noise", DDPM())):
        lines[name] = ([], [])
        for steps in (5, 10, 20) if scale != "smoke" else (5,):
            progress(f"{name.removeprefix('~')}, {steps} steps", 0.3)
            made = compared.samples(FromBetas.linear(), solver, steps, noise_seed)
            lines[name][0].append(float(steps))
            lines[name][1].append(max(compared.distance(made), 1e-5))
    strict = scale != "smoke"
    five = lines["Resfusion"][1][0]
    rows = [
        less_than(
            "energy distance in 5 steps, against DDIM from noise",
            five,
            lines["~DDIM from noise"][1][0],
            0.6 if strict else 0.9,
            published="0.054 against 0.126",
        ),
        less_than(
            "... against DDPM from noise",
            five,
            lines["~DDPM from noise"][1][0],
            0.5 if strict else 0.9,
            published="0.054 against 0.145",
        ),
        at_least(
            "PSNR in 5 steps, over the pseudo-inverse, dB",
            sharp - compared.psnr(compared.degraded[None]),
            4.0,
            published="18.6 from 13.1",
        ),
    ]
    rows += [
        info(
            f"{name.removeprefix('~')}: energy distance in {', '.join(f'{c:.0f}' for c in counts)} steps",
            ", ".join(f"{v:.3g}" for v in values),
        )
        for name, (counts, values) in lines.items()
    ]
    return rows, lines


def _trained(seed: int, steps: int, progress: Progress, scale: str) -> tuple[list[Row], dict[str, Tensor]]:
    """Darkened, noisy digits: Resfusion's five steps against conditional diffusion sampled in five."""

    def degraded(x: Tensor, seed: int) -> Tensor:
        dark = 0.3 * (x + 1.0) - 1.0
        return dark + 0.15 * random.normal(x.shape, seed, dtype=x.dtype)

    train, test = Digits("train").x, Digits("test").x[:200]
    y, given = degraded(train, random.fold(seed, 30)), degraded(test, random.fold(seed, 31))
    process = Resfusion.linear(12)
    noise, v = "conditional DDIM, noise", "conditional DDIM, v"
    kinds: dict[str, tuple[Process, Any]] = {
        "Resfusion": (process, targets.Resnoise()),
        noise: (FromBetas.linear(), targets.Noise()),
        v: (FromBetas.linear(), targets.V()),
    }
    network: dict[str, Any] = {"name": "mlp", "dim": 64, "width": 256, "depth": 2, "endpoint_channels": 64}
    if scale == "gpu":
        network = {"name": "unet", "in_channels": 1, "channels": 64, "multipliers": [1, 2], "endpoint_channels": 1}
    made: dict[str, Tensor] = {}
    for number, (name, (kind, target)) in enumerate(kinds.items()):
        progress(f"training: {name}", 0.5 + 0.16 * number)
        model = cast(Denoiser, NetworkDenoiser(build(network, random.fold(seed, 32)), kind, target, event=EVENT))
        fit(
            model,
            Tensors(train, y=y),
            steps=steps,
            objective=DenoisingLoss(),
            batch_size=128,
            lr=1e-3,
            schedule="cosine",
            ema=None,
            conditions=("y",),
            progress=False,
            seed=random.fold(seed, 33),
        )
        device = model.device
        run_with: dict[str, Any] = {"solver": DDIM(), "steps": 5}
        if kind is process:
            run_with = {"solver": DDPM(), "times": grid(process)}
        cond = {"y": given.to(device)}
        made[name] = sample(_clipped(model), len(test), cond=cond, seed=random.fold(seed, 34), **run_with).cpu()
    quality = {name: psnr(x, test) for name, x in made.items()}
    ours, before = quality["Resfusion"], psnr(given, test)
    rows = [
        at_least(
            "trained, darkened digits, 5 steps: PSNR over conditional DDIM with a noise network, dB",
            ours - quality[noise],
            1.0 if scale != "smoke" else -3.0,
            note=f"{ours:.1f} against {quality[noise]:.1f}; input {before:.1f}",
        ),
        info("... with a v network", ours - quality[v], note=f"{ours:.1f} against {quality[v]:.1f}"),
    ]
    if scale != "smoke":
        rows.append(at_least("... over the input, dB", ours - before, 5.0))
    return rows, {"degraded": given[:10], **{name: x[:10] for name, x in made.items()}, "truth": test[:10]}


def _clipped(model: Denoiser) -> Denoiser:
    """Estimates of the data clipped to the range of images, as released samplers do; without it noise networks fail."""
    return FunctionDenoiser(lambda x, t, y: model(x, t, y=y).x0.clamp(-1.0, 1.0), model.process, event=EVENT)


def _figure(shown: dict[str, Tensor]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 0.85 * len(shown)), layout="constrained")
    for row, (name, images) in zip(figure.subplots(len(shown), 10), shown.items(), strict=True):
        for axis, image in zip(row, images, strict=True):
            axis.imshow(image.reshape(8, 8), cmap="gray", vmin=-1, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    return figure
