"""Switch-DiT (ECCV 2024, arXiv 2403.09176): sparse experts that the time chooses, and a prior by which near times share them.

The mask, its start and the prior first, exactly, and gates that learn nothing but the prior. Then a transformer on the digits:
plain, with experts, and with the prior too; which experts it chooses at which time, and its held-out loss.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tweed.core import random
from tweed.core.denoiser import Denoiser, NetworkDenoiser
from tweed.core.processes import VP
from tweed.core.targets import Noise
from tweed.data.digits import Digits
from tweed.nets.experts import chosen, gate_statistics
from tweed.recipes import Progress, Report, Row, at_most, greater_than, info, less_than, span, within
from tweed.recipes import _switch_dit_exact as exact
from tweed.recipes._switch_dit_exact import ACTIVE, EXPERTS, LEVELS, dissimilarity, off_windows
from tweed.training import DenoisingLoss, Objective, fit
from tweed.training.expert_prior import ExpertPrior, gate_table, match, windows

F64 = torch.float64
NEAR, FAR = 50, 800  # distances of levels
PLAIN, BARE, PRIOR = "plain", "experts alone", "experts and prior"
WAYS: dict[str, Objective] = {PLAIN: DenoisingLoss(), BARE: DenoisingLoss(), PRIOR: ExpertPrior()}
BANDS = 8  # of the time, for held-out losses


@dataclass(frozen=True)
class Settings:
    """Features and blocks of the transformer, steps, digits a step; rounds of timing, and images in each."""

    hidden: int = 64
    blocks: int = 4
    steps: int = 0
    batch: int = 32
    rounds: int = 10
    timed: int = 4


@dataclass(frozen=True)
class Trained:
    """Of one way: the held-out loss; and for experts the divergence from the prior and the gates (LEVELS, depth, EXPERTS)."""

    loss: float
    divergence: float = math.nan
    gates: Tensor | None = None


SCALES = {
    "smoke": Settings(),
    "default": Settings(steps=600),
    "gpu": Settings(hidden=256, blocks=12, steps=20000, batch=512, rounds=100, timed=64),
}


def run(seed: int, scale: str, progress: Progress) -> Report:
    """Mask, prior and cost at every scale, training from `default` on."""
    settings = SCALES[scale]
    progress("mask and prior", 0.0)
    size = settings.hidden, settings.blocks
    rows = [
        *exact.mask_rows(seed),
        *exact.start_rows(*size, seed),
        *exact.prior_rows(seed),
        *exact.alone_rows(seed),
        *exact.cost_rows(*size, settings.timed, settings.rounds, seed),
    ]
    figures: dict[str, Any] = {}
    if settings.steps:
        found = _trained(settings, seed, span(progress, 0.05, 1.0))
        rows += _rows(found)
        figures["experts"] = lambda: _figure(found)
    return Report(
        slug="switch-dit",
        rows=rows,
        seed=seed,
        scale=scale,
        settings={**vars(settings), "experts": EXPERTS, "experts at a time": ACTIVE, "levels": LEVELS},
        figures=figures,
        notes=(
            "Losses: noise prediction on digits that were not trained on, the same times and noise for all, equal steps; the "
            "network with experts has more parameters.",
            "Without the prior too, near times share experts: a gate is a smooth function of the time. The prior says how many "
            "are shared at each distance, and that those that are used count alike.",
            "Published: FID 12.59 (DiT-L/2), 8.90 (routing), 8.78 (Switch-DiT) on ImageNet, which needs its data.",
        ),
    )


def _trained(settings: Settings, seed: int, progress: Progress) -> dict[str, Trained]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = Digits("test")
    held = data.batch(torch.arange(len(data)))["x"].to(device)
    inner = (torch.arange(len(data), dtype=F64) + 0.5) / len(data)
    t = ((torch.arange(BANDS)[:, None] + inner) / BANDS).to(device)
    found = {}
    for number, (way, objective) in enumerate(WAYS.items()):
        progress(f"training: {way}", number / len(WAYS))
        network = exact.network(settings.hidden, settings.blocks, way != PLAIN, random.fold(seed, 20))
        model: Denoiser = fit(
            NetworkDenoiser(network, VP(), Noise(), event=(1, 8, 8)), Digits("train"), steps=settings.steps,
            objective=objective, batch_size=settings.batch, lr=1e-3, schedule="cosine", ema=0.99, conditions=(),
            progress=False, seed=random.fold(seed, 21), device=device,
        ).denoiser  # fmt: skip
        with torch.no_grad():
            losses = [
                DenoisingLoss()(model, {"x": held}, seed=random.fold(seed, 22, band), t=t[band]).mean()
                for band in range(BANDS)
            ]
            loss = torch.stack(losses).mean().item()
            if way == PLAIN:
                found[way] = Trained(loss)
                continue
            levels = (torch.arange(LEVELS, dtype=F64, device=device) + 0.5) / LEVELS
            divergence = ExpertPrior(levels=LEVELS).divergence(model, levels).mean().item()
            found[way] = Trained(loss, divergence, gate_table(model, LEVELS).cpu())
    return found


def _chosen(one: Trained) -> Tensor:
    assert one.gates is not None
    return chosen(one.gates, ACTIVE).flatten(1)


def _rows(found: Mapping[str, Trained]) -> list[Row]:
    plain, bare, prior = (found[way] for way in WAYS)
    tables = {way: _chosen(found[way]) for way in (BARE, PRIOR)}
    near, far = ({way: dissimilarity(table, d) for way, table in tables.items()} for d in (NEAR, FAR))
    ratio = {way: near[way] / max(far[way], 1e-9) for way in tables}
    use = {way: gate_statistics(each.gates, ACTIVE) for way, each in found.items() if each.gates is not None}
    off = {way: off_windows(table) for way, table in tables.items()}
    entropy = {way: each.entropy.mean() for way, each in use.items()}
    rows = [
        less_than("divergence from the prior, against experts without it", prior.divergence, bare.divergence, 0.25),
        at_most("... chosen slots off the windows, share", off[PRIOR], 0.03, baseline=off[BARE]),
        at_most(f"experts not shared at {NEAR} levels of {LEVELS}, over those at {FAR}", ratio[PRIOR], 0.3, baseline=ratio[BARE]),
        greater_than(f"... at {FAR} levels, against the windows'", far[PRIOR], dissimilarity(_window(prior), FAR), 0.8),
        within("entropy of the gates: log 2, two count alike", entropy[PRIOR], math.log(2), 0.06, baseline=entropy[BARE]),
        less_than("held-out loss: experts and prior, against plain", prior.loss, plain.loss, 1.02, published="lower"),
        info("... experts alone", bare.loss, baseline=plain.loss),
    ]  # fmt: skip
    for way, each in use.items():
        loads = "; ".join(" ".join(f"{load:.2f}" for load in block) for block in each.load.tolist())
        share = (each.load.max(1).values > 0.99).double().mean()
        rows.append(info(f"{way}: blocks with an expert that all times use", share, note=f"shares of times: {loads}"))
    return rows


def _window(one: Trained) -> Tensor:
    return windows(LEVELS, _chosen(one).shape[1] // EXPERTS, EXPERTS, ACTIVE)


def _figure(found: Mapping[str, Trained]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14.5, 3.9), layout="constrained")
    *maps, right = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.15))
    prior = _window(found[PRIOR])
    slots = prior.shape[1]
    names = [f"{b + 1}.{'abcdefgh'[e]}" for b in range(slots // EXPERTS) for e in range(EXPERTS)]
    panels: dict[str, tuple[Tensor, Tensor, list[str]]] = {"the prior's windows": (prior / ACTIVE, prior, [])}
    for way in (PRIOR, BARE):
        gates, table = found[way].gates, _chosen(found[way])
        assert gates is not None
        order = match(table, prior).argsort()  # the slot of each column of the prior
        panels[way] = ((gates.flatten(1) * table)[:, order], table, [names[i] for i in order.tolist()])
    shown: Any = None
    for axes, (title, (gates, _, ticks)) in zip(maps, panels.items(), strict=True):
        shown = axes.imshow(
            gates.T.numpy(), aspect="auto", origin="lower", extent=(0, 1, -0.5, slots - 0.5), cmap="Blues", vmin=0, vmax=1,
            interpolation="nearest",
        )  # fmt: skip
        axes.set(xlabel="time (data at 0)", ylabel="block and expert" if ticks else "slot")
        axes.set_title(title, fontsize=10)
        if ticks and slots <= 16:
            axes.set_yticks(range(slots), ticks, fontsize=7)
    figure.colorbar(shown, ax=maps, label="gate (white: not chosen)", pad=0.01)
    distances = [10, 25, *range(50, 951, 50)]
    for (title, (_, table, _)), style in zip(panels.items(), ("-", "o", "s"), strict=True):
        line = {"color": "#c0c0c0", "linewidth": 6} if style == "-" else {"marker": style, "markersize": 3.5}
        right.plot([d / LEVELS for d in distances], [dissimilarity(table, d) for d in distances], label=title, **line)
    right.set(xlabel="distance of two times", ylim=(0, None))
    right.set_title("chosen experts that two times do not share", fontsize=10)
    right.grid(alpha=0.25)
    right.legend(fontsize=8)
    return figure
