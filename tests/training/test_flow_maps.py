"""Objectives of flow maps: what their minimisers are, where gradients flow, their curricula and their randomness."""

import math

import pytest
import torch

import tweed as tw
from tweed import processes, solvers
from tweed.core import random
from tweed.core.flow_map import ConsistencyModel, GaussianFlow, MeanFlow, TwoTimes
from tweed.core.time import left
from tweed.errors import IncompatibleError, InputError
from tweed.nets import build
from tweed.training import fit, times
from tweed.training.flow_maps import ConsistencyLoss, MeanFlowLoss
from tweed.training.objectives import flow_matching

F64 = torch.float64


def gaussian(process):
    return tw.GaussianDenoiser(torch.tensor([1.0, -0.5]), torch.tensor([0.25, 1.5]), process)


def exact_average(model):
    flow = GaussianFlow(model)

    def average(x, t, s):
        span = left(t - s, x)
        inside = (x - flow(x, t, s)) / torch.where(span == 0.0, 1.0, span)
        return torch.where(span == 0.0, model(x, t).velocity, inside)

    return average


def batch(model, n=64, seed=1):
    return {"x": model.sample(n, seed)}


def network(seed=1):
    net = {"name": "mlp", "dim": 2, "width": 16, "depth": 1, "time_scale": 10.0, "zero_init": False}
    return TwoTimes(build({**net, "vector_dim": TwoTimes.width()}, seed))


# Mean flows


@pytest.mark.parametrize(
    "process", [processes.RectifiedFlow(), processes.VP(), processes.EDM()], ids=lambda p: type(p).__name__
)
def test_the_exact_average_velocity_has_no_loss_under_an_exact_teacher(process):
    model = gaussian(process)
    average = exact_average(model)
    objective = MeanFlowLoss(power=0.0, equal=0.25, teacher=model, times=times.Uniform(low=0.05, high=0.95))
    scale = process.sigma_dot(1.0).item() ** 2
    assert objective(MeanFlow(average, process), batch(model), seed=2).max() < 1e-20 * max(scale, 1.0)
    wrong = MeanFlow(lambda x, t, s: 1.1 * average(x, t, s), process)
    assert objective(wrong, batch(model), seed=2).min() > 1e-8


def test_the_identity_has_the_sign_of_this_convention():
    # With s < t the average over [s, t]; the other sign, or the two times exchanged, would leave a loss.
    model = gaussian(processes.RectifiedFlow())
    average = exact_average(model)
    objective = MeanFlowLoss(power=0.0, equal=0.0, teacher=model)
    given = {"t": torch.full((64,), 0.9, dtype=F64), "s": torch.full((64,), 0.1, dtype=F64)}
    assert objective(MeanFlow(average), batch(model), **given).max() < 1e-20
    instead = MeanFlow(lambda x, t, s: model(x, t).velocity)
    assert objective(instead, batch(model), **given).mean() > 1e-2


def test_trained_alone_its_residual_vanishes_in_the_mean():
    # Without a teacher the path's own velocity stands in: unbiased, so the exact map is a stationary point.
    model, n = gaussian(processes.RectifiedFlow()), 40_000
    theta = torch.ones(2, dtype=F64, requires_grad=True)
    average = exact_average(model)
    flow = MeanFlow(lambda x, t, s: theta * average(x, t, s))
    losses = MeanFlowLoss(power=0.0, equal=0.5)(flow, batch(model, n), seed=3)
    (slope,) = torch.autograd.grad(losses.sum(), theta, retain_graph=True)
    # The standard error of the mean gradient, from eight parts.
    parts = torch.stack([torch.autograd.grad(p.sum(), theta, retain_graph=True)[0] for p in losses.split(n // 8)])
    error = parts.std(0) * 8**0.5
    assert (slope.abs() < 4.5 * error).all()
    off = MeanFlow(lambda x, t, s: (theta + 0.2) * average(x, t, s))
    (tilted,) = torch.autograd.grad(MeanFlowLoss(power=0.0, equal=0.5)(off, batch(model, n), seed=3).sum(), theta)
    assert (tilted > 10.0 * error).all()


def test_equal_times_are_flow_matching():
    flow, model = MeanFlow(network()), gaussian(processes.RectifiedFlow())
    data = {"x": model.sample(32, 1).float(), "noise": random.normal((32, 2), 4)}
    t = torch.linspace(0.05, 0.95, 32, dtype=F64)
    denoiser = tw.NetworkDenoiser(lambda x, t: flow.network(x, t, t), flow.process, tw.targets.Velocity())
    plain = flow_matching()(denoiser, data, t=t)
    ours = MeanFlowLoss(power=0.0)(flow, data, t=t, s=t)
    torch.testing.assert_close(ours, 2.0 * plain, atol=1e-5, rtol=1e-5)


def test_no_gradient_flows_through_the_target():
    model = gaussian(processes.RectifiedFlow())
    average = exact_average(model)
    theta = torch.tensor(0.7, dtype=F64, requires_grad=True)
    given = {"t": torch.full((64,), 0.9, dtype=F64), "s": torch.full((64,), 0.2, dtype=F64)}
    noise = random.normal((64, 2), 4, dtype=F64)
    data = batch(model)
    objective = MeanFlowLoss(power=0.0)
    loss = objective(MeanFlow(lambda x, t, s: theta * average(x, t, s)), data, noise=noise, **given)
    (slope,) = torch.autograd.grad(loss.sum(), theta)
    x = flow_state = model.process.perturb(data["x"], given["t"], noise)
    w = average(flow_state, given["t"], given["s"])
    # (d/dt + u d/dx) by differences, along the path of each sample.
    u, h = noise - data["x"], 1e-6
    ahead, behind = (average(x + d * u, given["t"] + d, given["s"]) for d in (h, -h))
    rate = 0.7 * (ahead - behind) / (2.0 * h)
    error = 0.7 * w - (u - 0.7 * rate)
    torch.testing.assert_close(loss, error.square().sum(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(slope, (2.0 * error * w).sum(), rtol=1e-6, atol=1e-6)


def test_adaptive_weights_divide_by_the_error_itself():
    flow, data = MeanFlow(network()), {"x": random.normal((16, 2), 2)}
    plain = MeanFlowLoss(power=0.0)(flow, data, seed=1)
    for power in (0.5, 1.0):
        weighted = MeanFlowLoss(power=power, offset=1e-3)(flow, data, seed=1)
        torch.testing.assert_close(weighted, plain / (plain + 1e-3) ** power)


def test_pairs_of_times():
    n = 20_000
    sampler = times.LogitNormal(mean=-0.4, std=1.0)
    objective = MeanFlowLoss(times=sampler, equal=0.3)
    drawn = objective.prepare(processes.RectifiedFlow(), {"x": torch.zeros(n, 1)}, seed=5, step=2)
    t, s = drawn["t"], drawn["s"]
    assert (s <= t).all()
    assert (s > 0).all()
    assert (t < 1).all()
    share = (s == t).double().mean().item()
    assert abs(share - 0.3) < 4.5 * math.sqrt(0.3 * 0.7 / n)
    # Of the others the two are independent: t is the larger of two draws, s the smaller.
    apart = s < t
    logit = torch.logit(torch.cat((t[apart], s[apart])))
    count = 2 * int(apart.sum())
    assert abs(logit.mean() + 0.4) < 4.5 / math.sqrt(count)
    gap = torch.logit(t[apart]) - torch.logit(s[apart])
    expected = 2.0 / math.sqrt(math.pi)  # E|X - Y| of two standard normals
    assert abs(gap.mean() - expected) < 4.5 * math.sqrt(2.0 - expected**2) / math.sqrt(count / 2)


@pytest.mark.parametrize("objective", [MeanFlowLoss(), ConsistencyLoss(steps=100)], ids=("mean flow", "consistency"))
def test_micro_batches_see_what_the_whole_batch_does(objective):
    process, x = processes.EDM(), random.normal((12, 2), 1)
    whole = objective.prepare(process, {"x": x}, seed=3, step=7)
    parts = [
        objective.prepare(process, {"x": x[i : i + 4]}, seed=3, step=7, offset=i, total=12) for i in range(0, 12, 4)
    ]
    for name in ("t", "s", "noise"):
        assert torch.equal(whole[name], torch.cat([part[name] for part in parts]))
    later = objective.prepare(process, {"x": x}, seed=3, step=8)
    assert not torch.equal(whole["noise"], later["noise"])


# Consistency


class Exact(ConsistencyModel):
    """The exact consistency function of a Gaussian."""

    def __init__(self, model):
        super().__init__(lambda x, t: x, model.process)
        self.flow = GaussianFlow(model)

    def data(self, x, t, **cond):
        return self.flow(x, t, self.t_min) / self.process.alpha(self.t_min)


@pytest.mark.parametrize("process", [processes.EDM(), processes.VP()], ids=("EDM", "VP"))
def test_distilling_the_exact_map_leaves_the_solvers_error(process):
    # One step of order p errs by h^(p + 1).
    model = gaussian(process)
    time = process.time(0.0).item()
    t = torch.full((64,), time, dtype=F64)
    for solver, order in ((solvers.DDIM(), 1), (solvers.Heun(), 2)):
        sizes = []
        for h in (0.04, 0.02):
            s = process.time(torch.full((64,), h, dtype=F64))  # h further in log-SNR
            gap = (-process.log_snr(t)).exp() - (-process.log_snr(s)).exp()
            objective = ConsistencyLoss(teacher=model, solver=solver, huber=1e-12)
            sizes.append((objective(Exact(model), batch(model), t=t, s=s) * gap).mean().item())
        assert sizes[0] > 1e-9
        assert math.log2(sizes[0] / sizes[1]) == pytest.approx(order + 1, abs=0.2)


def test_consistency_training_is_unbiased_only_as_the_pair_closes():
    # Without a teacher the pair lies on the path of its sample, not on the ODE: the error of the exact map is
    # first-order in the step, and much larger than with a teacher.
    process = processes.EDM()
    model = gaussian(process)
    t = torch.full((4096,), process.time(0.0).item(), dtype=F64)
    s = process.time(torch.full((4096,), 0.02, dtype=F64))
    data = batch(model, 4096)
    alone = ConsistencyLoss(huber=1e-12)(Exact(model), data, t=t, s=s).mean()
    taught = ConsistencyLoss(huber=1e-12, teacher=model)(Exact(model), data, t=t, s=s).mean()
    assert alone > 100.0 * taught


def consistency(seed=1):
    net = {"name": "mlp", "dim": 2, "width": 16, "depth": 1, "time_scale": 2.0, "zero_init": False}
    return ConsistencyModel(build(net, seed), processes.EDM(), event=(2,))


def test_the_loss_is_pseudo_huber_over_the_gap():
    model, objective = consistency(), ConsistencyLoss(steps=100)
    drawn = objective.prepare(model.process, {"x": random.normal((16, 2), 2)}, seed=1, step=0)
    x0, eps, t, s = (drawn[name] for name in ("x", "noise", "t", "s"))
    sigma, lower = 80.0 * t, 80.0 * s
    error = model.data(x0 + left(sigma, x0) * eps, t) - model.data(x0 + left(lower, x0) * eps, s)
    c = 0.00054 * math.sqrt(2.0)
    expected = ((error.double().square().sum(1) + c**2).sqrt() - c) / (sigma - lower)
    torch.testing.assert_close(objective(model, drawn).double(), expected, rtol=1e-3, atol=1e-4)


def test_the_earlier_state_gives_no_gradient():
    model = consistency()
    data = {"x": random.normal((16, 2), 2)}
    objective = ConsistencyLoss(steps=100)
    objective(model, data, seed=1).sum().backward()
    alone = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    frozen = consistency().requires_grad_(False)  # the same weights
    ConsistencyLoss(steps=100, target=frozen)(model, data, seed=1).sum().backward()
    for first, parameter in zip(alone, model.parameters(), strict=True):
        torch.testing.assert_close(first, parameter.grad)
    assert all(p.grad is None for p in frozen.parameters())
    other = ConsistencyLoss(steps=100, target=consistency(2))
    assert not torch.allclose(other(model, data, seed=1), objective(model, data, seed=1))


def test_the_number_of_intervals_doubles():
    objective = ConsistencyLoss(steps=800, first=10, last=1280)
    counts = [objective.intervals(step) for step in range(800)]
    assert [counts[i] for i in range(0, 800, 100)] == [10, 20, 40, 80, 160, 320, 640, 1280]
    assert counts == sorted(counts)
    assert ConsistencyLoss(steps=10, first=10, last=50).intervals(9) == 50
    assert {ConsistencyLoss(first=18, last=18).intervals(step) for step in (0, 999, 5000)} == {18}


def test_pairs_are_neighbours_on_the_grid():
    process = processes.EDM()
    objective = ConsistencyLoss(steps=100, first=7, last=7)
    grid = objective.grid(process, 0)
    ramp = torch.linspace(0.0, 1.0, 8, dtype=F64)
    levels = (0.002 ** (1 / 7) + ramp * (80.0 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    torch.testing.assert_close(80.0 * grid, levels)
    drawn = objective.prepare(process, {"x": torch.zeros(2000, 1)}, seed=1, step=3)
    place = torch.searchsorted(grid, drawn["s"])
    assert torch.equal(grid[place], drawn["s"])
    assert torch.equal(grid[place + 1], drawn["t"])
    assert set(place.tolist()) == set(range(7))


def test_the_density_over_pairs():
    # On a fine grid `log level` is normal, as far as the grid reaches.
    process, n = processes.EDM(), 20_000
    objective = ConsistencyLoss(first=1000, last=1000, mean=-0.5, std=0.8)
    drawn = objective.prepare(process, {"x": torch.zeros(n, 1)}, seed=1, step=0)
    level = (80.0 * drawn["s"]).log()
    assert abs(level.mean() + 0.5) < 0.8 * 4.5 / math.sqrt(n) + 0.01
    assert abs(level.std() - 0.8) < 0.8 * 4.5 / math.sqrt(2 * n) + 0.01
    even = ConsistencyLoss(first=4, last=4, density="uniform").prepare(
        process, {"x": torch.zeros(n, 1)}, seed=1, step=0
    )
    counts = torch.unique(even["s"], return_counts=True)[1].double() / n
    assert (counts - 0.25).abs().max() < 4.5 * math.sqrt(0.25 * 0.75 / n)


@pytest.mark.parametrize(
    "process", [processes.RectifiedFlow(), processes.Cosine(), processes.VE()], ids=lambda p: type(p).__name__
)
def test_other_processes_have_finite_losses(process):
    model = ConsistencyModel(lambda x, t: torch.tanh(x), process)
    losses = ConsistencyLoss(steps=100, teacher=gaussian(process))(model, batch(gaussian(process)), seed=1)
    assert losses.isfinite().all()
    assert (losses >= 0).all()
    losses = MeanFlowLoss(times=times.Uniform(low=0.01, high=0.99))(
        MeanFlow(network(), process), {"x": torch.zeros(8, 2)}
    )
    assert losses.isfinite().all()


def test_conditions_reach_the_network_and_an_empty_batch_is_one():
    heard = {}

    def listens(x, t, s, **cond):
        heard.update(cond)
        return x * 1.0

    data = {"x": torch.ones(3, 2), "label": torch.arange(3)}
    MeanFlowLoss()(MeanFlow(listens), data)
    assert list(heard) == ["label"]
    model = ConsistencyModel(lambda x, t, label: x + label[:, None], processes.EDM())
    assert ConsistencyLoss()(model, data).shape == (3,)
    empty = {"x": torch.zeros(0, 2)}
    assert MeanFlowLoss()(MeanFlow(network()), empty).shape == (0,)
    assert ConsistencyLoss()(consistency(), empty).shape == (0,)


def test_refusals():
    data = {"x": torch.zeros(4, 2)}
    with pytest.raises(InputError, match="t, s"):
        MeanFlowLoss()(MeanFlow(network()), data, t=torch.full((4,), 0.5))
    for loss, model in ((MeanFlowLoss, MeanFlow(network())), (ConsistencyLoss, consistency())):
        with pytest.raises(IncompatibleError, match="teacher"):
            loss(teacher=gaussian(processes.VP()))(model, data)
    with pytest.raises(InputError, match="solver"):
        ConsistencyLoss(solver=solvers.DDPM())
    for options in ({"equal": 1.5}, {"power": -1.0}, {"offset": 0.0}):
        with pytest.raises(InputError):
            MeanFlowLoss(**options)
    for options in ({"first": 0}, {"first": 20, "last": 10}, {"std": 0.0}, {"huber": 0.0}, {"density": "normal"}):
        with pytest.raises(InputError):
            ConsistencyLoss(**options)


def test_fit_trains_a_map_that_jumps_better_than_euler():
    # A Gaussian away from the origin with two scales: one step of Euler with the exact field misses its spread.
    process = processes.RectifiedFlow()
    model = tw.GaussianDenoiser(torch.tensor([0.5, -0.5]), torch.tensor([0.04, 1.0]), process)
    data = model.sample(4096, 1).float()
    result = fit(
        MeanFlow(network(), process, event=(2,)),
        data,
        steps=150,
        objective=MeanFlowLoss(equal=0.5),
        lr=1e-2,
        schedule="cosine",
        ema=0.9,
        device="cpu",
        precision="no",
        progress=False,
    )
    x = random.normal((512, 2), 7)
    exact = model.flow(x, 1.0, 0.0)
    one = (result.denoiser(x, 1.0, 0.0) - exact).square().mean()
    euler = (x - model(x, 1.0).velocity - exact).square().mean()
    assert one < 0.3 * euler
