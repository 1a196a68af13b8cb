"""The diffusion prior of experts: windows, the match, the divergence, and the objective around another."""

import math

import pytest
import torch

import tweed as tw
from tweed.core import processes, random, targets
from tweed.errors import IncompatibleError, InputError
from tweed.nets.experts import chosen
from tweed.training import DenoisingLoss, fit, times
from tweed.training.config import TrainConfig
from tweed.training.expert_prior import (
    ExpertPrior,
    gate_probabilities,
    gate_table,
    jensen_shannon,
    match,
    windows,
)
from tweed.training.plain import to_config

F64 = torch.float64
DIT = {"name": "dit", "dims": 1, "in_channels": 2, "patch": 1, "hidden": 16, "depth": 4, "heads": 2, "time_dim": 32}
MOE = {**DIT, "experts": 3, "experts_per_time": 2}
X = random.normal((8, 4, 2), 1)


def model(config=MOE, seed=0, process=None, **options):
    network = tw.nets.build(config, seed)
    return tw.NetworkDenoiser(network, process or processes.VP(), targets.Noise(), event=(4, 2), **options)


def slots(depth, experts, levels, active):
    """A table that equals the prior when slot (block, expert) has column expert * depth + block."""
    order = torch.arange(depth * experts).reshape(experts, depth).mT.flatten()
    return windows(levels, depth, experts, active)[:, order]


@pytest.mark.parametrize(("depth", "experts", "active"), [(4, 3, 2), (5, 3, 1), (28, 3, 2), (3, 4, 4), (7, 6, 5)])
def test_the_prior_has_its_share_of_slots_at_every_level(depth, experts, active):
    prior = windows(1000, depth, experts, active)
    assert prior.shape == (1000, depth * experts)
    assert (prior.sum(1) == depth * active).all()
    assert prior[0, : depth * active].all()
    assert prior[-1, depth * (experts - active) :].all()
    # It can be met: every block then has `active` experts at every level.
    table = slots(depth, experts, 1000, active).unflatten(1, (depth, experts))
    assert (table.sum(2) == active).all()


def test_a_permutation_of_the_columns_is_found():
    prior = windows(1000, 4, 3, 2)
    for seed in range(5):
        order = random.uniform((12, 1), seed)[:, 0].argsort()
        table = prior[:, order]
        found = match(table, prior)
        assert sorted(found.tolist()) == list(range(12))
        assert (table - prior[:, found]).abs().sum() == 0
        assert jensen_shannon(table / 8, prior[:, found] / 8).abs().max() == 0


def test_the_match_is_exact_in_autocast():
    prior = windows(1000, 7, 3, 2)
    table = prior[:, random.uniform((21, 1), 9)[:, 0].argsort()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = match(table, prior)
    assert (table - prior[:, found]).abs().sum() == 0


def test_autocast_trains():
    denoiser, prior = model(), ExpertPrior(levels=200)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = prior(denoiser, {"x": X}, seed=1)
    rough.mean().backward()
    torch.testing.assert_close(rough.float(), prior(denoiser, {"x": X}, seed=1), rtol=0.05, atol=0.02)
    assert all(e.gate.weight.grad.isfinite().all() for e in denoiser.network.experts)


def test_the_match_is_the_best_of_all():
    from itertools import permutations

    table = (random.uniform((30, 5), 3) < 0.5).float()
    prior = windows(30, 5, 2, 1)[:, :5]
    costs = {order: (table - prior[:, list(order)]).abs().sum().item() for order in permutations(range(5))}
    found = match(table, prior)
    assert costs[tuple(found.tolist())] == min(costs.values())
    assert len(set(costs.values())) > 1


class TestDivergence:
    def test_bounds_and_symmetry(self):
        u, v = (random.normal((200, 12), s, dtype=F64).mul(3.0).softmax(1) for s in (1, 2))
        found = jensen_shannon(u, v)
        assert (found > 0).all()
        assert (found < math.log(2)).all()
        torch.testing.assert_close(found, jensen_shannon(v, u))
        assert jensen_shannon(u, u).abs().max() < 1e-15

    def test_closed_forms(self):
        one, other = torch.eye(4, dtype=F64)[:2]
        assert jensen_shannon(one, other).item() == pytest.approx(math.log(2))
        # The entropy of the middle, less the mean of the entropies.
        u, v = torch.tensor([1.0, 0.0], dtype=F64), torch.tensor([0.5, 0.5], dtype=F64)
        entropy_of_middle = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
        assert jensen_shannon(u, v).item() == pytest.approx(entropy_of_middle - 0.5 * math.log(2))

    def test_its_gradient(self):
        logits = random.normal((3, 12), 5, dtype=F64).requires_grad_()
        v = windows(3, 4, 3, 2).double() / 8
        assert torch.autograd.gradcheck(lambda z: jensen_shannon(z.softmax(1), v), (logits,))
        extreme = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)  # probabilities of exactly zero
        jensen_shannon(extreme.softmax(1), torch.tensor([[0.0, 0.5, 0.5]])).sum().backward()
        assert extreme.grad.isfinite().all()

    def test_it_is_zero_for_gates_that_are_the_prior(self):
        denoiser = model()
        table = slots(4, 3, 1000, 2).unflatten(1, (4, 3)) / 2
        denoiser.network.gate_probabilities = lambda t: table[(t * 1000).long().clamp(0, 999)]
        t = torch.linspace(0.0, 1.0, 101, dtype=F64)
        assert ExpertPrior().divergence(denoiser, t).abs().max() < 1e-6
        backwards = ExpertPrior().divergence(denoiser, t.flip(0))
        torch.testing.assert_close(backwards, ExpertPrior().divergence(denoiser, t).flip(0))
        # Windows that slide the other way are not, whatever the order of the slots.
        table = table.flip(0)
        assert ExpertPrior().divergence(denoiser, t).mean() > 0.02

    def test_even_gates_are_as_far_as_the_formula_says(self):
        denoiser = model()
        for experts in denoiser.network.experts:
            torch.nn.init.zeros_(experts.gate.weight)
            torch.nn.init.zeros_(experts.gate.bias)
        u, v = torch.full((12,), 1 / 12, dtype=F64), torch.tensor([1 / 8] * 8 + [0.0] * 4, dtype=F64)
        t = torch.tensor([0.1, 0.5], dtype=F64)
        expected = jensen_shannon(u, v).item()
        assert ExpertPrior().divergence(denoiser, t).tolist() == pytest.approx([expected] * 2, rel=1e-5)


@pytest.mark.parametrize("time", ["time", "log_snr", "c_noise"])
def test_gates_see_the_time_that_the_network_is_told(time):
    denoiser = model(time=time)
    t = torch.tensor([0.1, 0.4, 0.9], dtype=F64)
    seen = []
    denoiser.network.experts[2].register_forward_hook(
        lambda module, given, made: seen.append(module.probabilities(given[1]))
    )
    denoiser(X[:3], t)
    torch.testing.assert_close(gate_probabilities(denoiser, t)[:, 2], seen[0][:, 0])
    assert gate_table(denoiser, 50).isfinite().all()


def test_an_index_is_told_too():
    process = processes.FromBetas(torch.linspace(1e-4, 0.02, 1000).tolist())
    denoiser = model(process=process, time="index")
    t = torch.tensor([0.1, 0.9], dtype=F64)
    torch.testing.assert_close(
        gate_probabilities(denoiser, t), denoiser.network.gate_probabilities((t * 1000 - 1).float())
    )


def test_the_loss_is_that_of_the_inner_objective_and_the_divergence():
    denoiser, inner = model(), DenoisingLoss(times=times.LogitNormal())
    prior = ExpertPrior(inner, weight=0.7)
    batch = prior.prepare(denoiser.process, {"x": X}, seed=3, step=2)
    assert torch.equal(batch["t"], inner.prepare(denoiser.process, {"x": X}, seed=3, step=2)["t"])
    expected = inner(denoiser, {"x": X}, seed=3, step=2) + 0.7 * prior.divergence(denoiser, batch["t"])
    torch.testing.assert_close(prior(denoiser, {"x": X}, seed=3, step=2), expected)
    torch.testing.assert_close(prior(denoiser, batch, seed=9, step=9), expected)
    torch.testing.assert_close(ExpertPrior(inner, 0.0)(denoiser, {"x": X}, seed=3), inner(denoiser, {"x": X}, seed=3))


def test_a_slice_of_a_batch_has_its_losses_in_the_whole():
    denoiser, prior = model(), ExpertPrior(levels=200)
    batch = prior.prepare(denoiser.process, {"x": X}, seed=1, step=2)
    whole = prior(denoiser, batch)
    torch.testing.assert_close(prior(denoiser, {k: v[5:] for k, v in batch.items()}), whole[5:])
    other = prior.prepare(denoiser.process, {"x": X[5:]}, seed=1, step=2, offset=5, total=8)
    torch.testing.assert_close(prior(denoiser, other), whole[5:])
    assert prior(denoiser, {"x": X[:0]}).shape == (0,)


def test_a_time_a_token_counts_by_its_mean():
    denoiser, prior = model(), ExpertPrior(levels=100)
    t = random.uniform((3, 4), 2, dtype=F64)
    each = prior.divergence(denoiser, t.flatten()).reshape(3, 4)
    torch.testing.assert_close(prior.divergence(denoiser, t), each.mean(1))
    assert prior(denoiser, {"x": X[:3], "t": t, "noise": X[:3]}).shape == (3,)


def test_the_divergence_teaches_gates_and_the_embedding_and_nothing_else():
    denoiser = model()
    ExpertPrior().divergence(denoiser, torch.linspace(0.1, 0.9, 5, dtype=F64)).sum().backward()
    taught = {name for name, p in denoiser.network.named_parameters() if p.grad is not None and p.grad.any()}
    assert taught == {
        name for name, _ in denoiser.network.named_parameters() if ".gate." in name or name.startswith("time.")
    }


def test_training_lowers_the_divergence_and_micro_batches_do_not_matter():
    t = torch.linspace(0.01, 0.99, 99, dtype=F64)
    data = random.normal((64, 4, 2), 4)
    ends, weights = {}, []
    for weight, micro in ((0.0, None), (1.0, None), (1.0, 16)):
        found = fit(
            model({**MOE, "depth": 2}), data, steps=30, objective=ExpertPrior(weight=weight, levels=200), batch_size=32, lr=1e-2,
            micro_batch=micro, ema=None, progress=False, device="cpu",
        ).denoiser  # fmt: skip
        ends[weight, micro] = ExpertPrior(levels=200).divergence(found, t).mean().item()
        weights.append(found.network.experts[0].gate.weight.detach())
    assert ends[1.0, None] < 0.5 * ends[0.0, None]
    torch.testing.assert_close(weights[1], weights[2], atol=1e-3, rtol=1e-3)


def test_the_chosen_experts_come_to_be_those_of_the_prior():
    # The divergence alone, with no tokens: its minimum is the window, block by block.
    denoiser, prior = model({**MOE, "hidden": 32, "time_dim": 64}), ExpertPrior()
    optimizer = torch.optim.Adam(denoiser.parameters(), 1e-2)
    for step in range(150):
        optimizer.zero_grad()
        prior.divergence(denoiser, random.uniform((64, 1), 5, draw=step, dtype=F64)[:, 0]).mean().backward()
        optimizer.step()
    with torch.no_grad():
        table = chosen(gate_table(denoiser), 2).flatten(1)
    wanted = windows(1000, 4, 3, 2)
    assert (table - wanted[:, match(table, wanted)]).abs().mean().item() < 0.05


def test_a_learned_target_has_experts_too():
    network = tw.nets.build(MOE)
    learned = tw.LearnedK(network, processes.VP(), event=(4, 2))
    t = torch.tensor([0.2, 0.7], dtype=F64)
    expected = ExpertPrior().divergence(model(), t)
    torch.testing.assert_close(ExpertPrior().divergence(learned, t), expected)


def test_by_configuration():
    table = {
        "data": {"name": "Digits"},
        "network": {"name": "dit", "in_channels": 1, "hidden": 16, "depth": 2, "heads": 2, "experts": 3},
        "process": "VP",
        "target": "Noise",
        "objective": {"name": "ExpertPrior", "weight": 0.5, "objective": {"name": "DenoisingLoss", "loss": "huber"}},
        "optimisation": {"steps": 1},
    }
    config = TrainConfig.from_dict(table)
    assert config.objective == ExpertPrior(DenoisingLoss(loss="huber"), weight=0.5)
    assert to_config(config.objective)["objective"]["loss"] == "huber"
    assert TrainConfig.from_dict({**table, "objective": to_config(config.objective)}).objective == config.objective


@pytest.mark.parametrize("options", [{"weight": -1.0}, {"levels": 1}, {"power": 0.5}])
def test_options_out_of_range(options):
    with pytest.raises(InputError, match="weight, levels, power"):
        ExpertPrior(**options)


def test_denoisers_without_experts_are_named():
    with pytest.raises(IncompatibleError, match="no experts"):
        ExpertPrior()(model(DIT), {"x": X})
    with pytest.raises(IncompatibleError, match="no experts"):
        ExpertPrior()(tw.NetworkDenoiser(lambda x, t: x, processes.VP(), targets.Noise()), {"x": X})
    exact = tw.GaussianDenoiser(torch.zeros(2), 1.0, processes.VP())
    with pytest.raises(IncompatibleError, match="GaussianDenoiser was given"):
        ExpertPrior().divergence(exact, torch.tensor([0.5]))
