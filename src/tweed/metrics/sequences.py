"""What sequences of tokens are like: their variety, and how likely another model finds them."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tweed.errors import InputError


def sequence_entropy(x: Int[Tensor, "n length"]) -> Float[Tensor, " n"]:
    """The entropy of each sequence's own histogram of tokens, nats: low where it repeats itself.

    A low perplexity under another model is worth something only beside it (Zheng et al., 2025, Section 5).

    Raises:
        InputError: not tokens of shape (n, length), length > 0.
    """
    _check(x)
    ordered = x.sort(1).values
    starts = torch.ones_like(x, dtype=torch.bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    group = starts.long().cumsum(1) - 1
    counts = torch.zeros(x.shape, dtype=torch.float64, device=x.device).scatter_add_(
        1, group, torch.ones(x.shape, dtype=torch.float64, device=x.device)
    )
    shares = counts / x.shape[1]
    return -torch.special.xlogy(shares, shares).sum(1)


def distinct(x: Int[Tensor, "n length"], n: int = 2) -> float:
    """The share of different n-grams among all of a set of sequences (Li et al., 2016).

    Raises:
        InputError: not tokens of shape (m, length), or `n` is not in 1 .. length.
    """
    _check(x)
    if not 1 <= n <= x.shape[1]:
        raise InputError(f"n: {n} was given; expected 1 .. {x.shape[1]}")
    grams = x.unfold(1, n, 1).reshape(-1, n)
    return len(grams.unique(dim=0)) / len(grams) if len(grams) else 0.0


def generative_perplexity(
    x: Int[Tensor, "n length"], next_log_probs: Callable[[Tensor], Float[Tensor, "n length size"]]
) -> float:
    """`exp` of the mean negative log probability of each token but the first, under another model.

    Args:
        next_log_probs: at each position the log probabilities of the token after it.

    Raises:
        InputError: not tokens of shape (n, length), length > 1.
    """
    _check(x)
    if x.shape[1] < 2 or len(x) == 0:
        raise InputError(f"x: shape {tuple(x.shape)} was given; expected sequences of at least two tokens")
    laws = next_log_probs(x)[:, :-1].double()
    return (-laws.gather(-1, x[:, 1:, None]).mean()).exp().item()


def _check(x: Tensor) -> None:
    if x.ndim != 2 or x.shape[1] == 0 or x.is_floating_point():
        raise InputError(f"x: {x.dtype} {tuple(x.shape)} was given; expected tokens, integers of shape (n, length)")
