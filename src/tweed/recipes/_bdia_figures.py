"""The figures of the recipe `bdia`."""

from typing import Any

from torch import Tensor

from tweed.recipes._bdia_exact import COUNTS, Curves
from tweed.training import tile

_COLORS = {
    "DDIM": "#7a7a7a",
    "EDICT": "#b24a8a",
    "gamma = 0.25": "#bcd7ee",
    "gamma = 0.5": "#8fbce0",
    "gamma = 0.75": "#5a9bd0",
    "gamma = 0.9": "#2f7ab9",
    "gamma = 1": "#12507f",
}


def curves(found: Curves) -> Any:
    """Errors against evaluations, and round trip errors against steps."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(9.0, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, lines in ((left, found.errors), (right, found.trips)):
        for name, points in lines.items():
            axes.plot(*zip(*points, strict=True), "-o", markersize=3.5, linewidth=1.5, color=_COLORS[name], label=name)
        axes.set(xscale="log", yscale="log")
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    left.set_ylim(top=1.0)
    left.set(xlabel="evaluations", ylabel="median error", title="distance to the converged flow")
    right.set(xlabel="steps", ylabel="largest difference", title="noise to digits and back, float64")
    for axes, ticks in ((left, sorted({*COUNTS, 2 * COUNTS[-1]})), (right, COUNTS)):
        axes.set_xticks(ticks)
        axes.xaxis.set_major_formatter(ScalarFormatter())
    return figure


def edits(lines: dict[str, Tensor]) -> Any:
    """Images in lines under their names."""
    from matplotlib.figure import Figure

    count = len(next(iter(lines.values())))
    figure = Figure(figsize=(0.75 * count + 1.7, 0.78 * len(lines)), layout="constrained")
    for axes, (name, images) in zip(figure.subplots(len(lines), 1, squeeze=False)[:, 0], lines.items(), strict=True):
        axes.imshow(tile(images.clamp(-1.0, 1.0), columns=count).numpy(), interpolation="nearest")
        axes.set_ylabel(name, fontsize=9, rotation=0, ha="right", va="center")
        axes.set_xticks([])
        axes.set_yticks([])
        for side in axes.spines.values():
            side.set_visible(False)
    return figure
