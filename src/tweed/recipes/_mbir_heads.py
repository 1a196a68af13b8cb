"""Volumes of heads and a trained prior for their slices; for the `gpu` scale."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tweed.core import random, targets
from tweed.core.denoiser import Denoiser, NetworkDenoiser
from tweed.core.processes import EDM
from tweed.data.phantoms import Phantoms, head_volume
from tweed.inverse import DiffusionMBIR, Measurement
from tweed.inverse.diffusion_mbir import slice_wise, total_variation
from tweed.inverse.operators.radon import Radon, parallel_angles
from tweed.nets import build
from tweed.recipes import Progress, Row, greater_than, info, less_than, span
from tweed.recipes._mbir_worlds import ALONE, COUPLED, TV, TV_Z, Score, psnr, roughness
from tweed.training import fit

PROCESS = EDM(0.002, 10.0)


@dataclass(frozen=True)
class Sizes:
    """Of slices and volumes, of the network and its training, and of the runs."""

    side: int = 64
    slices: int = 128
    channels: int = 64
    heads: int = 100_000
    training: int = 20_000
    batch: int = 128
    steps: int = 1000
    views: tuple[int, ...] = (4, 8, 16)


def rows(sizes: Sizes, seed: int, progress: Progress, device: str) -> tuple[list[Row], dict[str, Tensor]]:
    """Reconstructions of a head that the prior has not seen, from `views`; the volumes of the fewest views."""
    progress("training on heads", 0.0)
    denoiser = _trained(sizes, seed, device)
    truth = head_volume(sizes.side, sizes.slices, random.fold(seed, 42)).to(device)
    method = DiffusionMBIR(steps=sizes.steps, strength=1e-3, penalty=0.06, slice_batch=64)
    rows: list[Row] = []
    shown: dict[str, Tensor] = {}
    for number, views in enumerate(sizes.views):
        part = span(progress, 0.5 + 0.5 * number / len(sizes.views), 0.5 + 0.5 * (number + 1) / len(sizes.views))
        part(f"heads, {views} views", 0.0)
        operator = Radon(denoiser.event or truth.shape[1:], parallel_angles(views))
        measurement = Measurement(operator, operator(truth))
        found = {
            COUPLED: method.solve(denoiser, measurement, 1, random.fold(seed, 43)).samples[0],
            ALONE: slice_wise(method).solve(denoiser, measurement, 1, random.fold(seed, 43)).samples[0],
            TV_Z: total_variation(measurement, strength=1e-3, penalty=1e-2),
            TV: total_variation(measurement, strength=1e-3, penalty=1e-2, axes="all"),
        }
        scores = {way: Score(psnr(x, truth), roughness(x, truth)) for way, x in found.items()}
        rows.append(
            greater_than(
                f"heads, {views} views: PSNR, dB, over slice by slice", scores[COUPLED].psnr, scores[ALONE].psnr
            )
        )
        rows.append(less_than("... roughness across slices", scores[COUPLED].roughness, scores[ALONE].roughness))
        rows += [
            info(f"heads, {views} views, {way}: PSNR, dB", score.psnr, note=f"roughness {score.roughness:.2f}")
            for way, score in scores.items()
        ]
        shown = shown or {"truth": truth.cpu()} | {way: x.cpu() for way, x in found.items()}
    return rows, shown


def _trained(sizes: Sizes, seed: int, device: str) -> Denoiser:
    data = Phantoms(sizes.heads, sizes.side, random.fold(seed, 40))
    config = {
        "name": "unet",
        "in_channels": 1,
        "channels": sizes.channels,
        "multipliers": [1, 2, 2],
        "blocks": 2,
        "groups": 8,
        "scale_shift": True,
    }
    network = build(config, random.fold(seed, 41))
    model = NetworkDenoiser(network, PROCESS, targets.EDM(0.25), event=data.shape)
    options = {"lr": 4e-4, "warmup": sizes.training // 50, "schedule": "cosine", "conditions": (), "progress": False}
    made = fit(
        model,
        data,
        steps=sizes.training,
        batch_size=sizes.batch,
        seed=random.fold(seed, 44),
        device=torch.device(device),
        **options,
    )
    return made.denoiser
