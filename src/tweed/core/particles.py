"""Weighted particles: effective sample size, and resampling that never favours a particle by more than one child."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def effective_size(log_weights: Float[Tensor, "n *b"]) -> Float[Tensor, "*b"]:
    """`(sum w)^2 / sum w^2` over the first axis, from 1 to n (Kish, 1965)."""
    return (2.0 * log_weights.logsumexp(0) - (2.0 * log_weights).logsumexp(0)).exp()


def systematic(log_weights: Float[Tensor, "n b"], u: Float[Tensor, " b"]) -> Int[Tensor, "n b"]:
    """Systematic resampling (Carpenter, Clifford & Fearnhead, 1999): the parents of n new particles, for each of b sets.

    Particle i has `n w_i` children, rounded up or down.

    Args:
        log_weights: not necessarily normalised.
        u: uniform numbers in (0, 1), one a set.
    """
    n = len(log_weights)
    cumulative = log_weights.double().softmax(0).cumsum(0)
    points = (torch.arange(n, dtype=torch.float64, device=u.device)[:, None] + u.double()) / n
    return torch.searchsorted(cumulative.T.contiguous(), points.T.contiguous()).clamp_max(n - 1).T
