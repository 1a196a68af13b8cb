"""Blocks of the recipe `neural-de` that learn from series: spirals with points dropped, and a latent SDE."""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tweed.core import random
from tweed.nets import initialise
from tweed.recipes.report import Row, at_least, info
from tweed.science import NeuralCDE, hermite, with_time

SIDE, NOISE = 28, 0.12
"""Points of a spiral before any is dropped, and the noise on each."""


def spirals(count: int, seed: int) -> tuple[Float[Tensor, " k"], Float[Tensor, "b k 2"], Int[Tensor, " b"]]:
    """Noisy spirals that turn to the left or to the right, from any angle, at various speeds; the label says which way."""
    ts = torch.linspace(0.0, 1.0, SIDE)
    u = random.uniform((count, 4), seed, draw=0)
    label = (u[:, 0] < 0.5).long()
    sign, phase = 1.0 - 2.0 * label[:, None], 2.0 * math.pi * u[:, 1:2]
    angle = phase + sign * (4.0 + 5.0 * u[:, 2:3]) * ts
    radius = 0.3 + (0.5 + 0.5 * u[:, 3:4]) * ts
    x = torch.stack((radius * angle.cos(), radius * angle.sin()), 2)
    return ts, x + NOISE * random.normal(x.shape, seed, draw=1), label


def dropped(x: Float[Tensor, "b k 2"], fraction: float, seed: int) -> Float[Tensor, "b k 2"]:
    """The series with whole points replaced by NaN, each with that probability; the first one always stays."""
    gone: Bool[Tensor, "b k"] = random.uniform(x.shape[:2], seed, draw=2) < fraction
    gone[:, 0] = False
    return x.masked_fill(gone[:, :, None], float("nan"))


class MaskedGRU(nn.Module):
    """The baseline: a GRU on (value or the last one, whether it was observed, time), and a linear classifier."""

    def __init__(self, hidden: int):
        super().__init__()
        self.gru, self.readout = nn.GRU(4, hidden), nn.Linear(hidden, 2)

    def forward(self, features: Float[Tensor, "b k 4"]) -> Float[Tensor, "b 2"]:
        return self.readout(self.gru(features.transpose(0, 1))[1][0])


def gru_features(ts: Float[Tensor, " k"], x: Float[Tensor, "b k 2"]) -> Float[Tensor, "b k 4"]:
    """Zero-order hold, mask and time."""
    seen = x[:, :, :1].isfinite()
    last = torch.where(seen, torch.arange(x.shape[1])[None, :, None], 0).cummax(1).values
    held = x.nan_to_num().gather(1, last.expand(-1, -1, 2))
    return torch.cat((held, seen.to(x), ts[None, :, None].expand(len(x), -1, 1)), 2)


def fit_classifier(
    model: nn.Module, inputs: Callable[[slice], Any], label: Int[Tensor, " b"], steps: int, batch: int, lr: float
) -> None:
    """Adam with a cosine rate on consecutive batches; the series are in random order already."""
    optimizer = torch.optim.Adam(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    blocks = [slice(i, i + batch) for i in range(0, len(label) - batch + 1, batch)]
    made = {}
    for step in range(steps):
        block = blocks[step % len(blocks)]
        if block.start not in made:
            made[block.start] = inputs(block)
        optimizer.zero_grad()
        F.cross_entropy(model(made[block.start]), label[block]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, inputs: Any, label: Int[Tensor, " b"]) -> float:
    return (model(inputs).argmax(1) == label).double().mean().item()


def classify(seed: int, fraction: float, size: dict[str, int]) -> tuple[float, float]:
    """Accuracy on new series of a neural CDE and of the GRU, both trained with that fraction of points dropped."""
    ts, x, label = spirals(size["train"], random.fold(seed, 1))
    _, fresh, truth = spirals(size["test"], random.fold(seed, 2))
    x, fresh = dropped(x, fraction, random.fold(seed, 3)), dropped(fresh, fraction, random.fold(seed, 4))
    cde = NeuralCDE(3, 16, 2, width=32, method="heun", seed=random.fold(seed, 5))
    fit_classifier(cde, lambda s: hermite(ts, with_time(ts, x[s])), label, size["cde_steps"], 64, 8e-3)
    gru = MaskedGRU(16)
    initialise(gru, random.fold(seed, 6))
    features = gru_features(ts, x)
    fit_classifier(gru, lambda s: features[s], label, size["gru_steps"], 64, 1e-2)
    return (
        accuracy(cde, hermite(ts, with_time(ts, fresh)), truth),
        accuracy(gru, gru_features(ts, fresh), truth),
    )


def classification(seed: int, size: dict[str, int], strict: bool) -> tuple[list[Row], dict[str, Any]]:
    """Accuracies with half, with 70 and with 85 % of the points dropped."""
    rows, found = [], {}
    for fraction in (0.5, 0.7, 0.85) if strict else (0.5,):
        cde, gru = classify(random.fold(seed, round(100 * fraction)), fraction, size)
        found[fraction] = (cde, gru)
        name = f"accuracy on spirals, {fraction:.0%} of points dropped: CDE"
        if fraction == 0.85:
            rows.append(info(name, cde, baseline=gru, note="baseline: GRU with mask and time"))
        elif fraction == 0.5 or not strict:
            rows.append(
                at_least(name, cde, 0.9 if strict else 0.8, baseline=gru, note="baseline: GRU with mask and time")
            )
        else:
            rows.append(at_least(name, cde, max(0.9, gru - 0.02), baseline=gru, note="bound: 0.9, and GRU - 0.02"))
    curves = {
        name: ([100 * f for f in found], [100 * values[k] for values in found.values()])
        for k, name in enumerate(("neural CDE", "~GRU with mask"))
    }
    return rows, curves
