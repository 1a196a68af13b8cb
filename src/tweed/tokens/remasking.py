"""Which tokens are masked again after all were filled: immutable values."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Filled(NamedTuple):
    """A block whose masks have all just been filled.

    Attributes:
        confidence: of the tokens filled now, larger is surer; (b, n).
        running: of each token, when it was last filled; (b, n).
        masked: which were masked before.
        free: which were masked when the block began: all but prompts and other tokens given.
    """

    confidence: Float[Tensor, "b n"]
    running: Float[Tensor, "b n"]
    masked: Bool[Tensor, "b n"]
    free: Bool[Tensor, "b n"]


class Remasking(ABC):
    """How candidates for a new mask are told and ranked."""

    @abstractmethod
    def rank(self, filled: Filled) -> tuple[Float[Tensor, "b n"], Bool[Tensor, "b n"]]:
        """A score of each token, those of the lowest score are masked first, and which may be masked at all."""

    def choose(self, filled: Filled, count: Int[Tensor, " b"]) -> Bool[Tensor, "b n"]:
        """The `count` candidates of the lowest score of each row; the left ones among equals."""
        score, allowed = self.rank(filled)
        order = score.masked_fill(~allowed, torch.inf).argsort(dim=1, stable=True)
        first = torch.arange(score.shape[1], device=score.device) < count[:, None]
        return torch.zeros_like(allowed).scatter(1, order, first) & allowed


@dataclass(frozen=True)
class LowConfidence(Remasking):
    """The least sure of those just filled: what was kept once is kept for good (LLaDA, Nie et al., 2025, Algorithm 5)."""

    def rank(self, filled: Filled) -> tuple[Tensor, Tensor]:
        """The present confidence, of what was masked."""
        return filled.confidence, filled.masked


@dataclass(frozen=True)
class RunningConfidence(Remasking):
    """The least sure of all, each by its confidence when it was filled: an early token may be taken back.

    RCR of "MDPO: Overcoming the Training-Inference Divide of Masked Diffusion Language Models" (2025, arXiv 2508.13148);
    within the block, so that earlier blocks stay final. It costs no further evaluation, and no training.
    """

    def rank(self, filled: Filled) -> tuple[Tensor, Tensor]:
        """The running confidence, of all that was not given."""
        return filled.running, filled.free


BY_NAME: dict[str, type[Remasking]] = {"low_confidence": LowConfidence, "rcr": RunningConfidence}
"""Every remasking by the name that command lines use."""
