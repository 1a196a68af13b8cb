"""Losses of tokens: masked and categorical diffusion, and the next token for autoregressive models."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from tweed.core import random
from tweed.core.denoiser import Denoiser
from tweed.core.processes import CategoricalProcess, MaskedProcess
from tweed.core.time import as_time
from tweed.core.token_denoiser import TokenDenoiser, TokenEstimate, without
from tweed.errors import IncompatibleError, InputError, choose
from tweed.training import objectives, times
from tweed.training.objectives import Batch, conditions
from tweed.training.times import TimeSampler

_EXCHANGED = 0x746F6B  # the stream of a seed that says which tokens are exchanged
_OWN = ("fixed",)


@dataclass(frozen=True)
class TokenLoss:
    """Cross-entropy of the tokens that noise has exchanged, a bound on the negative log likelihood a token.

    - "time-free": n of the L tokens, chosen uniformly, are masked, n uniform in 1 .. L, and the loss is their mean. This is
      the bound below, integrated over time for a network that is told none: `sum_n (1/n) E[sum over masked]`, whatever the
      schedule (Zheng et al., "Masked Diffusion Models are Secretly Time-Agnostic Masked Models", 2024, Prop. 3.1; also the
      bound of any-order autoregressive models).
    - "time": each token is masked on its own, at a time of `times`; the sum over masked tokens has the weight
      `-alpha'(t) / (1 - alpha(t))`, and is divided by L (Sahoo et al., MDLM, 2024, Eq. 10).
    - "plain": the mean over all tokens, seen ones too, without weights, for any categorical process. No bound.

    Tokens that an entry `fixed` of the batch marks are neither exchanged nor counted; a sample that has no others has no
    loss. The other conditions are told to the network.

    Args:
        form: as above.
        times: how times are drawn; "time-free" takes from them `n = ceil(t L)`, so that spread-out times give spread-out n.

    Raises:
        InputError: an unknown form.
    """

    form: Literal["time-free", "time", "plain"] = "time-free"
    times: TimeSampler = field(default_factory=times.Uniform)

    def __post_init__(self):
        choose("form", self.form, ("time-free", "time", "plain"))

    def prepare(
        self, process: Any, batch: Batch, *, seed: int, step: int, offset: int = 0, total: int | None = None
    ) -> dict[str, Tensor]:
        """The batch with a time of each sample, and a uniform number of each token, as `noise`."""
        x = _tokens(process, batch, self.form)
        n = len(x)
        total = total or offset + n
        added: dict[str, Tensor] = {}
        if "t" not in batch:
            added["t"] = self.times(process, total, seed, step)[offset : offset + n].to(x.device)
        if "noise" not in batch:
            first, stream = step * total + offset, random.fold(seed, _EXCHANGED)
            added["noise"] = random.uniform(x.shape, stream, index=first, dtype=torch.float64, device=x.device)
        return {**batch, **added}

    def __call__(self, denoiser: Denoiser, batch: Batch, *, seed: int = 0, step: int = 0) -> Float[Tensor, " b"]:
        """The loss of each sample, nats a token, shape (b,).

        Raises:
            InputError: an entry is missing or of a wrong shape.
            IncompatibleError: the process has no mask, and the form is not "plain"; or the denoiser is none of tokens.
        """
        process: Any = denoiser.process
        batch = self.prepare(process, batch, seed=seed, step=step)
        x0, noise, t = batch["x"], batch["noise"], as_time(batch["t"])
        free = _free(batch)
        if self.form == "plain":
            x, scored = torch.where(free, process.perturb(x0, t, noise), x0), free
        else:
            scored = self._masked(process, noise, t, free)
            x = x0.masked_fill(scored, process.mask)
        told = {name: value for name, value in conditions(process, batch).items() if name not in _OWN}
        estimate: Any = denoiser(x, t, **told)
        if not isinstance(estimate, TokenEstimate):
            raise IncompatibleError(f"denoiser: {type(denoiser).__name__} answers numbers; expected a TokenDenoiser")
        each = _cross_entropy(estimate, x0, scored)
        if self.form == "time":
            weight = -process.alpha_dot(t) / process.sigma(t)
            return weight.to(each) * each.sum(1) / free.sum(1).clamp_min(1)
        return each.sum(1) / scored.sum(1).clamp_min(1)

    def _masked(self, process: CategoricalProcess, noise: Tensor, t: Tensor, free: Tensor) -> Bool[Tensor, "b length"]:
        if self.form == "time":
            return (noise < process.sigma(t)[:, None]) & free
        count = (t * free.sum(1)).ceil().clamp_min(1.0)
        # The `count` smallest of the free ones.
        rank = noise.masked_fill(~free, 2.0).argsort(1).argsort(1)
        return (rank < count[:, None]) & free


def _cross_entropy(estimate: TokenEstimate, x0: Tensor, where: Tensor) -> Float[Tensor, "b length"]:
    # Of the chosen positions alone: there are many columns.
    logits = estimate.logits[where]
    if isinstance(estimate.process, MaskedProcess):
        logits = without(logits, estimate.process.mask)
    wide = torch.promote_types(logits.dtype, torch.float32)
    losses = F.cross_entropy(logits.to(wide), x0[where], reduction="none")
    return torch.zeros(x0.shape, dtype=losses.dtype, device=x0.device).masked_scatter(where, losses)


def _tokens(process: Any, batch: Batch, form: str) -> Tensor:
    if "x" not in batch or batch["x"].ndim != 2 or batch["x"].is_floating_point():
        raise InputError("batch: expected an entry 'x' of tokens, integers of shape (b, length)")
    if not isinstance(process, CategoricalProcess) or (form != "plain" and not isinstance(process, MaskedProcess)):
        kind = "a process of tokens" if form == "plain" else f"a MaskedProcess with the form {form!r}"
        raise IncompatibleError(f"process: {type(process).__name__} was given; expected {kind}")
    return batch["x"]


def _free(batch: Batch) -> Bool[Tensor, "b length"]:
    fixed = batch.get("fixed")
    if fixed is None:
        return torch.ones_like(batch["x"], dtype=torch.bool)
    if fixed.shape != batch["x"].shape or fixed.dtype is not torch.bool:
        raise InputError(
            f"fixed: {fixed.dtype} {tuple(fixed.shape)} was given; expected bool, {tuple(batch['x'].shape)}"
        )
    return ~fixed


@dataclass(frozen=True)
class NextTokenLoss:
    """Cross-entropy of each token given those before it: how an autoregressive model is trained.

    The denoiser is a holder of its causal network; the first token is given. Tokens that `fixed` marks are not counted.
    """

    def prepare(
        self, process: Any, batch: Batch, *, seed: int, step: int, offset: int = 0, total: int | None = None
    ) -> dict[str, Tensor]:
        """The batch as it is: nothing is random."""
        return dict(batch)

    def __call__(self, denoiser: Denoiser, batch: Batch, *, seed: int = 0, step: int = 0) -> Float[Tensor, " b"]:
        """The loss of each sample, nats a token, shape (b,).

        Raises:
            InputError: an entry is missing or of a wrong shape.
            IncompatibleError: the network is not causal.
        """
        if not isinstance(denoiser, TokenDenoiser) or not getattr(denoiser.network, "causal", False):
            raise IncompatibleError("denoiser: NextTokenLoss needs a TokenDenoiser with a causal network")
        x = _tokens(denoiser.process, batch, "plain")
        told = {name: value for name, value in conditions(denoiser.process, batch).items() if name not in _OWN}
        logits = denoiser.network(x, **told)[:, :-1]
        wide = torch.promote_types(logits.dtype, torch.float32)
        each = F.cross_entropy(logits.to(wide).transpose(1, 2), x[:, 1:], reduction="none")
        counted = _free(batch)[:, 1:]
        if "segments" in batch:
            # The first token of a document does not follow from the one before it.
            counted = counted & (batch["segments"][:, 1:] == batch["segments"][:, :-1])
        return (each * counted).sum(1) / counted.sum(1).clamp_min(1)


for _kind in (TokenLoss, NextTokenLoss):
    objectives.BY_NAME[_kind.__name__] = _kind
