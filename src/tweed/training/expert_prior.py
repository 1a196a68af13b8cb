"""The diffusion prior: near noise levels choose the same experts, distant ones others.

Park et al., "Switch Diffusion Transformer: Synergizing Denoising Tasks with Sparse Mixture-of-Experts" (ECCV 2024, arXiv
2403.09176), for networks with `tweed.nets.experts`. All M experts of all B blocks are slots in a row. The prior of a time
is a window of `B k` of the `B M` slots, which slides with the time as in denoising task routing. Slots have no order: the
columns of the prior go to those slots that are chosen at the most of the same times, by the Hungarian method.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tweed.core.denoiser import Denoiser, NetworkDenoiser
from tweed.core.learned_target import LearnedK
from tweed.errors import IncompatibleError, InputError
from tweed.nets.experts import chosen
from tweed.nets.routing import ChannelRouting
from tweed.training import objectives
from tweed.training.objectives import Batch, DenoisingLoss, Objective


def windows(levels: int, depth: int, experts: int, active: int, power: float = 4.0) -> Float[Tensor, "levels slots"]:
    """The prior: `depth active` slots of `depth experts` at each of `levels` times, from data to noise; ones and zeros."""
    t = torch.arange(levels, dtype=torch.float64) / (levels - 1)
    return ChannelRouting(depth * experts, active / experts, power)(t).float()


@torch.no_grad()
def match(table: Float[Tensor, "levels slots"], prior: Float[Tensor, "levels slots"]) -> Int[Tensor, " slots"]:
    """The column of `prior` for each slot of a table of zeros and ones, such that they differ in the fewest entries.

    `sum_t |table[t, i] - prior[t, j]|` is minimised over assignments j of i, on the CPU.
    """
    from scipy.optimize import linear_sum_assignment

    # For zeros and ones |a - b| = a + b - 2 a b; in float64, which autocast leaves alone.
    a, b = table.double(), prior.double()
    cost = a.sum(0)[:, None] + b.sum(0) - 2.0 * a.mT @ b
    return torch.as_tensor(linear_sum_assignment(cost.cpu().numpy())[1], device=table.device)


def jensen_shannon(u: Float[Tensor, "*b n"], v: Float[Tensor, "*b n"]) -> Float[Tensor, "*b"]:
    """`KL(u | m) / 2 + KL(v | m) / 2`, m = (u + v) / 2, of probabilities: from 0, where they are equal, to log 2."""
    tiny = torch.finfo(u.dtype).tiny
    middle = (0.5 * (u + v)).clamp_min(tiny).log()
    each = [p * (p.clamp_min(tiny).log() - middle) for p in (u, v)]  # clamped: 0 log 0 = 0, its gradient finite
    return 0.5 * (each[0] + each[1]).sum(-1)


def expert_network(denoiser: Denoiser) -> NetworkDenoiser:
    """The part of a denoiser that tells a network with experts the time.

    Raises:
        IncompatibleError: there is none, or its network has no experts.
    """
    inner = denoiser.inner if isinstance(denoiser, LearnedK) else denoiser
    if not isinstance(inner, NetworkDenoiser):
        raise IncompatibleError(
            f"denoiser: {type(denoiser).__name__} was given; expected a NetworkDenoiser or LearnedK"
        )
    if not len(getattr(inner.network, "experts", ())):
        raise IncompatibleError(
            f"denoiser: its network {type(inner.network).__name__} has no experts; expected a DiT with the option 'experts'"
        )
    return inner


def gate_probabilities(denoiser: Denoiser, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b depth m"]:
    """The probabilities of all experts at times of the process, mapped to the network's as the denoiser does.

    Raises:
        IncompatibleError: see `expert_network`.
    """
    inner = expert_network(denoiser)
    return inner.network.gate_probabilities(inner.time_input(t, t))  # type: ignore[operator]


def gate_table(denoiser: Denoiser, levels: int = 1000) -> Float[Tensor, "levels depth m"]:
    """`gate_probabilities` in the middles of `levels` equal parts of the time, from data to noise."""
    t = (torch.arange(levels, dtype=torch.float64) + 0.5) / levels
    return gate_probabilities(denoiser, t.to(denoiser.device))


@dataclass(frozen=True)
class ExpertPrior:
    """An objective with the prior added: `loss + weight JSD(u, v)` of each sample.

    `u` are the probabilities of all slots at the sample's time, over the number of blocks; `v` is even on the window of that
    time, its columns matched to the slots as they are chosen now over all levels. The match has no gradient and draws
    nothing: ties are broken by the order of the slots, micro-batches and processes agree. It waits for the device once a
    loss. To validate, take the inner objective.

    The divergence is 0 only where each block has `active` experts of probability 1 / active each.

    Args:
        objective: what is trained for.
        weight: of the divergence (1 as published).
        levels: into which the time is divided, at least 2 (1000 as published).
        power: of the windows, see `ChannelRouting`.

    Raises:
        InputError: an option is out of its range.
        IncompatibleError: (on use) the denoiser's network has no experts.
    """

    objective: Objective = field(default_factory=DenoisingLoss)
    weight: float = 1.0
    levels: int = 1000
    power: float = 4.0

    def __post_init__(self):
        if not self.weight >= 0.0 or self.levels < 2 or not self.power >= 1.0:
            raise InputError(
                f"weight, levels, power: {self.weight}, {self.levels}, {self.power} were given; expected at least 0, 2, 1"
            )

    def prepare(self, process, batch, *, seed, step, offset=0, total=None):
        """The batch as the inner objective prepares it."""
        return self.objective.prepare(process, batch, seed=seed, step=step, offset=offset, total=total)

    def divergence(self, denoiser: Denoiser, t: Float[Tensor, "b *length"]) -> Float[Tensor, " b"]:
        """The divergence at times of the process, shape (b,): the mean over the times of a sample that has several."""
        active: int = expert_network(denoiser).network.experts_per_time  # type: ignore[union-attr]
        with torch.no_grad():
            table = gate_table(denoiser, self.levels)
            _, depth, experts = table.shape
            prior = windows(self.levels, depth, experts, active, self.power).to(table)
            prior = prior[:, match(chosen(table, active).flatten(1), prior)]
            wanted = prior[(t * self.levels).long().clamp(0, self.levels - 1)] / (depth * active)
        found = jensen_shannon(gate_probabilities(denoiser, t).flatten(-2) / depth, wanted)
        return found.flatten(1).mean(1) if found.ndim > 1 else found

    def __call__(self, denoiser: Denoiser, batch: Batch, *, seed: int = 0, step: int = 0) -> Float[Tensor, " b"]:
        """The loss of each sample, shape (b,)."""
        batch = self.prepare(denoiser.process, batch, seed=seed, step=step)
        return self.objective(denoiser, batch, seed=seed, step=step) + self.weight * self.divergence(
            denoiser, batch["t"]
        )


# Configurations name objectives by this table.
objectives.BY_NAME[ExpertPrior.__name__] = ExpertPrior
