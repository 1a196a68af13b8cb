"""Draws of tokens, in float64: a draw in float32 is one from another law, see `tweed.tokens.truncation`."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tweed.core import random
from tweed.errors import InputError

_GUMBEL = 0x67756D  # the stream of a seed that Gumbel noise is drawn from


def draw_tokens(log_probs: Float[Tensor, "*b size"], u: Float[Tensor, "*b"]) -> Int[Tensor, "*b"]:
    """A token for each row, by inversion: the first whose cumulated probability exceeds `u`, uniform in (0, 1).

    Probabilities need not be normalised; they are computed and summed in float64.

    Raises:
        InputError: shapes do not fit.
    """
    if u.shape != log_probs.shape[:-1]:
        raise InputError(f"u: shape {tuple(u.shape)} was given; expected a number a row, {tuple(log_probs.shape[:-1])}")
    wide = log_probs.double()
    cumulated = (wide - wide.amax(-1, keepdim=True)).exp_().cumsum(-1)
    at = u.double()[..., None] * cumulated[..., -1:]
    # On the right: a token of no probability is never the first to exceed.
    return torch.searchsorted(cumulated, at, right=True)[..., 0].clamp_max(log_probs.shape[-1] - 1)


def gumbel_tokens(probs: Float[Tensor, "b length size"], seed: int, index: int, step: int) -> Int[Tensor, "b length"]:
    """A token for each position, by the largest of `log p + g` with Gumbel noise `g = -log(-log u)`, in the type of `probs`.

    In float64 that is a draw from `probs`. In float32 it is the published fault: u is a multiple of 2^-24, as torch makes it,
    so that g is never above 24 log 2 = 16.6, see `tweed.tokens.truncation`.
    """
    u = random.uniform(
        probs.shape, random.fold(seed, _GUMBEL), index=index, draw=step, dtype=torch.float64, device=probs.device
    )
    if probs.dtype == torch.float32:
        u = (u * 2.0**24).floor_().mul_(2.0**-24).float()
    noise = -(-u.log()).log()
    return (probs.log() + noise).argmax(-1)
