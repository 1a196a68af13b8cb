"""Log-likelihoods by the instantaneous change of variables.

Chen et al., "Neural ODEs" (NeurIPS 2018), Eq. 8; Song et al. (ICLR 2021), Sec. 4.3 and Appendix D.2. Along the
probability-flow ODE `d log p(x_t)/dt = -div velocity`, so that `log p(x_0) = log p_1(x_1) + int_0^1 div velocity dt`.
The divergence is exact, or Hutchinson's estimate `e^T (d velocity/dx) e` with one probe `e` fixed along the solve
(Grathwohl et al., "FFJORD", ICLR 2019).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import grids, random
from tweed.core.denoiser import CountingDenoiser, Denoiser
from tweed.core.processes import FromBetas, Process
from tweed.core.time import left
from tweed.errors import IncompatibleError, InputError, NumericalError, choose
from tweed.solvers.adaptive_runge_kutta import METHODS, check_tolerances, solve, worst_sample
from tweed.solvers.sampling import _conditions

Prior = Callable[[Tensor], Tensor]
GridFunction = Callable[..., Tensor]

_FIXED = {"heun": ((1.0,), (0.5, 0.5)), "rk4": ((0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6))}
# Offsets of the stages after the first (each starts from the one before), and weights of all.


@dataclass(frozen=True)
class Likelihood:
    """What `log_likelihood` found.

    Attributes:
        log_prob: nats, float64, shape (b,).
        bits_per_dim: `-log_prob / (d log 2) + offset`, shape (b,).
        latent: the state at the noise end, float64, shape (b, *event).
        evaluations: of the denoiser, each on the whole batch.
    """

    log_prob: Float[Tensor, " b"]
    bits_per_dim: Float[Tensor, " b"]
    latent: Float[Tensor, "b *event"]
    evaluations: int


def bits_per_dim(log_prob: Float[Tensor, " b"], dims: int, offset: float = 0.0) -> Float[Tensor, " b"]:
    """`-log_prob / (dims log 2) + offset`.

    The offset undoes a scaling of the data: of 8-bit images, dequantised with uniform noise, a density on [0, 1] gives
    bits a dimension of the integers with `offset = 8` (one level is 1/256), a density on [-1, 1] with `offset = 7`.
    """
    return -log_prob / (dims * math.log(2.0)) + offset


def log_likelihood(
    denoiser: Denoiser,
    x0: Float[Tensor, "b *event"],
    *,
    trace: Literal["exact", "hutchinson"] = "exact",
    probes: int = 1,
    noise: Literal["rademacher", "normal"] = "rademacher",
    method: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    steps: int | None = None,
    grid: GridFunction | None = None,
    cond: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    index: int = 0,
    t_min: float | None = None,
    prior: Prior | None = None,
    offset: float = 0.0,
    chunk: int = 64,
    max_steps: int = 10_000,
) -> Likelihood:
    """The log-likelihood of data under the probability-flow ODE of a denoiser, in nats.

    The solve is in float64, with the log-density carried per dimension, so that it weighs in the error control like one
    coordinate and not like the sum of all. The network runs in its own type.

    Args:
        x0: real data, as the denoiser was trained on.
        trace: "exact" (d backward passes an evaluation) or "hutchinson" (`probes` passes; unbiased, with a variance).
        probes, noise: how many probes a sample has, and of which distribution.
        method: an adaptive method of `AdaptiveRungeKutta`, held to `rtol` and `atol`; or "rk4" or "heun" in `steps`
            equal steps, or those of `grid`, a function of `tweed.grids`.
        cond: conditions, as for `tweed.sample`.
        seed, index: the probes of sample `i` are those of number `index + i` under `seed`.
        t_min: the time that `x0` is taken to be at. By default 0; where `sigma(0) = 0`, 1e-5 (Song et al.), or the first
            time that a `FromBetas` process was trained at.
        prior: the log density at the noise end, `(b, *event) -> (b,)`; that of `process.prior` where not given.
        offset: see `bits_per_dim`.
        chunk: how many rows of the Jacobian are computed at once.
        max_steps: of an adaptive method.

    Raises:
        InputError: an unknown name, complex data, `steps` with an adaptive method or none with a fixed one.
        IncompatibleError: a two-sided interpolant without `prior`.
        NumericalError: the solve does not end, or its result is not finite.
    """
    process = denoiser.process
    choose("trace", trace, ("exact", "hutchinson"))
    choose("noise", noise, ("rademacher", "normal"))
    choose("method", method, [*METHODS, *_FIXED])
    check_tolerances(rtol, atol, max_steps)
    if not isinstance(x0, Tensor) or x0.ndim < 2 or x0.is_complex():
        raise InputError("x0: expected a real tensor (batch, *event)")
    if probes < 1 or chunk < 1:
        raise InputError(f"probes, chunk: {probes}, {chunk} were given; expected at least 1 each")
    if (steps is None) != (method in METHODS) or (grid is not None and steps is None):
        raise InputError(
            f"steps: {steps} was given; expected a number for rk4 and heun (grid may go with it), else none"
        )
    if process.endpoint == "drawn" and prior is None:
        raise IncompatibleError("prior: a two-sided interpolant ends at a second distribution; pass its log density")
    low = _first_time(process) if t_min is None else t_min
    high = denoiser.t_max
    if not 0.0 <= low < high:
        raise InputError(f"t_min: {low} was given; expected a time in [0, {high})")

    x = x0.double()
    given = _conditions(cond, x)
    counter = CountingDenoiser(denoiser.start())
    rows = None
    if trace == "hutchinson":
        draw = random.rademacher if noise == "rademacher" else random.normal
        rows = torch.stack(
            [draw(x.shape, seed, index=index, draw=k, dtype=x.dtype, device=x.device) for k in range(probes)]
        )
    d = math.prod(x.shape[1:])

    def field(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        velocity, divergence = _divergence(counter, state[0], t, given, rows, chunk)
        return velocity, divergence / d

    start = (x, torch.zeros(len(x), dtype=x.dtype, device=x.device))
    if method in _FIXED:
        latent, gain = _fixed(field, start, process, method, steps, grid, low, high)  # type: ignore[arg-type]
    else:
        first, last = (torch.full((len(x),), t, dtype=x.dtype, device=x.device) for t in (low, high))
        latent, gain = solve(field, start, first, last, method, rtol, atol, max_steps, _norm)
    tail = _prior(process, latent, high, given.get("y")) if prior is None else prior(latent).double()
    log_prob = tail + d * gain
    if not bool(log_prob.isfinite().all()):
        bad = (~log_prob.isfinite()).nonzero()[:8, 0].tolist()
        raise NumericalError(
            f"log_likelihood: it is not finite for samples {bad}; the velocity is not, somewhere in between"
        )
    return Likelihood(log_prob, bits_per_dim(log_prob, d, offset), latent, counter.evaluations)


def _divergence(
    denoiser: Denoiser, x: Tensor, t: Tensor, cond: dict, rows: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    """The velocity, and its divergence (b,): by the rows of the Jacobian, or by probes, shape (probes, b, *event)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        velocity = denoiser(x, t, **cond).velocity
        if not velocity.requires_grad:
            return velocity, velocity.new_zeros(len(x))
        d = math.prod(x.shape[1:])
        count = d if rows is None else len(rows)
        total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        for first in range(0, count, chunk):
            last = min(first + chunk, count)
            if rows is None:
                probe = torch.zeros(last - first, 1, d, dtype=x.dtype, device=x.device)
                probe[range(last - first), 0, range(first, last)] = 1.0
                probe = probe.expand(-1, len(x), -1).reshape(-1, *x.shape)
            else:
                probe = rows[first:last]
            (product,) = torch.autograd.grad(velocity, x, probe, retain_graph=last < count, is_grads_batched=True)
            total = total + (product * probe).flatten(2).sum((0, 2))
    return velocity.detach(), total if rows is None else total / count


def _fixed(
    field: Callable,
    state: tuple[Tensor, Tensor],
    process: Process,
    method: str,
    steps: int,
    grid,
    low: float,
    high: float,
) -> tuple[Tensor, Tensor]:
    times = (grid or grids.uniform)(process, steps, start=high, end=low).flip(0).tolist()
    offsets, weights = _FIXED[method]
    x, gain = state
    for t, s in pairwise(times):
        h = s - t
        slopes = [field(torch.tensor(t, dtype=torch.float64), (x, gain))]
        for c in offsets:
            slopes.append(field(torch.tensor(t + c * h, dtype=torch.float64), (x + c * h * slopes[-1][0], gain)))
        x = x + h * sum(w * k[0] for w, k in zip(weights, slopes, strict=True))
        gain = gain + h * sum(w * k[1] for w, k in zip(weights, slopes, strict=True))
    return x, gain


def _norm(error: tuple[Tensor, Tensor]) -> Tensor:
    return torch.maximum(worst_sample(error[0]), error[1].abs().amax())


def _first_time(process: Process) -> float:
    if process.endpoint == "drawn" or process.level(0.0).sigma > 0.0:
        return 0.0
    return process.t_min if isinstance(process, FromBetas) else 1e-5


def _prior(process: Process, x: Tensor, t: float, y: Tensor | None) -> Tensor:
    if process.endpoint == "given":
        x = x - process._require(y, "prior", x).to(x)
    sigma = left(process.sigma(t), x)
    d = math.prod(x.shape[1:])
    return -0.5 * (x / sigma).square().flatten(1).sum(1) - d * (0.5 * math.log(2.0 * math.pi) + sigma.log().squeeze())
