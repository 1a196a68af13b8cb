"""What of a raised rotary base is exact: its factors, what training has shown of each pair, and relations of the network."""

import math

import torch
from torch import Tensor

import tweed as tw
from tweed.core import random
from tweed.core.processes import MaskedProcess
from tweed.core.token_denoiser import TokenDenoiser
from tweed.errors import InputError
from tweed.recipes.report import Row, at_least, at_most, check, info
from tweed.tokens.rope_coverage import RopeCoverage, rope_coverage
from tweed.tokens.rope_scaling import critical_dimension, extended, ntk_factor, ntk_rope_base

# Base, features of a head, training length; the critical dimension; the factor of each target, where one is published.
MODELS = {
    "LLaDA-8B": (500000.0, 128, 4096, 64, {8192: 4, 16384: 14, 24576: 31, 32768: 55}),
    "LLaMA-3-8B": (500000.0, 128, 8192, 70, {16384: 4, 32768: 13}),
    "Dream-7B": (1e6, 128, 2048, None, {4096: 5}),
}


def factors() -> list[Row]:
    """The published factors, and what they do to the angles."""
    rows: list[Row] = []
    for name, (base, dim, train, critical, targets) in MODELS.items():
        here = critical_dimension(base, dim, train)
        if critical is None:
            rows.append(info(f"{name}: critical dimension", here))
        else:
            rows.append(check(f"{name}: critical dimension", here == critical, str(critical), here=here))
        for target, factor in targets.items():
            exact = ntk_factor(base, dim, train, target)
            found = ntk_rope_base(base, dim, train, target) / base
            rows.append(
                check(f"{name}: factor at {target}", found == factor, f"{factor}", here=found, published=factor,
                      note=f"{exact:.2f} before rounding")
            )  # fmt: skip
    found = [_angles(base, dim, train, to) for base, dim, train, _, targets in MODELS.values() for to in targets]
    periods, angles, plain = zip(*found, strict=True)
    rows += [
        at_least("period of the critical pair at the new base, over the target: lowest of all", min(periods), 1.0),
        at_most("slower pairs: angle at the target over the largest of training, highest of all", max(angles), 1.1),
        info("... at the old base", max(plain), note="target / training length"),
    ]
    return rows


def _angles(base: float, dim: int, train: int, target: int) -> tuple[float, float, float]:
    critical = critical_dimension(base, dim, train)
    raised = ntk_rope_base(base, dim, train, target)
    slow = range(critical // 2, dim // 2)
    return (
        2.0 * math.pi * raised ** (critical / dim) / target,
        max(target * raised ** (-2.0 * j / dim) / (train * base ** (-2.0 * j / dim)) for j in slow),
        target / train,
    )


def coverages(name: str) -> dict[str, RopeCoverage]:
    """Of a model's rotary positions, in bidirectional and in causal training."""
    base, dim, train = MODELS[name][:3]
    return {kind: rope_coverage(base, dim, train, kind == "causal") for kind in ("bidirectional", "causal")}


def coverage_rows() -> list[Row]:
    """The paper's account of stable perplexity: sines of both signs, circles at half the length."""
    rows: list[Row] = []
    for name in ("LLaDA-8B", "LLaMA-3-8B"):
        dim = MODELS[name][1]
        both = coverages(name)
        signs = {kind: int(each.both_signs.sum()) for kind, each in both.items()}
        whole = {kind: int((each.turned >= 1.0).sum()) for kind, each in both.items()}
        rows += [
            check(f"{name}: pairs whose sine takes both signs, of {dim // 2}: bidirectional, over causal",
                  signs["bidirectional"] == dim // 2 > signs["causal"], "all of them, and more",
                  here=signs["bidirectional"], baseline=signs["causal"]),
            check("... that make a whole turn", whole["bidirectional"] > whole["causal"], "> baseline",
                  here=whole["bidirectional"], baseline=whole["causal"]),
        ]  # fmt: skip
    return rows


@torch.no_grad()
def exact(seed: int) -> list[Row]:
    """Relations of the network at any base, on random weights."""
    config = {"name": "text-transformer", "vocab": 17, "width": 64, "depth": 2, "heads": 2, "context": 32}
    config |= {"rope_base": 100.0, "tied": False}
    denoiser = TokenDenoiser(tw.nets.build(config, random.fold(seed, 1)).eval(), MaskedProcess(16))
    x = (16 * random.uniform((3, 24), random.fold(seed, 2))).long()
    plain = denoiser.read(x)
    same, longer = extended(denoiser, 32), extended(denoiser, 256)
    far = torch.cat((x[:, 12:], x[:, :12]), 1)
    rows = [
        check("factor 1: logits", torch.equal(same.read(x), plain), "equal"),  # type: ignore[attr-defined]
        at_most("32768 padded positions before it: logits off those without, base 100", _shifted(denoiser, x), 1e-4),
        at_most("... base 800", _shifted(longer, x), 1e-4),  # type: ignore[arg-type]
        at_least("halves exchanged: change of the logits", (denoiser.read(far).roll(12, 1) - plain).abs().max(), 1e-2),
    ]
    cache = denoiser.caching(3, 24)
    denoiser.read(x, cache=cache)
    try:
        longer.read(x, (12, 24), evaluate=(12, 24), cache=cache)  # type: ignore[attr-defined]
        refused = False
    except InputError:
        refused = True
    rows.append(check("keys kept at another base", refused, "refused"))
    return rows


def _shifted(denoiser: TokenDenoiser, x: Tensor, by: int = 32768) -> Tensor:
    # Positions from `by` on: those before it are in the cache, and are not looked at.
    cache = denoiser.caching(len(x), by + x.shape[1])
    cache.length = by
    seen = torch.arange(by + x.shape[1]).expand(len(x), -1) >= by
    moved = denoiser.network(x, first=by, cache=cache, mask=seen)
    return (moved - denoiser.read(x)).abs().max()
