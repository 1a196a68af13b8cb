"""LongLLaDA: a longer context for masked language models, by a larger base of their rotary positions.

"LongLLaDA: Unlocking Long Context Capabilities in Diffusion LLMs" (2025, arXiv 2506.14429). The published factors from their
formula, and what training shows of each pair of features; then a small masked model that was trained to find a needle in 64
tokens, and reads 128 and more: as it is, and with the base that the formula gives. Last, perplexity beyond the training
length, of a masked and of a causal model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

import tweed as tw
from tweed.core import random
from tweed.core.processes import MaskedProcess
from tweed.core.token_denoiser import TokenDenoiser
from tweed.data import MarkovChain, Tokens
from tweed.data.recall import KeyValueRecall
from tweed.recipes import Report, at_least, greater_than, info, less_than
from tweed.recipes._figures import curves
from tweed.recipes._long_llada_exact import coverage_rows, coverages, exact, factors
from tweed.recipes._long_llada_figures import coverage_figure, grids_figure
from tweed.recipes.report import Progress, Row, span
from tweed.tokens.chunked_perplexity import ChunkPerplexity, causal_chunk_perplexity, masked_chunk_perplexity
from tweed.tokens.needle import Needle, NeedleGrid, needle_grid
from tweed.tokens.rope_scaling import extended, ntk_rope_base
from tweed.training import NextTokenLoss, TokenLoss

CONTEXT, BASE, HEAD = 64, 100.0, 32
TASK = KeyValueRecall(keys=1, values=16, noise=16, pairs=1)
FACTORS = (1, 2, 4, 8, 16, 32)
CHUNK = 16
NEAR, FAR = (0, 64), (80, 10**6)  # bands of distance


@dataclass(frozen=True)
class Settings:
    """Steps of the retriever; prompts a place, lengths and depths, lengths at which factors are swept; steps, documents and their
    length for perplexity."""

    steps: int
    prompts: int
    lengths: tuple[int, ...]
    depths: int
    swept: tuple[int, ...]
    chain_steps: int
    documents: int
    longest: int


SCALES = {
    "smoke": Settings(3, 4, (64, 128, 256), 5, (128,), 3, 2, 128),
    "default": Settings(200, 48, (64, 96, 128, 256, 512), 9, (128, 256), 200, 16, 256),
    "gpu": Settings(4000, 512, (64, 96, 128, 192, 256, 384, 512, 1024), 17, (128, 256, 512), 2000, 64, 1024),
}


@dataclass(frozen=True)
class Retrieved:
    """Needle grids without and with a raised base; the score of far needles by factor, a curve a length."""

    plain: NeedleGrid
    raised: NeedleGrid
    swept: Mapping[int, list[float]]


def run(seed: int, scale: str, progress: Progress) -> Report:
    """Factors, coverage, exact relations; retrieval; perplexity."""
    settings = SCALES[scale]
    progress("factors and coverage", 0.0)
    rows = [*factors(), *coverage_rows(), *exact(random.fold(seed, 1))]
    found = _retrieved(settings, random.fold(seed, 2), span(progress, 0.02, 0.7))
    read = _perplexities(settings, random.fold(seed, 3), span(progress, 0.7, 1.0))
    measured = [*_retrieval_rows(found), *_perplexity_rows(read)]
    # Of models that have hardly begun to learn nothing is required.
    rows += [replace(row, relation="", holds=None) for row in measured] if scale == "smoke" else measured
    figures = {
        "coverage": lambda: coverage_figure(coverages("LLaDA-8B")),
        "needle": lambda: grids_figure({"base as trained": found.plain, "base raised for each length": found.raised}),
        "distance": lambda: _distance_figure(found),
        "factor": lambda: _factor_figure(found),
        "perplexity": lambda: _perplexity_figure(read),
    }
    return Report(
        slug="long-llada",
        rows=rows,
        seed=seed,
        scale=scale,
        settings={**vars(settings), "context": CONTEXT, "base": BASE, "head_dim": HEAD},
        figures=figures,
        notes=NOTES,
    )


NOTES = (
    "Retrieval: a key and a value in a haystack of noise, the key and a mask at its end; two layers of 64 features, trained on "
    "64 tokens. Distance is from the answer back to its needle. Sixteen values: chance is 0.06.",
    "The only value of a sequence can be found by what it is, wherever it stands: slow pairs, whose phases beyond 64 tokens were "
    "never seen, are what a search without regard to place is made of, and so what breaks.",
    "Perplexity: chains of 16 tokens, chunks of 16, eight draws. Chains are read from neighbours; the published contrast "
    "(a causal model breaks off beyond its length, a masked one does not) does not show in them, and is not required.",
    "Masked and causal perplexities are different quantities: compare each with itself.",
    "Not measured here: models of 8 billion parameters, and answers of several tokens in fewer steps than tokens.",
)


def _denoiser(size: int, seed: int, causal: bool = False) -> TokenDenoiser:
    config = {"name": "text-transformer", "vocab": size + 1, "width": 64, "depth": 2, "heads": 2, "head_dim": HEAD}
    config |= {"rope_base": BASE, "context": CONTEXT, "tied": False, "causal": causal}
    return TokenDenoiser(tw.nets.build(config, seed), MaskedProcess(size))


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _fit(denoiser: TokenDenoiser, data: Tokens, steps: int, batch: int, seed: int, objective: Any) -> TokenDenoiser:
    return tw.fit(
        denoiser, data, steps=steps, batch_size=batch, lr=3e-3, schedule="cosine", warmup=min(50, steps // 4), ema=None,
        objective=objective, progress=False, seed=seed, device=_device(),
    ).denoiser  # type: ignore[return-value]  # fmt: skip


def needles(prompts: int, seed: int) -> Any:
    """Prompts of the task, for `needle_grid`: the last token is masked, the needle is at the depth."""

    def made(length: int, depth: float) -> Needle:
        drawn = TASK.sample(prompts, length, random.fold(seed, length, round(1e6 * depth)), depth=depth)
        return Needle(drawn.asked(TASK.size).to(_device()), drawn.x[:, -1:])

    return made


def distances(length: int, depths: tuple[float, ...]) -> list[float]:
    """How far the answer is from needles at these depths."""
    return [TASK.sample(64, length, depth=depth).distance.double().mean().item() for depth in depths]


def _retrieved(settings: Settings, seed: int, progress: Progress) -> Retrieved:
    progress("training a retriever", 0.0)
    data = TASK.sample(64 * settings.steps, CONTEXT, random.fold(seed, 1)).data()
    fresh = _denoiser(TASK.size, random.fold(seed, 2))
    denoiser = _fit(fresh, data, settings.steps, 64, random.fold(seed, 3), TokenLoss())
    progress("needles", 0.8)
    depths = tuple(i / (settings.depths - 1) for i in range(settings.depths))
    prompts = needles(settings.prompts, random.fold(seed, 4))
    plain = needle_grid(denoiser, prompts, settings.lengths, depths)
    each = [needle_grid(extended(denoiser, length), prompts, [length], depths) for length in settings.lengths]
    raised = NeedleGrid(
        torch.cat([grid.scores for grid in each]), plain.lengths, plain.depths, sum(grid.calls for grid in each)
    )
    swept: dict[int, list[float]] = {length: [] for length in settings.swept}
    for length, scores in swept.items():
        far = [d for d, at in zip(depths, distances(length, depths), strict=True) if at >= FAR[0]]
        for factor in FACTORS:
            stretched: Any = extended(denoiser, length)
            stretched.network.rope_base = BASE * factor
            scores.append(needle_grid(stretched, prompts, [length], far).scores.mean().item())
    return Retrieved(plain, raised, swept)


def banded(grid: NeedleGrid, row: int, nearest: float, farthest: float) -> float:
    """The mean score of a row's needles at distances from `nearest` to below `farthest`."""
    at = distances(grid.lengths[row], grid.depths)
    scores = [grid.scores[row, i].item() for i, d in enumerate(at) if nearest <= d < farthest]
    return sum(scores) / len(scores)


def _retrieval_rows(found: Retrieved) -> list[Row]:
    plain, raised, lengths = found.plain, found.raised, found.plain.lengths
    rows = [at_least(f"needles found in {CONTEXT} tokens, as trained", plain.scores[0].mean(), 0.9)]
    for length in (128, 256):
        if length not in lengths:
            continue
        row, factor = lengths.index(length), round(ntk_rope_base(BASE, HEAD, CONTEXT, length) / BASE)
        near, far = (banded(plain, row, *band) for band in (NEAR, FAR))
        near_raised, far_raised = (banded(raised, row, *band) for band in (NEAR, FAR))
        text = f"{length} tokens, needle {FAR[0]} or more away"
        if length == 128:
            rows.append(less_than(f"{text}, over one nearer than {NEAR[1]}: base as trained", far, near, 0.6))
        else:
            rows.append(info(f"{text}, over one nearer than {NEAR[1]}: base as trained", far, baseline=near))
        rows += [
            greater_than(f"... base x {factor}, over the base as trained", far_raised, far, 1.5),
            info(f"... base x {factor}: nearer than {NEAR[1]}", near_raised, baseline=near),
        ]
    for length in lengths:
        if length > 256:
            row, factor = lengths.index(length), round(ntk_rope_base(BASE, HEAD, CONTEXT, length) / BASE)
            rows.append(
                info(f"{length} tokens, all depths: base x {factor}", raised.scores[row].mean(),
                     baseline=plain.scores[row].mean(), note="baseline: base as trained")
            )  # fmt: skip
    for length, scores in found.swept.items():
        text = ", ".join(f"{factor}: {score:.2f}" for factor, score in zip(FACTORS, scores, strict=True))
        rows.append(info(f"{length} tokens, far needles: best factor", FACTORS[scores.index(max(scores))], note=text))
    return rows


def _perplexities(settings: Settings, seed: int, progress: Progress) -> dict[str, ChunkPerplexity]:
    """Of a masked and a causal model of one size, along documents, at the base as trained and at a raised one."""
    chain = MarkovChain.random(16, spread=3.0, seed=random.fold(seed, 1))
    data = Tokens(chain.sample(8000, CONTEXT, random.fold(seed, 2)))
    documents = chain.sample(settings.documents, settings.longest, random.fold(seed, 3)).to(_device())
    found: dict[str, ChunkPerplexity] = {}
    for number, kind in enumerate(("masked", "causal")):
        progress(f"perplexity: a {kind} model", 0.5 * number)
        causal = kind == "causal"
        fresh = _denoiser(16, random.fold(seed, 4, number), causal)
        objective = NextTokenLoss() if causal else TokenLoss()
        denoiser = _fit(fresh, data, settings.chain_steps, 32, random.fold(seed, 5, number), objective)
        for name, each in (("as trained", denoiser), ("raised", extended(denoiser, settings.longest))):
            found[f"{kind}, base {name}"] = (
                causal_chunk_perplexity(each, documents, CHUNK)  # type: ignore[arg-type]
                if causal
                else masked_chunk_perplexity(each, documents, CHUNK, seed=random.fold(seed, 6))
            )
    return found


def _perplexity_rows(found: Mapping[str, ChunkPerplexity]) -> list[Row]:
    rows: list[Row] = []
    for kind in ("masked", "causal"):
        # Of the chunks within the training length, but the first, which has nothing before it; and of those beyond.
        inside, beyond, raised = (
            found[f"{kind}, base {name}"].perplexity[part].log().mean().exp().item()
            for name, part in (
                ("as trained", slice(1, CONTEXT // CHUNK)),
                ("as trained", slice(CONTEXT // CHUNK, None)),
                ("raised", slice(CONTEXT // CHUNK, None)),
            )
        )
        rows.append(
            info(f"{kind} model: perplexity of chunks beyond {CONTEXT} tokens, base as trained", beyond, baseline=inside,
                 published="stable" if kind == "masked" else "explodes", note="baseline: of chunks within"))  # fmt: skip
        if kind == "masked":
            rows.append(less_than("... base raised", raised, beyond, note="baseline: base as trained"))
        else:
            rows.append(info("... base raised", raised, baseline=beyond, note="baseline: base as trained"))
    return rows


def _distance_figure(found: Retrieved) -> Any:
    panels = {}
    for row, length in enumerate(found.plain.lengths):
        if length == CONTEXT:
            continue
        at = distances(length, found.plain.depths)
        factor = ntk_rope_base(BASE, HEAD, CONTEXT, length) / BASE
        panels[f"{length} tokens"] = {
            "base as trained": (at, found.plain.scores[row].tolist()),
            f"base x {factor:.0f}": (at, found.raised.scores[row].tolist()),
        }
    return curves(panels, xlabel="distance of the needle", ylabel="answers found", log="")


def _factor_figure(found: Retrieved) -> Any:
    lines = {f"{length} tokens": (list(FACTORS), scores) for length, scores in found.swept.items()}
    return curves(
        {f"needles {FAR[0]} or more away": lines},
        xlabel="factor of the base",
        ylabel="answers found",
        log="x",
        ticks=FACTORS,
    )


def _perplexity_figure(found: Mapping[str, ChunkPerplexity]) -> Any:
    lines = {name: (each.ends, each.perplexity.tolist()) for name, each in found.items()}
    return curves(
        {f"trained on {CONTEXT} tokens": lines}, xlabel="end of the chunk", ylabel="perplexity of the chunk", log="y"
    )
