"""Predictor-corrector sampling: Song et al. (ICLR 2021), Algorithm 1.

A predictor carries the state to the next time; a corrector then (or before) draws it to that time's marginal by MCMC.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from tweed.core.processes import Process
from tweed.errors import IncompatibleError, InputError, choose
from tweed.solvers.base import Problem, Solver, State, require_gaussian
from tweed.solvers.langevin import Corrector, Langevin
from tweed.solvers.reverse_diffusion import ReverseDiffusion


@dataclass(frozen=True)
class PredictorCorrector(Solver):
    """Any solver as predictor, with Langevin steps between its steps.

    The last step of the published predictors has no noise, so that the result is a mean (denoised); nothing corrects it.
    Pixels that are known are imposed by an `observer` that overwrites them after each step.

    Args:
        predictor: a solver that is not adaptive, or None: then the corrector alone moves the state (annealed Langevin
            dynamics, for processes with `alpha = 1`), and the result is at the last time but one.
        corrector: `Langevin` or `AnnealedLangevin`.
        first: "corrector" (the official code: correct at t_i, then predict t_{i+1}) or "predictor" (Algorithm 1:
            predict t_{i+1}, then correct there, but not at the end). They differ only at both ends of the run.

    Raises:
        InputError: something else than a solver or a corrector.
        IncompatibleError: the predictor is adaptive, or there is none and alpha varies.
    """

    predictor: Solver | None = ReverseDiffusion()  # noqa: RUF009 (immutable)
    corrector: Corrector = Langevin()  # noqa: RUF009 (immutable)
    first: Literal["corrector", "predictor"] = "corrector"

    def __post_init__(self):
        choose("first", self.first, ("corrector", "predictor"))
        if self.predictor is not None and not isinstance(self.predictor, Solver):
            raise InputError(f"predictor: {self.predictor!r} was given; expected a solver, or None")
        if not isinstance(self.corrector, Corrector):
            raise InputError(f"corrector: {self.corrector!r} was given; expected Langevin or AnnealedLangevin")
        if self.predictor is not None and self.predictor.adaptive:
            raise IncompatibleError(
                f"predictor: {type(self.predictor).__name__} chooses its own steps; use a fixed one"
            )

    @property
    def order(self) -> int:
        """That of the predictor (1 where there is none)."""
        return 1 if self.predictor is None else self.predictor.order  # type: ignore[attr-defined]

    @property
    def evaluations(self) -> int:
        return self.corrector.evaluations + (0 if self.predictor is None else self.predictor.evaluations)

    @property
    def stochastic(self) -> bool:
        return self.corrector.steps > 0 or (self.predictor is not None and self.predictor.stochastic)

    def check(self, process: Process) -> None:
        require_gaussian(self, process)
        if self.predictor is not None:
            self.predictor.check(process)
        elif process.level(process.t_max).alpha != 1.0:
            raise IncompatibleError(
                f"predictor: None was given for {type(process).__name__}, whose alpha varies; a predictor must rescale"
            )

    def init(self, problem: Problem, x: Float[Tensor, "b *event"]) -> State:
        return State(x) if self.predictor is None else self.predictor.init(problem, x)

    def step(self, problem: Problem, state: State, i: int) -> State:
        here, there = problem.times[i], problem.times[i + 1]
        if self.first == "corrector":
            state = state._replace(x=self.corrector.correct(problem, state.x, here, there, i))
        if self.predictor is not None:
            state = self.predictor.step(problem, state, i)
        if self.first == "predictor" and i + 1 < problem.steps:
            state = state._replace(x=self.corrector.correct(problem, state.x, there, here, i))
        return state

    def finish(self, problem: Problem, state: State) -> Float[Tensor, "b *event"]:
        return state.x if self.predictor is None else self.predictor.finish(problem, state)
