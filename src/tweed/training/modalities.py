"""The loss of several modalities in one diffusion variable: the noise of their aggregate, and what each head says.

Chen et al., "Diffusion Models for Multi-Task Generative Modeling" (ICLR 2024, arXiv 2407.17571), the simple form of its bound.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from tweed.core import random
from tweed.core.aggregate import Aggregate
from tweed.core.denoiser import Denoiser, Wrapper
from tweed.core.modalities import ModalEstimate
from tweed.core.processes import Process
from tweed.core.time import as_time
from tweed.errors import IncompatibleError, InputError, choose
from tweed.training import objectives
from tweed.training.objectives import Batch, DenoisingLoss

_PRESENT, _TOLD = 0x74, 0x75  # streams of a seed


@dataclass(frozen=True)
class MultiModalLoss:
    """`L(e) + sum_i weight_i rho(t) l_i(D_i, x_i)`, over ALL modalities, those that were dropped from e too.

    e is the aggregate of the modalities that are present. L is any denoising loss of it; l is the squared error averaged over
    the modality, or the cross entropy of a label. Heads of dropped modalities learn to infer one from another.

    The batch holds one entry a modality; `x`, which every data set has, is the first of the denoiser's.

    **Encoders that are learned** get the gradient of the heads only: with that of L they would shrink the aggregate to what
    is easiest to denoise, nothing. A second evaluation of the network sees to it, where an encoder has a gradient.

    Args:
        weights: name -> weight; 1 for a modality that is not named. Choose that of a label such that its gradient is
            comparable, since a cross entropy is no mean over the elements of an image.
        dropout: the probability of each modality to be left out of e; at least one stays.
        tell: the share of the samples for which the network is told some of the modalities, each with probability 1/2, as it
            will be for conditional sampling; only for networks that can be.
        rho: "one", or "signal": `alpha^2 / (alpha^2 + sigma^2)`, less where the state says little.
        noise: the loss of the aggregate.

    Raises:
        InputError: a number is out of its range, or (on use) the batch lacks a modality.
        IncompatibleError: (on use) the denoiser does not answer modalities.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    dropout: float = 0.2
    tell: float = 0.0
    rho: Literal["one", "signal"] = "one"
    noise: DenoisingLoss = field(default_factory=DenoisingLoss)

    def __post_init__(self):
        choose("rho", self.rho, ("one", "signal"))
        if not (0.0 <= self.dropout < 1.0 and 0.0 <= self.tell <= 1.0):
            raise InputError(f"dropout, tell: {self.dropout}, {self.tell} were given; expected [0, 1) and [0, 1]")
        if not all(weight >= 0.0 for weight in self.weights.values()):
            raise InputError(f"weights: {dict(self.weights)} were given; expected numbers, at least 0")

    def prepare(
        self, process: Process, batch: Batch, *, seed: int, step: int, offset: int = 0, total: int | None = None
    ) -> dict[str, Tensor]:
        """The batch with the numbers that decide what is dropped and told, and the times, added where they are missing.

        The noise has the shape of the aggregate, which only the denoiser knows: `place` addresses it.
        """
        rows = len(next(iter(batch.values())))
        total = total or offset + rows
        batch = dict(batch)
        if "t" not in batch:
            batch["t"] = self.noise.times(process, total, seed, step)[offset : offset + rows]
        if "place" not in batch:
            batch["place"] = torch.arange(rows) + (step * total + offset)
        device = next(iter(batch.values())).device
        return {name: value.to(device) for name, value in batch.items()}

    def __call__(self, denoiser: Denoiser, batch: Batch, *, seed: int = 0, step: int = 0) -> Float[Tensor, " b"]:
        """The loss of each sample, float32 or better, shape (b,)."""
        return sum(self.parts(denoiser, batch, seed=seed, step=step).values(), torch.zeros(()))

    def parts(
        self, denoiser: Denoiser, batch: Batch, *, seed: int = 0, step: int = 0
    ) -> dict[str, Float[Tensor, " b"]]:
        """What the loss is the sum of: "noise", and each modality's share, weights included."""
        aggregate = getattr(denoiser, "aggregate", None)
        if not isinstance(aggregate, Aggregate):
            raise IncompatibleError(
                f"denoiser: {type(denoiser).__name__} has no modalities; expected one such as ModalNetwork"
            )
        batch = self.prepare(denoiser.process, batch, seed=seed, step=step)
        first = aggregate.names[0]
        truth = {name: batch[name] for name in aggregate.names if name in batch}
        truth = truth if first in truth or "x" not in batch else {first: batch["x"], **truth}
        if len(truth) != len(aggregate.names):
            raise InputError(
                f"batch: the entries {sorted(batch)} were given; expected {aggregate.names} (or 'x' for the first)"
            )
        place, t = batch["place"], as_time(batch["t"])
        present = batch.get("present", self._present(place, len(truth), seed))
        e = aggregate(truth, present)
        cond: dict[str, Tensor] = {"present": present}
        if self.tell > 0.0:
            cond |= {**truth, "told": self._told(place, len(truth), seed)}
        noise = batch.get("noise")
        if noise is None:
            dtype = torch.promote_types(e.dtype, torch.float32)
            noise = random.normal(
                e.shape, random.fold(seed, objectives._NOISE), index=place, dtype=dtype, device=e.device
            )
        heard = _Heard(denoiser)
        found = {"noise": self.noise(heard, {**cond, "x": e.detach(), "t": t, "noise": noise})}
        estimate = heard.last
        if e.requires_grad:
            estimate = denoiser(denoiser.process.perturb(e, t, noise), t, **cond)
        if not isinstance(estimate, ModalEstimate):
            raise IncompatibleError(f"denoiser: it answered {type(estimate).__name__}; expected a ModalEstimate")
        rho = self._rho(denoiser.process, t).to(e)
        for name, x in truth.items():
            answer = estimate.modalities[name]
            if name in aggregate.classes:
                error = F.cross_entropy(answer.to(noise.dtype), x.long(), reduction="none")
            else:
                error = (answer.to(noise.dtype) - x).square().flatten(1).mean(1)
            found[name] = self.weights.get(name, 1.0) * rho * error
        return found

    def _rho(self, process: Process, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return torch.ones_like(t) if self.rho == "one" else torch.sigmoid(2.0 * process.log_snr(t))

    def _present(self, place: Tensor, count: int, seed: int) -> Bool[Tensor, "b n"]:
        """Each with probability `1 - dropout`; where a row would have none, one that is drawn evenly stays."""
        u = random.uniform((len(place), count), random.fold(seed, _PRESENT), index=place, device=place.device)
        present = u >= self.dropout
        return present | (~present.any(1, keepdim=True) & (u == u.amax(1, keepdim=True)))

    def _told(self, place: Tensor, count: int, seed: int) -> Bool[Tensor, "b n"]:
        u = random.uniform((len(place), count + 1), random.fold(seed, _TOLD), index=place, device=place.device)
        return (u[:, :1] < self.tell) & (u[:, 1:] < 0.5)


class _Heard(Wrapper):
    """Keeps the estimate that an inner loss asked for, so that heads are read from the same evaluation."""

    last: object = None

    def forward(self, x, t, **cond):
        self.last = self.denoiser(x, t, **cond)
        return self.last
