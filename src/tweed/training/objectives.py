"""Losses of one network, a number a sample: regression of any target, and the interpolant's quadratic forms.

Everything random in a loss is addressed by (seed, step, row of the batch): the same call gives the same loss, and
micro-batches or processes that hold rows `offset ...` of a batch of `total` see the times and noise that one process
with the whole batch would.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import random, targets
from tweed.core.denoiser import Denoiser
from tweed.core.processes import Process
from tweed.core.targets import Target
from tweed.core.time import as_time, left
from tweed.errors import IncompatibleError, InputError, choose
from tweed.training import couplings, times, weightings
from tweed.training.couplings import Coupling
from tweed.training.times import TimeSampler
from tweed.training.weightings import Weighting

Batch = Mapping[str, Tensor]
_NOISE = 0x72  # the stream of a seed that noise is drawn from
_OWN = ("x", "t", "noise", "weight")


@runtime_checkable
class Objective(Protocol):
    """What `fit` minimises."""

    def prepare(
        self, process: Process, batch: Batch, *, seed: int, step: int, offset: int = 0, total: int | None = None
    ) -> dict[str, Tensor]:
        """The batch with all that is random about it added as entries (`t`, `noise`)."""
        ...

    def __call__(self, denoiser: Denoiser, batch: Batch, *, seed: int = 0, step: int = 0) -> Float[Tensor, " b"]:
        """The loss of each sample; what `prepare` would add is taken from the batch where it is there."""
        ...


def conditions(process: Process, batch: Batch) -> dict[str, Tensor]:
    """What of a batch the network is told: all but the sample, its noise and time, and a drawn endpoint."""
    hidden = (*_OWN, "y") if process.endpoint == "drawn" else _OWN
    return {name: value for name, value in batch.items() if name not in hidden}


def draw(
    process: Process,
    batch: Batch,
    sampler: TimeSampler,
    coupling: Coupling,
    *,
    seed: int,
    step: int,
    offset: int = 0,
    total: int | None = None,
) -> dict[str, Tensor]:
    """The batch with `t` (float64, shape (b,)) and `noise` (shape of `x`) added where they are missing, and coupled.

    On a two-sided interpolant the coupling pairs `x` with the other end `y`, elsewhere `x` with the noise. Noise that
    was given is taken as it is.

    Raises:
        InputError: no `x`, rows outside of the batch, or no `y` where the process needs one.
    """
    if "x" not in batch:
        raise InputError(f"batch: the entries {sorted(batch)} were given; expected 'x', shape (b, *event)")
    x = batch["x"]
    rows, total = len(x), total or offset + len(x)
    if offset + rows > total:
        raise InputError(f"total: {total} was given; expected at least {offset + rows}, the last row of this batch")
    if process.endpoint != "none" and "y" not in batch:
        raise InputError(f"batch: {type(process).__name__} has an endpoint; expected an entry 'y' like 'x'")
    added: dict[str, Tensor] = {}
    if "t" not in batch:
        added["t"] = sampler(process, total, seed, step)[offset : offset + rows].to(x.device)
    if "noise" not in batch:
        first = step * total + offset
        noise = random.normal(x.shape, random.fold(seed, _NOISE), index=first, dtype=_noise_dtype(x), device=x.device)
        if process.endpoint != "drawn":
            permutation = coupling.pair(x, noise, batch.get("label"))
            noise = noise if permutation is None else noise[permutation]
        added["noise"] = noise
    if process.endpoint == "drawn":
        permutation = coupling.pair(x, batch["y"], batch.get("label"))
        if permutation is not None:
            added["y"] = batch["y"][permutation]
    return {**batch, **added}


def _noise_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _with(batch: Batch, t: Tensor | None, noise: Tensor | None) -> dict[str, Tensor]:
    given = {name: value for name, value in (("t", t), ("noise", noise)) if value is not None}
    return {**batch, **given}


@dataclass(frozen=True)
class DenoisingLoss:
    """Weighted regression of a target: denoising score matching, flow matching, EDM, v-prediction ...

    The network's answer at `x_t = alpha x_0 + beta y + sigma eps`, read as `target`, is compared with
    `row . (x_0, eps, y)`. Its minimiser is the conditional mean of the target, whatever the weights (Vincent, "A
    Connection Between Score Matching and Denoising Autoencoders", 2011). Squared errors are averaged over the event.

    Args:
        target: what is compared; None for what the network answers.
        weighting: the weight at each time, stated independently of the target; `Uniform()` is the plain regression.
        times: how training times are drawn.
        coupling: which noise goes with which sample; on a two-sided interpolant which `y`.
        loss: "l2", or "huber": `sqrt(|e|^2 + c^2) - c` of the whole sample's error, `c = huber sqrt(dimension)` (Song
            & Dhariwal, "Improved Techniques for Training Consistency Models", ICLR 2024, Section 3.3).
        huber: the factor in `c`.

    Raises:
        InputError: an unknown loss, or `huber` is not positive.
    """

    target: Target | None = None
    weighting: Weighting = field(default_factory=weightings.Uniform)
    times: TimeSampler = field(default_factory=times.Uniform)
    coupling: Coupling = field(default_factory=couplings.Independent)
    loss: Literal["l2", "huber"] = "l2"
    huber: float = 0.00054

    def __post_init__(self):
        choose("loss", self.loss, ("l2", "huber"))
        if not self.huber > 0.0:
            raise InputError(f"huber: {self.huber} was given; expected a positive number")

    def prepare(self, process, batch, *, seed, step, offset=0, total=None):
        """The batch with times and noise; see `draw`."""
        return draw(process, batch, self.times, self.coupling, seed=seed, step=step, offset=offset, total=total)

    def __call__(
        self,
        denoiser: Denoiser,
        batch: Batch,
        *,
        seed: int = 0,
        step: int = 0,
        t: Float[Tensor, "b *length"] | None = None,
        noise: Float[Tensor, "b *event"] | None = None,
    ) -> Float[Tensor, " b"]:
        """The loss of each sample, float32 or better, shape (b,).

        Args:
            denoiser: whatever is trained.
            batch: `x` (b, *event), the endpoint `y` where the process has one, conditions; `t` and `noise` if given.
            seed, step: the address of times and noise.
            t, noise: given ones, so that several networks can be compared at the same (t, eps).

        Raises:
            InputError: an entry is missing or of a wrong shape.
            IncompatibleError: a weighting or target that the process does not allow.
        """
        process = denoiser.process
        batch = self.prepare(process, _with(batch, t, noise), seed=seed, step=step)
        x0, eps, y = batch["x"], batch["noise"], batch.get("y")
        t = as_time(batch["t"])
        estimate = denoiser(process.perturb(x0, t, eps, y), t, **conditions(process, batch))
        wanted = self.target or estimate.target
        answer = estimate.to(wanted)
        row = wanted.row(process, t)
        truth = left(row.data, answer) * x0 + left(row.noise, answer) * eps
        if process.endpoint != "none" and y is not None:
            truth = truth + left(row.endpoint, answer) * y
        error = (answer - truth).abs().square()
        weight = left(self.weighting.weight(process, wanted, t), error)
        if self.loss == "l2":
            return (weight * error).flatten(1).mean(1)
        c = self.huber * max(error[0].numel() if len(error) else 1, 1) ** 0.5
        return (weight * error).flatten(1).sum(1).add(c**2).sqrt() - c


def flow_matching(coupling: Coupling | None = None, sampler: TimeSampler | None = None) -> DenoisingLoss:
    """Regression of the path's velocity, weight 1 (Lipman et al., "Flow Matching for Generative Modeling", 2023)."""
    return DenoisingLoss(
        target=targets.Velocity(),
        times=sampler or times.Uniform(),
        coupling=coupling or couplings.Independent(),
    )


@dataclass(frozen=True)
class InterpolantLoss:
    """The quadratic losses of stochastic interpolants: Albergo, Boffi & Vanden-Eijnden (2023), Theorems 7 and 8.

    With `I = alpha x_0 + beta x_1` and `x_t = I + sigma z`: velocity `|b|^2 / 2 - (I' + sigma' z) . b`, noise
    `|eta|^2 / 2 - z . eta`, score `|s|^2 / 2 + z . s / sigma`, each averaged over the event. The minimisers are those
    of the plain regressions; the values may be negative (at the minimum: minus half the mean square of the field).

    Args:
        kind: which field is learned; "both" is velocity and noise, as `InterpolantDenoiser` holds.
        antithetic: average over `z` and `-z` at the same (t, x_0, x_1). The variance stays finite at the ends, where
            `sigma'` does not.
        times, coupling: as for `DenoisingLoss`.

    Raises:
        InputError: an unknown kind.
    """

    kind: Literal["velocity", "noise", "score", "both"] = "velocity"
    antithetic: bool = True
    times: TimeSampler = field(default_factory=times.Uniform)
    coupling: Coupling = field(default_factory=couplings.Independent)

    def __post_init__(self):
        choose("kind", self.kind, ("velocity", "noise", "score", "both"))

    def prepare(self, process, batch, *, seed, step, offset=0, total=None):
        """The batch with times and noise; see `draw`."""
        return draw(process, batch, self.times, self.coupling, seed=seed, step=step, offset=offset, total=total)

    def __call__(
        self,
        denoiser: Denoiser,
        batch: Batch,
        *,
        seed: int = 0,
        step: int = 0,
        t: Float[Tensor, " b"] | None = None,
        noise: Float[Tensor, "b *event"] | None = None,
    ) -> Float[Tensor, " b"]:
        """The loss of each sample, shape (b,); arguments as for `DenoisingLoss`.

        Raises:
            InputError: an entry is missing or of a wrong shape.
            IncompatibleError: the noise or score of an interpolant without latent noise.
        """
        process = denoiser.process
        batch = self.prepare(process, _with(batch, t, noise), seed=seed, step=step)
        time = as_time(batch["t"])
        if self.kind != "velocity" and getattr(process, "latent", "") == "none" and process.endpoint == "drawn":
            raise IncompatibleError(f"kind: {self.kind!r} was given for an interpolant without latent noise")
        signs = (1.0, -1.0) if self.antithetic else (1.0,)
        parts = [self._half(denoiser, batch, time, sign) for sign in signs]
        return torch.stack(parts).mean(0)

    def _half(self, denoiser: Denoiser, batch: Batch, t: Tensor, sign: float) -> Float[Tensor, " b"]:
        process = denoiser.process
        x0, z, y = batch["x"], sign * batch["noise"], batch.get("y")
        estimate = denoiser(process.perturb(x0, t, z, y), t, **conditions(process, batch))
        loss = torch.zeros(len(x0), dtype=z.dtype, device=x0.device)
        if self.kind in ("velocity", "both"):
            speed = left(process.alpha_dot(t), x0) * x0 + left(process.sigma_dot(t), z) * z
            if y is not None and process.endpoint != "none":
                speed = speed + left(process.beta_dot(t), y) * y
            loss = loss + _quadratic(estimate.velocity, speed)
        if self.kind in ("noise", "both"):
            loss = loss + _quadratic(estimate.eps, z)
        if self.kind == "score":
            loss = loss + _quadratic(estimate.score, -z / left(process.sigma(t), z))
        return loss


def _quadratic(field_value: Tensor, truth: Tensor) -> Float[Tensor, " b"]:
    return (0.5 * field_value.square() - truth * field_value).flatten(1).mean(1)


BY_NAME: dict[str, type[Objective]] = {kind.__name__: kind for kind in (DenoisingLoss, InterpolantLoss)}
"""Every objective by the name that configurations use."""
