"""What the recipe of Switch-DiT measures without data: the mask, its start, the prior, gates that learn it, and the cost."""

import math
import time
from typing import Any

import torch
from torch import Tensor, nn

import tweed as tw
from tweed.core import random
from tweed.core.denoiser import NetworkDenoiser
from tweed.core.processes import VP
from tweed.core.targets import Noise
from tweed.nets.experts import TimeExperts, chosen
from tweed.recipes._timing import in_turns, least_ratio
from tweed.recipes.report import Row, at_most, check, info, less_than, within
from tweed.training.expert_prior import ExpertPrior, gate_table, jensen_shannon, match, windows

F64 = torch.float64
EXPERTS, ACTIVE, LEVELS = 3, 2, 1000


def off_windows(table: Tensor) -> float:
    """The share of entries of a table of chosen slots that differ from the windows, after the match."""
    prior = windows(len(table), table.shape[1] // EXPERTS, EXPERTS, ACTIVE)
    return (table - prior[:, match(table, prior)]).abs().mean().item()


def dissimilarity(table: Tensor, distance: int) -> float:
    """The share of chosen slots that a level and that at a distance do not have in common: 0 (all) to 1 (none)."""
    changed = (table[distance:] - table[:-distance]).abs().sum(1).mean()
    return (changed / (2 * table[0].sum())).item()


def _experts(seed: int, active: int = ACTIVE) -> TimeExperts:
    layer = TimeExperts(16, EXPERTS, active).double()
    with torch.no_grad():
        for i, p in enumerate(layer.parameters()):
            p.copy_(0.5 * random.normal((1, *p.shape), random.fold(seed, 1), draw=i, dtype=F64)[0])
    return layer


def mask_rows(seed: int) -> list[Row]:
    """The mask against its definition, in float64, with all experts and with some."""
    h, e = (random.normal((20, 6, 16), random.fold(seed, 2 + i), dtype=F64) for i in range(2))
    off = {}
    with torch.no_grad():
        for active in (ACTIVE, EXPERTS):
            layer = _experts(seed, active)
            answers = torch.einsum("moi,bni->bnmo", layer.weight, h) + layer.bias
            p = layer.gate(e[:, :1]).softmax(-1)
            least = p.sort(-1, descending=True).values[..., active - 1 : active]
            off[active] = layer(h, e[:, :1]) - 1 - ((p * (p >= least))[..., None] * answers).sum(2)
        layer = _experts(seed)
        tokens = layer(h, e[:, :1]) - layer(h, e[:, :1].expand(-1, 6, -1))
        others = torch.cat((e[:1], -e[1:]))
        alone = layer(h, e[:, :1])[0] - layer(h, others[:, :1])[0]
    return [
        at_most("mask: off 1 + the two best gates times their experts", off[ACTIVE].abs().max(), 1e-12),
        at_most("... all experts at a time: off the dense mixture", off[EXPERTS].abs().max(), 1e-12),
        at_most("... experts merged by sample: off experts by token", tokens.abs().max(), 1e-12),
        at_most("... a sample, others at other times: change", alone.abs().max(), 1e-12),
    ]


def network(hidden: int, blocks: int, experts: bool, seed: int, zero_init: bool = True) -> nn.Module:
    """The transformer of the digits, plain or with experts."""
    base = {
        "name": "dit", "in_channels": 1, "patch": 2, "hidden": hidden, "depth": blocks, "heads": 4,
        "zero_init": zero_init,
    }  # fmt: skip
    return tw.nets.build({**base, "experts": EXPERTS if experts else 0, "experts_per_time": ACTIVE}, seed)


@torch.no_grad()
def start_rows(hidden: int, blocks: int, seed: int) -> list[Row]:
    """Fresh experts against the plain network, and what they add to its parameters."""
    plain, switched = (network(hidden, blocks, experts, random.fold(seed, 4), False) for experts in (False, True))
    for i, (name, p) in enumerate(plain.named_parameters()):  # blocks write nothing at the start: open them
        p += 0.1 * random.normal((1, *p.shape), random.fold(seed, 5), draw=i)[0]
        switched.get_parameter(name).copy_(p)
    x, t = random.normal((5, 1, 8, 8), random.fold(seed, 6)), torch.linspace(0.0, 1.0, 5)
    sizes = [sum(p.numel() for p in net.parameters()) for net in (switched, plain)]
    return [
        at_most("fresh experts, other weights open: off the plain network", (switched(x, t) - plain(x, t)).abs().max(), 0),
        info("parameters, of plain", sizes[0] / sizes[1], note=f"{sizes[0]} and {sizes[1]}"),
    ]  # fmt: skip


def prior_rows(seed: int) -> list[Row]:
    """The windows, the match of slots in disorder, and the bounds of the divergence."""
    blocks = 4
    prior = windows(LEVELS, blocks, EXPERTS, ACTIVE)
    table = prior[:, random.uniform((prior.shape[1], 1), random.fold(seed, 7))[:, 0].argsort()]
    found = prior[:, match(table, prior)]
    u, v = (random.normal((500, 12), random.fold(seed, 8 + i), dtype=F64).mul(4.0).softmax(1) for i in range(2))
    between = jensen_shannon(u, v)
    one, other = torch.eye(12, dtype=F64)[:2]
    return [
        check("prior: slots at each level", (prior.sum(1) == blocks * ACTIVE).all(), f"{blocks * ACTIVE} of {prior.shape[1]}"),
        at_most("... its columns in disorder: entries off after the match", (table - found).abs().sum(), 0),
        at_most("... divergence then", jensen_shannon(table / table[0].sum(), found / table[0].sum()).max(), 0),
        check("divergence of distributions", between.min() > 0 and between.max() < math.log(2), "0 to log 2", here=between.max()),
        within("... of two without a common slot", jensen_shannon(one, other), math.log(2), 1e-12),
        at_most("... of equal ones", jensen_shannon(u, u).abs().max(), 1e-12),
    ]  # fmt: skip


def alone_rows(seed: int) -> list[Row]:
    """Gates that learn the prior, with no data."""
    config = {"name": "dit", "in_channels": 1, "hidden": 32, "depth": 4, "heads": 2, "time_dim": 64, "experts": EXPERTS}
    denoiser = NetworkDenoiser(tw.nets.build(config, random.fold(seed, 10)), VP(), Noise())
    prior, begun = ExpertPrior(), 0.0
    optimizer = torch.optim.Adam(denoiser.parameters(), 1e-2)
    loss = torch.zeros(())
    for step in range(150):
        t = random.uniform((64, 1), random.fold(seed, 11), draw=step, dtype=F64)[:, 0]
        optimizer.zero_grad()
        loss = prior.divergence(denoiser, t).mean()
        loss.backward()
        optimizer.step()
        begun = begun or loss.item()
    with torch.no_grad():
        table = chosen(gate_table(denoiser), ACTIVE).flatten(1)
    return [
        less_than("gates that learn the prior alone: divergence, against their start", loss.detach(), begun, 0.1),
        at_most("... entries off the windows, share", off_windows(table), 0.03),
    ]


def cost_rows(hidden: int, blocks: int, batch: int, rounds: int, seed: int) -> list[Row]:
    """Times of a step with experts, and of the prior."""
    x = random.normal((batch, 1, 32, 32), random.fold(seed, 12))
    t = random.uniform((batch, 1), random.fold(seed, 13))[:, 0]
    nets = {"plain": network(hidden, blocks, False, 1), "experts": network(hidden, blocks, True, 1)}
    denoiser = NetworkDenoiser(nets["experts"], VP(), Noise())
    runs: dict[str, Any] = {way: lambda net=net: net(x, t).square().mean().backward() for way, net in nets.items()}
    runs["prior"] = lambda: ExpertPrior().divergence(denoiser, t.double()).mean().backward()
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    times = in_turns(runs, rounds, clock=clock)
    text = f"{batch} images of 32x32"
    return [
        info(
            "time of forward and backward with experts, of plain",
            least_ratio(times["experts"], times["plain"]),
            note=text,
        ),
        info("time of the prior, the same for any data: ms", 1e3 * min(times["prior"])),
    ]
