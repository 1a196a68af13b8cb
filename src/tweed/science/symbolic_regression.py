"""Symbolic regression: short formulas for data, or for what a network has learnt.

Fitting a network first and a formula to the network afterwards finds laws in data whose derivatives were never observed
(Kidger, 2022, arXiv 2202.02435, Section 6.1; Cranmer et al., NeurIPS 2020, arXiv 2006.11287). The search is genetic
programming by Operon (Burlacu, Kronberger & Kommenda, GECCO 2020), a C++ library with wheels on PyPI (`pyoperon`): two
objectives, error and length (NSGA-II), and the constants of every candidate tuned by Levenberg-Marquardt.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core.random import fold
from tweed.errors import InputError, NumericalError, TweedError, choose

SYMBOLS = ("add", "sub", "mul", "div", "sin", "cos", "exp", "log", "sqrt", "square", "tanh", "pow")
"""What formulas may be made of, besides constants and variables."""


class MissingPackageError(TweedError, ImportError):
    """A package is needed that `pip install tweed` does not bring; the message says which."""


@dataclass(frozen=True)
class Expression:
    """A formula.

    Attributes:
        text: in Python's notation, with the names of the variables; constants to six digits.
        length: nodes of the tree that was found: operators, constants, and variables with their weights.
        error: mean squared error on the data.
        criterion: minimum description length, of which less is better.
        symbolic: the formula as a sympy expression, multiplied out, with full constants.
        names: of the variables, in the order of the data's columns.
    """

    text: str
    length: int
    error: float
    criterion: float
    symbolic: Any
    names: tuple[str, ...]

    def __call__(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """The formula at each row; differentiable."""
        if x.ndim != 2 or x.shape[1] != len(self.names):
            raise InputError(f"x: shape {tuple(x.shape)} was given; expected (n, {len(self.names)})")
        value = _compiled(self.symbolic, self.names)(*x.unbind(1))
        return torch.as_tensor(value, dtype=x.dtype, device=x.device).expand(len(x))

    def coefficients(self, digits: int = 12) -> dict[str, float]:
        """The coefficient of each term of the multiplied-out sum, `{"x*y": -0.9, "x": 1.3, "1": 1e-4}`."""
        terms: dict[str, float] = {}
        for term, value in self.symbolic.as_coefficients_dict().items():
            factor, rest = term.as_coeff_Mul()
            name = str(rest)
            terms[name] = terms.get(name, 0.0) + round(float(value * factor), digits)
        return terms


@dataclass(frozen=True)
class Front:
    """The formulas that none is both shorter and more accurate than, by rising length."""

    expressions: tuple[Expression, ...]

    @property
    def best(self) -> Expression:
        """That of least description length: a longer formula must earn its constants."""
        return min(self.expressions, key=lambda e: e.criterion)

    @property
    def knee(self) -> Expression:
        """That at which the error falls most for each further node: the largest `-d log error / d length` (Cranmer, 2023,
        arXiv 2305.01582). The choice for a fitted network, whose own error is no noise and rewards longer formulas."""
        if len(self.expressions) == 1:
            return self.expressions[0]
        tiny = torch.finfo(torch.float64).tiny

        def score(pair: tuple[Expression, Expression]) -> float:
            fall = math.log(max(pair[0].error, tiny)) - math.log(max(pair[1].error, tiny))
            return fall / (pair[1].length - pair[0].length)

        return max(pairwise(self.expressions), key=score)[1]

    def up_to(self, length: int) -> Expression:
        """The most accurate one that is no longer than `length`.

        Raises:
            InputError: all are longer.
        """
        short = [e for e in self.expressions if e.length <= length]
        if not short:
            raise InputError(f"length: {length} was given; the shortest formula has {self.expressions[0].length}")
        return min(short, key=lambda e: e.error)


def symbolic_regression(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, " n"],
    *,
    seed: int,
    names: Sequence[str] | None = None,
    symbols: Sequence[str] = ("add", "sub", "mul"),
    max_length: int = 20,
    population: int = 300,
    generations: int = 60,
    tuning: int = 5,
    noise: float | None = None,
) -> Front:
    """Formulas `y = g(x)`, from short and rough to long and exact. On one thread, so that a seed gives one answer.

    Args:
        x, y: at least two rows, finite; computed with in float32 by the library.
        names: of the columns of x; default x1, x2, ...
        symbols: of `SYMBOLS`.
        max_length: nodes of a formula, before the final scale and offset, which are fitted by least squares.
        population, generations: of the search. tuning: iterations of Levenberg-Marquardt for each candidate.
        noise: the standard deviation of the error of y, which the description length is measured by; None for that of
            the most accurate formula on the front.

    Raises:
        InputError: bad shapes, names, symbols or numbers; values that are not finite.
        MissingPackageError: `pyoperon` is not installed.
        NumericalError: no formula with a finite error was found.
    """
    x, y = x.detach().double().cpu(), y.detach().double().cpu()
    names = tuple(f"x{i + 1}" for i in range(x.shape[-1])) if names is None else tuple(names)
    _check(x, y, names, symbols)
    for name, value, least in (("max_length", max_length, 1), ("population", population, 2), ("tuning", tuning, 0)):
        if value < least:
            raise InputError(f"{name}: {value} was given; expected at least {least}")
    if generations < 1 or (noise is not None and not noise > 0):
        raise InputError(f"generations, noise: {generations}, {noise} were given; expected positive numbers")
    try:
        from pyoperon import InfixFormatter  # type: ignore[reportAttributeAccessIssue]
        from pyoperon.sklearn import SymbolicRegressor
    except ImportError as error:
        raise MissingPackageError(
            "symbolic_regression needs the package pyoperon; expected `pip install pyoperon` (or tweed[science])"
        ) from error
    search = SymbolicRegressor(
        allowed_symbols=",".join(("constant", "variable", *symbols)),
        objectives=["mse", "length"],
        optimizer_iterations=tuning,
        max_length=max_length,
        population_size=population,
        generations=generations,
        max_evaluations=1_000_000_000,  # the number of generations decides
        epsilon=1e-6,
        n_threads=1,
        random_state=fold(seed) % 2**32,
    )
    search.fit(x.numpy(), y.numpy())
    found = []
    for entry in search.pareto_front_:
        formula = InfixFormatter.Format(entry["tree"], search.variables_, 17)
        found.append((entry["length"], _parsed(formula, names)))
    return _front(found, x, y, names, noise)


def recover_field(
    f: Any, y: Float[Tensor, "n d"], *, seed: int, t: float = 0.0, names: Sequence[str] | None = None, **options: Any
) -> list[Front]:
    """Formulas for each component of a field `f(t, y)`, a fitted network say, from its values at the rows of y.

    Args: those of `symbolic_regression`; y should cover what the field was fitted on, and no more.
    """
    with torch.no_grad():
        slopes = f(y.new_full((), t), y)
    if slopes.shape != y.shape:
        raise InputError(f"f: {tuple(slopes.shape)} was answered; expected the shape of y, {tuple(y.shape)}")
    return [symbolic_regression(y, slopes[:, i], seed=fold(seed, i), names=names, **options) for i in range(y.shape[1])]


def _check(x: Tensor, y: Tensor, names: tuple[str, ...], symbols: Sequence[str]) -> None:
    if x.ndim != 2 or len(x) < 2 or not x.shape[1] or y.shape != x.shape[:1]:
        raise InputError(
            f"x, y: shapes {tuple(x.shape)} and {tuple(y.shape)} were given; expected (n, d) and (n,), n at least 2"
        )
    if not bool(x.isfinite().all() & y.isfinite().all()):
        raise InputError("x, y: values that are not finite were given")
    if len(names) != x.shape[1] or len(set(names)) != len(names) or not all(n.isidentifier() for n in names):
        raise InputError(f"names: {list(names)} was given; expected {x.shape[1]} different identifiers")
    for symbol in symbols:
        choose("symbols", symbol, SYMBOLS)
    if not symbols:
        raise InputError(f"symbols: none was given; expected some of {', '.join(SYMBOLS)}")


def _parsed(formula: str, names: tuple[str, ...]) -> Any:
    """The library's infix text as a sympy expression in our names, multiplied out."""
    import sympy
    from sympy.parsing.sympy_parser import parse_expr

    # Names of our own for the library's X1, X2, ..., so that a variable called E or S is no constant of sympy's.
    local = {f"X{i + 1}": sympy.Symbol(name, real=True) for i, name in enumerate(names)}
    return sympy.expand(parse_expr(formula.replace("^", "**"), local_dict=local))


@functools.lru_cache(256)
def _compiled(symbolic: Any, names: tuple[str, ...]) -> Any:
    import sympy

    functions = {name: getattr(torch, name) for name in ("sin", "cos", "exp", "log", "sqrt", "tanh")}
    return sympy.lambdify([sympy.Symbol(name, real=True) for name in names], symbolic, modules=[functions, "math"])


def _front(found: list[tuple[int, Any]], x: Tensor, y: Tensor, names: tuple[str, ...], noise: float | None) -> Front:
    """The formulas that none dominates, with errors measured on the multiplied-out formula in float64."""
    measured = []
    for length, symbolic in sorted(found, key=lambda pair: pair[0]):
        draft = Expression("", length, 0.0, 0.0, symbolic, names)
        error = (draft(x) - y).square().mean().item()
        if error < (measured[-1][1] if measured else float("inf")):
            measured.append((length, error, symbolic))
    if not measured:
        raise NumericalError("symbolic_regression: no formula with a finite error was found")
    # A shorter formula of the same length as a later one is dominated by it.
    measured = [m for i, m in enumerate(measured) if i + 1 == len(measured) or measured[i + 1][0] > m[0]]
    scale = noise**2 if noise is not None else measured[-1][1]
    floor = max(scale, 1e-12 * y.square().mean().item(), torch.finfo(torch.float64).tiny)
    # Nats for the residuals at that noise, and for each node a choice among symbols and half a log n for a constant.
    price = math.log(len(names) + 5.0) + 0.5 * math.log(len(y))
    return Front(
        tuple(Expression(_text(s), n, e, 0.5 * len(y) * e / floor + price * n, s, names) for n, e, s in measured)
    )


def _text(symbolic: Any) -> str:
    import sympy

    return str(symbolic.xreplace({number: sympy.Float(number, 6) for number in symbolic.atoms(sympy.Float)}))
