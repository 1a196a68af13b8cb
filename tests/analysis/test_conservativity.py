"""Jacobians, asymmetry and circulation: closed forms on linear fields, nothing on gradients."""

import math

import pytest
import torch

import tweed as tw
from tweed import processes, random, targets
from tweed.analysis import asymmetry, circulation, conservativity, planes, score_jacobian
from tweed.core.denoiser import FunctionDenoiser
from tweed.errors import InputError

F64 = torch.float64
VP = processes.VP()
A = random.normal((5, 5), 1, dtype=F64)
X = random.normal((6, 5), 2, dtype=F64)


def linear(a):
    return FunctionDenoiser(lambda x, t, **cond: x @ a.T, VP, targets.Score(), event=(len(a),))


MIXTURE = tw.MixtureDenoiser(random.normal((4, 5), 3, dtype=F64), 0.3, None, VP)


def test_the_jacobian_of_a_linear_field_is_its_matrix_and_a_block_its_block():
    torch.testing.assert_close(score_jacobian(linear(A), X, 0.5), A.expand(6, 5, 5))
    block = score_jacobian(linear(A), X, 0.5, [3, 1])
    torch.testing.assert_close(block, A[[3, 1]][:, [3, 1]].expand(6, 2, 2))


def test_an_exact_denoiser_in_closed_form_agrees_with_differentiation():
    closed = score_jacobian(MIXTURE, X, 0.4)
    torch.testing.assert_close(closed, score_jacobian(MIXTURE, X, 0.4, range(5)), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(closed, closed.mT, rtol=1e-9, atol=1e-9)


def test_the_asymmetry_of_a_linear_field():
    expected = (torch.linalg.matrix_norm(A - A.T) / torch.linalg.matrix_norm(A + A.T)).item()
    found = asymmetry(linear(A), X, 0.5, probes=4000, seed=1)
    torch.testing.assert_close(found, torch.full((6,), expected, dtype=F64), rtol=0.05, atol=0.0)
    assert asymmetry(linear(A + A.T), X, 0.5).max().item() < 1e-14
    assert asymmetry(MIXTURE, X, 0.5).max().item() < 1e-12


def test_the_circulation_of_a_rotation_is_twice_its_rate_times_the_area():
    skew = A - A.T
    first, second = planes((6, 5), 4)
    around, path = circulation(linear(skew), X, first, second, 0.7, 0.5, points=64)
    rate = torch.einsum("bi,ij,bj->b", second, skew, first)
    torch.testing.assert_close(around, 2 * math.pi * 0.7**2 * rate, rtol=1e-10, atol=1e-10)
    assert bool((path >= around.abs() - 1e-12).all())
    symmetric, _ = circulation(linear(A + A.T), X, first, second, 0.7, 0.5)
    torch.testing.assert_close(symmetric, torch.zeros(6, dtype=F64), rtol=0, atol=1e-12)


def test_planes_are_orthonormal():
    first, second = planes((4, 2, 3), 1)
    a, b = first.flatten(1), second.flatten(1)
    torch.testing.assert_close((a * a).sum(1), torch.ones(4, dtype=F64))
    torch.testing.assert_close((a * b).sum(1), torch.zeros(4, dtype=F64), rtol=0, atol=1e-12)


def test_the_report_tells_a_gradient_from_a_field_with_curl():
    data = MIXTURE.sample(40, 1)
    exact = conservativity(MIXTURE, data, [0.3, 0.6])
    turned = FunctionDenoiser(lambda x, t: MIXTURE(x, t).score + x @ (A - A.T).T, VP, targets.Score(), event=(5,))
    wrong = conservativity(turned, data, [0.3, 0.6])
    for good, bad in zip(exact, wrong, strict=True):
        assert max(good.circulation, good.asymmetry) < 1e-10
        assert min(bad.circulation, bad.asymmetry) > 1e-3
        assert bad.curl > 1e3 * good.curl


def test_bad_input():
    with pytest.raises(InputError, match="coordinates"):
        score_jacobian(linear(A), X, 0.5, [7])
    with pytest.raises(InputError, match="probes"):
        asymmetry(linear(A), X, 0.5, probes=0)
    first, second = planes((6, 5), 4)
    for options in ({"points": 2}, {"radius": 0.0}):
        with pytest.raises(InputError, match="points, radius"):
            circulation(linear(A), X, first, second, **{"radius": 1.0, "t": 0.5} | options)
