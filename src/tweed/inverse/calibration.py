"""Whether a method samples the posterior: against closed forms, and by simulation-based calibration.

On a mixture of Gaussians with a linear measurement the posterior is known. Two checks, both of which a method that only finds
a likely sample fails: the mean and the variance of its samples for a few measurements, each solved many times over, so that
their errors are known too; and ranks (Talts et al., "Validating Bayesian Inference Algorithms with Simulation-Based
Calibration", 2018, arXiv 1804.06788): for x_0 drawn from the prior and y measured from it, the rank of a projection of x_0
among those of posterior samples is uniform.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tweed.core import random
from tweed.core.exact import MixtureDenoiser, MixturePosterior
from tweed.errors import InputError
from tweed.inverse.measurement import Measurement
from tweed.inverse.method import Method
from tweed.inverse.operators import Matrix


@dataclass(frozen=True, eq=False)
class Calibration:
    """How far the samples of a method are from the posterior.

    Attributes:
        bias: of the posterior mean, in posterior standard deviations, the root mean square over measurements and elements.
        deviation: the largest of these biases in its own standard errors: up to about 4 for a method without bias.
        variance_ratio: of the samples' variance to the posterior's, totals over elements, the mean over measurements.
        ranks: of the prior's draws among samples, each in 0 .. n, shape (draws,).
        uniformity: the p-value of their uniformity, by chi-squared over ten bins.
    """

    bias: float
    deviation: float
    variance_ratio: float
    ranks: Int[Tensor, " draws"]
    uniformity: float


def calibrate(
    method: Method,
    prior: MixtureDenoiser,
    matrix: Float[Tensor, "m d"],
    noise: float,
    *,
    n: int = 200,
    measurements: int = 4,
    repeats: int = 16,
    draws: int = 400,
    seed: int = 0,
) -> Calibration:
    """Measure a method on a mixture (a `GaussianDenoiser` is one of a single component).

    Args:
        matrix: of the measurement, on flattened events.
        noise: its standard deviation, above 0.
        n: samples of each measurement.
        measurements, repeats: how many measurements, and how often each is solved.
        draws: of the prior, for the ranks; 0 for none.

    Raises:
        InputError: fewer than two repeats, or no noise.
    """
    if repeats < 2 or not noise > 0.0:
        raise InputError(f"repeats, noise: {repeats}, {noise} were given; expected at least 2, and above 0")
    exact = MixturePosterior(prior, matrix, noise)
    operator = Matrix(prior.event, matrix)
    _, y = _simulated(prior, operator, noise, measurements, seed)
    mean, covariance = exact.moments(y)
    variance = covariance.diagonal(dim1=1, dim2=2)
    solution = method.solve(
        prior, Measurement(operator, y.repeat(repeats, 1), noise), n, random.fold(seed, 2), dtype=torch.float64
    )
    shape = (repeats, measurements, -1)
    means, spread = solution.mean.reshape(shape), solution.variance.reshape(shape)
    # The mean of n samples takes a share of their variance along: 1 / n, or the sum of squared weights.
    lost = (solution.weights**2).sum(0).reshape(repeats, measurements, 1)
    spread = spread / (1.0 - lost).clamp_min(1e-3)
    error = means.mean(0) - mean
    own = (means.std(0) / math.sqrt(repeats)).clamp_min(1e-12)
    ratio = spread.mean(0).sum(1) / variance.sum(1)
    ranks = _ranks(method, prior, operator, noise, n, draws, random.fold(seed, 3))
    return Calibration(
        bias=float((error / variance.sqrt()).square().mean().sqrt()),
        deviation=float((error / own).abs().max()),
        variance_ratio=float(ratio.mean()),
        ranks=ranks,
        uniformity=_uniformity(ranks, n),
    )


def _simulated(prior: MixtureDenoiser, operator: Matrix, noise: float, n: int, seed: int) -> tuple[Tensor, Tensor]:
    x = prior.sample(n, random.fold(seed, 0))
    y = operator(x)
    return x, y + noise * random.normal(y.shape, random.fold(seed, 1), dtype=y.dtype)


def _ranks(
    method: Method, prior: MixtureDenoiser, operator: Matrix, noise: float, n: int, draws: int, seed: int
) -> Tensor:
    if draws == 0:
        return torch.empty(0, dtype=torch.int64)
    x, y = _simulated(prior, operator, noise, draws, seed)
    solution = method.solve(prior, Measurement(operator, y, noise), n, random.fold(seed, 2), dtype=torch.float64)
    direction = random.normal((draws, math.prod(prior.event)), random.fold(seed, 3), dtype=torch.float64)
    here = (x.flatten(1) * direction).sum(1)
    there = (solution.samples.double().flatten(2) * direction).sum(2)
    # Weighted samples count by their weights; ties (copies of one particle) are broken evenly by a uniform number.
    weights = solution.weights
    below = (weights * (there < here)).sum(0)
    equal = (weights * (there == here)).sum(0)
    u = random.uniform((draws, 1), random.fold(seed, 4), dtype=torch.float64)[:, 0]
    return ((below + u * equal) * (n + 1)).floor().long().clamp(0, n)


def _uniformity(ranks: Tensor, n: int) -> float:
    if len(ranks) == 0:
        return math.nan
    from scipy.stats import chisquare

    bins = min(10, n + 1)
    edges = torch.arange(bins + 1) * (n + 1) // bins
    counts = torch.bincount(torch.bucketize(ranks, edges[1:], right=True).clamp_max(bins - 1), minlength=bins)
    expected = (edges[1:] - edges[:-1]).double() / (n + 1) * len(ranks)
    return float(chisquare(counts.numpy(), expected.numpy()).pvalue)
