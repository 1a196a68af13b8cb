"""Policy gradients for masked diffusion: along the model's own decoding (MDPO), and at random masks (GRPO).

"MDPO: Overcoming the Training-Inference Divide of Masked Diffusion Language Models" (2025, arXiv 2508.13148), Sections 3.2 and
3.3. A rollout keeps what the model saw and predicted at each step of its decoding; every complete prediction is rewarded, and
the model is trained at the steps where rewards change, on the masks that its decoding leaves and not on random ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tweed.core import random
from tweed.core.token_denoiser import TokenDenoiser, without
from tweed.errors import IncompatibleError, InputError
from tweed.solvers.base import Problem
from tweed.tokens.blockwise import Blockwise

_MASKS = 0x6D647030  # the stream of a seed that random masks are drawn from
Reward = Callable[[Int[Tensor, "n length"]], Float[Tensor, " n"]]
"""Verifies complete answers, a number each."""


class Rollout(NamedTuple):
    """What decodings saw and predicted at each step.

    Attributes:
        states: the tokens before each step, (steps, b, length).
        predictions: with all masks filled, (steps, b, length).
        confidence: of each filled token, (steps, b, length); 0 elsewhere.
        final: the answers, (b, length).
    """

    states: Int[Tensor, "steps b length"]
    predictions: Int[Tensor, "steps b length"]
    confidence: Float[Tensor, "steps b length"]
    final: Int[Tensor, "b length"]


@torch.no_grad()
def rollout(
    denoiser: TokenDenoiser, x: Int[Tensor, "b length"], solver: Blockwise, steps: int, *, seed: int = 0
) -> Rollout:
    """Decodes `x` in `steps` steps, keeping everything; repeat rows for groups, each draws for itself.

    Raises:
        InputError: a threshold, which has no fixed steps, or several blocks, whose predictions are not complete.
    """
    if solver.threshold is not None or solver.block is not None:
        raise InputError(f"solver: {solver} was given; expected one without a threshold and with one block")
    run = Problem(denoiser, tuple(1.0 - i / steps for i in range(steps + 1)), seed=seed)
    states, predictions, sure = [], [], []
    final = x
    for fill in solver.fills(run, x):
        low, high = fill.block
        confidence = torch.zeros(x.shape, dtype=fill.confidence.dtype, device=x.device)
        confidence[:, low:high] = torch.where(
            fill.before[:, low:high] != fill.filled[:, low:high], fill.confidence, 0.0
        )
        states.append(fill.before)
        predictions.append(fill.filled)
        sure.append(confidence)
        final = fill.after
    if not states:
        raise InputError("x: it has no masks; expected something to decode")
    return Rollout(torch.stack(states), torch.stack(predictions), torch.stack(sure), final)


def step_signals(rewards: Float[Tensor, "steps *b"]) -> Float[Tensor, "steps *b"]:
    """`g_s = (R_s - R_(s-1)) + mean(R_(s+1) ... R_S)`, with `R_0 = 0` and `R_S` itself for the mean at the last step.

    The published constant 1 is left out: it cancels in the advantages.
    """
    before = torch.cat((torch.zeros_like(rewards[:1]), rewards[:-1]))
    total = rewards.flip(0).cumsum(0).flip(0) - rewards
    count = torch.arange(len(rewards) - 1, -1, -1, device=rewards.device).clamp_min(1)
    after = total / count.reshape(-1, *(1,) * (rewards.ndim - 1))
    after[-1] = rewards[-1]
    return rewards - before + after


def group_advantages(signals: Float[Tensor, "*n group"], *, eps: float = 1e-4) -> Float[Tensor, "*n group"]:
    """`(g - mean) / (std + eps)` over each group."""
    return (signals - signals.mean(-1, keepdim=True)) / (signals.std(-1, keepdim=True) + eps)


def mdpo_advantages(rewards: Float[Tensor, "steps prompts group"]) -> Float[Tensor, "steps prompts group"]:
    """The advantages of every step, from the rewards of its complete prediction; mean 0 over each group."""
    return group_advantages(step_signals(rewards))


def steps_that_matter(advantages: Float[Tensor, "steps prompts group"], count: int) -> Int[Tensor, "count prompts"]:
    """For each prompt the steps with the largest sums of |advantage| over its group, in order."""
    if not count >= 1:
        raise InputError(f"count: {count} was given; expected at least 1")
    return advantages.abs().sum(-1).topk(min(count, len(advantages)), dim=0).indices.sort(0).values


def over_denoised(rewards: Float[Tensor, "steps b"]) -> Bool[Tensor, " b"]:
    """Which answers were right on the way, and are wrong at the end: what the published curriculum keeps."""
    return (rewards[:-1].amax(0) > rewards[-1]) if len(rewards) > 1 else torch.zeros_like(rewards[0], dtype=torch.bool)


def token_log_probs(
    denoiser: TokenDenoiser, x: Int[Tensor, "n length"], tokens: Int[Tensor, "n length"], temperature: float
) -> Float[Tensor, "n length"]:
    """The log probability of each of `tokens` given what is seen of `x`, at a temperature."""
    process = denoiser.process
    if not hasattr(process, "mask"):
        raise IncompatibleError(f"denoiser: {type(process).__name__} has no mask; expected a MaskedProcess")
    logits = without(denoiser.read(x).float(), process.mask) / temperature  # type: ignore[attr-defined]
    return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


def clipped_loss(
    now: Float[Tensor, "n length"],
    old: Float[Tensor, "n length"],
    reference: Float[Tensor, "n length"] | None,
    advantages: Float[Tensor, " n"],
    masked: Bool[Tensor, "n length"],
    answer: Int[Tensor, " n"],
    *,
    weights: Float[Tensor, "n length"] | None = None,
    clip: float = 0.2,
    kl: float = 0.02,
) -> Float[Tensor, " n"]:
    """The mean over masked tokens of `w [-min(A r, A clip(r)) L / #masked + kl (log p_ref - log p)^2 / 2]`, a row each.

    Args:
        now, old, reference: log probabilities of the tokens under the policy, the one that decoded, and the one to stay near.
        masked: the tokens that count.
        answer: L, the number of tokens to be decoded.
        weights: of the tokens; the confidences, for MDPO.
    """
    ratio = (now - old).exp()
    gain = advantages[:, None]
    surrogate = torch.minimum(gain * ratio, gain * ratio.clamp(1.0 - clip, 1.0 + clip))
    count = masked.sum(1).clamp_min(1)
    each = -surrogate * (answer / count)[:, None]
    if reference is not None and kl:
        each = each + 0.5 * kl * (reference - now).square()
    each = each if weights is None else each * weights
    return (each * masked).sum(1) / count


@dataclass(frozen=True)
class MDPO:
    """The settings, with the published defaults.

    Args:
        group: rollouts of a prompt.
        steps: of a rollout.
        chosen: steps that are trained on.
        temperature: of the rollouts.
        clip, kl: of `clipped_loss`.
    """

    group: int = 8
    steps: int = 128
    chosen: int = 8
    temperature: float = 0.4
    clip: float = 0.2
    kl: float = 0.02

    def __post_init__(self):
        if self.group < 2 or self.steps < 1 or self.chosen < 1 or not self.temperature > 0.0:
            raise InputError(
                f"group, steps, chosen, temperature: {self.group}, {self.steps}, {self.chosen}, {self.temperature} were given; "
                "expected a group of at least 2, and positive numbers (at temperature 0 all of a group are the same)"
            )

    def loss(
        self,
        denoiser: TokenDenoiser,
        reference: TokenDenoiser | None,
        x: Int[Tensor, "prompts length"],
        reward: Reward,
        seed: int,
    ) -> tuple[Tensor, float]:
        """The loss of a batch of prompts, and the mean reward of the answers."""
        rows = x.repeat_interleave(self.group, 0)
        made = rollout(denoiser, rows, Blockwise(temperature=self.temperature), self.steps, seed=seed)
        steps, prompts = len(made.states), len(x)
        rewards = reward(made.predictions.flatten(0, 1)).double().reshape(steps, prompts, self.group)
        advantages = mdpo_advantages(rewards)
        chosen = steps_that_matter(advantages, self.chosen)
        take = chosen[:, :, None].expand(-1, -1, self.group).flatten(1)

        def at(values: Tensor) -> Tensor:
            index = take[..., None].expand(-1, -1, values.shape[-1])
            return values.gather(0, index).flatten(0, 1)

        states, tokens, weights = at(made.states), at(made.predictions), at(made.confidence)
        gain = advantages.flatten(1).gather(0, take).flatten().to(weights.dtype)
        answer = (rows == denoiser.process.mask).sum(1).repeat(len(chosen))  # type: ignore[attr-defined]
        now, old, near = _log_probs(denoiser, reference, states, tokens, self.temperature)
        masked = states == denoiser.process.mask  # type: ignore[attr-defined]
        each = clipped_loss(now, old, near, gain, masked, answer, weights=weights, clip=self.clip, kl=self.kl)
        return each.mean(), rewards[-1].mean().item()


@dataclass(frozen=True)
class RandomMaskGRPO:
    """What MDPO is compared with: advantages of final answers alone, and their likelihood in one step at random masks.

    Shao et al., GRPO (2024), with the one-step likelihood of d1 (Zhao et al., 2025) at masks drawn anew each time.

    Args:
        group, steps, temperature, clip, kl: as for `MDPO`.
        draws: random masks of each answer.
    """

    group: int = 8
    steps: int = 128
    draws: int = 8
    temperature: float = 0.4
    clip: float = 0.2
    kl: float = 0.02

    def loss(
        self,
        denoiser: TokenDenoiser,
        reference: TokenDenoiser | None,
        x: Int[Tensor, "prompts length"],
        reward: Reward,
        seed: int,
    ) -> tuple[Tensor, float]:
        """The loss of a batch of prompts, and the mean reward of the answers."""
        mask = denoiser.process.mask  # type: ignore[attr-defined]
        rows = x.repeat_interleave(self.group, 0)
        final = rollout(denoiser, rows, Blockwise(temperature=self.temperature), self.steps, seed=seed).final
        rewards = reward(final).double().reshape(len(x), self.group)
        gain = group_advantages(rewards).flatten().repeat(self.draws)
        free = (rows == mask).repeat(self.draws, 1)
        tokens = final.repeat(self.draws, 1)
        u = random.uniform(
            (len(tokens), x.shape[1] + 1), random.fold(seed, _MASKS), dtype=torch.float64, device=x.device
        )
        rank = u[:, :-1].masked_fill(~free, 2.0).argsort(1).argsort(1)
        masked = (rank < (u[:, -1:] * free.sum(1, keepdim=True)).ceil()) & free
        states = tokens.masked_fill(masked, mask)
        now, old, near = _log_probs(denoiser, reference, states, tokens, self.temperature)
        each = clipped_loss(now, old, near, gain.to(now.dtype), masked, free.sum(1), clip=self.clip, kl=self.kl)
        return each.mean(), rewards.mean().item()


def _log_probs(
    denoiser: TokenDenoiser, reference: TokenDenoiser | None, x: Tensor, tokens: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    now = token_log_probs(denoiser, x, tokens, temperature)
    with torch.no_grad():
        near = None if reference is None else token_log_probs(reference, x, tokens, temperature)
    # One update a rollout: the policy that decoded is the present one.
    return now, now.detach(), near


def train_policy(
    denoiser: TokenDenoiser,
    method: MDPO | RandomMaskGRPO,
    prompts: Callable[[int], Int[Tensor, "prompts length"]],
    reward: Reward,
    *,
    updates: int,
    lr: float = 7e-7,
    reference: TokenDenoiser | None = None,
    seed: int = 0,
    tell: Callable[[str, float | None], None] | None = None,
) -> list[float]:
    """Trains a denoiser in place, and returns the mean reward of each update's rollouts.

    Args:
        prompts: `prompts(update)`: tokens with the answer masked.
        reward: the verifier.
        lr: of AdamW; the published one is for 8 billion parameters.
        reference: the model to stay near, its weights of its own.
        tell: told of the progress.

    Raises:
        InputError: `updates` is negative.
    """
    if updates < 0:
        raise InputError(f"updates: {updates} was given; expected 0 or more")
    optimizer = torch.optim.AdamW((p for p in denoiser.parameters() if p.requires_grad), lr=lr, weight_decay=0.0)
    history = []
    for update in range(updates):
        loss, mean = method.loss(denoiser, reference, prompts(update), reward, random.fold(seed, update))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        history.append(mean)
        if tell is not None and (update + 1) % 10 == 0:
            tell(f"update {update + 1} of {updates}, reward {sum(history[-10:]) / 10:.3f}", (update + 1) / updates)
    return history
