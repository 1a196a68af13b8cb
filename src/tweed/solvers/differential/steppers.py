"""One step of each fixed-step method: a state goes in and a state comes out, differentiably.

A state is a tuple whose first entry is y; the reversible Heun method carries more. `calculus` says which equations a
method solves, "ito" or "stratonovich"; with additive noise both are the same.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tweed.solvers.differential.field import Field, Noise
from tweed.solvers.differential.tableaus import EXPLICIT, explicit_step

State = tuple[Tensor, ...]
BOTH = frozenset({"ito", "stratonovich"})
ITO, STRATONOVICH = frozenset({"ito"}), frozenset({"stratonovich"})
ANY_NOISE = frozenset({"diagonal", "scalar", "additive", "general"})


@dataclass(frozen=True)
class Stepper(ABC):
    """A one-step method on a fixed grid.

    Attributes:
        calculus: the kinds of stochastic equations that it solves.
        noises: the types of noise that it can take.
        area: whether it needs the Levy area of each step.
    """

    calculus: ClassVar[frozenset[str]] = STRATONOVICH
    noises: ClassVar[frozenset[str]] = ANY_NOISE
    area: ClassVar[bool] = False

    def start(self, field: Field, t: float, y: Tensor) -> State:
        """The state that begins a run."""
        return (y,)

    @abstractmethod
    def step(self, field: Field, start: float, end: float, state: State, noise: Noise | None) -> State:
        """The state at time `end`, from that at time `start`."""


@dataclass(frozen=True)
class ExplicitRungeKutta(Stepper):
    """An explicit tableau on `f h + g dW`: its order on ordinary equations; on stochastic ones Stratonovich, strong 1/2,
    and 1 where the noise commutes (diagonal with g_i of y_i alone, scalar, additive)."""

    method: str = "heun"

    def step(self, field: Field, start: float, end: float, state: State, noise: Noise | None) -> State:
        h = end - start
        tableau = EXPLICIT[self.method]
        return explicit_step(tableau, lambda t, s: (field.flow(t, s[0], h, noise),), start, end, state)[0]


@dataclass(frozen=True)
class EulerMaruyama(Stepper):
    """`y + f h + g dW` (Ito, strong order 1/2, 1 for additive noise; weak order 1)."""

    calculus: ClassVar[frozenset[str]] = ITO

    def step(self, field: Field, start: float, end: float, state: State, noise: Noise | None) -> State:
        (y,) = state
        return (y + field.flow(start, y, end - start, noise),)


@dataclass(frozen=True)
class Milstein(Stepper):
    """Milstein's method without derivatives (Kloeden & Platen, "Numerical Solution of SDEs", eq. 11.1.3), strong order 1.

    `g'g` is the difference of g between y and `y + g sqrt(h)`. For noise that commutes: diagonal with g_i a function of
    y_i, scalar, or additive. `ito` says whether `dW^2 - h` (Ito) or `dW^2` (Stratonovich) multiplies it.
    """

    calculus: ClassVar[frozenset[str]] = BOTH
    noises: ClassVar[frozenset[str]] = frozenset({"diagonal", "scalar", "additive"})
    ito: bool = True

    def step(self, field: Field, start: float, end: float, state: State, noise: Noise | None) -> State:
        (y,), h = state, end - start
        f, g = field(start, y)
        after = y + field.combine(f, g, h, noise)
        if g is None or noise is None or field.noise == "additive":
            return (after,)
        root = abs(h) ** 0.5
        moved = field.spread(start, y + g * root)
        square = noise.w.square() - (abs(h) if self.ito else 0.0)
        return (after + (moved - g) * square * (0.5 / root),)


@dataclass(frozen=True)
class EulerHeun(Stepper):
    """`y + f h + (g(y) + g(y + g dW)) dW / 2` (Stratonovich, strong order 1/2, 1 where the noise commutes)."""

    def step(self, field: Field, start: float, end: float, state: State, noise: Noise | None) -> State:
        (y,), h = state, end - start
        f, g = field(start, y)
        if g is None or noise is None:
            return (y + f * h,)
        change = field.product(g, noise.w, y)
        moved = field.spread(end, y + change)
        return (y + f * h + 0.5 * (change + field.product(moved, noise.w, y)),)


@dataclass(frozen=True)
class StochasticRungeKutta(Stepper):
    """SRA1 of Rossler ("Runge-Kutta methods for the strong approximation of solutions of SDEs", SIAM J. Numer. Anal. 2010):
    strong order 3/2 for additive noise. It needs `Int W ds = h (dW / 2 + H)`."""

    calculus: ClassVar[frozenset[str]] = BOTH
    noises: ClassVar[frozenset[str]] = frozenset({"additive"})
    area: ClassVar[bool] = True

    def step(self, field: Field, start: float, end: float, state: State, noise: Noise | None) -> State:
        (y,), h = state, end - start
        f, g = field(start, y)
        if g is None or noise is None or noise.area is None:
            inner = y + 0.75 * h * f
            return (y + h * (f + 2.0 * field.slope(start + 0.75 * h, inner)) / 3.0,)
        integral = 0.5 * noise.w + noise.area
        last = field.spread(end, y)
        inner = y + 0.75 * h * f + 1.5 * field.product(last, integral, y)
        second = field.slope(start + 0.75 * h, inner)
        change = field.product(last, noise.w - integral, y) + field.product(g, integral, y)
        return (y + h * (f + 2.0 * second) / 3.0 + change,)


@dataclass(frozen=True)
class ReversibleHeun(Stepper):
    """The reversible Heun method of Kidger, Foster, Li & Lyons (NeurIPS 2021), Algorithm 1, on the state (y, z, f, g):

        z1 = 2 y0 - z0 + f0 h + g0 dW,  f1, g1 = fields(t1, z1),  y1 = y0 + (f0 + f1) h / 2 + (g0 + g1) dW / 2.

    One evaluation a step; order 2 on ordinary equations, Stratonovich with strong order 1/2, 1 for additive noise. The step
    is inverted exactly by `invert`. On `y' = a y` it is stable only for `a h` in [-i, i]: strongly contracting fields need
    small steps.
    """

    def start(self, field: Field, t: float, y: Tensor) -> State:
        f, g = field(t, y)
        return (y, y, f) if g is None else (y, y, f, g)

    def step(self, field: Field, start: float, end: float, state: State, noise: Noise | None) -> State:
        y, _, f, *g = state
        h = end - start
        z = self.predict(field, state, h, noise)
        f1, g1 = field(end, z)
        return self.correct(field, y, z, h, noise, (f, g[0] if g else None), (f1, g1))

    def invert(self, field: Field, start: float, end: float, state: State, noise: Noise | None) -> State:
        """The state at time `start`, from that at `end`: the same formulas with the signs of `h` and `dW` changed."""
        return self.step(field, end, start, state, None if noise is None else noise.scaled(-1.0))

    @staticmethod
    def predict(field: Field, state: State, h: float, noise: Noise | None) -> Tensor:
        """`2 y - z + f h + g dW`."""
        y, z, f, *g = state
        return 2.0 * y - z + field.combine(f, g[0] if g else None, h, noise)

    @staticmethod
    def correct(
        field: Field,
        y: Tensor,
        z: Tensor,
        h: float,
        noise: Noise | None,
        before: tuple[Tensor, Tensor | None],
        after: tuple[Tensor, Tensor | None],
    ) -> State:
        """The state at the predicted place, from the fields at both ends."""
        (f0, g0), (f1, g1) = before, after
        if g0 is None or g1 is None:
            return y + 0.5 * h * (f0 + f1), z, f1
        return y + 0.5 * field.combine(f0 + f1, g0 + g1, h, noise), z, f1, g1


def detached(state: State) -> State:
    """The numbers alone."""
    return tuple(s.detach() for s in state)
