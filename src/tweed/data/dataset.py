"""What a data set is here: samples addressed by their index.

Sample `i` is the same whatever the batch it comes in, the order, the process or the machine; shuffling, sharding and
resuming are then only a matter of which indices are asked for.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from tweed.errors import InputError


@runtime_checkable
class Dataset(Protocol):
    """The protocol: `len(data)`, `data.batch(indices)`, `data[i]`, and three facts about the samples."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample of `x`."""
        ...

    @property
    def num_classes(self) -> int | None:
        """How many values `label` takes, or None without a `label`."""
        ...

    @property
    def conditions(self) -> tuple[str, ...]:
        """The keys of a batch besides `x`."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Int[Tensor, " n"]) -> dict[str, Tensor]:
        """The samples `indices`: `x` float32 (n, *shape), and each condition with n rows."""
        ...

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        """Sample `i`: a batch of one without its batch dimension."""
        ...


def check_indices(indices: Int[Tensor, " n"], length: int) -> Int[Tensor, " n"]:
    """`indices` as int64 on the CPU.

    Raises:
        InputError: not a vector of integers, or one lies outside 0 .. length - 1.
    """
    indices = torch.as_tensor(indices)
    if indices.numel() == 0 and indices.ndim == 1:
        return indices.to("cpu", torch.int64)
    if indices.ndim != 1 or indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise InputError(f"indices: {indices.dtype} {tuple(indices.shape)} was given; expected integers of shape (n,)")
    indices = indices.to("cpu", torch.int64)
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= length:
        raise InputError(f"indices: {low} .. {high} were given; expected values in 0 .. {length - 1}")
    return indices


def one(data: Dataset, i: int) -> dict[str, Tensor]:
    """Sample `i` of `data` without the batch dimension; a negative `i` counts from the end.

    Raises:
        IndexError: outside the data set (which is also what ends a `for` loop over it).
    """
    i, length = int(i), len(data)
    if not -length <= i < length:
        raise IndexError(f"index {i} is outside a data set of {length} samples")
    return {name: value[0] for name, value in data.batch(torch.tensor([i % length])).items()}


class Tensors:
    """A data set held in memory: `Tensors(x, label=..., ...)`.

    Args:
        x: (n, *event), converted to float32.
        **conditions: tensors with n rows; an integer `label` holds classes 0 .. num_classes - 1.

    Raises:
        InputError: `x` has no batch dimension, a condition has another number of rows, or a label is negative.
    """

    def __init__(self, x: Shaped[Tensor, "n *event"], **conditions: Shaped[Tensor, "n ..."]):
        if x.ndim == 0:
            raise InputError("x: a tensor without dimensions was given; expected shape (n, *event)")
        for name, value in conditions.items():
            if value.ndim == 0 or value.shape[0] != x.shape[0]:
                raise InputError(
                    f"{name}: shape {tuple(value.shape)} was given; expected as many rows as x, ({x.shape[0]}, ...)"
                )
        self.x = x.to(torch.float32)
        self._conditions = dict(conditions)
        self.num_classes: int | None = None
        if "label" in conditions:
            label = conditions["label"].to(torch.int64)
            if label.ndim != 1 or (label < 0).any():
                raise InputError(f"label: shape {tuple(label.shape)} was given; expected (n,) of values 0, 1, ...")
            self._conditions["label"] = label
            self.num_classes = int(label.max()) + 1 if len(label) else 0

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    @property
    def conditions(self) -> tuple[str, ...]:
        return tuple(self._conditions)

    def __len__(self) -> int:
        return self.x.shape[0]

    def batch(self, indices: Int[Tensor, " n"]) -> dict[str, Tensor]:
        indices = check_indices(indices, len(self)).to(self.x.device)
        rows = {name: value[indices.to(value.device)] for name, value in self._conditions.items()}
        return {"x": self.x[indices], **rows}

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return one(self, i)
