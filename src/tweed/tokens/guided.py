"""Guided diffusion of text: a small causal model says how much of a draft may stay.

"Accelerating Diffusion Language Model Inference via Efficient KV Caching and Guided Diffusion" (2025, arXiv 2505.21467),
Section 4. The denoiser drafts all masked tokens at once; the guide reads the draft in one causal pass, and tokens are
accepted from left to right while it agrees. Unlike speculative decoding the large model drafts and the small one judges: with
the greedy rule the answer is the guide's own greedy one, whatever the denoiser says, and only the looser rules keep the
denoiser's choices.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tweed.core.processes import Process
from tweed.core.token_denoiser import TokenDenoiser, without
from tweed.errors import IncompatibleError, InputError, choose
from tweed.solvers.base import Observer, Problem
from tweed.tokens.caching import Caching, NoCache
from tweed.tokens.categorical import draw_tokens
from tweed.tokens.solver import Decoded, TokenSolver, mask_of, require_masked, uniforms

Accept = Literal["greedy", "top-k", "relative", "threshold", "sampling"]


class Guide:
    """A causal model and its cache, for one run: the law of each token given those before it.

    Args:
        model: a causal network such as `TextTransformer(causal=True)`, a `TokenDenoiser` that holds one, or any function
            `(x) -> logits` that answers at each position for the next one.
        chunk: draft tokens that it reads at once: what is behind a rejection need not be read.
    """

    def __init__(self, model: Any, chunk: int):
        self.network: Callable[..., Tensor] = model.network if isinstance(model, TokenDenoiser) else model
        if isinstance(self.network, nn.Module) and not getattr(self.network, "causal", False):
            raise IncompatibleError(f"guide: {type(self.network).__name__} is not causal; expected a causal network")
        self.chunk, self.calls, self.cache = chunk, 0, None

    def laws(self, x: Int[Tensor, "1 length"], first: int, last: int) -> Float[Tensor, "1 n size"]:
        """The logits of the tokens at `first ... last - 1`, `first > 0`, each given those before it."""
        self.calls += 1
        make = getattr(self.network, "cache", None)
        if make is None:
            return self.network(x[:, : last - 1])[:, first - 1 :]
        if self.cache is None:
            self.cache = make(1, x.shape[1])
        begin = min(self.cache.length, first - 1)
        return self.network(
            x[:, begin : last - 1], first=begin, cache=self.cache, extent=last - 1, answer=(first - 1, last - 1)
        )

    def crop(self, length: int) -> None:
        """Forgets all from position `length` on."""
        if self.cache is not None:
            self.cache.crop(length)


@dataclass(frozen=True)
class Guided(TokenSolver):
    """Draft with the denoiser, accept with the guide, from left to right.

    Each round is one evaluation of the denoiser and as many of the guide as chunks are read. Masks are filled in the order of
    their positions; given tokens among them stay. The first mask must have a token before it. Rows are decoded one by one,
    since each accepts another number.

    Args:
        guide: see `Guide`.
        accept: which draft tokens stay. "greedy": the guide's most probable one; "top-k": one of its `k` most probable;
            "relative": of these, one with at least `share` of the largest probability; "threshold": one more probable than
            `share`; "sampling": any, with the guide's probability of it, and otherwise another is drawn: the answer then has
            the guide's law.
        k: for "top-k" and "relative".
        share: for "relative" (published 0.5) and "threshold" (published 0.1).
        chunk: draft tokens that the guide reads at once.
        temperature: of the draft; 0 takes the most probable tokens.
        stop: a token after which a row is filled with it.
        caching: what the denoiser evaluates; the accepted prefix counts as final.

    Raises:
        InputError: an argument is out of its range.
    """

    guide: Any
    accept: Accept = "top-k"
    k: int = 5
    share: float = 0.5
    chunk: int = 32
    temperature: float = 0.0
    stop: int | None = None
    caching: Caching = field(default_factory=NoCache)

    adaptive = True

    def __post_init__(self):
        choose("accept", self.accept, ("greedy", "top-k", "relative", "threshold", "sampling"))
        if self.k < 1 or self.chunk < 1:
            raise InputError(f"k, chunk: {self.k}, {self.chunk} were given; expected positive numbers")
        if not 0.0 <= self.share <= 1.0 or not self.temperature >= 0.0:
            raise InputError(
                f"share, temperature: {self.share}, {self.temperature} were given; expected a share in [0, 1], and 0 or more"
            )
        Guide(self.guide, self.chunk)

    def check(self, process: Process) -> None:
        """Needs a mask."""
        require_masked(self, process)

    def decode(self, problem: Problem, x: Int[Tensor, "b length"], observer: Observer | None = None) -> Decoded:
        """The whole run; `extra` has the guide's calls ("guide_calls") and the tokens that it wrote ("rejections"). `calls` and
        `positions` are sums over the rows, which are not decoded together."""
        mask, rows = mask_of(problem), []
        totals = torch.zeros(4, dtype=torch.int64)
        for row in range(len(x)):
            own = {name: value[row : row + 1] for name, value in problem.cond.items()}
            each = Problem(problem.denoiser, problem.times, own, problem.seed, problem.index + row)
            tokens, counts = self._row(each, x[row : row + 1], mask)
            rows.append(tokens)
            totals += torch.tensor(counts)
            if observer is not None:
                observer(torch.cat([*rows, x[row + 1 :]]), 0.0, row)
        calls, positions, guide_calls, rejections = totals.tolist()
        tokens = torch.cat(rows) if rows else x
        return Decoded(tokens, calls, positions, {"guide_calls": guide_calls, "rejections": rejections})

    def _row(self, problem: Problem, x: Tensor, mask: int) -> tuple[Tensor, tuple[int, int, int, int]]:
        masked = (x[0] == mask).nonzero()[:, 0].tolist()
        if not masked:
            return x, (0, 0, 0, 0)
        if masked[0] == 0:
            raise InputError(
                "x: its first token is masked; expected a token before the first mask, for the guide to follow"
            )
        guide, rejections, step = Guide(self.guide, self.chunk), 0, 0
        reading = self.caching.open(problem.denoiser, x, problem.cond)
        end = masked[-1] + 1
        while masked:
            low = masked[0]
            reading.begin(x, low, end)
            logits = without(reading.logits(x, low, end, 1.0).float(), mask)
            draft = x.clone()
            draft[:, low:end] = torch.where(x[:, low:end] == mask, self._drafted(problem, logits, step), x[:, low:end])
            x, reached, wrote = self._accepted(problem, guide, x, draft, masked, mask, step)
            rejections, step = rejections + wrote, step + 1
            masked = [place for place in masked if place >= reached]
            if self.stop is not None and masked and bool((x[0, low:reached] == self.stop).any()):
                x = x.masked_fill(x == mask, self.stop)
                break
        return x, (reading.calls, reading.positions, guide.calls, rejections)

    def _drafted(self, problem: Problem, logits: Tensor, step: int) -> Tensor:
        if self.temperature == 0.0:
            return logits.argmax(-1)
        u = uniforms(problem, logits.shape[:2], step, device=logits.device)
        return draw_tokens(logits.double() / self.temperature, u)

    def _accepted(
        self, problem: Problem, guide: Guide, x: Tensor, draft: Tensor, masked: list[int], mask: int, step: int
    ) -> tuple[Tensor, int, int]:
        """The row with what is accepted, the first position that is not, and whether the guide wrote a token."""
        at, end = masked[0], masked[-1] + 1
        while at < end:
            last = min(at + self.chunk, end)
            laws = without(guide.laws(draft, at, last).float(), mask)
            size = laws.shape[-1]
            if int(draft[0, :end].max()) >= size:
                raise IncompatibleError(
                    f"guide: it knows {size} tokens, and {int(draft[0, :end].max())} was drafted; expected the denoiser's "
                    "vocabulary"
                )
            u = uniforms(problem, (1, last - at), step, 1 + (at - masked[0]) // self.chunk % 60, x.device)
            open_ = x[:, at:last] == mask
            good = ~open_ | self._agrees(laws, draft[:, at:last], u)
            if bool(good.all()):
                at = last
                continue
            place = int((~good[0]).nonzero()[0, 0])
            law = laws[0, place]
            if self.accept == "sampling":
                # From the guide's law without the token that it refused.
                law = law.index_fill(0, draft[0, at + place], -torch.inf)
                own = laws[0, place].double().softmax(-1)[draft[0, at + place]]
                # What is left of the uniform number, given that it refused, is uniform again.
                token = draw_tokens(law[None], ((u[0, place] - own) / (1.0 - own).clamp_min(1e-300))[None])[0]
            else:
                token = law.argmax()
            reached = at + place + 1
            x = torch.cat((draft[:, :reached], x[:, reached:]), 1)
            x[0, reached - 1] = token
            guide.crop(reached - 1)
            return x, reached, 1
        return torch.cat((draft[:, :end], x[:, end:]), 1), end, 0

    def _agrees(self, laws: Tensor, tokens: Int[Tensor, "1 n"], u: Tensor) -> Bool[Tensor, "1 n"]:
        probs = laws.softmax(-1)
        own = probs.gather(-1, tokens[..., None])[..., 0]
        if self.accept == "greedy":
            return tokens == laws.argmax(-1)
        if self.accept == "threshold":
            return own > self.share
        if self.accept == "sampling":
            return u < own
        # Ties with the k-th are accepted: its rank is not defined.
        top = probs.topk(min(self.k, probs.shape[-1]), -1).values
        among = own >= top[..., -1]
        return among & (own >= self.share * top[..., 0]) if self.accept == "relative" else among
