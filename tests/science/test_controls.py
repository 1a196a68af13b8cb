"""Paths through observations: interpolation, smoothness, causality, missing values, and what is refused."""

import pytest
import torch

from tweed.core import random
from tweed.errors import InputError
from tweed.science import fill_missing, hermite, linear, rectilinear, with_time

F64 = torch.float64
NAN = float("nan")
TS = torch.tensor([0.0, 0.4, 0.5, 1.3, 2.0, 2.1], dtype=F64)


def series(b=3, c=2):
    return random.normal((b, len(TS), c), 1, dtype=F64)


@pytest.mark.parametrize("kind", [linear, hermite])
def test_the_knots_are_interpolated(kind):
    x = series()
    control = kind(TS, x)
    for i, t in enumerate(TS):
        torch.testing.assert_close(control.value(t), x[:, i], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [linear, hermite, rectilinear])
def test_the_derivative_is_that_of_the_value(kind):
    control = kind(TS, series())
    for t in torch.linspace(0.07, 1.99, 12, dtype=F64):
        ahead, behind = control.value(t + 1e-6), control.value(t - 1e-6)
        torch.testing.assert_close(control.derivative(t), (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-6)


def test_hermite_is_once_differentiable_with_the_slopes_of_backward_differences():
    x = series()
    control = hermite(TS, x)
    quotient = x.diff(dim=1) / TS.diff()[:, None]
    for i in range(1, len(TS) - 1):
        left, right = control.restricted(i - 1), control.restricted(i)
        torch.testing.assert_close(left.value(TS[i]), right.value(TS[i]), rtol=0, atol=1e-12)
        torch.testing.assert_close(left.derivative(TS[i]), right.derivative(TS[i]), rtol=0, atol=1e-11)
        torch.testing.assert_close(right.derivative(TS[i]), quotient[:, i - 1], rtol=0, atol=1e-11)
    assert control.smooth
    jump = linear(TS, x)
    assert not jump.smooth
    assert (jump.restricted(0).derivative(TS[1]) - jump.restricted(1).derivative(TS[1])).abs().max() > 0.1


def test_hermite_is_exact_for_straight_lines():
    x = (2.0 * TS - 1.0)[None, :, None].expand(2, -1, 1)
    t = torch.tensor(0.77, dtype=F64)
    torch.testing.assert_close(hermite(TS, x).value(t)[:, 0], (2.0 * t - 1.0).expand(2), rtol=0, atol=1e-12)


def test_an_observation_changes_nothing_before_the_knot_before_it():
    x = series()
    later = x.clone()
    later[:, 4] += 5.0
    for kind in (linear, hermite):
        a, b = kind(TS, x), kind(TS, later)
        assert a.causal
        assert torch.equal(a.coefficients[:, :, :3], b.coefficients[:, :, :3])
        assert not torch.equal(a.coefficients[:, :, 3], b.coefficients[:, :, 3])
    a, b = rectilinear(TS, x), rectilinear(TS, later)
    assert torch.equal(a.coefficients[:, :, :7], b.coefficients[:, :, :7])  # up to knot 7, where time is t_4


def test_rectilinear_is_causal_with_missing_values_and_the_others_are_not():
    x = series(1, 1)
    x[0, 2, 0] = NAN
    later = x.clone()
    later[0, 3, 0] += 1.0
    a, b = rectilinear(TS, x), rectilinear(TS, later)
    assert torch.equal(a.coefficients[:, :, :5], b.coefficients[:, :, :5])
    assert not linear(TS, x).causal
    assert not torch.equal(linear(TS, x).coefficients[:, :, 1], linear(TS, later).coefficients[:, :, 1])


def test_rectilinear_moves_time_and_values_in_turn():
    x = series()
    control = rectilinear(TS, x)
    assert len(control.knots) == 2 * len(TS) - 1
    assert control.channels == x.shape[2] + 1
    for i in range(len(TS)):
        corner = control.value(torch.tensor(2.0 * i, dtype=F64))
        torch.testing.assert_close(corner, torch.cat((TS[i].expand(3, 1), x[:, i]), 1), rtol=0, atol=1e-12)
    assert (control.derivative(torch.tensor(2.5, dtype=F64))[:, 1:] == 0).all()
    assert (control.derivative(torch.tensor(3.5, dtype=F64))[:, 0] == 0).all()


def test_missing_values_lie_on_the_line_between_their_neighbours():
    x = torch.tensor([[NAN, 1.0, NAN, NAN, 5.0, NAN]], dtype=F64)[:, :, None]
    full = fill_missing(TS, x)[0, :, 0]
    expected = [1.0, 1.0, 1.0 + 4.0 * 0.1 / 1.6, 1.0 + 4.0 * 0.9 / 1.6, 5.0, 5.0]
    torch.testing.assert_close(full, torch.tensor(expected, dtype=F64))
    complete = series()
    assert torch.equal(fill_missing(TS, complete), complete)


def test_each_series_by_itself():
    x = series(4)
    x[1, 2:4] = NAN
    x[2, 0, 1] = NAN
    whole = hermite(TS, x).coefficients
    for i in range(4):
        assert torch.equal(hermite(TS, x[i : i + 1]).coefficients[:, 0], whole[:, i])
    assert hermite(TS, x[:0]).coefficients.shape == (4, 0, 5, 2)


def test_gradients_reach_the_observations_and_are_finite():
    x = series()
    x[0, 2, 0] = NAN
    x.requires_grad_()
    hermite(TS, x).value(torch.tensor(0.45, dtype=F64)).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad[0, 3, 0] != 0


def test_time_and_counts():
    x = series()
    x[0, 1, 0] = NAN
    told = with_time(TS, x, counts=True)
    assert torch.equal(told[:, :, 0], TS.expand(3, -1))
    torch.testing.assert_close(told[0, :, 3] * 6, torch.tensor([1.0, 1, 2, 3, 4, 5], dtype=F64))


def test_bad_input():
    x = series()
    nothing = x.clone()
    nothing[1, :, 0] = NAN
    with pytest.raises(InputError, match="channel 0 of series 1 is NaN everywhere"):
        hermite(TS, nothing)
    assert (linear(TS, nothing, empty=0.0).coefficients[0, 1, :, 0] == 0).all()
    with pytest.raises(InputError, match="strictly rise"):
        linear(TS.flip(0), x)
    with pytest.raises(InputError, match="strictly rise"):
        linear([0.0, 1.0, 1.0, 2.0, 3.0, 4.0], x)
    with pytest.raises(InputError, match="at least two"):
        linear([0.0], x[:, :1])
    with pytest.raises(InputError, match="for the times"):
        linear(TS, x[:, :3])
    with pytest.raises(InputError, match="infinite"):
        linear(TS, x / 0.0)
    late = x.clone()
    late[0, 0, 0] = NAN
    with pytest.raises(InputError, match="before"):
        rectilinear(TS, late)
    assert rectilinear(TS, late, before=-1.0).coefficients[0, 0, 0, 1] == -1.0
