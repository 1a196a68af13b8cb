"""DPM-Solver-12 and -23, which choose their own steps: Lu et al., "DPM-Solver" (NeurIPS 2022), Algorithm 3, Appendix C.

In half-log-SNR time `lambda = log(alpha / sigma)`, with `h = lambda_t - lambda_s` and `E(h) = e^h - 1`:

    x_u = alpha_u/alpha_s x - sigma_u E(r_1 h) e_s
    x_v = alpha_v/alpha_s x - sigma_v E(r_2 h) e_s - r_2/r_1 sigma_v (E(r_2 h)/(r_2 h) - 1) (e_u - e_s)
    order 1: alpha_t/alpha_s x - sigma_t E(h) e_s;   order 2: that - sigma_t E(h) (e_u - e_s)/(2 r_1)
    order 3: order 1 - sigma_t (E(h)/h - 1) (e_v - e_s)/r_2

A step takes two of these from the same evaluations; their difference is the error.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core.processes import Process
from tweed.core.time import as_time, left
from tweed.errors import InputError, NumericalError, choose
from tweed.solvers.base import Problem, Solver, State, require_gaussian


@dataclass(frozen=True)
class AdaptiveDPM(Solver):
    """The noise-form singlestep pair of orders (1, 2) or (2, 3), in steps that keep the local error below a tolerance.

    A step is accepted where the root mean square of `(higher - lower) / max(atol, rtol max(|lower|, |previous|))` is at
    most 1; the next is `safety err^(-1/order)` times as long. Each sample has steps of its own, and is the same in any
    batch; with `error="batch"` all go at the pace of the worst, as published. The device is read once a step, to know
    whether the run is over. An end with infinite log-SNR is one first-order step away from `process.t_min` or `t_max`.

    Args:
        order: 2 (two evaluations a step) or 3 (three). A rejected step is tried again with one less.
        atol, rtol: the tolerances (0.0078, one 8-bit grey level on [-1, 1], and 0.05 as published).
        h_init: the first step, in lambda.
        safety: theta.
        error: "sample", or "batch" as published.
        max_steps: tries before giving up.

    Raises:
        InputError: an option is out of its range.
        NumericalError: `max_steps` was reached, or the error is not finite; the time is named.
    """

    order: Literal[2, 3] = 2
    atol: float = 0.0078
    rtol: float = 0.05
    h_init: float = 0.05
    safety: float = 0.9
    error: Literal["sample", "batch"] = "sample"
    max_steps: int = 10_000
    adaptive: ClassVar[bool] = True

    def __post_init__(self):
        if self.order not in (2, 3):
            raise InputError(f"order: {self.order!r} was given; expected 2 (DPM-Solver-12) or 3 (DPM-Solver-23)")
        for name in ("atol", "h_init"):
            if not getattr(self, name) > 0.0:
                raise InputError(f"{name}: {getattr(self, name)} was given; expected a positive number")
        if not self.rtol >= 0.0:
            raise InputError(f"rtol: {self.rtol} was given; expected a number of at least 0")
        if not 0.0 < self.safety < 1.0:
            raise InputError(f"safety: {self.safety} was given; expected a number between 0 and 1")
        choose("error", self.error, ("sample", "batch"))
        if self.max_steps < 1:
            raise InputError(f"max_steps: {self.max_steps} was given; expected at least 1")

    @property
    def evaluations(self) -> int:
        """Of an accepted step."""
        return self.order

    def check(self, process: Process) -> None:
        require_gaussian(self, process)

    def step(self, problem: Problem, state: State, i: int) -> State:
        """From `problem.times[i]` to `problem.times[i + 1]`, in as many steps as it takes."""
        process, x = problem.process, state.x
        here, there = ends(problem, x, i)
        first, last = _finite(process, here), _finite(process, there)
        falls = here > there
        last = torch.where(falls, torch.minimum(last, first), last)
        # Away from alpha = 0 by a jump; where the noise vanishes at the start, the state stands for that at t_min.
        if bool((falls & (first != here)).any()):
            x = denoise(problem, x, here, first)
        x = self._integrate(problem, x, first, last)
        return State(denoise(problem, x, last, there) if bool((last != there).any()) else x)

    def _integrate(self, problem: Problem, x: Tensor, first: Tensor, last: Tensor) -> Tensor:
        process = problem.process
        now, goal = process.log_snr(first), process.log_snr(last)
        t = first
        sign = (goal - now).sign()
        step = torch.full_like(now, self.h_init)
        x = x - _endpoint(problem, first, x)
        previous, noise = x, None
        for _ in range(self.max_steps):
            left_over = (goal - now).abs()
            final = step >= left_over
            h = sign * torch.where(final, left_over, step)
            t = process.time(now)
            if noise is None:
                noise = _noise(problem, x, t)
            lower, higher = self._pair(problem, x, noise, now, h)
            error = self._size(lower, higher, previous)
            accept = error <= 1.0
            done = accept & final
            # The one read of the device in a step.
            over, moved, finite = torch.stack((done.all(), accept.any(), error.isfinite().all())).tolist()
            if not finite:
                raise NumericalError(
                    f"AdaptiveDPM: the state is not finite in a step from t = {_behind(t, sign):.6g} to "
                    f"{_behind(process.time(now + h), sign):.6g}"
                )
            keep = accept.reshape(-1, *(1,) * (x.ndim - 1))
            x, previous = torch.where(keep, higher, x), torch.where(keep, lower, previous)
            if over:
                return x + _endpoint(problem, last, x)
            now = torch.where(done, goal, torch.where(accept, now + h, now))
            # Samples that are done wait for the others, with steps of length zero.
            step = self.safety * h.abs() * error.clamp_min(1e-12) ** (-1.0 / self.order)
            step = torch.where(done, self.h_init, step)
            noise = None if moved else noise
        raise NumericalError(
            f"AdaptiveDPM: {self.max_steps} steps did not suffice; the run stands at t = {_behind(t, sign):.6g}. Raise "
            "the tolerances or max_steps"
        )

    def _pair(self, problem: Problem, x: Tensor, noise: Tensor, now: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The lower and the higher order from `now` to `now + h` (both in lambda)."""
        process = problem.process
        alpha_s = process.alpha(process.time(now))

        def scales(r: float) -> tuple[Tensor, Tensor, Tensor]:
            t = process.time(now + r * h)
            return t, process.alpha(t) / alpha_s, process.sigma(t)

        r1 = 1.0 / self.order
        t_u, ratio_u, sigma_u = scales(r1)
        _, ratio, sigma = scales(1.0)
        x_u = left(ratio_u, x) * x - left(sigma_u * torch.expm1(r1 * h), x) * noise
        change_u = _noise(problem, x_u, t_u) - noise
        growth = torch.expm1(h)
        first = left(ratio, x) * x - left(sigma * growth, x) * noise
        second = first - left(sigma * growth / (2.0 * r1), x) * change_u
        if self.order == 2:
            return first, second
        r2 = 2.0 / 3.0
        t_v, ratio_v, sigma_v = scales(r2)
        x_v = left(ratio_v, x) * x - left(sigma_v * torch.expm1(r2 * h), x) * noise
        x_v = x_v - left(r2 / r1 * sigma_v * _curve(r2 * h), x) * change_u
        change_v = _noise(problem, x_v, t_v) - noise
        return second, first - left(sigma * _curve(h) / r2, x) * change_v

    def _size(self, lower: Tensor, higher: Tensor, previous: Tensor) -> Tensor:
        """The error of each sample, shape (b,), in units of the tolerance."""
        scale = (self.rtol * torch.maximum(lower.abs(), previous.abs())).clamp_min(self.atol)
        error = ((higher - lower).abs() / scale).flatten(1).double().square().mean(1).sqrt()
        return error.amax().expand_as(error) if self.error == "batch" and len(error) else error


def denoise(problem: Problem, x: Float[Tensor, "b *event"], t: Tensor, s: Tensor) -> Float[Tensor, "b *event"]:
    """One first-order (DDIM) step from times `t` to `s`, shape (b,), finite where the noise or the data vanishes at `s`."""
    process = problem.process
    x0 = problem.estimate(x, t).x0
    u = x - _endpoint(problem, t, x)
    keep = process.sigma(s) / process.sigma(t)
    return left(keep, x) * u + left(process.alpha(s) - keep * process.alpha(t), x) * x0 + _endpoint(problem, s, x)


def ends(problem: Problem, x: Float[Tensor, "b *event"], i: int) -> tuple[Tensor, Tensor]:
    """`problem.times[i]` and `[i + 1]` as float64 tensors (b,), on the device of `x`."""
    return tuple(as_time(t).to(x.device).expand(len(x)) for t in problem.times[i : i + 2])  # type: ignore[return-value]


def _finite(process: Process, t: Tensor) -> Tensor:
    value = process.log_snr(t)
    t = torch.where(value == float("inf"), process.t_min, t)
    return torch.where(value == float("-inf"), process.t_max, t)


def _noise(problem: Problem, u: Tensor, t: Tensor) -> Tensor:
    return problem.estimate(u + _endpoint(problem, t, u), t).eps


def _endpoint(problem: Problem, t: Tensor, x: Tensor) -> Tensor | float:
    # Solvers work in x - beta y: there an endpoint-conditioned process is a Gaussian one.
    if problem.process.endpoint == "none" or problem.y is None:
        return 0.0
    return left(problem.process.beta(t), x) * problem.y.to(x.dtype)


def _curve(h: Tensor) -> Tensor:
    """`E(h)/h - 1`, which is 0 at h = 0."""
    return torch.where(h == 0.0, 0.0, torch.expm1(h) / torch.where(h == 0.0, 1.0, h) - 1.0)


def _behind(t: Tensor, sign: Tensor) -> float:
    """The time of the sample that has farthest to go."""
    return float((t * sign).max() * sign.max()) if len(t) else float("nan")
