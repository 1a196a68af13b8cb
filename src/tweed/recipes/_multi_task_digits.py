"""Multi-task diffusion on digits: image and label in one variable, image and masked image, and what they are held against."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import tweed as tw
from tweed.core import random
from tweed.core.denoiser import Denoiser, NetworkDenoiser
from tweed.core.modalities import ModalNetwork, PlugIn
from tweed.core.processes import RectifiedFlow
from tweed.core.targets import Noise, Velocity
from tweed.data.dataset import Tensors
from tweed.data.digits import Digits
from tweed.guidance import ClassifierGuidance, modalities
from tweed.metrics import accuracy, sliced_wasserstein, train_classifier
from tweed.metrics.classifier import Classifier
from tweed.nets import build
from tweed.recipes import Progress, Row, at_least, at_most, greater_than, info, less_than
from tweed.training import DenoisingLoss, MultiModalLoss, Objective, fit

TOLD, PLUG_IN, HEAD = "told the label", "plug-in rule", "label head as classifier"
LOSS = MultiModalLoss({"label": 0.1}, dropout=0.2, tell=0.5, rho="signal")


@dataclass(frozen=True)
class Sizes:
    """Steps of training, batch, width and depth of the backbone, samples of each kind, steps of sampling."""

    steps: int
    batch: int = 64
    width: int = 128
    depth: int = 3
    samples: int = 500
    sampling: int = 50
    judge: int = 200


@dataclass(frozen=True)
class Found:
    """What is measured: shares of samples or digits in [0, 1], distances, losses by steps, and some samples."""

    judge: float
    plain: float
    joint: float
    given: dict[str, float]
    read: float
    spread: dict[str, float]
    few: dict[str, float]
    frozen: float
    distance: float
    single: float
    curves: dict[str, list[tuple[int, float]]]
    seconds: dict[str, float]
    pictures: dict[str, tuple[Tensor, Tensor]]


def network(sizes: Sizes, parts: dict[str, Any], seed: int, told: bool = False) -> ModalNetwork:
    """A perceptron with a head a modality, on flat digits."""
    backbone = {"name": "mlp", "width": sizes.width, "depth": sizes.depth}
    config = {"name": "multi_head", "backbone": backbone, "modalities": parts, "event": [64], "features": sizes.width}
    return ModalNetwork(build({**config, "power": 0.5, "told": told}, seed), RectifiedFlow(), Velocity())


def measure(sizes: Sizes, seed: int, progress: Progress) -> Found:
    """All networks, trained for as many steps, and all that is asked of them."""
    train, test = Digits("train", flat=True), Digits("test", flat=True)
    held = test.batch(torch.arange(len(test)))
    x, label = held["x"], held["label"]
    scale = train.x.square().mean().rsqrt().item()
    image, told = {"shape": [64], "scale": scale}, {"classes": 10, "seed": random.fold(seed, 1) % 2**31}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    seconds: dict[str, float] = {}
    curves: dict[str, list[tuple[int, float]]] = {}

    def trained(
        name: str, place: float, model: Denoiser, data: Tensors, objective: Objective, **options: Any
    ) -> Denoiser:
        progress(name, place)
        begun = time.perf_counter()
        result = fit(
            model, data, steps=sizes.steps, objective=objective, batch_size=sizes.batch, lr=2e-3, warmup=sizes.steps // 20,
            schedule="cosine", ema=0.995, device=device, progress=False, seed=random.fold(seed, 2), **options,
        ).denoiser  # fmt: skip
        seconds[name] = time.perf_counter() - begun
        return result.cpu()

    progress("classifiers", 0.0)
    judge = train_classifier(Digits("train"), sizes.judge, random.fold(seed, 3), width=16)
    plain = train_classifier(train, sizes.judge, random.fold(seed, 4), width=16)
    both = trained("image and label", 0.08, network(sizes, {"image": image, "label": told}, seed, True), train, LOSS)
    frozen = network(sizes, {"image": image, "label": told}, seed, True)
    frozen.network.backbone.requires_grad_(False)  # type: ignore[union-attr]
    stuck = trained("heads on a random backbone", 0.36, frozen, train, LOSS)

    known = torch.tensor([[True, False]]).expand(len(x), -1)
    noise = random.normal((4, *x.shape), random.fold(seed, 5))
    times = (torch.arange(len(x)) + 0.5).double() / len(x)

    def watch(name: str, options: Mapping[str, Tensor]) -> dict[str, Any]:
        curves[name] = []

        def look(step: int, model: Denoiser) -> None:
            batch = {"x": scale * x, "t": times, **options}
            batches = ({name: value.to(device) for name, value in {**batch, "noise": eps}.items()} for eps in noise)
            losses = [DenoisingLoss(Noise())(model, each).mean() for each in batches]
            curves[name].append((step, torch.stack(losses).mean().item()))

        return {"watch": look, "watch_every": sizes.steps // 12}

    single = network(sizes, {"image": image}, seed)
    alone = NetworkDenoiser(single.network, RectifiedFlow(), Velocity(), event=(64,))
    alone = trained("image", 0.5, alone, Tensors(scale * train.x), DenoisingLoss(), **watch("image", {}))
    masked = {"shape": [64], "encoder": "orthonormal", "scale": 1.4 * scale, "seed": 7}
    pairs = train.x.repeat(16, 1)
    kept = random.uniform(pairs.shape, random.fold(seed, 6)) < 0.5
    pairs = Tensors(pairs, masked=torch.where(kept, pairs, 0.0))
    trained(
        "image and masked image", 0.75, network(sizes, {"image": image, "masked": masked}, seed), pairs,
        MultiModalLoss(dropout=0.3, rho="signal"), **watch("image and masked image", {"present": known}),
    )  # fmt: skip

    progress("sampling", 0.93)
    options: dict[str, Any] = {"steps": sizes.sampling, "seed": random.fold(seed, 8)}
    inverse = {**options, "inverted": "image"}
    wanted = torch.arange(sizes.samples) % 10
    free = modalities.sample(both, sizes.samples, **inverse)
    rules: dict[str, Denoiser] = {
        TOLD: both,
        PLUG_IN: PlugIn(both),
        HEAD: ClassifierGuidance(both, modalities.log_probability(both, "label"), given=("label",)),
    }
    given = {
        rule: modalities.sample(model, sizes.samples, {"label": wanted}, **inverse)["image"]
        for rule, model in rules.items()
    }
    few = {
        rule: (modalities.sample(rules[rule], len(x), {"image": x}, **{**options, "steps": 8})["label"] == label)
        for rule in (TOLD, PLUG_IN)
    }
    plain_images = tw.sample(alone, sizes.samples, **options) / scale
    return Found(
        judge=accuracy(judge, x.reshape(-1, 1, 8, 8), label),
        plain=accuracy(plain, x, label),
        joint=_agree(judge, free["image"], free["label"]),
        given={rule: _agree(judge, images, wanted) for rule, images in given.items()},
        spread={rule: _spread(images, wanted) / _spread(x, label) for rule, images in given.items()},
        read=_read(both, x, label, seed),
        few={rule: right.double().mean().item() for rule, right in few.items()},
        frozen=_read(stuck, x, label, seed),
        distance=sliced_wasserstein(free["image"], x, seed=random.fold(seed, 9)),
        single=sliced_wasserstein(plain_images, x, seed=random.fold(seed, 9)),
        curves=curves,
        seconds=seconds,
        pictures={
            "image and label together": (free["image"][:20], free["label"][:20]),
            **{f"image given the label: {rule}": (images[:20], wanted[:20]) for rule, images in given.items()},
        },
    )


def _agree(judge: Classifier, images: Tensor, label: Tensor) -> float:
    return accuracy(judge, images.reshape(-1, 1, 8, 8).clamp(-1.0, 1.0), label)


def _spread(images: Tensor, label: Tensor) -> float:
    """The mean variance of a pixel within a class."""
    return torch.stack([images[label == c].var(0).mean() for c in range(10)]).mean().item()


def _read(model: Denoiser, x: Tensor, label: Tensor, seed: int) -> float:
    guess = modalities.predict(model, {"image": x}, "label", seed=random.fold(seed, 10)).argmax(1)
    return (guess == label).double().mean().item()


def rows(found: Found) -> list[Row]:
    """The relations, and what is only reported."""
    curves = {name: dict(curve) for name, curve in found.curves.items()}
    image, masked = curves["image"], curves["image and masked image"]
    goal = 1.02 * image[max(image)]
    steps = {
        name: next((n for n, loss in curve.items() if loss <= goal), float("nan")) for name, curve in curves.items()
    }
    text = ", ".join(f"{name} {seconds:.0f}" for name, seconds in found.seconds.items())
    return [
        at_least("judge: held-out digits read", found.judge, 0.93),
        at_least("image and label drawn together: they agree", found.joint, 0.8, note="independent ones: 0.1"),
        at_least("image given the label, network told: agrees", found.given[TOLD], 0.85),
        info("... plug-in rule", found.given[PLUG_IN], note="told nothing, the guess plugged in"),
        info("... label head as a classifier of noisy states", found.given[HEAD]),
        greater_than(
            "... variance within a class, of digits': told, against the plug-in rule", found.spread[TOLD],
            found.spread[PLUG_IN], 1.3, note="1 is right",
        ),
        info("... label head as a classifier", found.spread[HEAD]),
        at_least("label given the image, absent from the aggregate: held-out digits", found.read, 0.85),
        less_than("... errors, against a classifier's and 8 points", 1 - found.read, 1.08 - found.plain),
        *(info(f"... by sampling in 8 steps, {rule}", value) for rule, value in found.few.items()),
        greater_than("... heads on a random backbone: errors", 1 - found.frozen, 1 - found.read, 1.5),
        info("... points lost by the random backbone", 100 * (found.read - found.frozen), published="(sharing helps)"),
        at_most(
            "distance of images to held-out ones (sliced W2), against a model of images alone",
            found.distance / found.single, 1.3, note=f"{found.distance:.4f} and {found.single:.4f}",
        ),
        info(
            "masked image beside it: loss of noise of the image alone, at the end", masked[max(masked)],
            baseline=image[max(image)], published="faster training",
            note=f"steps to {goal:.4f}: {steps['image and masked image']:g}, image alone {steps['image']:g}",
        ),
        info("training, seconds", sum(found.seconds.values()), note=text),
    ]  # fmt: skip


def draw(figure: Any, pictures: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Rows of samples with their labels, on a figure or a part of one."""
    panels = figure.subplots(1, len(pictures))
    for axes, (title, (images, labels)) in zip(panels, pictures.items(), strict=True):
        wall = torch.full((2 * 11, 10 * 9), 1.0)
        for place, image in enumerate(images.reshape(-1, 8, 8)):
            row, column = divmod(place, 10)
            wall[11 * row + 3 : 11 * row + 11, 9 * column : 9 * column + 8] = -image.clamp(-1.0, 1.0)
            axes.text(9 * column + 3.5, 11 * row + 1.2, str(int(labels[place])), ha="center", va="center", fontsize=7)
        axes.imshow(wall.tolist(), cmap="gray", vmin=-1.0, vmax=1.0, interpolation="nearest")
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
