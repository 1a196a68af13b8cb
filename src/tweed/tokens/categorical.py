"""Draws of tokens, in float64: a draw in float32 is one from another law, see `tweed.recipes.first_hitting`."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tweed.errors import InputError


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
