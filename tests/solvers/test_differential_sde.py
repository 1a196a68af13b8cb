"""Stochastic equations: strong and weak orders, the two calculi, reversal, closed forms, a peer, and what is refused."""

import itertools
import math

import pytest
import torch
from test_differential_adjoints import Net

from tweed.errors import IncompatibleError, InputError, NumericalError
from tweed.solvers.differential import (
    BrownianInterval,
    VirtualBrownianTree,
    ito_to_stratonovich,
    sdeint,
    stratonovich_to_ito,
)
from tweed.solvers.differential.field import Field, Noise
from tweed.solvers.differential.plan import Plan, fixed_grid
from tweed.solvers.differential.steppers import ReversibleHeun

F64 = torch.float64
BOTH = ("milstein", "srk")
STRATONOVICH = ("heun", "midpoint", "euler_heun", "reversible_heun")


def calculus_of(method):
    return "stratonovich" if method in STRATONOVICH else "ito"


def dyadic(shape, levels, seed=0, **options):
    """A path whose grid of 2^levels steps on [0, 1] is divided in advance."""
    grid = torch.linspace(0.0, 1.0, 2**levels + 1, dtype=F64)
    return BrownianInterval(0.0, 1.0, shape, seed, times=grid, dtype=F64, **options)


def slope(errors):
    """The mean order over halvings."""
    return math.log2(errors[0] / errors[-1]) / (len(errors) - 1)


def strong_order(drift, diffusion, y0, reference, method, noise, path, levels=(4, 5, 6, 7), calculus=None):
    """The order of the root mean squared error at time 1, along one Brownian path a sample."""
    errors = []
    for level in levels:
        found = sdeint(
            drift,
            diffusion,
            y0,
            [0.0, 1.0],
            noise=noise,
            calculus=calculus or calculus_of(method),
            method=method,
            brownian=path,
            step=2.0**-level,
        )[-1]
        errors.append((found - reference).square().mean().sqrt().item())
    return slope(errors)


GEOMETRIC = {
    "euler_maruyama": 0.5,
    "milstein": 1.0,
    "heun": 1.0,
    "midpoint": 1.0,
    "euler_heun": 1.0,
    "reversible_heun": 0.5,
}


@pytest.mark.parametrize("noise", ["diagonal", "scalar", "general"])
@pytest.mark.parametrize("method", sorted(GEOMETRIC))
def test_strong_order_on_geometric_brownian_motion(method, noise):
    """dX = a X dt + b X dW, either calculus, against its solution: order 1/2, 1 for the methods that use commuting noise.

    Reversible Heun's bound is 1/2; on this equation it is seen to be at least that.
    """
    if method == "milstein" and noise == "general":
        pytest.skip("Milstein's method does not take general noise")
    a, b, n = 0.3, 0.8, 2000
    channels = {"diagonal": 1, "scalar": 1, "general": 2}[noise]
    path = dyadic((n, channels), 7, seed=1)
    mix = torch.tensor([0.6, 0.8], dtype=F64)
    w = path.increment(0.0, 1.0)
    w = (w @ mix)[:, None] if noise == "general" else w
    for calculus in ("ito", "stratonovich") if method == "milstein" else (calculus_of(method),):
        exact = torch.exp((a - (0.5 * b * b if calculus == "ito" else 0.0)) + b * w)
        order = strong_order(
            lambda t, y: a * y,
            (lambda t, y: b * y[..., None] * mix) if noise == "general" else (lambda t, y: b * y),
            torch.ones(n, 1, dtype=F64),
            exact,
            method,
            noise,
            path,
            calculus=calculus,
        )
        if method == "reversible_heun":
            assert order > 0.4
        else:
            assert order == pytest.approx(GEOMETRIC[method], abs=0.15)


@pytest.mark.parametrize(
    ("method", "expected"), [("euler_maruyama", 1.0), ("heun", 1.0), ("reversible_heun", 1.0), ("srk", 1.5)]
)
def test_strong_order_with_additive_noise(method, expected):
    """A nonlinear drift and noise that depends on time, against a fine solution along the same path."""
    n = 400
    path = dyadic((n, 2), 10, seed=2, area=True)

    def drift(t, y):
        return torch.stack((y[:, 1], torch.sin(3.0 * y[:, 0]) - y[:, 1] + t), 1)

    def diffusion(t, y):
        return (0.7 + 0.3 * t.cos()) * torch.ones_like(y)

    y0 = torch.zeros(n, 2, dtype=F64)
    fine = sdeint(
        drift, diffusion, y0, [0.0, 1.0], noise="additive", calculus="ito", method="srk", brownian=path, step=2.0**-10
    )[-1]
    order = strong_order(drift, diffusion, y0, fine, method, "additive", path, (3, 4, 5, 6), "ito")
    assert order == pytest.approx(expected, abs=0.2)


@pytest.mark.parametrize("method", ["euler_heun", "heun", "midpoint", "reversible_heun"])
def test_strong_order_with_noise_that_does_not_commute(method):
    """Order 1/2: two vector fields whose bracket is not zero, against a fine solution along the same path."""
    n = 1000
    path = dyadic((n, 2), 11, seed=3)

    def drift(t, y):
        return -0.2 * y

    def diffusion(t, y):
        one = torch.stack((torch.ones_like(y[:, 0]), torch.zeros_like(y[:, 0])), 1)
        two = torch.stack((torch.zeros_like(y[:, 0]), y[:, 0]), 1)
        return torch.stack((one, two), 2)

    y0 = torch.zeros(n, 2, dtype=F64)
    fine = sdeint(
        drift,
        diffusion,
        y0,
        [0.0, 1.0],
        noise="general",
        calculus="stratonovich",
        method="heun",
        brownian=path,
        step=2.0**-11,
    )[-1]
    order = strong_order(drift, diffusion, y0, fine, method, "general", path, levels=(3, 4, 5, 6))
    assert order == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("method", ["euler_maruyama", "milstein", "heun", "reversible_heun"])
def test_weak_order_on_geometric_brownian_motion(method):
    """The mean E X_1, whose error falls as h or faster; the exact path of each sample as control variate."""
    a, b, n = 1.0, 0.3, 20_000
    path = dyadic((n, 1), 5, seed=4)
    calculus = calculus_of(method)
    correction = 0.5 * b * b if calculus == "ito" else 0.0
    exact = torch.exp((a - correction) + b * path.increment(0.0, 1.0))
    y0, errors = torch.ones(n, 1, dtype=F64), []
    for level in (2, 3, 4, 5):
        found = sdeint(
            lambda t, y: a * y,
            lambda t, y: b * y,
            y0,
            [0.0, 1.0],
            noise="diagonal",
            calculus=calculus,
            method=method,
            brownian=path,
            step=2.0**-level,
        )[-1]
        errors.append((found - exact).mean().abs().item())
    assert slope(errors) > 0.85


def test_moments_of_an_ornstein_uhlenbeck_process():
    """Mean and variance at two times, from a seed alone, in float32."""
    path = sdeint(
        lambda t, y: -2.0 * y,
        lambda t, y: torch.ones_like(y),
        torch.full((50_000, 1), 1.5),
        [0.0, 0.5, 2.0],
        noise="additive",
        calculus="ito",
        method="srk",
        seed=0,
        step=0.05,
    )
    for i, t in ((1, 0.5), (2, 2.0)):
        assert path[i].mean().item() == pytest.approx(1.5 * math.exp(-2 * t), abs=0.01)
        assert path[i].var().item() == pytest.approx((1 - math.exp(-4 * t)) / 4, rel=0.03)


def test_the_two_calculi_are_converted():
    """An Ito equation and its Stratonovich form end at the same place, and there and back is the identity."""
    n = 8

    def diagonal(t, y):
        return 0.5 + 0.4 * torch.sin(y + t)

    def scalar(t, y):
        return torch.stack((y[:, 1].sin(), y[:, 0] * 0.5), 1)

    def general(t, y):
        return torch.stack((y.sin(), 0.5 * y.flip(1), torch.ones_like(y)), 2)

    def drift(t, y):
        return -y

    y = torch.linspace(-1, 1, 2 * n, dtype=F64).reshape(n, 2)
    t = torch.tensor(0.3, dtype=F64)
    for noise, diffusion in (("diagonal", diagonal), ("scalar", scalar), ("general", general)):
        there = ito_to_stratonovich(drift, diffusion, noise)
        torch.testing.assert_close(stratonovich_to_ito(there, diffusion, noise)(t, y), drift(t, y))
        # The Jacobian in full, sample by sample.
        g = diffusion(t, y)
        jacobian = torch.func.vmap(torch.func.jacrev(lambda at, d=diffusion: d(t, at[None])[0]))(y)
        if noise == "general":
            correction = torch.einsum("bikj,bjk->bi", jacobian, g)
        else:
            correction = torch.einsum("bij,bj->bi", jacobian, g)
        torch.testing.assert_close(there(t, y), drift(t, y) - 0.5 * correction)
        brownian = dyadic((n, {"diagonal": 2, "scalar": 1, "general": 3}[noise]), 8, seed=8)
        ends = [
            sdeint(f, diffusion, y, [0.0, 1.0], noise=noise, calculus=c, method=m, brownian=brownian, step=2.0**-8)[-1]
            for f, c, m in ((drift, "ito", "euler_maruyama"), (there, "stratonovich", "euler_heun"))
        ]
        assert (ends[0] - ends[1]).abs().max() < 0.3
    assert torch.equal(ito_to_stratonovich(drift, diagonal, "additive")(t, y), drift(t, y))


@pytest.mark.parametrize("noise", ["diagonal", "general"])
def test_reversible_heun_comes_back_over_a_thousand_steps(noise):
    """The whole state, with noise: below 1e-10."""
    drift, diffusion = Net(seed=1), Net(seed=2, m=3 if noise == "general" else None)
    path = VirtualBrownianTree(0.0, 1.0, (5, 3 if noise == "general" else 4), 0, tol=5e-4, dtype=F64)
    plan = Plan(
        Field(drift, diffusion, noise),
        ReversibleHeun(),
        *fixed_grid((0.0, 1.0), 1e-3),
        lambda a, b: Noise(path.increment(a, b)),
    )
    with torch.no_grad():
        y0 = torch.linspace(-1, 1, 20, dtype=F64).reshape(5, 4)
        state = plan.start(y0)
        for i in range(plan.steps):
            state = plan.step(i, state)
        assert (state[0] - y0).abs().max() > 0.1
        for i in reversed(range(plan.steps)):
            state = plan.stepper.invert(plan.field, plan.grid[i], plan.grid[i + 1], state, plan.noise_of(i))
    assert max((s - y0).abs().max() for s in state[:2]) < 1e-10


def test_falling_times_go_back_along_the_same_path():
    drift, diffusion = Net(seed=1), Net(seed=2)
    brownian = dyadic((3, 4), 9)
    options = {"noise": "diagonal", "calculus": "stratonovich", "method": "heun", "brownian": brownian, "step": 2.0**-9}
    y0 = torch.linspace(-1, 1, 12, dtype=F64).reshape(3, 4)
    with torch.no_grad():
        end = sdeint(drift, diffusion, y0, [0.0, 1.0], **options)[-1]
        back = sdeint(drift, diffusion, end, [1.0, 0.0], **options)[-1]
    assert (back - y0).abs().max() < 0.01


def test_a_seed_addresses_samples_and_steps_of_any_kind():
    """The same sample in another batch; a batch of one; an empty one; events of two axes; a scalar constant diffusion."""

    def run(y0, **options):
        given = {"noise": "diagonal", "calculus": "ito", "method": "euler_maruyama", "seed": 3, "step": 0.1, **options}
        return sdeint(lambda t, y: -y, lambda t, y: 0.3 * y.cos(), y0, [0.0, 1.0], **given)

    y0 = torch.linspace(-1, 1, 24, dtype=F64).reshape(4, 3, 2)
    whole = run(y0)
    assert whole.shape == (2, 4, 3, 2)
    assert torch.equal(run(y0[:1]), whole[:, :1])
    assert torch.equal(run(y0, seed=3), whole)
    assert not torch.equal(run(y0, seed=4), whole)
    assert run(y0[:0]).shape == (2, 0, 3, 2)
    assert run(y0[:0], noise="scalar").shape == (2, 0, 3, 2)
    scalar = run(torch.zeros(2, 3), noise="scalar")
    torch.testing.assert_close(scalar[1, :, 0], scalar[1, :, 1])
    assert scalar.dtype == torch.float32
    constant = sdeint(
        lambda t, y: -y,
        lambda t, y: y.new_tensor(0.3),
        y0,
        [0, 1],
        noise="additive",
        calculus="ito",
        method="srk",
        seed=0,
    )
    assert constant.shape == (2, 4, 3, 2)
    assert sdeint(
        lambda t, y: -y, lambda t, y: y, y0, [0.5], noise="diagonal", calculus="ito", method="milstein", seed=0
    ).shape == (1, 4, 3, 2)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("ours", "theirs", "calculus"),
    [
        ("euler_maruyama", "euler", "ito"),
        ("milstein", "milstein", "ito"),
        ("midpoint", "midpoint", "stratonovich"),
        ("heun", "heun", "stratonovich"),
        ("euler_heun", "euler_heun", "stratonovich"),
        ("reversible_heun", "reversible_heun", "stratonovich"),
    ],
)
def test_steps_are_those_of_torchsde(ours, theirs, calculus):
    """On the same increments; the diffusion is linear for Milstein's method, whose difference is then the derivative."""
    torchsde = pytest.importorskip("torchsde")
    brownian = dyadic((3, 4), 5)

    class Equation(torch.nn.Module):
        noise_type, sde_type = "diagonal", calculus

        def f(self, t, y):
            return torch.sin(y) - t * y

        def g(self, t, y):
            return 0.4 + 0.2 * (y if ours == "milstein" else torch.cos(y))

    class Increments(torchsde.BaseBrownian):
        dtype, device, shape, levy_area_approximation = F64, torch.device("cpu"), (3, 4), "none"

        def __call__(self, ta, tb=None, return_U=False, return_A=False):
            return brownian.increment(float(ta), float(tb))

        def __repr__(self):
            return "increments"

        def size(self):
            return torch.Size(self.shape)

    equation = Equation()
    y0 = torch.linspace(-1, 1, 12, dtype=F64).reshape(3, 4)
    ts = torch.tensor([0.0, 0.5, 1.0], dtype=F64)
    peer = torchsde.sdeint(equation, y0, ts, bm=Increments(), method=theirs, dt=2.0**-5)
    found = sdeint(
        equation.f,
        equation.g,
        y0,
        ts,
        noise="diagonal",
        calculus=calculus,
        method=ours,
        brownian=brownian,
        step=2.0**-5,
    )
    torch.testing.assert_close(found, peer, rtol=0, atol=1e-12)


GOOD = {"noise": "diagonal", "calculus": "ito", "method": "euler_maruyama", "seed": 0, "step": 0.1}


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"calculus": "stratonovich"}, IncompatibleError, "euler_maruyama.*stratonovich"),
        ({"method": "heun"}, IncompatibleError, "heun.*ito"),
        ({"method": "reversible_heun"}, IncompatibleError, "reversible_heun.*ito"),
        ({"method": "srk"}, IncompatibleError, "srk.*diagonal"),
        ({"method": "milstein", "noise": "general"}, IncompatibleError, "milstein.*general"),
        ({"adjoint": "backsolve"}, IncompatibleError, "backsolve"),
        ({"adjoint": "reversible"}, IncompatibleError, "reversible"),
        ({"method": "leapfrog"}, InputError, "method"),
        ({"noise": "coloured"}, InputError, "noise"),
        ({"calculus": "marcus"}, InputError, "calculus"),
        ({"seed": None}, InputError, "brownian, seed"),
        ({"brownian": dyadic((3, 2), 2)}, InputError, "brownian, seed"),
        ({"seed": None, "brownian": dyadic((3, 5), 2)}, IncompatibleError, "brownian"),
        (
            {"seed": None, "brownian": dyadic((3, 2), 2), "noise": "additive", "method": "srk"},
            IncompatibleError,
            "area",
        ),
        ({"seed": None, "brownian": BrownianInterval(0.0, 0.5, (3, 2), 0)}, InputError, "t: 0.6"),
        ({"step": -1.0}, InputError, "step"),
        ({"noise": "general"}, InputError, "diffusion"),
    ],
)
def test_what_does_not_fit_is_refused(options, error, match):
    y0 = torch.zeros(3, 2, dtype=F64)
    with pytest.raises(error, match=match):
        sdeint(lambda t, y: -y, lambda t, y: torch.ones_like(y).sum(), y0, [0.0, 1.0], **{**GOOD, **options})


def test_an_explosion_is_named():
    with pytest.raises(NumericalError, match="t = "):
        sdeint(lambda t, y: y**3, lambda t, y: y, torch.full((1, 1), 30.0), [0.0, 1.0], **GOOD)


def test_every_step_is_drawn_once_on_its_own():
    """Increments of the default path over the grid are independent: the quadratic variation is that of Brownian motion."""
    total = sdeint(
        lambda t, y: torch.zeros_like(y),
        lambda t, y: torch.ones_like(y),
        torch.zeros(2000, 1, dtype=F64),
        torch.linspace(0.0, 1.0, 101, dtype=F64),
        noise="additive",
        calculus="ito",
        method="euler_maruyama",
        seed=5,
    )
    steps = [b - a for a, b in itertools.pairwise(total)]
    variation = torch.stack(steps).square().sum(0)
    assert variation.mean().item() == pytest.approx(1.0, abs=0.02)
    assert variation.std().item() == pytest.approx(math.sqrt(2 / 100), rel=0.1)
