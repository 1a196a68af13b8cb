"""FreeCache and guided diffusion: keys and values that are computed once, and a small causal judge.

"Accelerating Diffusion Language Model Inference via Efficient KV Caching and Guided Diffusion" (2025, arXiv 2505.21467).
Guided decoding is measured on a Markov chain whose posteriors are exact, so that what is lost is the method's alone; caches on
a transformer trained on that chain, with Fast-dLLM's caches beside; and whatever is exact is checked to be.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import tweed as tw
from tweed.core import random
from tweed.core.processes import MaskedProcess
from tweed.core.token_denoiser import TokenDenoiser
from tweed.data import MarkovChain, Tokens
from tweed.recipes import Report, at_least, at_most, greater_than, info
from tweed.recipes._figures import curves
from tweed.recipes._free_cache_exact import MASK, VOCAB, exact, masked, network, problem
from tweed.recipes._timing import in_turns, median_ratio
from tweed.recipes.report import Progress, Row, span
from tweed.tokens import Blockwise, Decoded, DualCache, FreeCache, Guided, PrefixCache
from tweed.tokens.caching import Caching, NoCache

PROMPT, LENGTH, BLOCK = 96, 64, 16
CACHES: dict[str, Caching] = {
    "none": NoCache(),
    "FreeCache": FreeCache(),
    "FreeCache, as published": FreeCache(clean=False),
    "prefix cache": PrefixCache(),
    "dual cache": DualCache(),
}


@dataclass(frozen=True)
class Settings:
    """Chains for guided decoding; prompts, steps of training and rounds of timing for the caches."""

    chains: int
    prompts: int
    steps: int
    rounds: int


SCALES = {
    "smoke": Settings(4, 2, 40, 1),
    "default": Settings(16, 16, 800, 5),
    "gpu": Settings(64, 64, 4000, 10),
}


def run(seed: int, scale: str, progress: Progress) -> Report:
    """Exact relations, guided decoding, caches, and the loop's own cost."""
    settings = SCALES[scale]
    progress("exact relations", 0.0)
    rows = exact(random.fold(seed, 1))
    progress("guided decoding on chains", 0.05)
    guided = _guided(settings, random.fold(seed, 2))
    rows += _guided_rows(guided, 0.4 if scale != "smoke" else 0.0)
    cached, seconds, by_block = _cached(settings, random.fold(seed, 3), span(progress, 0.15, 0.9))
    rows += _cached_rows(cached, seconds, scale)
    progress("the loop's own cost", 0.9)
    rows += _overhead(random.fold(seed, 4), 5 if scale != "smoke" else 2)
    return Report(
        slug="free-cache",
        rows=rows,
        seed=seed,
        scale=scale,
        settings={**vars(settings), "prompt": PROMPT, "length": LENGTH, "block": BLOCK},
        figures={
            "guided": lambda: curves(
                {
                    "a chain of 64 tokens, drafts of exact marginals": {
                        name: ([each[0]], [each[1]]) for name, each in guided.items()
                    }
                },
                xlabel="calls of the denoiser",
                ylabel="log likelihood a token, nats",
                log="x",
            ),
            "caches": lambda: curves(
                {
                    "agreement with decoding without a cache": {
                        name: (list(range(1, 1 + LENGTH // BLOCK)), each)
                        for name, each in by_block.items()
                        if name != "none"
                    }
                },
                xlabel="block",
                ylabel="share of equal tokens",
                log="",
            ),
        },
        notes=(
            "Chains: 16 tokens, transition logits 3 N(0, 1), the first token given; the guide knows the transitions. Calls "
            "without a guide fill from left to right, as the guide does.",
            "Surest first finds likelier sequences of a chain than any order from left to right, the guide's among them: both "
            "seek modes, and the order by confidence sees more of them.",
            "With the greedy rule the answer is the guide's, whatever the denoiser drafts: the denoiser saves calls, no more.",
            "FreeCache as published freezes what a block's last step computed, with masks still in it; the token after it "
            "depends on them most. One more evaluation a block mends it.",
            "Caches: a transformer of 4 layers and 64 features, trained on one chain as masked language model; greedy decoding, "
            "one token a step, blocks of 16 after a prompt of 96.",
            "Not measured here: accuracy and speed of models of 8 billion parameters (published: up to 34 x with a guide, 12 x "
            "on average; Fast-dLLM 8 to 11 x).",
        ),
    )


def _guided(settings: Settings, seed: int) -> dict[str, tuple[float, float, float]]:
    """Calls, log likelihood a token and the guide's calls of each way, means over chains."""
    totals: dict[str, Tensor] = {}
    for number in range(settings.chains):
        own = random.fold(seed, number)
        chain = MarkovChain.random(VOCAB, spread=3.0, seed=own)
        start = masked(chain.sample(1, 1, random.fold(own, 1)), LENGTH - 1)
        denoiser = chain.denoiser()
        ways = {
            "one token a call": Blockwise(1),
            "8 calls": Blockwise(8),
            "4 calls": Blockwise(16),
            "surest first, one token a call": Blockwise(),
            "surest first, 8 calls": Blockwise(),
            "guided, greedy": Guided(chain.next_log_probs, "greedy"),
            "guided, top-k 2": Guided(chain.next_log_probs, "top-k", k=2),
        }
        steps = {"one token a call": LENGTH - 1, "8 calls": 8, "4 calls": 4}
        steps |= {"surest first, one token a call": LENGTH - 1, "surest first, 8 calls": 8}
        for name, solver in ways.items():
            done = solver.decode(problem(denoiser, steps.get(name, 1)), start)
            likely = (chain.log_prob(done.tokens) - chain.initial.log()[start[:, 0]]).item() / (LENGTH - 1)
            found = torch.tensor([done.calls, likely, dict(done.extra).get("guide_calls", 0)], dtype=torch.float64)
            totals[name] = totals.get(name, torch.zeros(3, dtype=torch.float64)) + found / settings.chains
    return {name: tuple(each.tolist()) for name, each in totals.items()}  # type: ignore[misc]


def _guided_rows(found: Mapping[str, tuple[float, float, float]], gain: float) -> list[Row]:
    one, eight = found["one token a call"], found["8 calls"]
    rows: list[Row] = []
    for name in ("guided, greedy", "guided, top-k 2"):
        calls, likely, guide = found[name]
        # The looser rule takes tokens that are the guide's second choice.
        lost = -0.05 if name == "guided, greedy" else -0.2
        rows += [
            at_most(
                f"{name}: calls for {LENGTH} tokens", calls, 0.3 * LENGTH, baseline=one[0], note=f"guide {guide:.1f}"
            ),
            at_least("... log likelihood a token, over one token a call", likely - one[1], lost),
            at_least("... over 8 calls, nats", likely - eight[1], gain),
        ]
    rows += [
        info(f"{name}: log likelihood a token", each[1], note=f"{each[0]:.1f} calls") for name, each in found.items()
    ]
    return rows


def _cached(
    settings: Settings, seed: int, progress: Progress
) -> tuple[dict[str, tuple[Decoded, float]], dict[str, float], dict[str, list[float]]]:
    """Each cache: what it decoded and its agreement; seconds over those without one; agreement by block."""
    chain = MarkovChain.random(VOCAB, spread=3.0, seed=random.fold(seed, 1))
    denoiser = TokenDenoiser(network(random.fold(seed, 2)).train(), MaskedProcess(MASK))
    progress("training a masked language model", 0.0)
    trained = tw.fit(
        denoiser, Tokens(chain.sample(8000, LENGTH, random.fold(seed, 3))), steps=settings.steps, batch_size=16,
        lr=3e-3, schedule="cosine", warmup=20, ema=None, progress=False, device="cpu", seed=random.fold(seed, 4),
    ).denoiser  # fmt: skip
    progress("decoding", 0.7)
    start = masked(chain.sample(settings.prompts, PROMPT, random.fold(seed, 5)), LENGTH)
    run = problem(trained, LENGTH)  # type: ignore[arg-type]
    solvers: dict[str, Any] = {name: Blockwise(BLOCK, caching=cache) for name, cache in CACHES.items()}
    solvers["dual cache, threshold .9"] = Blockwise(BLOCK, caching=DualCache(), threshold=0.9)
    with torch.no_grad():
        done = {name: solver.decode(run, start) for name, solver in solvers.items()}
        times = in_turns(
            {name: lambda solver=solver: solver.decode(run, start) for name, solver in solvers.items()},
            settings.rounds, warmup=0, clock=time.thread_time,
        )  # fmt: skip
    plain = done["none"].tokens
    equal = {name: (each.tokens == plain)[:, PROMPT:].double() for name, each in done.items()}
    by_block = {name: each.reshape(-1, LENGTH // BLOCK, BLOCK).mean((0, 2)).tolist() for name, each in equal.items()}
    found = {name: (done[name], equal[name].mean().item()) for name in done}
    return found, {name: median_ratio(each, times["none"]) for name, each in times.items()}, by_block


def _cached_rows(found: Mapping[str, tuple[Decoded, float]], seconds: Mapping[str, float], scale: str) -> list[Row]:
    plain = found["none"][0]
    rows: list[Row] = []
    for name in ("FreeCache", "FreeCache, as published", "prefix cache", "dual cache", "dual cache, threshold .9"):
        done, agreement = found[name]
        share = done.positions / plain.positions
        if name == "FreeCache":
            rows += [
                at_least(f"{name}: tokens equal to those without a cache", agreement, 0.9),
                at_most("... positions evaluated, of those without", share, 0.6),
            ]
            if scale != "smoke":
                rows.append(at_most("... time, of that without", seconds[name], 0.6))
        else:
            note = f"positions {share:.2f}, time {seconds[name]:.2f}, calls {done.calls}"
            rows.append(info(f"{name}: tokens equal to those without a cache", agreement, note=note))
    name = "dual cache, threshold .9"
    rows.append(
        greater_than(
            f"tokens a second: {name}, over the plain loop",
            1.0 / seconds[name],
            1.0,
            published="8.1 to 11.0 x (8 B)",
            note=f"{found[name][0].calls} calls of {plain.calls}",
        )
    )
    return rows


def _overhead(seed: int, rounds: int) -> list[Row]:
    """Milliseconds a step beyond the network, 32 rows of 512 tokens of a vocabulary of 64."""
    logits = random.normal((32, 512, 64), seed)
    denoiser = TokenDenoiser(lambda x: logits, MaskedProcess(64))
    start = torch.full((32, 512), 64)
    rows: list[Row] = []
    for name, block in (("blocks of 32", 32), ("one block", None)):
        solver, run = Blockwise(block), problem(denoiser, 64)
        solver.decode(run, start)
        each = []
        for _ in range(rounds):
            begun = time.thread_time()
            solver.decode(run, start)
            each.append((time.thread_time() - begun) / 64 * 1000.0)
        quantity = f"decoding loop, 32 x 512 tokens, {name}: ms a step"
        rows.append(at_most(quantity, min(each), 1.5) if block else info(quantity, min(each)))
    return rows
