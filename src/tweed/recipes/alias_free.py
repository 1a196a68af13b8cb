"""Alias-free resampling (2024, arXiv 2411.09174): what low-pass filters in a U-Net do to its feeling for shifts and turns.

Resampling alone on images with a natural spectrum; then small U-Nets on digits, with maxima and interpolation (A), with
filters in their place (B), and with filtered nonlinearities as well (D): how much a shift of one pixel changes the answer,
and whether the same digit comes out when the state is turned while it is sampled.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import tweed as tw
from tweed.core import random
from tweed.core.denoiser import Denoiser, NetworkDenoiser
from tweed.core.exact import GaussianDenoiser
from tweed.core.processes import VP
from tweed.core.targets import Noise
from tweed.data.dataset import Tensors
from tweed.data.digits import Digits
from tweed.guidance import Thresholding
from tweed.nets.alias_free import AliasFreeDown, AliasFreeUp, low_pass_kernel
from tweed.recipes import Progress, Report, Row, at_most, greater_than, info, less_than
from tweed.recipes._figures import curves
from tweed.solvers import DDIM, rotate, rotating
from tweed.training import DenoisingLoss, fit

F64 = torch.float64
WAYS: dict[str, dict[str, Any]] = {
    "A, maxima and interpolation": {"resample": "pool"},
    "B, filters": {"resample": "alias-free"},
    "D, filters and filtered nonlinearities": {"resample": "alias-free", "filtered_activations": True},
}
PLAIN, FILTERS, BOTH = WAYS
SIDE, TIMES = 16, (0.1, 0.2, 0.4)
ANGLES, STEPS = (30.0, 60.0), 30  # of sampling


@dataclass(frozen=True)
class Settings:
    """Images of the resampling, and steps, pictures a step and channels of the networks."""

    images: int
    steps: int = 0
    batch: int = 32
    channels: int = 16


SCALES = {"smoke": Settings(64), "default": Settings(256, 400), "gpu": Settings(2048, 10000, 128, 64)}


@dataclass(frozen=True)
class Network:
    """Of a trained network: held-out loss, the relative error under shifts by a pixel at each time and a quarter turn, seconds
    of these, samples at each angle, and the correlation of those, turned back, with the upright ones.
    """

    loss: float
    shift: dict[float, float]
    turn: float
    seconds: float
    samples: dict[float, Tensor]
    kept: dict[float, float]


def run(seed: int, scale: str, progress: Progress) -> Report:
    """Resampling at every scale, networks from `default` on."""
    settings = SCALES[scale]
    errors, rows = _resampling(seed, settings.images)
    rows.append(_rotation_row(seed))
    figures: dict[str, Any] = {"resampling": lambda: _resampling_figure(errors)}
    if settings.steps:
        found = _networks(settings, seed, progress)
        rows += _network_rows(found)
        figures["networks"] = lambda: _network_figure(found)
        figures["rotations"] = lambda: _rotation_figure(found)
    return Report(
        slug="alias-free",
        rows=rows,
        seed=seed,
        scale=scale,
        settings={**vars(settings), "side": SIDE, "times": TIMES},
        figures=figures,
        notes=(
            "Error: |F(shift x) - shift F(x)| over |F(x)|. Resampling wraps round; networks are compared away from the border.",
            "The official kernel has three taps, and no gain on the way up: with them a shift is felt more than without filters.",
            "Published: FID of CIFAR-10 98.8 to 90.2 by the best of twelve variants, worse by others; not measured here.",
        ),
    )


def natural(n: int, size: int, seed: int) -> Tensor:
    """Images (n, 1, size, size) with a spectrum 1/f, float64."""
    f = torch.fft.fftfreq(size, dtype=F64)
    radius = (f[:, None] ** 2 + f**2).sqrt()
    weight = torch.where(radius > 0, 1.0 / radius.clamp_min(1e-9), torch.zeros_like(radius))
    return torch.fft.ifft2(torch.fft.fft2(random.normal((n, 1, size, size), seed, dtype=F64)) * weight).real


def shift_error(operator: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """How much is lost when a shift by one pixel comes before rather than after."""
    still = operator(x)
    return ((operator(x.roll(1, -1)) - still.roll(1, -1)).norm() / still.norm()).item()


def there_and_back(size: int, beta: float) -> Callable[[Tensor], Tensor]:
    """Filtered down and up again, wrapping round."""
    down = AliasFreeDown(size=size, beta=beta, padding="circular").double()
    up = AliasFreeUp(size=size, beta=beta, padding="circular").double()
    return lambda x: up(down(x))


def _resampling(seed: int, n: int) -> tuple[dict[str, dict[int, float]], list[Row]]:
    x = natural(n, 32, random.fold(seed, 1))
    plain = shift_error(lambda x: F.interpolate(F.max_pool2d(x, 2), scale_factor=2.0, mode="bilinear"), x)
    errors = {
        f"Kaiser {beta:g}": {size: shift_error(there_and_back(size, beta), x) for size in (3, 5, 7, 11)}
        for beta in (0.0, 2.0)
    }
    kernel = low_pass_kernel()
    wave = torch.cos(2 * math.pi * 0.4 * torch.arange(40, dtype=F64)).expand(1, 1, 40, 40)
    leak = AliasFreeDown(size=11, padding="circular").double()(wave).norm() / wave[..., ::2, ::2].norm()
    ones = torch.ones(1, 1, 8, 8, dtype=F64)
    ours = there_and_back(7, 2.0)
    even = (ours(x.roll(2, -1)) - ours(x).roll(2, -1)).abs().max()
    rows = [
        at_most("kernel: off its quarter turn", (kernel - kernel.rot90()).abs().max(), 1e-12),
        at_most("... its sum off 1", abs(kernel.sum() - 1.0), 1e-12),
        at_most("down and up: a constant is off by", (ours(ones) - ones).abs().max(), 0.05),
        at_most("... shift by two pixels: error", even, 1e-9),
        less_than("shift by one pixel: 7 taps, against maxima and interpolation", errors["Kaiser 2"][7], plain, 0.5),
        greater_than("... 3 taps, as published", errors["Kaiser 2"][3], plain),
        at_most("a wave of 0.4 cycles a pixel: what aliases, of all", leak, 0.1),
    ]
    return {"maxima and interpolation": dict.fromkeys((3, 5, 7, 11), plain), **errors}, rows


def _data(split: str) -> Tensor:
    return F.interpolate(Digits(split).x, scale_factor=2.0, mode="bilinear")


def _networks(settings: Settings, seed: int, progress: Progress) -> dict[str, Network]:
    import time

    train, held = Tensors(_data("train")), _data("test")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = {}
    for number, (name, options) in enumerate(WAYS.items()):
        progress(f"training: {name}", number / len(WAYS))
        config = {
            "name": "unet", "in_channels": 1, "channels": settings.channels, "multipliers": [1, 2], "blocks": 1,
            "groups": 4, "middle_attention": False, "attention_levels": [], **options,
        }  # fmt: skip
        network = tw.nets.build(config, random.fold(seed, 11))
        model = NetworkDenoiser(network, VP(), Noise(), event=(1, SIDE, SIDE))
        options = {"lr": 2e-3, "schedule": "cosine", "ema": None, "progress": False, "device": device}
        fit(
            model, train, steps=settings.steps, batch_size=settings.batch, objective=DenoisingLoss(),
            seed=random.fold(seed, 12), **options,
        )  # fmt: skip
        model = model.cpu().eval()
        with torch.no_grad():
            loss = DenoisingLoss()(model, {"x": held}, seed=random.fold(seed, 13)).mean().item()
            begun = time.perf_counter()
            shift = {t: _network_error(model, held, t, seed, lambda x: x.roll(1, -1)) for t in TIMES}
            seconds = time.perf_counter() - begun
            turn = _network_error(model, held, TIMES[1], seed, lambda x: x.rot90(1, (-2, -1)))
            samples = {
                angle: rotated_samples(Thresholding(model), angle, random.fold(seed, 15)) for angle in (0.0, *ANGLES)
            }
        kept = {angle: _correlation(rotate(samples[angle], -angle), samples[0.0]) for angle in ANGLES}
        found[name] = Network(loss, shift, turn, seconds, samples, kept)
    return found


def rotated_samples(model: Denoiser, angle: float, seed: int, n: int = 64) -> Tensor:
    """Samples from the same starts, the state turned by `angle` degrees along the run."""
    return tw.sample(model, n, solver=DDIM(), steps=STEPS, seed=seed, observer=rotating(angle, STEPS))


def _correlation(a: Tensor, b: Tensor) -> float:
    place = torch.arange(a.shape[-1], dtype=F64) - 0.5 * (a.shape[-1] - 1)
    disc = (place[:, None] ** 2 + place**2).sqrt() <= 0.45 * a.shape[-1]
    a, b = (x[..., disc].double().flatten(1) for x in (a, b))
    return torch.nn.functional.cosine_similarity(a - a.mean(1, True), b - b.mean(1, True)).mean().item()


def _rotation_row(seed: int) -> Row:
    # An isotropic law: its field commutes with rotations, so turning along the way is turning at the end.
    model = GaussianDenoiser(torch.zeros(1, SIDE, SIDE), 0.5, VP())
    turned = rotated_samples(model, 0.0, seed, 4)
    for _ in range(STEPS):
        turned = rotate(turned, ANGLES[0] / STEPS)
    off = (rotated_samples(model, ANGLES[0], seed, 4) - turned).abs().max()
    return at_most("an isotropic law: samples turned along the way, off those turned at the end", off, 1e-4)


def _network_error(
    model: NetworkDenoiser, x0: Tensor, t: float, seed: int, change: Callable[[Tensor], Tensor]
) -> float:
    x = model.process.perturb(x0, t, random.normal(x0.shape, random.fold(seed, 14)))
    still, moved = model(x, t).eps, model(change(x), t).eps
    inside = (..., slice(3, -3), slice(3, -3))
    return ((moved - change(still))[inside].norm() / still[inside].norm()).item()


def _network_rows(found: Mapping[str, Network]) -> list[Row]:
    plain, rows = found[PLAIN], []
    for name, bound in ((FILTERS, 1.0), (BOTH, 0.8)):
        one = found[name]
        mean, base = (sum(each.shift.values()) / len(TIMES) for each in (one, plain))
        rows += [
            less_than(f"network {name}: shift by a pixel, against A", mean, base, bound),
            info("... held-out loss", one.loss, baseline=plain.loss, note="baseline: A"),
            info("... a quarter turn", one.turn, baseline=plain.turn, note="baseline: A"),
            info(
                f"... samples turned by {ANGLES[0]:g} degrees: correlation with upright ones",
                one.kept[ANGLES[0]],
                baseline=plain.kept[ANGLES[0]],
                published="one object at any angle",
                note=f"by {ANGLES[1]:g}: {one.kept[ANGLES[1]]:.2f}, A {plain.kept[ANGLES[1]]:.2f}",
            ),
            info("... time, of A", one.seconds / plain.seconds),
        ]
    return rows


def _resampling_figure(errors: Mapping[str, Mapping[int, float]]) -> Any:
    lines = {
        ("~" if name.startswith("maxima") else "") + name: ([float(n) for n in each], list(each.values()))
        for name, each in errors.items()
    }
    return curves(
        {"error under a shift by one pixel": lines}, xlabel="taps", ylabel="", log="y", ticks=(3.0, 5.0, 7.0, 11.0)
    )


def _network_figure(found: Mapping[str, Network]) -> Any:
    lines = {name: (list(each.shift), list(each.shift.values())) for name, each in found.items()}
    return curves({"error of the network under a shift by one pixel": lines}, xlabel="time", ylabel="", log="")


def _rotation_figure(found: Mapping[str, Network]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 0.78 * len(found) * (len(ANGLES) + 1)), layout="constrained")
    grid = figure.subplots(len(found), 1)
    for axes, (name, one) in zip(grid, found.items(), strict=True):
        rows = [torch.cat(list(each[:12, 0]), dim=-1) for each in one.samples.values()]
        axes.imshow(torch.cat(rows).clamp(-1.0, 1.0), cmap="gray")
        axes.set_xticks([])
        axes.set_yticks([SIDE * (k + 0.5) for k in range(len(rows))], [f"{angle:g}°" for angle in one.samples])
        axes.set_title(f"{name}: the same starts, turned by", fontsize=10)
    return figure
