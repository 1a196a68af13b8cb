"""Neural controlled differential equations: networks that read irregular series as paths.

Kidger, Morrill, Foster & Lyons, "Neural controlled differential equations for irregular time series" (NeurIPS 2020,
arXiv 2005.08926): `dz = f(z) dX`, with a path X through the observations, is for a series what a recurrent network is for
a regular one. As X is differentiable almost everywhere, it is the ordinary equation `dz/dt = f(z) dX/dt`.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tweed.errors import InputError
from tweed.nets.registry import initialise, without_draws
from tweed.nets.vector_field import VectorField
from tweed.science.controls import Control
from tweed.solvers.differential import odeint
from tweed.solvers.differential.tableaus import PAIRS


def cdeint(
    control: Control,
    f: Callable[[Tensor, Tensor], Tensor],
    z0: Float[Tensor, "b h"],
    ts: Sequence[float] | Float[Tensor, " t"] | None = None,
    *,
    method: str = "rk4",
    step: float | None = None,
    params: Iterable[Tensor] | None = None,
    **options: Any,
) -> Float[Tensor, "t b h"]:
    """The solution of `dz = f(t, z) dX`, `z(ts[0]) = z0`, at all of `ts`.

    Args:
        control: the path X; see `linear`, `hermite` and `rectilinear`.
        f: `f(t, z)`, shape (b, h, c) for c channels of X.
        ts: strictly rising, within the knots of the control; None for the first and the last knot.
        method, options: those of `odeint`. Fixed methods stop at every knot, in one step from knot to knot where `step` is
            None. Adaptive ones (with `step=None`) stop at the knots of a control that is not smooth.
        params: the tensors that gradients go to with `adjoint="checkpoint"`, "reversible" or "backsolve"; None for the
            parameters of f, if it is a module, and the coefficients of the control.

    Raises:
        InputError: times outside the knots, or of another kind; f answers another shape; and as `odeint`.
    """
    knots = control.knots.tolist()
    times = [knots[0], knots[-1]] if ts is None else torch.as_tensor(ts, dtype=torch.float64).tolist()
    if not isinstance(times, list) or len(times) < 1 or any(b <= a for a, b in pairwise(times)):
        raise InputError(f"ts: {times} was given; expected strictly rising times")
    if not knots[0] <= times[0] <= times[-1] <= knots[-1]:
        raise InputError(
            f"ts: from {times[0]:g} to {times[-1]:g} was given; the control is known from {knots[0]:g} to {knots[-1]:g}"
        )
    if z0.ndim != 2 or z0.shape[0] != control.coefficients.shape[1]:
        given, batch = tuple(z0.shape), control.coefficients.shape[1]
        raise InputError(f"z0: shape {given} was given; expected (b, h) for the {batch} series of the control")
    shape = (*z0.shape, control.channels)
    tensors: list[Tensor] = list(f.parameters()) if params is None and isinstance(f, nn.Module) else list(params or ())
    if params is None:
        tensors.append(control.coefficients)

    def along(path: Control) -> Callable[[Tensor, Tensor], Tensor]:
        def slope(t: Tensor, z: Tensor) -> Tensor:
            matrix = f(t, z)
            if matrix.shape != shape:
                raise InputError(f"f: {tuple(matrix.shape)} was answered; expected (b, h, channels) = {shape}")
            return (matrix @ path.derivative(t).to(z)[:, :, None])[:, :, 0]

        return slope

    settings: dict[str, Any] = {"method": method, "step": step, "params": tensors, **options}
    adaptive = step is None and (method in PAIRS or method in ("dopri8", "fehlberg2", "adaptive_heun"))
    inner = [t for t in knots if times[0] < t < times[-1]]
    if control.smooth:
        grid = times if adaptive else sorted({*times, *inner})
        path = odeint(along(control), z0, grid, **settings)
        return path[[grid.index(t) for t in times]]
    # The derivative jumps: each piece by itself, so that a step's last stage sees the slope of its own piece.
    z, found = z0, [z0]
    for i, (a, b) in enumerate(pairwise(knots)):
        low, high = max(a, times[0]), min(b, times[-1])
        if low >= high:
            continue
        grid = sorted({low, high, *(t for t in times if low < t < high)})
        path = odeint(along(control.restricted(i)), z, grid, **settings)
        found += [path[grid.index(t)] for t in times if low < t <= high]
        z = path[-1]
    return torch.stack(found)


class MatrixField(nn.Module):
    """A `VectorField` whose answer is read as a matrix (b, h, c)."""

    def __init__(self, hidden: int, channels: int, **options: Any):
        super().__init__()
        self.hidden, self.channels = hidden, channels
        self.field = VectorField(hidden, hidden * channels, **options)

    def forward(self, t: Float[Tensor, ""], z: Float[Tensor, "b h"]) -> Float[Tensor, "b h c"]:
        return self.field(t, z).reshape(-1, self.hidden, self.channels)


class NeuralCDE(nn.Module):
    """`z(t_0) = phi(X(t_0))`, `dz = f(z) dX`, answer `A z + b`: a classifier or a regressor of series.

    The field ends in a tanh, without which the state may grow beyond bounds early in training, and does not read the time,
    which is a channel of X (see `with_time`).

    Args:
        channels: of the control. hidden: size of z. outputs: numbers in an answer (classes).
        width, depth: of the field.
        method, step, adjoint: of the integration, see `cdeint`.
        seed: of the weights.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        outputs: int,
        *,
        width: int = 32,
        depth: int = 1,
        method: str = "rk4",
        step: float | None = None,
        adjoint: str = "direct",
        seed: int = 0,
    ) -> None:
        super().__init__()
        with without_draws():
            self.initial = nn.Linear(channels, hidden)
            self.field = MatrixField(
                hidden, channels, width=width, depth=depth, activation="silu", bounded=True, time=False
            )
            self.readout = nn.Linear(hidden, outputs)
            self.settings: dict[str, Any] = {"method": method, "step": step, "adjoint": adjoint}
        initialise(self, seed)

    def path(self, control: Control, ts: Sequence[float] | Float[Tensor, " t"] | None) -> Float[Tensor, "t b o"]:
        """The answers at all of `ts`, from the first knot on: online, if the control is causal."""
        z0 = self.initial(control.value(control.knots[0]).to(self.initial.weight))
        if ts is None:
            return self.readout(cdeint(control, self.field, z0, None, **self.settings))
        times, first = torch.as_tensor(ts, dtype=torch.float64).tolist(), float(control.knots[0])
        whole = times if times and times[0] <= first else [first, *times]
        return self.readout(cdeint(control, self.field, z0, whole, **self.settings)[len(whole) - len(times) :])

    def forward(self, control: Control) -> Float[Tensor, "b o"]:
        """The answer at the last knot."""
        return self.path(control, None)[-1]
