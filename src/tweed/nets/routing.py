"""Denoising task routing: every noise level has channels of its own.

Park et al., "Denoising Task Routing for Diffusion Models" (ICLR 2024, arXiv 2310.07138). A block sees a window of its
channels, which slides with the time: neighbouring levels share most of theirs, distant ones few. Nothing is learned, and
no parameter is added.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tweed.core import random
from tweed.errors import InputError, choose

RoutingMode = Literal["window", "random"]
_LEVELS = 1000  # of the random masks


class ChannelRouting(nn.Module):
    """The mask of channels at a time: `share` of them, from `round((channels - active) t^power)` on.

    A larger `power` lets the window rest at low noise, whose levels then share more, and slide at high noise. The mode
    "random" is the baseline that keeps no neighbours together: an independent subset for each of 1000 levels.

    Args:
        channels: of the block's input.
        share: of them that are active at a time, in (0, 1].
        power: at least 1 (4 as published).
        mode: "window" or "random".

    Raises:
        InputError: an option is out of its range, or no channel would be active.
    """

    def __init__(self, channels: int, share: float = 0.8, power: float = 4.0, mode: RoutingMode = "window"):
        super().__init__()
        choose("mode", mode, ("window", "random"))
        if not 0.0 < share <= 1.0 or power < 1.0:
            raise InputError(f"share, power: {share}, {power} were given; expected (0, 1], and at least 1")
        self.channels, self.active, self.power, self.mode = channels, math.floor(share * channels + 1e-9), power, mode
        if self.active < 1:
            raise InputError(f"share: {share} of {channels} channels is none; expected at least one")
        place = torch.arange(channels)
        self.register_buffer("place", place, persistent=False)
        if mode == "random":
            order = random.uniform((_LEVELS, channels), 0x726F757465).argsort(1).argsort(1)
            self.register_buffer("table", order < self.active, persistent=False)

    def forward(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b c"]:
        """The masks of the times `t` in [0, 1] (data at 0), of zeros and ones, in the precision of `t`."""
        t = t.clamp(0.0, 1.0)
        if self.mode == "random":
            return self.table[(t * (_LEVELS - 1)).round().long()].to(t.dtype)  # type: ignore[index]
        first = ((self.channels - self.active) * t**self.power).round()[..., None]
        place: Tensor = self.place  # type: ignore[assignment]
        return ((place >= first) & (place < first + self.active)).to(t.dtype)
