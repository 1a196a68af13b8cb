"""Pictures of interpolants: densities along the way, trajectories, divergences, clouds and a bridge."""

from typing import Any

import torch
from torch import Tensor

from tweed.core import random
from tweed.core.exact import MixtureInterpolantDenoiser
from tweed.core.processes import Interpolant
from tweed.recipes import _interpolants_exact as exact
from tweed.recipes import _interpolants_wrong as wrong
from tweed.solvers import Heun, InterpolantSDE, sample

_COLORS = ("tab:blue", "tab:orange", "tab:green")


def densities() -> Any:
    """The exact marginals between five modes and three, at five times, for four interpolants."""
    from matplotlib.figure import Figure

    data, other = exact.mixtures()
    processes = (
        Interpolant("linear"),
        Interpolant("linear", "brownian"),
        Interpolant("trigonometric", "sine"),
        Interpolant("encoder-decoder", "sine"),
    )
    axis = torch.linspace(-4.6, 4.6, 72, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    figure = Figure(figsize=(9.2, 7.6), layout="constrained")
    grid = figure.subplots(4, 5)
    for row, process in zip(grid, processes, strict=True):
        field = MixtureInterpolantDenoiser(data, other, process)
        for ax, t in zip(row, (1.0, 0.75, 0.5, 0.25, 0.0), strict=True):
            image = field.log_prob(points, t).exp().reshape(72, 72).T
            ax.imshow(image, origin="lower", extent=(-4.6, 4.6, -4.6, 4.6), cmap="magma")
            ax.set(xticks=[], yticks=[])
            if process is processes[0]:
                ax.set_title(f"t = {t:g}")
        row[0].set_ylabel(exact.name(process))
    return figure


def trajectories(seed: int) -> Any:
    """From N(0, 1) to two modes: the ODE and two SDEs have the same marginals (shaded) and other paths."""
    from matplotlib.figure import Figure

    field, low = wrong.line(), wrong.LOW
    times = torch.linspace(1.0 - low, low, 201, dtype=torch.float64)
    axis = torch.linspace(-3.5, 3.5, 141, dtype=torch.float64)[:, None]
    shade = torch.stack([field.log_prob(axis, t).exp() for t in times.tolist()], dim=1)
    start = torch.linspace(-1.8, 1.8, 11)[:, None]
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    for ax, epsilon in zip(figure.subplots(1, 3, sharey=True), (0.0, 0.25, 1.0), strict=True):
        solver = InterpolantSDE(epsilon, denoise_last=False) if epsilon else Heun(form="velocity")
        path = sample(field, start, solver=solver, times=times, seed=seed, trajectory=True)[..., 0]
        ax.imshow(
            shade.clamp_max(0.7), origin="lower", aspect="auto", extent=(1.0, 0.0, -3.5, 3.5), cmap="Greys", vmax=1.0
        )
        ax.plot(times, path, lw=0.9)
        ax.set(title=f"SDE, epsilon = {epsilon:g}" if epsilon else "ODE", xlabel="t", xlim=(1.0, 0.0), ylim=(-3.5, 3.5))
    figure.axes[0].set_ylabel("x")
    return figure


def divergence(results: list[wrong.Divergences]) -> Any:
    """KL against epsilon, with Girsanov's bound."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    ax = figure.subplots()
    names = ("exact fields", "velocity off by sin 3x", "and score off by sin(2x) / 2")
    for result, label, color in zip(results, names, _COLORS, strict=True):
        here = {e: v for e, v in result.here.items() if e > 0.0}
        ax.plot([*here], [*here.values()], "o-", color=color, label=label)
        ax.axhline(result.here[0.0], color=color, ls=":", lw=1.2)
        if any(result.errors):
            ax.plot([*result.bound], [*result.bound.values()], "--", color=color, label="its bound")
    ax.set(xscale="log", yscale="log", xlabel="epsilon", ylabel="KL of the truth from the samples, nats")
    ax.plot([], [], ":", color="gray", label="the ODE")
    ax.set_xticks([*results[0].bound], [f"{e:g}" for e in results[0].bound])
    ax.minorticks_off()
    figure.legend(fontsize=8, loc="outside lower center", ncols=3)
    return figure


def learned(clouds: dict[str, tuple[Tensor, float]]) -> Any:
    """Samples of the learned fields, and the ends."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 2.7), layout="constrained")
    for ax, (name, (x, distance)) in zip(figure.subplots(1, len(clouds)), clouds.items(), strict=True):
        ax.scatter(x[:, 0], x[:, 1], s=1.0, alpha=0.4, linewidths=0)
        ax.set(xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), aspect="equal", xticks=[], yticks=[])
        ax.set_title(f"{name}\nsliced W2 {distance:.3f}", fontsize=9)
    return figure


def bridge(bridge: dict[str, Any], ends: dict[str, Any], seed: int) -> Any:
    """Standard deviations along the way: straight, learned, and the Schrödinger bridge; and the learned SDE."""
    from matplotlib.figure import Figure

    (m0, s0), (m1, s1), epsilon = ends["data"], ends["other"], ends["epsilon"]
    t = torch.linspace(0.0, 1.0, 51, dtype=torch.float64)

    def spread(covariance: float) -> Tensor:
        return (((1 - t) * s0) ** 2 + (t * s1) ** 2 + 2 * t * (1 - t) * (covariance + epsilon)).sqrt()

    least = spread(((s0 * s1) ** 2 + epsilon**2) ** 0.5 - epsilon)
    z = random.normal((8000, 2), random.fold(seed, 51))
    x0, x1 = m0 + s0 * z[:, :1], m1 + s1 * z[:, 1:]
    path = bridge["path"]
    with torch.no_grad():
        variance = torch.stack([path.mean(x0, x1, torch.full((8000,), u))[0].var() for u in t.tolist()])
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(t, spread(0.0), "--", color="tab:orange", label="straight interpolant")
    left.plot(t, least, color="black", label="Schrödinger bridge")
    left.plot(t, (variance + path.sigma(t) ** 2).sqrt(), ":", color="tab:blue", lw=3, label="learned interpolant")
    left.set(xlabel="t", ylabel="standard deviation of x_t", xlim=(1.0, 0.0))
    left.legend()
    mean = (1 - t) * m0 + t * m1
    right.fill_between(t, mean - 2 * least, mean + 2 * least, color="0.88", label="mean and 2 deviations of the bridge")
    states = bridge["states"]
    right.plot(torch.linspace(1.0, 0.0, len(states)), states, lw=0.8)
    right.set(xlabel="t", ylabel="x", xlim=(1.0, 0.0), title="the learned SDE")
    right.legend(loc="upper right")
    return figure
