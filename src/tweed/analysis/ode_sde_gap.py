"""The gap between the ODE and the SDE of one model: how far their samples are apart, and what bounds it.

Both end in the data where the score is that of one density evolving by the forward process; with any other field s their
laws differ. With `p` the law of the SDE, whose own probability flow has velocity `f x - (g^2/2)(2 s - grad log p)`, coupling
it to the ODE from the same start and Gronwall's inequality give, with L(t) the one-sided Lipschitz constant of the reversed
ODE velocity,

    W2(ODE, SDE) <= int_0^1 exp(int_0^t L) (g(t)^2 / 2) sqrt(E_p |grad log p - s|^2) dt.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import grids, random
from tweed.core.denoiser import Denoiser
from tweed.core.processes import Process
from tweed.errors import InputError
from tweed.metrics import wasserstein
from tweed.solvers import EulerMaruyama, sample


@dataclass(frozen=True)
class Gap:
    """Squared Wasserstein distances, in units of the data squared.

    Attributes:
        between: of the samples of the ODE from those of the SDE.
        ode, sde: of each from the data, where it was given; None otherwise.
        floor: of two sets of the ODE's samples from each other: what `between` would be without a gap.
    """

    between: float
    ode: float | None
    sde: float | None
    floor: float


def ode_sde_gap(
    denoiser: Denoiser,
    n: int = 2000,
    steps: int = 200,
    *,
    data: Float[Tensor, "n *event"] | None = None,
    seed: int = 0,
    bins: int = 0,
) -> Gap:
    """The distance between the laws of a model's ODE and SDE samples.

    Args:
        n: samples of each. Exact transport between them takes the cube of that; with `bins` the square of the bins' number.
        steps: of Euler's method for both, in equal steps of log-SNR; fewer than some 200 mix its error in.
        data: as many samples of the truth.
        bins: for samples in the plane, compare histograms of so many bins a side over the samples' range (published: 64).

    Raises:
        InputError: fewer than 2 samples, or bins for samples that are not in the plane.
    """
    if n < 2 or steps < 1:
        raise InputError(f"n, steps: {n}, {steps} were given; expected at least 2 samples and 1 step")
    process = denoiser.process
    start = denoiser.t_max if process.level(denoiser.t_max).alpha > 0.0 else process.t_max
    times = grids.log_snr(process, steps, start=start, end=process.t_min)

    def run(solver: EulerMaruyama, k: int) -> Tensor:
        x = process.prior((n, *(denoiser.event or ())), random.fold(seed, k), t=start)
        return sample(denoiser, x, solver=solver, times=times, seed=random.fold(seed, k)).double()

    if denoiser.event is None:
        raise InputError("denoiser: it does not know the shape of a sample; set `event`")
    flow, again = (run(EulerMaruyama(probability_flow=True), k) for k in (1, 2))
    noisy = run(EulerMaruyama(), 3)
    between, floor = _squared(flow, noisy, bins), _squared(flow, again, bins)
    if data is None:
        return Gap(between, None, None, floor)
    truth = data.double()[:n]
    return Gap(between, _squared(flow, truth, bins), _squared(noisy, truth, bins), floor)


def _squared(x: Tensor, y: Tensor, bins: int) -> float:
    if not bins:
        return wasserstein(x, y) ** 2
    x, y = x.flatten(1), y.flatten(1)
    if x.shape[1] != 2:
        raise InputError(
            f"bins: {bins} were given for samples in {x.shape[1]} dimensions; expected samples in the plane"
        )
    both = torch.cat([x, y])
    low, high = both.amin(0), both.amax(0)
    width = (high - low) / bins

    def histogram(points: Tensor) -> tuple[Tensor, Tensor]:
        place = ((points - low) / width).long().clamp(0, bins - 1)
        counts = torch.bincount(place[:, 0] * bins + place[:, 1], minlength=bins**2).double()
        used = counts.nonzero()[:, 0]
        centres = low + (torch.stack((used // bins, used % bins), 1) + 0.5) * width
        return centres, counts[used]

    (a, p), (b, q) = histogram(x), histogram(y)
    return wasserstein(a, b, weights_x=p, weights_y=q) ** 2


@dataclass(frozen=True)
class GaussianLaws:
    """Variances at t = 0 of data N(0, v0) sampled with `(1 + c)` times its exact score, and the bound on their distance.

    Attributes:
        ode, sde: the variances, float.
        distance: `W2` of the two laws, in one dimension.
        bound: what the inequality above gives for it.
    """

    ode: float
    sde: float
    distance: float
    bound: float


def gaussian_laws(process: Process, v0: float, c: float, steps: int = 4000, end: float | None = None) -> GaussianLaws:
    """The laws of ODE and SDE under a score that is wrong by the factor `1 + c`, in one dimension: all are Gaussian.

    With `S(t) = alpha^2 v0 + sigma^2`, running down in t: `dv/dt = 2 f v + (1 + c) g^2 v / S` for the ODE and
    `dv/dt = 2 f v + 2 (1 + c) g^2 v / S - g^2` for the SDE, from the prior's variance at t = 1.

    Args:
        steps: of Heun's method, even in log-SNR.
        end: the last time; `process.t_min` where not given.

    Raises:
        InputError: a variance that is not positive.
    """
    if not v0 > 0.0:
        raise InputError(f"v0: {v0} was given; expected a positive variance")
    start = 1.0 if process.level(1.0).alpha > 0.0 else process.t_max
    times = grids.log_snr(process, steps, start=start, end=process.t_min if end is None else end)
    alpha, sigma = process.alpha(times), process.sigma(times)
    rate, square = process.alpha_dot(times) / alpha, process.diffusion(times) ** 2
    marginal = alpha**2 * v0 + sigma**2
    ode = rate * 2.0 + (1.0 + c) * square / marginal
    sde = rate * 2.0 + 2.0 * (1.0 + c) * square / marginal
    h = times.diff()
    first = second = (sigma[0] ** 2).item()
    noisy = [second]
    for k in range(len(h)):
        step = h[k].item()
        a, b = ode[k].item(), ode[k + 1].item()
        middle = first * (1.0 + step * a)
        first = first + 0.5 * step * (a * first + b * middle)
        a, b, now, then = sde[k].item(), sde[k + 1].item(), square[k].item(), square[k + 1].item()
        slope = a * second - now
        middle = second + step * slope
        second = second + 0.5 * step * (slope + b * middle - then)
        noisy.append(second)
    variance = torch.tensor(noisy, dtype=torch.float64)
    # grad log p - s is linear in x: (-1/v + (1 + c)/S) x under N(0, v).
    mismatch = (-1.0 / variance + (1.0 + c) / marginal).abs() * variance.sqrt()
    # The ODE's velocity is (f + (1 + c) g^2 / (2 S)) x; reversed, its Lipschitz constant is minus that factor.
    expand = -(rate + 0.5 * (1.0 + c) * square / marginal)
    inside = torch.cat([torch.zeros(1, dtype=torch.float64), torch.cumulative_trapezoid(expand.flip(0), times.flip(0))])
    weight = (inside.exp() * 0.5 * square.flip(0) * mismatch.flip(0)).nan_to_num(0.0)
    bound = torch.trapezoid(weight, times.flip(0)).item()
    return GaussianLaws(first, second, abs(first**0.5 - second**0.5), bound)
