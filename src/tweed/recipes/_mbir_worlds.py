"""Volumes whose slices have an exact prior, and what each way makes of their measurements."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tweed.core import random
from tweed.core.denoiser import Denoiser
from tweed.core.exact import fit_gaussian
from tweed.core.processes import VE
from tweed.data.phantoms import moving_blobs, moving_fibres
from tweed.inverse import DiffusionMBIR, Measurement
from tweed.inverse.diffusion_mbir import slice_wise, total_variation
from tweed.inverse.operators import LinearOperator
from tweed.inverse.operators.fourier import MaskedFourier, cartesian_mask
from tweed.inverse.operators.radon import Radon, parallel_angles
from tweed.recipes import Progress

F64 = torch.float64
SIZE, SLICES = 16, 24
EVENT = (1, SIZE, SIZE)
PROCESS = VE(0.002, 5.0)
METHOD = DiffusionMBIR(strength=1e-3, penalty=0.06, slice_batch=SLICES)
COUPLED, ALONE, TV_Z, TV = "DiffusionMBIR", "slice by slice", "total variation, z", "total variation, all axes"
MAKE = {"blobs": moving_blobs, "fibres": moving_fibres}


@dataclass(frozen=True)
class Score:
    """Of reconstructions: mean PSNR in dB (by each truth's largest value), and roughness: the mean |difference across
    slices| over the truth's."""

    psnr: float
    roughness: float


@dataclass(frozen=True)
class Compared:
    """By way: the scores, and the first volume (with its truth)."""

    scores: Mapping[str, Score]
    shown: Mapping[str, Tensor]

    @property
    def gain(self) -> float:
        """Of the coupling over each slice on its own, dB."""
        return self.scores[COUPLED].psnr - self.scores[ALONE].psnr


def prior(world: str, seed: int, slices: int) -> Denoiser:
    """The Gaussian of so many slices of other random volumes: an exact score."""
    train = MAKE[world](SLICES, SIZE, random.fold(seed, 1), n=slices // SLICES).reshape(-1, *EVENT)
    return fit_gaussian(train, PROCESS, noise=1e-3)


def tomography(views: int, span: float = math.pi) -> LinearOperator:
    return Radon(EVENT, parallel_angles(views, span))


def resonance(seed: int) -> LinearOperator:
    """A third of the columns of k-space, those in the middle among them."""
    return MaskedFourier(EVENT, cartesian_mask((SIZE, SIZE), 3.0, 0.15, random.fold(seed, 3)))


def compare(
    denoiser: Denoiser,
    operator: LinearOperator,
    truths: Tensor,
    steps: int,
    seed: int,
    progress: Progress,
    name: str,
) -> Compared:
    """The method, the same without coupling, and total variation without a prior, on noiseless measurements."""
    method = replace(METHOD, steps=steps, project=isinstance(operator, Radon))

    def sampled(method: DiffusionMBIR, measurement: Measurement, k: int) -> Tensor:
        return method.solve(denoiser, measurement, 1, random.fold(seed, 20, k), dtype=F64).samples[0]

    # The least of total variation that a noiseless measurement needs: more of it is worse here.
    plain = {"strength": 1e-4, "penalty": 1e-2, "sweeps": 30, "iterations": 10}
    ways: dict[str, Callable[[Measurement, int], Tensor]] = {
        COUPLED: lambda m, k: sampled(method, m, k),
        ALONE: lambda m, k: sampled(slice_wise(method), m, k),
        TV_Z: lambda m, k: total_variation(m, **plain),
        TV: lambda m, k: total_variation(m, axes="all", **plain),
    }
    found: dict[str, list[Score]] = {way: [] for way in ways}
    shown = {"truth": truths[0]}
    for k, truth in enumerate(truths):
        measurement = Measurement(operator, operator(truth), 0.0)
        for j, (way, solve) in enumerate(ways.items()):
            progress(f"{name}: {way}", (k + j / len(ways)) / len(truths))
            x = solve(measurement, k)
            found[way].append(Score(psnr(x, truth), roughness(x, truth)))
            shown.setdefault(way, x)
    return Compared({way: mean(scores) for way, scores in found.items()}, shown)


def mean(scores: list[Score]) -> Score:
    n = len(scores)
    return Score(sum(each.psnr for each in scores) / n, sum(each.roughness for each in scores) / n)


def psnr(x: Tensor, truth: Tensor) -> float:
    return float(10.0 * torch.log10(truth.max() ** 2 / (x - truth).square().mean()))


def roughness(x: Tensor, truth: Tensor) -> float:
    return float(x.diff(dim=0).abs().mean() / truth.diff(dim=0).abs().mean())
