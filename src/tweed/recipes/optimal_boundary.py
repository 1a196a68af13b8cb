"""Optimal boundary conditions (Ma et al., ICLR 2024, arXiv 2305.15357): one start for every input of an ODE sampler.

Digits from their noisy 2x2 means, with the exact conditional denoiser of a mixture; a start is chosen among random ones on a
few reference digits, and used for digits that the search has not seen.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from tweed.core import grids, random
from tweed.core.denoiser import FunctionDenoiser
from tweed.core.exact import GaussianDenoiser, MixturePosterior
from tweed.core.processes import VP
from tweed.errors import IncompatibleError
from tweed.inverse import search_boundary, squared_error
from tweed.inverse.operators import SuperResolution
from tweed.recipes import Progress, Report, Row, at_least, at_most, check, info, less_than, within
from tweed.recipes._digit_posterior import EVENT, world
from tweed.solvers import DDIM, DDPM, sample

F64 = torch.float64
NOISE, STEPS = 0.05, 10


def run(seed: int, scale: str, progress: Progress) -> Report:
    candidates, references, tests = {"smoke": (24, 8, 8), "default": (400, 30, 60), "gpu": (1000, 20, 300)}[scale]
    digits = world(seed, held=references + tests)
    matrix = SuperResolution(EVENT, 2).matrix()
    model = digits.posterior(matrix, NOISE)
    y = digits.held.flatten(1) @ matrix.T
    y = y + NOISE * random.normal(y.shape, random.fold(seed, 1), dtype=F64)
    search = partial(
        search_boundary, model, solver=DDIM(), steps=STEPS, candidates=candidates, seed=random.fold(seed, 2)
    )
    progress("the search", 0.05)
    found = search({"measurement": y[:references]}, digits.held[:references])
    progress("all candidates on digits that the search has not seen", 0.35)
    # The truth about every candidate, which nobody has in use.
    unseen = search({"measurement": y[references:]}, digits.held[references:])
    scores, truth = found.scores, unseen.scores
    chosen = truth[found.number].item()
    average = truth.mean().item()
    progress("the model sampled otherwise", 0.8)
    rest, targets = {"measurement": y[references:]}, digits.held[references:]
    others = {
        "DDIM, 100 steps": (DDIM(), 100),
        "DDPM, 10 steps": (DDPM(), STEPS),
        "DDPM, 100 steps": (DDPM(), 100),
    }
    errors = {
        name: squared_error(
            sample(model, tests, solver=solver, steps=n, cond=rest, seed=random.fold(seed, 3), shape=EVENT), targets
        )
        .mean()
        .item()
        for name, (solver, n) in others.items()
    }
    rank = _spearman(scores, truth)
    null = _null(truth, scores, seed)
    made = found.sample(model, rest)
    again = found.sample(model, rest)
    strict = scale != "smoke"
    rows = _exact(seed)
    rows += [
        less_than(
            "error of the chosen start on unseen digits, against the average start",
            chosen,
            average,
            0.94 if strict else 1.1,
            published="better than random",
        ),
        less_than("... against DDPM with 100 steps", chosen, errors["DDPM, 100 steps"], 0.8 if strict else 1.1),
        at_least("rank correlation of reference and unseen scores", rank, 0.4 if strict else -0.2),
        at_most(
            "share of starts that are better on unseen digits",
            (truth < chosen).double().mean().item(),
            0.2 if strict else 1.0,
        ),
        within(
            "a start that each digit chooses by another's score: against the average",
            null,
            1.0,
            0.02 if strict else 0.2,
        ),
        at_most(
            "the start's own score off its result's", abs(squared_error(made, targets).mean().item() - chosen), 1e-6
        ),
        at_most("two uses of it differ by", (made - again).abs().max().item(), 0.0),
        info("best start in hindsight, against the average", truth.min().item() / average),
        info(
            "chosen on the reference digits themselves, against the average there",
            found.score / scores.mean().item(),
            note="what selection alone makes it look like",
        ),
    ]
    rows += [info(f"{name}: error", value, baseline=chosen) for name, value in errors.items()]
    return Report(
        slug="optimal-boundary",
        rows=rows,
        seed=seed,
        scale=scale,
        settings={"candidates": candidates, "reference digits": references, "unseen digits": tests, "steps": STEPS},
        figures={"scores": lambda: _figure(scores, truth, found.number, errors)},
        notes=(
            "Mean squared error, for which starts of little energy are good: their results are nearer to the posterior mean. "
            "For sharpness take a perceptual distance; LPIPS needs weights that are not shipped.",
            "Published for 8x super-resolution with trained networks and LPIPS.",
        ),
    )


def _exact(seed: int) -> list[Row]:
    """A Gaussian posterior of shared covariance: the ODE is affine, x_0 = m(y) + B x_T, so that starts rank alike up to noise."""
    process = VP()
    factor = random.normal((4, 4), random.fold(seed, 10), dtype=F64)
    prior = GaussianDenoiser(torch.zeros(4), factor @ factor.T / 4 + 0.1 * torch.eye(4), process)
    model = MixturePosterior(prior, random.normal((2, 4), random.fold(seed, 11), dtype=F64), 0.3)
    y = random.normal((6, 2), random.fold(seed, 12), dtype=F64)
    cond = {"measurement": y}
    means = model.moments(y)[0]
    grid = partial(grids.uniform, end=1e-3)
    search = partial(search_boundary, model, solver=DDIM(), steps=20, seed=seed, grid=grid)
    whole = search(cond, means, candidates=20)
    few = search(cond, means, candidates=7)
    turned = search({"measurement": y.flip(0)}, means.flip(0), candidates=list(range(20))[::-1])
    spread = []
    for k in range(3):
        one = search({"measurement": y[k : k + 1]}, means[k : k + 1], candidates=20)
        spread.append(_spearman(one.scores, whole.scores))
    single = search(cond, means, candidates=[3])
    plain = sample(model, single.x.expand(6, 4), solver=DDIM(), times=single.times, cond=cond)
    other = FunctionDenoiser(lambda x, t, measurement: x, VP(beta_max=10.0), event=(4,))
    try:
        whole.sample(other, cond)
        refused = False
    except IncompatibleError as error:
        refused = "Search again" in str(error)
    return [
        at_least(
            "Gaussian posteriors of one covariance: rank correlation of one input's scores with all", min(spread), 0.999
        ),
        check("more candidates never have a worse best", whole.score <= few.score, "score of 20 <= score of 7"),
        check("order of candidates and pairs", turned.number == whole.number, "the same start"),
        at_most("one candidate: off the plain sampler", (single.sample(model, cond) - plain).abs().max().item(), 0.0),
        check("another process", refused, "refused, by name"),
    ]


def _null(truth: Tensor, scores: Tensor, seed: int) -> float:
    """Starts chosen by scores that are shuffled among them: no better than the average, in the mean over shuffles."""
    shuffles = random.uniform((400, len(truth)), random.fold(seed, 4), dtype=F64).argsort(1)
    picks = scores[shuffles].argmin(1)
    return (truth[picks].mean() / truth.mean()).item()


def _spearman(a: Tensor, b: Tensor) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(a.numpy(), b.numpy()).statistic)  # type: ignore[union-attr]


def _figure(scores: Tensor, truth: Tensor, chosen: int, errors: dict[str, float]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(scores, truth, "o", markersize=3, color="#8a8a8a", label="random starts")
    axes.plot(scores[chosen], truth[chosen], "*", markersize=14, color="#b03a2e", label="the chosen start")
    axes.axhline(truth.mean().item(), color="#8a8a8a", linewidth=1, linestyle=":", label="average start")
    for style, (name, value) in zip(("-", "--", "-."), errors.items(), strict=False):
        axes.axhline(value, color="#1f6fb4", linewidth=1, linestyle=style, label=name)
    axes.set(xlabel="error on the reference digits", ylabel="error on unseen digits")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7.5)
    return figure
