"""Outline first, details later (Wang & Vastola, 2023, arXiv 2303.02490): the closed-form theory of sampling trajectories.

The probability flow of a Gaussian in closed form, against a numerical solver; then how far it describes the trajectories of
the digits' exact score and of the bundled network: the state's error, the geometry, the order in which features appear,
the variance settled by each time, and what perturbations early and late do to the result.
"""

from typing import Any

from tweed.recipes import Progress, Report
from tweed.recipes import _painters_exact as exact
from tweed.recipes import _painters_glyphs as glyphs
from tweed.recipes._painters_exact import Trace
from tweed.recipes._painters_glyphs import Film, Sizes
from tweed.recipes.report import span

STARTS = {"smoke": 96, "default": 256, "gpu": 2048}
STEPS = {"smoke": 32, "default": 80, "gpu": 200}
SIZES = {"smoke": Sizes(1, 4, 14, 300), "default": Sizes(3, 10, 24, 1344), "gpu": Sizes(36, 64, 50, 1344)}


def run(seed: int, scale: str, progress: Progress) -> Report:
    progress("closed form against the solver", 0.0)
    rows = exact.closed_form(seed)
    progress("digits", 0.05)
    more, digits = exact.digits(seed, STARTS[scale], STEPS[scale])
    rows += more + exact.geometry(seed, STARTS[scale] // 4)
    learned, trace, film = glyphs.run(seed, SIZES[scale], span(progress, 0.3, 1.0))
    traces = {"digits, exact score, EDM": digits, "glyphs, bundled network, VP": trace}
    return Report(
        slug="gaussian-painters",
        rows=rows + learned,
        seed=seed,
        scale=scale,
        settings={"starts": STARTS[scale], "steps": STEPS[scale], "component std": exact.STD, "glyphs": SIZES[scale]},
        figures={"curves": lambda: _figure_curves(traces), "film": lambda: _figure_film(film)},
        notes=(
            "Errors of states are relative to their length about the mean, over all starts; a layout direction is the "
            "first principal one of the data, a detail direction number 41 of the digits, 201 of a character's images.",
            "The glyphs are compared with the Gaussian of their own class, in the model's own scale.",
            "The published comparisons with Stable Diffusion and with image models need those networks.",
        ),
    )


def _figure_curves(traces: dict[str, Trace]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 3.7), layout="constrained")
    state, settled, emerged = figure.subplots(1, 3)
    for number, (name, trace) in enumerate(traces.items()):
        color = f"C{number}"
        state.plot(trace.log_snr[1:], trace.state[1:], "-o", markersize=2.5, color=color, label=name)
        settled.plot(trace.log_snr, trace.settled, "-", color=color, label=name.split(",")[0])
        settled.plot(trace.log_snr, trace.predicted, "--", color=color, label="... closed form")
        emerged.scatter(trace.expected, trace.emerged, s=14, color=color, label=name.split(",")[0])
    state.axhline(0.1, color="#8a8a8a", linewidth=0.8)
    state.set(yscale="log", ylim=(1e-5, 2.0), xlabel="log(alpha / sigma)", ylabel="relative error of the state")
    state.set_title("the Gaussian's flow against the run", fontsize=10)
    settled.set(xlabel="log(alpha / sigma)", ylabel="share of the variance settled")
    settled.set_title("variance of the endpoint estimates", fontsize=10)
    low, high = emerged.get_xlim()
    emerged.plot((low, high), (low, high), color="#8a8a8a", linewidth=0.8)
    emerged.set(xlabel="closed form", ylabel="measured")
    emerged.set_title("log-SNR at which each feature is half developed", fontsize=10)
    for axes in (state, settled, emerged):
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7.5)
    state.set_xlim(-6.0, 5.0)
    settled.set_xlim(-6.0, 5.0)
    return figure


def _figure_film(film: Film) -> Any:
    from matplotlib.figure import Figure

    lines = {"state": film.states, "expected end": film.estimates, "... of the Gaussian": film.gaussian}
    count = len(film.log_snr)
    figure = Figure(figsize=(0.85 * count + 1.5, 3.0), layout="constrained")
    grid = figure.subplots(len(lines), count, squeeze=False)
    for row, (name, images) in zip(grid, lines.items(), strict=True):
        for axes, image, level in zip(row, images, film.log_snr, strict=True):
            # A state has the spread of noise, an estimate that of the data.
            limit = 2.5 if name == "state" else 1.0
            axes.imshow(image.float().numpy(), cmap="gray", vmin=-limit, vmax=limit, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            if images is film.states:
                axes.set_title(f"{level:.1f}", fontsize=9)
        row[0].set_ylabel(name, fontsize=9, rotation=0, ha="right", va="center")
    figure.suptitle("a run of the bundled network, by log(alpha / sigma)", fontsize=10)
    return figure
