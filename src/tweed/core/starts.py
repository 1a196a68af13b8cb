"""Starts: a state and the time it belongs to, from which a solver goes on.

`tweed.sample` takes a number (that many draws of the prior), a state at the grid's first time, or one of these.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import random
from tweed.core.processes import Process
from tweed.core.time import Time, as_time, working_dtype
from tweed.errors import InputError


class Start(NamedTuple):
    """A state `x`, shape (b, *event), at time `t`: one number, or a tensor (b,) with a time for each sample."""

    x: Float[Tensor, "b *event"]
    t: Time


def noised(
    process: Process,
    x0: Float[Tensor, "b *event"],
    t: Time,
    seed: int = 0,
    *,
    index: int = 0,
    y: Float[Tensor, "b *event"] | None = None,
) -> Start:
    """A given sample, noised to time `t`: a late start from a guess (SDEdit; Meng et al., ICLR 2022).

    Args:
        t: a number, or one time for each sample, shape (b,).

    Raises:
        InputError: `t` has another shape, or the process needs `y`.
    """
    time = as_time(t)
    if time.ndim > 1 or (time.ndim == 1 and time.shape != (len(x0),)):
        raise InputError(f"t: shape {tuple(time.shape)} was given; expected () or ({len(x0)},)")
    noise = random.normal(x0.shape, seed, index=index, dtype=working_dtype(x0), device=x0.device)
    return Start(process.perturb(x0, t, noise, y), t if not isinstance(t, Tensor) or t.ndim else float(t))


def stack(*starts: Start) -> Start:
    """Several starts as one batch, each sample keeping its own time."""
    if not starts:
        raise InputError("starts: none was given; expected at least one")
    times = [as_time(s.t).to(s.x.device).expand(len(s.x)) for s in starts]
    return Start(torch.cat([s.x for s in starts]), torch.cat(times))
