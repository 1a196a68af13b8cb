"""Exponential integrators in log-SNR: what DPM-Solver, UniPC and DEIS share.

With `lambda = log(alpha / sigma)` the probability-flow ODE from s to t has the exact solution (Lu et al., "DPM-Solver",
NeurIPS 2022, Proposition 3.1; "DPM-Solver++", 2022, Proposition 4.1), written once for both readings `m` of an estimate,

    x_t = a x_s - S z int_0^1 exp((1 - u) z) m(lambda_s + u h) du,      h = lambda_t - lambda_s,

- data:  `a = sigma_t/sigma_s`, `S = alpha_t`, `z = -h`,
- noise: `a = alpha_t/alpha_s`, `S = sigma_t`, `z = h`.

Where the reverse SDE's noise is scaled by `eta` (0: the ODE, 1: the SDE whose time reversal is the process), the data
form becomes `a = (sigma_t/sigma_s) exp(-eta^2 h)`, `z = -(1 + eta^2) h`, plus noise of variance
`sigma_t^2 (1 - exp(-2 eta^2 h))`: the exact transition where `m` is constant. The noise form keeps `a` and `z`; its `S` is
`(1 + eta^2) sigma_t`, and the noise's variance `eta^2 sigma_t^2 (exp(2 h) - 1)`.

A method replaces `m` by a polynomial in `u` through `m_0` at u = 0 and others at nodes `c_j`:
`x_t = a x_s + E m_0 - S z sum_j w_j (m_j - m_0)` with `E = -S (e^z - 1)`, and `sum_j w_j c_j^r = r! phi_{r+1}(z)`.
`a` and `E` are finite at infinite log-SNR; there every method takes a first-order step.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tweed.core.processes import Process
from tweed.core.time import as_time
from tweed.errors import IncompatibleError
from tweed.solvers.base import Form

_SERIES_BELOW, _TERMS = 2.0, 28


def phi(order: int, z: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """`phi_k(z) = int_0^1 exp((1 - u) z) u^(k-1) / (k-1)! du`, `k >= 1`, to nearly full precision for all real `z`."""
    small = z.abs() < _SERIES_BELOW
    far = torch.where(small, torch.ones_like(z), z)
    value = torch.expm1(far) / far
    for k in range(1, order):
        value = (value - 1.0 / math.factorial(k)) / far
    near, series = torch.where(small, z, torch.zeros_like(z)), torch.zeros_like(z)
    for n in reversed(range(_TERMS)):
        series = series * near + 1.0 / math.factorial(n + order)
    return torch.where(small, series, value)


def moments(z: Float[Tensor, "*n"], count: int) -> list[Tensor]:
    """The right-hand sides `r! phi_{r+1}(z)` for r = 1 ... count: what exact weights must give."""
    return [math.factorial(r) * phi(r + 1, z) for r in range(1, count + 1)]


def weights(nodes: Sequence[Tensor], rhs: Sequence[Tensor]) -> list[Tensor]:
    """The `w_j` with `sum_j w_j c_j^r = rhs_r`, r = 1 ... len(nodes), for nodes `c_j` of any common shape."""
    if len(nodes) == 1:
        return [rhs[0] / nodes[0]]
    c = torch.stack(torch.broadcast_tensors(*nodes), -1)
    matrix = torch.stack([c**r for r in range(1, len(nodes) + 1)], -2)
    solved = torch.linalg.solve(matrix, torch.stack(torch.broadcast_tensors(*rhs), -1)[..., None])
    return list(solved[..., 0].unbind(-1))


@dataclass(frozen=True)
class Levels:
    """Coefficients of a process along a grid, float64, shape (n,) or (n, b)."""

    alpha: Tensor
    sigma: Tensor
    log_snr: Tensor

    @classmethod
    def at(cls, process: Process, t: Float[Tensor, "n *b"]) -> "Levels":
        """The coefficients of `process` at times `t`."""
        return cls(process.alpha(t), process.sigma(t), process.log_snr(t))

    def part(self, which: slice | Tensor) -> "Levels":
        """Some of the levels."""
        return Levels(self.alpha[which], self.sigma[which], self.log_snr[which])


def as_grid(times: Sequence[float] | Float[Tensor, "steps+1 b"]) -> Float[Tensor, "steps+1 *b"]:
    """A grid as a float64 tensor; (steps + 1,) from numbers."""
    return as_time(times) if isinstance(times, Tensor) else torch.tensor(list(times), dtype=torch.float64)


@dataclass(frozen=True)
class Span:
    """The exact part of steps between pairs of levels: `x_t = state x_s + first m_0 + slope sum_j w_j (m_j - m_0)`.

    Attributes:
        state, first: `a` and `E`, finite at infinite log-SNR.
        slope: `-S z`; zero where `finite` is not set.
        z: the exponent; 1 where `finite` is not set.
        noise: the standard deviation of the SDE's noise.
        finite: whether the step has a finite extent in log-SNR, and not none: where more than first order is possible.
    """

    state: Tensor
    first: Tensor
    slope: Tensor
    z: Tensor
    noise: Tensor
    finite: Bool[Tensor, "*n"]

    @classmethod
    def between(cls, form: Form, here: Levels, there: Levels, eta: float = 0.0) -> "Span":
        """The steps from levels `here` to levels `there`, elementwise.

        Raises:
            IncompatibleError: the form says nothing of the data, or of the noise, where the steps begin.
        """
        h = there.log_snr - here.log_snr
        finite = torch.isfinite(h) & (h != 0.0)
        extent = torch.where(finite, h, torch.ones_like(h))
        noise = torch.zeros_like(h)
        if form == "noise":
            _refuse(here.alpha, "alpha", "noise", "data")
            state = there.alpha / here.alpha
            rate = 1.0 + eta**2
            first, slope, z = rate * (there.sigma - state * here.sigma), -rate * there.sigma * extent, extent
            if eta > 0.0:
                noise = eta * ((state * here.sigma) ** 2 - there.sigma**2).clamp_min(0.0).sqrt()
        else:
            _refuse(here.sigma, "sigma", "data", "noise")
            state, rate = there.sigma / here.sigma, 1.0 + eta**2
            if eta > 0.0:
                # exp(-h) as a ratio, and so 0 from alpha = 0 or to sigma = 0.
                shrink = state * here.alpha / there.alpha
                state = state * shrink**eta**2
                noise = there.sigma * (1.0 - shrink ** (2.0 * eta**2)).clamp_min(0.0).sqrt()
            first, slope, z = there.alpha - state * here.alpha, there.alpha * rate * extent, -rate * extent
        return cls(state, first, torch.where(finite, slope, 0.0), z, noise, finite)

    def combine(self, nodes: Sequence[Tensor], count: Int[Tensor, "*n"], rhs: Callable[[Tensor, int], list]) -> list:
        """The coefficients of `m_0, m_1, ...` where the first `count - 1` of `nodes` are used.

        Args:
            nodes: `c_1, c_2, ...`, in units of the step.
            count: how many estimates each step uses, from 1 to 1 + len(nodes).
            rhs: `(z, k) ->` the k right-hand sides for `weights`.
        """
        columns = [torch.zeros_like(self.first) for _ in nodes]
        for k in range(1, len(nodes) + 1):
            used = (count == k + 1) & self.finite
            for j, w in enumerate(weights(nodes[:k], rhs(self.z, k))):
                columns[j] = torch.where(used, self.slope * w, columns[j])
        return [self.first - sum(columns, torch.zeros_like(self.first)), *columns]


def _refuse(values: Tensor, name: str, form: str, other: str) -> None:
    if bool((values == 0.0).any()):
        raise IncompatibleError(
            f"form: {form!r} was given on a grid that leaves {name} = 0, where an estimate of the {form} alone does not "
            f"determine the step; use form={other!r}, or begin a little inside (process.t_max, process.t_min)"
        )


def history(levels: Levels, order: int) -> tuple[list[Tensor], Int[Tensor, "steps *b"]]:
    """For each step of a grid, the nodes of its past and how many estimates can be used.

    Returns:
        `c_j = (lambda_{i-j} - lambda_i) / h_i`, j = 1 ... order - 1, each (steps, *b), and counts (steps, *b) in
        1 ... order: no more than have been seen, and none beyond an infinite log-SNR.
    """
    lam = levels.log_snr
    h = lam[1:] - lam[:-1]
    good = torch.isfinite(h) & (h != 0.0)
    safe, nodes, run = torch.where(good, h, torch.ones_like(h)), [], good
    count, back = torch.ones_like(h, dtype=torch.int64), torch.zeros_like(h)
    for j in range(1, order):
        past = torch.roll(torch.where(good, h, torch.ones_like(h)), j, 0)
        seen = torch.roll(good, j, 0)
        past[:j], seen[:j] = 1.0, False
        run = run & seen
        count = count + run
        back = back + past
        nodes.append(torch.where(run, -back / safe, torch.full_like(h, -float(j))))
    return nodes, count


def lower_final(
    count: Int[Tensor, "steps *b"], levels: Levels, option: bool | None, short: int = 10, long: float = 2.0
) -> Int[Tensor, "steps *b"]:
    """`count` capped at the number of steps left, so that the last step is of first order, where `option` says so.

    By default (None) on grids of fewer than `short` steps, and where the last step is more than `long` times as long in
    log-SNR as the one before it, as at the end of grids that are uniform in time: a polynomial through the past says
    nothing that far ahead. Grids even in log-SNR keep their order.
    """
    steps = len(count)
    remaining = torch.arange(steps, 0, -1, device=count.device).reshape(-1, *(1,) * (count.ndim - 1))
    if option or (option is None and steps < short):
        return count.minimum(remaining)
    if option is False:
        return count
    h = levels.log_snr[-3:].diff(dim=0).abs()
    far = (h[-1] > long * h[0]) & torch.isfinite(h[-1])
    return torch.where(far, count.minimum(remaining), count)
