"""Inpainting: some elements of a sample are seen, the rest are not."""

import torch
from jaxtyping import Bool
from torch import Tensor

from tweed.core import random
from tweed.errors import InputError
from tweed.inverse.operators.base import LinearOperator, Spectrum


class Inpainting(LinearOperator):
    """`y = mask * x`: what is not seen is zero, and measurements keep the shape of a sample.

    Args:
        event: the shape of a sample.
        mask: True where a sample is seen; broadcasts against `event` from the right. With one more axis in front, a mask for
            each of b samples: row i of a batch (or of n batches one after another) has mask `i % b`; then there is no
            spectrum.

    Raises:
        InputError: the mask does not broadcast, or has values other than 0 and 1.
    """

    def __init__(self, event: tuple[int, ...], mask: Bool[Tensor, "*part"]):
        self.event = self.measured = tuple(event)
        mask = torch.as_tensor(mask)
        if mask.dtype != torch.bool:
            if not bool(((mask == 0) | (mask == 1)).all()):
                raise InputError("mask: it has values other than 0 and 1; expected True where a sample is seen")
            mask = mask.bool()
        self._each = mask.ndim > len(self.event)
        try:
            self.mask = mask.expand(len(mask), *self.event) if self._each else mask.expand(self.event)
        except RuntimeError:
            raise InputError(
                f"mask: shape {tuple(mask.shape)} was given; expected one that broadcasts against {self.event}"
            ) from None

    def forward(self, x):
        mask = self.mask.to(device=x.device, dtype=x.dtype)
        if self._each:
            copies = -(-len(x) // max(len(mask), 1))
            mask = mask.repeat(copies, *(1,) * len(self.event))[: len(x)]
        return x * mask

    def adjoint(self, y):
        return self.forward(y)

    @property
    def spectrum(self) -> Spectrum | None:
        if self._each:
            return None
        return Spectrum(
            self.mask.flatten().double(),
            lambda x: x.flatten(1),
            lambda c: c.reshape(len(c), *self.event),
            lambda y: y.flatten(1),
        )


def random_mask(event: tuple[int, ...], seen: float, seed: int = 0) -> Bool[Tensor, "*event"]:
    """A mask that shows a share `seen` of the pixels, the same in all channels (the first axis where there are three).

    Raises:
        InputError: a share outside 0 and 1.
    """
    if not 0.0 <= seen <= 1.0:
        raise InputError(f"seen: {seen} was given; expected a share from 0 to 1")
    pixels = event[1:] if len(event) > 2 else event
    order = random.uniform((1, *pixels), seed, dtype=torch.float64).flatten().argsort()
    mask = torch.zeros(order.numel(), dtype=torch.bool)
    mask[order[: round(seen * order.numel())]] = True
    return mask.reshape(pixels).expand(event)


def box_mask(event: tuple[int, ...], share: float = 0.5) -> Bool[Tensor, "*event"]:
    """A mask that hides a centred box of a share of each of the last two axes."""
    if not 0.0 <= share <= 1.0:
        raise InputError(f"share: {share} was given; expected a share from 0 to 1")
    mask = torch.ones(event, dtype=torch.bool)
    height, width = (round(share * n) for n in event[-2:])
    top, left = (event[-2] - height) // 2, (event[-1] - width) // 2
    mask[..., top : top + height, left : left + width] = False
    return mask
