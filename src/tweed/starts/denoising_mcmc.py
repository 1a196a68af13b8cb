"""Starts by a Markov chain near the data: Kim & Ye, "Denoising MCMC for Accelerating Diffusion Models" (ICML 2023).

A chain in (u, s), with `u = x / alpha = x_0 + s eps` and `s = sigma / alpha`, has the law `p(u | s) p(s)`, p(s) uniform on
given levels. One iteration (Denoising Langevin Gibbs, Algorithm 1) is, with `D` the denoiser,

    u <- u + (eta / 2) (D(u, s) - u) / s^2 + sqrt(eta) z,      s <- a draw, or the mode, of p(s | u).

After `n_skip` iterations a state is emitted as a start, whose noise is far below that of the prior, and any solver carries
it to the data from a time of its own. The noise added in a move keeps s near sqrt(eta).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tweed.core import random
from tweed.core.denoiser import CountingDenoiser, Denoiser
from tweed.core.processes import Process
from tweed.core.starts import Start
from tweed.core.time import as_time, left, working_dtype
from tweed.errors import IncompatibleError, InputError, NumericalError, choose
from tweed.metrics.effective_samples import effective_sample_size
from tweed.starts.noise_level import NoiseLevelPosterior


class Chain(NamedTuple):
    """Where the chains are: `u`, shape (b, *event), their levels `s` (b,), float64, and the iterations so far."""

    u: Tensor
    s: Tensor
    moves: int = 0


@dataclass(frozen=True)
class ChainReport:
    """What a run of the chains cost and how well they mixed.

    Attributes:
        evaluations: of the denoiser, counted; each is of all chains, so they are also those of one chain.
        samples: starts emitted, over all chains.
        effective: their effective number, the median and the smallest over the coordinates of u; NaN below 4 emissions.
        effective_least: see `effective`.
        levels: the smallest, median and largest level `sigma / alpha` of the starts.
        acceptance: of the moves; 1, since the Langevin move is not corrected and the level is a Gibbs move.
    """

    evaluations: int
    samples: int
    effective: float
    effective_least: float
    levels: tuple[float, float, float]
    acceptance: float = 1.0


class Emission(NamedTuple):
    """What `DenoisingMCMC.run` gives: the starts, (emissions b, *event), emission by emission; the chains; the report."""

    start: Start
    chain: Chain
    report: ChainReport


@dataclass(frozen=True)
class DenoisingMCMC:
    """Denoising Langevin Gibbs, as a source of starts for `tweed.sample`.

    Args:
        posterior: of the level given the state: `ExactNoiseLevel`, or a `NoiseLevelClassifier` that was trained.
        eta: the Langevin step, in squared units of the data; larger mixes faster and leaves more to denoise.
        n_skip: iterations (evaluations) between two emissions.
        keep: which state of those is emitted: that of the smallest level ("min", as published) or the "last", which
            leaves the law of (u, s) as it is. The chain goes on from the last in either case.
        level: "argmax" (as published) or "sample" of the posterior, which leaves the joint law invariant.
        floor: levels below it are not used; `sqrt(eta) / 4` where not given: below it a move of length
            `eta / (2 s^2)` overshoots (it must be below 2).

    Raises:
        InputError: an option is out of its range, or no level is left above the floor.
    """

    posterior: NoiseLevelPosterior
    eta: float = 0.2
    n_skip: int = 4
    keep: Literal["min", "last"] = "min"
    level: Literal["argmax", "sample"] = "argmax"
    floor: float | None = None

    def __post_init__(self):
        if not isinstance(self.posterior, NoiseLevelPosterior):
            raise InputError(f"posterior: {type(self.posterior).__name__} was given; expected a NoiseLevelPosterior")
        if not 0.0 < self.eta < math.inf:
            raise InputError(f"eta: {self.eta} was given; expected a positive number")
        if not isinstance(self.n_skip, int) or self.n_skip < 1:
            raise InputError(f"n_skip: {self.n_skip!r} was given; expected a whole number of at least 1")
        choose("keep", self.keep, ("min", "last"))
        choose("level", self.level, ("argmax", "sample"))
        if self.floor is not None and not self.floor >= 0.0:
            raise InputError(f"floor: {self.floor} was given; expected a number of at least 0")
        if self._first >= len(self.posterior.levels):
            raise InputError(f"floor: no level of the posterior is at least {self._floor:g}")

    @property
    def _floor(self) -> float:
        return math.sqrt(self.eta) / 4.0 if self.floor is None else self.floor

    @cached_property
    def _first(self) -> int:
        return int((self.posterior.levels < self._floor).sum())

    def begin(
        self,
        x0: Float[Tensor, "b *event"],
        *,
        noise: float = 0.5,
        cond: Mapping[str, Tensor] | None = None,
        seed: int = 0,
    ) -> Chain:
        """Chains from samples of the data (of a full run, say), with noise of standard deviation `noise` added."""
        u = x0.to(working_dtype(x0))
        u = u + noise * random.normal(u.shape, seed, draw=1 << 40, dtype=u.dtype, device=u.device)
        with torch.no_grad():
            return Chain(u, self._level(u, dict(cond or {}), seed, 0))

    def run(
        self,
        denoiser: Denoiser,
        chain: Chain,
        emissions: int = 1,
        *,
        cond: Mapping[str, Tensor] | None = None,
        seed: int = 0,
    ) -> Emission:
        """`emissions` starts of each chain, `n_skip` evaluations apart.

        To burn in, run and drop the starts. Chain `i` draws from `(seed, i, its moves so far)`, whatever the batch.

        Args:
            chain: from `begin`, or of a run before.
            cond: batched like the chains.

        Raises:
            IncompatibleError: the process is two-sided.
            NumericalError: a chain diverged; the iteration and the chains are named.
        """
        _require_gaussian(denoiser.process)
        if not isinstance(emissions, int) or emissions < 1:
            raise InputError(f"emissions: {emissions!r} was given; expected a whole number of at least 1")
        counted = CountingDenoiser(denoiser.start())
        held, begun, finite, kept = dict(cond or {}), chain.moves, [], []
        with torch.no_grad():
            for _ in range(emissions):
                best_u, best_s = chain.u, chain.s
                for number in range(self.n_skip):
                    chain = self.move(counted, chain, held, seed)
                    finite.append(chain.u.isfinite().flatten(1).all(1))
                    better = chain.s < best_s if self.keep == "min" and number else torch.ones_like(finite[-1])
                    best_u = torch.where(better.reshape(-1, *(1,) * (best_u.ndim - 1)), chain.u, best_u)
                    best_s = torch.where(better, chain.s, best_s)
                kept.append((best_u, best_s))
        _check_finite(torch.stack(finite), begun, self.eta)
        u, s = torch.stack([u for u, _ in kept]), torch.stack([s for _, s in kept])
        y = held.get("y")
        rows = u.flatten(0, 1)
        start = _state(
            denoiser.process, rows, s.flatten(), None if y is None else y.repeat(emissions, *(1,) * (y.ndim - 1))
        )
        return Emission(start, chain, _report(counted.evaluations, u, s))

    def move(self, denoiser: Denoiser, chain: Chain, cond: Mapping[str, Tensor] | None = None, seed: int = 0) -> Chain:
        """One iteration: a Langevin move at the level of each chain, then its new level."""
        held = dict(cond or {})
        u = langevin(denoiser, chain, self.eta, held, seed)
        return Chain(u, self._level(u, held, seed, chain.moves + 1), chain.moves + 1)

    def _level(self, u: Tensor, cond: dict, seed: int, moves: int) -> Float[Tensor, " b"]:
        first = self._first
        logits, levels = self.posterior(u, **cond)[:, first:], self.posterior.levels[first:]
        if self.level == "argmax":
            return levels[logits.argmax(-1)]
        drawn = random.uniform((len(u), 1), seed, draw=2 * moves + 1, dtype=torch.float64, device=u.device)
        return levels[(logits.softmax(-1).cumsum(-1) < drawn).sum(-1).clamp_max(len(levels) - 1)]


def langevin(
    denoiser: Denoiser, chain: Chain, eta: float, cond: Mapping[str, Tensor] | None = None, seed: int = 0
) -> Float[Tensor, "b *event"]:
    """The unadjusted Langevin move for p(u | s): `u + (eta / 2) score + sqrt(eta) z`, `score = (D - u) / s^2`."""
    held, u = dict(cond or {}), chain.u
    x, t = _state(denoiser.process, u, chain.s, held.get("y"))
    score = (denoiser(x, t, **held).x0 - u) / left(chain.s**2, u)
    z = random.normal(u.shape, seed, draw=2 * chain.moves, dtype=u.dtype, device=u.device)
    return u + 0.5 * eta * score + math.sqrt(eta) * z


def tweedie(denoiser: Denoiser, start: Start, cond: Mapping[str, Tensor] | None = None) -> Float[Tensor, "b *event"]:
    """The last step: the posterior mean of the data at a state and its time, `(x + sigma^2 score) / alpha`."""
    with torch.no_grad():
        return denoiser(start.x, start.t, **dict(cond or {})).x0


def _state(process: Process, u: Tensor, s: Float[Tensor, " b"], y: Tensor | None) -> Start:
    t = process.time(-s.log())
    x = left(process.alpha(t), u) * u
    if process.endpoint != "none":
        x = x + left(process.beta(t), u) * process._require(y, "chain", u).to(u)
    return Start(x, as_time(t))


def _require_gaussian(process: Process) -> None:
    if process.endpoint == "drawn":
        raise IncompatibleError(f"denoiser: {type(process).__name__} is two-sided; a chain needs a Gaussian process")


def _check_finite(finite: Bool[Tensor, "moves b"], begun: int, eta: float) -> None:
    if bool(finite.all()):
        return
    move = int((~finite).any(1).nonzero()[0, 0])
    chains = (~finite[move]).nonzero()[:, 0].tolist()
    raise NumericalError(
        f"DenoisingMCMC: the chain diverged: its state is not finite from iteration {begun + move} on, in chains "
        f"{chains[:8]}; eta = {eta:g} is too long a move for the levels (eta / (2 s^2) must stay below 2): raise floor, "
        "or lower eta"
    )


def _report(evaluations: int, u: Float[Tensor, "n b *event"], s: Float[Tensor, "n b"]) -> ChainReport:
    samples, sizes = s.numel(), torch.tensor([math.nan], dtype=torch.float64)
    if len(u) >= 4 and u[0].numel():
        sizes = effective_sample_size(u.flatten(2))
    levels = (math.nan, math.nan, math.nan)
    if samples:
        levels = (s.min().item(), s.median().item(), s.max().item())
    return ChainReport(evaluations, samples, sizes.median().item(), sizes.min().item(), levels)
