"""Optimal boundary conditions: Ma et al., "Solving Diffusion ODEs with Optimal Boundary Conditions for Better Image
Super-Resolution" (ICLR 2024, arXiv 2305.15357).

A conditional model sampled by an ODE is a fixed map `h(x_T, y)` from the noise that it starts from. Which starts are good
hardly depends on y, so one is looked for once, on a few known pairs, and used for every input thereafter:

    x_T* = argmin over candidates of the mean over pairs of distance(h(x_T, y_i), z_i).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import random
from tweed.core.denoiser import Denoiser
from tweed.core.processes import Process
from tweed.core.starts import Start
from tweed.errors import IncompatibleError, InputError
from tweed.inverse.method import Watch, levels
from tweed.solvers import DDIM, Solver, sample

Distance = Callable[[Tensor, Tensor], Tensor]
"""(b, *event), (b, *event) -> (b,): of results to what they should be; a perceptual one where sharpness matters."""


def squared_error(x: Float[Tensor, "b *event"], z: Float[Tensor, "b *event"]) -> Float[Tensor, " b"]:
    """The mean squared error. It is least for starts near the mean, whose results are smooth."""
    return (x - z).double().square().flatten(1).mean(1)


@dataclass(frozen=True, eq=False)
class BoundaryCondition:
    """One start for all inputs, and what it was found for.

    Attributes:
        x: the start, shape (1, *event).
        score: its mean distance on the reference pairs.
        scores: those of all candidates, shape (k,).
        number: which candidate it is.
        process, solver, times: of the runs; another of any of these is another map, and is refused.
    """

    x: Tensor
    score: float
    scores: Tensor
    number: int
    process: Process
    solver: Solver
    times: tuple[float, ...]

    def sample(
        self, denoiser: Denoiser, cond: Mapping[str, Tensor], n: int | None = None, *, solver: Solver | None = None
    ) -> Float[Tensor, "b *event"]:
        """The results for new inputs: the same start for each row of the conditions.

        Args:
            n: how many, where no condition says.

        Raises:
            IncompatibleError: the process or the solver is not that of the search.
        """
        if denoiser.process != self.process or (solver is not None and solver != self.solver):
            raise IncompatibleError(
                f"denoiser, solver: this start was found for {self.process} and {self.solver}; {denoiser.process} and "
                f"{solver} were given. Search again"
            )
        rows = n if n is not None else max((len(value) for value in cond.values()), default=1)
        start = _endpoint(self.process, self.x.expand(rows, *self.x.shape[1:]), self.times[0], cond)
        return sample(denoiser, start, solver=self.solver, times=self.times, cond=cond)

    def start(self, n: int) -> Start:
        """The start for `n` inputs, as `tweed.sample` takes it; for a process without an endpoint."""
        return Start(self.x.expand(n, *self.x.shape[1:]), self.times[0])


@torch.no_grad()
def search_boundary(
    denoiser: Denoiser,
    cond: Mapping[str, Tensor],
    targets: Float[Tensor, "r *event"],
    distance: Distance = squared_error,
    *,
    solver: Solver | None = None,
    steps: int = 50,
    grid: Callable[..., Tensor] | None = None,
    candidates: int | Sequence[int] = 1000,
    seed: int = 0,
    batch_size: int = 1024,
    watch: Watch | None = None,
) -> BoundaryCondition:
    """The best of random starts on reference pairs; `candidates` times r times `steps` evaluations of a row, once.

    Args:
        denoiser: a conditional one.
        cond: its conditions, r rows each (a process's endpoint `y` among them).
        targets: what the results should be.
        distance: of results to targets, one number a row.
        solver: deterministic; `DDIM()` where not given. It and `steps` are those of the later use.
        candidates: how many starts, or their numbers under `seed`: candidate k is the same in any set.
        batch_size: rows at a time.

    Raises:
        InputError: a solver that draws noise, no candidates, rows that do not fit.
    """
    solver = solver or DDIM()
    if solver.stochastic:
        raise InputError(f"solver: {solver!r} draws noise on the way; what it starts from then decides little")
    numbers = list(range(candidates)) if isinstance(candidates, int) else list(candidates)
    if not numbers or len(targets) == 0:
        raise InputError(
            f"candidates, targets: {len(numbers)} and {len(targets)} were given; expected at least one each"
        )
    r, event = len(targets), tuple(targets.shape[1:])
    if any(len(value) != r for value in cond.values()):
        shapes = {name: tuple(value.shape) for name, value in cond.items()}
        raise InputError(f"cond: {shapes} were given; expected {r} rows each, as many as targets")
    times = levels(denoiser, steps, grid)
    process, dtype, device = denoiser.process, torch.float32, denoiser.device
    level = process.level(times[0])

    def candidate(k: int) -> Tensor:
        return level.sigma * random.normal((1, *event), seed, index=k, dtype=dtype, device=device)

    together = max(1, batch_size // r)
    scores = []
    for first in range(0, len(numbers), together):
        chosen = numbers[first : first + together]
        rows = torch.cat([candidate(k) for k in chosen]).repeat_interleave(r, 0)
        repeated = {name: value.repeat(len(chosen), *(1,) * (value.ndim - 1)) for name, value in cond.items()}
        start = _endpoint(process, rows, times[0], repeated)
        result = sample(denoiser, start, solver=solver, times=times, cond=repeated)
        wanted = targets.repeat(len(chosen), *(1,) * len(event))
        scores.append(distance(result, wanted).double().reshape(len(chosen), r).mean(1))
        if watch is not None:
            watch("boundary search", min(1.0, (first + together) / len(numbers)))
    found = torch.cat(scores)
    # The lowest number of equal ones, in whatever order they came.
    best = min(range(len(numbers)), key=lambda i: (float(found[i]), numbers[i]))
    return BoundaryCondition(candidate(numbers[best]), float(found[best]), found, numbers[best], process, solver, times)


def _endpoint(process: Process, noise: Tensor, t: float, cond: Mapping[str, Tensor]) -> Tensor:
    """The start that a noise stands for: around the endpoint, where there is one."""
    if process.endpoint == "none":
        return noise
    y = cond.get("y")
    if y is None:
        raise InputError("cond: the process has an endpoint; give it as 'y'")
    return noise + process._endpoint_share(process.level(t)) * y.to(noise)
