"""Recipe of "Score-Based Generative Modeling through Stochastic Differential Equations" (ICLR 2021).

The first part is on worlds whose score is known: a corrector makes a predictor better at equal cost, the
probability-flow ODE has the SDE's marginals and gives exact likelihoods, and imputation finds a conditional mean. The
second trains small networks under the three SDEs on handwritten digits, measures their bits a dimension, and uses them,
unconditional as they are, for class-conditional sampling, inpainting and colorization.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tweed.core import random, targets
from tweed.core.denoiser import Denoiser
from tweed.core.processes import VE, VP, Process, SubVP
from tweed.data.dataset import Tensors
from tweed.data.digits import Digits
from tweed.guidance import ClassifierGuidance
from tweed.metrics import (
    Classifier,
    accuracy,
    energy_distance,
    entropy_score,
    features,
    frechet_distance,
    log_probabilities,
    train_classifier,
)
from tweed.recipes import _score_sde_exact as exact
from tweed.recipes import _score_sde_figures as figures
from tweed.recipes._digits import OFFSET, Dequantised, colour, hue_of, hues, score_model
from tweed.recipes._imputation import Known, grey_basis, impute
from tweed.recipes._noisy_classifier import train_noisy_classifier
from tweed.recipes.report import Progress, Report, Row, at_least, at_most, greater_than, info, less_than, span
from tweed.solvers import (
    AdaptiveRungeKutta,
    EulerMaruyama,
    Langevin,
    PredictorCorrector,
    Solver,
    bits_per_dim,
    invert,
    log_likelihood,
    sample,
)
from tweed.training import DenoisingLoss
from tweed.training.weightings import Uniform

F64 = torch.float64
_STD = 0.75  # of the digits' pixels in [-1, 1], roughly
_DEQUANTISE, _TEST, _NETS, _JUDGE, _SAMPLES, _PROBES, _CLASSES, _HALVES, _HUES = range(20, 29)  # streams of the seed


@dataclass(frozen=True)
class Settings:
    """Sizes at one scale.

    Args:
        exact: of the part with known scores.
        network: of every score model; all have one budget, `steps` of `batch_size` at `lr`.
        judge_steps, classifier_steps: of the judge of clean digits, and of the classifier of noisy ones.
        samples, test: how many samples and test images are measured.
        sde_steps: of the SDE samplers.
        tasks, draws, task_steps: images, draws of each, and steps in inpainting and colorization.
        marginal_bound, bits_margin, sharpness, guided, hue: bounds of relations, justified by repeated seeds.
    """

    exact: exact.Sizes
    network: dict[str, Any]
    steps: int
    batch_size: int
    samples: int
    test: int
    sde_steps: int
    tasks: int
    draws: int
    task_steps: int
    marginal_bound: float
    bits_margin: float
    sharpness: float
    guided: float
    hue: float
    lr: float = 2e-3
    ema: float = 0.999
    judge_steps: int = 300
    classifier_steps: int = 400
    guidance: float = 2.0


def _mlp(width: int, depth: int, dropout: float = 0.0) -> dict[str, Any]:
    return {"name": "mlp", "dim": 64, "width": width, "depth": depth, "dropout": dropout}


SCALES = {
    "smoke": Settings(
        exact=exact.Sizes(samples=6000, marginals=400, steps=100, probes=200, draws=200, imputing=100),
        network=_mlp(128, 3),
        steps=250,
        batch_size=128,
        samples=200,
        test=96,
        sde_steps=100,
        tasks=12,
        draws=16,
        task_steps=60,
        marginal_bound=0.1,
        bits_margin=0.1,
        sharpness=0.6,
        guided=0.4,
        hue=0.15,
        ema=0.98,
        judge_steps=120,
        classifier_steps=150,
    ),
    "default": Settings(
        exact=exact.Sizes(samples=20000, marginals=1000, steps=300, probes=500, draws=500, imputing=400),
        network=_mlp(256, 4),
        steps=2000,
        batch_size=256,
        samples=500,
        test=358,
        sde_steps=400,
        tasks=48,
        draws=16,
        task_steps=250,
        marginal_bound=0.05,
        bits_margin=0.05,
        sharpness=0.9,
        guided=0.8,
        hue=0.4,
    ),
    "gpu": Settings(
        exact=exact.Sizes(samples=100_000, marginals=4000, steps=500, probes=2000, draws=2000, imputing=1000),
        network=_mlp(768, 5, dropout=0.1),
        steps=8000,
        batch_size=512,
        samples=4000,
        test=358,
        sde_steps=1000,
        tasks=256,
        draws=32,
        task_steps=1000,
        marginal_bound=0.05,
        bits_margin=0.05,
        sharpness=0.9,
        guided=0.8,
        hue=0.4,
    ),
}


def run(seed: int, scale: str, progress: Progress) -> Report:
    """The report; raises nothing of its own."""
    settings = SCALES[scale]
    strict = scale != "smoke"
    part = span(progress, 0.0, 0.15)
    rows, curves = exact.predictor_corrector(seed, settings.exact, strict, part)
    progress("likelihoods", 0.15)
    rows += exact.likelihood(seed, settings.exact.probes)
    progress("marginals", 0.17)
    rows += exact.marginals(seed, settings.exact.marginals, settings.exact.steps, settings.marginal_bound)
    progress("a conditional mean", 0.2)
    rows += exact.conditional_mean(seed, settings.exact.draws, settings.exact.imputing)
    digits, sheets = trained(seed, settings, span(progress, 0.23, 1.0))
    return Report(
        slug="score-sde",
        rows=rows + digits,
        seed=seed,
        scale=scale,
        settings=vars(settings),
        figures={
            "samplers": lambda: figures.curves(curves),
            **{name: (lambda shown=shown: figures.strips(*shown)) for name, shown in sheets.items()},
        },
        notes=(
            "Bits a dimension: pixels 0 .. 16 with uniform noise within their level, x = 2 (n + u) / 17 - 1, so that "
            f"bits = -log2 p(x) / 64 + log2(17/2); an upper bound for the integers, {math.log2(17):.2f} without a model.",
            "All models have one network size, one budget and the published sigma^2 weights at uniform times. All have "
            "EDM's scaling in and out of the network (arXiv 2206.00364): with VP's published noise prediction, small "
            "networks had 0.02 bits more, and after short training their ODE diverged from near-pure noise.",
            "sub-VP and VP differ by the time they spend at each noise level; at this size that is worth less than the "
            "published 0.1 bits (3.02 and 3.13 on CIFAR-10), and the margin is wider than the difference.",
            "Overwriting what is known ignores that its noise and that of the rest are tied along a path: a predictor "
            "alone leaves a bias that more steps do not remove; a corrector removes it as its steps become many.",
            "FID records, Inception scores and pictures of 1024 x 1024 need the published networks.",
        ),
    )


def trained(seed: int, settings: Settings, progress: Progress) -> tuple[list[Row], dict[str, tuple]]:
    """Rows of the models of digits, and what the figures show: (title, {line: images})."""
    train = Dequantised("train", random.fold(seed, _DEQUANTISE), repeats=256)
    judge = train_classifier(train, settings.judge_steps, random.fold(seed, _JUDGE), shift=0)
    sdes: dict[str, Process] = {"VE": VE(0.01, 13.0), "VP": VP(), "sub-VP": SubVP()}
    # The largest distance between two digits is 13: VE's largest noise, by the paper's rule.

    def learn(name: str, process: Process, data: Tensors, number: int) -> Denoiser:
        return score_model(
            process,
            targets.EDM(_STD),
            data,
            network={**settings.network, "dim": math.prod(data.shape)},
            steps=settings.steps,
            batch_size=settings.batch_size,
            lr=settings.lr,
            ema=settings.ema,
            objective=DenoisingLoss(weighting=Uniform("Noise")),
            seed=random.fold(seed, _NETS),
            text=f"training {name}",
            progress=span(progress, 0.18 * number, 0.18 * (number + 1)),
        )

    models = {name: learn(name, sde, train, number) for number, (name, sde) in enumerate(sdes.items())}
    sharp = Digits("train")
    label = sharp.batch(torch.arange(len(sharp)))["label"]
    painted = Tensors(colour(sharp.x, hues(label, random.fold(seed, _HUES))))
    coloured = learn("VE on coloured digits", VE(0.01, 20.0), painted, 3)

    progress("likelihoods of digits", 0.72)
    rows = _bits(models, train, seed, settings)
    progress("samples of digits", 0.78)
    more, sheet = _samples(models, judge, train, seed, settings)
    rows += more
    progress("class-conditional sampling", 0.86)
    more, guided = _class_conditional(models["VP"], judge, train, seed, settings)
    rows += more
    progress("inpainting", 0.9)
    more, halves = _inpainting(models["VE"], train, seed, settings)
    rows += more
    progress("colorization", 0.95)
    more, colours = _colorization(coloured, seed, settings)
    sheets = {
        "samples": ("Handwritten digits, 8 x 8, and samples of each SDE", {**sheet, **guided}),
        "inpainting": ("Inpainting the lower half with an unconditional VE model", halves),
        "colorization": ("Colorization: the grey channel is known, the others are drawn", colours),
    }
    return rows + more, sheets


def _bits(models: dict[str, Denoiser], train: Dequantised, seed: int, settings: Settings) -> list[Row]:
    test = Dequantised("test", random.fold(seed, _TEST)).batch(torch.arange(settings.test))["x"]
    x = train.batch(torch.arange(min(len(train), 20_000)))["x"].flatten(1).double()
    fitted = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T))
    gaussian = bits_per_dim(fitted.log_prob(test.flatten(1).double()), 64, OFFSET).mean().item()
    found, rows = {}, []
    for name, model in models.items():
        # One probe an image, the same for each model.
        result = log_likelihood(
            model,
            test.to(model.device),
            trace="hutchinson",
            rtol=1e-4,
            atol=1e-4,
            offset=OFFSET,
            seed=random.fold(seed, _PROBES),
        )
        found[name] = result.bits_per_dim.mean().item()
        rows.append(
            less_than(
                f"bits/dim of {len(test)} test digits, {name}; a Gaussian with their covariance",
                found[name],
                gaussian,
                published={"VE": None, "VP": "3.13 (CIFAR-10)", "sub-VP": "2.99 (CIFAR-10)"}[name],
                note=f"{result.evaluations} evaluations",
            )
        )
    difference = found["sub-VP"] - found["VP"]
    rows.append(
        at_most(
            "bits/dim of sub-VP above VP", difference, settings.bits_margin, published="-0.11 (DDPM++, uniform noise)"
        )
    )
    return rows


def _confidence(judge: Classifier, x: Tensor) -> float:
    """The mean probability of the likeliest class."""
    return log_probabilities(judge, x).amax(1).exp().mean().item()


def _samples(
    models: dict[str, Denoiser], judge: Classifier, train: Dequantised, seed: int, settings: Settings
) -> tuple[list[Row], dict[str, Tensor]]:
    n = settings.samples
    real, rest = train.batch(torch.arange(n) * (len(train) // n)), Dequantised("test", random.fold(seed, _TEST))
    test = rest.batch(torch.arange(len(rest)))
    sure = _confidence(judge, test["x"])
    rows = [
        info("the judge's accuracy on real test digits", accuracy(judge, test["x"], test["label"])),
        info("the judge's mean confidence on real test digits", sure),
        info("its entropy score of real digits (at most 10)", entropy_score(judge, test["x"])),
    ]
    sheet = {"real digits": real["x"][:14]}
    adaptive = AdaptiveRungeKutta(rtol=1e-5, atol=1e-5)
    for number, (name, model) in enumerate(models.items()):
        process = model.process
        sde: Solver = PredictorCorrector(corrector=Langevin(norm="sample")) if name == "VE" else EulerMaruyama()
        steps = settings.sde_steps // 2 if name == "VE" else settings.sde_steps
        times = torch.linspace(1.0, process.t_min, steps + 1, dtype=F64)
        stream = random.fold(seed, _SAMPLES, number)
        drawn = sample(model, 2 * n, solver=sde, times=times, seed=stream).cpu()
        one, other = drawn.split(n)
        flow = sample(model, n, solver=adaptive, times=(1.0, process.t_min), seed=random.fold(stream, 1)).cpu()
        to_real = energy_distance(one, real["x"], unbiased=True)
        same = energy_distance(one, other, unbiased=True)
        apart = energy_distance(flow, one, unbiased=True)
        seen = [features(judge, x).double().cpu() for x in (flow, drawn, real["x"])]
        rows += [
            at_least(
                f"{name}: the judge's confidence in SDE samples, of that in real digits",
                _confidence(judge, drawn) / sure,
                settings.sharpness,
                note=f"entropy score {entropy_score(judge, drawn):.2f}; energy distance to real {to_real:.3f}",
            ),
            at_most(
                f"{name}: energy distance of ODE samples to SDE samples",
                apart,
                settings.marginal_bound,
                published="the same marginals",
                note=f"two sets of the SDE {same:.3f} apart; Frechet distance of features "
                f"{frechet_distance(seen[0], seen[1]):.2f}, SDE to real {frechet_distance(seen[1], seen[2]):.2f}",
            ),
        ]
        sheet[f"{name}, {'PC' if name == 'VE' else 'Euler-Maruyama'}, {steps * sde.evaluations} evaluations"] = one[:14]  # type: ignore[attr-defined]
        if name == "VP":
            sheet["VP, probability-flow ODE"] = flow[:14]
        digits = test["x"][:32].double().to(model.device)
        latent = invert(model, digits, solver=adaptive)
        back = sample(model, latent, solver=adaptive, times=(1.0, process.t_min))
        rows.append(
            at_most(
                f"{name}: test digits encoded and decoded by the ODE at rtol 1e-5, largest error",
                (back - digits).abs().max().item(),
                1e-3,
            )
        )
    return rows, sheet


def _class_conditional(
    model: Denoiser, judge: Classifier, train: Dequantised, seed: int, settings: Settings
) -> tuple[list[Row], dict[str, Tensor]]:
    classifier = train_noisy_classifier(
        model.process,
        train,
        steps=settings.classifier_steps,
        seed=random.fold(seed, _CLASSES),
        data_std=_STD,
        device=model.device,
    )
    n = settings.samples // 10 * 10
    label = torch.arange(n) % 10
    times = torch.linspace(1.0, model.process.t_min, settings.sde_steps + 1, dtype=F64)

    def draw(scale: float) -> Tensor:
        guided = ClassifierGuidance(model, classifier, scale)
        cond = {"label": label.to(model.device)}
        return sample(guided, n, solver=EulerMaruyama(), times=times, cond=cond, seed=random.fold(seed, 1)).cpu()

    strong, plain = draw(settings.guidance), draw(1.0)
    found = accuracy(judge, strong, label)
    row = at_least(
        f"class-conditional VP, classifier guidance of scale {settings.guidance:g}: share of the right class",
        found,
        settings.guided,
        baseline=0.1,
        note=f"baseline: without guidance; at scale 1 {accuracy(judge, plain, label):.2f}; entropy score at scale "
        f"{settings.guidance:g} {entropy_score(judge, strong):.2f}",
    )
    return [row], {f"VP guided to the classes 0 .. 9, scale {settings.guidance:g}": strong[:10]}


def _task_solver() -> Solver:
    return PredictorCorrector(corrector=Langevin(snr=0.16, norm="sample"))


def _inpainting(
    model: Denoiser, train: Dequantised, seed: int, settings: Settings
) -> tuple[list[Row], dict[str, Tensor]]:
    truth = Dequantised("test", random.fold(seed, _TEST)).batch(torch.arange(settings.tasks))["x"].double()
    mask = (torch.arange(8) < 4)[:, None].expand(1, 8, 8)
    known = Known(torch.where(mask, truth, 0.0), mask)
    x = impute(
        model,
        known,
        settings.draws,
        solver=_task_solver(),
        steps=settings.task_steps,
        seed=random.fold(seed, _HALVES),
    ).cpu()
    mean = x.mean(0)
    fill = train.batch(torch.arange(min(len(train), 20_000)))["x"].mean(0).double()

    def error(guess: Tensor) -> float:
        return (guess - truth).expand_as(truth + guess)[..., 4:, :].square().mean().item()

    rows = [
        at_most("inpainting: largest change of a known pixel", (x - truth)[..., :4, :].abs().max().item(), 1e-12),
        less_than(
            f"inpainting half of a digit: MSE of the mean of {settings.draws} draws; of the training mean",
            error(mean),
            error(fill),
            0.8,
            note=f"of a single draw {error(x):.3f}; {settings.tasks} test digits",
        ),
    ]
    hidden = torch.where(mask, truth, -0.3)
    lines = {"truth": truth, "known": hidden, "a draw": x[0], "another draw": x[1], "a third": x[2]}
    lines[f"mean of {settings.draws} draws"] = mean
    return rows, {name: images[:14] for name, images in lines.items()}


def _colorization(model: Denoiser, seed: int, settings: Settings) -> tuple[list[Row], dict[str, Tensor]]:
    test = Digits("test").batch(torch.arange(settings.tasks))
    label = test["label"]
    truth = colour(test["x"], hues(label, random.fold(seed, _HUES, 1))).double()
    basis = grey_basis()
    mask = (torch.arange(3) == 0)[:, None, None].expand(3, 8, 8)
    rotated = Known(truth, mask, basis).rotate(truth)
    known = Known(torch.where(mask, rotated, 0.0), mask, basis)
    x = impute(
        model,
        known,
        settings.draws,
        solver=_task_solver(),
        steps=settings.task_steps,
        seed=random.fold(seed, _HUES, 2),
    ).cpu()
    grey = known.back(known.y)
    mean = x.mean(0)
    drift = (x.mean(2) - truth.mean(1)).abs().max().item()
    right = ((hue_of(x.flatten(0, 1)) * 10).floor().long() == label.repeat(settings.draws)).double().mean().item()
    rows = [
        at_most("colorization: the rotation, |M M^T - I|", (basis @ basis.T - torch.eye(3)).abs().max().item(), 1e-12),
        at_most("colorization: largest change of the grey of a pixel", drift, 1e-6),
        less_than(
            f"colorization: MSE of the mean of {settings.draws} draws; of the grey picture",
            (mean - truth).square().mean().item(),
            (grey - truth).square().mean().item(),
            0.9,
            note=f"{settings.tasks} test digits; the hue goes with the class, which the network is not told",
        ),
        greater_than("colorization: share of draws in their class's tenth of hues; chance", right, 0.1)
        if settings.hue <= 0.1
        else at_least("colorization: share of draws in their class's tenth of hues", right, settings.hue, baseline=0.1),
    ]
    lines = {"truth": truth, "known: grey": grey, "a draw": x[0], "another draw": x[1], "a third": x[2]}
    lines[f"mean of {settings.draws} draws"] = mean
    return rows, {name: images[:14] for name, images in lines.items()}
