"""MRS (Li et al., ICLR 2025, arXiv 2502.07856): fast samplers of mean-reverting diffusion, as DPM-Solver in `x - beta y`.

The published updates are written out here and compared with tweed's solvers on `MeanReverting`; then orders of convergence and
distances to the law of the data on a line, where the exact denoiser of a mixture is known, against Euler's method.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tweed.core import random
from tweed.core.denoiser import Denoiser, FunctionDenoiser
from tweed.core.exact import MixtureDenoiser
from tweed.core.processes import MeanReverting
from tweed.core.targets import MeanRevertingV
from tweed.core.time import invert_increasing
from tweed.metrics import wasserstein
from tweed.recipes import Progress, Report, Row, at_most, info, less_than, within
from tweed.recipes._figures import curves
from tweed.restoration.mean_reverting import mrs, remaining_grid
from tweed.solvers import DPMSolver, Euler, EulerMaruyama, Solver, sample

F64 = torch.float64
MEAN = 0.2
PROCESS = MeanReverting(schedule="constant")
COUNTS = (10, 20, 40, 80, 160)


def run(seed: int, scale: str, progress: Progress) -> Report:
    n, counts, fine = {
        "smoke": (4000, COUNTS[:3], 600),
        "default": (20000, COUNTS, 3000),
        "gpu": (200000, COUNTS, 20000),
    }[scale]
    progress("the published updates", 0.0)
    rows = _formulas(seed)
    progress("orders of convergence", 0.1)
    more, errors = _orders(seed, counts, fine)
    rows += more
    progress("distances to the data", 0.5)
    more, distances = _distances(seed, n)
    rows += more
    return Report(
        slug="mrs",
        rows=rows,
        seed=seed,
        scale=scale,
        settings={"samples": n, "noise": "50/255", "mean": MEAN},
        figures={"convergence": lambda: _figure(errors, distances)},
        notes=(
            "Euler's clock is that of the reversion, -log alpha; grids are even in log-SNR from alpha = 0.005 to 0.999.",
            "W1: to the law itself, by its quantiles, from starts that are quantiles of the prior.",
            "Noise forms of the SDE blow up in few steps, as the paper says too.",
            "Ten restoration tasks at 10 to 20 times the speed need the published universal model.",
        ),
    )


def truth() -> MixtureDenoiser:
    means, variances = torch.tensor([[-0.5], [0.6]]), torch.tensor([0.02, 0.03])
    return MixtureDenoiser(means, variances, torch.tensor([0.4, 0.6]), PROCESS)


def grid(steps: int) -> list[float]:
    """Times even in log-SNR from alpha = 0.005 to 0.999."""
    return remaining_grid(PROCESS, steps).tolist()


def quantiles(n: int) -> Tensor:
    """`n` points of equal mass of the mixture's law, shape (n, 1)."""
    law = truth()
    means, std, weights = law.means[:, 0], law.values.expand(2, 1)[:, 0].sqrt(), law.log_weights.exp()

    def below(x: Tensor) -> Tensor:
        return (weights * torch.special.ndtr((x[:, None] - means) / std)).sum(-1)

    return invert_increasing(below, (torch.arange(n, dtype=F64) + 0.5) / n, -3.0, 3.0)[:, None]


def published(
    model: Denoiser,
    x: Tensor,
    y: Tensor,
    times: Sequence[float],
    form: str,
    sde: bool,
    order: int,
    noise: Callable[[int], Tensor],
) -> Tensor:
    """The four updates of the paper (its Propositions on ODE and SDE, data and noise), as they stand there."""
    process = model.process
    previous, h_previous = None, None
    for i, (t, u) in enumerate(pairwise(times)):
        here, there = process.level(t), process.level(u)
        a_s, s_s, a_t, s_t = here.alpha, here.sigma, there.alpha, there.sigma
        h = there.log_snr - here.log_snr
        estimate = model(x, t, y=y)
        q = estimate.x0 if form == "data" else estimate.eps
        d = torch.zeros_like(q) if order == 1 or previous is None else (q - previous) / (h_previous / h)  # type: ignore[operator]
        e = math.exp(-h)
        if form == "data" and not sde:
            new = s_t / s_s * x + a_t * (1 - e) * q + a_t * ((e - 1) / h + 1) * d
            new = new + y * (1 - s_t / s_s + s_t / s_s * a_s - a_t)
        elif form == "data":
            new = s_t / s_s * e * x + a_t * (1 - e**2) * q + a_t * (1 - (1 - e**2) / (2 * h)) * d
            new = new + s_t * math.sqrt(1 - e**2) * noise(i) + y * (1 - a_t / a_s * e**2 - a_t * (1 - e**2))
        else:
            factor = 2.0 if sde else 1.0
            new = a_t / a_s * x - factor * s_t * (math.exp(h) - 1) * q - factor * s_t * ((math.exp(h) - 1) / h - 1) * d
            new = new + y * (1 - a_t / a_s)
            if sde:
                new = new + s_t * math.sqrt(math.exp(2 * h) - 1) * noise(i)
        x, previous, h_previous = new, q, h
    return x


def _formulas(seed: int) -> list[Row]:
    """The published updates against the table engine, and the identities that they must obey."""
    model, times = truth(), grid(12)
    y = torch.full((16, 1), MEAN, dtype=F64)
    x = PROCESS.prior((16, 1), random.fold(seed, 1), y=y, t=times[0], dtype=F64)

    def noise(i: int) -> Tensor:
        return random.normal(x.shape, seed, draw=1 + 64 * i, dtype=F64)

    rows = []
    for sde in (False, True):
        worst = 0.0
        for form in ("data", "noise"):
            for order in (1, 2):
                solver = mrs(order, "sde" if sde else "ode", form, lower_order_final=False)  # type: ignore[arg-type]
                ours = sample(model, x, solver=solver, times=times, cond={"y": y}, seed=seed)
                theirs = published(model, x, y, times, form, sde, order, noise)
                worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max()))
        rows.append(
            at_most(
                f"{'SDE' if sde else 'ODE'} updates, data and noise, orders 1 and 2: relative difference", worst, 1e-9
            )
        )
    constant = FunctionDenoiser(lambda x, t, y: torch.full_like(x, 0.7), PROCESS)
    one = sample(constant, x, solver=mrs(1), times=[times[0], times[-1]], cond={"y": y})
    begin, end = PROCESS.level(times[0]), PROCESS.level(times[-1])
    expected = (
        (1 - end.alpha) * y
        + end.alpha * 0.7
        + end.sigma / begin.sigma * (x - (1 - begin.alpha) * y - begin.alpha * 0.7)
    )
    velocity = FunctionDenoiser(lambda x, t, y: _velocity(model, x, t, y), PROCESS, MeanRevertingV())
    direct = sample(model, x, solver=mrs(2), times=times, cond={"y": y})
    converted = sample(velocity, x, solver=mrs(2), times=times, cond={"y": y})
    data = sample(model, x, solver=mrs(1), times=times, cond={"y": y})
    other = sample(model, x, solver=mrs(1, prediction="noise"), times=times, cond={"y": y})
    return [
        *rows,
        at_most(
            "a constant estimate: one step of any size off the exact solution",
            (one - expected).abs().max().item(),
            1e-12,
        ),
        at_most("first order: data and noise forms differ by", (data - other).abs().max().item(), 1e-11),
        at_most("a velocity network: off the data network", (converted - direct).abs().max().item(), 1e-11),
    ]


def _velocity(model: Denoiser, x: Tensor, t: float, y: Tensor) -> Tensor:
    """`u` of the paper's conversion `x_0 = a x + (1 - a) y - (s / n) u`."""
    level = PROCESS.level(t)
    x0 = model(x, t, y=y).x0
    return (level.alpha * x + (1 - level.alpha) * y - x0) * PROCESS.noise / level.sigma


SOLVERS: dict[str, Solver] = {
    "ODE, order 1": mrs(1),
    "ODE, order 2": mrs(2, lower_order_final=False),
    "ODE, order 2, noise": mrs(2, prediction="noise", lower_order_final=False),
    "Euler": Euler("velocity"),
}


def _orders(
    seed: int, counts: Sequence[int], fine: int
) -> tuple[list[Row], dict[str, tuple[list[float], list[float]]]]:
    model = truth()
    y = torch.full((2000, 1), MEAN, dtype=F64)
    x = PROCESS.prior((2000, 1), random.fold(seed, 2), y=y, dtype=F64)

    def solved(solver: Solver, steps: int) -> Tensor:
        return sample(model, x, solver=solver, times=grid(steps), cond={"y": y})

    reference = solved(DPMSolver(3), fine)
    errors = {
        name: [(solved(solver, n) - reference).abs().mean().item() for n in counts] for name, solver in SOLVERS.items()
    }

    def slope(values: list[float]) -> float:
        steps = torch.tensor(counts[1:], dtype=F64).log()
        logs = torch.tensor(values[1:], dtype=F64).log()
        return -float(((steps - steps.mean()) * (logs - logs.mean())).sum() / (steps - steps.mean()).square().sum())

    second, euler = errors["ODE, order 2"], errors["Euler"]
    rows = [
        within("fitted order, ODE of order 1", slope(errors["ODE, order 1"]), 1.0, 0.1, published=1.0),
        within("fitted order, ODE of order 2", slope(second), 2.1, 0.3, published="2.0 to 2.3"),
        less_than("error of order 2 at 20 evaluations, against Euler at 20", second[1], euler[1], 0.15),
        less_than(f"... against Euler at {counts[-1]}", second[1], euler[-1], 1.0, published="0.0079 against 0.0094"),
    ]
    rows += [
        info(f"{name}: errors at {', '.join(map(str, counts))}", ", ".join(f"{v:.2g}" for v in values))
        for name, values in errors.items()
    ]
    x_axis = [float(n) for n in counts]
    return rows, {("~" if name == "Euler" else "") + name: (x_axis, values) for name, values in errors.items()}


def _distances(seed: int, n: int) -> tuple[list[Row], dict[str, tuple[list[float], list[float]]]]:
    model = truth()
    y = torch.full((n, 1), MEAN, dtype=F64)
    data = quantiles(n)
    floor = wasserstein(data, model.sample(n, random.fold(seed, 4)), p=1)
    # Starts of equal mass too: what is left is the solver's error, and the noise that an SDE draws.
    start = y + PROCESS.level(1.0).sigma * torch.special.ndtri((torch.arange(n, dtype=F64) + 0.5) / n)[:, None]
    solvers: dict[str, Solver] = {
        "ODE, order 2": SOLVERS["ODE, order 2"],
        "ODE, order 2, noise": SOLVERS["ODE, order 2, noise"],
        "SDE, order 2": mrs(2, "sde", lower_order_final=False),
        "Euler, ODE": Euler("velocity"),
        "Euler, SDE": EulerMaruyama(),
    }
    counts = (5, 10, 20, 50)
    found: dict[str, list[float]] = {}
    for name, solver in solvers.items():
        found[name] = []
        for steps in counts:
            made = sample(model, start, solver=solver, times=grid(steps), cond={"y": y}, seed=random.fold(seed, 6))
            found[name].append(wasserstein(made, data, p=1))
    rows = [
        less_than(
            "W1 of order 2 at 20 evaluations, against Euler's SDE at 50",
            found["ODE, order 2"][2],
            found["Euler, SDE"][3],
            0.6,
            published="0.010 against 0.022",
        ),
        less_than("... against Euler's ODE at 50", found["ODE, order 2"][2], found["Euler, ODE"][3], 0.6),
        info("W1 of exact draws", floor),
    ]
    rows += [
        info(f"{name}: W1 at {', '.join(map(str, counts))}", ", ".join(f"{v:.3g}" for v in values))
        for name, values in found.items()
    ]
    return rows, {
        ("~" if name.startswith("Euler") else "") + name: ([float(c) for c in counts], values)
        for name, values in found.items()
    }


def _figure(errors: dict[str, Any], distances: dict[str, Any]) -> Any:
    panels = {"error to the exact solution": errors, "W1 to the law of the data": distances}
    figure = curves(panels, xlabel="evaluations", ylabel="")
    for axes, lines in zip(figure.axes, panels.values(), strict=True):
        axes.minorticks_off()
        counts = next(iter(lines.values()))[0]
        axes.set_xticks(counts, [f"{count:.0f}" for count in counts])
    return figure
