"""What the recipe `gaussian-painters` measures on the bundled model `glyphs`, class by class."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from tweed.analysis import (
    Geometry,
    emergence,
    endpoint_estimates,
    gaussian_phase,
    order_of_emergence,
    sensitivity,
    settled_variance,
    trajectory_geometry,
    variance_by_time,
)
from tweed.core import grids, random
from tweed.core.denoiser import Denoiser
from tweed.core.exact import PrincipalGaussian, fit_gaussian
from tweed.core.starts import Start
from tweed.data import Glyphs
from tweed.recipes._painters_exact import Trace, crossing, shape_of, spearman
from tweed.recipes.report import Progress, Row, at_least, at_most, greater_than, info, within
from tweed.solvers import DPMSolver, sample
from tweed.training import load

SOLVER, FEATURES = DPMSolver(2), 40
EARLY, LATE = -2.2, 1.5  # log-SNR
DETAIL = 200


@dataclass(frozen=True)
class Sizes:
    """Classes, samples of each, steps, and images of a class for its Gaussian."""

    classes: int
    samples: int
    steps: int
    images: int


@dataclass(frozen=True)
class Film:
    """One run for the figure: states, endpoint estimates and the Gaussian's, shape (n, h, w), at the given log-SNRs."""

    states: Tensor
    estimates: Tensor
    gaussian: Tensor
    log_snr: list[float]


def run(seed: int, sizes: Sizes, progress: Progress) -> tuple[list[Row], Trace, Film]:
    model, data = load("glyphs"), Glyphs()
    classes = torch.randperm(36, generator=random.generator(seed, 1))[: sizes.classes].tolist()
    times = grids.log_snr(model.process, sizes.steps, end=model.process.t_min).tolist()
    levels = model.process.log_snr(torch.tensor(times, dtype=torch.float64))
    state, settled, predicted, order, emerged, expected, kicks = [], [], [], [], [], [], []
    shapes: list[Geometry] = []
    film = None
    for number, k in enumerate(classes):
        progress(f"glyphs, class {data.characters[k]}", number / len(classes))
        images = data.batch(36 * torch.arange(min(sizes.images, len(data) // 36)) + k)["x"]
        gaussian = fit_gaussian(images, model.process, rank=512)
        cond = {"label": torch.full((sizes.samples,), k)}
        x = model.process.prior((sizes.samples, *data.shape), random.fold(seed, 2, k))
        states = sample(model, x, solver=SOLVER, times=times, cond=cond, trajectory=True)
        estimates = endpoint_estimates(model, states, times, cond)
        phase = gaussian_phase(gaussian, states, estimates, times)
        state.append(phase.state)
        shapes.append(trajectory_geometry(model.process, states, times, seed=seed))
        settled.append(variance_by_time(estimates))
        own = settled_variance(model.process, gaussian.variances, times).sum(1)
        predicted.append(own / own[-1])
        found = order_of_emergence(model.process, estimates, times, gaussian.directions[:, :FEATURES], gaussian.mean)
        emerged.append(found)
        expected.append(model.process.log_snr(emergence(model.process, gaussian.variances[:FEATURES])))
        order.append(spearman(found, gaussian.variances[:FEATURES]))
        kicks.append(_kicks(model, gaussian, states, times, cond))
        film = film or _film(gaussian, states, estimates, times, levels)
    assert film is not None
    error, half = torch.stack(state).square().mean(0).sqrt(), torch.stack(settled).mean(0)
    closed = torch.stack(predicted).mean(0)
    inside = levels <= -1.5
    last = levels[(error <= 0.1).long().cumprod(0).sum() - 1].item()
    shape = Geometry(*(torch.cat([getattr(s, field.name) for s in shapes]) for field in fields(Geometry)))
    moved = torch.tensor(kicks, dtype=torch.float64).mean(0).tolist()
    text = f"glyphs: rank correlation of a feature's log-SNR of emergence with its variance, first {FEATURES}"
    rows = [
        at_most("glyphs: state against the Gaussian's flow, log-SNR to -1.5", error[inside].max().item(), 0.03),
        at_least("... log-SNR to which it is within 10 %", last, -1.5, published="describes the initial phase"),
        info("... at the end of the run", error[-1].item()),
        *shape_of(shape, "glyphs", 0.96),
        at_most(text, sum(order) / len(order), -0.5) if sizes.samples >= 10 else info(text, sum(order) / len(order)),
        within("... half of the variance is settled at log-SNR", crossing(levels, half), crossing(levels, closed), 0.6),
        greater_than(
            "... an early kick of 10 % along layout moves the image, against a late one",
            moved[0],
            moved[2],
            2.0,
            published="early perturbations matter more",
        ),
        greater_than("... an early kick along layout, against one along detail", moved[0], moved[1], 2.0),
        info("... gain of an early kick along layout", moved[3], baseline=moved[4], note="baseline: the closed form"),
    ]
    trace = Trace(
        levels.tolist(),
        error.tolist(),
        half.tolist(),
        closed.tolist(),
        torch.stack(emerged).mean(0).tolist(),
        torch.stack(expected).mean(0).tolist(),
    )
    return rows, trace, film


def _kicks(
    model: Denoiser, gaussian: PrincipalGaussian, states: Tensor, times: list[float], cond: dict[str, Tensor]
) -> list[float]:
    """RMS movement of the image by early layout, early detail, late layout; gain of the first, and its closed form."""
    levels, moved = [model.process.level(t).log_snr for t in times], []
    for level, feature in ((EARLY, 0), (EARLY, DETAIL), (LATE, 0)):
        i = min(range(len(times)), key=lambda j: abs(levels[j] - level))
        x = states[i].flatten(1).double()
        kick = (0.1 * x.norm(dim=1, keepdim=True) * gaussian.directions[:, feature]).reshape(states[i].shape)
        up, down = (
            sample(model, Start((states[i] + way * kick).float(), times[i]), solver=SOLVER, times=times[i:], cond=cond)
            for way in (1.0, -1.0)
        )
        moved.append((0.5 * (up - down)).square().mean().sqrt().item())
        if not feature and level == EARLY:
            along = 0.5 * (up - down).flatten(1).double() @ gaussian.directions[:, 0]
            gain = (along / kick.flatten(1).norm(dim=1)).mean().item()
            formula = sensitivity(model.process, gaussian.variances[:1], [times[i]], times[-1]).item()
    return [*moved, gain, formula]


def _film(gaussian: PrincipalGaussian, states: Tensor, estimates: Tensor, times: list[float], levels: Tensor) -> Film:
    chosen = torch.linspace(1, len(times) - 1, 10).round().long().unique().tolist()
    begin = states[0, :1].double()
    own = [gaussian(gaussian.flow(begin, times[0], times[i]), times[i]).x0[0, 0] for i in chosen]
    return Film(states[chosen, 0, 0], estimates[chosen, 0, 0], torch.stack(own), levels[chosen].tolist())
