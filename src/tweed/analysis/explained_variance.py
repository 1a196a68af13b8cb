"""How much of a learned field a simple one explains, noise level by noise level.

`EV(t) = 1 - E |s - s'|^2 / E |s|^2` with `x ~ p_t`, the data noised to time t (Wang & Vastola, 2024, arXiv 2412.09726,
Sec. 3.2). At high noise `-x / sigma^2` dominates every score and EV is near 1 for any of them; so the same is given for
the data estimates about the data's mean, `1 - E |D - D'|^2 / E |D - mean|^2`, which does not flatter.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import random
from tweed.core.denoiser import Denoiser
from tweed.errors import InputError


@dataclass(frozen=True)
class ExplainedVariance:
    """What one field explains of another at one time.

    Attributes:
        t: the time.
        score: the share of the score that is explained.
        data: the same of the data estimate about the data's mean.
        directions: the share of the score along each given direction, shape (r,), where directions were given.
    """

    t: float
    score: float
    data: float
    directions: Float[Tensor, " r"] | None = None


def explained_variance(
    denoiser: Denoiser,
    approximation: Denoiser,
    data: Float[Tensor, "n *event"],
    times: Iterable[float],
    *,
    directions: Float[Tensor, "d r"] | None = None,
    cond: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> list[ExplainedVariance]:
    """What `approximation` explains of `denoiser` on `data` noised to each of `times`.

    Args:
        approximation: on the same process; it is given `cond["y"]` alone of the conditions.
        data: samples of what the denoiser was trained on, at least two.
        directions: orthonormal columns, d the number of elements of an event.
        seed: of the noise.

    Raises:
        InputError: the processes differ, or there are fewer than two samples.
    """
    if denoiser.process != approximation.process:
        raise InputError(
            f"approximation: its process is {approximation.process}; expected the denoiser's, {denoiser.process}"
        )
    if len(data) < 2:
        raise InputError(f"data: {len(data)} samples were given; expected at least 2")
    cond = dict(cond or {})
    found = []
    for number, t in enumerate(times):
        noise = random.normal(data.shape, seed, draw=number, dtype=torch.float64, device=data.device)
        x = denoiser.process.perturb(data.double(), t, noise, cond.get("y"))
        with torch.no_grad():
            theirs = denoiser(x, t, **cond)
            ours = approximation(x, t, **({"y": cond["y"]} if "y" in cond else {}))
            score, other = theirs.score.double().flatten(1), ours.score.double().flatten(1)
            whole, part = theirs.x0.double().flatten(1), ours.x0.double().flatten(1)
        along = None if directions is None else _share((score - other) @ directions, score @ directions, 0)
        mean = data.double().flatten(1).mean(0)
        found.append(
            ExplainedVariance(t, _share(score - other, score).item(), _share(whole - part, whole - mean).item(), along)
        )
    return found


def _share(difference: Tensor, whole: Tensor, dim: int | None = None) -> Tensor:
    return 1.0 - difference.square().sum(dim) / whole.square().sum(dim)
