"""The Gaussian phase of sampling: what the closed-form flow says of a run, and how long a model's run follows it.

Wang & Vastola, "Diffusion Models Generate Images Like Painters" (2023, arXiv 2303.02490). For data N(mu, U diag(L) U^T) the
probability flow keeps every direction `u_k` to itself. With `c_k = u_k . (x_t - alpha_t mu)`,

    c_k(t)  = c_k(T) sqrt((alpha_t^2 L_k + sigma_t^2) / (alpha_T^2 L_k + sigma_T^2)),
    xi_k(t) = u_k . (x0hat_t - mu) = c_k(T) alpha_t L_k / sqrt((alpha_t^2 L_k + sigma_t^2) (alpha_T^2 L_k + sigma_T^2)).

The endpoint estimate `xi_k` rises as `sqrt(snr L_k / (1 + snr L_k))`, `snr = alpha^2 / sigma^2`: layout (large `L_k`) before
detail. The formulas are of the deterministic flow; a solver that draws noise shares its marginals alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core.estimate import Estimate
from tweed.core.exact import psi
from tweed.core.processes import Process
from tweed.core.time import Time
from tweed.errors import IncompatibleError, InputError


class Gaussian(Protocol):
    """What a run is compared with: a `GaussianDenoiser` or a `PrincipalGaussian`."""

    process: Process
    event: tuple[int, ...]

    @property
    def mean(self) -> Tensor: ...

    def flow(self, x: Tensor, t: float, s: float, y: Tensor | None = None) -> Tensor: ...

    def __call__(self, x: Tensor, t: Time, **cond: Tensor | None) -> Estimate: ...


def endpoint_coefficients(
    process: Process, variances: Float[Tensor, " r"], times: Iterable[float], start: float = 1.0
) -> Float[Tensor, "n r"]:
    """`xi_k(t)` for a run that begins with `c_k(start) = 1`, float64; it never falls along a run."""
    v, (top, *levels) = variances.double(), [process.level(t) for t in (start, *times)]
    begin = (top.alpha**2 * v + top.sigma**2).clamp_min(1e-300)
    return torch.stack([a.alpha * v / ((a.alpha**2 * v + a.sigma**2).clamp_min(1e-300) * begin).sqrt() for a in levels])


def settled_variance(process: Process, variances: Float[Tensor, " r"], times: Iterable[float]) -> Float[Tensor, "n r"]:
    """The variance of the endpoint estimate along each direction, `L_k snr L_k / (1 + snr L_k)`, over runs from the prior.

    The sum over directions, as a share of `sum L`, is how much of an image is settled at a time; its differences are what
    each step adds.
    """
    v, levels = variances.double(), [process.level(t) for t in times]
    return torch.stack([a.alpha**2 * v**2 / (a.alpha**2 * v + a.sigma**2).clamp_min(1e-300) for a in levels])


def sensitivity(
    process: Process, variances: Float[Tensor, " r"], times: Iterable[float], end: float = 0.0
) -> Float[Tensor, "n r"]:
    """How far the result moves along `u_k` for a kick of length 1 along it at each time, `sqrt(L_k / (alpha^2 L_k + sigma^2))`.

    Early it is `sqrt(L_k) / sigma`, so a kick along layout counts by its standard deviation and one along detail hardly;
    late it is `1 / alpha` for all directions within the data, and nothing beside them.

    Raises:
        IncompatibleError: at a time at which a direction has neither variance nor noise.
    """
    gains = torch.stack([psi(process, variances.double(), t, end) for t in times])
    if not bool(gains.isfinite().all()):
        raise IncompatibleError("times: at one of them a direction has neither variance nor noise; nothing moves there")
    return gains


def emergence(process: Process, variances: Float[Tensor, " r"], share: float = 0.5) -> Float[Tensor, " r"]:
    """The time at which each direction's endpoint estimate has `share` of its final length, float64.

    `xi_k(t) = share xi_k(0)` at `snr = share^2 / ((1 - share^2) L_k)`; at `share = 1 / sqrt 2` that is `snr = 1 / L_k`.
    A direction without variance emerges at the data itself.

    Raises:
        InputError: a share that is not between 0 and 1.
    """
    if not 0.0 < share < 1.0:
        raise InputError(f"share: {share} was given; expected a number between 0 and 1")
    return process.time(0.5 * (share**2 / (1.0 - share**2) / variances.double()).log())


@dataclass(frozen=True)
class GaussianPhase:
    """How closely runs follow a Gaussian's closed form.

    Attributes:
        times: of the run, from noise to data, shape (n,).
        state: error of the predicted state, relative to the length of the states about their centre, shape (n,).
        endpoint: error of the predicted endpoint estimate, relative to the length of the last ones about the mean, (n,).
        until: the last time up to which the state's error stays within the tolerance: the end of the Gaussian phase.
    """

    times: Float[Tensor, " n"]
    state: Float[Tensor, " n"]
    endpoint: Float[Tensor, " n"]
    until: float


def gaussian_phase(
    gaussian: Gaussian,
    states: Float[Tensor, "n b *event"],
    estimates: Float[Tensor, "n b *event"],
    times: Iterable[float],
    *,
    tolerance: float = 0.1,
    y: Float[Tensor, "b *event"] | None = None,
) -> GaussianPhase:
    """Compares deterministic runs with the flow of `gaussian` from their first state.

    Args:
        gaussian: of the data under the conditions of the run (a class's own for a class), in the model's own scale.
        states: as `tweed.sample(..., trajectory=True)` gives them; `estimates` as `endpoint_estimates` does.

    Raises:
        InputError: shapes or times do not fit, or there is no sample.
    """
    times = list(times)
    if states.shape != estimates.shape or len(states) != len(times) or states.shape[1] == 0:
        raise InputError(
            f"states, estimates, times: {tuple(states.shape)}, {tuple(estimates.shape)}, {len(times)} were given; "
            "expected (times, b, *event) twice, with at least one sample"
        )
    mean = gaussian.mean.double().reshape(gaussian.event).expand(states.shape[1:])
    cond = {} if y is None else {"y": y}
    state, endpoint, last = [], [], estimates[-1].double() - mean
    for x, x0, t in zip(states.double(), estimates.double(), times, strict=True):
        moved = gaussian.flow(states[0].double(), times[0], t, y)
        state.append(_relative(x - moved, x - gaussian.process.marginal(mean, t, y)[0]))
        endpoint.append(_relative(x0 - gaussian(moved, t, **cond).x0, last))
    errors = torch.stack(state)
    outside = (errors > tolerance).nonzero()[:, 0].tolist()
    until = times[-1] if not outside else times[max(outside[0] - 1, 0)]
    return GaussianPhase(torch.tensor(times, dtype=torch.float64), errors, torch.stack(endpoint), until)


def _relative(error: Tensor, whole: Tensor) -> Tensor:
    return (error.square().sum() / whole.square().sum().clamp_min(1e-300)).sqrt()
