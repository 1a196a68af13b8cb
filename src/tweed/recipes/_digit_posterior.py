"""The exact world of restoration recipes: digits as a mixture of Gaussians, measured linearly, with posteriors in closed form."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import random
from tweed.core.exact import MixtureDenoiser, MixturePosterior
from tweed.core.processes import VP, Process
from tweed.data import Digits
from tweed.inverse.operators import SuperResolution
from tweed.solvers import Solver, sample

EVENT = (1, 8, 8)
COMPONENTS, FLOOR = 30, 2e-3


@dataclass(frozen=True, eq=False)
class World:
    """A prior fitted to digits, and digits that it has not seen.

    Attributes:
        prior: 30 full Gaussians fitted to the training digits by expectation-maximisation, on 1x8x8 images in [-1, 1].
        held: test digits, shape (n, 1, 8, 8), float64, in an order of the seed's.
    """

    prior: MixtureDenoiser
    held: Tensor

    def posterior(
        self, matrix: Float[Tensor, "m 64"], noise: float, process: Process | None = None
    ) -> MixturePosterior:
        """The exact posterior for a measurement matrix, and its denoiser under any process."""
        return MixturePosterior(self.prior, matrix, noise, process)


def world(seed: int, process: Process | None = None, held: int | None = None) -> World:
    """The world of a seed: the mixture's clusters and the order of the held-out digits depend on it."""
    prior = MixtureDenoiser(*_fitted(seed), process or VP())
    digits = Digits("test").x.double()
    order = random.uniform((1, len(digits)), random.fold(seed, 81), dtype=torch.float64)[0].argsort()
    return World(prior, digits[order[:held]])


@lru_cache(maxsize=4)
def _fitted(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    from sklearn.mixture import GaussianMixture

    data = Digits("train").x.double().flatten(1).numpy()
    found = GaussianMixture(COMPONENTS, reg_covar=FLOOR, random_state=random.fold(seed, 80) % 2**32, max_iter=60).fit(
        data
    )
    means, covariances, weights = (torch.from_numpy(a) for a in (found.means_, found.covariances_, found.weights_))
    return means.reshape(-1, *EVENT), 0.5 * (covariances + covariances.mT), weights


def psnr(x: Float[Tensor, "b *event"], truth: Float[Tensor, "b *event"]) -> float:
    """The mean over images of the peak signal-to-noise ratio, in dB, for values in [-1, 1]."""
    error = (x.double() - truth.double()).square().flatten(1).mean(1)
    return float((10.0 * torch.log10(4.0 / error)).mean())


def spread_of_energy(samples: Float[Tensor, "n b *event"], truth: Float[Tensor, "m b *event"]) -> float:
    """The energy distance of two sets of samples of each of b laws, over their mean distance; the mean over the laws.

    0 for equal laws: pairs of a sample with itself are left out.
    """
    x, z = samples.double().flatten(2).transpose(0, 1), truth.double().flatten(2).transpose(0, 1)
    n, m = x.shape[1], z.shape[1]
    across = torch.cdist(x, z).mean((1, 2))
    within_x = torch.cdist(x, x).sum((1, 2)) / (n * (n - 1))
    within_z = torch.cdist(z, z).sum((1, 2)) / (m * (m - 1))
    return float(((2.0 * across - within_x - within_z) / across).mean())


def standard_error(values: Tensor) -> float:
    """Of a mean of independent numbers."""
    return float(values.double().std() / math.sqrt(len(values)))


@dataclass(frozen=True, eq=False)
class Laws:
    """What restoration methods are compared by: noisy 2x2 means of digits, with the exact law of the clean ones.

    Attributes:
        world: the digits and their prior.
        matrix: of the 2x2 means; `NOISE` is the measurement's noise.
        y: measurements, shape (b, 16); `degraded` their pseudo-inverse, shape (b, 1, 8, 8).
        truth: exact draws of each posterior, shape (n, b, 1, 8, 8).
    """

    world: World
    matrix: Tensor
    y: Tensor
    degraded: Tensor
    truth: Tensor

    def denoiser(self, process: Process) -> MixturePosterior:
        """`E[x_0 | x_t, measurement]` under a process: an ideal network of restoration."""
        return self.world.posterior(self.matrix, NOISE, process)

    def samples(
        self, process: Process, solver: Solver, steps: int, seed: int, times: list[float] | None = None
    ) -> Tensor:
        """As many samples of each law as there are true ones, (n, b, 1, 8, 8)."""
        n, b = self.truth.shape[:2]
        cond = {"measurement": self.y.repeat(n, 1)}
        if process.endpoint != "none":
            cond["y"] = self.degraded.repeat(n, 1, 1, 1)
        grid: dict[str, Any] = {"steps": steps} if times is None else {"times": times}
        made = sample(
            self.denoiser(process), n * b, solver=solver, cond=cond, seed=seed, shape=EVENT, dtype=torch.float64, **grid
        )
        return made.reshape(n, b, *EVENT)

    def distance(self, samples: Float[Tensor, "n b *event"]) -> float:
        """The energy distance to the exact laws; see `spread_of_energy`."""
        return spread_of_energy(samples, self.truth)

    def psnr(self, samples: Float[Tensor, "n b *event"]) -> float:
        """Of single samples, in dB, against the digits that were measured."""
        return psnr(samples.flatten(0, 1), self.world.held.repeat(len(samples), 1, 1, 1))


NOISE = 0.05


def laws(seed: int, inputs: int, n: int) -> Laws:
    """The comparison of a seed: `inputs` held-out digits, `n` draws of each law."""
    digits = world(seed, held=inputs)
    operator = SuperResolution(EVENT, 2)
    y = operator(digits.held)
    y = y + NOISE * random.normal(y.shape, random.fold(seed, 82), dtype=y.dtype)
    matrix = operator.matrix()
    truth = digits.posterior(matrix, NOISE).draw(y.flatten(1), n, random.fold(seed, 83))
    return Laws(digits, matrix, y.flatten(1), operator.pseudo_inverse(y), truth)
