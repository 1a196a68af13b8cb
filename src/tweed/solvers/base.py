"""What a solver is: an immutable value with `init` and `step`, which follow a denoiser's field along a time grid."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import random
from tweed.core.denoiser import Denoiser
from tweed.core.estimate import Estimate
from tweed.core.processes import Process
from tweed.errors import IncompatibleError, InputError

Form = Literal["data", "noise", "velocity"]
"""Which reading of an estimate a solver extrapolates: `x0`, `eps` or `velocity`."""

_DRAWS_PER_STEP = 64


@dataclass(frozen=True)
class Problem:
    """What a run is about: the field, the grid, the conditions, and where its noise comes from.

    Attributes:
        denoiser: already started (see `Denoiser.start`).
        times: the grid, from the state's time to the last level: numbers, or a float64 tensor (steps + 1, b) where each
            sample has times of its own. Rising grids invert data to noise.
        cond: the conditions, passed on to the denoiser.
        seed, index: sample `i` of the batch draws the noise of sample `index + i` under `seed`.
    """

    denoiser: Denoiser
    times: tuple[float, ...] | Float[Tensor, "steps+1 b"]
    cond: Mapping[str, Tensor] = field(default_factory=dict)
    seed: int = 0
    index: int = 0

    @property
    def process(self) -> Process:
        return self.denoiser.process

    @property
    def steps(self) -> int:
        return len(self.times) - 1

    @property
    def y(self) -> Tensor | None:
        """The endpoint, where the process has one."""
        return self.cond.get("y")

    def estimate(self, x: Float[Tensor, "b *event"], t: float | Tensor) -> Estimate:
        """One evaluation of the denoiser."""
        return self.denoiser(x, t, **self.cond)

    def noise(self, x: Float[Tensor, "b *event"], step: int, draw: int = 0) -> Float[Tensor, "b *event"]:
        """Standard normal noise like `x`; the same for the same `step` and `draw` (below 64), whatever was drawn before."""
        number = 1 + step * _DRAWS_PER_STEP + draw
        return random.normal(x.shape, self.seed, index=self.index, draw=number, dtype=x.dtype, device=x.device)


class State(NamedTuple):
    """Where a run is: the state at the step's time, and what the solver remembers."""

    x: Tensor
    memory: Any = ()


class Transition(NamedTuple):
    """One step as a Gaussian: `x_next ~ N(mean, std^2 I)`; `memory` is the solver's after it. `std` is a number, or (b, ...)."""

    mean: Tensor
    std: float | Tensor
    memory: Any = ()

    def log_prob(self, x_next: Float[Tensor, "b *event"]) -> Float[Tensor, " b"]:
        """The log density of `x_next` in nats, summed over the event.

        Raises:
            NumericalError is not raised here: a deterministic step (std = 0) gives infinities, as it must.
        """
        std = torch.as_tensor(self.std, dtype=torch.float64, device=self.mean.device)
        z = (x_next - self.mean).double() / std
        terms = -0.5 * z**2 - std.log() - 0.9189385332046727
        return terms.expand(self.mean.shape).flatten(1).sum(1)


Observer = Callable[[Tensor, float | Tensor, int], Tensor | None]
"""Called as `observer(x, t, i)` after step `i`, with the state at time `t`; a tensor returned replaces the state."""


class Solver(ABC):
    """How a field is followed. Subclasses are frozen dataclasses; nothing in a solver changes along a run.

    Attributes:
        order: of convergence: global error `O(h^order)` (weak order, for stochastic solvers).
        evaluations: of the denoiser in a full step.
        stochastic: whether a step draws noise.
        adaptive: whether the solver chooses its own steps between the ends of the grid.
        states: what it moves, "numbers" or "tokens": that of the processes that it can follow.
    """

    adaptive: ClassVar[bool] = False
    states: ClassVar[Literal["numbers", "tokens"]] = "numbers"

    @property
    @abstractmethod
    def evaluations(self) -> int: ...

    @property
    def stochastic(self) -> bool:
        return False

    def check(self, process: Process) -> None:
        """Raise an `IncompatibleError` where the solver cannot follow this process; any is fine by default."""
        return

    def init(self, problem: Problem, x: Float[Tensor, "b *event"]) -> State:
        """The state before the first step."""
        return State(x)

    @abstractmethod
    def step(self, problem: Problem, state: State, i: int) -> State:
        """From `problem.times[i]` to `problem.times[i + 1]`."""

    def finish(self, problem: Problem, state: State) -> Float[Tensor, "b *event"]:
        """The result, from the state after the last step."""
        return state.x

    def integrate(
        self, problem: Problem, x: Float[Tensor, "b *event"], observer: Observer | None = None
    ) -> Float[Tensor, "b *event"]:
        """The whole run: what `tweed.sample` calls. No value is read from the device in it."""
        return self.finish(problem, self.follow(problem, self.init(problem, x), observer))

    def follow(self, problem: Problem, state: State, observer: Observer | None = None) -> State:
        """The state after all steps, from the one before the first."""
        for i in range(problem.steps):
            state = self.step(problem, state, i)
            if observer is not None:
                changed = observer(state.x, problem.times[i + 1], i)
                if changed is not None:
                    state = state._replace(x=changed)
        return state


def require_gaussian(solver: Solver, process: Process, y: bool = False) -> None:
    """Raise where `process` has no Gaussian marginals around its data (a two-sided interpolant).

    Raises:
        IncompatibleError: naming the solver and what to use instead.
    """
    if process.endpoint == "drawn" and not y:
        raise IncompatibleError(
            f"solver: {type(solver).__name__} needs a Gaussian process; {type(process).__name__} is two-sided. Use a "
            'velocity solver (Euler, Heun or RungeKutta with form="velocity", AdaptiveRungeKutta, InterpolantSDE)'
        )


def check_form(form: str) -> None:
    """Raise an `InputError` unless `form` is one of "data", "noise", "velocity"."""
    if form not in ("data", "noise", "velocity"):
        raise InputError(f"form: {form!r} was given; expected 'data', 'noise' or 'velocity'")
