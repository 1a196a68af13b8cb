"""DiffusionMBIR (Chung et al., CVPR 2023, arXiv 2211.10655): volumes from few projections and a prior of slices.

Volumes of moving blobs, whose slices follow a Gaussian that is fitted to other volumes, so that the prior's score is exact.
Sparse-view and limited-angle tomography and compressed-sensing magnetic resonance, against the same sampler slice by slice
and against total variation without a prior.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tweed.core import random
from tweed.core.denoiser import Denoiser
from tweed.core.exact import fit_gaussian
from tweed.core.processes import VE
from tweed.data.phantoms import moving_blobs, shepp_logan
from tweed.inverse import DiffusionMBIR, Measurement
from tweed.inverse.diffusion_mbir import slice_wise, total_variation
from tweed.inverse.linear_algebra import difference, difference_adjoint
from tweed.inverse.operators import LinearOperator, adjoint_error
from tweed.inverse.operators.fourier import MaskedFourier, cartesian_mask
from tweed.inverse.operators.radon import Radon, parallel_angles
from tweed.recipes import Progress, Report, Row, at_least, at_most, check, greater_than, info, less_than, span
from tweed.recipes._figures import curves

F64 = torch.float64
SIZE, SLICES = 16, 24
EVENT = (1, SIZE, SIZE)
PROCESS = VE(0.01, 5.0)


def run(seed: int, scale: str, progress: Progress) -> Report:
    steps, volumes, fitted = {"smoke": (60, 1, 40), "default": (200, 3, 250), "gpu": (2000, 10, 1000)}[scale]
    train = moving_blobs(SLICES, SIZE, random.fold(seed, 1), n=fitted).reshape(-1, *EVENT)
    prior = fit_gaussian(train, PROCESS, noise=1e-3)
    truths = moving_blobs(SLICES, SIZE, random.fold(seed, 2), n=volumes)
    method = DiffusionMBIR(steps=steps, strength=2e-3, penalty=0.15)
    problems: dict[str, LinearOperator] = {
        **{f"{views} views": Radon(EVENT, parallel_angles(views)) for views in (2, 4, 8)},
        "8 views in a third of a turn": Radon(EVENT, parallel_angles(8, math.pi / 3.0)),
        "a fifth of k-space": MaskedFourier(EVENT, cartesian_mask((SIZE, SIZE), 5.0, 0.12, random.fold(seed, 3))),
    }
    rows = _exact(prior, seed, progress)
    found: dict[str, dict[str, tuple[float, float]]] = {}
    shown: dict[str, dict[str, Tensor]] = {}
    for number, (name, operator) in enumerate(problems.items()):
        part = span(progress, 0.1 + 0.85 * number / len(problems), 0.1 + 0.85 * (number + 1) / len(problems))
        found[name], shown[name] = _compared(prior, operator, truths, method, seed, part, name)
    rows += _rows(found, scale)
    views = (2.0, 4.0, 8.0)
    gains = [found[f"{int(n)} views"]["coupled"][0] - found[f"{int(n)} views"]["slice by slice"][0] for n in views]
    lines = {
        name: (list(views), [found[f"{int(n)} views"][name][0] for n in views])
        for name in ("coupled", "slice by slice", "total variation, z", "total variation, all axes")
    }
    return Report(
        slug="diffusion-mbir",
        rows=rows,
        seed=seed,
        scale=scale,
        settings={"volumes": volumes, "shape": [SLICES, SIZE, SIZE], "steps": steps, "strength": 2e-3, "penalty": 0.15},
        figures={
            "views": lambda: curves(
                {"PSNR": lines, "gain over slice by slice": {"coupled": (list(views), gains)}},
                xlabel="views",
                ylabel="dB",
                log="x",
                ticks=views,
                legend="lower right",
            ),
            "volume": lambda: _figure(shown["2 views"]),
        },
        notes=(
            "PSNR over whole volumes, by the largest value. Roughness: mean |difference across slices|, over the truth's.",
            "What few views leave open each slice fills on its own, which the coupling across slices forbids.",
            "Strength and penalty are in units of |A|^2. The published network and medical data are not at hand.",
        ),
    )


def psnr(x: Tensor, truth: Tensor) -> float:
    return float(10.0 * torch.log10(truth.max() ** 2 / (x - truth).square().mean()))


def roughness(x: Tensor, truth: Tensor) -> float:
    return float(x.diff(dim=0).abs().mean() / truth.diff(dim=0).abs().mean())


def _exact(prior: Denoiser, seed: int, progress: Progress) -> list[Row]:
    progress("what is exact", 0.0)
    head = shepp_logan(64).double()
    radon = Radon((1, 64, 64), parallel_angles(60))
    fbp = radon.filtered_back_projection(radon(head))
    v = random.normal((3, 5, 4), random.fold(seed, 10), dtype=F64)
    d = random.normal((3, 5, 4), random.fold(seed, 11), dtype=F64)
    gap = max(
        abs(float((difference(v, 1, b) * d).sum() - (v * difference_adjoint(d, 1, b)).sum()))
        for b in ("neumann", "periodic")
    )
    operator = Radon(EVENT, parallel_angles(4))
    truth = moving_blobs(4, SIZE, random.fold(seed, 12))[0]
    y = operator(truth)
    alone = slice_wise(DiffusionMBIR(steps=20))

    def solved(y: Tensor, **options: Any) -> Tensor:
        return replace(alone, **options).solve(prior, Measurement(operator, y, 0.0), 1, seed, dtype=F64).samples[0]

    disturbed = y.clone()
    disturbed[1] += 1.0
    moved = (solved(disturbed) - solved(y)).abs().flatten(1).amax(1)
    others = moved[[0, 2, 3]].max().item()
    coupled = DiffusionMBIR(steps=20)
    batches = [
        replace(coupled, slice_batch=size).solve(prior, Measurement(operator, y, 0.0), 1, seed, dtype=F64).samples
        for size in (1, 3)
    ]
    return [
        at_most("Radon transform: <A x, y> off <x, A* y>", adjoint_error(radon, seed), 1e-12),
        at_most(
            "filtered back-projection of Shepp-Logan, 60 views: RMSE", (fbp - head).square().mean().sqrt().item(), 0.1
        ),
        at_most("differences across slices: <D x, y> off <x, D* y>", gap, 1e-12),
        check(
            "slice by slice: a disturbed slice moves the others by",
            others == 0.0 and moved[1].item() > 1e-3,
            "0",
            here=others,
        ),
        at_most("slices at a time, 1 or 3: results differ by", (batches[0] - batches[1]).abs().max().item(), 1e-9),
    ]


def _compared(
    prior: Denoiser,
    operator: LinearOperator,
    truths: Tensor,
    method: DiffusionMBIR,
    seed: int,
    progress: Progress,
    name: str,
) -> tuple[dict[str, tuple[float, float]], dict[str, Tensor]]:
    if isinstance(operator, MaskedFourier):
        method = replace(method, project=False)
    ways: dict[str, Callable[[Measurement, int], Tensor]] = {
        "coupled": lambda m, k: method.solve(prior, m, 1, random.fold(seed, 20, k), dtype=F64).samples[0],
        "slice by slice": lambda m, k: (
            slice_wise(method).solve(prior, m, 1, random.fold(seed, 20, k), dtype=F64).samples[0]
        ),
        "total variation, z": lambda m, k: total_variation(m, strength=1e-3),
        "total variation, all axes": lambda m, k: total_variation(m, strength=1e-3, axes="all"),
    }
    totals: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    shown: dict[str, Tensor] = {"truth": truths[0]}
    for k, truth in enumerate(truths):
        measurement = Measurement(operator, operator(truth), 0.0)
        for j, (way, solve) in enumerate(ways.items()):
            progress(f"{name}: {way}", (k + j / len(ways)) / len(truths))
            x = solve(measurement, k)
            totals[way].append((psnr(x, truth), roughness(x, truth)))
            if k == 0:
                shown[way] = x
    means = {way: tuple(sum(part) / len(each) for part in zip(*each, strict=True)) for way, each in totals.items()}
    return means, shown  # type: ignore[return-value]


def _rows(found: Mapping[str, Mapping[str, tuple[float, float]]], scale: str) -> list[Row]:
    rows: list[Row] = []
    strict = scale != "smoke"
    for name, each in found.items():
        (here, rough), (alone, apart) = each["coupled"], each["slice by slice"]
        across, all_axes = each["total variation, z"][0], each["total variation, all axes"][0]
        sparse = name in ("2 views", "4 views")
        if name.endswith("views") and strict:
            rows += [
                at_least(
                    f"{name}: PSNR over slice by slice, dB",
                    here - alone,
                    2.0 if sparse else 1.0,
                    note=f"{here:.1f} dB",
                    published=">= 2" if sparse else None,
                ),
                at_least(
                    "... over total variation across slices without a prior, dB", here - across, 3.0 if sparse else 0.0
                ),
                at_least("... over total variation in all directions, dB", here - all_axes, 0.0),
                less_than("... roughness across slices, against slice by slice", rough, apart, 0.4 if sparse else 0.6),
            ]
        elif strict:
            rows.append(greater_than(f"{name}: PSNR against slice by slice, dB", here, alone))
        for way, (value, uneven) in each.items():
            rows.append(info(f"{name}, {way}: PSNR, dB", value, note=f"roughness {uneven:.2f}"))
    if strict:
        gains = [found[f"{n} views"]["coupled"][0] - found[f"{n} views"]["slice by slice"][0] for n in (2, 8)]
        rows.append(greater_than("gain with 2 views, against 8, dB", gains[0], gains[1]))
    return rows


def _figure(volumes: Mapping[str, Tensor]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.1 * len(volumes), 4.6), layout="constrained")
    top = float(volumes["truth"].max())
    axes = figure.subplots(2, len(volumes), squeeze=False)
    for column, (name, volume) in zip(axes.T, volumes.items(), strict=True):
        column[0].imshow(volume[SLICES // 2, 0], cmap="gray", vmin=0.0, vmax=top)
        column[1].imshow(volume[:, 0, :, SIZE // 2], cmap="gray", vmin=0.0, vmax=top, aspect="auto")
        column[0].set_title(name, fontsize=9)
        for axis in column:
            axis.set_xticks([])
            axis.set_yticks([])
    axes[0, 0].set_ylabel("a slice", fontsize=9)
    axes[1, 0].set_ylabel("across slices", fontsize=9)
    return figure
