"""AFDPS: "Solving Inverse Problems via Diffusion-Based Priors: An Approximation-Free Ensemble Sampling Approach" (2025,
arXiv 2506.03979).

Weighted particles follow the path `q(x, t) = p_t(x) exp(-m(x))` of unnormalised densities, with `m` the negative
log-likelihood applied to the noisy state itself: no denoised mean stands in for the data, and no gradient goes through the
network. For any noise level V of the reverse process, with `H = -f x + (g^2 + V^2)/2 score`,

    dx = (H - V^2 grad m) dt + V dW,      dL = [-H . grad m + V^2/2 (|grad m|^2 - laplace m)] dt,

t running backwards; L are the log weights, resampled where few particles are left. (Inserting `p = q exp(m)` into the
Fokker-Planck equation of the reverse process gives both; the paper's discretisation was not at hand.) The mode "discrete"
is the particle filter of the same path: a step proposes from the prior's own reverse step conditioned on y, in closed form,
and weighs by `p(y | x) -> p(y | x')` exactly, whatever the step size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from tweed.core import grids, random
from tweed.core.particles import effective_size, systematic
from tweed.errors import IncompatibleError, InputError, choose
from tweed.inverse.measurement import Measurement
from tweed.inverse.method import Method, Run, levels
from tweed.inverse.operators import LinearOperator
from tweed.solvers import DDPM
from tweed.solvers.base import Problem

_STIFFEST = 0.5
_PROBES = 16


@dataclass(frozen=True)
class EnsemblePosterior(Method):
    """Posterior samples as an ensemble of weighted particles; exact as particles and steps grow.

    The `n` of `solve` is the number of particles of each measurement.

    Args:
        steps: from noise to data.
        noise: `V^2 / g^2`, from 0 (the probability flow, importance sampled) to 1 and more. Little noise is best in few
            dimensions; in many, noise is what sets particles apart again after resampling.
        threshold: particles are resampled where their effective number falls below this share.
        mode: "continuous", the equations above, or "discrete" (linear operators with a spectrum).
        start: "tilted", exact draws of the path's first density (where the operator has a spectrum), or "prior", draws of the
            prior with its weights. The first has few effective particles to lose, but its later weights have heavy tails where
            little noise lets a particle move; with little noise the second is better.
        drift: how the likelihood's drift is taken in the continuous mode: "exact" (an Ornstein-Uhlenbeck step in the
            operator's basis) or "euler"; by default exact where there is a spectrum.
        grid: a function of `tweed.grids`; equal steps in time where not given.

    Raises:
        InputError: numbers out of range; a measurement without noise; steps too long for Euler's drift.
        IncompatibleError: (on use) an operator without a spectrum where one is needed.
    """

    exact: ClassVar[bool] = True

    steps: int = 400
    noise: float = 1.0
    threshold: float = 0.5
    mode: Literal["continuous", "discrete"] = "continuous"
    start: Literal["tilted", "prior"] = "tilted"
    drift: Literal["exact", "euler"] | None = None
    grid: Callable[..., Tensor] | None = None

    def __post_init__(self):
        choose("mode", self.mode, ("continuous", "discrete"))
        choose("start", self.start, ("tilted", "prior"))
        if self.drift is not None:
            choose("drift", self.drift, ("exact", "euler"))
        if not (self.noise >= 0.0 and 0.0 <= self.threshold <= 1.0):
            raise InputError(
                f"noise, threshold: {self.noise}, {self.threshold} were given; expected at least 0, and a share"
            )

    @torch.no_grad()
    def solve(self, denoiser, measurement, n=1, seed=0, *, cond=None, dtype=torch.float32, watch=None):
        run = Run(denoiser, measurement, n, cond, dtype, watch, "EnsemblePosterior")
        if measurement.noise == 0.0:
            raise InputError("measurement: its noise is 0; the ensemble needs a likelihood with a width")
        likelihood = _Likelihood(run.measurement)
        grid = self.grid or grids.uniform
        times = levels(denoiser, self.steps, grid, finite=True)
        if not math.isfinite(run.process.level(times[-1]).log_snr):
            times = levels(denoiser, self.steps, partial(grid, end=run.process.t_min), finite=True)
        advance = self._filter if self.mode == "discrete" else self._continuous
        particles, trace = _start(run, likelihood, seed, times[0], self.start), []
        for i, moved in enumerate(advance(run, likelihood, particles, times, seed), 1):
            particles = moved
            trace.append(effective_size(particles.log_weights))
            run.record(particles.x / run.process.level(times[i]).alpha, i / self.steps)
        log_weights = particles.log_weights
        return run.solution(
            particles.x,
            log_weights=log_weights.log_softmax(0),
            log_evidence=particles.log_evidence + _log_mean(log_weights) + likelihood.constant,
            effective=torch.stack(trace),
            ancestors=particles.ancestors,
        )

    def _continuous(self, run: Run, likelihood: "_Likelihood", particles: "_Particles", times, seed: int):
        exact = likelihood.known if self.drift is None else self.drift == "exact"
        if exact and not likelihood.known:
            raise IncompatibleError("drift: 'exact' was given, and the operator has no spectrum; take 'euler'")
        rates = [self.noise * run.process.diffusion(t).item() ** 2 for t in times]
        now = _rates(run, likelihood, particles.x, times[0], self.noise, seed)
        for i, (t, u) in enumerate(pairwise(times)):
            h, v2 = t - u, rates[i]
            if not exact:
                self._check_stiffness(likelihood, h * v2)
            fresh = random.normal(now.drift.shape, seed, draw=i + 1, dtype=run.dtype, device=run.device)
            if exact:
                x = likelihood.relaxed(particles.x, now.drift, h, v2, fresh)
            else:
                x = particles.x + h * (now.drift - v2 * now.gradient) + math.sqrt(h * v2) * fresh
            then = _rates(run, likelihood, x, u, self.noise, seed)
            gained = 0.5 * h * (now.growth + then.growth)
            particles, parents = self._resampled(particles.moved(x, gained), seed, i)
            now = then.of(parents)
            yield particles

    def _check_stiffness(self, likelihood: "_Likelihood", step: float) -> None:
        stiffness = step * likelihood.norm**2 / likelihood.noise**2
        if stiffness > _STIFFEST:
            raise InputError(
                f"steps: {self.steps} was given; Euler's likelihood drift then has a stiffness of {stiffness:.3g}, expected "
                f"at most {_STIFFEST}. Take more steps, less noise, or drift='exact'"
            )

    def _filter(self, run: Run, likelihood: "_Likelihood", particles: "_Particles", times, seed: int):
        if not likelihood.known:
            raise IncompatibleError("mode: 'discrete' was given, and the operator has no spectrum; take 'continuous'")
        prior = DDPM()
        problem = Problem(run.denoiser, times, run.cond, seed, 0)
        before = likelihood.log(particles.x)
        for i in range(problem.steps):
            run.evaluations += 1
            step = prior.transition(problem, prior.init(problem, particles.x), i)
            std = float(step.std)
            fresh = random.normal(particles.x.shape, seed, draw=i + 1, dtype=run.dtype, device=run.device)
            x, expected = likelihood.conditioned(step.mean, std, fresh)
            gained = (expected - before).reshape(run.n, run.b)
            particles, _ = self._resampled(particles.moved(x, gained), seed, i)
            before = likelihood.log(particles.x)
            yield particles

    def _resampled(self, particles: "_Particles", seed: int, i: int) -> "tuple[_Particles, Tensor]":
        """The particles, resampled where few of them count, and their parents (n, b)."""
        x, log_weights, log_evidence, ancestors = particles
        n, b = log_weights.shape
        few = effective_size(log_weights) < self.threshold * n
        u = random.uniform((b, 1), random.fold(seed, 7), draw=i, dtype=torch.float64, device=x.device)[:, 0]
        same = torch.arange(n, device=x.device)[:, None].expand(n, b)
        parents = torch.where(few, systematic(log_weights, u), same)
        log_evidence = log_evidence + torch.where(few, _log_mean(log_weights), 0.0)
        log_weights = torch.where(few, 0.0, log_weights)
        return _Particles(_chosen(x, parents), log_weights, log_evidence, ancestors.gather(0, parents)), parents


class _Particles(NamedTuple):
    """States (n b, *event); log weights and first ancestors (n, b); the log evidence of all resamplings so far (b,)."""

    x: Tensor
    log_weights: Tensor
    log_evidence: Tensor
    ancestors: Tensor

    def moved(self, x: Tensor, gained: Tensor) -> "_Particles":
        return self._replace(x=x, log_weights=self.log_weights + gained)


class _Rates(NamedTuple):
    """The prior's reverse drift H and the gradient of m, like states; how the log weights grow, (n, b)."""

    drift: Tensor
    gradient: Tensor
    growth: Tensor

    def of(self, parents: Tensor) -> "_Rates":
        return _Rates(_chosen(self.drift, parents), _chosen(self.gradient, parents), self.growth.gather(0, parents))


class _Likelihood:
    """`m(x) = |y - A x|^2 / (2 noise^2)`, its derivatives, and what the operator's basis makes exact."""

    def __init__(self, measurement: Measurement):
        self.measurement, self.noise = measurement, measurement.noise
        operator = measurement.operator
        size = math.prod(operator.measured) * (2 if measurement.y.is_complex() else 1)
        self.constant = -0.5 * size * math.log(2.0 * math.pi * self.noise**2)
        spectrum = operator.spectrum if isinstance(operator, LinearOperator) else None
        self.known = spectrum is not None
        if spectrum is not None:
            self.spectrum = spectrum
            self.values = spectrum.values.to(measurement.y.device)
            self.norm = float(self.values.max())
            self.observed = torch.where(self.values > 0.0, spectrum.observed(measurement.y), 0.0)
        else:
            self.norm = operator.norm() if isinstance(operator, LinearOperator) else math.nan

    def log(self, x: Tensor) -> Tensor:
        """-m, one a row, float64."""
        return -self.measurement.squared(x).double() / (2.0 * self.noise**2)

    def derivatives(self, x: Tensor, seed: int) -> tuple[Tensor, Tensor | float]:
        """The gradient of m, and its Laplacian: exact by the spectrum, else by Hutchinson's estimator with fixed signs."""
        operator, noise2 = self.measurement.operator, self.noise**2
        if isinstance(operator, LinearOperator):
            gradient = -operator.adjoint(self.measurement.residual(x)) / noise2
            if self.known:
                return gradient, float(self.values.square().sum()) / noise2
            signs = random.rademacher((_PROBES, *operator.event), seed, dtype=x.dtype, device=x.device)
            return gradient, operator(signs).abs().square().flatten(1).sum(1).mean() / noise2
        with torch.enable_grad():
            given = x.detach().requires_grad_()
            loss = self.measurement.squared(given).sum() / (2.0 * noise2)
            (gradient,) = torch.autograd.grad(loss, given, create_graph=True)
            laplacian: Tensor | float = 0.0
            for k in range(_PROBES):
                signs = random.rademacher(x.shape, seed, draw=k, dtype=x.dtype, device=x.device)
                (bent,) = torch.autograd.grad((gradient * signs).sum(), given, retain_graph=True)
                laplacian = laplacian + _row_sum(bent * signs) / _PROBES
        return gradient.detach(), laplacian

    def relaxed(self, x: Tensor, drift: Tensor, h: float, v2: float, fresh: Tensor) -> Tensor:
        """`dx = (drift - V^2 grad m) dt + V dW` over h, for a constant drift: an Ornstein-Uhlenbeck process by coefficient."""
        s = self.values
        rate = (v2 * s**2 / self.noise**2).clamp_min(1e-12)
        kept = torch.exp(-rate * h)
        moved, spread = -torch.expm1(-rate * h) / rate, (-v2 * torch.expm1(-2.0 * rate * h) / (2.0 * rate)).sqrt()
        basis, kind = self.spectrum, x.real.dtype
        pull = v2 * s / self.noise**2 * self.observed
        c = basis.coefficients
        result = kept.to(kind) * c(x) + moved.to(kind) * (c(drift) + pull) + spread.to(kind) * c(fresh)
        return basis.event(result).to(x.dtype)

    def conditioned(self, mean: Tensor, std: float, fresh: Tensor) -> tuple[Tensor, Tensor]:
        """A draw of `N(x; mean, std^2) exp(-m(x))` normalised, and the log of what it was divided by, one a row."""
        s, basis = self.values, self.spectrum
        total = self.noise**2 + (std * s) ** 2
        center, kind = basis.coefficients(mean), mean.real.dtype
        surplus = self.observed - s.to(kind) * center
        # What no state can explain of the measurement counts as it is.
        outside = self.measurement.squared(mean).double() - _row_sum(surplus.abs().square())
        log = -0.5 * (torch.log(total / self.noise**2).sum() + _row_sum(surplus.abs().square() / total))
        log = log - outside.clamp_min(0.0) / (2.0 * self.noise**2)
        gain, width = (std**2 * s / total).to(kind), (std * self.noise / total.sqrt()).to(kind)
        return basis.event(center + gain * surplus + width * basis.coefficients(fresh)).to(mean.dtype), log


def _start(run: Run, likelihood: _Likelihood, seed: int, t: float, start: str) -> _Particles:
    """Particles of `p_t(x) exp(-m)` at the first time, where p_t is the prior N(0, sigma^2): exact, or weighed."""
    n, b, device = run.n, run.b, run.device
    x = run.start(seed, t)
    if likelihood.known and start == "tilted":
        std = run.process.level(t).sigma
        x, log = likelihood.conditioned(torch.zeros_like(x), std, x / std)
        log_evidence, log_weights = log.reshape(n, b)[0], torch.zeros(n, b, dtype=torch.float64, device=device)
    else:
        log_evidence, log_weights = torch.zeros(b, dtype=torch.float64, device=device), likelihood.log(x).reshape(n, b)
    return _Particles(x, log_weights, log_evidence, torch.arange(n, device=device)[:, None].expand(n, b))


def _rates(run: Run, likelihood: _Likelihood, x: Tensor, t: float, noise: float, seed: int) -> _Rates:
    level, g2 = run.process.level(t), run.process.diffusion(t).item() ** 2
    v2 = noise * g2
    score = run.estimate(x, t).score
    drift = (-level.alpha_dot / level.alpha) * x + 0.5 * (g2 + v2) * score
    gradient, laplacian = likelihood.derivatives(x, seed)
    growth = -_row_sum(drift * gradient) + 0.5 * v2 * (_row_sum(gradient.square()) - laplacian)
    return _Rates(drift, gradient, growth.reshape(run.n, run.b))


def _row_sum(x: Tensor) -> Tensor:
    return x.double().flatten(1).sum(1)


def _log_mean(log_weights: Tensor) -> Tensor:
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def _chosen(x: Tensor, parents: Tensor) -> Tensor:
    """Rows (n b, ...) by their parents (n, b)."""
    n, b = parents.shape
    return x.reshape(n, b, *x.shape[1:])[parents, torch.arange(b, device=x.device)].flatten(0, 1)
