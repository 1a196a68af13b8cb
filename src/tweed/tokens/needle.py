"""Needles in haystacks: one fact in a long text, asked for at its end, over lengths and depths."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tweed.core.denoiser import Denoiser
from tweed.errors import InputError, choose
from tweed.solvers.base import Problem
from tweed.tokens.blockwise import Blockwise
from tweed.tokens.solver import TokenSolver, require_masked

Score = Literal["contained", "edit"]


class Needle(NamedTuple):
    """Prompts with an answer to be found.

    Attributes:
        start: what decoding starts from, masks where it writes.
        answer: what it is to write.
        place: from which position to before which the answer is looked for; all from the first mask on by default.
    """

    start: Int[Tensor, "b length"]
    answer: Int[Tensor, "b m"]
    place: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class NeedleGrid:
    """Scores, a row a length and a column a depth: as a heat map shows them.

    Attributes:
        scores: the mean over the prompts of each, in [0, 1], float64.
        lengths, depths: of the rows and columns.
        calls: evaluations of the network, in all.
    """

    scores: Float[Tensor, "lengths depths"]
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    calls: int


def needle_grid(
    denoiser: Denoiser,
    prompts: Callable[[int, float], Needle],
    lengths: Sequence[int],
    depths: Sequence[float],
    *,
    solver: TokenSolver | None = None,
    steps: int | None = None,
    score: Score = "contained",
    batch: int = 32,
    seed: int = 0,
) -> NeedleGrid:
    """Decodes the prompts of each length and depth, and scores what is written.

    LongLLaDA (2025, arXiv 2506.14429), Section 4: 32 new tokens, greedy, surest first, blocks of 32, a step a token.

    Args:
        denoiser: of masked tokens, such as `extended(...)` of one.
        prompts: those of a length and a depth, 0 for the beginning of the haystack and 1 for its end.
        solver: how they are decoded; `Blockwise(32)` by default, greedy and without a cache.
        steps: of a decoding; by default a step for each mask of the prompt with the most.
        score: "contained", the share of prompts whose answer is written as a whole; or "edit", `edit_similarity`.
        batch: rows of a decoding.

    Raises:
        InputError: no lengths or depths, prompts without a mask, or an unknown score.
        IncompatibleError: the process has no mask.
    """
    choose("score", score, SCORES)
    if not lengths or not depths:
        raise InputError(f"lengths, depths: {lengths}, {depths} were given; expected at least one of each")
    solver = Blockwise(32) if solver is None else solver
    require_masked(solver, denoiser.process)
    scores = torch.zeros(len(lengths), len(depths), dtype=torch.float64)
    calls = 0
    for i, length in enumerate(lengths):
        for j, depth in enumerate(depths):
            needle = prompts(length, depth)
            written, used = _decoded(denoiser, needle, solver, steps, batch, seed)
            scores[i, j] = SCORES[score](needle.answer.to(written.device), written).mean().cpu()
            calls += used
    return NeedleGrid(scores, tuple(lengths), tuple(depths), calls)


@torch.no_grad()
def _decoded(
    denoiser: Denoiser, needle: Needle, solver: TokenSolver, steps: int | None, batch: int, seed: int
) -> tuple[Int[Tensor, "b n"], int]:
    masked = needle.start == denoiser.process.mask  # type: ignore[attr-defined]
    if len(needle.start) == 0 or not bool(masked.any(1).all()):
        raise InputError("prompts: expected at least one prompt, and a mask in each, where the answer is written")
    columns = masked.any(0).nonzero()[:, 0].tolist()
    low, high = needle.place or (columns[0], needle.start.shape[1])
    if steps is None:
        steps = _whole_steps(columns, solver)
    times = tuple(1.0 - k / steps for k in range(steps + 1))
    found, calls = [], 0
    for first in range(0, len(masked), batch):
        problem = Problem(denoiser, times, seed=seed, index=first)
        done = solver.decode(problem, needle.start[first : first + batch])
        found.append(done.tokens[:, low:high])
        calls += done.calls
    return torch.cat(found), calls


def _whole_steps(columns: list[int], solver: TokenSolver) -> int:
    # A step a position, in each block as many as in the others.
    span = columns[-1] + 1 - columns[0]
    size = min(getattr(solver, "block", None) or span, span)
    return math.ceil(span / size) * size


def planted(
    haystack: Int[Tensor, " n"],
    needle: Int[Tensor, " k"],
    question: Int[Tensor, " q"],
    *,
    length: int,
    depth: float,
    new: int,
    mask: int,
) -> Int[Tensor, " length"]:
    """A prompt of `length` tokens in all: the haystack, cut short, with the needle in it, the question, and `new` masks.

    Args:
        depth: the share of the haystack that stands before the needle.

    Raises:
        InputError: the parts do not fit, the haystack is too short, or `depth` is not in [0, 1].
    """
    room = length - len(needle) - len(question) - new
    if not 0 <= room <= len(haystack) or new < 1:
        raise InputError(
            f"length: {length} was given for a needle of {len(needle)}, a question of {len(question)} and {new} masks; "
            f"expected at least their sum, and at most {len(haystack)} tokens of haystack more"
        )
    if not 0.0 <= depth <= 1.0:
        raise InputError(f"depth: {depth} was given; expected a share in [0, 1]")
    before = round(depth * room)
    masks = torch.full((new,), mask, dtype=haystack.dtype, device=haystack.device)
    return torch.cat((haystack[:before], needle, haystack[before:room], question, masks))


def contained(answer: Int[Tensor, "b m"], text: Int[Tensor, "b n"]) -> Float[Tensor, " b"]:
    """1 where a row of `text` holds its answer as a whole, else 0; float64.

    Raises:
        InputError: numbers of rows differ, or the answers are empty.
    """
    _check(answer, text)
    if text.shape[1] < answer.shape[1]:
        return torch.zeros(len(text), dtype=torch.float64, device=text.device)
    windows: Bool[Tensor, "b places"] = (text.unfold(1, answer.shape[1], 1) == answer[:, None]).all(2)
    return windows.any(1).double()


def edit_similarity(answer: Int[Tensor, "b m"], text: Int[Tensor, "b n"]) -> Float[Tensor, " b"]:
    """`1 - d / m` with d the fewest insertions, deletions and exchanges from the answer to any part of `text`; float64.

    So a contained answer has 1, and one of which nothing is found 0 (Sellers, 1980).

    Raises:
        InputError: numbers of rows differ, or the answers are empty.
    """
    _check(answer, text)
    rows, columns = len(text), text.shape[1]
    places = torch.arange(columns + 1, device=text.device, dtype=torch.float64)
    # Of the answer's first tokens to parts that end at each place; a part may begin anywhere.
    costs = torch.zeros(rows, columns + 1, dtype=torch.float64, device=text.device)
    for i in range(answer.shape[1]):
        exchanged = costs[:, :-1] + (text != answer[:, i : i + 1]).double()
        best = torch.minimum(costs[:, 1:] + 1.0, exchanged)
        best = torch.cat((torch.full_like(costs[:, :1], i + 1.0), best), 1)
        # Insertions: the least of `best[k] + (j - k)` over k <= j.
        costs = (best - places).cummin(1).values + places
    return 1.0 - costs.amin(1) / answer.shape[1]


SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"contained": contained, "edit": edit_similarity}


def _check(answer: Tensor, text: Tensor) -> None:
    if answer.ndim != 2 or text.ndim != 2 or len(answer) != len(text) or answer.shape[1] == 0:
        raise InputError(
            f"answer, text: {tuple(answer.shape)}, {tuple(text.shape)} were given; expected (b, m) and (b, n), m at least 1"
        )
