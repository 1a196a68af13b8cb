"""Ordinary equations: order conditions, measured orders, tolerances, a peer, reversal, and what is refused."""

import functools
import itertools
import math

import pytest
import torch
import torchdiffeq

from tweed.errors import IncompatibleError, InputError, NumericalError
from tweed.solvers.differential import PIDController, odeint
from tweed.solvers.differential.controller import adaptive_grid
from tweed.solvers.differential.field import Field
from tweed.solvers.differential.plan import Plan, fixed_grid
from tweed.solvers.differential.steppers import ReversibleHeun
from tweed.solvers.differential.tableaus import EXPLICIT, PAIRS

ORDERS = {name: tableau.order for name, tableau in EXPLICIT.items()} | {"reversible_heun": 2}


def pendulum(t, y):
    """A nonlinear, time-dependent field on (b, 2)."""
    angle, speed = y.unbind(-1)
    return torch.stack((speed, -angle.sin() + 0.3 * (2.0 * t).cos()), -1)


def starts(b=3, dtype=torch.float64):
    return torch.linspace(-1.5, 2.0, 2 * b, dtype=dtype).reshape(b, 2)


@functools.lru_cache(None)
def reference_path():
    """Times, starts, and a solution to round-off."""
    ts = torch.tensor([0.0, 0.3, 2.0, 5.0])
    return ts, starts(), odeint(pendulum, starts(), ts, method="rk4", step=2.0**-9)


@functools.lru_cache(None)
def reference_end():
    return odeint(pendulum, starts(), [0.0, 2.0], method="rk4", step=2.0**-10)[-1]


def trees(order):
    """Butcher's conditions up to an order, as functions of (a, b, c) with their right sides."""
    rows = [
        (1, lambda a, b, c: b.sum(), 1),
        (2, lambda a, b, c: b @ c, 1 / 2),
        (3, lambda a, b, c: b @ c**2, 1 / 3),
        (3, lambda a, b, c: b @ a @ c, 1 / 6),
        (4, lambda a, b, c: b @ c**3, 1 / 4),
        (4, lambda a, b, c: (b * c) @ a @ c, 1 / 8),
        (4, lambda a, b, c: b @ a @ c**2, 1 / 12),
        (4, lambda a, b, c: b @ a @ a @ c, 1 / 24),
        (5, lambda a, b, c: b @ c**4, 1 / 5),
        (5, lambda a, b, c: (b * c**2) @ a @ c, 1 / 10),
        (5, lambda a, b, c: b @ (a @ c) ** 2, 1 / 20),
        (5, lambda a, b, c: (b * c) @ a @ c**2, 1 / 15),
        (5, lambda a, b, c: b @ a @ c**3, 1 / 20),
        (5, lambda a, b, c: (b * c) @ a @ a @ c, 1 / 30),
        (5, lambda a, b, c: b @ a @ (c * (a @ c)), 1 / 40),
        (5, lambda a, b, c: b @ a @ a @ c**2, 1 / 60),
        (5, lambda a, b, c: b @ a @ a @ a @ c, 1 / 120),
    ]
    return [(condition, value) for number, condition, value in rows if number <= order]


@pytest.mark.parametrize("method", sorted(PAIRS))
def test_pairs_meet_the_order_conditions(method):
    """The weights to the method's order; those of the companion, weights minus error, to one order less."""
    tableau, error = PAIRS[method]
    m = len(tableau.c)
    a = torch.zeros(m + 1, m + 1, dtype=torch.float64)
    for j, row in enumerate((*tableau.a, tableau.b)):
        a[j, : len(row)] = torch.tensor(row, dtype=torch.float64)
    c = torch.tensor((*tableau.c, 1.0), dtype=torch.float64)
    b = torch.tensor((*tableau.b, 0.0), dtype=torch.float64)
    torch.testing.assert_close(a.sum(1), c, rtol=0, atol=1e-13)
    for condition, value in trees(tableau.order):
        assert condition(a, b, c).item() == pytest.approx(value, abs=1e-13)
    companion = b - torch.tensor(error, dtype=torch.float64)
    for condition, value in trees(tableau.order - 1):
        assert condition(a, companion, c).item() == pytest.approx(value, abs=1e-12)
    assert any(abs(condition(a, companion, c).item() - value) > 1e-4 for condition, value in trees(tableau.order))


@pytest.mark.parametrize("method", sorted(ORDERS))
def test_measured_orders(method):
    y0 = starts()
    reference = reference_end()
    counts = (16, 32, 64) if ORDERS[method] > 3 else (64, 128, 256)
    errors = [(odeint(pendulum, y0, [0, 2], method=method, step=2.0 / n)[-1] - reference).norm() for n in counts]
    for coarse, fine in itertools.pairwise(errors):
        # Of the methods of order five the next terms still count, in their favour.
        assert -0.25 < math.log2(coarse / fine) - ORDERS[method] < (0.25 if ORDERS[method] < 5 else 1.1)


@pytest.mark.parametrize("method", ["bosh3", "dopri5", "tsit5", "dopri8"])
@pytest.mark.parametrize("rtol", [1e-4, 1e-7])
def test_adaptive_methods_meet_their_tolerance(method, rtol):
    ts, y0, reference = reference_path()
    error = (odeint(pendulum, y0, ts, method=method, rtol=rtol, atol=rtol) - reference).abs().max()
    assert error < 1000.0 * rtol


@pytest.mark.parametrize("method", ["bosh3", "dopri5", "tsit5"])
@pytest.mark.parametrize("controller", [PIDController(), PIDController(p=0.3, i=0.4), PIDController(0.2, 0.4, 0.05)])
def test_own_adaptive_grid(method, controller):
    """The steps found by the controller meet the tolerance, and the answer lies on all times."""
    ts, y0, reference = reference_path()
    found = odeint(pendulum, y0, ts, method=method, rtol=1e-6, atol=1e-6, controller=controller)
    assert (found - reference).abs().max() < 1e-4
    torch.testing.assert_close(found[0], y0)


def test_the_controller_follows_a_sharp_turn_and_every_sample_counts():
    """Small steps at the bump alone; a batch takes no fewer steps than its hardest sample."""
    calls = []

    def bump(t, y):
        calls.append(float(t))
        return y.new_tensor([[1.0], [0.0]])[: len(y)] * torch.exp(-(((t - 0.5) / 0.02) ** 2)) + 0.0 * y

    y0 = torch.zeros(2, 1, dtype=torch.float64)
    found = odeint(bump, y0, [0.0, 0.5, 1.0], method="tsit5", rtol=1e-8, atol=1e-8)[-1]
    torch.testing.assert_close(found, torch.tensor([[0.02 * math.sqrt(math.pi)], [0.0]]).double(), rtol=0, atol=1e-8)
    inside = sum(abs(t - 0.5) < 0.1 for t in calls)
    assert inside > 0.5 * len(calls)


@pytest.mark.parity
@pytest.mark.parametrize(("ours", "theirs"), [("euler", "euler"), ("midpoint", "midpoint"), ("heun", "heun2")])
@pytest.mark.parametrize("adjoint", ["direct", "checkpoint"])
def test_fixed_steps_are_those_of_torchdiffeq(ours, theirs, adjoint):
    ts = torch.linspace(0.0, 1.0, 9, dtype=torch.float64)
    y0 = starts().requires_grad_()
    ours_ = odeint(pendulum, y0, ts, method=ours, adjoint=adjoint)
    peer = torchdiffeq.odeint(pendulum, y0, ts, method=theirs)
    torch.testing.assert_close(ours_, peer, rtol=0, atol=1e-13)
    (a,), (b,) = (torch.autograd.grad(path.square().sum(), y0) for path in (ours_, peer))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["rk4", "dopri5", "tsit5", "reversible_heun"])
def test_falling_times_undo_rising_ones(method):
    y0, step = starts(), None if method in ("dopri5", "tsit5") else 1e-3
    there = odeint(pendulum, y0, [0.0, 1.0], method=method, step=step, rtol=1e-9, atol=1e-9)[-1]
    back = odeint(pendulum, there, [1.0, 0.0], method=method, step=step, rtol=1e-9, atol=1e-9)[-1]
    torch.testing.assert_close(back, y0, rtol=0, atol=1e-6)


def test_reversible_heun_comes_back_over_a_thousand_steps():
    """Whole state, a thousand steps with |a| h < 0.1, contracting as well as turning: below 1e-10."""
    matrix = torch.tensor([[-0.3, 4.0], [-4.0, -0.3]], dtype=torch.float64)
    plan = Plan(Field(lambda t, y: (y @ matrix).tanh()), ReversibleHeun(), *fixed_grid((0.0, 20.0), 0.02))
    y0 = starts()
    state = plan.start(y0)
    for i in range(plan.steps):
        state = plan.step(i, state)
    assert plan.steps == 1000
    for i in reversed(range(plan.steps)):
        state = plan.stepper.invert(plan.field, plan.grid[i], plan.grid[i + 1], state, None)
    assert (state[0] - y0).abs().max() < 1e-10
    assert (state[1] - y0).abs().max() < 1e-10


def test_reversible_heun_is_stable_on_the_imaginary_axis_only():
    """On y' = a y: bounded for a h = 0.9 i, growing for a h = -0.5 (Kidger et al., Theorem D.19)."""
    turn = torch.tensor([[0.0, 0.9], [-0.9, 0.0]], dtype=torch.float64)
    y0 = starts()
    assert odeint(lambda t, y: y @ turn, y0, [0.0, 500.0], method="reversible_heun", step=1.0).abs().max() < 20.0
    assert odeint(lambda t, y: -0.5 * y, y0, [0.0, 100.0], method="reversible_heun", step=1.0)[-1].abs().max() > 1e3


@pytest.mark.parametrize("method", ["rk4", "dopri5", "tsit5", "reversible_heun"])
@pytest.mark.parametrize("adjoint", ["direct", "checkpoint", "backsolve"])
def test_shapes_batches_and_types(method, adjoint):
    for shape, dtype in (
        ((1, 2), torch.float32),
        ((0, 2), torch.float64),
        ((3, 1, 2), torch.float64),
        ((4,), torch.float32),
    ):
        y0 = torch.zeros(shape, dtype=dtype).requires_grad_()
        path = odeint(lambda t, y: torch.cos(y) * t, y0, [0.0, 0.5, 1.0], method=method, adjoint=adjoint)
        assert path.shape == (3, *shape)
        assert path.dtype == dtype
        path.sum().backward()
        assert y0.grad is not None
        assert y0.grad.shape == shape
    y0 = starts()
    torch.testing.assert_close(odeint(pendulum, y0, [0.7], method=method, adjoint=adjoint), y0[None])


@pytest.mark.parametrize("method", ["rk4", "reversible_heun"])
def test_samples_do_not_depend_on_their_company(method):
    y0 = starts(5)
    whole = odeint(pendulum, y0, [0.0, 1.0], method=method, step=0.1)
    torch.testing.assert_close(odeint(pendulum, y0[2:3], [0.0, 1.0], method=method, step=0.1), whole[:, 2:3])


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"method": "rk5"}, InputError, "method"),
        ({"adjoint": "adjoint"}, InputError, "adjoint"),
        ({"method": "rk4", "adjoint": "reversible"}, IncompatibleError, "reversible"),
        ({"method": "rk4", "step": 0.0}, InputError, "step"),
        ({"method": "rk4", "controller": PIDController()}, IncompatibleError, "controller"),
        ({"method": "dopri8", "step": 0.1}, IncompatibleError, "dopri8"),
        ({"method": "dopri8", "adjoint": "checkpoint"}, IncompatibleError, "dopri8"),
        ({"checkpoints": 3}, InputError, "checkpoints"),
        ({"method": "rk4", "adjoint": "checkpoint", "checkpoints": 0}, InputError, "checkpoints"),
        ({"rtol": 0.0}, InputError, "rtol"),
        ({"params": [1.0]}, InputError, "params"),
    ],
)
def test_what_does_not_fit_is_refused(options, error, match):
    with pytest.raises(error, match=match):
        odeint(pendulum, starts(), [0.0, 1.0], **options)


def test_bad_states_times_and_fields():
    for ts in ([], [0.0, 0.0], [0.0, 1.0, 0.5], [0.0, math.nan], [[0.0, 1.0]]):
        with pytest.raises(InputError, match="ts"):
            odeint(pendulum, starts(), ts)
    for y0 in (torch.zeros(()), torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.complex64), 1.0):
        with pytest.raises(InputError, match="y0"):
            odeint(pendulum, y0, [0.0, 1.0])
    for method in ("rk4", "dopri5", "tsit5"):
        with pytest.raises(InputError, match=r"f: .*expected the shape"):
            odeint(lambda t, y: y[:, :1], starts(), [0.0, 1.0], method=method)
    for bad in ({"safety": 0.0}, {"factor_min": 2.0}, {"factor_max": 1.0}, {"i": 0.0}):
        with pytest.raises(InputError):
            PIDController(**bad)


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "rk4"])
def test_a_solution_that_leaves_the_numbers_is_named(method):
    step = 0.02 if method == "rk4" else None
    with pytest.raises(NumericalError, match="t = "):
        odeint(
            lambda t, y: y**2,
            torch.full((1, 1), 5.0).double(),
            [0.0, 0.1, 5.0],
            method=method,
            max_steps=200,
            step=step,
        )
    if method != "rk4":
        with pytest.raises(NumericalError, match="t = "):
            odeint(pendulum, starts(), [0.0, 50.0], method=method, max_steps=5)


def test_an_accepted_step_costs_six_evaluations_and_growth_is_bounded():
    """The last stage of Tsitouras' pair is the first of the next step; two more evaluations choose the first step."""
    calls = []

    def f(t, y):
        calls.append(float(t))
        return -y

    grid, keep = adaptive_grid(
        Field(f), PAIRS["tsit5"], (0.0, 3.0, 10.0), starts(), PIDController(factor_max=2.0), 1e-6, 1e-6, 1000
    )
    steps = [b - a for a, b in itertools.pairwise(grid)]
    assert [grid[k] for k in keep] == [0.0, 3.0, 10.0]
    assert 6 * len(steps) + 3 <= len(calls) <= 6 * len(steps) + 3 + 6 * 4
    # Before the first time, at which a step is cut and the longer one before it is taken up again.
    assert max(b / a for a, b in itertools.pairwise(steps[: keep[1]])) <= 2.0 + 1e-9


def test_the_controller_in_numbers():
    """Integral control of order 4: safety (1 / e)^(1 / 5), clipped; no growth after a rejection; memory of two errors."""
    assert PIDController().factor([0.5], 4, False) == pytest.approx(0.9 * 2.0**0.2)
    assert PIDController().factor([1e-9], 4, False) == 10.0
    assert PIDController().factor([1e9], 4, True) == 0.2
    assert PIDController().factor([1e-9], 4, True) == 1.0
    assert PIDController().factor([math.inf], 4, True) == 0.2
    pid = PIDController(p=0.3, i=0.4, d=0.1)
    assert pid.factor([0.5, 0.2, 0.1], 4, False) == pytest.approx(0.9 * 0.5**-0.16 * 0.2**0.1 * 0.1**-0.02)
