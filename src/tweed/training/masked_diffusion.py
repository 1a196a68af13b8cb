"""Masked and noised auto-encoding in one loss: "Unified Auto-Encoding with Masked Diffusion" (2024, arXiv 2406.17688)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tweed.core import random, targets
from tweed.core.denoiser import Denoiser, NetworkDenoiser
from tweed.core.processes import Process
from tweed.core.time import as_time
from tweed.errors import IncompatibleError, InputError
from tweed.training import objectives, times
from tweed.training.couplings import Independent
from tweed.training.objectives import Batch, conditions, draw
from tweed.training.times import TimeSampler

_MASKS = 0x6D61736B  # the stream of a seed that masks are drawn from


@dataclass(frozen=True)
class MaskedDiffusionLoss:
    """Half of a batch is clean and mostly hidden, the rest noised and partly hidden, for one network with two heads.

    The last `floor(clean B)` of a batch of B are clean, at time 0: the loss is the squared error of the data head over hidden
    patches. The others are noised: the mean of the noise head's error over visible patches and the data head's over
    hidden ones; over all patches where none is hidden. Averaged over the batch this is the published sum, each part
    weighted by its share, q and 1 - q.

    `clean=1` is a masked autoencoder, `clean=0, noised_mask=0` a diffusion model with a second head, `clean=0,
    noised_mask=0.5` MaskDiT.

    Args:
        clean: q, the share of clean images.
        clean_mask, noised_mask: the share of patches that is hidden; `floor((1 - share) L)` are seen.
        times: how the times of noised images are drawn.

    Raises:
        InputError: a share is outside of [0, 1], or nothing would be seen.
    """

    clean: float = 0.5
    clean_mask: float = 0.75
    noised_mask: float = 0.375
    times: TimeSampler = field(default_factory=times.Uniform)

    def __post_init__(self):
        for name in ("clean", "clean_mask", "noised_mask"):
            value, limit = getattr(self, name), 1.0 if name == "clean" else 1.0 - 1e-9
            if not 0.0 <= value <= limit:
                raise InputError(f"{name}: {value} was given; expected a share in [0, 1{']' if limit == 1.0 else ')'}")

    def prepare(
        self, process: Process, batch: Batch, *, seed: int, step: int, offset: int = 0, total: int | None = None
    ) -> dict[str, Tensor]:
        """The batch with times, zero for the clean part, noise, and the number of each row (`row`), which masks follow from."""
        n = len(batch["x"])
        total = total or offset + n
        rows = offset + torch.arange(n, device=batch["x"].device)
        if "t" not in batch:
            # Drawn for the noised part alone: a share of a batch's evenly spread times would not be spread over all times.
            noised = total - math.floor(self.clean * total + 1e-9)
            t = torch.zeros(total, dtype=torch.float64)
            t[:noised] = self.times(process, noised, seed, step)
            batch = {**batch, "t": t[offset : offset + n].to(batch["x"].device)}
        made = draw(process, batch, self.times, Independent(), seed=seed, step=step, offset=offset, total=total)
        return {**made, "row": step * total + rows}

    def __call__(self, denoiser: Denoiser, batch: Batch, *, seed: int = 0, step: int = 0) -> Float[Tensor, " b"]:
        """The loss of each sample; those at a given time 0 are the clean ones, wherever they are.

        Raises:
            IncompatibleError: the network has no two heads, is told something else than the time, or is read as another
                target than its head; or the process has an endpoint.
            InputError: nothing of an image would be seen, or an entry that the network does not know.
        """
        network = _network(denoiser)
        process = denoiser.process
        if "row" not in batch:
            batch = self.prepare(process, batch, seed=seed, step=step)
        told = {name: value for name, value in conditions(process, batch).items() if name != "row"}
        if not told.keys() <= {"label", "drop"}:
            raise InputError(f"batch: the conditions {sorted(told)} were given; expected 'label' and 'drop' alone")
        t = as_time(batch["t"])
        places, losses = [], []
        for clean, hidden in ((False, self.noised_mask), (True, self.clean_mask)):
            rows = ((t == 0.0) == clean).nonzero()[:, 0]
            if len(rows):
                x0, noise, row = (batch[name][rows] for name in ("x", "noise", "row"))
                own = {name: value[rows] for name, value in told.items()}
                losses.append(self._part(network, process, x0, noise, t[rows], row, hidden, seed, own))
                places.append(rows)
        return torch.cat(losses)[torch.cat(places).argsort()] if losses else batch["x"].new_zeros(0)

    def _part(
        self, network: Any, process: Process, x0: Tensor, noise: Tensor, t: Tensor, row: Tensor, hidden: float,
        seed: int, told: Mapping[str, Tensor],
    ) -> Tensor:  # fmt: skip
        clean = bool(t[0] == 0.0)
        count = network.tokens(x0)
        chosen = visible_patches(row, count, hidden, random.fold(seed, _MASKS))
        seen = _pixels(chosen, count, x0, network.patch)
        x = x0 if clean else process.perturb(x0, t, noise)
        heads = network.heads(x, t.to(torch.float32), visible=chosen if hidden > 0.0 else None, **told)
        off_data, off_noise = (heads.data - x0).square(), (heads.noise - noise).square()
        whole = torch.ones_like(seen)
        data = _mean(off_data, 1.0 - seen if hidden > 0.0 else whole)
        if clean:
            return data
        return 0.5 * (_mean(off_noise, seen if hidden > 0.0 else whole) + data)


def visible_patches(row: Int[Tensor, " b"], count: int, hidden: float, seed: int) -> Int[Tensor, "b k"]:
    """Which `floor((1 - hidden) count)` of `count` patches are seen, in random order; a function of seed and row.

    Raises:
        InputError: it would be none.
    """
    kept = math.floor((1.0 - hidden) * count + 1e-9)
    if kept < 1:
        raise InputError(f"mask: {hidden} of {count} patches leaves none; expected at least one to be seen")
    if kept == count and hidden > 0.0:
        raise InputError(f"mask: {hidden} of {count} patches hides none; expected 0, or a larger share")
    return random.uniform((len(row), count), seed, index=row, device=row.device).argsort(1)[:, :kept]


def _pixels(chosen: Tensor, count: int, x: Tensor, patch: int) -> Tensor:
    # 1 where a pixel is seen, (b, 1, h, w).
    mask = torch.zeros(len(x), count, device=x.device, dtype=x.dtype).scatter(1, chosen, 1.0)
    mask = mask.reshape(len(x), 1, x.shape[2] // patch, x.shape[3] // patch)
    return mask.repeat_interleave(patch, 2).repeat_interleave(patch, 3)


def _mean(error: Tensor, where: Tensor) -> Tensor:
    return (error * where).flatten(1).sum(1) / (where.flatten(1).sum(1) * error.shape[1])


def _network(denoiser: Denoiser) -> Any:
    network = denoiser.network if isinstance(denoiser, NetworkDenoiser) else None
    if not (hasattr(network, "heads") and hasattr(network, "tokens")):
        raise IncompatibleError(
            "denoiser: MaskedDiffusionLoss needs a network with two heads, such as 'masked-autoencoder'"
        )
    if denoiser.process.endpoint != "none":
        raise IncompatibleError(f"process: {type(denoiser.process).__name__} has an endpoint; expected noise alone")
    assert isinstance(denoiser, NetworkDenoiser)
    head = targets.Data() if getattr(network, "head", "noise") == "data" else targets.Noise()
    told = denoiser.target, denoiser.time, denoiser.input_scale
    if told != (head, "time", "none"):
        raise IncompatibleError(
            f"denoiser: target, time, input_scale: {told} were given; expected {(head, 'time', 'none')}, as the head is trained"
        )
    return network


objectives.BY_NAME[MaskedDiffusionLoss.__name__] = MaskedDiffusionLoss
