"""The part of the recipe `score-sde` on handwritten digits: small networks under the three SDEs, and their uses."""

import math
from dataclasses import dataclass, replace
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
from tweed.recipes._digits import OFFSET, Dequantised, colour, hue_of, hues, score_model
from tweed.recipes._imputation import Known, grey_basis, impute
from tweed.recipes._noisy_classifier import train_noisy_classifier
from tweed.recipes.report import Progress, Row, at_least, at_most, info, less_than, span
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
        decode, tolerance: test digits encoded and decoded, and the relative tolerance of that.
        learned: whether training is long enough for what must be learned well; else those rows only report.
        marginal_bound, bits_margin, sharpness, guided, filled: bounds of relations, justified by repeated seeds.
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
    filled: float
    decode: int = 16
    tolerance: float = 1e-6
    learned: bool = True
    lr: float = 2e-3
    ema: float = 0.999
    judge_steps: int = 300
    classifier_steps: int = 400
    guidance: float = 2.0


def _if_learned(settings: Settings, row: Row) -> Row:
    """The row, without its relation where the models are hardly trained."""
    return row if settings.learned else replace(row, relation="", holds=None)


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
            # sigma^2 on the score is 1 on the noise. VE's largest noise is 17 times the data, and of such states these
            # weights would tell its network next to nothing.
            objective=DenoisingLoss(weighting=Uniform("own" if isinstance(process, VE) else "Noise")),
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
        row = less_than(
            f"bits/dim of {len(test)} test digits, {name}; a Gaussian with their covariance",
            found[name],
            gaussian,
            published={"VE": None, "VP": "3.13 (CIFAR-10)", "sub-VP": "2.99 (CIFAR-10)"}[name],
            note=f"{result.evaluations} evaluations",
        )
        rows.append(_if_learned(settings, row))
    difference = found["sub-VP"] - found["VP"]
    published = "-0.14 (CIFAR-10)"
    rows.append(
        _if_learned(
            settings, at_most("bits/dim of sub-VP above VP", difference, settings.bits_margin, published=published)
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
    adaptive = AdaptiveRungeKutta(rtol=1e-4, atol=1e-4)
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
            _if_learned(
                settings,
                at_least(
                    f"{name}: the judge's confidence in SDE samples, of that in real digits",
                    _confidence(judge, drawn) / sure,
                    settings.sharpness,
                    note=f"entropy score {entropy_score(judge, drawn):.2f}; energy distance to real {to_real:.3f}",
                ),
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
        digits = test["x"][: settings.decode].double().to(model.device)
        exactly = AdaptiveRungeKutta(rtol=settings.tolerance, atol=settings.tolerance)
        latent = invert(model, digits, solver=exactly)
        back = sample(model, latent, solver=exactly, times=(1.0, process.t_min))
        error = back - digits
        rows.append(
            at_most(
                f"{name}: {len(digits)} test digits encoded and decoded by the ODE at rtol {settings.tolerance:g}, rms",
                error.square().mean().sqrt().item(),
                1e-3 if settings.tolerance <= 1e-6 else 5e-3,
                note=f"largest of a pixel {error.abs().max().item():.1e}",
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
            settings.filled,
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
        _if_learned(
            settings,
            less_than(
                f"colorization: MSE of the mean of {settings.draws} draws; of the grey picture",
                (mean - truth).square().mean().item(),
                (grey - truth).square().mean().item(),
                0.9,
                note=f"{settings.tasks} test digits; the hue goes with the class, which the network is not told",
            ),
        ),
        _if_learned(
            settings,
            at_least(
                "colorization: share of draws in their class's tenth of hues; by chance", right, 0.2, baseline=0.1
            ),
        ),
    ]
    lines = {"truth": truth, "known: grey": grey, "a draw": x[0], "another draw": x[1], "a third": x[2]}
    lines[f"mean of {settings.draws} draws"] = mean
    return rows, {name: images[:14] for name, images in lines.items()}
