"""Unified masked diffusion (2024, arXiv 2406.17688): one network that represents, as an autoencoder, and denoises.

Four losses of the same network for equal steps on digits: masked and noised images together (UMD), clean masked ones alone
(MAE), noised ones alone (DiT), noised and masked ones (MaskDiT). A linear probe of each representation, and the error of the
noise head where all patches are seen, before and after a short fine-tuning.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import tweed as tw
from tweed.core import random
from tweed.core.denoiser import NetworkDenoiser
from tweed.core.processes import Cosine
from tweed.core.targets import Noise
from tweed.data.digits import Digits
from tweed.guidance import Thresholding
from tweed.metrics import linear_probe, sliced_wasserstein
from tweed.nets.masked_autoencoder import MaskedAutoencoder
from tweed.recipes import Progress, Report, Row, at_most, greater_than, info, less_than, within
from tweed.solvers import DDIM
from tweed.training import DenoisingLoss, MaskedDiffusionLoss, fit
from tweed.training.masked_diffusion import visible_patches

WAYS: dict[str, MaskedDiffusionLoss] = {
    "UMD": MaskedDiffusionLoss(),
    "MAE": MaskedDiffusionLoss(clean=1.0),
    "DiT": MaskedDiffusionLoss(clean=0.0, noised_mask=0.0),
    "MaskDiT": MaskedDiffusionLoss(clean=0.0, noised_mask=0.5),
}
TUNED = MaskedDiffusionLoss(clean=0.05, noised_mask=0.0)
PROCESS, PATCHES, SHOTS, PROBES = Cosine(), 16, 20, 8
PROBED_AT = 0.05  # the time at which noised images are represented too


@dataclass(frozen=True)
class Settings:
    """Steps of training and of fine-tuning, digits a step, features, blocks, samples, and the losses."""

    steps: int = 0
    tuning: int = 0
    batch: int = 64
    hidden: int = 48
    depth: int = 3
    samples: int = 300
    ways: tuple[str, ...] = ("UMD", "MAE", "DiT")


SCALES = {
    "smoke": Settings(),
    "default": Settings(1000, 100),
    "gpu": Settings(20000, 2000, 256, 128, 6, 2000, tuple(WAYS)),
}


@dataclass(frozen=True)
class Found:
    """Of one loss: probe of clean and of noised images, noise error before and after fine-tuning, distance of samples to
    held-out digits after it, the network before it, and some samples.
    """

    probe: float
    noised: float
    error: float
    tuned: float
    distance: float
    model: NetworkDenoiser
    samples: Tensor


def run(seed: int, scale: str, progress: Progress) -> Report:
    """The tokens and the parts of the loss at every scale, training from `default` on."""
    settings = SCALES[scale]
    rows = [*_tokens(seed), *_exact(seed)]
    figures: dict[str, Any] = {}
    if settings.steps:
        found = trained(settings, seed, progress)
        rows += _trained_rows(found)
        figures = {"trade-off": lambda: _trade_off(found), "pictures": lambda: _pictures(found, seed)}
    return Report(
        slug="unified-masked-diffusion",
        rows=rows,
        seed=seed,
        scale=scale,
        settings={**vars(settings), "shots": SHOTS},
        figures=figures,
        notes=(
            f"Probe: the mean of {PROBES} linear classifiers of {SHOTS} digits a class, on representations of clean images; the "
            f"notes give that of images at time {PROBED_AT:g} too.",
            "Samples: the data estimate clipped to [-1, 1], as published.",
            "Noise error: mean square over images that were not trained on, all patches seen, the same times and noise.",
            "Published, ImageNet 64, 100-shot probe and FID fine-tuned: UMD 31.8 and 19.8, MAE 36.6 and 26.8, DiT 25.6 and "
            "18.9, MaskDiT 26.3 and 19.0. FID of ImageNet is not measured here.",
        ),
    )


def network(settings: Settings, seed: int) -> MaskedAutoencoder:
    """The network of all four."""
    config = {
        "name": "masked-autoencoder", "in_channels": 1, "patch": 2, "hidden": settings.hidden, "depth": settings.depth,
        "decoder_depth": 1, "heads": 4,
    }  # fmt: skip
    return tw.nets.build(config, seed)  # type: ignore[return-value]


def encoder_tokens(loss: MaskedDiffusionLoss, seed: int, batch: int = 64) -> float:
    """Patches an image that the encoder is given in a training step, counted."""
    net = network(Settings(hidden=8, depth=1), seed)
    counted: list[int] = []

    def count(module: Any, inputs: tuple[Tensor, ...]) -> None:
        counted.append(inputs[0].shape[0] * (inputs[0].shape[1] - len(net.class_tokens)))

    net.encoder[0].register_forward_pre_hook(count)
    x = random.normal((batch, 1, 8, 8), seed)
    with torch.no_grad():
        loss(NetworkDenoiser(net, PROCESS, Noise(), time="time"), {"x": x}, seed=seed)
    return sum(counted) / batch


def _tokens(seed: int) -> list[Row]:
    tokens = {name: encoder_tokens(loss, seed) for name, loss in WAYS.items()}
    return [
        within("encoder: patches an image, UMD over DiT", tokens["UMD"] / tokens["DiT"], 0.4375, 1e-9, published=0.44),
        *(info(f"... {name}", value) for name, value in tokens.items()),
    ]


def _exact(seed: int) -> list[Row]:
    net = network(Settings(hidden=16, depth=2), random.fold(seed, 1))
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p += 0.1 * random.normal((1, *p.shape), random.fold(seed, 2), draw=i)[0]
    x, noise = (random.normal((6, 1, 8, 8), random.fold(seed, 3 + i)) for i in range(2))
    chosen = visible_patches(torch.arange(6), PATCHES, 0.375, seed)
    seen = _mask(chosen)
    with torch.no_grad():
        before = net.heads(x, 0.4, visible=chosen)
        moved = net.heads(x + 3.0 * (1.0 - seen) * noise, 0.4, visible=chosen)
        off = max((a - b).abs().max().item() for a, b in zip(before, moved, strict=True))
        model = NetworkDenoiser(net, PROCESS, Noise(), time="time")
        diffusion, t = WAYS["DiT"], torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
        both = diffusion(
            model, diffusion.prepare(PROCESS, {"x": x, "t": t, "noise": noise}, seed=seed, step=0), seed=seed
        )
        plain = DenoisingLoss()(model, {"x": x}, t=t, noise=noise)
        data = (net.heads(PROCESS.perturb(x, t, noise), t.float()).data - x).square().flatten(1).mean(1)
    return [
        at_most("hidden patches: change of the answer when they change", off, 1e-5),
        at_most("nothing clean, nothing hidden: loss, off denoising and data error", (2 * both - plain - data).abs().max(), 1e-4),
    ]  # fmt: skip


def _mask(chosen: Tensor) -> Tensor:
    grid = torch.zeros(len(chosen), PATCHES).scatter(1, chosen, 1.0).reshape(-1, 1, 4, 4)
    return grid.repeat_interleave(2, 2).repeat_interleave(2, 3)


def trained(settings: Settings, seed: int, progress: Progress) -> dict[str, Found]:
    """Every loss on the same network, data, steps and seeds."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train, held = Digits("train"), Digits("test")
    truth = held.batch(torch.arange(len(held)))
    options: dict[str, Any] = {
        "batch_size": settings.batch, "schedule": "cosine", "ema": 0.99, "conditions": (), "progress": False,
        "device": device,
    }  # fmt: skip
    found = {}
    for number, name in enumerate(settings.ways):
        loss, share = WAYS[name], len(settings.ways)
        progress(f"training: {name}", number / share)
        model = NetworkDenoiser(
            network(settings, random.fold(seed, 11)), PROCESS, Noise(), event=(1, 8, 8), time="time"
        )
        made = fit(
            model, train, steps=settings.steps, lr=2e-3, objective=loss, seed=random.fold(seed, 12), **options
        ).denoiser.cpu()
        assert isinstance(made, NetworkDenoiser)
        read, noised = (probe(made, train, truth, seed, t) for t in (0.0, PROBED_AT))
        error = noise_error(made, truth["x"], seed)
        progress(f"fine-tuning: {name}", (number + 0.9) / share)
        tuned = copy.deepcopy(made)  # `fit` trains in place
        tuned = fit(
            tuned, train, steps=settings.tuning, lr=1e-3, objective=TUNED, seed=random.fold(seed, 13), **options
        ).denoiser.cpu()
        with torch.no_grad():
            samples = tw.sample(
                Thresholding(tuned), settings.samples, solver=DDIM(eta=1.0), steps=50, seed=random.fold(seed, 14)
            )
        distance = sliced_wasserstein(samples.flatten(1), truth["x"].flatten(1), seed=random.fold(seed, 15))
        found[name] = Found(
            read, noised, error, noise_error(tuned, truth["x"], seed), float(distance), made, samples[:12]
        )
    return found


def probe(model: NetworkDenoiser, train: Digits, truth: Mapping[str, Tensor], seed: int, t: float = 0.0) -> float:
    """The share of held-out digits that linear classifiers of a few a class read off the representation, on average."""
    whole = train.batch(torch.arange(len(train)))
    network: Any = model.network
    sets = []
    with torch.no_grad():
        for k, x in enumerate((whole["x"], truth["x"])):
            noise = random.normal(x.shape, random.fold(seed, 16, k))
            sets.append(network.represent(x if t == 0.0 else PROCESS.perturb(x, t, noise), t))
    chosen = [few_shots(whole["label"], seed, draw) for draw in range(PROBES)]
    return sum(linear_probe(sets[0][f], whole["label"][f], sets[1], truth["label"]) for f in chosen) / PROBES


def few_shots(label: Tensor, seed: int, draw: int = 0) -> Tensor:
    """The numbers of `SHOTS` samples of each class."""
    order = random.uniform((len(label), 1), random.fold(seed, 17), draw=draw)[:, 0].argsort()
    return torch.cat([order[label[order] == digit][:SHOTS] for digit in range(10)])


def noise_error(model: tw.Denoiser, x: Tensor, seed: int) -> float:
    """Mean square of the noise head's error on whole images."""
    t = (torch.arange(len(x), dtype=torch.float64) + 0.5) / len(x)
    with torch.no_grad():
        return DenoisingLoss()(model, {"x": x}, seed=random.fold(seed, 18), t=t).mean().item()


def _trained_rows(found: Mapping[str, Found]) -> list[Row]:
    umd, mae, dit = found["UMD"], found["MAE"], found["DiT"]
    return [
        greater_than("probe of clean images: MAE over DiT", mae.probe, dit.probe, published="36.6 / 25.6"),
        info(
            "... UMD over DiT, points", 100.0 * (umd.probe - dit.probe), published=6.2, note="scatter of runs: about 4"
        ),
        less_than("noise error: UMD below MAE", umd.error, mae.error, published="FID 19.8 / 26.8"),
        less_than("... fine-tuned, against DiT", umd.tuned, dit.tuned, 1.3),
        less_than("distance of samples, fine-tuned: UMD below MAE", umd.distance, mae.distance),
        *(
            info(
                f"{name}: probe",
                each.probe,
                note=f"of noised {each.noised:.3f}; noise error {each.error:.3f}, fine-tuned {each.tuned:.3f}, "
                f"samples {each.distance:.3f}",
            )
            for name, each in found.items()
        ),
    ]


def _trade_off(found: Mapping[str, Found]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    for axes, name, title in zip(
        figure.subplots(1, 2), ("error", "tuned"), ("after training", "after fine-tuning on noised images"), strict=True
    ):
        for mark, (way, each) in zip("osD^", found.items(), strict=False):
            axes.scatter(getattr(each, name), 100.0 * each.probe, s=60, marker=mark, label=way)
        axes.set(xlabel="error of the noise, all patches seen", ylabel=f"linear probe, {SHOTS} a class, %")
        axes.set_title(title, fontsize=10)
        if name == "error":
            axes.set_xscale("log")
            axes.set_xticks([0.2, 0.5, 1.0, 2.0], ["0.2", "0.5", "1", "2"])
            axes.minorticks_off()
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    return figure


def _pictures(found: Mapping[str, Found], seed: int) -> Any:
    from matplotlib.figure import Figure

    held = Digits("test")
    x = held.batch(torch.arange(12))["x"]
    chosen = visible_patches(torch.arange(12), PATCHES, 0.5, random.fold(seed, 19))
    rows = {"digits": x, "what is seen": torch.where(_mask(chosen) > 0, x, math.nan)}
    for name in ("UMD", "MAE"):
        network: Any = found[name].model.network
        with torch.no_grad():
            rows[f"completed, {name}"] = network.heads(x, 0.0, visible=chosen).data
    rows |= {f"samples, {name}": each.samples for name, each in found.items()}
    figure = Figure(figsize=(8.0, 0.72 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("#c9a0a0")
    axes.imshow(torch.cat([torch.cat(list(each[:, 0]), dim=1) for each in rows.values()]), cmap="gray", vmin=-1, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([8 * k + 3.5 for k in range(len(rows))], list(rows))
    return figure
