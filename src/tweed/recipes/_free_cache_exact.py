"""What of FreeCache and guided decoding is exact."""

import torch

import tweed as tw
from tweed.core import random
from tweed.core.processes import MaskedProcess
from tweed.core.token_denoiser import TokenDenoiser
from tweed.recipes.report import Row, at_most, check
from tweed.solvers.base import Problem
from tweed.tokens import Blockwise, DualCache, FreeCache, Guided, PrefixCache
from tweed.tokens.caching import NoCache

VOCAB, MASK = 16, 16


def network(seed: int, causal: bool = False, depth: int = 4) -> torch.nn.Module:
    """The small transformer of this recipe."""
    config = {"name": "text-transformer", "vocab": VOCAB + 1, "width": 64, "depth": depth, "heads": 4, "tied": False}
    return tw.nets.build({**config, "causal": causal}, seed).eval()


def problem(denoiser: TokenDenoiser, steps: int) -> Problem:
    """A run of so many equal steps."""
    return Problem(denoiser, tuple(1.0 - i / steps for i in range(steps + 1)))


def masked(prompt: torch.Tensor, length: int) -> torch.Tensor:
    """Prompts, and masks behind them."""
    return torch.cat((prompt, torch.full((len(prompt), length), MASK)), 1)


@torch.no_grad()
def exact(seed: int) -> list[Row]:
    """The card's list, on networks with random weights."""
    process = MaskedProcess(MASK)
    prompt = (VOCAB * random.uniform((3, 12), random.fold(seed, 1))).long()
    start = masked(prompt, 24)
    both = TokenDenoiser(network(random.fold(seed, 2)), process)
    guide = network(random.fold(seed, 3), causal=True, depth=2)
    rows = []

    guided = Guided(guide, "greedy", chunk=5).decode(problem(both, 1), start)
    greedy = start.clone()
    for place in range(12, 36):
        greedy[:, place] = guide(greedy[:, :place])[:, -1, :VOCAB].argmax(-1)
    rows.append(
        check("greedy rule: the guide's own answer, whatever drafts", torch.equal(guided.tokens, greedy), "equal")
    )

    causal = TokenDenoiser(network(random.fold(seed, 4), causal=True), process, shift=True)
    whole = Blockwise(8).decode(problem(causal, 24), start)
    caches = {"FreeCache": FreeCache(), "prefix cache": PrefixCache(), "dual cache": DualCache()}
    same = [
        torch.equal(Blockwise(8, caching=c).decode(problem(causal, 24), start).tokens, whole.tokens)
        for c in caches.values()
    ]
    rows.append(check("causal attention, every cache against none", all(same), "equal"))
    cache = causal.caching(3, 36)
    causal.read(start, cache=cache)
    part = causal.read(start, (20, 36), evaluate=(20, 36), cache=cache)
    rows.append(
        at_most("... logits from the cache, off whole ones", (part - causal.read(start)[:, 20:]).abs().max(), 1e-5)
    )

    alone = torch.full((2, 24), MASK)
    plain = Blockwise(None, temperature=1.0).decode(problem(both, 12), alone)
    free = Blockwise(None, temperature=1.0, caching=FreeCache()).decode(problem(both, 12), alone)
    rows.append(
        check("one block without a prompt: FreeCache against none", torch.equal(plain.tokens, free.tokens), "equal")
    )

    calls = [Blockwise(8, threshold=t).decode(problem(both, 1), start[:1]).calls for t in (1.5, 0.0)]
    rows.append(check("threshold above 1 / 0: steps for 24 tokens in 3 blocks", calls == [24, 3], "24, 3"))

    answer = Blockwise(None).decode(problem(both, 1), start).tokens
    oracle = Guided(_oracle(answer), "greedy").decode(problem(both, 1), start)
    rows.append(check("a guide that agrees: calls a row", oracle.calls == 3, "1", here=oracle.calls / 3))
    zero = Blockwise(8, caching=NoCache()).decode(problem(both, 24), start)
    rows.append(check("no cache: calls and positions", (zero.calls, zero.positions) == (24, 24 * 36), "24, 864"))
    return rows


def _oracle(answer: torch.Tensor):
    # One hot at the answer's next token, in the order in which rows are asked for.
    rows = iter(answer)
    held: list[torch.Tensor] = []

    def laws(x: torch.Tensor) -> torch.Tensor:
        if not held or not torch.equal(held[-1][: x.shape[1]], x[0]):
            held.append(next(rows))
        return 30.0 * torch.nn.functional.one_hot(held[-1][1 : x.shape[1] + 1], VOCAB).float()[None]

    return laws
