"""What recipes on the 8x8 digits share: the dequantised data, coloured digits, a score model of them."""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tweed.core import random
from tweed.core.denoiser import Denoiser, NetworkDenoiser
from tweed.core.processes import Process
from tweed.core.targets import Target
from tweed.data.dataset import Tensors
from tweed.data.digits import Digits
from tweed.nets import build
from tweed.recipes.report import Progress
from tweed.training import DenoisingLoss, Objective, fit

LEVELS = 17
"""Values of a pixel, 0 .. 16."""

OFFSET = math.log2(LEVELS / 2.0)
"""Bits a dimension from a density on [-1, 1] to the probability of the integers: one level is 2 / 17 wide."""


class Dequantised(Tensors):
    """Digits with uniform noise within their level, `x = 2 (n + u) / 17 - 1`, n in 0 .. 16, u uniform in (0, 1).

    `-log2 density + OFFSET` a dimension then bounds the bits a dimension of the integers from above (Theis et al., "A
    note on the evaluation of generative models", ICLR 2016), and is the number to compare. Each image comes `repeats`
    times, with noise of its own: sample `i` is image `i % images`.

    Args:
        split: as for `tweed.data.Digits`.
        seed: of the noise.
        repeats: how often each image comes.
    """

    def __init__(self, split: str, seed: int, repeats: int = 1):
        whole = Digits(split)
        super().__init__(whole.x, label=whole.batch(torch.arange(len(whole)))["label"])
        self._seed, self._repeats = seed, repeats

    def __len__(self) -> int:
        return len(self.x) * self._repeats

    def batch(self, indices: Int[Tensor, " n"]) -> dict[str, Tensor]:
        batch = super().batch(torch.as_tensor(indices) % len(self.x))
        noise = random.uniform((len(indices), *self.shape), self._seed, index=torch.as_tensor(indices))
        # Digits are n / 8 - 1.
        return {**batch, "x": 2.0 * (8.0 * (batch["x"] + 1.0) + noise) / LEVELS - 1.0}


def hues(label: Int[Tensor, " n"], seed: int) -> Float[Tensor, " n"]:
    """A hue in turns for each digit: a tenth of the circle for each class, and its place within the middle half of it."""
    return (label.double() + 0.5 * random.uniform((len(label), 1), seed, dtype=torch.float64)[:, 0]) / 10.0


def colour(x: Float[Tensor, "n 1 h w"], hue: Float[Tensor, " n"]) -> Float[Tensor, "n 3 h w"]:
    """Digits in [-1, 1] as light of one hue on black: channel j has `(1 + cos 2 pi (hue - j/3)) / 2` of the light.

    The channels' sum does not depend on the hue, so that grey says nothing of it but through the shape.
    """
    phase = 2.0 * math.pi * (hue[:, None] - torch.arange(3, dtype=torch.float64) / 3.0)
    share = (0.5 + 0.5 * phase.cos()).to(x)
    return (x + 1.0) * share[:, :, None, None] - 1.0


def hue_of(x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
    """The hue of coloured digits, in turns in [0, 1): the direction of the sum of their pixels' chroma."""
    angle = 2.0 * math.pi / 3.0 * torch.arange(3, dtype=torch.float64, device=x.device)
    total = x.double().flatten(2).sum(2)
    return torch.atan2(total @ angle.sin(), total @ angle.cos()) / (2.0 * math.pi) % 1.0


def score_model(
    process: Process,
    target: Target,
    data: Tensors,
    *,
    network: dict[str, Any],
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    text: str,
    progress: Progress,
    ema: float = 0.999,
    objective: Objective | None = None,
) -> Denoiser:
    """An unconditional denoiser of `data`, trained with the plain regression of `target` (or `objective`)."""
    told = iter(range(1, 11))
    # Nothing is drawn: a look at the model is the loop's way to say how far it is.
    look = cast(Callable[[Denoiser], None], lambda _: progress(text, min(next(told, 10) / 10, 1.0)))
    progress(text, 0.0)
    return fit(
        NetworkDenoiser(build(network, random.fold(seed, 0)), process, target, event=data.shape),
        data,
        steps=steps,
        objective=objective or DenoisingLoss(),
        batch_size=batch_size,
        lr=lr,
        warmup=min(100, steps // 10),
        schedule="cosine",
        ema=ema,
        conditions=(),
        precision="auto",
        seed=random.fold(seed, 1),
        sample_every=math.ceil(steps / 10),
        sampler=look,
        progress=False,
    ).denoiser
