"""A noise level of each token's own: Poisson levels of "Unifying Continuous and Discrete Text Diffusion with Non-simultaneous
Diffusion Processes" (NeoDiff, ACL 2025, arXiv 2505.22165), Section 3.

A sentence has one time t, its tokens have levels `tau_i` in 0 .. `tau_max`, drawn around the rate `lambda(t) = 2 tau_max t`. With
no spread all have the same, which is continuous diffusion; with two levels it is the absorbing process.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tweed.errors import InputError, choose

Spread = Literal["published", "poisson", "none"]
_FULL = 0.99  # from here on everything is noise


@dataclass(frozen=True)
class PoissonTokenSchedule:
    """Levels of tokens at a time of their sentence.

    Args:
        levels: how many there are, the noisiest being `levels - 1`.
        spread: the standard deviation: "published" `2 tau_max t`, as in the training scripts; "poisson" that of the counts,
            `sqrt(lambda)`; "none" gives every token the rate itself.

    Raises:
        InputError: fewer than two levels, or an unknown spread.
    """

    levels: int = 100
    spread: Spread = "published"

    def __post_init__(self):
        choose("spread", self.spread, ("published", "poisson", "none"))
        if self.levels < 2:
            raise InputError(f"levels: {self.levels} was given; expected at least 2")

    @property
    def top(self) -> int:
        """The noisiest level."""
        return self.levels - 1

    def rate(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The mean count, `2 tau_max t`: beyond t = 1/2 most tokens are at the top already."""
        return 2.0 * self.top * t.double()

    def deviation(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The standard deviation of the levels before they are rounded and clamped."""
        if self.spread == "poisson":
            return self.rate(t).sqrt()
        return 2.0 * self.top * t.double() if self.spread == "published" else torch.zeros_like(t, dtype=torch.float64)

    def counts(self, t: Float[Tensor, " b"], u: Float[Tensor, "b length"]) -> Float[Tensor, "b length"]:
        """Poisson counts at the rate, from uniform numbers, float64."""
        return poisson_quantile(u, self.rate(t)[:, None])

    def from_counts(self, t: Float[Tensor, " b"], counts: Float[Tensor, "b length"]) -> Float[Tensor, "b length"]:
        """Levels, whole numbers: counts with their spread made `deviation(t)`, rounded and clamped; the top from t = 0.99 on.

        (The released sampler writes level 1 there, and not the top: an oversight, as it means full noise.)
        """
        rate = self.rate(t)[:, None]
        scaled = (counts - rate) / (rate.sqrt() + 1e-8) * self.deviation(t)[:, None] + rate
        level = scaled.round().clamp(0, self.top)
        return torch.where((t > _FULL)[:, None], torch.full_like(level, self.top), level)

    def sample(self, t: Float[Tensor, " b"], u: Float[Tensor, "b length"]) -> Float[Tensor, "b length"]:
        """Levels of tokens, from a uniform number each."""
        return self.from_counts(t, self.counts(t, u))

    def labels(
        self, loss: Float[Tensor, "b length"], real: Bool[Tensor, "b length"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b length"]:
        """What a predictor of levels learns: the quantiles of the Poisson law, the larger the harder a token is now.

        The token of rank j of L (from 0, by its loss) gets the quantile `(j + 1/2) / L`. Padding has no rank, and level 0.
        """
        length = real.sum(1, keepdim=True).clamp_min(1)
        rank = loss.masked_fill(~real, math.inf).argsort(1).argsort(1)
        share = ((rank + 0.5) / length).clamp(max=1.0 - 1e-9).double()
        return self.from_counts(t, poisson_quantile(share, self.rate(t)[:, None])).masked_fill(~real, 0.0)


def poisson_quantile(u: Float[Tensor, "*n"], rate: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The smallest count whose cumulated probability is at least `u`, float64; 0 at rate 0."""
    from scipy.stats import poisson

    found = poisson.ppf(u.double().cpu().numpy(), rate.double().cpu().expand(u.shape).numpy())
    return torch.from_numpy(found).to(u.device).nan_to_num(0.0).clamp_min(0.0)


def optimize_time_grid(
    objective: Callable[[tuple[float, ...]], float],
    steps: int,
    *,
    budget: int = 240,
    random_first: int = 40,
    seed: int = 0,
) -> tuple[tuple[float, ...], float]:
    """The decreasing times, 1 first and 0 last, at which `objective` is largest, and its value there.

    Bayesian optimisation of the `steps - 1` times between: random grids, then those of the largest expected improvement under a
    Gaussian process (scikit-learn's). The uniform grid is the first candidate, so the result is never worse than it.

    Raises:
        InputError: fewer than one step, or an empty budget.
    """
    import numpy
    from scipy.stats import norm
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    from tweed.core import random

    if steps < 1 or budget < 1:
        raise InputError(f"steps, budget: {steps}, {budget} were given; expected positive numbers")
    inner = steps - 1
    tried: list[list[float]] = []
    values: list[float] = []

    def grid(points: list[float]) -> tuple[float, ...]:
        return (1.0, *sorted(points, reverse=True), 0.0)

    def candidates(count: int, draw: int) -> numpy.ndarray:
        u = random.uniform((count, max(inner, 1)), seed, draw=draw, dtype=torch.float64)[:, :inner]
        spread = u.clamp(1e-3, 1.0 - 1e-3).sort(1, descending=True).values
        return spread.numpy()

    for number in range(budget if inner else 1):
        if number == 0:
            point = [1.0 - (i + 1) / steps for i in range(inner)]
        elif number <= random_first or len(set(values)) < 2:
            point = candidates(1, number)[0].tolist()
        else:
            kernel = ConstantKernel(1.0) * Matern(length_scale=0.2, nu=2.5) + WhiteKernel(1e-3)
            scale = max(float(numpy.std(values)), 1e-12)
            model = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
            import warnings

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of bounds that its fit reaches
                model.fit(numpy.array(tried), numpy.array(values))
            options = candidates(512, number)
            mean, std = model.predict(options, return_std=True)
            gain = (mean - max(values)) / numpy.maximum(std, 1e-9 * scale)
            expected = (mean - max(values)) * norm.cdf(gain) + std * norm.pdf(gain)
            point = options[int(expected.argmax())].tolist()
        tried.append(point)
        values.append(float(objective(grid(point))))
    best = int(numpy.argmax(values))
    return grid(tried[best]), values[best]
