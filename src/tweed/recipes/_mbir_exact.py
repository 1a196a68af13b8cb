"""What holds to rounding: adjoints, independence of slices and of batches, and data that are complete."""

from dataclasses import replace

import torch
from torch import Tensor

from tweed.core import random
from tweed.core.denoiser import Denoiser
from tweed.data.phantoms import moving_blobs, shepp_logan
from tweed.inverse import DiffusionMBIR, Measurement
from tweed.inverse.diffusion_mbir import slice_wise
from tweed.inverse.linear_algebra import difference, difference_adjoint
from tweed.inverse.operators import Inpainting, LinearOperator, adjoint_error
from tweed.inverse.operators.radon import Radon, parallel_angles
from tweed.recipes import Row, at_most, check
from tweed.recipes._mbir_worlds import EVENT, F64, METHOD, SIZE, resonance, tomography


def rows(denoiser: Denoiser, seed: int) -> list[Row]:
    head = shepp_logan(64).double()
    radon = Radon((1, 64, 64), parallel_angles(96))
    back = radon.filtered_back_projection(radon(head))
    truth = moving_blobs(4, SIZE, random.fold(seed, 12))[0]
    operator = tomography(4)
    y = operator(truth)
    method = replace(METHOD, steps=20)

    def solved(method: DiffusionMBIR, operator: LinearOperator, y: Tensor) -> Tensor:
        return method.solve(denoiser, Measurement(operator, y), 1, seed, dtype=F64).samples[0]

    disturbed = y.clone()
    disturbed[1] += 1.0
    alone = slice_wise(method)
    moved = (solved(alone, operator, disturbed) - solved(alone, operator, y)).abs().flatten(1).amax(1)
    others = moved[[0, 2, 3]].max().item()
    batches = [solved(replace(method, slice_batch=size), operator, y) for size in (1, 3)]
    everything = Inpainting(EVENT, torch.ones(EVENT, dtype=torch.bool))
    error = max(adjoint_error(each, seed) for each in (radon, resonance(seed)))
    return [
        at_most("Radon and masked Fourier transform: <A x, y> off <x, A* y>", error, 1e-12),
        at_most("filtered back-projection of Shepp-Logan: RMSE", (back - head).square().mean().sqrt().item(), 0.06),
        at_most("differences across slices: <D x, y> off <x, D* y>", _gap(seed), 1e-12),
        check(
            "slice by slice: a disturbed slice moves the others by",
            others == 0.0 and moved[1].item() > 1e-3,
            "0",
            here=others,
        ),
        at_most("slices at a time, 1 or 3: results differ by", (batches[0] - batches[1]).abs().max().item(), 1e-9),
        at_most(
            "everything measured: result off the truth", (solved(method, everything, truth) - truth).abs().max(), 1e-9
        ),
    ]


def _gap(seed: int) -> float:
    v, d = (random.normal((3, 5, 4), random.fold(seed, k), dtype=F64) for k in (10, 11))
    return max(
        abs(float((difference(v, 1, b) * d).sum() - (v * difference_adjoint(d, 1, b)).sum()))
        for b in ("neumann", "periodic")
    )
