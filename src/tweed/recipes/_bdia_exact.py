"""What the recipe `bdia` measures on exact scores: a mixture on real digits, and a Gaussian whose flow is known."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tweed.core import grids, random
from tweed.core.denoiser import CountingDenoiser, Denoiser
from tweed.core.exact import GaussianDenoiser, MixtureDenoiser
from tweed.core.processes import EDM, VP, Process
from tweed.data import Digits
from tweed.errors import InputError
from tweed.recipes.report import Row, at_least, at_most, info, less_than, within
from tweed.solvers import BDIA, DDIM, EDICT, DPMSolver, Heun, Reversible, Solver, invert, sample

F64 = torch.float64
VP_END, EDM_END = 1e-3, 0.002 / 80.0
INNER = (0.7, 0.1)  # the times between which orders are measured
GAMMAS = (0.25, 0.5, 0.75, 0.9, 1.0)
COUNTS = (10, 20, 40)
EDM_GAMMA = {10: 0.25, 20: 0.5, 40: 0.75}
STD = 0.15


def digits(seed: int, process: Process) -> MixtureDenoiser:
    """Six digits of each class, drawn by `seed`, each smoothed by N(0, 0.15^2): 60 components in 64 dimensions."""
    data = Digits("train", flat=True)
    label = data.batch(torch.arange(len(data)))["label"]
    order = random.uniform((len(data), 1), seed, draw=1, dtype=F64)[:, 0].argsort()
    chosen = torch.cat([order[label[order] == c][:6] for c in range(10)])
    return MixtureDenoiser(data.x[chosen], STD**2, None, process, label[chosen])


def _times(process: Process, steps: int) -> Tensor:
    if isinstance(process, EDM):
        return grids.karras(process, steps, end=EDM_END)
    return grids.uniform(process, steps, end=VP_END)


def _median(x: Tensor, reference: Tensor) -> float:
    return (x - reference).square().flatten(1).mean(1).sqrt().median().item()


@dataclass(frozen=True)
class Curves:
    """Median errors, and round trip errors, by method and number of steps."""

    errors: dict[str, list[tuple[int, float]]]
    trips: dict[str, list[tuple[int, float]]]


def round_trips(seed: int, starts: int) -> list[Row]:
    """Noise to samples and back, and samples to noise and back, beside DDIM inversion."""
    model, process = digits(seed, VP()), VP()
    x = process.prior((starts, 64), seed, dtype=F64)
    rows = []
    for steps in (10, 20, 50):
        times = _times(process, steps)
        plain = invert(model, sample(model, x, times=times), times=times)
        lost = (plain - x).square().mean().sqrt().item()
        for solver in (BDIA(), BDIA(0.9), EDICT()):
            found = invert(model, sample(model, x, solver=solver, times=times, return_pair=True))
            error = (found.x - x).abs().max().item()
            name = {"BDIA": f"BDIA, gamma = {getattr(solver, 'gamma', 0):g}", "EDICT": "EDICT"}[type(solver).__name__]
            rows.append(
                at_most(
                    f"noise to digits to noise, {steps} steps, float64: {name}",
                    error,
                    1e-6,
                    baseline=lost,
                    note="largest difference; baseline: DDIM inversion, RMS",
                )
            )
        worst = max(float(row.here) for row in rows[-3:-1])  # type: ignore[arg-type]
        rows.append(less_than(f"... against DDIM inversion, {steps} steps", worst, lost, 1e-4))
        rows.append(at_least(f"... which loses, {steps} steps", lost, 1e-2, note="RMS, noise has standard deviation 1"))
    return rows


def sweep(seed: int, starts: int, reference_steps: int) -> tuple[Curves, list[Row]]:
    """Errors to the converged flow by gamma and number of steps on VP, evenly in time."""
    process = VP()
    model, x = digits(seed, process), process.prior((starts, 64), seed, dtype=F64)
    exact = _converged(model, x, VP_END, reference_steps)
    errors: dict[str, list[tuple[int, float]]] = {}
    trips: dict[str, list[tuple[int, float]]] = {}
    solvers: dict[str, Solver] = {"DDIM": DDIM(), **{f"gamma = {g:g}": BDIA(g) for g in GAMMAS}, "EDICT": EDICT()}
    for name, solver in solvers.items():
        for steps in COUNTS:
            error, trip, cost = _measure(model, solver, x, exact, steps)
            errors.setdefault(name, []).append((cost, error))
            if math.isfinite(trip):
                trips.setdefault(name, []).append((steps, trip))

    def at(name: str, steps: int) -> float:
        return errors[name][COUNTS.index(steps)][1]

    best = min(at("gamma = 0.5", 10), at("gamma = 0.75", 10))
    rows = [
        less_than("error on VP, 10 evaluations: better of gamma 0.5, 0.75", best, at("DDIM", 10), 0.97),
        less_than("... 20 evaluations: gamma 1", at("gamma = 1", 20), at("DDIM", 20), 0.7),
        less_than("... 40 evaluations: gamma 1", at("gamma = 1", 40), at("DDIM", 40), 0.45),
        less_than("... 40 evaluations: gamma 1 against 0.5", at("gamma = 1", 40), at("gamma = 0.5", 40), 0.8),
        less_than("... 40 evaluations: gamma 1 against EDICT", at("gamma = 1", 40), at("EDICT", 20), 0.1),
    ]
    eps = torch.finfo(F64).eps
    for name, gamma in (("gamma = 1", 1.0), ("gamma = 0.9", 0.9), ("gamma = 0.75", 0.75), ("gamma = 0.5", 0.5)):
        for steps, trip in trips.get(name, []):
            bound, text = 1e4 * eps * gamma ** (1 - steps), f"round trip on VP, {steps} steps, {name}"
            # Noise has standard deviation 1: a larger bound says nothing.
            said = at_most(text, trip, bound, note="1e4 eps gamma^-(N-1)") if bound < 0.01 else info(text, trip)
            rows.append(said)
    lost = dict(trips["gamma = 0.5"])[20] / dict(trips["gamma = 1"])[20]
    rows.append(at_least("... gamma 0.5 over gamma 1, 20 steps", lost, 1e2, note="2^19 = 5e5 at the most"))
    return Curves(errors, trips), rows


def edm(seed: int, starts: int, reference_steps: int) -> list[Row]:
    """The same on EDM's process and grid, with DDIM (Euler there) and with EDM's own Heun as the increment."""
    process = EDM()
    model, x = digits(seed, process), process.prior((starts, 64), seed, dtype=F64)
    exact = _converged(model, x, EDM_END, reference_steps)
    rows = []
    for steps, gamma in EDM_GAMMA.items():
        ours, trip, _ = _measure(model, BDIA(gamma), x, exact, steps)
        euler, _, _ = _measure(model, DDIM(), x, exact, steps)
        rows.append(
            less_than(f"error on EDM, {steps} evaluations: gamma {gamma:g}", ours, euler, 0.6, published="better")
        )
        rows.append(at_most(f"... round trip, {steps} steps", trip, 1e-4))
    flat, _, _ = _measure(model, BDIA(), x, exact, 20)
    rows.append(info("... gamma 1, 20 evaluations", flat, note="Karras's steps shrink: not symmetric in their clock"))
    heun, _, _ = _measure(model, Heun(), x, exact, 20)
    near, back, cost = _measure(model, BDIA(0.25, Heun()), x, exact, 20)
    straight, again, _ = _measure(model, BDIA(0.25, Heun(), "extrapolated"), x, exact, 20)
    rows += [
        info("error on EDM, Heun in 40 evaluations: increment Heun, gamma 0.25, back by Euler", near, baseline=heun),
        less_than("... back extrapolated", straight, heun, 0.9, note="second order at any gamma, no more evaluations"),
        at_most("... round trips, 20 steps", max(back, again), 1e-2, note="4^19 = 3e11 times rounding"),
        at_most("... evaluations", cost, 40, note="2 a step"),
    ]
    return rows


def orders(seed: int, counts: Sequence[int]) -> tuple[dict[str, tuple[list[float], int]], list[Row]]:
    """Fitted slopes on a Gaussian from t = 0.7 to 0.1 on VP, evenly in time."""
    process = VP()
    mean = random.normal((16,), seed, draw=7, dtype=F64)
    variance = 0.3 * (0.5 * random.normal((16,), seed, draw=8, dtype=F64)).exp()
    model, z = GaussianDenoiser(mean, variance, process), random.normal((16, 16), seed, draw=9, dtype=F64)
    first, last = (
        level.alpha * mean + z * (level.alpha**2 * variance + level.sigma**2).sqrt()
        for level in map(process.level, INNER)
    )
    solvers: dict[str, tuple[Solver, int]] = {
        "DDIM": (DDIM(), 1),
        "gamma 0.5": (BDIA(0.5), 1),
        "gamma 1": (BDIA(), 2),
        "gamma 0.5 on Heun, back extrapolated": (BDIA(0.5, Heun(), "extrapolated"), 2),
        "EDICT": (EDICT(), 1),
    }
    rows, curves = [], {}
    for name, (solver, order) in solvers.items():
        errors = []
        for n in counts:
            times = grids.uniform(process, n, start=INNER[0], end=INNER[1])
            errors.append((sample(model, first, solver=solver, times=times) - last).square().mean().sqrt().item())
        slope = -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])
        rows.append(within(f"order of {name}", slope, order, 0.25, published=order))
        curves[name] = (errors, order)
    return curves, rows


def edits(seed: int, starts: int) -> list[Row]:
    """Digits of one class inverted under it, and sampled under another: back, or there."""
    process, steps = VP(), 20
    model = digits(seed, process)
    assert model.labels is not None
    source = torch.arange(starts) % 10
    target = (source + 3) % 10
    which = (model.labels[None] == source[:, None]).double().argmax(1)
    level = process.level(VP_END)
    noise = random.normal((starts, 64), seed, draw=3, dtype=F64)
    x = level.alpha * (model.means[which] + STD * noise) + level.sigma * random.normal(
        (starts, 64), seed, draw=4, dtype=F64
    )
    times, rows = _times(process, steps), []
    for name, solver in (("BDIA", BDIA()), ("EDICT", EDICT())):
        pair = invert(model, x, solver=solver, times=times, cond={"label": source})
        same = (sample(model, pair, cond={"label": source}) - x).abs().max().item()
        rows.append(at_most(f"class A to A through noise, {steps} steps: {name}", same, 1e-6))
        if name == "BDIA":
            edited = sample(model, pair, cond={"label": target})
            rows.append(at_least("... A to B: share that is nearest to B", _share(model, edited, target), 0.9))
            rows.append(at_most("... and before", _share(model, x, target), 0.1))
    latent = invert(model, x, solver=DDIM(), times=times, cond={"label": source})
    back = sample(model, latent, solver=DDIM(), times=times, cond={"label": source})
    rows.append(
        at_least("class A to A: DDIM inversion", (back - x).abs().max().item(), 1e-2, note="largest difference")
    )
    return rows


def _share(model: MixtureDenoiser, x: Tensor, label: Tensor) -> float:
    assert model.labels is not None
    nearest = torch.cdist(x, model.means).argmin(1)
    return (model.labels[nearest] == label).double().mean().item()


def _converged(model: Denoiser, x: Tensor, end: float, steps: int) -> Tensor:
    return sample(model, x, solver=DPMSolver(3), times=grids.log_snr(model.process, steps, end=end))


def _measure(model: Denoiser, solver: Solver, x: Tensor, exact: Tensor, steps: int) -> tuple[float, float, int]:
    """The median error, the round trip's largest error (NaN where there is none, or no digit of it), evaluations."""
    counter, times = CountingDenoiser(model), _times(model.process, steps)
    if not isinstance(solver, Reversible):
        return _median(sample(counter, x, solver=solver, times=times), exact), float("nan"), counter.evaluations
    pair = sample(counter, x, solver=solver, times=times, return_pair=True)
    cost = counter.evaluations
    try:
        trip = (invert(model, pair).x - x).abs().max().item()
    except InputError:
        # gamma^-N leaves no digit, as the solver says.
        trip = float("nan")
    return _median(pair.x, exact), trip, cost
