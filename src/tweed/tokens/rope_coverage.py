"""Which rotary phases training has shown: why bidirectional models read on where causal ones break off."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tweed.errors import InputError

F64 = torch.float64


@dataclass(frozen=True, eq=False)
class RopeCoverage:
    """Ranges over the relative positions of training, a row a pair of features, the fastest first; float64.

    Attributes:
        angle: the lowest and the highest angle, radians.
        cos, sin: the lowest and the highest of each.
    """

    angle: Float[Tensor, "pairs 2"]
    cos: Float[Tensor, "pairs 2"]
    sin: Float[Tensor, "pairs 2"]

    @property
    def both_signs(self) -> Bool[Tensor, " pairs"]:
        """Whether the sine was seen on both sides of zero."""
        return (self.sin[:, 0] < 0.0) & (self.sin[:, 1] > 0.0)

    @property
    def turned(self) -> Float[Tensor, " pairs"]:
        """The share of the circle that was passed, at most 1."""
        return ((self.angle[:, 1] - self.angle[:, 0]) / (2.0 * math.pi)).clamp_max(1.0)


def rope_coverage(base: float, head_dim: int, train_len: int, causal: bool) -> RopeCoverage:
    """What a model sees of each pair while it is trained on `train_len` positions.

    A causal model sees the relative positions `0 ... T - 1`, a bidirectional one `-(T - 1) ... T - 1`: both signs of every
    sine, and each circle at half the length (LongLLaDA, 2025, arXiv 2506.14429, Section 3).

    Args:
        base, head_dim: of the rotary positions; pair j turns by `base^(-2 j / head_dim)` a position.
        train_len: T.
        causal: whether a token sees those before it alone.

    Raises:
        InputError: a base that is not positive, an odd number of features, or no positions.
    """
    if not base > 0.0:
        raise InputError(f"base: {base} was given; expected a positive number")
    if head_dim < 2 or head_dim % 2:
        raise InputError(f"head_dim: {head_dim} was given; expected an even number of features")
    if train_len < 1:
        raise InputError(f"train_len: {train_len} was given; expected at least 1 position")
    pairs = torch.arange(head_dim // 2, dtype=F64)
    speeds = base ** (-2.0 * pairs / head_dim)
    positions = torch.arange(0 if causal else 1 - train_len, train_len, dtype=F64)
    angles = speeds[:, None] * positions
    return RopeCoverage(*(_range(each) for each in (angles, angles.cos(), angles.sin())))


def _range(values: Float[Tensor, "pairs positions"]) -> Float[Tensor, "pairs 2"]:
    return torch.stack((values.amin(1), values.amax(1)), 1)
