"""Running-confidence remasking, and policy gradients along the decoding: masked diffusion trained as it is used.

"MDPO: Overcoming the Training-Inference Divide of Masked Diffusion Language Models" (2025, arXiv 2508.13148). Remasking is
measured with exact posteriors of a Markov chain, so that what is off is the decoding's; training on running sums with
corrupted answers, whose last digit is verified.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import tweed as tw
from tweed.core import random
from tweed.core.processes import MaskedProcess
from tweed.core.token_denoiser import TokenDenoiser
from tweed.data import MarkovChain
from tweed.data.puzzles import RunningSums
from tweed.recipes import Report, at_most, check, greater_than, info, less_than
from tweed.recipes._figures import curves
from tweed.recipes.report import Progress, Row, span
from tweed.tokens import Blockwise, LowConfidence, RunningConfidence
from tweed.tokens.policy_gradient import (
    MDPO,
    RandomMaskGRPO,
    mdpo_advantages,
    over_denoised,
    rollout,
    train_policy,
)

LENGTH, PUZZLE = 24, RunningSums(2)
STEPS = (2, 4, 6, 8)
PUBLISHED = {2: (0.594, 0.593), 4: (0.229, 0.074), 6: (0.130, 0.047), 8: (0.085, 0.031)}  # the card's, measured
DECODING = 3  # steps of the puzzle's answers


@dataclass(frozen=True)
class Settings:
    """Sequences for remasking; steps of training, updates of the policy, and prompts of an update."""

    sequences: int
    training: int
    updates: int
    prompts: int


SCALES = {
    "smoke": Settings(500, 60, 3, 4),
    "default": Settings(4000, 1000, 150, 16),
    "gpu": Settings(40000, 6000, 1000, 64),
}


def run(seed: int, scale: str, progress: Progress) -> Report:
    """Remasking on the chain, then the two ways to train."""
    settings = SCALES[scale]
    progress("remasking with exact posteriors", 0.0)
    violations = _violations(settings, random.fold(seed, 1))
    rows = _remasking_rows(violations, scale) + _exact(random.fold(seed, 2))
    accuracy, rewards = _policies(settings, random.fold(seed, 3), span(progress, 0.1, 1.0))
    rows += _policy_rows(accuracy, scale)
    return Report(
        slug="masked-policy",
        rows=rows,
        seed=seed,
        scale=scale,
        settings={**vars(settings), "decoding": DECODING},
        figures={
            "remasking": lambda: curves(
                {"a chain of 24 tokens": {
                    name: ([float(s) for s in STEPS], each) for name, each in violations.items()
                }},
                xlabel="steps", ylabel="share of pairs that the chain does not allow", log="y",
            ),
            "training": lambda: curves(
                {"running sums": {name: _smoothed(each) for name, each in rewards.items()}},
                xlabel="update", ylabel="mean reward of rollouts", log="",
            ),
        },
        notes=(
            "Chain: from i to i + 1 or i + 2 modulo 6 with probability .485 each; temperature 1, confidence of the drawn token.",
            "Sums: two digits, their running sums and the last one again; in 30 % of the training answers each sum is replaced "
            "with probability 1/2. The reward is 1 where the last digit is right. Answers of 4 tokens, decoded in 3 steps. Six "
            "digits, as planned, are not learned by a model of this size in minutes.",
            "A model with 2 layers and 64 features that knows the sums, and draws its mistakes from the corrupted answers: gains "
            "are small, and which of the two trainings ends higher is not decided here.",
            "LLaDA-8B, MATH500 and Countdown are not measured (published: +9.6 and +54.2 % over the state of the art at equal "
            "updates, and 60 x fewer updates).",
        ),
    )  # fmt: skip


def _violations(settings: Settings, seed: int) -> dict[str, list[float]]:
    chain = MarkovChain.stepping()
    denoiser = chain.denoiser(LENGTH)
    found: dict[str, list[float]] = {}
    for name, remask in (("low confidence", LowConfidence()), ("running confidence", RunningConfidence())):
        for steps in STEPS:
            solver = Blockwise(temperature=1.0, remask=remask)
            x = tw.sample(denoiser, settings.sequences, solver=solver, steps=steps, seed=random.fold(seed, steps))
            step = (x[:, 1:] - x[:, :-1]) % 6
            found.setdefault(name, []).append(((step != 1) & (step != 2)).double().mean().item())
    return found


def _remasking_rows(found: Mapping[str, list[float]], scale: str) -> list[Row]:
    rows: list[Row] = []
    low, running = found["low confidence"], found["running confidence"]
    for steps, a, b in zip(STEPS, low, running, strict=True):
        told = "{:.3f} against {:.3f}".format(*PUBLISHED[steps][::-1])
        if steps == 2:
            rows.append(at_most("pairs not allowed, 2 steps: difference of the two", abs(a - b), 0.02))
        else:
            factor = 0.6 if scale != "smoke" else 0.8
            rows.append(
                less_than(f"pairs not allowed, {steps} steps: running confidence", b, a, factor, published=told)
            )
    return rows


@torch.no_grad()
def _exact(seed: int) -> list[Row]:
    denoiser = MarkovChain.stepping().denoiser(LENGTH)
    start = torch.full((8, LENGTH), 6)
    solver = Blockwise(temperature=0.4, remask=RunningConfidence())
    made = rollout(denoiser, start, solver, 6, seed=seed)
    left = (made.states == 6).sum(2)
    expected = torch.tensor([LENGTH * (6 - s) // 6 for s in range(6)])[:, None].expand(-1, 8)
    one = [
        tw.sample(denoiser, start, solver=Blockwise(remask=r), steps=1) for r in (LowConfidence(), RunningConfidence())
    ]
    rewards = random.uniform((6, 4, 8), seed).round()
    advantages = mdpo_advantages(rewards)
    late = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    return [
        check("masks left after each step", torch.equal(left, expected), "as the schedule says"),
        check("one step: both remaskings", torch.equal(*one), "equal"),
        at_most("advantages: mean over a group", advantages.mean(-1).abs().max(), 1e-6),
        check("right on the way and wrong at the end", over_denoised(late).tolist() == [True, False], "found"),
    ]


def _policies(
    settings: Settings, seed: int, progress: Progress
) -> tuple[dict[str, dict[str, float]], dict[str, list[float]]]:
    """Accuracies of the base model and of both trainings, with either remasking; rewards by update."""
    progress("training the base model", 0.0)
    config = {"name": "text-transformer", "vocab": PUZZLE.size, "width": 64, "depth": 2, "heads": 4, "tied": False}
    base = TokenDenoiser(tw.nets.build({**config, "qkv_bias": True}, random.fold(seed, 1)), MaskedProcess(PUZZLE.mask))
    trained: Any = tw.fit(
        base, PUZZLE.data(20000, random.fold(seed, 2), corrupted=0.3), steps=settings.training, batch_size=128, lr=3e-3,
        schedule="cosine", warmup=50, ema=None, progress=False, device="cpu", seed=random.fold(seed, 3),
    ).denoiser  # fmt: skip
    held = PUZZLE.draw(2000, random.fold(seed, 4))
    accuracy = {"base": _accuracy(trained, held)}
    rewards: dict[str, list[float]] = {}

    def prompts(update: int) -> Tensor:
        return PUZZLE.asked(PUZZLE.draw(settings.prompts, random.fold(seed, 5, update)))

    ways = {
        "MDPO": MDPO(8, DECODING, 2, temperature=1.0),
        "random-mask GRPO": RandomMaskGRPO(8, DECODING, 2, temperature=1.0),
    }
    for number, (name, method) in enumerate(ways.items()):
        policy = copy.deepcopy(trained)
        part = span(progress, 0.4 + 0.3 * number, 0.7 + 0.3 * number)
        rewards[name] = train_policy(
            policy, method, prompts, PUZZLE.right, updates=settings.updates, lr=2e-4, reference=trained,
            seed=random.fold(seed, 6), tell=lambda text, share, part=part, name=name: part(f"{name}: {text}", share),
        )  # fmt: skip
        accuracy[name] = _accuracy(policy, held)
    return accuracy, rewards


@torch.no_grad()
def _accuracy(denoiser: TokenDenoiser, held: Tensor) -> dict[str, float]:
    """Share of right answers, drawn at the temperature of the rollouts and most probable ones; with running confidence too."""
    found = {}
    for name, solver in {
        "drawn": Blockwise(temperature=1.0),
        "most probable": Blockwise(),
        "drawn, running confidence": Blockwise(temperature=1.0, remask=RunningConfidence()),
    }.items():
        x = tw.sample(denoiser, PUZZLE.asked(held), solver=solver, steps=DECODING, seed=1)
        found[name] = PUZZLE.right(x).double().mean().item()
    return found


def _policy_rows(accuracy: Mapping[str, Mapping[str, float]], scale: str) -> list[Row]:
    base, ours, other = accuracy["base"], accuracy["MDPO"], accuracy["random-mask GRPO"]
    rows: list[Row] = []
    if scale != "smoke":
        rows += [
            greater_than("MDPO: share of right answers, drawn", ours["drawn"], base["drawn"], note="baseline: base model"),
            greater_than("... gain, over random-mask GRPO's", ours["drawn"] - base["drawn"], other["drawn"] - base["drawn"],
                         0.5, published="higher at equal updates", note="scatter of a gain: about 0.008"),
        ]  # fmt: skip
    rows += [
        info(f"{name}: right answers, drawn", each["drawn"],
             note=f"most probable {each['most probable']:.3f}, running confidence {each['drawn, running confidence']:.3f}")
        for name, each in accuracy.items()
    ]  # fmt: skip
    return rows


def _smoothed(values: list[float]) -> tuple[list[float], list[float]]:
    width = min(10, max(len(values), 1))
    means = [sum(values[i : i + width]) / width for i in range(0, len(values) - width + 1, width)]
    return [float(width * (i + 1)) for i in range(len(means))], means
