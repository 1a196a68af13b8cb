"""Sparse experts that are chosen by the time alone, and mask the input of a block softly.

Park et al., "Switch Diffusion Transformer: Synergizing Denoising Tasks with Sparse Mixture-of-Experts" (ECCV 2024, arXiv
2403.09176). Noise levels that choose the same experts share parameters; which do is what the prior of
`tweed.training.expert_prior` says.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tweed.errors import InputError
from tweed.nets.registry import fill


def chosen(probabilities: Float[Tensor, "*b m"], active: int) -> Float[Tensor, "*b m"]:
    """One for the `active` experts of the largest probabilities, zero for the rest."""
    best = probabilities.topk(active, dim=-1).indices
    return torch.zeros_like(probabilities).scatter(-1, best, 1.0)


class TimeExperts(nn.Module):
    """The soft mask `1 + sum_j g_j (E_j h + b_j)` of tokens h: linear maps E_j, gates g_j that depend on the time only.

    The gates are `softmax(W e + c)` for an embedding e of the time, without what a label adds to it; all but the `active`
    largest are set to zero, and the rest is not normalised again. The experts start at zero, so the mask at one.

    Where the time is one a sample, the gates are too, and the chosen experts are merged into one map a sample before the
    tokens are touched: `M C^2` operations a sample and `C^2` a token, rather than `active C^2` a token, in two batched
    products and whatever the times are. (To merge once for samples of equal times would save the first part only.) A
    time a token leaves nothing to merge: then the tokens are scaled by their gates, and all experts are one product.

    Args:
        features: of a token, and of the embedding.
        count: M, the number of experts.
        active: how many of them a time has.

    Raises:
        InputError: fewer than one active expert, or more than there are.
    """

    def __init__(self, features: int, count: int, active: int):
        super().__init__()
        if not 1 <= active <= count:
            raise InputError(f"active: {active} of {count} experts was given; expected at least 1, at most all")
        self.active = active
        self.gate = nn.Linear(features, count)
        self.weight = nn.Parameter(torch.zeros(count, features, features))  # expert, output, input
        self.bias = nn.Parameter(torch.zeros(count, features))

    def reset(self, draws: torch.Generator) -> None:
        """Sets the experts to zero."""
        for parameter in (self.weight, self.bias):
            fill(parameter, torch.zeros(parameter.shape))

    def probabilities(self, embedding: Float[Tensor, "*b d"]) -> Float[Tensor, "*b m"]:
        """All gates before the choice, float32 or better; `embedding` has been through its nonlinearity already."""
        logits = self.gate(embedding)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)

    def gates(self, embedding: Float[Tensor, "*b d"]) -> Float[Tensor, "*b m"]:
        """The gates after the choice, in the precision of the experts."""
        probabilities = self.probabilities(embedding)
        return (probabilities * chosen(probabilities, self.active)).to(self.weight.dtype)

    def merged(self, gates: Float[Tensor, "b m"]) -> tuple[Float[Tensor, "b d d"], Float[Tensor, "b d"]]:
        """`sum_j g_j E_j` and `sum_j g_j b_j`: the one linear map that the experts are at each of these gates."""
        return (gates @ self.weight.flatten(1)).unflatten(-1, self.weight.shape[1:]), gates @ self.bias

    def forward(self, h: Float[Tensor, "b n d"], embedding: Float[Tensor, "b #n d"]) -> Float[Tensor, "b n d"]:
        """The mask of the tokens `h`, for the embedded time of each sample, (b, 1, d), or of each token."""
        gates = self.gates(embedding)
        if embedding.shape[1] == 1:
            weight, bias = self.merged(gates[:, 0])
            return (1 + bias[:, None] + h @ weight.mT).to(h.dtype)
        scaled = (gates[..., None] * h[..., None, :]).flatten(-2)
        return (1 + gates @ self.bias + scaled @ self.weight.mT.flatten(0, 1)).to(h.dtype)


@dataclass(frozen=True)
class GateStatistics:
    """How experts are used over a set of times.

    Attributes:
        load: (depth, m), the share of the times at which each expert is among the chosen; a block's sum to `active`.
        mean: (depth, m), mean probability of each expert before the choice; a block's sum to 1.
        entropy: (depth,), mean entropy of the probabilities, in nats, from 0 to log m.
    """

    load: Float[Tensor, "depth m"]
    mean: Float[Tensor, "depth m"]
    entropy: Float[Tensor, " depth"]


def gate_statistics(probabilities: Float[Tensor, "t depth m"], active: int) -> GateStatistics:
    """Statistics of the probabilities that `DiT.gate_probabilities` gives at some times.

    Raises:
        InputError: another shape, no times, or `active` is out of its range.
    """
    if probabilities.ndim != 3 or not len(probabilities):
        raise InputError(
            f"probabilities: shape {tuple(probabilities.shape)} was given; expected (times, depth, experts)"
        )
    if not 1 <= active <= probabilities.shape[-1]:
        raise InputError(f"active: {active} was given; expected 1 to {probabilities.shape[-1]}")
    entropy = -torch.special.xlogy(probabilities, probabilities).sum(-1).mean(0)
    return GateStatistics(chosen(probabilities, active).mean(0), probabilities.mean(0), entropy)
