"""DPM-OT: Li et al., "DPM-OT: A New Diffusion Probabilistic Model Based on Optimal Transport" (ICCV 2023, arXiv 2307.11308).

The run from pure noise to a late time is replaced by a transport map onto data that was noised to that time,
`y_j = alpha x_j + sigma eps_j`; from there any solver goes on in few steps. A start lies within the basin of one mode at
once, so that few steps do not leave samples between modes. The price is memory: every sample comes from a training sample,
and shows as much of it as the noise at that time leaves (report the distance to the nearest one beside any quality).
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import random
from tweed.core.processes import Process
from tweed.core.starts import Start
from tweed.errors import IncompatibleError, InputError
from tweed.starts.semi_discrete import SemiDiscreteOT, fit_transport


@dataclass(frozen=True)
class OptimalTransport:
    """Starts at time `t` by a transport map from noise to noised data; made by `transport`.

    Attributes:
        map: the map to the noised data.
        t: the time that these belong to.
        process: the process that they were noised by.
        clean: the data, in the order of the map's points, shape (n, *event).
    """

    map: SemiDiscreteOT
    t: float
    process: Process
    clean: Float[Tensor, "n *event"]

    def start(
        self,
        n: int,
        seed: int = 0,
        *,
        index: int = 0,
        noise: Literal["stored", "fresh"] = "stored",
        topk: int = 1,
        angle_threshold: float = 0.7,
        dtype: torch.dtype = torch.float32,
    ) -> Start:
        """`n` starts; start `index + i` is the same under the same seed, whatever the batch.

        Args:
            noise: "stored", the noise that the data got when the map was made (published: as many different starts as
                points); "fresh", the same point with noise of its own, an exact draw of the noised data's density.
            topk, angle_threshold: see `SemiDiscreteOT.map`; for stored noise.

        Raises:
            InputError: an unknown kind of noise, or a negative number.
        """
        if n < 0 or noise not in ("stored", "fresh"):
            raise InputError(f"n, noise: {n}, {noise!r} were given; expected at least 0, and 'stored' or 'fresh'")
        x = self.map.draw(n, random.fold(seed, 17), index)
        if noise == "stored":
            return Start(self.map.map(x, topk, angle_threshold).to(dtype), self.t)
        chosen = self.clean[self.map.cell(x)]
        drawn = random.normal(chosen.shape, seed, index=index, dtype=torch.float64, device=chosen.device)
        return Start(self.process.perturb(chosen, self.t, drawn).to(dtype), self.t)


def transport(
    process: Process, data: Float[Tensor, "n *event"], t: float, seed: int = 0, **options: Any
) -> OptimalTransport:
    """The transport from noise to `data` noised to time `t`; options as for `fit_transport`.

    Raises:
        InputError: `t` outside [0, 1), or anything `fit_transport` raises.
        IncompatibleError: the process has an endpoint, which would need a map for each.
        NumericalError: the map did not converge.
    """
    if process.endpoint != "none":
        raise IncompatibleError(
            f"process: {type(process).__name__} has an endpoint; a map would serve one of them only"
        )
    if not 0.0 <= t < 1.0:
        raise InputError(f"t: {t} was given; expected a time in [0, 1)")
    if data.ndim < 2 or len(data) == 0:
        raise InputError(f"data: shape {tuple(data.shape)} was given; expected (n, *event), n at least 1")
    clean = data.double()
    noised = process.perturb(clean, t, random.normal(clean.shape, seed, dtype=torch.float64, device=clean.device))
    found = fit_transport(noised, seed=random.fold(seed, 3), **options)
    # The map's points are in an order of their own.
    order = torch.cdist(found.targets.flatten(1), noised.flatten(1)).argmin(1)
    return OptimalTransport(found, t, process, clean[order])
