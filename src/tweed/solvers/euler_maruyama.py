"""Euler-Maruyama on the reverse SDE: Song et al., "Score-Based Generative Modeling through SDEs" (ICLR 2021), Sec. 3.2.

The forward SDE `dx = f(t) x dt + g(t) dw` is undone by `dx = [f x - g^2 score] dt + g dw` (Eq. 6), and, with the same
marginals, by the ODE `dx = [f x - g^2 score / 2] dt` (Eq. 13), whose right-hand side is the velocity.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tweed.core.processes import Process
from tweed.core.time import as_time
from tweed.errors import IncompatibleError, choose
from tweed.solvers.base import require_gaussian
from tweed.solvers.ddim import one_evaluation
from tweed.solvers.table import Table, TableSolver


@dataclass(frozen=True)
class EulerMaruyama(TableSolver):
    """First order (weak), one evaluation a step, with the spacing that the grid has.

    (The official code takes `1 / N` for every step on a grid of `N` points, which are `1 / (N - 1)` apart; that is not
    offered.)

    Args:
        probability_flow: follow the ODE instead: no noise, either direction of time, two-sided interpolants too.
        denoise_last: the last step returns its mean, without noise.
        endpoint: how the drift towards the endpoint is followed where the process has one: "exact", by steps in
            `x - beta y`, or "euler", by steps in `x` itself, the "reverse diffusion" step of Richter et al. (TASLP 2023)
            for OUVE. They differ by O(h^2) a step.

    Raises:
        InputError: an unknown `endpoint`.
        IncompatibleError: the grid starts where `alpha = 0` and the forward SDE is singular.
    """

    probability_flow: bool = False
    denoise_last: bool = True
    endpoint: Literal["exact", "euler"] = "exact"
    order: ClassVar[int] = 1
    evaluations: ClassVar[int] = 1  # type: ignore[assignment]

    def __post_init__(self):
        choose("endpoint", self.endpoint, ("exact", "euler"))

    @property
    def stochastic(self) -> bool:
        return not self.probability_flow

    def check(self, process: Process) -> None:
        if not self.probability_flow:
            require_gaussian(self, process)

    def table(self, process: Process, times: Sequence[float] | Tensor) -> Table:
        t = as_time(times) if isinstance(times, Tensor) else torch.as_tensor(times, dtype=torch.float64)
        step = t[1:] - t[:-1]
        now = t[:-1]
        if self.probability_flow:
            return one_evaluation("velocity", times, torch.ones_like(step), (step,))
        if not isinstance(times, Tensor) and process.level(times[0]).alpha == 0.0:
            raise IncompatibleError(
                f"solver: EulerMaruyama cannot start at t = {times[0]}, where alpha = 0 and the drift of "
                f"{type(process).__name__} is infinite; start at process.t_max = {process.t_max:g} (times=..., or a "
                "Start), or use ReverseDiffusion, DDPM or InterpolantSDE"
            )
        rate, diffusion = process.alpha_dot(now) / process.alpha(now), process.diffusion(now)
        # score = -eps / sigma.
        towards = step * diffusion**2 / process.sigma(now)
        noise = diffusion * step.abs().sqrt()
        table = one_evaluation("noise", times, 1.0 + rate * step, (towards,), last_without(noise, self.denoise_last))
        if self.endpoint == "exact" or process.endpoint != "given":
            return table
        # The drift is rate (x - beta y) + beta' y.
        share = step * (process.beta_dot(now) - rate * process.beta(now))
        shares = share if isinstance(times, Tensor) else share.tolist()
        steps = tuple((row._replace(endpoint=d),) for (row,), d in zip(table.steps, shares, strict=True))
        return replace(table, steps=steps, shifted=False)


def last_without(noise: Tensor, denoise_last: bool) -> Tensor:
    """Noise scales (steps,) or (steps, b), the last set to zero where the last step is to return its mean."""
    return torch.cat((noise[:-1], torch.zeros_like(noise[-1:]))) if denoise_last else noise
