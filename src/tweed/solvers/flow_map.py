"""Sampling with flow maps: one evaluation a step, with or without fresh noise between steps."""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import random
from tweed.core.flow_map import FlowMap
from tweed.core.processes import Process
from tweed.core.time import working_dtype
from tweed.errors import IncompatibleError, InputError, NumericalError


def sample_flow_map(
    flow_map: FlowMap,
    n_or_start: int | Float[Tensor, "b *event"],
    *,
    times: Sequence[float] = (1.0, 0.0),
    renoise: float = 0.0,
    cond: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    index: int = 0,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    gradients: bool = False,
) -> Float[Tensor, "b *event"]:
    """Samples in `len(times) - 1` evaluations of a flow map.

    Each step from t to s jumps to the noise level `sqrt(1 - renoise^2) sigma_s/alpha_s` and adds the noise that is
    missing to that of s (Kim et al., "Consistency Trajectory Models", ICLR 2024, Algorithm 3): 0 composes the maps, 1
    is multistep consistency sampling, which maps to the data each time (Song et al., ICML 2023, Algorithm 1).

    Args:
        n_or_start: how many samples to draw from the prior, or states at `times[0]`.
        times: decreasing in [0, 1]; the default is one step from noise to data.
        renoise: the share of fresh noise, in [0, 1]; 1 for a consistency model of more than one step.
        cond: conditions, tensors with the batch first.
        seed, index: sample `i` is that of number `index + i` under `seed`, whatever the batch.
        shape: of one sample, where the map does not know it.
        gradients: keep the graph.

    Raises:
        InputError: times that do not decrease or leave [0, 1], `renoise` outside [0, 1], an unknown shape.
        IncompatibleError: fresh noise on a two-sided interpolant, or a step that the map cannot make.
        NumericalError: a sample is not finite.
    """
    process, levels, cond = flow_map.process, [float(t) for t in times], dict(cond or {})
    falling = all(a > b for a, b in pairwise(levels))
    if len(levels) < 2 or not falling or levels[0] > 1.0 or levels[-1] < 0.0:
        raise InputError(f"times: {levels} were given; expected at least two decreasing times in [0, 1]")
    if not 0.0 <= renoise <= 1.0:
        raise InputError(f"renoise: {renoise} was given; expected a number in [0, 1]")
    if renoise > 0.0 and process.endpoint == "drawn":
        raise IncompatibleError("renoise: a two-sided interpolant has no noise to renew; expected 0")
    if isinstance(n_or_start, Tensor):
        x = n_or_start.to(working_dtype(n_or_start))
    else:
        event = shape if shape is not None else flow_map.event
        if event is None:
            raise InputError("shape: the map does not know the shape of a sample; pass shape=(...) or a start tensor")
        if device is None:
            device = next((p.device for p in flow_map.parameters()), torch.device("cpu"))
        size = (n_or_start, *event)
        x = process.prior(size, seed, index=index, t=levels[0], y=cond.get("y"), dtype=dtype, device=device)
    y = cond.get("y")
    with nullcontext() if gradients else torch.no_grad():
        for i, (t, s) in enumerate(pairwise(levels)):
            middle, scale, shift, std = _landing(process, s, renoise, flow_map.t_min)
            x = flow_map(x, t, middle, **cond)
            if std > 0.0:
                noise = random.normal(x.shape, seed, index=index, draw=1 + i, dtype=x.dtype, device=x.device)
                x = scale * x + std * noise
                x = x if shift == 0.0 or y is None else x + shift * y.to(x.dtype)
    if not bool(torch.isfinite(x).all()):
        raise NumericalError(f"{type(flow_map).__name__}: a sample is not finite; the network's output is not")
    return x


def _landing(process: Process, s: float, renoise: float, t_min: float) -> tuple[float, float, float, float]:
    """Where a step to `s` lands first, and `x_s = scale x + shift y + std noise` from there."""
    if renoise == 0.0 or s <= t_min:
        return s, 1.0, 0.0, 0.0
    here, low = process.level(s), process.level(t_min)
    level, least = here.sigma / here.alpha, low.sigma / low.alpha
    wanted = math.sqrt(1.0 - renoise**2) * level
    middle = t_min if wanted <= least else process.time(-math.log(wanted)).item()
    there = process.level(middle)
    scale = here.alpha / there.alpha
    std = here.alpha * math.sqrt(max(level**2 - (there.sigma / there.alpha) ** 2, 0.0))
    return middle, scale, here.beta - scale * there.beta, std
