"""SDEs with freely chosen noise, on any interpolant: Albergo, Boffi & Vanden-Eijnden (arXiv 2303.08797), Sec. 2.4.

For any `epsilon(t) >= 0` the reverse SDE `dX = (velocity - epsilon score) dt + sqrt(2 epsilon) dW`, run from t = 1 to 0,
has the marginals of the process; `epsilon = 0` is the ODE. Profiles: SiT (Ma et al., ECCV 2024), Sec. 3.4 and Table 8,
which write `w = epsilon`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tweed.core.processes import Process
from tweed.core.time import as_time, left
from tweed.errors import IncompatibleError, InputError, choose
from tweed.solvers.base import Problem, Solver, State

Epsilon = Callable[[Process, Tensor], Tensor]

PROFILES: dict[str, Epsilon] = {
    "constant": lambda process, t: torch.ones_like(t),
    "linear": lambda process, t: t,
    "sine": lambda process, t: (math.pi * t).sin() ** 2,
    "decreasing": lambda process, t: (0.5 * ((math.pi * (1.0 - t)).cos() + 1.0)) ** 2,
    "sigma": lambda process, t: process.sigma(t),
    "sbdm": lambda process, t: 0.5 * process.diffusion(t) ** 2,
}
"""Every noise profile by name, for a `scale` of 1; all of them in tweed's time (noise at t = 1)."""


@dataclass(frozen=True)
class InterpolantSDE(Solver):
    """Euler-Maruyama, or the stochastic Heun method, on the reverse SDE with noise `scale epsilon(t)`.

    Needs the score as well as the velocity: any Gaussian process, or a two-sided interpolant with latent noise (the
    velocity alone suffices for `epsilon = 0`). Within a step epsilon is constant, that of its middle, and no more than
    `limit sigma^2 / h` with the smaller sigma of its ends: any epsilon leaves the marginals as they are, and one beyond
    this would have a step remove more noise than there is. A step from or to `sigma = 0` so becomes one of the ODE.

    Args:
        epsilon: a number; a name: "constant" (1), "linear" (t), "sine" (sin^2(pi t)), "decreasing" (a cosine bell that
            falls from t = 1), "sigma", "sbdm" (g^2/2: the reverse SDE of the process itself); or a function
            `(process, t) -> epsilon`, on float64 tensors.
        scale: a factor on it.
        order: 1, one evaluation a step; or 2 (weak order 2, as the noise is additive), two evaluations a step but one in
            the last, which may end where there is no score.
        limit: at most 1; infinity leaves epsilon as it is (then the grid has to keep away from `sigma = 0`).
        denoise_last: the last step follows the ODE.

    Raises:
        InputError: an option is out of its range.
        IncompatibleError: "sbdm" on a two-sided interpolant, or noise without a score.
    """

    epsilon: float | str | Epsilon = "sigma"
    scale: float = 1.0
    order: Literal[1, 2] = 1
    limit: float = 0.5
    denoise_last: bool = True
    adaptive: ClassVar[bool] = False

    def __post_init__(self):
        if isinstance(self.epsilon, str):
            choose("epsilon", self.epsilon, PROFILES)
        elif not callable(self.epsilon) and not 0.0 <= self.epsilon < math.inf:
            raise InputError(
                f"epsilon: {self.epsilon} was given; expected a number of at least 0, a name or a function"
            )
        if not 0.0 <= self.scale < math.inf:
            raise InputError(f"scale: {self.scale} was given; expected a number of at least 0")
        if self.order not in (1, 2):
            raise InputError(f"order: {self.order!r} was given; expected 1 (Euler-Maruyama) or 2 (Heun)")
        if not (0.0 < self.limit <= 1.0 or self.limit == math.inf):
            raise InputError(f"limit: {self.limit} was given; expected a number in (0, 1], or infinity")

    @property
    def evaluations(self) -> int:
        return self.order

    @property
    def stochastic(self) -> bool:
        return self.scale > 0.0 and self.epsilon != 0.0

    def check(self, process: Process) -> None:
        if process.endpoint != "drawn" or not self.stochastic:
            return
        name = type(process).__name__
        if self.epsilon == "sbdm":
            raise IncompatibleError(f"epsilon: 'sbdm' needs the diffusion of a Gaussian process; {name} is two-sided")
        if process.level(0.5).sigma == 0.0:
            raise IncompatibleError(f"epsilon: {name} has no latent noise, so no score; expected epsilon=0 (the ODE)")

    def step(self, problem: Problem, state: State, i: int) -> State:
        t, s = problem.times[i], problem.times[i + 1]
        x, h = state.x, s - t
        noise = self.noise(problem, i)
        kick = 0.0
        if isinstance(noise, Tensor):
            kick = left((2.0 * noise * abs(h)).sqrt(), x) * problem.noise(x, i)
        elif noise > 0.0:
            kick = (2.0 * noise * abs(h)) ** 0.5 * problem.noise(x, i)
        slope = _slope(problem, x, t, h, noise)
        if self.order == 1 or i + 1 == problem.steps:
            return State(x + slope + kick)
        return State(x + 0.5 * (slope + _slope(problem, x + slope + kick, s, h, noise)) + kick)

    def noise(self, problem: Problem, i: int) -> float | Tensor:
        """Epsilon in step `i`: a number (0 for a step of the ODE), or a tensor (b,) where each sample has its own times."""
        t, s = problem.times[i], problem.times[i + 1]
        if not self.stochastic or (self.denoise_last and i + 1 == problem.steps):
            return 0.0
        if isinstance(t, Tensor) or isinstance(s, Tensor):
            return self._epsilon(problem.process, as_time(t), as_time(s))
        return _number(self, problem.process, t, s)

    def _epsilon(self, process: Process, t: Tensor, s: Tensor) -> Tensor:
        middle = 0.5 * (t + s)
        if isinstance(self.epsilon, str):
            value = PROFILES[self.epsilon](process, middle)
        elif callable(self.epsilon):
            value = self.epsilon(process, middle)
        else:
            value = torch.full_like(middle, self.epsilon)
        value = self.scale * value
        if self.limit == math.inf:
            return value
        sigma = torch.minimum(process.sigma(t), process.sigma(s))
        return torch.minimum(value, self.limit * sigma**2 / (t - s).abs())


@lru_cache(maxsize=65536)
def _number(solver: InterpolantSDE, process: Process, t: float, s: float) -> float:
    return solver._epsilon(process, as_time(t), as_time(s)).item()


def _slope(problem: Problem, x: Tensor, t: float | Tensor, h: float | Tensor, noise: float | Tensor) -> Tensor:
    """`velocity h + epsilon score |h|`: the drift of either direction of time, times the step."""
    estimate = problem.estimate(x, t)
    if isinstance(h, Tensor):
        result = left(h, x) * estimate.velocity
        if not isinstance(noise, Tensor):
            return result
        # Where epsilon is 0 there may be no score.
        gain = left(noise * h.abs(), x)
        return result + torch.where(gain > 0.0, gain * estimate.score, 0.0)
    result = estimate.velocity * h
    return result if noise == 0.0 else result + (noise * abs(h)) * estimate.score
