"""Encoders of modalities into one diffusion variable, and their aggregate; see `tweed.core.modalities`.

Chen et al., "Diffusion Models for Multi-Task Generative Modeling" (ICLR 2024, arXiv 2407.17571).
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from tweed.core import random
from tweed.core.time import left
from tweed.errors import InputError

Entries = Mapping[str, Tensor]
"""Modalities by name, with the batch first."""

_RESERVED = ("x", "t", "noise", "weight", "drop", "present", "told", "y")


class Scaled(nn.Module):
    """The encoder `scale x`, for a modality of the shape of the diffusion variable."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = scale

    def forward(self, x: Float[Tensor, "b *event"]) -> Float[Tensor, "b *event"]:
        return self.scale * x

    def invert(self, code: Float[Tensor, "b *event"]) -> Float[Tensor, "b *event"]:
        """The x of an encoding."""
        return code / self.scale


class Embedding(nn.Module):
    """The encoder `gain Q x`: a flattened x (a one-hot label) on orthonormal directions of the diffusion space.

    With the gain `sqrt(d / size)`, which is the default, an x of root mean square 1 stays so; a one-hot vector, which is
    smaller, needs `sqrt(d)`.

    Args:
        size: numbers in x.
        event: the shape of the diffusion variable, d numbers.
        gain: a number, or None.
        seed: of the directions, which no initialisation of a network changes.
        learned: make the matrix `gain Q` a parameter.
        matrix: Q itself, (d, size), where it is given.

    Raises:
        InputError: more numbers than the space has, or a matrix of another shape.
    """

    matrix: Tensor

    def __init__(
        self,
        size: int,
        event: tuple[int, ...],
        gain: float | None = None,
        seed: int = 0,
        learned: bool = False,
        matrix: Float[Tensor, "d size"] | None = None,
    ):
        super().__init__()
        self.event, d = tuple(event), math.prod(event)
        if matrix is None and not 1 <= size <= d:
            raise InputError(f"size: {size} was given; expected 1 to {d}, the numbers of the diffusion variable")
        draws = random.normal((d, size), random.fold(seed, 0x656D62), dtype=torch.float64) if matrix is None else None
        directions = matrix if draws is None else torch.linalg.qr(draws)[0].float()
        assert directions is not None
        if directions.shape != (d, size):
            raise InputError(f"matrix: shape {tuple(directions.shape)} was given; expected ({d}, {size})")
        scaled = (math.sqrt(d / size) if gain is None else gain) * directions
        if learned:
            self.matrix = nn.Parameter(scaled)
        else:
            self.register_buffer("matrix", scaled)

    def forward(self, x: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *event"]:
        return (x.flatten(1).to(self.matrix.dtype) @ self.matrix.T).reshape(len(x), *self.event)


class Aggregate(nn.Module):
    """`sum_i E_i(x_i) / n^power` over the modalities that are there; their names are those of a batch's entries.

    Args:
        encoders: name -> a module from x_i (b, *shape) to the diffusion space (b, *event); never the same one twice, or the
            aggregate could not tell the two apart. Their order is that of the columns of `present` and `told`.
        classes: name -> number of classes, for categorical modalities: their values are labels (b,), or probabilities
            (b, classes), which stand for the expected encoding.
        power: of the number of modalities; see above.

    Raises:
        InputError: no encoders, a name that means something else, or classes of an unknown modality.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], classes: Mapping[str, int] | None = None, power: float = 1.0):
        super().__init__()
        if not encoders or set(encoders) & set(_RESERVED):
            raise InputError(f"encoders: {list(encoders)} were given; expected at least one, none of {_RESERVED}")
        self.encoders, self.classes, self.power = nn.ModuleDict(encoders), dict(classes or {}), power
        if not set(self.classes) <= set(encoders):
            raise InputError(f"classes: {list(self.classes)} were given; expected some of {list(encoders)}")

    @property
    def names(self) -> list[str]:
        """The modalities, in order."""
        return list(self.encoders)

    def known(self, entries: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        """The modalities among some entries."""
        return {name: value for name in self.names if (value := entries.get(name)) is not None}

    def encode(self, name: str, x: Shaped[Tensor, "b ..."]) -> Float[Tensor, "b *event"]:
        """`E_name(x)`."""
        if name in self.classes and not x.is_floating_point():
            x = F.one_hot(x.long(), self.classes[name]).to(torch.get_default_dtype())
        return self.encoders[name](x)

    def partial(self, entries: Entries, told: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b *event"]:
        """What the modalities among `entries` contribute to the aggregate of all, zero in rows where they are not `told`."""
        total: Tensor | None = None
        for place, name in enumerate(self.names):
            if name in entries:
                code = self.encode(name, entries[name])
                # A modality that a row lacks may hold anything, but not a number times zero.
                code = code if told is None else torch.where(left(told[:, place], code).bool(), code, 0.0)
                total = code if total is None else total + code
        if total is None:
            raise InputError(f"entries: {list(entries)} were given; expected at least one of {self.names}")
        return total / len(self.names) ** self.power

    def forward(self, entries: Entries, present: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b *event"]:
        """The aggregate of the modalities among `entries`, in each row of those that are `present` (all, by default).

        Raises:
            InputError: none of `entries` is a modality.
        """
        total = self.partial(entries, present)
        if present is None:
            count: Tensor | float = len(self.known(entries))
            return total * (len(self.names) / count) ** self.power
        there = [name in entries for name in self.names]
        count = (present & torch.tensor(there, device=present.device)).sum(1).clamp_min(1)
        return total * left((len(self.names) / count) ** self.power, total)

    def invert(self, name: str, e: Float[Tensor, "b *event"], others: Entries) -> Float[Tensor, "b *event"]:
        """The modality that, with all others, has the aggregate e: `E^{-1}(n^power e - sum_j E_j(x_j))`, for a `Scaled` one.

        Encoders are linear, so what holds for values holds for their means given the state. Errors of e grow by `n^power`.

        Raises:
            InputError: the encoder has no inverse, or one of the others is missing.
        """
        encoder = self.encoders[name] if name in self.names else None
        rest = {other: others[other] for other in self.names if other != name and other in others}
        if not isinstance(encoder, Scaled) or len(rest) != len(self.names) - 1:
            raise InputError(f"name: {name!r} with {list(others)} was given; expected a Scaled one, and all the others")
        total = len(self.names) ** self.power
        return encoder.invert(total * (e - self.partial(rest)) if rest else e)
