"""Spectrograms of one sentence in all its versions, and the exact case by the number of steps."""

from collections.abc import Mapping
from typing import Any

from tweed.data.spectrograms import CompressedSTFT
from tweed.recipes._figures import curves
from tweed.recipes._speech_measured import Part

_DECIBELS = 60.0


def spectrograms(parts: Mapping[str, Part]) -> Any:
    """One sample a row: clean, degraded, by regression, by 30 steps."""
    from matplotlib.figure import Figure

    names = ("degraded", "discriminative", "30 steps")
    shown = [(part, index) for part in parts.values() for index in range(min(len(part.kinds), len(part.clean)))]
    figure = Figure(figsize=(11.5, 1.7 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), 4, squeeze=False)
    stft = CompressedSTFT(exponent=1.0, factor=1.0)
    picture = None
    for row, (part, index) in zip(grid, shown, strict=True):
        waves = {"clean": part.clean[index], **{name: part.versions[name][index] for name in names}}
        top = 20.0 * stft.compress(waves["clean"]).abs().max().log10().item()
        for axes, (title, wave) in zip(row, waves.items(), strict=True):
            level = 20.0 * stft.compress(wave)[0].abs().clamp_min(1e-8).log10()
            extent = (0.0, len(wave) / 16000, 0.0, 8.0)
            picture = axes.imshow(
                level.numpy(),
                origin="lower",
                aspect="auto",
                extent=extent,
                vmin=top - _DECIBELS,
                vmax=top,
                cmap="magma",
            )
            kind = part.kinds[index % len(part.kinds)]
            axes.set_title(f"{title} ({kind})" if title == "degraded" else title, fontsize=9)
            axes.tick_params(labelsize=7)
        row[0].set_ylabel("kHz", fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("seconds", fontsize=8)
    if picture is not None:
        figure.colorbar(picture, ax=grid, shrink=0.5, label="dB")
    return figure


def exact(found: Mapping[str, Mapping[int, tuple[float, float]]]) -> Any:
    """Bias and variance of the sampler with an exact score, against the steps."""
    panels = {
        "bias of the mean, share of |y - posterior mean|": {
            name: (list(each), [abs(bias) for bias, _ in each.values()]) for name, each in found.items()
        },
        "variance, share of the posterior's": {
            name: (list(each), [variance for _, variance in each.values()]) for name, each in found.items()
        },
    }
    return curves(panels, xlabel="steps", ylabel="", ticks=list(next(iter(found.values()))))
