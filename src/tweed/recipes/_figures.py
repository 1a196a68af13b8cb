"""The figure that most recipes need: some curves over one axis, in one or several panels."""

from collections.abc import Mapping, Sequence
from typing import Any

Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""A name and its points, (x, y)."""


def curves(
    panels: Mapping[str, Curves],
    *,
    xlabel: str,
    ylabel: str,
    log: str = "xy",
    ticks: Sequence[float] | None = None,
    width: float = 4.6,
    legend: str = "best",
) -> Any:
    """One panel a title, three in a row, each with its curves; `log` names the logarithmic axes.

    Curves whose name begins with "~" are drawn thin and grey, as what is compared with; the rest in colour.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    across = min(len(panels), 3)
    down = -(-len(panels) // across)
    figure = Figure(figsize=(width * across, 3.9 * down), layout="constrained")
    grid = list(figure.subplots(down, across, squeeze=False).flat)
    for spare in grid[len(panels) :]:
        spare.set_axis_off()
    marks, styles = "os^Dv<>P*X", ("-", "--", ":", "-.")
    for axes, (title, lines) in zip(grid, panels.items(), strict=False):
        coloured = grey = 0
        for name, (x, y) in lines.items():
            shown = {"markersize": 3.8, "linewidth": 1.4, "label": name.removeprefix("~")}
            if name.startswith("~"):
                shown |= {"color": "#8a8a8a", "linestyle": styles[grey % 4], "linewidth": 1.1}
                grey += 1
            else:
                shown |= {"color": f"C{coloured}"}
                coloured += 1
            axes.plot(x, y, marker=marks[(coloured + grey) % len(marks)], **shown)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_title(title, fontsize=10)
        if "x" in log:
            axes.set_xscale("log")
        if "y" in log:
            axes.set_yscale("log")
        if ticks is not None:
            axes.minorticks_off()
            axes.set_xticks(ticks)
            axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7.5, loc=legend)
    return figure
