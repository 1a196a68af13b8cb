"""Gradients: all adjoints against backpropagation, the checkpoint schedule against its optimum, memory against depth."""

import functools
import itertools
import math

import pytest
import torch
from torch import nn

from tweed.errors import InputError
from tweed.solvers.differential import ito_to_stratonovich, odeint, saved_bytes, sdeint
from tweed.solvers.differential.adjoints import repeats, spine, split

TS = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)


class Net(nn.Module):
    """A tanh MLP of (t, y), with outputs (b, n) or (b, n, m)."""

    def __init__(self, n=4, m=None, seed=0, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.m = m

        def matrix(rows, columns):
            return nn.Parameter(torch.randn(rows, columns, generator=generator, dtype=dtype) / math.sqrt(rows))

        self.first, self.second = matrix(n + 1, 16), matrix(16, n * (m or 1))

    def forward(self, t, y):
        out = torch.tanh(torch.cat((y, t.expand(len(y), 1)), 1) @ self.first) @ self.second
        return out if self.m is None else 0.5 * out.reshape(len(y), -1, self.m)


def start(b=3, n=4, dtype=torch.float64):
    return torch.linspace(-1.0, 1.0, b * n, dtype=dtype).reshape(b, n)


def gradient(run, modules, y0):
    """The gradient of a fixed functional of the whole path, for y0 and for all parameters, in one vector."""
    y0 = y0.clone().requires_grad_()
    path = run(y0)
    weights = torch.linspace(-1.0, 2.0, path.numel(), dtype=path.dtype).reshape(path.shape)
    wanted = [y0, *(p for module in modules for p in module.parameters())]
    return torch.cat([g.flatten() for g in torch.autograd.grad((path.sin() * weights).sum(), wanted)])


def gap(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("method", ["euler", "rk4", "dopri5", "reversible_heun"])
@pytest.mark.parametrize("checkpoints", [1, 2, 5, 100, None])
def test_checkpointed_gradients_of_ordinary_equations(method, checkpoints):
    net = Net()

    def run(adjoint, **options):
        return gradient(
            lambda y: odeint(net, y, TS, method=method, step=1 / 40, adjoint=adjoint, **options), [net], start()
        )

    assert gap(run("checkpoint", checkpoints=checkpoints), run("direct")) < 1e-13


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_reversible_gradients_of_ordinary_equations(dtype, bound):
    net = Net(dtype=dtype)
    direct, reversible = (
        gradient(
            lambda y, adjoint=adjoint: odeint(net, y, TS, method="reversible_heun", step=1 / 64, adjoint=adjoint),
            [net],
            start(dtype=dtype),
        )
        for adjoint in ("direct", "reversible")
    )
    assert gap(reversible, direct) < bound


@pytest.mark.parametrize("method", ["tsit5", "dopri5"])
def test_adaptive_gradients(method):
    """Checkpointed and direct ones on the found grid are one; torchdiffeq's agree to the tolerance."""
    net, tolerance = Net(), {"rtol": 1e-8, "atol": 1e-8}
    fine = gradient(lambda y: odeint(net, y, TS, method="rk4", step=1e-3), [net], start())
    found = [
        gradient(lambda y, a=adjoint: odeint(net, y, TS, method=method, adjoint=a, **tolerance), [net], start())
        for adjoint in ("direct", "checkpoint", "backsolve")
    ]
    assert max(gap(g, fine) for g in found) < 1e-5
    if method == "tsit5":
        assert gap(found[1], found[0]) < 1e-13


def stochastic(method, calculus, noise, adjoint, step=1 / 64, **options):
    """The gradient through an equation with noise."""
    drift, diffusion = Net(seed=1), Net(seed=2, m=3 if noise == "general" else None)

    def run(y):
        return sdeint(
            drift,
            diffusion,
            y,
            TS,
            noise=noise,
            calculus=calculus,
            method=method,
            adjoint=adjoint,
            seed=7,
            step=step,
            **options,
        )

    return gradient(run, [drift, diffusion], start())


CASES = [
    ("euler_maruyama", "ito"),
    ("milstein", "ito"),
    ("milstein", "stratonovich"),
    ("heun", "stratonovich"),
    ("midpoint", "stratonovich"),
    ("euler_heun", "stratonovich"),
    ("reversible_heun", "stratonovich"),
]


@pytest.mark.parametrize(("method", "calculus"), CASES)
@pytest.mark.parametrize("noise", ["diagonal", "scalar", "general"])
def test_exact_adjoints_of_stochastic_equations(method, calculus, noise):
    if method == "milstein" and noise == "general":
        pytest.skip("Milstein's method does not take general noise")
    direct = stochastic(method, calculus, noise, "direct")
    assert gap(stochastic(method, calculus, noise, "checkpoint", checkpoints=4), direct) < 1e-13
    if method == "reversible_heun":
        assert gap(stochastic(method, calculus, noise, "reversible"), direct) < 1e-12


def test_the_continuous_adjoint_is_approximate_and_converges():
    """With the midpoint method its gradient is wrong by more than 1e-4 at 64 steps, and less with every halving."""
    gaps = []
    for steps in (16, 64, 256):
        direct = stochastic("midpoint", "stratonovich", "general", "direct", 1 / steps)
        gaps.append(gap(stochastic("midpoint", "stratonovich", "general", "backsolve", 1 / steps), direct))
    assert gaps[1] > 1e-4
    assert gaps[0] > 1.5 * gaps[1] > 2.25 * gaps[2]


@pytest.mark.parametrize("method", ["heun", "midpoint", "rk4"])
def test_the_continuous_adjoint_of_ordinary_equations_has_the_methods_order(method):
    net, gaps = Net(), []
    for steps in (8, 16, 32):
        direct, back = (
            gradient(
                lambda y, a=adjoint, h=1 / steps: odeint(net, y, TS, method=method, step=h, adjoint=a), [net], start()
            )
            for adjoint in ("direct", "backsolve")
        )
        gaps.append(gap(back, direct))
    order = {"heun": 2, "midpoint": 2, "rk4": 4}[method]
    for coarse, fine in itertools.pairwise(gaps):
        assert math.log2(coarse / fine) > order - 0.3


def test_additive_noise_without_a_graph_of_its_own():
    """A constant diffusion, and one whose only dependence is a parameter."""
    net, scale = Net(), nn.Parameter(torch.full((4, 2), 0.3, dtype=torch.float64))
    module = nn.ParameterList([scale])

    def run(adjoint, diffusion, params, wanted):
        return gradient(
            lambda y: sdeint(
                net,
                diffusion,
                y,
                TS,
                noise="additive",
                calculus="ito",
                method="reversible_heun",
                adjoint=adjoint,
                seed=1,
                step=1 / 32,
                params=params,
            ),
            wanted,
            start(),
        )

    constant = torch.full((1, 4, 2), 0.3, dtype=torch.float64)
    every = [*net.parameters(), scale]
    for diffusion, params, wanted in (
        (lambda t, y: constant, None, [net]),
        (lambda t, y: (scale * (1 + t))[None], every, [net, module]),
    ):
        direct = run("direct", diffusion, params, wanted)
        for adjoint in ("reversible", "checkpoint", "backsolve"):
            assert gap(run(adjoint, diffusion, params, wanted), direct) < (2e-2 if adjoint == "backsolve" else 1e-12)


@pytest.mark.parametrize("noise", ["diagonal", "general"])
def test_gradients_through_a_converted_drift(noise):
    """The correction differentiates the diffusion inside the drift; every adjoint differentiates that again."""
    drift, diffusion = Net(seed=1), Net(seed=2, m=3 if noise == "general" else None)
    every = [*drift.parameters(), *diffusion.parameters()]
    converted = ito_to_stratonovich(drift, diffusion, noise)

    def run(adjoint):
        options = {"noise": noise, "calculus": "stratonovich", "method": "reversible_heun", "seed": 0, "step": 1 / 64}
        return gradient(
            lambda y: sdeint(converted, diffusion, y, TS, adjoint=adjoint, params=every, **options),
            [drift, diffusion],
            start(),
        )

    direct = run("direct")
    assert gap(run("reversible"), direct) < 1e-12
    assert gap(run("checkpoint"), direct) < 1e-13
    assert gap(run("backsolve"), direct) < 0.02


@pytest.mark.parametrize("adjoint", ["checkpoint", "reversible", "backsolve"])
def test_a_forgotten_parameter_is_found(adjoint):
    net, weight = Net(), torch.ones(4, dtype=torch.float64, requires_grad=True)
    context = (2.0 * weight).tanh()
    options = {"method": "reversible_heun", "adjoint": adjoint, "step": 0.1}
    for hidden in (weight, context):
        for params in (None, list(net.parameters())):
            with pytest.raises(InputError, match=r"params: .*requires a gradient"):
                odeint(lambda t, y, h=hidden: net(t, y) * h, start(), TS, params=params, **options)

    def f(t, y):
        return net(t, y) * context

    # A computed tensor may be a parameter; its gradient goes on to what made it.
    found = odeint(f, start(), TS, params=[*net.parameters(), context], **options).square().sum()
    direct = odeint(f, start(), TS, **{**options, "adjoint": "direct"}).square().sum()
    ours, theirs = (torch.autograd.grad(v, [weight, net.first], retain_graph=True) for v in (found, direct))
    for a, b in zip(ours, theirs, strict=True):
        assert gap(a, b) < (1e-2 if adjoint == "backsolve" else 1e-12)
    with torch.no_grad():
        assert odeint(f, start(), TS, params=(), **options).shape == (3, 3, 4)


def test_nothing_to_differentiate():
    net = Net().requires_grad_(False)
    path = odeint(net, start(), TS, method="reversible_heun", adjoint="reversible", step=0.1)
    assert not path.requires_grad
    y0 = start().requires_grad_()
    odeint(net, y0, TS, method="reversible_heun", adjoint="reversible", step=0.1).sum().backward()
    assert y0.grad is not None


@functools.lru_cache(None)
def cheapest(steps, checkpoints):
    """The least number of steps made to reverse `steps` steps, by dynamic programming over all schedules."""
    if steps <= 1:
        return 0
    if checkpoints == 1:
        return steps * (steps - 1) // 2
    return min(k + cheapest(steps - k, checkpoints - 1) + cheapest(k, checkpoints) for k in range(1, steps))


def cost(steps, checkpoints):
    if steps <= 1:
        return 0
    if checkpoints == 1:
        return steps * (steps - 1) // 2
    k = split(steps, checkpoints)
    return k + cost(steps - k, checkpoints - 1) + cost(k, checkpoints)


def test_the_checkpoint_schedule_is_optimal():
    for steps in range(1, 60):
        for checkpoints in range(1, 9):
            assert cost(steps, checkpoints) == cheapest(steps, checkpoints), (steps, checkpoints)
    assert repeats(1000, 1000) == 1
    assert repeats(math.comb(9, 4), 5) == 4
    assert spine(100, 1) == [0]
    assert len(spine(100, 7)) == 7
    assert spine(1, 7) == [0]


def test_the_meter_counts_bytes():
    """exp keeps its result, a product both factors, what is kept twice counts once, and all is let go in the end."""
    x = torch.ones(1000, dtype=torch.float64, requires_grad=True)
    with saved_bytes() as meter:
        y = x.exp()
        assert meter.now == 8000
        z = y * y.detach().clone()
        assert meter.now == 16000
        z.sum().backward()
        del y, z
    assert meter.peak == 16000
    assert meter.now == 0


def test_memory_against_depth():
    """Backpropagation keeps what grows with the steps, checkpointing as much as its states, the others nothing more."""

    def peak(adjoint, steps, method="reversible_heun", **options):
        net, y0 = Net(), start(64)
        with saved_bytes() as meter:
            odeint(net, y0, [0.0, 1.0], method=method, step=1 / steps, adjoint=adjoint, **options).sum().backward()
        return meter.peak

    assert peak("direct", 256) > 3.8 * peak("direct", 64) > 3.8 * 3.8 * peak("direct", 16)
    assert peak("reversible", 1024) == peak("reversible", 16)
    assert peak("backsolve", 1024) == peak("backsolve", 16)
    assert peak("checkpoint", 1024, checkpoints=6) <= 1.2 * peak("checkpoint", 64, checkpoints=6)
    assert peak("checkpoint", 1024) < 8.0 * peak("checkpoint", 16)
    assert 20.0 * peak("reversible", 256) < peak("direct", 256)


def test_the_number_of_evaluations():
    """Forward and backward: reversible 2 N, checkpointing with sqrt(2 N) states about 3 N, reversible Heun."""

    class Counted(Net):
        calls = 0

        def forward(self, t, y):
            self.calls += 1
            return super().forward(t, y)

    for adjoint, options, most in (("reversible", {}, 2.1), ("checkpoint", {"checkpoints": 15}, 3.2)):
        net = Counted()
        odeint(
            net, start(), [0.0, 1.0], method="reversible_heun", step=0.01, adjoint=adjoint, **options
        ).sum().backward()
        assert net.calls < 100 * most
