"""DPM-Solver: exponential integrators in log-SNR, measured where the score and the flow are known exactly.

Lu et al., "DPM-Solver" (NeurIPS 2022) and "DPM-Solver++" (2022); Zhao et al., "UniPC" (NeurIPS 2023). On a Gaussian the
flow has a closed form, which gives orders of convergence; on a mixture of eight Gaussians in 32 dimensions it is
computed with 600 steps, which gives errors at few evaluations. The claims on images are the same ones seen through a
network: errors that fall faster with the number of evaluations than DDIM's.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tweed.core import grids, random
from tweed.core.denoiser import CountingDenoiser, Denoiser, FunctionDenoiser
from tweed.core.exact import GaussianDenoiser, MixtureDenoiser
from tweed.core.processes import VP
from tweed.guidance import ClassifierFree
from tweed.recipes.report import Progress, Report, Row, at_least, at_most, check, info, less_than, within
from tweed.solvers import DDIM, AdaptiveDPM, DPMSolver, Solver, TableSolver, UniPC, sample

F64 = torch.float64
PROCESS = VP()
END = 1e-3  # the last time, as published for at most 15 evaluations
INNER = (0.7, 0.1)  # the times between which orders are measured
BUDGETS = (5, 7, 10, 15, 20, 30, 40, 80)
STARTS = {"smoke": 96, "default": 1024, "gpu": 1024}
STEPS = {"smoke": (40, 80, 160), "default": (80, 160, 320), "gpu": (80, 160, 320)}
GUIDANCE = 4.0
TOLERANCES = (0.2, 0.1, 0.05, 0.025, 0.0125)

COMPARED: dict[str, Solver] = {
    "DDIM": DDIM(),
    "2M": DPMSolver(2),
    "3M": DPMSolver(3),
    "3M, noise form": DPMSolver(3, form="noise"),
    "2S": DPMSolver(2, kind="singlestep", group=True),
    "3S": DPMSolver(3, kind="singlestep", group=True),
    "UniPC-3": UniPC.published(3),
}
"""By their names in the papers; data form (DPM-Solver++) unless said otherwise."""

ORDERED: dict[str, TableSolver] = {
    f"{kind} {order}, {form} form": DPMSolver(
        order, kind, form, start="singlestep" if (kind, order) == ("multistep", 3) else "lower"
    )
    for order in (2, 3)
    for kind in ("multistep", "singlestep")
    for form in ("data", "noise")
}
ORDERED |= {"DDIM": DDIM(), **{f"UniPC of order {order}": UniPC(order) for order in (2, 3)}}


def run(seed: int, scale: str, progress: Progress) -> Report:
    """Orders, errors at few evaluations, guidance, step size control, and identities."""
    progress("identities", 0.0)
    rows = _identities(seed)
    progress("orders of convergence", 0.1)
    orders, slopes = _orders(seed, STEPS[scale])
    progress("errors on the mixture", 0.4)
    errors, few = _errors(seed, STARTS[scale])
    progress("guidance", 0.7)
    guided = _guided(seed, STARTS[scale])
    progress("step size control", 0.85)
    adaptive, controlled = _adaptive(seed, STARTS[scale])
    return Report(
        slug="dpm-solver",
        rows=[*rows, *orders, *few, *guided, *adaptive],
        seed=seed,
        scale=scale,
        settings={
            "process": PROCESS,
            "mixture": "8 Gaussians in 32 dimensions, means N(0, I), variances 0.05 exp(N(0, 1) / 2)",
            "starts": STARTS[scale],
            "grid": f"even in log-SNR, from t = 1 to {END}",
            "steps for the orders": STEPS[scale],
            "times for the orders": INNER,
        },
        figures={"errors": partial(_figure_errors, errors, controlled), "orders": partial(_figure_orders, slopes)},
        notes=[
            "An error is the median over the starts of the RMS distance to the converged flow from the same start: a few "
            "starts lie between two components, and whichever side a coarse solver takes decides their error alone.",
            "FID on CIFAR-10 (4.70 at 10 evaluations, 2.87 at 20) needs a network of that size and is not measured here.",
        ],
    )


def mixture(seed: int) -> MixtureDenoiser:
    """The exact denoiser of eight Gaussians in 32 dimensions; its label is the component."""
    means = random.normal((8, 32), seed, draw=1, dtype=F64)
    variances = 0.05 * (0.5 * random.normal((8, 32), seed, draw=2, dtype=F64)).exp()
    return MixtureDenoiser(means, variances, None, PROCESS, torch.arange(8))


def _go(denoiser: Denoiser, solver: Solver, x: Tensor, steps: int, cond: Mapping[str, Tensor] | None = None) -> Tensor:
    return sample(denoiser, x, solver=solver, times=grids.log_snr(PROCESS, steps, end=END), cond=cond)


def _median(result: Tensor, reference: Tensor) -> float:
    return (result - reference).square().flatten(1).mean(1).sqrt().median().item()


def _identities(seed: int) -> list[Row]:
    """What holds to rounding: first order is DDIM, and the exact weights integrate a line exactly."""
    model, x = mixture(seed), random.normal((16, 32), seed, draw=3, dtype=F64)
    ddim = _go(model, DDIM(), x, 12)
    first = [DPMSolver(1, kind, form) for kind in ("multistep", "singlestep") for form in ("data", "noise")]
    same = max((_go(model, solver, x, 12) - ddim).abs().max().item() for solver in (*first, UniPC(1)))

    # A data estimate that is linear in log-SNR: c + lambda d, whatever the state.
    c, d = (random.normal((4,), seed, draw=i, dtype=F64) for i in (4, 5))
    start, end = (PROCESS.level(t) for t in INNER)
    low, high = start.log_snr, end.log_snr

    def line(x: Tensor, t: Any, **_: Any) -> Tensor:
        return (c + PROCESS.level(t).log_snr * d).expand(len(x), 4)

    # x_t / sigma_t gains int e^lambda (c + lambda d), whose primitive is e^lambda (c + (lambda - 1) d).
    z = random.normal((5, 4), seed, draw=6, dtype=F64)
    gain = math.exp(high) * (c + (high - 1.0) * d) - math.exp(low) * (c + (low - 1.0) * d)
    exact = end.sigma * (z / start.sigma + gain)
    times = grids.log_snr(PROCESS, 6, start=INNER[0], end=INNER[1])

    def miss(solver: Solver) -> float:
        return (sample(FunctionDenoiser(line, PROCESS), z, solver=solver, times=times) - exact).abs().max().item()

    taylor = miss(DPMSolver(2, "singlestep", solver_type="taylor"))
    midpoint = miss(DPMSolver(2, "singlestep", solver_type="midpoint"))
    variance = [abs(_variance(DPMSolver(order, eta=1.0), n) - 1.0) for order, n in ((1, 20), (2, 20), (1, 80), (2, 80))]
    return [
        at_most("order 1 of every kind and form against DDIM", same, 1e-11, note="largest difference, 12 steps"),
        at_most("a data estimate linear in log-SNR: 2S with exact weights", taylor, 1e-10, baseline=midpoint),
        at_least("... and with the midpoint's weights", midpoint, 1e-5, note="exact to second order only"),
        less_than("SDE of order 2: error of the variance of N(0, I), 20 steps", variance[1], variance[0], 0.5),
        less_than("... 80 steps", variance[3], variance[2], 0.2, note="baseline: order 1"),
    ]


def _variance(solver: TableSolver, steps: int) -> float:
    """The variance that a solver ends with for data N(0, 1), whose denoiser is `alpha x`: exactly, by recursion.

    State and last estimate are jointly Gaussian and linear in the start and the noises drawn; each is a coordinate.
    """
    times = grids.log_snr(PROCESS, steps, end=END).tolist()
    # A point of each coordinate: the start, and one for each step's noise.
    x = np.zeros(steps + 1)
    x[0], memory = 1.0, []
    for i, (row,) in enumerate(solver.table(PROCESS, times).steps):
        memory.insert(0, PROCESS.level(times[i]).alpha * x)
        x = row.state * x + sum(b * e for b, e in zip(row.estimates, memory, strict=False))
        x[i + 1] += row.noise
    return float((x**2).sum())


def _orders(seed: int, steps: Sequence[int]) -> tuple[list[Row], dict[str, Any]]:
    """Fitted slopes on a Gaussian, whose flow scales `x - alpha mu` by its standard deviation in each direction."""
    mean = random.normal((16,), seed, draw=7, dtype=F64)
    variance = 0.3 * (0.5 * random.normal((16,), seed, draw=8, dtype=F64)).exp()
    model, z = GaussianDenoiser(mean, variance, PROCESS), random.normal((16, 16), seed, draw=9, dtype=F64)
    first, last = (
        level.alpha * mean + z * (level.alpha**2 * variance + level.sigma**2).sqrt()
        for level in map(PROCESS.level, INNER)
    )
    rows, curves = [], {}
    for name, solver in ORDERED.items():
        errors = []
        for n in steps:
            times = grids.log_snr(PROCESS, n, start=INNER[0], end=INNER[1])
            errors.append((sample(model, first, solver=solver, times=times) - last).square().mean().sqrt().item())
        slope = -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])
        order = int(solver.order)  # type: ignore[attr-defined]
        rows.append(within(f"order of {name}", slope, order, 0.25 if steps[0] < 80 else 0.15, published=order))
        curves[name] = (list(steps), errors, order)
    return rows, curves


def _errors(seed: int, starts: int) -> tuple[dict[str, list[float]], list[Row]]:
    model, x = mixture(seed), random.normal((starts, 32), seed, draw=10, dtype=F64)
    reference = _go(model, DPMSolver(3), x, 600)
    errors = {name: [_median(_go(model, s, x, n), reference) for n in BUDGETS] for name, s in COMPARED.items()}
    ddim = errors["DDIM"]
    # DDIM's error halves with every doubling from here on; three more points, so that nothing is extrapolated.
    long = (160, 320, 640)
    slow = [*ddim, *(_median(_go(model, DDIM(), x, n), reference) for n in long)]

    def at(name: str, budget: int) -> float:
        return errors[name][BUDGETS.index(budget)]

    def factor(name: str) -> float:
        """How many times as many evaluations DDIM takes to the error of `name` at 20."""
        needed = np.interp(-math.log(at(name, 20)), -np.log(slow), np.log([*BUDGETS, *long]))
        return float(np.exp(needed)) / 20.0

    coarse = [
        _median(_go(model, DPMSolver(2, "singlestep", form), x, 3), reference) for form in ("data", "noise")
    ]  # three steps of two evaluations
    rows = [
        less_than("error at 10 evaluations: 2M", at("2M", 10), at("DDIM", 10), 0.7),
        less_than("... 3M, noise form", at("3M, noise form", 10), at("DDIM", 10), 0.3),
        less_than("error at 20 evaluations: 2M", at("2M", 20), at("DDIM", 20), 0.2),
        less_than("... 3M", at("3M", 20), at("DDIM", 20), 0.25),
        less_than("... 3M, noise form", at("3M, noise form", 20), at("DDIM", 20), 0.12),
        less_than("... UniPC-3", at("UniPC-3", 20), at("DDIM", 20), 0.12),
        less_than("error at 40 evaluations: UniPC-3", at("UniPC-3", 40), at("DDIM", 40), 0.015),
        less_than("error at 20 evaluations: 2M against 2S", at("2M", 20), at("2S", 20), 0.6, note="2S: 10 steps"),
        less_than("... 3M, noise form, against 3S", at("3M, noise form", 20), at("3S", 20), 0.8, note="3S: 7 steps"),
        at_least("evaluations DDIM takes to 2M's error at 20, over 20", factor("2M"), 4.0, published="4 to 16"),
        at_least("... to 3M's, noise form", factor("3M, noise form"), 8.0, published="4 to 16"),
        at_least("... to UniPC-3's", factor("UniPC-3"), 8.0),
        less_than(
            "error at 6 evaluations: 2S, data form against noise form",
            coarse[0],
            coarse[1],
            0.2,
            note="why DPM-Solver++ extrapolates the data",
        ),
    ]
    return errors, rows


def _guided(seed: int, starts: int) -> list[Row]:
    """The data form under classifier-free guidance, where the noise form is unstable (DPM-Solver++, Sec. 3)."""
    starts = min(starts, 256)
    model, x = mixture(seed), random.normal((starts, 32), seed, draw=11, dtype=F64)
    guided, label = ClassifierFree(model, GUIDANCE), {"label": torch.arange(starts) % 8}
    reference = _go(guided, DPMSolver(3), x, 300, label)
    data, noise = (
        _median(_go(guided, DPMSolver(2, "singlestep", form, group=True), x, 10, label), reference)
        for form in ("data", "noise")
    )
    ddim, second = (_median(_go(guided, s, x, 20, label), reference) for s in (DDIM(), DPMSolver(2)))
    return [
        less_than(f"guidance {GUIDANCE:g}, 10 evaluations: 2S, data form against noise form", data, noise, 0.5),
        less_than(f"guidance {GUIDANCE:g}, 20 evaluations: 2M", second, ddim, 0.8, note="baseline: DDIM"),
    ]


def _adaptive(seed: int, starts: int) -> tuple[list[Row], dict[str, list[tuple[int, float]]]]:
    """DPM-Solver-12 and -23 at five tolerances."""
    model, x = mixture(seed), random.normal((min(starts, 128), 32), seed, draw=12, dtype=F64)
    reference = _go(model, DPMSolver(3), x, 600)
    found: dict[str, list[tuple[int, float]]] = {}
    for name, order in (("DPM-Solver-12", 2), ("DPM-Solver-23", 3)):
        found[name] = []
        for rtol in TOLERANCES:
            counter = CountingDenoiser(model)
            solver = AdaptiveDPM(order=order, rtol=rtol, atol=0.0078 * rtol / 0.05)  # type: ignore[arg-type]
            result = sample(counter, x, solver=solver, times=[1.0, END])
            found[name].append((counter.evaluations, _median(result, reference)))
    rows = []
    for name, points in found.items():
        errors = [error for _, error in points]
        falls = all(b < a for a, b in pairwise(errors))
        label = f"{name}: error as the tolerances halve"
        rows.append(check(label, falls, "falls each time", here=errors[-1], baseline=errors[0]))
    (cost12, error12), (cost23, error23) = (found[name][TOLERANCES.index(0.05)] for name in found)
    rows += [
        less_than("published tolerances: error of -23 against -12", error23, error12, 0.6),
        less_than("... and evaluations", cost23, cost12, 0.95),
        info("... error of UniPC-3 on 60 equal steps", _median(_go(model, UniPC.published(3), x, 60), reference)),
    ]
    return rows, found


def _figure_errors(errors: Mapping[str, Sequence[float]], adaptive: Mapping[str, Sequence[tuple[int, float]]]) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, values in errors.items():
        axes.plot(BUDGETS, values, "-o", markersize=3.5, linewidth=1.4, label=name)
    for name, points in adaptive.items():
        axes.plot(*zip(*points, strict=True), ":s", markersize=3.5, linewidth=1.2, label=name)
    axes.set(xscale="log", yscale="log", xlabel="evaluations", ylabel="median error", title="mixture in 32 dimensions")
    axes.minorticks_off()
    axes.set_xticks(BUDGETS)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return figure


def _figure_orders(curves: Mapping[str, tuple[Sequence[int], Sequence[float], int]]) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    colors = {1: "#7a7a7a", 2: "#d1722a", 3: "#1f6fb4"}
    marks = iter("osv^D<>PX*h")
    for name, (steps, errors, order) in curves.items():
        axes.plot(steps, errors, marker=next(marks), color=colors[order], markersize=4, linewidth=1.0, label=name)
    axes.set(xscale="log", yscale="log", xlabel="steps", ylabel="RMS error", title="Gaussian, exact flow")
    axes.minorticks_off()
    axes.set_xticks(next(iter(curves.values()))[0])
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
