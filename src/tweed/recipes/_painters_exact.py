"""What the recipe `gaussian-painters` measures on exact scores: a Gaussian, and the handwritten digits."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tweed.analysis import (
    Geometry,
    commitment,
    emergence,
    endpoint_coefficients,
    endpoint_estimates,
    explained_variance,
    gaussian_phase,
    order_of_emergence,
    sensitivity,
    settled_variance,
    trajectory_geometry,
    variance_by_time,
)
from tweed.core import grids, random
from tweed.core.denoiser import Denoiser
from tweed.core.exact import EmpiricalDenoiser, GaussianDenoiser, PrincipalGaussian, fit_gaussian, fit_mixture
from tweed.core.processes import EDM, VP, Process
from tweed.core.starts import Start
from tweed.data import Digits
from tweed.recipes.report import Row, at_least, at_most, greater_than, info, less_than, within
from tweed.solvers import AdaptiveRungeKutta, DPMSolver, sample
from tweed.starts import gaussian_jump

LEVELS, STD = EDM(0.002, 80.0), 0.1
PROCESSES: dict[str, Process] = {"VP": VP(), "EDM": LEVELS}
FINE = DPMSolver(3)


@dataclass(frozen=True)
class Trace:
    """Curves of one set of runs over the log-SNR, for the figures."""

    log_snr: Sequence[float]
    state: Sequence[float]
    settled: Sequence[float]
    predicted: Sequence[float]
    emerged: Sequence[float]
    expected: Sequence[float]


def spearman(a: Tensor, b: Tensor) -> float:
    """The rank correlation, without ties."""
    ranks = torch.stack((a.argsort().argsort(), b.argsort().argsort())).double()
    return torch.corrcoef(ranks)[0, 1].item()


def crossing(levels: Tensor, share: Tensor) -> float:
    """The level at which a rising share is a half, interpolated; NaN where it never is."""
    for (a, b), (low, high) in zip(pairwise(share.tolist()), pairwise(levels.tolist()), strict=True):
        if a < 0.5 <= b:
            return low + (0.5 - a) / (b - a) * (high - low)
    return float("nan")


def closed_form(seed: int) -> list[Row]:
    """Formulas against a numerical solver, on a Gaussian of variances 1 / k^2 in 64 dimensions."""
    variances = torch.arange(1, 65, dtype=torch.float64) ** -2.0
    axes = torch.linalg.qr(random.normal((64, 64), seed, draw=1, dtype=torch.float64))[0]
    mean = random.normal((64,), seed, draw=2, dtype=torch.float64)
    rows = []
    for name, process in PROCESSES.items():
        gaussian = PrincipalGaussian(mean, variances, axes, 0.0, process)
        x = process.prior((8, 64), seed, dtype=torch.float64)
        times = grids.log_snr(process, 8, end=process.t_min).tolist()
        solver = AdaptiveRungeKutta("dopri8", rtol=1e-10, atol=1e-10)
        states = sample(gaussian, x, solver=solver, times=times, trajectory=True)
        exact = torch.stack([gaussian.flow(x, 1.0, t) for t in times])
        rows.append(at_most(f"{name}: closed form against the solver", (states - exact).abs().max().item(), 1e-6))
        c = (x - process.level(1.0).alpha * mean) @ axes
        xi = endpoint_coefficients(process, variances, times)[:, None] * c
        found = (endpoint_estimates(gaussian, exact, times) - mean) @ axes
        rows.append(at_most("... endpoint estimates", (found - xi).abs().max().item(), 1e-8))
        rows += _kicks(process, gaussian, states, times)
    return rows


def _kicks(process: Process, gaussian: PrincipalGaussian, states: Tensor, times: list[float]) -> list[Row]:
    """A tenth of the state's length along the first direction, early and late: how much further the early one carries."""
    gains = []
    for i in (1, 7):
        t, kick = times[i], 0.1 * states[i].norm(dim=1, keepdim=True) * gaussian.directions[:, 0]
        grid = grids.log_snr(process, 200, start=t, end=times[-1])
        ends = [sample(gaussian, Start(x, t), solver=FINE, times=grid) for x in (states[i], states[i] + kick)]
        gains.append(((ends[1] - ends[0]).norm(dim=1) / kick.norm(dim=1)).mean().item())
    formula = sensitivity(process, gaussian.variances[:1], [times[1], times[7]], times[-1])[:, 0].tolist()
    expected = formula[0] / formula[1]
    return [within("... early kick against late, as the formula", gains[0] / gains[1] / expected, 1.0, 0.02)]


def digits(seed: int, starts: int, steps: int) -> tuple[list[Row], Trace]:
    """The exact score of the digits: how long the Gaussian holds, what appears when, and what a jump costs."""
    data = Digits(flat=True).x.double()
    model, gaussian = EmpiricalDenoiser(data, STD, LEVELS), fit_gaussian(data, LEVELS, noise=STD)
    times = grids.log_snr(LEVELS, steps, end=LEVELS.t_min).tolist()
    x = LEVELS.prior((starts, 64), random.fold(seed, 1), dtype=torch.float64)
    states = sample(model, x, solver=FINE, times=times, trajectory=True)
    estimates = endpoint_estimates(model, states, times)
    phase = gaussian_phase(gaussian, states, estimates, times)
    wide = GaussianDenoiser(gaussian.mean, gaussian.variances.mean(), LEVELS)
    scaled = gaussian_phase(wide, states, estimates, times)
    high = [i for i, t in enumerate(times) if t * LEVELS.sigma_max >= 3.3]
    rows = [
        at_most("digits: state against the Gaussian's flow, sigma >= 3.3", phase.state[high].max().item(), 0.02),
        less_than("... against scaling about the mean", phase.state[high[-1]], scaled.state[high[-1]], 0.6),
        at_most("... sigma at which it is off by 10 %", phase.until * LEVELS.sigma_max, 2.0),
    ]
    noisy = data[random.uniform((512, 1), seed, draw=3)[:, 0].mul(len(data)).long()]
    noisy = noisy + STD * random.normal(noisy.shape, seed, draw=4, dtype=torch.float64)
    two, four = (e.score for e in explained_variance(model, gaussian, noisy, [2.0 / 80.0, 4.0 / 80.0], seed=seed))
    rows += [
        at_least("... score explained by the Gaussian at sigma = 2", two, 0.98),
        at_least("... at sigma = 4", four, 0.999),
    ]
    found = order_of_emergence(LEVELS, estimates, times, gaussian.directions[:, :40], gaussian.mean)
    expected = LEVELS.log_snr(emergence(LEVELS, gaussian.variances[:40]))
    order = spearman(found, gaussian.variances[:40])
    rows.append(at_most("... rank correlation of a feature's log-SNR of emergence with its variance", order, -0.9))
    settled = variance_by_time(estimates)
    predicted = settled_variance(LEVELS, gaussian.variances, times).sum(1) / gaussian.variances.sum()
    rows += _commitments(data, seed, x, times, phase.until)
    rows += _late_and_early(model, gaussian, states, times)
    rows += _jump(model, gaussian, x, states[-1], steps)
    levels = LEVELS.log_snr(torch.tensor(times, dtype=torch.float64))
    half, closed = crossing(levels, settled), crossing(levels, predicted)
    rows.append(within("... half of the variance is settled at log-SNR", half, closed, 0.6))
    trace = Trace(
        levels.tolist(), phase.state.tolist(), settled.tolist(), predicted.tolist(), found.tolist(), expected.tolist()
    )
    return rows, trace


def _commitments(data: Tensor, seed: int, x: Tensor, times: list[float], until: float) -> list[Row]:
    """Runs of ten Gaussians: where they commit, and the component's own flow from there on."""
    ten, whole = fit_mixture(data, 10, LEVELS, floor=STD**2, seed=seed), fit_gaussian(data, LEVELS, noise=STD)
    states = sample(ten, x, solver=FINE, times=times, trajectory=True)
    found = commitment(ten, states, times)
    median = found.time.nan_to_num(0.0).median().item()
    at = min(range(len(times)), key=lambda i: abs(times[i] - median))
    errors = []
    for k in found.component.unique().tolist():
        own = (found.component == k) & (found.time >= times[at])
        assert ten.vectors is not None
        one = PrincipalGaussian(ten.means[k], ten.values[k], ten.vectors[k], 0.0, LEVELS)
        for flow in (one, whole):
            moved = flow.flow(states[at][own], times[at], times[-1])
            errors.append((moved - states[-1][own]).square().mean(1))
    ours, theirs = torch.cat(errors[::2]), torch.cat(errors[1::2])
    return [
        info("... commitment to one of 10 Gaussians, median sigma", median * LEVELS.sigma_max),
        greater_than(
            "... sigma at which the Gaussian phase ends, against commitment",
            until * LEVELS.sigma_max,
            median * LEVELS.sigma_max,
        ),
        less_than(
            "... from there on: error of the component's flow, against the whole Gaussian's",
            ours.median().sqrt().item(),
            theirs.median().sqrt().item(),
            0.5,
        ),
    ]


def _late_and_early(model: Denoiser, gaussian: PrincipalGaussian, states: Tensor, times: list[float]) -> list[Row]:
    """Kicks of a tenth of the state's length along layout and along detail."""
    moved = {}
    for when, sigma in (("early", 20.0), ("late", 0.05)):
        i = min(range(len(times)), key=lambda j: abs(times[j] * LEVELS.sigma_max - sigma))
        grid = times[i:]
        for which, k in (("layout", 0), ("detail", 40)):
            kick = 0.1 * states[i].norm(dim=1, keepdim=True) * gaussian.directions[:, k]
            ends = [
                sample(model, Start(s, times[i]), solver=FINE, times=grid) for s in (states[i] + kick, states[i] - kick)
            ]
            moved[when, which] = ((ends[0] - ends[1]).norm(dim=1) / 2.0).median().item()
    return [
        greater_than(
            "... an early kick of 10 % along layout moves the image, against a late one",
            moved["early", "layout"],
            moved["late", "layout"],
            1.5,
            published="early perturbations matter more",
        ),
        greater_than(
            "... an early kick along layout, against one along detail",
            moved["early", "layout"],
            moved["early", "detail"],
            2.0,
        ),
    ]


def _jump(model: Denoiser, gaussian: Any, x: Tensor, reference: Tensor, steps: int) -> list[Row]:
    """Beginning at sigma = 8.4 from the closed form."""
    t = 8.4 / LEVELS.sigma_max
    grid = grids.log_snr(LEVELS, steps, start=t, end=LEVELS.t_min)
    jumped, noise = (
        sample(model, start, solver=FINE, times=grid) for start in (gaussian_jump(gaussian, x, t), Start(x * t, t))
    )
    ours, theirs = ((made - reference).square().mean(1).sqrt().median().item() for made in (jumped, noise))
    return [
        at_most("... begun at sigma = 8.4 from the closed form: median change of the result", ours, 1e-2),
        less_than("... against the start's noise scaled", ours, theirs, 0.2),
    ]


def geometry(seed: int, starts: int) -> list[Row]:
    """The digits' trajectories under VP: how flat, and how much of a rotation."""
    process = VP()
    model = EmpiricalDenoiser(Digits(flat=True).x.double(), STD, process)
    times = grids.log_snr(process, 50, end=process.t_min).tolist()
    x = random.normal((starts, 64), random.fold(seed, 2), dtype=torch.float64)
    states = sample(model, x, solver=FINE, times=times, trajectory=True)
    return shape_of(trajectory_geometry(process, states, times, seed=seed), "digits, VP", 0.9)


def shape_of(found: Geometry, name: str, rotation: float) -> list[Row]:
    """What must hold of a good model's trajectories under VP, and the least R^2 of the rotation."""
    mean = {
        field: getattr(found, field).mean().item() for field in ("plane", "bent", "null_plane", "null_bent", "line")
    }
    return [
        less_than(
            f"{name}: variance outside the best plane, against a bridge of equal length",
            1.0 - mean["plane"],
            1.0 - mean["null_plane"],
            0.7,
        ),
        less_than(
            "... when the chord is taken out",
            1.0 - mean["bent"],
            1.0 - mean["null_bent"],
            0.25,
            published="low-dimensional",
        ),
        at_least(
            "... R^2 of the rotation from start to result, nothing fitted",
            found.rotation.mean().item(),
            rotation,
            baseline=mean["line"],
            published="like 2D rotations",
            note="baseline: each state at its nearest point of the chord",
        ),
    ]
