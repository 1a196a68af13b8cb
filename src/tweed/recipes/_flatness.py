"""Classifiers of few digits, some mislabelled: how flat a minimum each optimizer finds, and what it is worth."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tweed.core import random
from tweed.data.digits import Digits
from tweed.recipes import Progress, Row, at_least, info
from tweed.training.optimizers import DualAdam, InvAdam

WIDTHS = (64, 256, 256, 10)
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
TASKS = ("from scratch", "fine-tuned")
IMAGES, WRONG = 200, 0.2
EQUAL_RATE, EQUAL_LOSS = 1e-3, 0.1  # where minima are also compared, as a lower loss is flatter by itself
Weights = list[Tensor]


@dataclass(frozen=True)
class Sizes:
    """Training steps, pictures a step, and how many runs of each."""

    steps: int
    batch: int
    runs: int
    switch: int


SIZES = {"default": Sizes(1500, 50, 5, 300), "gpu": Sizes(6000, 100, 10, 1200)}


@dataclass(frozen=True)
class Found:
    """Of one optimizer at its best rate, one value a run; and the sharpness where its loss first is `EQUAL_LOSS`
    (NaN for InvAdam)."""

    lr: float
    accuracy: Tensor
    sharpness: Tensor
    loss: Tensor
    equal: Tensor


def optimizers(sizes: Sizes) -> dict[str, Callable[..., torch.optim.Optimizer]]:
    """Of the lists of weights of all runs at once: elementwise, so that no run feels another."""
    return {
        "Adam": torch.optim.Adam,
        "DualAdam": lambda p, lr: DualAdam(p, lr, switch_rate=1.0 / sizes.switch),
        "InvAdam": InvAdam,
    }


def initial(runs: int, seed: int) -> Weights:
    """Weights and biases of every layer, (runs, in, out) and (runs, 1, out), uniform as torch's linear layers."""
    weights: Weights = []
    for k, (n, m) in enumerate(pairwise(WIDTHS)):
        for draw, shape in enumerate(((runs, n, m), (runs, 1, m))):
            weights.append((2.0 * random.uniform(shape, random.fold(seed, k), draw=draw) - 1.0) / n**0.5)
    return weights


def logits(weights: Weights, x: Tensor) -> Tensor:
    """Of every run, (runs, n, 10), for pictures (runs, n, 64) or (n, 64)."""
    h = x
    for k in range(0, len(weights), 2):
        h = torch.matmul(h, weights[k]) + weights[k + 1]
        if k < len(weights) - 2:
            h = h.relu()
    return h


def losses(weights: Weights, x: Tensor, label: Tensor) -> Tensor:
    """Mean cross-entropy of every run."""
    runs, n = label.shape
    each = F.cross_entropy(logits(weights, x).flatten(0, 1), label.flatten(), reduction="none")
    return each.reshape(runs, n).mean(1)


def train(
    weights: Weights,
    make: Callable[..., torch.optim.Optimizer],
    lr: float,
    x: Tensor,
    label: Tensor,
    sizes: Sizes,
    seed: int,
    until: float | None = None,
) -> Weights:
    """All runs at once, with a cosine of the learning rate.

    With `until` the weights of each run are those of the first tenth step whose training loss is at most that, or the last.
    """
    weights = [w.clone().requires_grad_() for w in weights]
    held, going = [w.detach().clone() for w in weights], torch.ones(len(label), dtype=torch.bool)
    optimizer = make(weights, lr=lr)
    runs, n = label.shape
    rows = torch.arange(runs)[:, None]
    for step in range(sizes.steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1.0 + math.cos(math.pi * step / sizes.steps))
        chosen = (random.uniform((runs, sizes.batch), seed, draw=step) * n).long().clamp_max(n - 1)
        optimizer.zero_grad()
        losses(weights, x[rows, chosen], label[rows, chosen]).sum().backward()
        optimizer.step()
        if until is not None and step % 10 == 9:
            held = [torch.where(going[:, None, None], w.detach(), h) for w, h in zip(weights, held, strict=True)]
            with torch.no_grad():
                going &= losses(weights, x, label) > until
    return [w.detach() for w in weights] if until is None else held


def sharpness(weights: Weights, x: Tensor, label: Tensor, seed: int, size: float = 0.05, draws: int = 20) -> Tensor:
    """The mean rise of every run's training loss when each tensor of weights moves by `size` of its norm, at random."""
    with torch.no_grad():
        before, rise = losses(weights, x, label), torch.zeros(len(label))
        for draw in range(draws):
            moved = []
            for k, w in enumerate(weights):
                z = random.normal(w.shape, random.fold(seed, k), draw=draw)
                norm = w.flatten(1).norm(dim=1) / z.flatten(1).norm(dim=1)
                moved.append(w + size * norm[:, None, None] * z)
            rise += (losses(moved, x, label) - before) / draws
        return rise


def compare(task: str, sizes: Sizes, seed: int, progress: Progress) -> dict[str, Found]:
    """Every optimizer at the rate that reads held-out digits best."""
    seed = random.fold(seed, 7, TASKS.index(task))
    train_set, held = Digits("train", flat=True), Digits("test", flat=True)
    pictures, truth = train_set.x, train_set.batch(torch.arange(len(train_set)))["label"]
    chosen = random.uniform((sizes.runs, len(pictures)), random.fold(seed, 1)).argsort(1)[:, :IMAGES]
    x, label = pictures[chosen], truth[chosen].clone()
    wrong = random.uniform(label.shape, random.fold(seed, 2)) < WRONG
    other = (label + 1 + (random.uniform(label.shape, random.fold(seed, 3)) * 9.0).long().clamp_max(8)) % 10
    label = torch.where(wrong, other, label)
    asked, right = held.x, held.batch(torch.arange(len(held)))["label"]
    weights = initial(sizes.runs, random.fold(seed, 4))
    if task == "fine-tuned":
        # What was learned of all upright digits is tuned to digits lying on their side.
        progress("learning upright digits", 0.0)
        every = pictures.expand(sizes.runs, -1, -1), truth.expand(sizes.runs, -1)
        weights = train(weights, torch.optim.Adam, 1e-3, *every, sizes, random.fold(seed, 5))
        x, asked = _turned(x), _turned(asked)
    found: dict[str, Found] = {}
    ways = optimizers(sizes)
    for k, (name, make) in enumerate(ways.items()):
        best, best_read = None, -1.0
        for j, lr in enumerate(RATES):
            progress(f"{task}: {name}, learning rate {lr:g}", (k + j / len(RATES)) / len(ways))
            made = train(weights, make, lr, x, label, sizes, random.fold(seed, 6))
            with torch.no_grad():
                reads = (logits(made, asked).argmax(-1) == right).double()
            half = len(right) // 2
            if reads[:, :half].mean().item() > best_read:
                best_read = reads[:, :half].mean().item()
                rise = sharpness(made, x, label, random.fold(seed, 8))
                best = Found(lr, reads[:, half:].mean(1), rise, losses(made, x, label), rise * math.nan)
        assert best is not None
        if name != "InvAdam":
            made = train(weights, make, EQUAL_RATE, x, label, sizes, random.fold(seed, 6), EQUAL_LOSS)
            best = replace(best, equal=sharpness(made, x, label, random.fold(seed, 8)))
        found[name] = best
    return found


def _turned(x: Tensor) -> Tensor:
    return x.unflatten(-1, (8, 8)).rot90(1, (-2, -1)).flatten(-2)


def rows(found: Mapping[str, Mapping[str, Found]]) -> list[Row]:
    """Flatter than Adam, and no worse at reading."""
    made: list[Row] = []
    for task, each in found.items():
        adam, dual, inverse = each["Adam"], each["DualAdam"], each["InvAdam"]
        flatter = (dual.sharpness < adam.sharpness).double().mean().item()
        gain = 100.0 * (dual.accuracy - adam.accuracy).double()
        error = gain.std().item() / len(gain) ** 0.5
        made += [
            info(
                f"{task}: share of runs in which DualAdam's minimum is flatter",
                flatter,
                published="flatter",
                note="each at its best learning rate: a lower training loss is flatter by itself",
            ),
            info(
                f"... sharpness where the training loss is first {EQUAL_LOSS:g}, learning rate {EQUAL_RATE:g}",
                dual.equal.mean(),
                baseline=adam.equal.mean(),
                note=f"baseline: Adam; difference +- {((dual.equal - adam.equal).std() / len(gain) ** 0.5).item():.2g}",
            ),
            info("... sharpness, mean", dual.sharpness.mean(), baseline=adam.sharpness.mean(), note="baseline: Adam"),
            at_least("... accuracy over Adam's, points", gain.mean().item(), -0.2 - 2.0 * error, note=f"+- {error:.2f}"),
            info("... accuracy, %", 100.0 * dual.accuracy.mean(), baseline=100.0 * adam.accuracy.mean(), note="baseline: Adam"),
            info("... training loss of InvAdam", inverse.loss.mean(), baseline=adam.loss.mean(), note="baseline: Adam"),
            info("... learning rates", f"{dual.lr:g}", baseline=f"{adam.lr:g}", note="baseline: Adam"),
        ]  # fmt: skip
    return made


def figure(found: Mapping[str, Mapping[str, Found]]) -> Any:
    """Accuracy against sharpness, a point a run."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(4.4 * len(found), 3.6), layout="constrained")
    for axes, (task, each) in zip(drawn.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        for name, one in each.items():
            axes.scatter(one.sharpness, 100.0 * one.accuracy, s=26, label=name)
        axes.set_xscale("log")
        axes.set_xlabel("sharpness: rise of the training loss")
        axes.set_ylabel("held-out digits read, %")
        axes.set_title(task, fontsize=10)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    return drawn
