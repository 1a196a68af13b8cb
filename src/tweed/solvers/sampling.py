"""`sample` and `invert`: a run from one end of the process to the other."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal, TypedDict, Unpack, overload

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import grids
from tweed.core.denoiser import Denoiser
from tweed.core.processes import Process
from tweed.core.starts import Start
from tweed.core.time import working_dtype
from tweed.errors import IncompatibleError, InputError, NumericalError
from tweed.solvers.base import Observer, Problem, Solver
from tweed.solvers.ddim import DDIM
from tweed.solvers.reversible import Pair, Reversible, backwards, resumed

GridFunction = Callable[..., Tensor]


class _Options(TypedDict, total=False):
    steps: int | None
    times: Sequence[float] | Tensor | None
    grid: GridFunction | None
    cond: Mapping[str, Tensor] | None
    progress: bool
    gradients: bool


class _SampleOptions(_Options, total=False):
    seed: int
    index: int
    trajectory: bool
    shape: Sequence[int] | None
    observer: Observer | None
    dtype: torch.dtype
    device: torch.device | str | None


@overload
def sample(
    denoiser: Denoiser,
    n_or_start: int | Tensor | Start | Pair,
    *,
    solver: Solver | None = None,
    return_pair: Literal[False] = False,
    **options: Unpack[_SampleOptions],
) -> Tensor: ...
@overload
def sample(
    denoiser: Denoiser,
    n_or_start: int | Tensor | Start | Pair,
    *,
    solver: Solver | None = None,
    return_pair: Literal[True],
    **options: Unpack[_SampleOptions],
) -> Pair: ...
def sample(
    denoiser: Denoiser,
    n_or_start: int | Float[Tensor, "b *event"] | Start | Pair,
    *,
    solver: Solver | None = None,
    steps: int | None = None,
    times: Sequence[float] | Float[Tensor, " steps+1"] | None = None,
    grid: GridFunction | None = None,
    cond: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    index: int = 0,
    progress: bool = False,
    trajectory: bool = False,
    shape: Sequence[int] | None = None,
    observer: Observer | None = None,
    gradients: bool = False,
    return_pair: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor | Pair:
    """Samples from a denoiser: the state carried from noise to data by `solver`.

    Sample `i` is that of number `index + i` under `seed`, whatever the batch; nothing is drawn from a global generator.

    Args:
        denoiser: any denoiser, guided, cached or otherwise wrapped.
        n_or_start: how many samples to draw from the prior; or states at the first time, shape (b, *event); or a
            `Start`, which brings its time; or the `Pair` of an exact inversion, which brings its grid and solver.
        solver: `DDIM()` where not given.
        steps: steps of the grid (20 where neither `steps` nor `times` is given); not for adaptive solvers.
        times: the grid itself, decreasing in [0, 1], shape (steps + 1,); or (steps + 1, b) for a grid a sample.
        grid: a function of `tweed.grids` (`partial` sets its options); `tweed.grids.default` where not given.
        cond: conditions, tensors with the batch first (or of one row, for all).
        progress: show a progress bar on stderr.
        trajectory: return all states, shape (steps + 1, b, *event), the start first.
        shape: of one sample, where the denoiser does not know it.
        observer: called as `observer(x, t, i)` after each step; a tensor returned replaces the state.
        gradients: keep the graph, to differentiate through the run.
        return_pair: return the `Pair` that `invert` takes back to the start exactly; for `BDIA` and `EDICT`.
        dtype, device: of the start, where a number is given; the device of the denoiser by default.

    Returns:
        The samples, shape (b, *event), in float32 or better; with `return_pair` a `Pair`, whose `states` they are.

    Raises:
        InputError: shapes do not fit, times do not decrease or leave [0, 1], `steps` is not positive; a pair's grid is
            another one.
        IncompatibleError: the solver does not fit the process, or is not that of the pair, or carries no pair.
        NumericalError: a state is not finite; the step is named.
    """
    if return_pair and trajectory:
        raise InputError("return_pair: give either return_pair or trajectory")
    if isinstance(n_or_start, Pair):
        _check_denoiser(denoiser)
        solver, levels = resumed(n_or_start, "noise", denoiser.process, solver, steps, times, grid)
        return _run(
            solver,
            denoiser,
            levels,
            n_or_start,
            cond,
            seed,
            index,
            progress,
            trajectory,
            observer,
            gradients,
            return_pair,
        )
    solver = solver or DDIM()
    _check_solver(solver, denoiser)
    process = denoiser.process
    start_time = n_or_start.t if isinstance(n_or_start, Start) else None
    levels = _levels(process, solver, steps, times, grid, start_time, denoiser.t_max)
    x = _start(denoiser, n_or_start, levels, cond, seed, index, shape, dtype, device)
    return _run(solver, denoiser, levels, x, cond, seed, index, progress, trajectory, observer, gradients, return_pair)


@overload
def invert(
    denoiser: Denoiser,
    x0: Tensor | Pair,
    *,
    solver: Reversible,
    trajectory: Literal[False] = False,
    **options: Unpack[_Options],
) -> Pair: ...
@overload
def invert(
    denoiser: Denoiser, x0: Pair, *, trajectory: Literal[False] = False, **options: Unpack[_Options]
) -> Pair: ...
@overload
def invert(
    denoiser: Denoiser,
    x0: Tensor,
    *,
    solver: Solver | None = None,
    trajectory: bool = False,
    **options: Unpack[_Options],
) -> Tensor: ...
def invert(
    denoiser: Denoiser,
    x0: Float[Tensor, "b *event"] | Pair,
    *,
    solver: Solver | None = None,
    steps: int | None = None,
    times: Sequence[float] | Float[Tensor, " steps+1"] | None = None,
    grid: GridFunction | None = None,
    cond: Mapping[str, Tensor] | None = None,
    progress: bool = False,
    trajectory: bool = False,
    gradients: bool = False,
) -> Tensor | Pair:
    """Data to noise: the same ODE solver on the reversed grid; arguments as for `sample`.

    `BDIA` and `EDICT` undo their steps exactly. With them the result is a `Pair`, which brings its grid and solver:
    `sample(denoiser, invert(denoiser, x0, solver=BDIA(), steps=20))` is `x0`. They also take the `Pair` of a `sample` with
    `return_pair=True` back to its start. To stop on the way, for an edit, let `times` begin below 1.

    Where log-SNR is infinite at t = 0, `x0` stands for the state at `process.t_min`. `times`, if given, decrease as in
    `sample`, so that `sample(denoiser, invert(denoiser, x0, times=times), times=times)` returns to `x0` up to the
    solver's error.

    Raises:
        InputError: the solver is stochastic; rounding would be amplified beyond use; or anything that `sample` raises.
    """
    if isinstance(x0, Pair):
        _check_denoiser(denoiser)
        solver, levels = resumed(x0, "data", denoiser.process, solver, steps, times, grid)
        return _run(solver, denoiser, backwards(levels), x0, cond, 0, 0, progress, trajectory, None, gradients, True)
    solver = solver or DDIM()
    _check_solver(solver, denoiser)
    if solver.stochastic:
        raise InputError(f"solver: {type(solver).__name__} draws noise; inversion needs a deterministic solver")
    process = denoiser.process
    # The velocity of a two-sided interpolant reaches t = 0; that of a Gaussian process need not where sigma(0) = 0.
    silent = process.endpoint != "drawn" and process.level(0.0).log_snr == float("inf")
    end = process.t_min if silent else 0.0
    levels = _levels(process, solver, steps, times, grid, None, denoiser.t_max, end)
    x, both = x0.to(working_dtype(x0)), isinstance(solver, Reversible)
    return _run(solver, denoiser, backwards(levels), x, cond, 0, 0, progress, trajectory, None, gradients, both)


def _check_denoiser(denoiser: Denoiser) -> None:
    if not isinstance(denoiser, Denoiser):
        raise InputError(
            f"denoiser: {type(denoiser).__name__} was given; expected a tweed Denoiser (wrap a network in "
            "NetworkDenoiser(network, process, target))"
        )


def _check_solver(solver: Solver, denoiser: Denoiser) -> None:
    _check_denoiser(denoiser)
    if not isinstance(solver, Solver):
        raise InputError(f"solver: {solver!r} was given; expected a solver such as tweed.solvers.DPMSolver()")
    if solver.states != denoiser.process.states:
        raise IncompatibleError(
            f"solver: {type(solver).__name__} moves {solver.states}; {type(denoiser.process).__name__} is a process of "
            f"{denoiser.process.states} (those of tokens are in tweed.tokens)"
        )
    solver.check(denoiser.process)


def _levels(
    process: Process,
    solver: Solver,
    steps: int | None,
    times: Sequence[float] | Tensor | None,
    grid: GridFunction | None,
    start: float | Tensor | None,
    t_max: float,
    end: float = 0.0,
) -> tuple[float, ...] | Tensor:
    if times is not None:
        if steps is not None or grid is not None:
            raise InputError("times: give either times, or steps and grid")
        levels = torch.as_tensor(times, dtype=torch.float64)
    else:
        if solver.adaptive and steps is not None:
            raise InputError(
                f"steps: {steps} was given; {type(solver).__name__} chooses its own steps (set its tolerances)"
            )
        steps = 1 if solver.adaptive else 20 if steps is None else steps
        single = start is not None and not (isinstance(start, Tensor) and start.ndim)
        first = float(start) if single else t_max  # type: ignore[arg-type]
        grid = grid or grids.default
        if isinstance(start, Tensor) and start.ndim:
            levels = grids.each(grid, process, steps, start.double(), end, first)
        else:
            levels = grid(process, steps, start=first, end=end)
    _check_times(levels)
    return tuple(levels.tolist()) if levels.ndim == 1 else levels


def _check_times(levels: Tensor) -> None:
    if levels.ndim not in (1, 2) or len(levels) < 2:
        raise InputError(f"times: shape {tuple(levels.shape)} was given; expected at least two times, (steps + 1,)")
    falls = levels[1:] < levels[:-1]
    if not bool(falls.all()):
        place = int((~falls).nonzero()[0, 0])
        raise InputError(
            f"times: times[{place + 1}] is not below times[{place}] "
            f"({levels[place + 1].tolist()} after {levels[place].tolist()}); expected decreasing times"
        )
    if bool((levels < 0).any() | (levels > 1).any()):
        raise InputError(
            f"times: from {levels.max().item()} to {levels.min().item()} were given; expected times in [0, 1]"
        )


def _start(
    denoiser: Denoiser,
    given: int | Tensor | Start,
    levels: tuple[float, ...] | Tensor,
    cond: Mapping[str, Tensor] | None,
    seed: int,
    index: int,
    shape: Sequence[int] | None,
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> Tensor:
    if isinstance(given, Start):
        given = given.x
    if isinstance(given, Tensor):
        if isinstance(levels, Tensor) and levels.shape[1] != len(given):
            raise InputError(f"times: a grid for {levels.shape[1]} samples was given; expected {len(given)}")
        return _working(denoiser.process, given)
    if isinstance(given, bool) or not isinstance(given, int) or given < 0:
        raise InputError(f"n_or_start: {given!r} was given; expected a number of samples, a state or a Start")
    y = None if cond is None else cond.get("y")
    event = shape if shape is not None else denoiser.event if denoiser.event is not None else None
    if event is None and y is not None:
        event = y.shape[1:]
    if event is None:
        raise InputError("shape: the denoiser does not know the shape of a sample; pass shape=(...) or a start tensor")
    if isinstance(levels, Tensor):
        raise InputError("n_or_start: a grid for each sample needs the states themselves, or a Start")
    if y is not None:
        y = _rows("y", y, given)
        dtype = torch.promote_types(dtype, y.dtype) if y.dtype.is_complex else dtype
    device = device or denoiser.device
    return denoiser.process.prior((given, *event), seed, index=index, t=levels[0], y=y, dtype=dtype, device=device)


def _working(process: Process, given: Tensor) -> Tensor:
    if process.states == "numbers":
        return given.to(working_dtype(given))
    if given.is_floating_point() or given.is_complex() or given.dtype is torch.bool:
        raise InputError(f"n_or_start: {given.dtype} was given; expected tokens, integers")
    return given.to(torch.int64)


def _conditions(cond: Mapping[str, Tensor] | None, x: Tensor) -> dict[str, Tensor]:
    if cond is None:
        return {}
    return {name: _rows(name, value, len(x)).to(x.device) for name, value in cond.items() if value is not None}


def _rows(name: str, value: Tensor, batch: int) -> Tensor:
    if not isinstance(value, Tensor):
        raise InputError(f"cond: {name!r} is a {type(value).__name__}; expected a tensor with the batch first")
    if value.ndim == 0 or len(value) not in (1, batch):
        raise InputError(f"cond: {name!r} has shape {tuple(value.shape)}; expected {batch} rows (or one for all)")
    return value if len(value) == batch else value.expand(batch, *value.shape[1:])


def _run(
    solver: Solver,
    denoiser: Denoiser,
    levels: tuple[float, ...] | Tensor,
    start: Tensor | Pair,
    cond: Mapping[str, Tensor] | None,
    seed: int,
    index: int,
    progress: bool,
    trajectory: bool,
    observer: Observer | None,
    gradients: bool,
    return_pair: bool,
) -> Tensor | Pair:
    if return_pair and not isinstance(solver, Reversible):
        raise IncompatibleError(f"return_pair: {type(solver).__name__} carries no pair; use BDIA or EDICT")
    x = start.states if isinstance(start, Pair) else start
    problem = Problem(denoiser.start(), levels, _conditions(cond, x), seed, index)
    states, pair = [x], None
    bar = _Progress(problem.steps) if progress else None

    def watch(state: Tensor, t: float | Tensor, i: int) -> Tensor | None:
        changed = None if observer is None else observer(state, t, i)
        if trajectory:
            states.append(state if changed is None else changed)
        if bar is not None:
            bar.advance()
        return changed

    watched = watch if (trajectory or bar is not None or observer is not None) else None
    with nullcontext() if gradients else torch.no_grad():
        try:
            if isinstance(solver, Reversible):
                pair = solver.run(problem, start, watched)
                result = pair.states
            else:
                result = solver.integrate(problem, x, watched)
        finally:
            if bar is not None:
                bar.close()
        _check_finite(solver, problem, start, result, observer)
    if not trajectory:
        return pair if return_pair and pair is not None else result
    states[-1] = result
    return torch.stack(states)


def _check_finite(solver: Solver, problem: Problem, start: Any, result: Tensor, observer: Observer | None) -> None:
    # One look after the loop, none inside it; only a failed run is repeated, to name its step.
    if bool(torch.isfinite(result).all()):
        return
    x = start.states if isinstance(start, Pair) else start
    place = "its start" if not bool(torch.isfinite(x).all()) else None

    def look(state: Tensor, t: float | Tensor, i: int) -> Tensor | None:
        nonlocal place
        changed = None if observer is None else observer(state, t, i)
        if place is None and not bool(torch.isfinite(state if changed is None else changed).all()):
            at = t if isinstance(t, float) else "its own time a sample"
            place = f"step {i} of {problem.steps} (to t = {at})"
        return changed

    if place is None:
        solver.integrate(replace(problem, denoiser=problem.denoiser.start()), start, look)  # type: ignore[arg-type]
    bad = (~torch.isfinite(result)).flatten(1).any(1).nonzero()[:, 0].tolist() if result.ndim > 1 else []
    raise NumericalError(
        f"{type(solver).__name__}: the state is not finite from {place or 'the last step'} on, in samples {bad[:8]}; the "
        "network's output, or its target at the first time, is not finite there"
    )


class _Progress:
    """A progress bar on stderr, where a person sees it."""

    def __init__(self, total: int):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("sampling"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._bar.start()
        self._task = self._bar.add_task("sampling", total=total)

    def advance(self) -> None:
        self._bar.advance(self._task)

    def close(self) -> None:
        self._bar.stop()
