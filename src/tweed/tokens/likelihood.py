"""Bounds on the likelihood of tokens under masked diffusion."""

import itertools
import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tweed.core.denoiser import Denoiser
from tweed.errors import InputError
from tweed.training.token_losses import TokenLoss


class TokenBound(NamedTuple):
    """An upper bound on the negative log likelihood.

    Attributes:
        nats: a token, of each sequence, (b,).
        error: the standard error of the mean over all sequences that comes from the draws; 0 for an exact sum.
    """

    nats: Float[Tensor, " b"]
    error: float

    @property
    def mean(self) -> float:
        """Over the sequences, nats a token."""
        return self.nats.mean().item()

    @property
    def perplexity(self) -> float:
        """`exp` of the mean."""
        return math.exp(self.mean)


@torch.no_grad()
def likelihood_bound(
    denoiser: Denoiser,
    x: Int[Tensor, "b length"],
    *,
    fixed: Bool[Tensor, "b length"] | None = None,
    draws: int = 64,
    seed: int = 0,
    batch: int = 256,
    **cond: Tensor,
) -> TokenBound:
    """The time-free bound by Monte Carlo: `-log p(x) / L <= mean over n of E[mean cross-entropy of n masked tokens]`.

    Zheng et al. (2025), Prop. 3.1. The numbers of masks are spread evenly over the draws of a sequence.

    Args:
        fixed: tokens that are given: the bound is of the others, given them, and a token of these.
        draws: of each sequence.
        batch: rows of an evaluation.
        cond: further conditions of the network, a row a sequence.

    Raises:
        InputError: no sequences or draws.
    """
    if len(x) == 0 or draws < 1:
        raise InputError(f"x, draws: {len(x)} sequences and {draws} draws were given; expected at least one of each")
    loss, each = TokenLoss(), []
    told = {**cond, **({} if fixed is None else {"fixed": fixed})}
    for row in range(len(x)):
        whole = {"x": x[row : row + 1].expand(draws, -1)}
        whole |= {name: value[row : row + 1].expand(draws, *value.shape[1:]) for name, value in told.items()}
        parts = []
        for first in range(0, draws, batch):
            piece = {name: value[first : first + batch] for name, value in whole.items()}
            piece = loss.prepare(denoiser.process, piece, seed=seed, step=row, offset=first, total=draws)
            parts.append(loss(denoiser, piece, seed=seed, step=row))
        each.append(torch.cat(parts))
    values = torch.stack(each).double()
    spread = values.var(1) if draws > 1 else torch.full((len(x),), math.inf)
    return TokenBound(values.mean(1), (spread.sum() / draws).sqrt().item() / len(x))


@torch.no_grad()
def exact_bound(
    denoiser: Denoiser,
    x: Int[Tensor, "b length"],
    limit: int = 12,
    *,
    fixed: Bool[Tensor, "b length"] | None = None,
    **cond: Tensor,
) -> TokenBound:
    """The same bound as a sum over all sets of masks, `2^length - 1` of them; of a network that is told no time.

    Args:
        limit: the most tokens that are masked in some row.
        fixed, cond: as for `likelihood_bound`; a sequence with nothing left has the bound 0.

    Raises:
        InputError: no sequences, more tokens than `limit`, or `fixed` of another shape.
    """
    free = torch.ones_like(x, dtype=torch.bool) if fixed is None else ~fixed.to(torch.bool)
    if free.shape != x.shape or len(x) == 0:
        raise InputError(f"x, fixed: shapes {tuple(x.shape)}, {tuple(free.shape)} were given; expected one, not empty")
    columns = free.any(0).nonzero()[:, 0].tolist()
    if len(columns) > limit:
        raise InputError(
            f"x: {len(columns)} tokens were given; expected at most {limit}, for a sum over all sets of masks"
        )
    process: Any = denoiser.process
    counts = free.sum(1)
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for n in range(1, len(columns) + 1):
        # Of a row's own sets of n masks, each is as likely.
        weight = 1.0 / torch.tensor([max(1, math.comb(m, n)) for m in counts.tolist()], dtype=torch.float64)
        for places in map(list, itertools.combinations(columns, n)):
            own = free[:, places].all(1)
            hidden = x.clone()
            hidden[:, places] = process.mask
            estimate: Any = denoiser(hidden, 1.0, **cond)
            law = estimate.log_probs(torch.float64)[:, places].gather(-1, x[:, places, None])[..., 0]
            total -= torch.where(own, law.mean(1) * weight.to(x.device), 0.0)
    return TokenBound(total / counts.clamp_min(1), 0.0)
