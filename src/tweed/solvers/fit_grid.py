"""Optimised time grids: the levels at which a solver's few steps reach the converged solution most closely.

Where the steps are taken matters as much as how, and no fixed rule is best for every model. That a grid may be fitted to
a model is due to Watson et al. ("Learning Fast Samplers", ICLR 2022), and to "Align Your Steps" (Sabour et al., 2024,
which minimises a bound), GITS (Chen et al., 2024, which adds up local errors) and DMN (Xue et al., 2024, which assumes
them). Here the error itself is minimised: for given starts, the distance of the solver's result from the converged one,

    min over grids of  sum_i  w_i |Phi_grid(x_i) - x_i*|^2,

by Levenberg-Marquardt on a few coefficients of the levels. With `lambda = log(alpha / sigma)` and an initial grid (the
best of the fixed ones) the step `h_j` is multiplied by `exp(sum_k c_k cos(pi k (j + 1/2) / n))` and all are scaled to
the same extent; so steps stay positive, and few smooth coefficients cannot fit the accidents of some starts. A start near
the border of two basins ends in one or the other, and says nothing of a grid; `w_i = 1 / (1 + (e_i / 3 median e)^2)` keeps
such starts from deciding. Nothing is needed but the denoiser: the starts come from its prior.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from tweed.core.denoiser import Denoiser
from tweed.core.fitted_grid import FittedGrid
from tweed.core.starts import Start
from tweed.errors import IncompatibleError, InputError
from tweed.solvers.accuracy import converged
from tweed.solvers.base import Solver
from tweed.solvers.grid_search import COARSE, FINE, Search, tell
from tweed.solvers.registry import describe
from tweed.solvers.sampling import sample

Jump = Callable[[Tensor, float], Tensor]
"""`(x, t) -> state`: carries draws of the prior to time `t` without the denoiser, as a Gaussian's flow does."""


def fit_grid(
    denoiser: Denoiser,
    solver: Solver,
    steps: int,
    *,
    starts: int | Float[Tensor, "b *event"] = 64,
    cond: Mapping[str, Tensor] | None = None,
    end: float | None = None,
    jump: Jump | None = None,
    coefficients: int = 5,
    tries: int = 8,
    reference: Float[Tensor, "b *event"] | None = None,
    tolerance: float = 1e-3,
    seed: int = 0,
    shape: tuple[int, ...] | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> FittedGrid:
    """The grid on which `solver` comes closest to the converged solution in `steps` steps.

    It costs some 400 runs of the solver on all starts, and their converged solution once.

    Args:
        denoiser: any with a Gaussian process; guided or not. Its conditions are `cond`, one row a start.
        solver: a deterministic one that follows a given grid.
        starts: how many draws of the prior the grid is fitted to, or these draws, at time `denoiser.t_max`.
        end: the last level; `process.t_min` where not given. 0 adds the step from the last level found to clean data.
        jump: carries the prior's draws to a later time in closed form: then the first level is found as well.
        coefficients: of the levels; more fit the starts better and other starts worse.
        tries: how many coarse fits, on a part of the starts, are begun from different grids: there are local minima.
            Time is nearly proportional to it.
        reference: where the flow carries the starts by time `end`; `converged` to `tolerance` where not given.
        seed: of the starts.
        shape: of one sample, where the denoiser does not know it.

    Raises:
        InputError: fewer than two steps, a stochastic or adaptive solver, or the reference does not converge.
        IncompatibleError: the solver does not fit the process, or the process is two-sided.
        NumericalError: the solver's result is not finite on any of the fixed grids.
    """
    _check(denoiser, solver, steps, coefficients, tries)
    process = denoiser.process
    end = process.t_min if end is None else end
    top = denoiser.t_max
    count = starts if isinstance(starts, int) else len(starts)
    if isinstance(starts, Tensor):
        x = starts
    else:
        event = shape or denoiser.event
        if event is None:
            raise InputError("shape: the denoiser does not know the shape of a sample; pass shape=(...)")
        x = process.prior((count, *event), seed, t=top, y=(cond or {}).get("y"), device=denoiser.device)
    if reference is None:
        tell(progress, "the converged solution", 0.0)
        above = end if math.isfinite(process.level(end).log_snr) else process.t_min
        reference = converged(denoiser, x, start=top, end=above, tolerance=tolerance, cond=cond)
        if above != end:
            reference = sample(denoiser, Start(reference, above), solver=solver, times=[above, end], cond=cond)
    search = Search(denoiser, solver, steps, x, reference, cond, top, end, jump, coefficients)
    bases = search.initial(progress)
    few = search.part(max(16, count // 4))
    found = []
    for number, (base, c) in enumerate(search.candidates(bases, tries)):
        tell(progress, f"a coarse fit, {number + 1} of {tries}", 0.3 + 0.4 * number / tries)
        c, _ = few.fit(base, c, math.inf, COARSE)
        found.append((search.score(search.times(base, c)), number, base, c))
    refined = []
    for score, number, base, c in sorted(found, key=lambda each: each[:2])[:2]:
        tell(progress, "a fine fit", 0.7 + 0.15 * len(refined))
        c, score = search.fit(base, c, score, FINE)
        refined.append((score, number, base, c))
    error, _, base, c = min(refined, key=lambda each: each[:2])
    if error > bases[0][0]:
        error, base, c = *bases[0], np.zeros(search.free)
    levels = tuple(search.levels(base, c).tolist())
    return FittedGrid(levels, describe(solver), steps, error, bases[0][0], jump is not None)


def keep_grid(denoiser: Denoiser, grid: FittedGrid) -> None:
    """Puts a grid into the denoiser's `meta`, which `tweed.save` writes with it; one for the same run is replaced."""
    meta: dict[str, Any] = dict(getattr(denoiser, "meta", {}) or {})
    others = [g for g in kept_grids(denoiser) if (g.solver, g.steps, g.jump) != (grid.solver, grid.steps, grid.jump)]
    meta["grids"] = [g.as_dict() for g in (*others, grid)]
    denoiser.meta = meta  # type: ignore[assignment]


def kept_grids(denoiser: Denoiser) -> list[FittedGrid]:
    """The grids that were kept with a denoiser, or with the one inside its wrappers."""
    inner = denoiser
    while not getattr(inner, "meta", None) and isinstance(getattr(inner, "denoiser", None), Denoiser):
        inner = inner.denoiser  # type: ignore[assignment]
    return [FittedGrid.from_dict(values) for values in (getattr(inner, "meta", None) or {}).get("grids", ())]


def _check(denoiser: Denoiser, solver: Solver, steps: int, coefficients: int, tries: int) -> None:
    if not isinstance(denoiser, Denoiser) or not isinstance(solver, Solver):
        raise InputError(f"denoiser, solver: {denoiser!r}, {solver!r} were given; expected a denoiser and a solver")
    if denoiser.process.endpoint == "drawn":
        raise IncompatibleError(
            "denoiser: a two-sided interpolant has no log-SNR that falls in time, and so no such grid"
        )
    solver.check(denoiser.process)
    if solver.stochastic or solver.adaptive:
        raise InputError(f"solver: {describe(solver)} was given; expected a deterministic one that follows a grid")
    if not (isinstance(steps, int) and steps >= 2):
        raise InputError(f"steps: {steps!r} was given; expected at least 2 (one step has no grid)")
    if coefficients < 1 or tries < 1:
        raise InputError(f"coefficients, tries: {coefficients}, {tries} were given; expected at least 1 each")
