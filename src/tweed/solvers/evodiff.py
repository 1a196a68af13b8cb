"""EVODiff: Li et al., "EVODiff: Entropy-aware Variance Optimized Diffusion Inference" (NeurIPS 2025, arXiv 2509.26096).

A second-order predictor-corrector in data estimates `m`, whose weights are set on the way from inner products of
successive estimates: those that make a variance of the step smallest, in closed form. With `kappa = sigma / alpha`, from
level i-1 to i, `g = 1 - kappa_i / kappa_{i-1}`, `R` the ratio of the last two steps in log-SNR, `proj(a, b)` =
`<a, b> / <b, b>` within [-2, 2], and `m_0, m_1` the estimates at i-1 and i-2, all in units of the data:

    x_E = (kappa_i / kappa_{i-1}) x + g m_0                            the first-order step
    D_1 = m_0 - r_1 m_1,      r_1 = (1 - w) b + w proj(m_0, m_1)       what the last estimates differ by, balanced
    m_t = D(x_E + g D_1 / (2 r), t_i),     r = R sg(|r_1| / 4)         the probe: the step's one evaluation
    D_2 = m_t - r_2 m_0,      r_2 = (1 - w) b + w proj(m_t, m_0)
    B   = R (1 - eta) D_2 - (eta / R) D_1,   eta = sg(|proj(R^2 D_2 + D_1, R^2 D_2 - D_1)| / 2) / 2
    x   = x_E + g B / (2 zeta),              zeta = sg(|proj((g / 2 r) (D_1 - B), D_1) / g| - 1/2)

`sg` is the logistic function, `w` falls from 1/2 to 0 along the run, `b` is the root of the ratio of the last two ratios of
kappa (1 on a grid even in log-SNR). `m_t` is the next step's `m_0` although x was corrected after it. Inner products are
taken for each sample, and for each channel where a state has more dimensions than one.

As published for EDM's process; written in `kappa`, it makes the same run of the same model under any process. With
`sigma` in its place, `b` would not be 1 on grids even in log-SNR, and `D_1` not vanish with the step. The weights stay
away from those that would cancel the next term of Taylor's series: no second order is claimed, and none is reached.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import targets
from tweed.core.processes import Process
from tweed.errors import IncompatibleError, InputError, choose
from tweed.solvers.base import Problem, Solver, State, require_gaussian

_DATA = targets.Data()
_MANY = 20


class _Step(NamedTuple):
    """The numbers of one step: `x_E = keep x + move m_0 + beside y`, and those of the weights."""

    t: float
    next: float
    keep: float
    move: float
    beside: float
    g: float
    h: float
    ratio: float
    share: float
    balance: float
    kind: Literal["only", "first", "second", "plain", "last", "clean"]
    scale: float
    final: float


class _Memory(NamedTuple):
    """The last two estimates, `proj(m_0, m_1)`, and `<m_0, m_0>`."""

    m0: Tensor | None = None
    m1: Tensor | None = None
    explained: Tensor | None = None
    square: Tensor | None = None


@dataclass(frozen=True)
class EVODiff(Solver):
    """One evaluation a step (two in the first, none in the last); deterministic; for falling grids of numbers.

    On a grid that ends in a step from a finite level to `sigma = 0` that step is an evaluation of its own (the published
    `denoise_to_zero`), so that N steps always cost N evaluations.

    Args:
        final: the last step to a finite level, which has no evaluation: "euler" is x_E; "official" adds the released
            sampler's extrapolation, which raises the contrast by about a tenth at 10 steps. On exact fields that is an
            error (it grows from 0.15 to 0.17 on digits at 10 steps), so it is not the default.
        long: whether the rule for zeta of runs of more than 20 steps is used; None decides by the number of steps, as
            published, which makes results jump between 20 and 21.

    Raises:
        InputError: an unknown `final`.
        IncompatibleError: (on use) a rising grid, times for each sample, or a two-sided interpolant.
    """

    final: Literal["euler", "official"] = "euler"
    long: bool | None = None
    order: ClassVar[int] = 1
    evaluations: ClassVar[int] = 1  # type: ignore[assignment]

    def __post_init__(self):
        choose("final", self.final, ("euler", "official"))
        if self.long not in (None, True, False):
            raise InputError(f"long: {self.long!r} was given; expected True, False or None")

    def check(self, process: Process) -> None:
        require_gaussian(self, process)

    def init(self, problem: Problem, x: Float[Tensor, "b *event"]) -> State:
        if isinstance(problem.times, Tensor):
            raise IncompatibleError(
                "times: a grid for each sample was given; EVODiff follows one of numbers (DPMSolver takes either)"
            )
        _steps(problem.process, problem.times, self.final)
        return State(x, _Memory())

    def step(self, problem: Problem, state: State, i: int) -> State:
        x, (m0, m1, explained, square) = state
        steps = _steps(problem.process, problem.times, self.final)  # type: ignore[arg-type]
        s = steps[i]
        if s.kind in ("first", "only", "clean"):
            m0 = _estimate(problem, x, s.t)
        moved = torch.add(x * s.keep, m0, alpha=s.move)
        if s.beside != 0.0 and problem.y is not None:
            moved = moved.add(problem.y.to(moved.dtype), alpha=s.beside)
        if s.kind in ("only", "last", "clean"):
            if s.kind == "last" and self.final == "official":
                moved = s.scale * moved + 0.5 * s.move * (m0 - s.final * m1)
            return State(moved, _Memory())
        if s.kind != "second":
            fresh = _estimate(problem, moved, s.next)
            return State(moved, _Memory(fresh, m0, _project(_inner(fresh, m0), _inner(m0, m0)), _inner(fresh, fresh)))
        assert m0 is not None
        assert m1 is not None
        assert explained is not None
        assert square is not None
        shape = explained.shape + (1,) * (m0.ndim - explained.ndim)
        r1 = (explained * s.share).add_(s.balance)
        # 1 / (2 r); sg is at least 1/2, so that the published bounds of r, R/4 and 3R/2, are never met.
        inverse = torch.exp(r1.abs() * -0.25).add(1.0).mul_(0.5 / s.ratio)
        d1 = torch.addcmul(m0, r1.view(shape), m1, value=-1.0)
        fresh = _estimate(problem, torch.addcmul(moved, inverse.view(shape), d1, value=s.move), s.next)
        # The balance of this step is that of the next one's older pair, up to its own share.
        newer = _project(_inner(fresh, m0), square)
        d2 = torch.addcmul(fresh, (newer * s.share).add_(s.balance).view(shape), m0, value=-1.0)
        d11, d12, d22 = _inner(d1, d1), _inner(d1, d2), _inner(d2, d2)
        # proj(R^2 D_2 + D_1, R^2 D_2 - D_1), from the products of the two.
        grown = d22 * s.ratio**4
        lower = (grown + d11).sub_(d12, alpha=2.0 * s.ratio**2)
        eta = torch.sigmoid(_project(grown - d11, lower).abs_().mul_(0.5)) * 0.5
        forward, backward = (1.0 - eta).mul_(s.ratio), eta * (-1.0 / s.ratio)
        # 1 - <B, D_1> / <D_1, D_1>, and zeta of it.
        beyond = torch.addcmul(backward, forward, _ratio(d12, d11)).sub_(1.0)
        zeta = (beyond * inverse).abs_().clamp_(max=2.0 / s.g).sub_(0.5)
        if self.long or (self.long is None and len(steps) > _MANY):
            # proj(m_0, (m_0 - m_1) / h).
            change = m0 - m1
            slope = (s.h * _ratio(_inner(m0, change), _inner(change, change))).clamp_(-2.0, 2.0)
            zeta = -zeta * torch.sigmoid(slope * (2.0 - (1.0 - s.g) ** 2))
        scale = torch.exp(-zeta).add(1.0).mul_(0.5 * s.move)
        x = torch.addcmul(moved, (forward * scale).view(shape), d2)
        x = torch.addcmul(x, (backward * scale).view(shape), d1)
        return State(x, _Memory(fresh, m0, newer, _inner(fresh, fresh)))


def _estimate(problem: Problem, x: Tensor, t: float) -> Tensor:
    return problem.denoiser.call(x, t, **problem.cond).to(_DATA)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Products over the last dimension of vectors, over all beyond the channels otherwise: (b,) or (b, c)."""
    if a.ndim > 3:
        a, b = a.flatten(2), b.flatten(2)
    product = torch.linalg.vecdot(a, b)
    return product.real if product.is_complex() else product


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where both are 0."""
    return a / b.clamp_min(torch.finfo(b.dtype).tiny)


def _project(a: Tensor, b: Tensor) -> Tensor:
    return _ratio(a, b).clamp_(-2.0, 2.0)


@lru_cache(maxsize=256)
def _steps(process: Process, times: Sequence[float], final: str) -> tuple[_Step, ...]:
    levels = [process.level(t) for t in times]
    if any(b >= a for a, b in pairwise(times)):
        raise IncompatibleError(
            "times: they rise; EVODiff runs towards the data (its weights are not those of an inverse)"
        )
    kappa = [math.exp(-level.log_snr) for level in levels]
    count = len(times) - 1
    clean = kappa[-1] == 0.0 and count > 1
    inner, steps = count - clean, []
    for i in range(count):
        here, there = levels[i], levels[i + 1]
        keep = there.sigma / here.sigma
        move = there.alpha - keep * here.alpha
        shrink = 0.0 if math.isinf(kappa[i]) else kappa[i + 1] / kappa[i]
        ratio, balance = 1.0, 1.0
        known = i >= 1 and math.isfinite(kappa[i - 1]) and kappa[i + 1] > 0.0
        if known:
            ratio = (levels[i].log_snr - levels[i - 1].log_snr) / (there.log_snr - levels[i].log_snr)
            balance = math.sqrt(shrink / (kappa[i] / kappa[i - 1]))
        # The published w in EDM's time, which is kappa.
        level = 0.0 if math.isinf(kappa[0]) else (kappa[i + 1] + kappa[inner]) / (kappa[0] + kappa[inner])
        share = 0.5 * (1.0 - level**2)
        kind = (
            ("first" if inner > 1 else "only")
            if i == 0
            else "last"
            if i == inner - 1
            else "second"
            if known
            else "plain"
        )
        kind = "clean" if clean and i == inner else kind
        # The released sampler's last step, in kappa.
        scale = 1.0 - math.sqrt(kappa[i + 1] * kappa[i]) if math.isfinite(kappa[i]) else 1.0
        q = 1.0 - (math.sqrt(shrink) if shrink < 0.5 else math.sqrt(shrink - 0.5)) / 2.0
        h = math.exp(there.log_snr) - math.exp(here.log_snr) if kappa[i + 1] > 0.0 else math.inf
        steps.append(
            _Step(
                t=times[i],
                next=times[i + 1],
                keep=keep,
                move=move,
                beside=there.beta - keep * here.beta,
                g=1.0 - shrink,
                h=h,
                ratio=ratio,
                share=share,
                balance=(1.0 - share) * balance,
                kind=kind,  # type: ignore[arg-type]
                scale=scale,
                final=q,
            )
        )
    return tuple(steps)
