"""Which noise (or second end) goes with which sample of a batch.

Independent coupling is the plain one. Minibatch optimal transport: Tong et al., "Improving and Generalizing Flow-Based
Generative Models with Minibatch Optimal Transport" (TMLR 2024); Pooladian et al., "Multisample Flow Matching" (ICML
2023). Under it the marginals stay and the velocity is still learned, on straighter paths; the answer is then no longer
the score of the marginal.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tweed.errors import InputError


class Coupling(ABC):
    """Pairs the rows of two tensors; an immutable value."""

    @abstractmethod
    def pair(
        self,
        x: Float[Tensor, "b *event"],
        other: Float[Tensor, "b *event"],
        label: Int[Tensor, " b"] | None = None,
    ) -> Int[Tensor, " b"] | None:
        """The permutation `p` for which `other[p]` goes with `x`, or None where they go as they stand."""


@dataclass(frozen=True)
class Independent(Coupling):
    """Rows go together as they were drawn."""

    def pair(self, x, other, label=None):
        return None


@dataclass(frozen=True)
class MinibatchOT(Coupling):
    """The pairing with the least sum of squared distances, solved exactly on the CPU.

    Args:
        group: couple within consecutive groups of so many rows; None for the whole batch (of one process: give a
            group to have the same pairs on any number of processes).
        by_label: couple only within a class, so that each class keeps all of the noise for itself. Without it a
            conditional model sees noise that depends on the class (Cheng & Schwing, 2025).

    Raises:
        InputError: `group` is not positive; in `pair`: shapes differ, or `by_label` finds no label.
    """

    group: int | None = None
    by_label: bool = False

    def __post_init__(self):
        if self.group is not None and self.group < 1:
            raise InputError(f"group: {self.group} was given; expected a positive number of rows, or None")

    def pair(self, x, other, label=None):
        if x.shape != other.shape:
            raise InputError(f"other: shape {tuple(other.shape)} was given; expected that of x, {tuple(x.shape)}")
        if self.by_label and label is None:
            raise InputError("label: none was given; expected the classes that by_label couples within")
        left, right = (rows.detach().flatten(1).to("cpu", torch.float64) for rows in (x, other))
        classes = label.cpu() if self.by_label and label is not None else torch.zeros(len(x), dtype=torch.int64)
        permutation = torch.arange(len(x))
        size = self.group or max(len(x), 1)
        for first in range(0, len(x), size):
            rows = torch.arange(first, min(first + size, len(x)))
            for c in classes[rows].unique():
                members = rows[classes[rows] == c]
                permutation[members] = members[_assign(left[members], right[members])]
        return permutation.to(x.device)


def _assign(x: Float[Tensor, "n d"], other: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
    from scipy.optimize import linear_sum_assignment

    # Of |x - z|^2 only the product depends on who goes with whom.
    _, columns = linear_sum_assignment((x @ other.T).numpy(), maximize=True)
    return torch.from_numpy(columns)


BY_NAME: dict[str, type[Coupling]] = {kind.__name__: kind for kind in (Independent, MinibatchOT)}
"""Every coupling by the name that configurations use."""
