"""Masked diffusion without time: a loss, an exact sampler, and a fault of float32.

"Masked Diffusion Models are Secretly Time-Agnostic Masked Models and Exploit Inaccurate Categorical Sampling" (ICLR 2025,
arXiv 2409.02908). Laws are compared with a joint in a table, whose conditionals are exact, so that what is off is the
sampler's.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import tweed as tw
from tweed.core import random
from tweed.core.processes import MaskedProcess
from tweed.core.token_denoiser import TokenDenoiser
from tweed.data import TabularJoint
from tweed.recipes import Report, at_most, greater_than, info, less_than, within
from tweed.recipes._figures import curves
from tweed.recipes.report import Progress, Row
from tweed.solvers.base import Problem
from tweed.tokens import Ancestral, FirstHitting, TokenSolver, exact_bound
from tweed.tokens.truncation import (
    LARGEST_FLOAT32,
    LARGEST_FLOAT64,
    entropy,
    masked_step,
    masked_step_on_grid,
    truncated_gumbel_probs,
)

F64 = torch.float64
STEPS = (64, 256, 1024, 4096)
_TIMED_STEPS = 16
# By the published formula for Zipf's law of 50,257 tokens: entropy, masks lifted of those told, and the probability of ranks
# above 1,000, of the true one.
PUBLISHED = {64: (7.18, 0.93, 0.85), 256: (6.54, 0.82, 0.61), 1024: (5.72, 0.70, 0.29), 4096: (4.89, 0.58, 0.05)}
_RARE = 1000
_GRID_BITS, _GRID_SIZE, _GRID_JUMP = 12, 100, 0.03  # a coarse float, so that rare draws can be counted


@dataclass(frozen=True)
class Settings:
    """Draws of the joint, and the size of the timed sampler: tokens, vocabulary, steps of the grid."""

    draws: int
    length: int
    vocabulary: int
    steps: int


SCALES = {
    "smoke": Settings(20000, 32, 2000, 64),
    "default": Settings(200000, 256, 20000, 1024),
    "gpu": Settings(1000000, 1024, 50257, 4096),
}


def run(seed: int, scale: str, progress: Progress) -> Report:
    """Laws, the identity of the losses, the fault, and the time."""
    settings = SCALES[scale]
    progress("laws", 0.0)
    joint = TabularJoint.random(3, 4, seed=random.fold(seed, 1))
    rows, laws = _laws(joint, settings, random.fold(seed, 2), progress)
    progress("the loss without time", 0.5)
    rows += _losses(random.fold(seed, 3))
    progress("what float32 draws", 0.55)
    rows += _truncation(random.fold(seed, 4), settings.draws)
    progress("times", 0.6)
    rows += _times(settings, random.fold(seed, 5), scale)
    return Report(
        slug="first-hitting",
        rows=rows,
        seed=seed,
        scale=scale,
        settings={**vars(settings)},
        figures={"laws": lambda: _figure_of_laws(laws), "float32": _figure_of_float32},
        notes=(
            "The joint: 3 tokens, 4 positions, a softmax of 2.5 N(0, 1). Total variation of so many draws from the joint itself: "
            f"{_floor(joint, settings.draws):.4f} on average.",
            "Uniform numbers of 24 bits are too fine to be counted, so draws on a grid are of 12. The published formula cuts "
            "noise off, as if it were continuous below; real floats lie on a grid, and lose less: 1,024 steps leave "
            f"{_of_float32(1024, grid=True)[0]:.2f} nats, not {_of_float32(1024)[0]:.2f}.",
            "Ancestral steps ask the network only where a token has changed, as published; joint draws are of all tokens and the "
            "mask at every position and step, as published code does. Drawing first whether a mask is lifted has the same law.",
            "Extrapolated probabilities (second order) gain little, and may lose: published without details.",
            "Generative perplexities of GPT-2 and wall times on a GPU need models and text that are not here.",
        ),
    )


def _floor(joint: TabularJoint, draws: int) -> float:
    """The mean total variation of an exact sampler: half the sum of mean absolute deviations of the shares."""
    p = joint.table.flatten()
    return float((2.0 * p * (1.0 - p) / (math.pi * draws)).sqrt().sum() / 2)


def _laws(
    joint: TabularJoint, settings: Settings, seed: int, progress: Progress
) -> tuple[list[Row], dict[str, dict[str, tuple[list[float], list[float]]]]]:
    denoiser = joint.denoiser()

    def off(solver: TokenSolver, place: int, **options: Any) -> float:
        # Ancestral sampling asks about all rows at nearly every step: a tenth of the draws says enough of it.
        draws = settings.draws // 10 if isinstance(solver, Ancestral) else settings.draws
        x = tw.sample(denoiser, draws, solver=solver, seed=random.fold(seed, place), **options)
        return (joint.histogram(x) - joint.table).abs().sum().item() / 2

    found = {k: off(FirstHitting(k), k) for k in (1, 2, 4)}
    second = off(FirstHitting(2, order=2), 5)
    progress("ancestral sampling", 0.2)
    grids = (2, 8, 32, 128, 512)
    ancestral = {steps: off(Ancestral(), 10 + i, steps=steps) for i, steps in enumerate(grids)}
    one = 0.01 if settings.draws > 1e5 else 2.0 * _floor(joint, settings.draws)
    rows = [
        at_most("total variation from the joint: one token a call", found[1], one),
        greater_than(
            "... two tokens a call, over one", found[2], max(found[1], 0.002), 10.0 if settings.draws > 1e5 else 3.0
        ),
        greater_than("... four, over two", found[4], found[2]),
        less_than("ancestral sampling: 512 steps, below 8", ancestral[512], ancestral[8]),
        less_than("... 4 calls of first-hitting, below 8 steps", found[1], ancestral[8]),
        info("two tokens a call, extrapolated", second, baseline=found[2]),
    ]
    laws = {
        "first-hitting, calls": ([4.0, 2.0, 1.0], [found[1], found[2], found[4]]),
        "ancestral, steps": ([float(n) for n in grids], list(ancestral.values())),
    }
    return rows, {"total variation from the joint": laws}


def _losses(seed: int) -> list[Row]:
    """The sum over n with 1/n, against the integral over time of the timed loss, for a wrong law of each token."""
    length, size = 5, 3
    powers = (size + 1) ** torch.arange(length)
    table = random.normal(((size + 1) ** length, length * size), seed, dtype=F64)

    def network(x: Tensor) -> Tensor:
        return table[(x * powers).sum(1)].reshape(*x.shape, size)

    x0 = (size * random.uniform((1, length), random.fold(seed, 1), dtype=F64)).long()
    free = exact_bound(TokenDenoiser(network, MaskedProcess(size)), x0).mean
    rows = []
    for schedule in ("linear", "cosine", "geometric"):
        timed = _integral(network, MaskedProcess(size, schedule), x0)
        rows.append(
            at_most(f"loss without time, off the integral over time: {schedule}", abs(timed - free) / free, 1e-6)
        )
    return rows


def _integral(network: Callable[[Tensor], Tensor], process: MaskedProcess, x0: Tensor) -> float:
    """`int -alpha' / (1 - alpha) E[sum over masked] dt / L`, every set of masks at every node of a Gauss rule in alpha."""
    import numpy

    length = x0.shape[1]
    nodes, weights = (torch.from_numpy(part) for part in numpy.polynomial.legendre.leggauss(40))
    t = 0.5 * (nodes + 1.0)
    # In time: the schedule takes part, singular at neither end for a smooth one; geometric ones need more nodes.
    panels = torch.linspace(0.0, 1.0, 65, dtype=F64)
    t = (panels[:-1, None] + t * panels.diff()[:, None]).flatten()
    weights = (0.5 * weights * panels.diff()[:, None]).flatten()
    sigma, rate = process.sigma(t), -process.alpha_dot(t)
    total = torch.zeros_like(t)
    for number in range(1, 2**length):
        masked = torch.tensor([bool(number >> i & 1) for i in range(length)])
        n = int(masked.sum())
        law = network(x0.masked_fill(masked, process.mask))[0].log_softmax(-1)
        loss = -law.gather(-1, x0[0, :, None])[masked, 0].sum()
        total += sigma ** (n - 1) * (1.0 - sigma) ** (length - n) * loss
    return float((weights * rate * total).sum() / length)


def _truncation(seed: int, draws: int) -> list[Row]:
    p, largest = torch.tensor([0.02, 0.08, 0.2, 0.3, 0.4], dtype=F64), 1.5
    formula = truncated_gumbel_probs(p, largest)
    u = random.uniform((10 * draws, 5), seed, dtype=F64) * math.exp(-math.exp(-largest))
    shares = torch.bincount((p.log() - (-u.log()).log()).argmax(1), minlength=5).double() / len(u)
    published = torch.tensor([8.7e-7, 0.01295, 0.15613, 0.32539, 0.50553], dtype=F64)
    rows = [
        at_most("law of truncated Gumbel draws: formula off the card's", (formula - published).abs().max(), 1e-5),
        at_most("... off draws", (formula - shares).abs().max(), 0.001 if draws > 1e5 else 0.004),
    ]
    true = entropy(_zipf())
    for steps in STEPS:
        found = _of_float32(steps)
        for name, here, published, whole, tolerance in zip(
            ("entropy of a token, nats", "masks lifted, of those told", "ranks above 1,000, of the true probability"),
            found, PUBLISHED[steps], (true, 1.0, 1.0), (0.02, 0.01, 0.01), strict=True,
        ):  # fmt: skip
            rows.append(within(f"cut-off noise, {steps} steps: {name}", here, published, tolerance, baseline=whole))
    narrow, grid = _of_float32(1024)[0], _of_float32(1024, grid=True)[0]
    wide = entropy(masked_step(_zipf(), 2.0 / 1024, LARGEST_FLOAT64)[1])
    rows.append(less_than("... 1024 steps, entropy of the true one", narrow, true, 0.8))
    rows.append(less_than("... of that on float32's grid", narrow, grid))
    rows.append(at_most("cut-off noise of float64, 1024 steps: off the true entropy", abs(wide - true), 1e-3))
    return rows + _on_a_grid(random.fold(seed, 1), draws)


def _on_a_grid(seed: int, draws: int) -> list[Row]:
    """Draws with coarse uniform numbers, against the formula for a grid and the published one for noise that is cut off."""
    tokens = _zipf(_GRID_SIZE)
    law = torch.cat((_GRID_JUMP * tokens, torch.tensor([1.0 - _GRID_JUMP], dtype=F64)))
    counts = torch.zeros(_GRID_SIZE + 1, dtype=F64)
    rounds = 20 if draws > 1e5 else 8
    for i in range(rounds):
        u = random.uniform((20000, _GRID_SIZE + 1), seed, draw=i, dtype=F64)
        # The tokens' numbers alone: that the mask's own are at times 0 is nothing in a float, but not on a coarse grid.
        u[:, :-1] = (u[:, :-1] * 2.0**_GRID_BITS).floor() * 2.0**-_GRID_BITS
        counts += torch.bincount((law.log() - (-u.log()).log()).argmax(1), minlength=_GRID_SIZE + 1)
    lifted = (counts[:-1].sum() / counts.sum() / _GRID_JUMP).item()
    rare = counts[:-1][10:].sum() / counts[:-1].sum()
    told, on_grid = masked_step_on_grid(tokens, _GRID_JUMP, _GRID_BITS)
    cut, cut_off = masked_step(tokens, _GRID_JUMP, _GRID_BITS * math.log(2.0))
    name = f"draws on a grid of 2^-{_GRID_BITS}"
    return [
        within(f"{name}: masks lifted, of those told", lifted, told / _GRID_JUMP, 0.05, baseline=cut / _GRID_JUMP),
        within("... ranks above 10", rare, float(on_grid[10:].sum()), 0.03, baseline=cut_off[10:].sum(),
               note="the baselines are those of cut-off noise"),
    ]  # fmt: skip


def _of_float32(steps: int, grid: bool = False) -> tuple[float, float, float]:
    """Of a step of masked sampling: the entropy of a token, masks lifted of those told, and rare tokens' share of their due."""
    zipf, jump = _zipf(), 2.0 / steps
    lifted, law = masked_step_on_grid(zipf, jump, 24) if grid else masked_step(zipf, jump, LARGEST_FLOAT32)
    return entropy(law), lifted / jump, float(law[_RARE:].sum() / zipf[_RARE:].sum())


def _zipf(size: int = 50257) -> Tensor:
    zipf = 1.0 / torch.arange(1, size + 1, dtype=F64)
    return zipf / zipf.sum()


def _times(settings: Settings, seed: int, scale: str) -> list[Row]:
    size = settings.vocabulary
    logits = random.normal((1, settings.length, size), seed)
    denoiser = TokenDenoiser(lambda x: logits, MaskedProcess(size), event=(settings.length,))
    start = torch.full((1, settings.length), size)

    def seconds(solver: TokenSolver, steps: int) -> tuple[float, int]:
        run = Problem(denoiser, tuple(1.0 - i / settings.steps for i in range(steps + 1)), seed=seed)
        begun = time.thread_time()
        calls = solver.decode(run, start).calls
        return time.thread_time() - begun, calls

    ours, calls = seconds(FirstHitting(), 1)
    some = min(_TIMED_STEPS, settings.steps)
    joint = seconds(Ancestral("joint"), some)[0] * settings.steps / some
    jumps, asked = seconds(Ancestral(), settings.steps)
    factor = 0.2 if scale != "smoke" else 1.0
    told = f"{settings.length} tokens, vocabulary {size}, {settings.steps} steps"
    note = (
        f"seconds of the processor; joint draws cost the same at each step: {some} were timed; calls {calls}, {asked}"
    )
    quantity = f"time of first-hitting, of ancestral with joint draws ({told})"
    return [
        less_than(quantity, ours, joint, factor, published="20 x faster", note=note),
        info("... of ancestral that draws tokens for lifted masks alone", ours / jumps),
        at_most("calls a token", calls / settings.length, 1.0),
    ]


def _figure_of_laws(laws: Any) -> Any:
    return curves(laws, xlabel="calls of the network, or steps", ylabel="total variation", log="xy")


def _figure_of_float32() -> Any:
    steps = [2**k for k in range(4, 14)]
    grid = [float(n) for n in steps]
    kinds = {"cut off at 24 log 2": False, "on float32's grid": True}
    found = {name: [_of_float32(n, kind) for n in steps] for name, kind in kinds.items()}
    titles = ("entropy of a token, nats", "masks lifted, of those told", "ranks above 1,000, of the true probability")
    return curves(
        {
            title: {
                **{name: (grid, [row[i] for row in rows]) for name, rows in found.items()},
                "true": (grid, [(entropy(_zipf()), 1.0, 1.0)[i]] * len(grid)),
            }
            for i, title in enumerate(titles)
        },
        xlabel="steps of masked sampling",
        ylabel="",
        log="x",
    )
