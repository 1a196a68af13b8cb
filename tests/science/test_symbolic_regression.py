"""Symbolic regression: planted laws, the front, evaluation, a missing package, and what is refused."""

import builtins
import math

import pytest
import torch

from tweed.core import random
from tweed.errors import InputError
from tweed.science import MissingPackageError, recover_field, symbolic_regression

F64 = torch.float64


def points(n=200):
    return 0.3 + 2.5 * random.uniform((n, 2), 1, dtype=F64)


def search(x, y, **options):
    pytest.importorskip("pyoperon")
    return symbolic_regression(x, y, **({"seed": 1, "population": 200, "generations": 30} | options))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_planted_law_is_found_with_its_constants(seed):
    x = points()
    y = 1.3 * x[:, 0] - 0.9 * x[:, 0] * x[:, 1] + 0.01 * random.normal((200,), seed, dtype=F64)
    front = search(x, y, seed=seed, names=("prey", "hunter"))
    for found in (front.best.coefficients(), front.knee.coefficients()):
        for term, value in {"prey": 1.3, "prey*hunter": -0.9}.items():
            name = term if term in found else "*".join(reversed(term.split("*")))
            assert found.pop(name) == pytest.approx(value, abs=0.02)
        assert all(abs(value) < 0.02 for value in found.values())


def test_the_front_gets_longer_and_better_and_is_measured_honestly():
    x = points()
    y = x[:, 0].sin() + x[:, 1].square() + 0.02 * random.normal((200,), 5, dtype=F64)
    front = search(x, y, symbols=("add", "mul", "sin", "square"))
    lengths, errors = [e.length for e in front.expressions], [e.error for e in front.expressions]
    assert lengths == sorted(set(lengths))
    assert errors == sorted(errors, reverse=True)
    for e in front.expressions:
        assert (e(x) - y).square().mean().item() == pytest.approx(e.error, rel=1e-12)
    assert front.up_to(lengths[-1]).error == errors[-1]
    assert front.up_to(lengths[0]).length == lengths[0]
    with pytest.raises(InputError, match="shortest"):
        front.up_to(0)


def test_formulas_are_differentiable():
    x = points()
    front = search(x, (2.0 * x[:, 0]).sin() * x[:, 1], symbols=("mul", "sin"))
    x.requires_grad_()
    gradient = torch.autograd.grad(front.up_to(30)(x).sum(), x)[0]
    exact = torch.stack((2.0 * (2.0 * x[:, 0]).cos() * x[:, 1], (2.0 * x[:, 0]).sin()), 1)
    torch.testing.assert_close(gradient, exact, rtol=1e-3, atol=1e-3)


def test_the_same_seed_finds_the_same():
    x = points(60)
    a, b = (search(x, x[:, 0] * x[:, 1], generations=5) for _ in range(2))
    assert [e.text for e in a.expressions] == [e.text for e in b.expressions]


def test_a_constant_and_a_field():
    x = points(50)
    constant = search(x, torch.full((50,), 2.5, dtype=F64), generations=3)
    torch.testing.assert_close(constant.best(x), torch.full((50,), 2.5, dtype=F64), rtol=1e-5, atol=0)
    fronts = recover_field(lambda t, y: -y + t, x, seed=0, t=0.5, names=("E", "S"), population=100, generations=10)
    assert len(fronts) == 2
    assert fronts[0].best.coefficients()["E"] == pytest.approx(-1.0, abs=1e-4)
    assert fronts[1].best.coefficients()["1"] == pytest.approx(0.5, abs=1e-4)


def test_a_missing_package_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **options):
        if name.startswith("pyoperon"):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPackageError, match="pip install pyoperon"):
        symbolic_regression(points(), points()[:, 0], seed=0)


def test_bad_input():
    x = points()
    with pytest.raises(InputError, match="shapes"):
        symbolic_regression(x, x, seed=0)
    with pytest.raises(InputError, match="finite"):
        symbolic_regression(x, x[:, 0] * math.nan, seed=0)
    with pytest.raises(InputError, match="identifiers"):
        symbolic_regression(x, x[:, 0], seed=0, names=("a", "a"))
    with pytest.raises(InputError, match="symbols"):
        symbolic_regression(x, x[:, 0], seed=0, symbols=("add", "gamma"))
    with pytest.raises(InputError, match="population"):
        symbolic_regression(x, x[:, 0], seed=0, population=1)
