"""Figures of the longer context: heat maps of needles, and what training has shown of each pair."""

from collections.abc import Mapping
from typing import Any

from tweed.recipes._figures import curves
from tweed.tokens.needle import NeedleGrid
from tweed.tokens.rope_coverage import RopeCoverage


def grids_figure(grids: Mapping[str, NeedleGrid]) -> Any:
    """Heat maps side by side, on one scale from 0 to 1: lengths along, depths down."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(grids), 3.6), layout="constrained")
    panels = list(figure.subplots(1, len(grids), squeeze=False).flat)
    image: Any = None
    for axes, (title, grid) in zip(panels, grids.items(), strict=True):
        image = axes.imshow(grid.scores.T.numpy(), vmin=0.0, vmax=1.0, cmap="RdYlGn", aspect="auto")
        axes.set_xticks(range(len(grid.lengths)), [str(length) for length in grid.lengths])
        axes.set_yticks(range(len(grid.depths)), [f"{100 * depth:.0f} %" for depth in grid.depths])
        axes.set(xlabel="length read", ylabel="depth of the needle")
        axes.set_title(title, fontsize=10)
        for i in range(len(grid.lengths)):
            for j in range(len(grid.depths)):
                axes.text(i, j, f"{grid.scores[i, j].item():.2f}", ha="center", va="center", fontsize=7)
    figure.colorbar(image, ax=panels, label="answers found")
    return figure


def coverage_figure(found: Mapping[str, RopeCoverage]) -> Any:
    """The share of the circle that each pair has passed, and its lowest sine, by kind of training."""
    panels: dict[str, Any] = {"share of a turn seen in training": {}, "lowest sine seen in training": {}}
    for name, each in found.items():
        pairs = list(range(len(each.turned)))
        panels["share of a turn seen in training"][name] = (pairs, each.turned.tolist())
        panels["lowest sine seen in training"][name] = (pairs, each.sin[:, 0].tolist())
    return curves(panels, xlabel="pair of features, fastest first", ylabel="", log="")
