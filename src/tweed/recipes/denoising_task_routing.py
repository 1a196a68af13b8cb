"""Denoising task routing (ICLR 2024, arXiv 2310.07138): every noise level sees channels of its own.

The masks and the block first, exactly. Then a transformer on the digits: plain, with sliding windows, and with the baseline
whose levels have random channels; and the time of a step of each.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import tweed as tw
from tweed.core import random
from tweed.core.denoiser import NetworkDenoiser
from tweed.core.processes import VP
from tweed.core.targets import Noise
from tweed.data.digits import Digits
from tweed.nets.routing import ChannelRouting
from tweed.recipes import Progress, Report, Row, at_most, check, info, less_than
from tweed.recipes._timing import in_turns, least_ratio
from tweed.training import DenoisingLoss, fit

F64 = torch.float64
SHARE, POWER = 0.8, 4.0
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "windows": {"routing": SHARE, "routing_power": POWER},
    "random channels": {"routing": SHARE, "routing_mode": "random"},
}
PLAIN, WINDOWS, RANDOM = WAYS
BANDS = 8  # of the time, that held-out losses are told apart by


@dataclass(frozen=True)
class Settings:
    """Features and blocks of the transformer, steps, digits a step, runs; rounds of timing, and images in each."""

    hidden: int = 64
    blocks: int = 6
    steps: int = 0
    batch: int = 128
    runs: int = 1
    rounds: int = 20
    timed: int = 4


SCALES = {
    "smoke": Settings(),
    "default": Settings(steps=1000),
    "gpu": Settings(hidden=256, blocks=12, steps=20000, batch=512, runs=3, rounds=100, timed=64),
}


def run(seed: int, scale: str, progress: Progress) -> Report:
    """Masks, block and time at every scale, training from `default` on."""
    settings = SCALES[scale]
    rows = [*_masks(), *_block(settings, seed), _time(settings, seed, progress)]
    figures: dict[str, Any] = {}
    if settings.steps:
        losses = _trained(settings, seed, progress)
        rows += _loss_rows(losses)
        figures["routing"] = lambda: _figure(losses, settings)
    return Report(
        slug="denoising-task-routing",
        rows=rows,
        seed=seed,
        scale=scale,
        settings={**vars(settings), "share": SHARE, "power": POWER},
        figures=figures,
        notes=(
            "Losses: noise prediction on digits that were not trained on, the same times and noise for all.",
            "Published: FID 12.59 to 8.90 of DiT-L/2 on ImageNet, 9.40 to 10.85 of DiT-XL/2. A gain over plain needs levels that "
            "compete for channels: none is expected of small networks on one easy data set.",
        ),
    )


def _masks() -> list[Row]:
    levels, channels = 1000, 96
    t = torch.arange(levels, dtype=F64) / (levels - 1)
    masks = ChannelRouting(channels, SHARE, POWER)(t)
    active = round(masks[0].sum().item())
    first = masks.argmax(1)
    expected = (active - (first[:, None] - first).abs()).clamp_min(0)
    whole = first == ((channels - active) * t**POWER).round()
    return [
        check("every level has its share of channels", bool((masks.sum(1) == active).all()), f"{active} of {channels}"),
        at_most("offset of the window: off round((C - active) t^4)", (~whole).sum(), 0),
        at_most(
            "channels that two levels share: off active - |difference of offsets|",
            (masks @ masks.T - expected).abs().max(),
            0.0,
        ),
        info(
            "t at which half of the offsets are used", t[(first <= (channels - active) // 2).sum() - 1], published=0.84
        ),
    ]


def _network(settings: Settings, way: str, seed: int, zero_init: bool = True) -> nn.Module:
    base = {
        "name": "dit", "in_channels": 1, "patch": 2, "hidden": settings.hidden, "depth": settings.blocks, "heads": 4,
        "zero_init": zero_init,
    }  # fmt: skip
    return tw.nets.build({**base, **WAYS[way]}, seed)


def _block(settings: Settings, seed: int) -> list[Row]:
    nets = {way: _network(settings, way, random.fold(seed, 1), zero_init=False) for way in WAYS}
    x, t = random.normal((5, 1, 8, 8), random.fold(seed, 2)), torch.linspace(0.0, 1.0, 5)
    with torch.no_grad():
        fresh = [(net(x, t) - nets[PLAIN](x, t)).abs().max().item() for net in nets.values()]
        whole = _whole(nets[PLAIN], settings, seed)
        same = (whole(x, t) - nets[PLAIN](x, t)).abs().max()
    sizes = {sum(p.numel() for p in net.parameters()) for net in nets.values()}
    return [
        at_most("blocks that write nothing: routed off plain", max(fresh), 1e-5),
        at_most("a share of 1: off plain, weights open", same, 0.0),
        check("parameters are those of plain", len(sizes) == 1, "equal", here=max(sizes)),
    ]


def _whole(plain: nn.Module, settings: Settings, seed: int) -> nn.Module:
    # Opens the zero-initialised paths of `plain`, and gives the same weights to a network whose windows are everything.
    for i, p in enumerate(plain.parameters()):
        p += 0.1 * random.normal((1, *p.shape), random.fold(seed, 3), draw=i)[0]
    config: Any = plain.config
    net = tw.nets.build({**config, "routing": 1.0, "routing_power": 2.0}, 0)
    net.load_state_dict(plain.state_dict())
    return net


def _time(settings: Settings, seed: int, progress: Progress) -> Row:
    progress("time of a step", 0.0)
    batch = settings.timed
    x, t = (
        random.normal((batch, 1, 32, 32), random.fold(seed, 4)),
        random.uniform((batch, 1), random.fold(seed, 5))[:, 0],
    )

    def step(net: nn.Module) -> Any:
        return lambda: net(x, t).square().mean().backward()

    runs = {way: step(_network(settings, way, 1)) for way in (PLAIN, WINDOWS)}
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    times = in_turns(runs, settings.rounds, clock=clock)
    return at_most(
        "time of forward and backward, of plain", least_ratio(times[WINDOWS], times[PLAIN]), 1.15, published="none"
    )


def _trained(settings: Settings, seed: int, progress: Progress) -> dict[str, Tensor]:
    """Held-out losses of each way, (runs, BANDS), from low times to high."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = Digits("test")
    held = data.batch(torch.arange(len(data)))["x"].to(device)
    found: dict[str, list[Tensor]] = {way: [] for way in WAYS}
    inner = (torch.arange(len(data), dtype=F64) + 0.5) / len(data)
    t = ((torch.arange(BANDS)[:, None] + inner) / BANDS).to(device)
    for k in range(settings.runs):
        for number, way in enumerate(WAYS):
            progress(f"training: {way}, run {k + 1}", 0.05 + 0.95 * (k + number / len(WAYS)) / settings.runs)
            network = _network(settings, way, random.fold(seed, 11, k))
            model = fit(
                NetworkDenoiser(network, VP(), Noise(), event=(1, 8, 8), time="time"), Digits("train"),
                steps=settings.steps, batch_size=settings.batch, lr=1e-3, schedule="cosine", ema=0.99, conditions=(),
                progress=False, seed=random.fold(seed, 12, k), device=device,
            ).denoiser  # fmt: skip
            with torch.no_grad():
                losses = [
                    DenoisingLoss()(model, {"x": held}, seed=random.fold(seed, 13, band), t=t[band]).mean()
                    for band in range(BANDS)
                ]
            found[way].append(torch.stack(losses).cpu())
    return {way: torch.stack(each) for way, each in found.items()}


def _loss_rows(losses: Mapping[str, Tensor]) -> list[Row]:
    plain, windows, scattered = (losses[way].mean().item() for way in WAYS)
    return [
        less_than("held-out loss: windows, against plain", windows, plain, 1.02),
        less_than("... against random channels", windows, scattered, 0.95),
        info("... windows over plain, published as a gain", windows / plain, note="small network, one data set"),
    ]


def _figure(losses: Mapping[str, Tensor], settings: Settings) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 3.8), layout="constrained")
    t = torch.linspace(0.0, 1.0, 400)
    left, middle, right = figure.subplots(1, 3)
    for axes, way in ((left, WINDOWS), (middle, RANDOM)):
        mode = "random" if way == RANDOM else "window"
        masks = ChannelRouting(settings.hidden, SHARE, POWER, mode=mode)(t)
        axes.imshow(
            masks.T,
            aspect="auto",
            origin="lower",
            extent=(0, 1, 0, settings.hidden),
            cmap="Greys",
            vmax=1.4,
            interpolation="nearest",
        )
        axes.set(xlabel="time (data at 0)", ylabel="channel")
        axes.set_title(f"{way}: what a block sees (dark)", fontsize=10)
    places = (torch.arange(BANDS) + 0.5) / BANDS
    for way, mark in zip((WINDOWS, RANDOM), "os", strict=True):
        right.plot(places, losses[way].mean(0) / losses[PLAIN].mean(0), marker=mark, label=way)
    right.axhline(1.0, color="#8a8a8a", linewidth=1.0, label=PLAIN)
    right.set(xlabel="time (data at 0)")
    right.set_title("held-out loss, of the plain network's", fontsize=10)
    right.grid(alpha=0.25)
    right.legend(fontsize=8)
    return figure
