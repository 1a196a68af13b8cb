"""Experts chosen by the time: the mask by its definition, its limits, and what it may depend on."""

import math

import pytest
import torch

from tweed import nets
from tweed.core.random import normal, uniform
from tweed.errors import InputError
from tweed.nets.experts import TimeExperts, chosen, gate_statistics

F64 = torch.float64
DIT = {"name": "dit", "dims": 1, "in_channels": 3, "patch": 1, "hidden": 24, "depth": 3, "heads": 2, "time_dim": 32}
MOE = {**DIT, "experts": 3, "experts_per_time": 2}


def shaken(config, seed=0):
    net = nets.build(config, seed).eval().double()
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter += 0.1 * normal((1, *parameter.shape), 7, draw=i, dtype=F64)[0]
    return net


def opened(features=8, count=5, active=2):
    layer = TimeExperts(features, count, active).double()
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.copy_(0.5 * normal((1, *parameter.shape), 3, draw=i, dtype=F64)[0])
    return layer


def by_definition(layer, h, embedding, active):
    """The mask, expert by expert and token by token."""
    mask = torch.ones_like(h)
    for b in range(h.shape[0]):
        for n in range(h.shape[1]):
            e = embedding[b, n if embedding.shape[1] > 1 else 0]
            p = (layer.gate.weight @ e + layer.gate.bias).softmax(0)
            for j in p.argsort(descending=True)[:active].tolist():
                mask[b, n] += p[j] * (layer.weight[j] @ h[b, n] + layer.bias[j])
    return mask


def inputs(batch=4, n=6, d=3):
    return normal((batch, n, d), 1, dtype=F64), uniform((batch, 1), 2, dtype=F64)[:, 0]


@pytest.mark.parametrize("times", [1, 6])
@pytest.mark.parametrize("active", [1, 2, 5])
def test_the_mask_is_the_weighted_sum_of_the_chosen_experts(active, times):
    layer = opened(active=active)
    h, embedding = normal((3, 6, 8), 1, dtype=F64), normal((3, times, 8), 2, dtype=F64)
    torch.testing.assert_close(layer(h, embedding), by_definition(layer, h, embedding, active), atol=1e-12, rtol=0)


def test_all_experts_are_the_dense_mixture():
    layer = opened(active=5)
    h, embedding = normal((3, 6, 8), 1, dtype=F64), normal((3, 1, 8), 2, dtype=F64)
    answers = torch.einsum("moi,bni->bnmo", layer.weight, h) + layer.bias
    dense = 1 + (layer.probabilities(embedding)[..., None] * answers).sum(2)
    torch.testing.assert_close(layer(h, embedding), dense, atol=1e-12, rtol=0)


def test_gates_are_not_normalised_again():
    layer = opened(count=5, active=2)
    embedding = normal((40, 1, 8), 2, dtype=F64)
    gates, p = layer.gates(embedding), layer.probabilities(embedding)
    assert ((gates > 0).sum(-1) == 2).all()
    torch.testing.assert_close(gates.sum(-1), p.topk(2).values.sum(-1))
    assert (gates.sum(-1) < 1).all()


def test_equal_probabilities_still_choose_as_many():
    assert chosen(torch.full((2, 7), 1 / 7), 3).sum(-1).tolist() == [3.0, 3.0]


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"long_skips": True}])
def test_fresh_experts_leave_the_plain_network_bitwise(options):
    x, t = (v.float() for v in inputs())
    plain = nets.build({**DIT, **options, "zero_init": False}, 3)
    fresh = nets.build({**MOE, **options, "zero_init": False}, 3)
    for name, parameter in plain.named_parameters():  # the plain weights are those of the plain network
        assert torch.equal(parameter, fresh.get_parameter(name))
    for i, (name, parameter) in enumerate(plain.named_parameters()):  # open the gates of the blocks
        parameter += 0.1 * normal((1, *parameter.shape), 7, draw=i)[0]
        fresh.get_parameter(name).copy_(parameter)
    assert torch.equal(plain(x, t), fresh(x, t))
    per_token = t[:, None].expand(4, 6)
    assert torch.equal(plain(x, per_token), fresh(x, per_token))


def test_initialisation_is_of_the_seed_and_gates_are_not_zero():
    one, other = nets.build(MOE, 3), nets.build(MOE, 4)
    assert torch.equal(one.experts[1].gate.weight, nets.build(MOE, 3).experts[1].gate.weight)
    assert not torch.equal(one.experts[1].gate.weight, other.experts[1].gate.weight)
    with torch.no_grad():
        one.experts[0].weight += 1.0
    nets.initialise(one, 3)
    assert not one.experts[0].weight.any()
    assert not one.experts[0].bias.any()
    added = 3 * (3 * 24 * 24 + 3 * 24 + 3 * 24 + 3)
    sizes = [sum(p.numel() for p in nets.build(config).parameters()) for config in (MOE, DIT)]
    assert sizes[0] - sizes[1] == added


@torch.no_grad()
def test_the_block_sees_the_masked_tokens_and_the_rest_goes_round():
    net = shaken({**MOE, "depth": 1})
    x, t = inputs()
    seen = []
    net.blocks[0].register_forward_hook(lambda module, given, made: seen.append((given[0], made)))
    final = []
    net.norm.register_forward_hook(lambda module, given, made: final.append(given[0]))
    net(x, t)
    (masked, made), h = seen[0], net.input(x)
    h = h + (final[0] - made - (h - masked))  # whatever is added to the tokens before the block: the positions
    mask = by_definition(net.experts[0], h, net.activation(net.time(t))[:, None], 2)
    torch.testing.assert_close(masked, mask * h, atol=1e-10, rtol=0)
    torch.testing.assert_close(final[0], made + (1 - mask) * h, atol=1e-10, rtol=0)


@torch.no_grad()
def test_merged_experts_are_the_sparse_ones():
    net = shaken(MOE)
    x, t = inputs()
    torch.testing.assert_close(net(x, t), net(x, t[:, None].expand(4, 6)), atol=1e-10, rtol=0)
    single, half = net.float(), t.float()
    torch.testing.assert_close(
        single(x.float(), half), single(x.float(), half[:, None].expand(4, 6)), atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_a_sample_does_not_feel_the_times_of_others():
    net = shaken(MOE)
    x, t = inputs()
    other = torch.cat((t[:1], t[1:].flip(0) * 0.5))
    torch.testing.assert_close(net(x, t)[0], net(x, other)[0], atol=1e-12, rtol=0)
    assert (net(x, t)[1:] - net(x, other)[1:]).abs().max() > 1e-3


@torch.no_grad()
def test_each_token_has_the_experts_of_its_own_time():
    layer = opened()
    h, embedding = normal((2, 6, 8), 1, dtype=F64), normal((2, 6, 8), 2, dtype=F64)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(layer(h[:, order], embedding[:, order]), layer(h, embedding)[:, order])


@torch.no_grad()
def test_gates_are_of_the_time_and_not_of_the_label():
    net = shaken({**MOE, "num_classes": 4})
    x, t = inputs()
    masks = []
    net.experts[0].register_forward_hook(lambda module, given, made: masks.append(module.gates(given[1])))
    for label in (torch.tensor([0, 1, 2, 3]), torch.tensor([3, 2, 1, 0])):
        net(x, t, label=label)
    assert torch.equal(*masks)
    torch.testing.assert_close(
        masks[0][:, 0], net.gate_probabilities(t)[:, 0] * chosen(net.gate_probabilities(t)[:, 0], 2)
    )


@pytest.mark.parametrize("shape", [(), (5,), (2, 4)])
def test_gate_probabilities_of_any_shape_of_times(shape):
    net = shaken(MOE)
    t = uniform((1, *shape), 5, dtype=F64)[0]
    p = net.gate_probabilities(t)
    assert p.shape == (*shape, 3, 3)
    torch.testing.assert_close(p.sum(-1), torch.ones(*shape, 3, dtype=F64))


def test_at_the_start_only_experts_have_a_gradient_and_gates_follow():
    net = nets.build({**MOE, "zero_init": False}, 1)
    x, t = (v.float() for v in inputs())
    with torch.no_grad():
        for block in net.blocks:  # their gates open
            block.modulation.bias += 1.0
    net(x, t).square().mean().backward()
    assert net.experts[0].weight.grad.any()
    assert not net.experts[0].gate.weight.grad.any()
    net = shaken(MOE)
    net(*inputs()).square().mean().backward()
    assert all(e.gate.weight.grad.any() and e.weight.grad.any() and e.bias.grad.any() for e in net.experts)


@pytest.mark.parametrize("times", [1, 6])
def test_gradients_are_those_of_finite_differences(times):
    layer = opened(features=4, count=3, active=2)
    h = normal((2, 6, 4), 1, dtype=F64).requires_grad_()
    embedding = normal((2, times, 4), 2, dtype=F64).requires_grad_()
    parameters = tuple(layer.parameters())

    def f(h, embedding, *given):
        names = [name for name, _ in layer.named_parameters()]
        return torch.func.functional_call(layer, dict(zip(names, given, strict=True)), (h, embedding))

    assert torch.autograd.gradcheck(f, (h, embedding, *parameters))


def test_experts_that_are_not_chosen_have_no_gradient():
    layer = opened(count=3, active=1)
    embedding = normal((1, 1, 8), 2, dtype=F64)
    layer(normal((1, 6, 8), 1, dtype=F64), embedding).square().sum().backward()
    used = layer.weight.grad.flatten(1).any(1)
    assert used.tolist() == (chosen(layer.probabilities(embedding), 1)[0, 0] > 0).tolist()


def test_checkpointing_gives_the_same_gradients():
    x, t = inputs()
    gradients = []
    for flag in (False, True):
        net = shaken({**MOE, "gradient_checkpointing": flag}).train()
        net(x, t).square().mean().backward()
        gradients.append([p.grad for p in net.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_statistics_count_what_is_chosen():
    p = torch.tensor([[[0.5, 0.3, 0.2]], [[0.1, 0.3, 0.6]]])
    found = gate_statistics(p, 2)
    torch.testing.assert_close(found.load, torch.tensor([[0.5, 1.0, 0.5]]))
    torch.testing.assert_close(found.mean, torch.tensor([[0.3, 0.3, 0.4]]))
    expected = -sum(v * math.log(v) for v in (0.5, 0.3, 0.2, 0.1, 0.3, 0.6)) / 2
    assert found.entropy.item() == pytest.approx(expected, rel=1e-6)
    even = gate_statistics(torch.full((4, 2, 8), 1 / 8), 3)
    torch.testing.assert_close(even.entropy, torch.full((2,), math.log(8)))
    torch.testing.assert_close(even.load.sum(1), torch.full((2,), 3.0))
    sharp = torch.zeros(4, 1, 3)
    sharp[..., 0] = 1.0
    assert gate_statistics(sharp, 1).entropy.item() == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": -1}, "experts, experts_per_time"),
        ({"experts": 2, "experts_per_time": 3}, "experts, experts_per_time"),
        ({"experts": 2, "experts_per_time": 0}, "experts, experts_per_time"),
        ({"experts": 3, "routing": 0.5}, "experts, routing"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(InputError, match=message):
        nets.build({**DIT, **options})


def test_errors_are_named():
    with pytest.raises(InputError, match="active"):
        TimeExperts(4, 3, 4)
    with pytest.raises(InputError, match="experts"):
        nets.build(DIT).gate_probabilities(torch.zeros(2))
    with pytest.raises(InputError, match="probabilities"):
        gate_statistics(torch.zeros(0, 2, 3), 2)
    with pytest.raises(InputError, match="active"):
        gate_statistics(torch.full((1, 2, 3), 1 / 3), 4)
    with pytest.raises(InputError, match="t: shape"):
        shaken(MOE)(inputs()[0], torch.zeros(4, 5, dtype=F64))
