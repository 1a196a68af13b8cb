"""MRS: fast samplers of mean-reverting diffusion, as exponential integrators in the shifted variable.

Li et al., "MRS: A Fast Sampler for Mean Reverting Diffusion based on ODE and SDE Solvers" (ICLR 2025, arXiv 2502.07856). In
`z = x - mu` the process of IR-SDE (`MeanReverting`) is a Gaussian one, `z_t = a z_0 + s eps` with `s = n sqrt(1 - a^2)`, so
the paper's updates - ODE or SDE, from data or noise, of orders 1 to 3 - are those of DPM-Solver in z, `x - beta y` of tweed.
What is left to name are their weights and grids.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core.processes import MeanReverting
from tweed.errors import InputError, choose
from tweed.solvers import DPMSolver


def mrs(
    order: int = 2,
    kind: Literal["ode", "sde"] = "ode",
    prediction: Literal["data", "noise"] = "data",
    lower_order_final: bool | None = None,
) -> DPMSolver:
    """The published sampler of an order, one evaluation a step.

    Order 2 has the exact weights of its linear extrapolation. Order 3 (in the authors' code alone, ODE) gives the second
    derivative the weight that the code gives it, from its third step on; `DPMSolver(3)` gives it its own.

    Args:
        order: 1, 2 or 3.
        kind: the probability-flow "ode" or the reverse "sde".
        prediction: what is extrapolated. "noise" with "sde" blows up in few steps, as the paper says too.
        lower_order_final: lower the order of the last steps; by default on grids of fewer than 10 steps.

    Raises:
        InputError: an unknown name, another order, or order 3 of the SDE or of the noise, which are not published.
    """
    choose("kind", kind, ("ode", "sde"))
    choose("prediction", prediction, ("data", "noise"))
    if order == 3 and (kind, prediction) != ("ode", "data"):
        raise InputError(
            f"order: 3 was given with {kind!r} and {prediction!r}; expected 'ode' and 'data', or order 1 or 2"
        )
    return DPMSolver(
        order,
        form=prediction,
        solver_type="midpoint" if order == 3 else "taylor",
        eta=1.0 if kind == "sde" else 0.0,
        lower_order_final=lower_order_final,
    )


def remaining_grid(
    process: MeanReverting, steps: int, *, start: float | None = None, end: float = 0.999
) -> Float[Tensor, " steps+1"]:
    """Times even in log-SNR between two shares `alpha` of the data, from `start` (`process.remainder`) to `end`.

    Raises:
        InputError: no steps, or shares that do not rise within [remainder, 1).
    """
    begin = process.remainder if start is None else start
    if steps < 1 or not process.remainder <= begin < end < 1.0:
        raise InputError(
            f"steps, start, end: {steps}, {begin}, {end} were given; expected at least 1, and remainder <= start < end < 1"
        )
    low, high = (math.log(share / process.noise) - 0.5 * math.log1p(-(share**2)) for share in (begin, end))
    return process.time(torch.linspace(low, high, steps + 1, dtype=torch.float64)).clamp(max=1.0)


def step_times(process: MeanReverting, steps: int = 100) -> Float[Tensor, " steps+1"]:
    """The times of the steps 0, 1, ..., `steps` of the published discrete schedule, rising from nearly 0 to 1.

    There the reversion is a sum, `-log alpha_i = dt (theta_0 + ... + theta_i)`, with
    `theta_i = 1 - cos^2(u_i) / cos^2(u_0)`, `u_i = (i / (steps + 2) + 0.008) / 1.008 pi / 2`, taken at i + 1, and dt such that
    `alpha` ends at `remainder`. Since sigma follows from alpha, a discrete step is a time of the continuous process: a network
    that was trained on step numbers is called with them through an interpolation of these times, and `step_times(process)[::4]`
    flipped is a grid of 25 of its steps. Step 0 is not quite clean: its alpha is 0.99994 by default.

    Raises:
        InputError: no steps, or a schedule other than "cosine".
    """
    if steps < 1 or process.schedule != "cosine":
        raise InputError(
            f"steps, schedule: {steps}, {process.schedule!r} were given; expected at least 1, and 'cosine'"
        )
    u = (torch.arange(steps + 3, dtype=torch.float64) / (steps + 2) + 0.008) / 1.008 * (0.5 * math.pi)
    theta = 1.0 - (u.cos() / u[0].cos()) ** 2
    reversion = theta[1:-1].cumsum(0)
    reversion = -math.log(process.remainder) * reversion / reversion[-1]
    log_snr = -reversion - math.log(process.noise) - 0.5 * torch.log(-torch.expm1(-2.0 * reversion))
    return process.time(log_snr)
