"""How sure a prediction of a token is: functions of the logits and the token; larger is surer."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Confidence = Callable[[Float[Tensor, "b n size"], Int[Tensor, "b n"], Float[Tensor, "b n"]], Float[Tensor, "b n"]]
"""`(log_probs, tokens, u)`, with uniform numbers `u` for those that draw."""


def probability(log_probs: Tensor, tokens: Tensor, u: Tensor) -> Tensor:
    """The probability of the token."""
    return log_probs.gather(-1, tokens[..., None])[..., 0].exp()


def margin(log_probs: Tensor, tokens: Tensor, u: Tensor) -> Tensor:
    """The largest probability minus the second largest (Kim et al., "Train for the Worst, Plan for the Best", 2025)."""
    top = log_probs.topk(min(2, log_probs.shape[-1]), -1).values.exp()
    return top[..., 0] - (top[..., 1] if top.shape[-1] > 1 else 0.0)


def entropy(log_probs: Tensor, tokens: Tensor, u: Tensor) -> Tensor:
    """The negative entropy of the law (Dream, Ye et al., 2025), nats."""
    probs = log_probs.exp()
    return (probs * log_probs.masked_fill(probs == 0.0, 0.0)).sum(-1)


def random(log_probs: Tensor, tokens: Tensor, u: Tensor) -> Tensor:
    """No opinion: positions in random order."""
    return u.to(torch.promote_types(log_probs.dtype, torch.float32))


BY_NAME: dict[str, Confidence] = {
    "probability": probability,
    "margin": margin,
    "entropy": entropy,
    "random": random,
}
"""Every confidence by its name."""
