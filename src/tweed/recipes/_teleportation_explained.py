"""What the recipe `gaussian-teleportation` says of scores: how much of them a Gaussian explains, by noise level."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tweed.analysis import ExplainedVariance, explained_variance
from tweed.core import random, targets
from tweed.core.denoiser import Denoiser, FunctionDenoiser
from tweed.core.exact import EmpiricalDenoiser, GaussianDenoiser, fit_class_gaussians, fit_gaussian, fit_mixture
from tweed.core.processes import EDM
from tweed.data import Digits, Glyphs
from tweed.recipes._digits import score_model
from tweed.recipes.report import Progress, Row, at_least, info, less_than
from tweed.training import DenoisingLoss, load
from tweed.training.times import LogNormal

PROCESS = EDM(0.002, 80.0)
STD = 0.15
LEVELS = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
Found = dict[str, Sequence[ExplainedVariance]]
"""What each approximation explains, at `LEVELS`."""


def missed(found: Mapping[str, Sequence[ExplainedVariance]], name: str, sigma: float) -> float:
    """The share of the score that `name` does not explain at a noise level."""
    return 1.0 - found[name][LEVELS.index(sigma)].score


def _found(model: Denoiser, others: Mapping[str, Denoiser], data: Tensor, times: Sequence[float], seed: int) -> Found:
    return {name: explained_variance(model, other, data, times, seed=seed) for name, other in others.items()}


def exact(seed: int, samples: int) -> tuple[Found, list[Row]]:
    """The exact score of the digits smoothed by `STD`."""
    data = Digits(flat=True).x.double()
    model, gaussian = EmpiricalDenoiser(data, STD, PROCESS), fit_gaussian(data, PROCESS, noise=STD)
    noisy = model.sample(samples, random.fold(seed, 3)).double()
    others: dict[str, Denoiser] = {
        "isotropic": GaussianDenoiser(gaussian.mean, gaussian.variances.mean(), PROCESS),
        "Gaussian": gaussian,
        "10 Gaussians": fit_mixture(data, 10, PROCESS, floor=STD**2, seed=seed),
    }
    found = _found(model, others, noisy, [sigma / PROCESS.sigma_max for sigma in LEVELS], random.fold(seed, 4))
    middle = {name: missed(found, name, 0.5) for name in others}
    return found, [
        at_least("score explained by a Gaussian at sigma = 4, digits", 1.0 - missed(found, "Gaussian", 4.0), 0.99),
        info("... at sigma = 1", 1.0 - missed(found, "Gaussian", 1.0)),
        less_than("... missed at sigma = 0.5, against an isotropic one", middle["Gaussian"], middle["isotropic"], 0.7),
        at_least("... explained there beyond an isotropic one", middle["isotropic"] - middle["Gaussian"], 0.15),
        less_than("... missed by 10 Gaussians, against one", middle["10 Gaussians"], middle["Gaussian"], 0.9),
    ]


def trained(seed: int, steps: int, progress: Progress) -> tuple[Found, list[Row]]:
    """A perceptron of the digits, after a tenth of its training and after all of it."""
    digits = Digits(flat=True)
    data = digits.x.double()
    times = [sigma / PROCESS.sigma_max for sigma in LEVELS]
    some = data[torch.randperm(len(data), generator=random.generator(seed, 13))[:512]]
    others: dict[str, Denoiser] = {
        "Gaussian": fit_gaussian(data, PROCESS),
        "10 Gaussians": fit_mixture(data, 10, PROCESS, floor=1e-3, seed=seed),
        "training points": EmpiricalDenoiser(data, 0.0, PROCESS),
    }
    told = random.fold(seed, 4)
    options: dict[str, Any] = {
        "network": {"name": "mlp", "dim": 64, "width": 256},
        "batch_size": 256,
        "lr": 2e-3,
        "seed": random.fold(seed, 9),
        "ema": 0.99,
        "objective": DenoisingLoss(times=LogNormal()),
    }
    models = {
        name: score_model(PROCESS, targets.EDM(0.5), digits, steps=count, text=name, progress=progress, **options)
        for name, count in (("early", max(steps // 10, 1)), ("late", steps))
    }
    first = _found(models["early"], {"Gaussian": others["Gaussian"]}, some, times, told)
    found = _found(models["late"], others, some, times, told)
    early = [1.0 - missed(found_, "Gaussian", 2.0) for found_ in (first, found)]
    return found, [
        at_least("a network after a tenth of its training: score explained by a Gaussian at sigma = 2", early[0], 0.95),
        info("... after all of it", early[1]),
        less_than(
            "... missed by 10 Gaussians at sigma = 0.2, against the training points",
            missed(found, "10 Gaussians", 0.2),
            missed(found, "training points", 0.2),
            note="it has not learned its training points by heart",
        ),
    ]


def bundled(seed: int, samples: int, images: int) -> tuple[Found, list[Row]]:
    """The bundled network on its own data, at the same ratios of noise to signal of its own process."""
    model, glyphs = load("glyphs"), Glyphs()
    chosen = torch.randperm(len(glyphs), generator=random.generator(seed, 13))[:images]
    batch = glyphs.batch(chosen)
    x, label, process = batch["x"].double(), batch["label"], model.process
    classes = label.unique()[torch.randperm(36, generator=random.generator(seed, 14))[: min(8, samples)]].sort().values
    of_them = torch.isin(label, classes)
    within = torch.bucketize(label[of_them], classes)
    few, own, place = x[of_them][:samples], label[of_them][:samples], within[:samples]
    times = [process.time(-torch.tensor(s, dtype=torch.float64).log()).item() for s in LEVELS]
    whole, each = (
        fit_gaussian(x, process, rank=512),
        fit_class_gaussians(x[of_them], within, process, rank=128, pooled=0.3),
    )

    def of_class(state: Tensor, t: float) -> Tensor:
        made = torch.empty_like(state)
        for k in place.unique().tolist():
            made[place == k] = each[k](state[place == k], t).x0
        return made

    others: dict[str, Denoiser] = {
        "isotropic": GaussianDenoiser(whole.mean.reshape(x.shape[1:]), x.var(0).mean(), process),
        "Gaussian": whole,
        "Gaussian of the class": FunctionDenoiser(of_class, process),
    }
    cond = {"label": own}
    found: Found = {
        name: explained_variance(model, other, few, times, cond=cond, seed=random.fold(seed, 4))
        for name, other in others.items()
    }
    high = LEVELS.index(8.0)
    ours, theirs = found["Gaussian of the class"], found["Gaussian"]
    return found, [
        at_least("glyphs: score explained by the class's Gaussian at sigma = 8", ours[high].score, 0.98),
        less_than("... missed of the data estimate, against all's", 1 - ours[high].data, 1 - theirs[high].data, 0.7),
        info(
            "... score explained at sigma = 1",
            1.0 - missed(found, "Gaussian of the class", 1.0),
            baseline=1.0 - missed(found, "Gaussian", 1.0),
            note="baseline: the Gaussian of all classes",
        ),
    ]
