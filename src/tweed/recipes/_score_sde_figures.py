"""The figures of the recipe `score-sde`."""

from typing import Any

from torch import Tensor

from tweed.training import tile

_COLORS = {"predictor": "tab:gray", "PC, r = 0.16": "tab:blue", "PC, r = 0.3": "tab:orange"}
_LEVELS = (0.05, 0.1, 0.2, 0.5)


def curves(points: dict[str, list[tuple[int, float]]]) -> Any:
    """The excess variance of each sampler against its evaluations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 4.0), layout="constrained")
    ax = figure.subplots()
    for name, line in points.items():
        ax.plot(*zip(*sorted(line), strict=True), "o-", color=_COLORS.get(name), label=name)
    ax.set(xscale="log", yscale="log", xlabel="evaluations of the score", ylabel="excess variance within a mode")
    ticks = sorted({evaluations for line in points.values() for evaluations, _ in line})
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.set_yticks(_LEVELS, [f"{level:g}" for level in _LEVELS])
    ax.minorticks_off()
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    ax.set_title("Reverse diffusion with and without a Langevin corrector\n(VE, exact score of a mixture, d = 8)")
    ax.title.set_fontsize(10)
    return figure


def strips(title: str, lines: dict[str, Tensor]) -> Any:
    """Images (n, 1 or 3, h, w) in lines, each under its name."""
    from matplotlib.figure import Figure

    widest = max(len(images) for images in lines.values())
    figure = Figure(figsize=(0.62 * widest + 0.2, 0.92 * len(lines) + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=11)
    for ax, (name, images) in zip(figure.subplots(len(lines), 1, squeeze=False)[:, 0], lines.items(), strict=True):
        sheet = tile(images, columns=widest).numpy()
        ax.imshow(sheet, interpolation="nearest")
        ax.set_title(name, fontsize=9, loc="left", pad=2)
        ax.axis("off")
    return figure
