"""When a run decides: the time from which one component of a mixture holds nearly all of the posterior.

Wang & Vastola, 2023 (arXiv 2303.02490): the score of a mixture is that of its components weighted by their
responsibilities, and becomes that of one Gaussian once a single component is left. Until the noise falls to the distance
of the components the whole mixture acts as one Gaussian; from the commitment on, the chosen one does.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tweed.core.exact import MixtureDenoiser
from tweed.errors import InputError


@dataclass(frozen=True)
class Commitment:
    """What each of b runs committed to.

    Attributes:
        component: the one with the largest responsibility in the end, shape (b,).
        time: the first time of the run from which on its responsibility stays at the level or above, shape (b,); NaN
            where it is below it in the end.
    """

    component: Int[Tensor, " b"]
    time: Float[Tensor, " b"]


def commitment(
    mixture: MixtureDenoiser,
    states: Float[Tensor, "n b *event"],
    times: Iterable[float],
    *,
    level: float = 0.95,
    **cond: Tensor,
) -> Commitment:
    """When runs, as `tweed.sample(..., trajectory=True)` gives them, commit themselves to a component.

    Raises:
        InputError: times do not fit the states, or a level that is not between 0 and 1.
    """
    times = list(times)
    if len(times) != len(states) or not times or not 0.0 < level < 1.0:
        raise InputError(
            f"states, times, level: {len(states)}, {len(times)}, {level} were given; expected a time for each state, "
            "and a level between 0 and 1"
        )
    held = torch.stack([mixture.responsibilities(x, t, **cond) for x, t in zip(states, times, strict=True)])
    component = held[-1].argmax(-1)
    own = held.gather(2, component.expand(len(times), -1)[..., None])[..., 0]
    # Backwards from the end: how many of the last states are all at the level.
    stays = (own.flip(0) >= level).long().cumprod(0).sum(0)
    at = torch.tensor(times, dtype=torch.float64, device=own.device)
    found = at[(len(times) - stays).clamp_max(len(times) - 1)]
    return Commitment(component, found.where(stays > 0, torch.nan))
