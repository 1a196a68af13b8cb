"""Recipe `neural-de`: what the integrators, adjoints and models of neural differential equations are good for.

Kidger, "On neural differential equations" (thesis, Oxford, 2022; arXiv 2202.02435). Orders against closed forms, gradients
and memory of every adjoint, a deep equilibrium's gradient against an unrolled network, a neural CDE on series with most of
their points dropped, a latent SDE whose process is known, and the formulas behind a fitted neural ODE.
"""

from typing import Any

from tweed.recipes._figures import curves
from tweed.recipes._neural_de_laws import latent_ou, lotka_volterra
from tweed.recipes._neural_de_numerics import equilibrium, gradients, memory, ode_orders, sde_orders, weak_orders
from tweed.recipes._neural_de_series import classification
from tweed.recipes.report import Progress, Report, Row

SCALES: dict[str, dict[str, Any]] = {
    "smoke": {"paths": 1000, "train": 128, "test": 200, "cde": 40, "gru": 40, "latent": 3, "batch": 64, "fit": 20},
    "default": {
        "paths": 4000,
        "train": 512,
        "test": 1000,
        "cde": 150,
        "gru": 300,
        "latent": 300,
        "batch": 256,
        "fit": 500,
    },
    "gpu": {
        "paths": 16_000,
        "train": 2048,
        "test": 4000,
        "cde": 400,
        "gru": 800,
        "latent": 800,
        "batch": 512,
        "fit": 1500,
    },
}
COUNTS = (16, 32, 64, 128, 256)
"""Steps at which memory is measured."""


def run(seed: int, scale: str, progress: Progress) -> Report:
    """All parts; see the module."""
    size, strict = SCALES[scale], scale != "smoke"
    progress("orders", 0.0)
    ode_rows, ode_curves = ode_orders(seed)
    sde_rows, sde_curves = sde_orders(seed, size["paths"])
    rows: list[Row] = [*ode_rows, *sde_rows, *weak_orders()]
    progress("gradients and memory", 0.05)
    memory_rows, memory_curves = memory(seed, COUNTS if strict else COUNTS[::2])
    rows += [*gradients(seed), *memory_rows, *equilibrium(seed)]
    progress("spirals", 0.1)
    sizes = {"train": size["train"], "test": size["test"], "cde_steps": size["cde"], "gru_steps": size["gru"]}
    spiral_rows, spiral_curves = classification(seed, sizes, strict)
    progress("Lotka-Volterra", 0.4)
    law_rows, law_curves = lotka_volterra(seed, size["fit"], 300 if strict else 100, strict)
    progress("latent SDE", 0.6)
    latent_rows, latent_curves = latent_ou(seed, size["latent"], size["batch"], strict)
    rows += [*spiral_rows, *law_rows, *latent_rows]
    progress("done", 1.0)
    return Report(
        slug="neural-de",
        rows=rows,
        seed=seed,
        scale=scale,
        settings=size | {"memory_steps": COUNTS},
        figures={
            "orders": lambda: curves(
                {"ODE": ode_curves, "SDE, strong": sde_curves},
                xlabel="steps",
                ylabel="RMS error",
                ticks=(8, 16, 32, 64, 128),
                width=5.0,
                legend="lower left",
            ),
            "memory": lambda: curves(
                {"kept for the backward pass": memory_curves}, xlabel="steps", ylabel="KiB", ticks=COUNTS, width=5.4
            ),
            "series": lambda: _series(spiral_curves, latent_curves, law_curves),
        },
        notes=NOTES,
    )


NOTES = (
    "Spirals are easy for both networks; at this size the CDE shows that it needs neither a grid nor complete points.",
    "A latent SDE's bound is loose by what a control in steps cannot undo, which makes the learnt diffusion a little small.",
)


def _series(spirals: Any, latent: Any, laws: Any) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.6, 3.9), layout="constrained")
    panels = (
        ("spirals: accuracy", spirals, "points dropped, %", "%"),
        ("OU process: covariance of the latent state", latent, "lag", "covariance"),
        ("formulas for a fitted Lotka-Volterra field", laws, "nodes", "RMS error"),
    )
    for axes, (title, lines, xlabel, ylabel) in zip(figure.subplots(1, 3), panels, strict=True):
        for name, (x, y) in lines.items():
            style = {"color": "#8a8a8a", "linestyle": "--"} if name.startswith("~") else {}
            axes.plot(x, y, marker="o", markersize=4, label=name.removeprefix("~"), **style)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.25)
        if lines:
            axes.legend(fontsize=8)
        if lines is laws and lines:
            axes.set_yscale("log")
    return figure
