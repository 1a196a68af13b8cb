"""Decoding by confidence, block by block from left to right: what LLaDA, Dream and Fast-dLLM do."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tweed.core.processes import Process
from tweed.core.token_denoiser import without
from tweed.errors import InputError, choose
from tweed.solvers.base import Observer, Problem
from tweed.tokens import confidence as confidences
from tweed.tokens.caching import Caching, NoCache, Reading
from tweed.tokens.categorical import draw_tokens
from tweed.tokens.remasking import Filled, LowConfidence, Remasking
from tweed.tokens.solver import Decoded, TokenSolver, implied_time, is_timed, mask_of, require_masked, uniforms


class Fill(NamedTuple):
    """One step of a decoding.

    Attributes:
        before: the tokens before it, (b, length).
        filled: with all masks of the block filled.
        after: with the least sure of them masked again.
        confidence: of the tokens filled, (b, n) of the block; what was not masked has that of its own token.
        block: the first position of the block, and the one after it.
        t: the time of `after` along the block's own schedule.
        reading: the evaluations so far.
    """

    before: Int[Tensor, "b length"]
    filled: Int[Tensor, "b length"]
    after: Int[Tensor, "b length"]
    confidence: Float[Tensor, "b n"]
    block: tuple[int, int]
    t: float
    reading: Reading


@dataclass(frozen=True)
class Blockwise(TokenSolver):
    """Predict every masked token of a block, keep the surest, mask the others again; block after block.

    The grid of `tweed.sample` is shared among the blocks: with `steps` in all, each has `steps / blocks`, and of the M masks
    that it begins with `floor(M sigma(t))` are left at each time t of its part of the grid. So the linear schedule is
    LLaDA's, the cosine one MaskGIT's. Without a `threshold` nothing is read back from the device in a block.

    Args:
        block: positions of a block, counted from the first mask of the batch; one block of all by default.
        confidence: what a prediction's sureness is, see `tweed.tokens.confidence`.
        remask: what is masked again: `LowConfidence()`, or `RunningConfidence()`, which may take back earlier tokens.
        temperature: of the drawn tokens; 0 takes the most probable one. Confidence is of the law at temperature 1.
        threshold: keep all tokens whose confidence reaches it instead, and at least one, until none is masked: as many steps
            as that takes (Fast-dLLM, Wu et al., 2025). A threshold above 1 is one token a step, 0 one step a block.
        caching: what is evaluated at each step.
        stop: a token after which nothing is decoded: blocks behind one in which every row has it are filled with it.

    Raises:
        InputError: an argument is out of its range.
    """

    block: int | None = None
    confidence: Literal["probability", "margin", "entropy", "random"] = "probability"
    remask: Remasking = field(default_factory=LowConfidence)
    temperature: float = 0.0
    threshold: float | None = None
    caching: Caching = field(default_factory=NoCache)
    stop: int | None = None

    def __post_init__(self):
        choose("confidence", self.confidence, confidences.BY_NAME)
        if self.block is not None and self.block < 1:
            raise InputError(f"block: {self.block} was given; expected at least 1 position, or None")
        if not self.temperature >= 0.0:
            raise InputError(f"temperature: {self.temperature} was given; expected 0 or more")
        if self.threshold is not None and not self.threshold >= 0.0:
            raise InputError(f"threshold: {self.threshold} was given; expected 0 or more, or None")
        if self.threshold is not None and not isinstance(self.remask, LowConfidence):
            raise InputError(f"remask: {self.remask} was given with a threshold; expected LowConfidence()")

    @property
    def adaptive(self) -> bool:  # type: ignore[override]
        return self.threshold is not None

    def check(self, process: Process) -> None:
        """Needs a mask."""
        require_masked(self, process)

    def decode(self, problem: Problem, x: Int[Tensor, "b length"], observer: Observer | None = None) -> Decoded:
        """The whole run, with its costs."""
        calls = positions = 0
        for i, fill in enumerate(self.fills(problem, x)):
            x, calls, positions = fill.after, fill.reading.calls, fill.reading.positions
            if observer is not None:
                observer(x, fill.t, i)
        return Decoded(x, calls, positions)

    def fills(self, problem: Problem, x: Int[Tensor, "b length"]) -> Iterator[Fill]:
        """The steps, one at a time: what a policy is trained on."""
        mask = mask_of(problem)
        blocks = self._blocks(x, mask)
        if not blocks:
            return
        times = self._times(problem, len(blocks))
        reading = self.caching.open(problem.denoiser, x, problem.cond)
        done = 0
        for low, high in blocks:
            if self.stop is not None and low > blocks[0][0] and self._stopped(x[:, blocks[0][0] : low]):
                yield self._silenced(x, mask, reading)
                return
            reading.begin(x, low, high)
            for fill in self._block(problem, x, mask, low, high, times, reading, done):
                x, done = fill.after, done + 1
                yield fill

    def _blocks(self, x: Tensor, mask: int) -> list[tuple[int, int]]:
        columns = (x == mask).any(0).nonzero()[:, 0].tolist() if x.numel() else []
        if not columns:
            return []
        low, high = columns[0], columns[-1] + 1
        size = self.block or high - low
        return [(at, min(at + size, high)) for at in range(low, high, size)]

    def _times(self, problem: Problem, blocks: int) -> tuple[float, ...]:
        if self.threshold is not None:
            return ()
        if isinstance(problem.times, Tensor):
            raise InputError("times: a grid for each sample was given; expected one for all")
        if problem.steps % blocks:
            raise InputError(
                f"steps: {problem.steps} was given; expected a multiple of the {blocks} blocks to be decoded"
            )
        return problem.times[::blocks]

    def _block(
        self, problem: Problem, x: Tensor, mask: int, low: int, high: int, times: tuple[float, ...], reading: Reading,
        done: int,
    ) -> Iterator[Fill]:  # fmt: skip
        free = x[:, low:high] == mask
        masks = free.sum(1)
        process: Any = problem.process
        running = torch.zeros(free.shape, device=x.device)
        steps = len(times) - 1 if times else high - low
        timed, everywhere = is_timed(problem.denoiser), x == mask
        for step in range(steps):
            masked = x[:, low:high] == mask
            t = implied_time(process, x == mask, everywhere) if timed else 1.0
            logits = reading.logits(x, low, high, t)
            tokens, sure = self._predict(problem, logits, mask, done + step)
            filled = torch.where(masked, tokens, x[:, low:high])
            running = torch.where(masked, sure, running)
            state = Filled(sure, running, masked, free)
            if self.threshold is not None:
                again = self._below(state)
                level = 0.0
            elif step == steps - 1:
                again, level = torch.zeros_like(free), times[-1]
            else:
                level = times[step + 1]
                # A hair more, for shares that are whole numbers but for rounding.
                left = (masks * process.level(level).sigma + 1e-9).long()
                again = self.remask.choose(state, left)
            complete = torch.cat((x[:, :low], filled, x[:, high:]), 1)
            after = torch.cat((x[:, :low], filled.masked_fill(again, mask), x[:, high:]), 1)
            yield Fill(x, complete, after, sure, (low, high), level, reading)
            x = after
            if self.threshold is not None and not bool((x[:, low:high] == mask).any()):
                return

    def _predict(self, problem: Problem, logits: Tensor, mask: int, step: int) -> tuple[Tensor, Tensor]:
        log_probs = without(logits.to(torch.promote_types(logits.dtype, torch.float32)), mask).log_softmax(-1)
        shape = log_probs.shape[:2]
        drawn = self.temperature > 0.0
        u = uniforms(problem, shape, step, device=logits.device) if drawn else None
        tokens = log_probs.argmax(-1) if u is None else draw_tokens(log_probs.double() / self.temperature, u)
        order = uniforms(problem, shape, step, 1, logits.device) if self.confidence == "random" else tokens
        return tokens, confidences.BY_NAME[self.confidence](log_probs, tokens, order)

    def _below(self, filled: Filled) -> Tensor:
        # What does not reach the threshold, but for the surest one of each row.
        assert self.threshold is not None
        below = filled.masked & (filled.confidence < self.threshold)
        surest = filled.confidence.masked_fill(~filled.masked, -torch.inf).argmax(1, keepdim=True)
        return below.scatter(1, surest, False)

    def _stopped(self, answer: Tensor) -> bool:
        return bool((answer == self.stop).any(1).all())

    def _silenced(self, x: Tensor, mask: int, reading: Reading) -> Fill:
        after = x.masked_fill(x == mask, self.stop or 0)
        return Fill(x, after, after, torch.ones(len(x), 0, device=x.device), (x.shape[1], x.shape[1]), 0.0, reading)
