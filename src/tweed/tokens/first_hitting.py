"""The first-hitting sampler: masks are lifted one event at a time, and the network is asked once an event.

Zheng et al., "Masked Diffusion Models are Secretly Time-Agnostic Masked Models and Exploit Inaccurate Categorical Sampling"
(ICLR 2025, arXiv 2409.02908), Section 4. The unmasking times of n masked tokens are independent and of one law, so the first
of them is at `sigma(tau') = sigma(tau) u^(1/n)`, and it is any of them. That is the masked process itself, in the limit of
infinitely many steps of `Ancestral`, with no step in which nothing happens; a network that is told no time needs no times.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tweed.core.processes import CategoricalProcess, Process
from tweed.core.token_denoiser import without
from tweed.errors import InputError
from tweed.solvers.base import Observer, Problem
from tweed.tokens.caching import NoCache
from tweed.tokens.categorical import draw_tokens
from tweed.tokens.solver import Decoded, TokenSolver, is_timed, mask_of, require_masked, uniforms


@dataclass(frozen=True)
class FirstHitting(TokenSolver):
    """One masked token a call, chosen uniformly, drawn in float64 from the network's law: exact for an exact network.

    With more tokens a call they are drawn from one evaluation, as if they were independent. Rows may have different numbers
    of masks; one that has none left stays as it is. A timed network is told the time of the (first) event.

    Args:
        tokens_per_call: events between evaluations.
        order: 1 takes the last evaluation for all events of a call; 2 extrapolates the probabilities linearly, in the number of
            masks, from the last two (Section 4.2; the published details are not known). What extrapolation makes negative is
            taken for zero. A predictor-corrector is left out, for it gains nothing: see below.
        temperature: of the drawn tokens; 0 takes the most probable ones.

    A corrector would evaluate at the predicted tokens, mix both laws at their places, and draw again from the same noise. But a
    network of masked tokens says of a token that it sees just that token, and a law mixed with it gives it again under the
    same noise. Masking part of the prediction once more throws that part away: with the second law alone it is, in law,
    first-hitting with smaller groups at the same number of calls, and any mixture lies between that and the prediction.

    Raises:
        InputError: an argument is out of its range.
    """

    tokens_per_call: int = 1
    order: int = 1
    temperature: float = 1.0

    adaptive = True

    def __post_init__(self):
        if self.tokens_per_call < 1:
            raise InputError(f"tokens_per_call: {self.tokens_per_call} was given; expected at least 1")
        if self.order not in (1, 2):
            raise InputError(f"order: {self.order} was given; expected 1 or 2")
        if not self.temperature >= 0.0:
            raise InputError(f"temperature: {self.temperature} was given; expected 0 or more")

    def check(self, process: Process) -> None:
        """Needs a mask."""
        require_masked(self, process)

    def decode(self, problem: Problem, x: Int[Tensor, "b length"], observer: Observer | None = None) -> Decoded:
        """The whole run, with its costs."""
        mask, timed = mask_of(problem), is_timed(problem.denoiser)
        process: Any = problem.process
        most = int((x == mask).sum(1).max()) if x.numel() else 0
        reading = NoCache().open(problem.denoiser, x, problem.cond)
        sigma = torch.ones(len(x), dtype=torch.float64, device=x.device)
        before: tuple[Tensor, Tensor] | None = None
        for call in range(math.ceil(most / self.tokens_per_call)):
            masked = x == mask
            left = masked.sum(1)
            u = uniforms(problem, (len(x), self.tokens_per_call, 2), call, device=x.device)
            first, sigma = hitting_levels(sigma, left, u[..., 0])
            places, real = self._places(problem, masked, left, call)
            t = process.time_kept(1.0 - first) if timed else 1.0
            logits = reading.logits(x, 0, x.shape[1], t)
            # What is revealed alone: nothing below is of the whole sequence, but for the second order's memory.
            chosen = without(logits.gather(1, places[..., None].expand(-1, -1, logits.shape[-1])), mask)
            if self.order == 2:
                now = without(logits, mask).double().softmax(-1)
                chosen = chosen if before is None else self._extrapolated(now, before, left, places)
                before = now, left
            tokens = self._tokens(chosen, u[..., 1])
            x = x.scatter(1, places, torch.where(real, tokens, x.gather(1, places)))
            if observer is not None:
                observer(x, max(0.0, 1.0 - (call + 1) * self.tokens_per_call / most), call)
        return Decoded(x, reading.calls, reading.positions)

    def _places(self, problem: Problem, masked: Tensor, left: Tensor, call: int) -> tuple[Tensor, Tensor]:
        # The masked positions of the smallest uniform numbers: any subset, and any order of it, is as likely.
        order = uniforms(problem, masked.shape, call, 1, masked.device).masked_fill(~masked, 2.0)
        count = min(self.tokens_per_call, masked.shape[1])
        places = order.topk(count, 1, largest=False).indices
        return places, torch.arange(count, device=masked.device) < left[:, None]

    def _extrapolated(self, now: Tensor, before: tuple[Tensor, Tensor], left: Tensor, places: Tensor) -> Tensor:
        last, had = before
        wide = places[..., None].expand(-1, -1, now.shape[-1])
        event = torch.arange(places.shape[1], device=now.device)
        share = event / (had - left).clamp_min(1)[:, None]
        here, there = now.gather(1, wide), last.gather(1, wide)
        return (here + share[..., None] * (here - there)).clamp_min(0.0).log()

    def _tokens(self, logits: Float[Tensor, "b k size"], u: Tensor) -> Int[Tensor, "b k"]:
        u = u[:, : logits.shape[1]]
        if self.temperature == 0.0:
            return logits.argmax(-1)
        return draw_tokens(logits.double() / self.temperature, u)


def hitting_levels(
    sigma: Float[Tensor, " b"], left: Int[Tensor, " b"], u: Float[Tensor, "b k"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """The masked share `sigma(tau)` at the next event, and at the k-th next one, of rows with `left` masks at `sigma`.

    Rows without masks stay where they are.
    """
    waiting = left[:, None] - torch.arange(u.shape[1], device=u.device)
    factors = torch.where(waiting > 0, u.double() ** (1.0 / waiting.clamp_min(1)), torch.ones((), dtype=torch.float64))
    levels = sigma[:, None] * factors.cumprod(1)
    return levels[:, 0], levels[:, -1]


def hitting_times(process: CategoricalProcess, length: int, u: Float[Tensor, "b length"]) -> Float[Tensor, "b length"]:
    """The times at which the masks of a fully masked sequence are lifted, decreasing, from a uniform number an event."""
    left = length - torch.arange(length, device=u.device)
    return process.time_kept(1.0 - (u.double() ** (1.0 / left)).cumprod(1))
