"""Ancestral sampling of tokens along a time grid: the reverse transitions of the masked and of the uniform process.

Austin et al., D3PM (2021), Section 3.3; Sahoo et al., MDLM (2024), Section 3.2.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tweed.core.processes import MaskedProcess
from tweed.core.token_denoiser import without
from tweed.errors import IncompatibleError, InputError, choose
from tweed.solvers.base import Observer, Problem
from tweed.tokens.caching import NoCache, Reading
from tweed.tokens.categorical import draw_tokens, gumbel_tokens
from tweed.tokens.solver import Decoded, TokenSolver, is_timed, uniforms


@dataclass(frozen=True)
class Ancestral(TokenSolver):
    """From each time of the grid to the next, every token on its own.

    Masked process: a mask is lifted with probability `(alpha(s) - alpha(t)) / (1 - alpha(t))`, and its token drawn from the
    network's law. Uniform process: `x_s` is drawn from `q(x_s | x_t, x_0)`, averaged over that law.

    The network is told the time where it is timed. Where it is not, and `reuse` is set, it is asked anew only when a token
    has changed, which is read back from the device at each step.

    Args:
        draws: "jumps" draws whether a mask is lifted, and tokens for those that are; "joint" lets the tokens and the mask
            compete in one draw of `size + 1` at every position and step, as published code does: the same law.
        precision: of joint draws. "float32" has the published fault: Gumbel noise from float32 uniform numbers, which is never
            above 24 log 2, so that unlikely tokens are drawn too rarely; see `tweed.tokens.truncation`.
        reuse: see above.

    Raises:
        InputError: an unknown name; or "float32" without joint draws.
    """

    draws: Literal["jumps", "joint"] = "jumps"
    precision: Literal["float64", "float32"] = "float64"
    reuse: bool = True

    def __post_init__(self):
        choose("draws", self.draws, ("jumps", "joint"))
        choose("precision", self.precision, ("float64", "float32"))
        if self.precision == "float32" and self.draws != "joint":
            raise InputError(
                "precision: 'float32' was given with draws='jumps'; expected joint draws, which it is a fault of"
            )

    def check(self, process) -> None:
        """A uniform process has no mask to compete with."""
        if self.draws == "joint" and not isinstance(process, MaskedProcess):
            raise IncompatibleError(f"draws: 'joint' was given with {type(process).__name__}; expected a MaskedProcess")

    def decode(self, problem: Problem, x: Int[Tensor, "b length"], observer: Observer | None = None) -> Decoded:
        """The whole run, with its costs."""
        if isinstance(problem.times, Tensor):
            raise InputError("times: a grid for each sample was given; expected one for all")
        process: Any = problem.process
        timed = is_timed(problem.denoiser)
        reading = NoCache().open(problem.denoiser, x, problem.cond)
        logits: Tensor | None = None
        for i in range(problem.steps):
            t, s = process.level(problem.times[i]), process.level(problem.times[i + 1])
            if logits is None and x.shape[1] and len(x):
                logits = self._logits(reading, x, problem.times[i])
            if logits is None:
                break
            if isinstance(process, MaskedProcess):
                after = self._masked(problem, x, logits, process.mask, 1.0 - s.sigma / t.sigma, i)
            else:
                law = _uniform_posterior(x, logits.double().log_softmax(-1), t.alpha, s.alpha)
                after = draw_tokens(law, uniforms(problem, x.shape, i, device=x.device))
            if timed or not self.reuse or not torch.equal(after, x):
                logits = None
            x = after
            if observer is not None:
                observer(x, problem.times[i + 1], i)
        return Decoded(x, reading.calls, reading.positions)

    def _logits(self, reading: Reading, x: Tensor, t: float) -> Float[Tensor, "b length size"]:
        return reading.logits(x, 0, x.shape[1], t)

    def _masked(self, problem: Problem, x: Tensor, logits: Tensor, mask: int, jump: float, step: int) -> Tensor:
        masked = x == mask
        if self.draws == "joint":
            return torch.where(masked, self._joint(problem, without(logits, mask), mask, jump, step), x)
        lifted = masked & (uniforms(problem, x.shape, step, device=x.device) < jump)
        u = uniforms(problem, x.shape, step, 1, x.device)
        if x.is_cpu:
            # Tokens for those that are lifted alone.
            return x.masked_scatter(lifted, draw_tokens(without(logits[lifted], mask), u[lifted]))
        return torch.where(lifted, draw_tokens(without(logits, mask), u), x)

    def _joint(self, problem: Problem, logits: Tensor, mask: int, jump: float, step: int) -> Tensor:
        dtype = torch.float64 if self.precision == "float64" else torch.float32
        probs = jump * logits.to(dtype).softmax(-1)
        stay = torch.full_like(probs[..., :1], 1.0 - jump)
        drawn = gumbel_tokens(torch.cat((probs, stay), -1), problem.seed, problem.index, step)
        return torch.where(drawn == probs.shape[-1], torch.full_like(drawn, mask), drawn)


def _uniform_posterior(
    x: Int[Tensor, "b length"], log_probs: Float[Tensor, "b length size"], alpha_t: float, alpha_s: float
) -> Float[Tensor, "b length size"]:
    """`log sum_{x_0} p(x_0) q(x_s | x_t, x_0)` of the uniform process, up to a constant a token.

    With `a = alpha_t / alpha_s`, `q(x_s | x_t, x_0) = [a 1(x_s = x_t) + (1 - a) / V] [alpha_s 1(x_s = x_0) + (1 - alpha_s) / V]
    / Z(x_0)`, where `Z(x_0) = alpha_t 1(x_t = x_0) + (1 - alpha_t) / V`: its normaliser depends on `x_0`.
    """
    size = log_probs.shape[-1]
    same = torch.nn.functional.one_hot(x, size).to(log_probs.dtype)
    weights = log_probs.exp() / (alpha_t * same + (1.0 - alpha_t) / size)
    a = alpha_t / alpha_s if alpha_s > 0.0 else 1.0
    forward = a * same + (1.0 - a) / size
    return (forward * (alpha_s * weights + (1.0 - alpha_s) / size * weights.sum(-1, keepdim=True))).log()
