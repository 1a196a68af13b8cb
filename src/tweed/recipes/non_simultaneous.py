"""Text as embeddings that are denoised each at its own pace: levels, a predictor of them, a grid that is searched for.

"Unifying Continuous and Discrete Text Diffusion with Non-simultaneous Diffusion Processes" (NeoDiff, ACL 2025, arXiv
2505.22165), on a translation that is known.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import tweed as tw
from tweed.core import random
from tweed.data.translation import Translation
from tweed.recipes import Report, at_least, at_most, check, info
from tweed.recipes._figures import curves
from tweed.recipes.report import Progress, Row, span
from tweed.tokens.non_simultaneous import (
    NonSimultaneous,
    NonSimultaneousLoss,
    SqrtProcess,
    embedding_denoiser,
    words,
)
from tweed.tokens.poisson_levels import PoissonTokenSchedule, optimize_time_grid

F64 = torch.float64
POISSON, SIMULTANEOUS = PoissonTokenSchedule(), PoissonTokenSchedule(spread="none")
STEPS = 4


@dataclass(frozen=True)
class Settings:
    """Steps of training, sentences that are held out, and evaluations of the search for a grid."""

    training: int
    held: int
    budget: int
    width: int = 96


SCALES = {
    "smoke": Settings(40, 100, 4),
    "default": Settings(500, 500, 30),
    "gpu": Settings(20000, 5000, 240, 256),
}


def run(seed: int, scale: str, progress: Progress) -> Report:
    """What is exact, then two networks and three ways to decode."""
    settings = SCALES[scale]
    progress("levels", 0.0)
    rows = _exact(random.fold(seed, 1))
    found, more = _trained(settings, random.fold(seed, 2), span(progress, 0.05, 1.0))
    rows += more
    return Report(
        slug="non-simultaneous",
        rows=rows,
        seed=seed,
        scale=scale,
        settings={**vars(settings), "steps": STEPS},
        figures={
            "levels": lambda: _figure_of_levels(random.fold(seed, 3)),
            "accuracy": lambda: curves(
                {"translation": found}, xlabel="steps", ylabel="share of right words", log="x",
            ),
        },
        notes=(
            "Translation: 12 words of 40 by a table, pairs swapped by their parity, two words that depend on their partner.",
            "The source decides every word of the target, so that words need not wait for one another, and more steps do not "
            "help: the published gain of levels of their own is not to be seen here.",
            "IWSLT14, MBR reranking and BLEU need their data and a length predictor; lengths are fixed here.",
        ),
    )  # fmt: skip


def _exact(seed: int) -> list[Row]:
    t = torch.full((1,), 0.3, dtype=F64)
    u = random.uniform((1, 100000), seed, dtype=F64)
    counts = POISSON.counts(t, u)[0]
    rate = POISSON.rate(t).item()
    flat = SIMULTANEOUS.sample(t, u[:, :50])[0]
    loss = random.uniform((1, 12), random.fold(seed, 1), dtype=F64)
    raw = PoissonTokenSchedule(spread="poisson")
    labels = raw.labels(loss, torch.ones(1, 12, dtype=torch.bool), t)[0]
    order = loss[0].argsort()
    process = SqrtProcess()
    kept = process.alpha(0.0).item() ** 2
    x0, noise = (random.normal((1, 100000), random.fold(seed, 2 + i), dtype=F64) for i in range(2))
    x = SqrtProcess(6.5).perturb(2.0 * x0, 0.4, noise)
    truth = 4.0 * process.alpha(0.4).item() ** 2 + 6.5**2 * process.sigma(0.4).item() ** 2
    top = POISSON.sample(torch.tensor([1.0, 0.995], dtype=F64), u[:, :8].expand(2, -1))
    return [
        at_most("Poisson counts: mean off the rate, of it", abs(counts.mean().item() - rate) / rate, 0.01),
        at_most("... variance", abs(counts.var().item() - rate) / rate, 0.02),
        check("no spread: every token has the rate", bool((flat == round(rate)).all()), "equal"),
        check("labels rise with the loss", bool((labels[order].diff() >= 0).all()), "monotone"),
        check("from t = 0.99 on all tokens are at the top", bool((top == POISSON.top).all()), "99"),
        at_most("kept at level 0: off 1 - sqrt(1e-4)", abs(kept - 0.99), 1e-12),
        at_most("variance of a noised state, off its formula, of it", abs(x.var().item() - truth) / truth, 0.02),
    ]


def _trained(
    settings: Settings, seed: int, progress: Progress
) -> tuple[dict[str, tuple[list[float], list[float]]], list[Row]]:
    world = Translation(seed=random.fold(seed, 1))
    source = world.draw(settings.held, random.fold(seed, 2))
    truth = world.translate(source)
    denoisers: dict[str, Any] = {}
    for number, (name, schedule) in enumerate((("simultaneous", SIMULTANEOUS), ("poisson", POISSON))):
        progress(f"training, levels {name}", 0.4 * number)
        config = {
            "name": "embedding-transformer",
            "vocab": world.size,
            "source_vocab": world.words,
            "width": settings.width,
        }
        network: Any = tw.nets.build({**config, "depth": 2, "dim": 32}, random.fold(seed, 3))
        denoisers[name] = tw.fit(
            embedding_denoiser(network, world.length), world.data(30000, random.fold(seed, 4)), steps=settings.training,
            batch_size=64, lr=3e-3, warmup=50, schedule="cosine", objective=NonSimultaneousLoss(schedule), ema=None,
            progress=False, device="cpu", seed=random.fold(seed, 5),
        ).denoiser  # fmt: skip
    ways = {
        "simultaneous": (denoisers["simultaneous"], NonSimultaneous(SIMULTANEOUS, "simultaneous")),
        "Poisson levels": (denoisers["poisson"], NonSimultaneous(POISSON, "poisson")),
        "predicted levels": (denoisers["poisson"], NonSimultaneous(POISSON, "predicted")),
    }
    progress("decoding", 0.8)

    @torch.no_grad()
    def accuracy(name: str, **options: Any) -> float:
        denoiser, solver = ways[name]
        x = tw.sample(
            denoiser, len(source), solver=solver, cond={"source": source}, seed=random.fold(seed, 6), **options
        )
        return (words(denoiser, x) == truth).double().mean().item()

    grid = (1, 2, 4, 10)
    found = {name: ([float(s) for s in grid], [accuracy(name, steps=s) for s in grid]) for name in ways}
    at_four = {name: each[1][grid.index(STEPS)] for name, each in found.items()}
    progress("searching for a grid", 0.85)
    uniform = at_four["predicted levels"]
    times, best = optimize_time_grid(
        lambda points: accuracy("predicted levels", times=points), STEPS, budget=settings.budget,
        random_first=max(settings.budget // 2, 1), seed=random.fold(seed, 7),
    )  # fmt: skip
    rank = _spearman(denoisers["poisson"], world, random.fold(seed, 8))
    rows = [
        at_least("searched grid: share of right words, less the uniform grid's", best - uniform, 0.0,
                 note=", ".join(f"{t:.2f}" for t in times)),
        *[info(f"{name}, {STEPS} steps: share of right words", value) for name, value in at_four.items()],
    ]  # fmt: skip
    if settings.training >= 500:
        rows += [
            at_least("predicted levels against the loss of words: rank correlation", rank, 0.3),
            info(
                "predicted levels: share of right words, less simultaneous ones'",
                uniform - at_four["simultaneous"],
                published="better",
            ),
        ]  # fmt: skip
    else:
        rows.append(info("predicted levels against the loss of words: rank correlation", rank))
    return found, rows


@torch.no_grad()
def _spearman(denoiser: Any, world: Translation, seed: int) -> float:
    """Between the levels that the predictor gives and the losses that words have, mean over sentences, at t = 0.3."""
    source = world.draw(400, seed)
    target, network = world.translate(source), denoiser.network
    x0 = network.embed(target)
    t = torch.full((400,), 0.3)
    level = POISSON.sample(t.double(), random.uniform(target.shape, random.fold(seed, 1), dtype=F64))
    tau = (level / POISSON.top).float()
    x = denoiser.process.perturb(x0, tau, random.normal(x0.shape, random.fold(seed, 2)))
    answer = denoiser(x, tau, source=source).x0
    loss = (answer - x0).square().mean(-1)
    loss = loss + torch.nn.functional.cross_entropy(network.logits(answer).transpose(1, 2), target, reduction="none")
    guess = network.next_levels(answer, t, source)
    a, b = (_ranks(each) for each in (loss, guess))
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).mean().item()


def _ranks(x: Tensor) -> Tensor:
    ranks = x.argsort(1).argsort(1).double()
    return ranks - ranks.mean(1, keepdim=True)


def _figure_of_levels(seed: int) -> Any:
    times = torch.linspace(0.01, 1.0, 60, dtype=F64)
    u = random.uniform((6, 1), seed, dtype=F64)
    panels = {}
    for title, schedule in (("published spread", POISSON), ("Poisson", PoissonTokenSchedule(spread="poisson"))):
        level = torch.stack([schedule.sample(times[i : i + 1].expand(6), u)[:, 0] for i in range(60)], 1)
        panels[title] = {f"token {i + 1}": (times.tolist(), level[i].tolist()) for i in range(6)}
    return curves(panels, xlabel="time of the sentence", ylabel="level of a token", log="")
