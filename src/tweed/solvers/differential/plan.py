"""What is integrated: a field, a method, a grid of times, the places that are kept, and the noise of each step."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.errors import InputError
from tweed.solvers.differential.field import Field, Noise
from tweed.solvers.differential.steppers import State, Stepper


@dataclass(frozen=True)
class Plan:
    """A run on a fixed grid.

    Attributes:
        grid: the times, float64 numbers, all rising or all falling.
        keep: the indices of the grid at which y is returned, rising, the first of them 0 and the last the grid's last.
        noise: what the Brownian motion does from `grid[i]` to `grid[i + 1]`; None for an ordinary equation. Asked for the
            same step again it must give the same answer.
    """

    field: Field
    stepper: Stepper
    grid: tuple[float, ...]
    keep: tuple[int, ...]
    noise: Callable[[float, float], Noise] | None = None

    @property
    def steps(self) -> int:
        return len(self.grid) - 1

    def noise_of(self, i: int) -> Noise | None:
        """The noise of step i."""
        return None if self.noise is None else self.noise(self.grid[i], self.grid[i + 1])

    def start(self, y0: Tensor) -> State:
        return self.stepper.start(self.field, self.grid[0], y0)

    def step(self, i: int, state: State) -> State:
        """From `grid[i]` to `grid[i + 1]`."""
        return self.stepper.step(self.field, self.grid[i], self.grid[i + 1], state, self.noise_of(i))

    def run(self, y0: Float[Tensor, "b *n"]) -> Float[Tensor, "t b *n"]:
        """All steps, with whatever graph they make: the direct method."""
        state, kept, path = self.start(y0), set(self.keep), [y0]
        for i in range(self.steps):
            state = self.step(i, state)
            if i + 1 in kept:
                path.append(state[0])
        return torch.stack(path)


def check_times(ts: Sequence[float] | Tensor) -> tuple[float, ...]:
    """The times as float64 numbers.

    Raises:
        InputError: fewer than one, not 1-D, not finite, or neither strictly rising nor strictly falling.
    """
    tensor = torch.as_tensor(ts, dtype=torch.float64).detach().cpu()
    if tensor.ndim != 1 or not len(tensor):
        raise InputError(f"ts: shape {tuple(tensor.shape)} was given; expected (t,), with at least one time")
    steps = tensor.diff()
    if not bool(tensor.isfinite().all()) or not (bool((steps > 0).all()) or bool((steps < 0).all())):
        raise InputError("ts: expected finite times that strictly rise or strictly fall")
    return tuple(tensor.tolist())


def fixed_grid(ts: Sequence[float], step: float | None) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """A grid through all of `ts`, each interval in equal steps of at most `step` (one step where None).

    Returns:
        The grid, and the indices of `ts` in it.

    Raises:
        InputError: `step` is not a positive finite number.
    """
    if step is not None and not (0.0 < step < math.inf):
        raise InputError(f"step: {step} was given; expected a positive number")
    grid, keep = [ts[0]], [0]
    for a, b in itertools.pairwise(ts):
        # A step that divides the interval but for rounding is not halved.
        count = 1 if step is None else max(1, math.ceil(abs(b - a) / step * (1.0 - 1e-12)))
        grid += [a + (b - a) * (k / count) for k in range(1, count)] + [b]
        keep.append(len(grid) - 1)
    return tuple(grid), tuple(keep)


def check_state(y0: Tensor) -> None:
    """Raise an `InputError` unless `y0` is a real floating tensor with a batch first."""
    if not isinstance(y0, Tensor) or not y0.is_floating_point():
        given = y0.dtype if isinstance(y0, Tensor) else type(y0).__name__
        raise InputError(f"y0: {given} was given; expected a real floating tensor")
    if y0.ndim == 0:
        raise InputError("y0: shape () was given; expected a batch first, (b, ...)")
