"""A chain of noise steps into which a signal is injected as it runs, its marginals and its posterior in closed form.

Chen et al., "Diffusion Models for Multi-Task Generative Modeling" (ICLR 2024, arXiv 2407.17571): with the aggregate e of all
modalities,

    z_n = sqrt(1 - beta_n) (z_{n-1} + w_n e) + sqrt(beta_n) eps,    n = 1 .. N,

so that `z_n = sqrt(abar_n) z_0 + c_n e + sqrt(1 - abar_n) eps` with `abar_n = prod_{k <= n} (1 - beta_k)` and
`c_n = sqrt(1 - beta_n) (c_{n-1} + w_n)`, `c_0 = 0`. All at the start (`w_1 = 1`, `z_0 = 0`) gives `c_n = sqrt(abar_n)`: the
process `FromBetas` on the data e, for which there is nothing to add to the library.

Spread weights change the backward step: its mean needs e, which a network has to guess at every step, and DDPM's own step is
wrong. The marginals are those of a process with `alpha = c_n`, so that deterministic solvers, which use nothing else, could
run on them where c_n / sqrt(1 - abar_n) falls; but c_N must be small, or the run does not start from pure noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core.time import left
from tweed.errors import InputError


@dataclass(frozen=True)
class Injection:
    """The chain of some betas and injections; n counts steps, 0 is before the first. Coefficients are float64.

    Args:
        betas: N numbers in (0, 1).
        weights: `w_1 ... w_N`, at least 0; None injects all at the start.

    Raises:
        InputError: a number is out of its range, or there are not as many weights as betas.
    """

    betas: Sequence[float]
    weights: Sequence[float] | None = None

    def __post_init__(self):
        betas = tuple(float(beta) for beta in self.betas)
        weights = (1.0, *[0.0] * (len(betas) - 1)) if self.weights is None else tuple(float(w) for w in self.weights)
        if not betas or not all(0.0 < beta < 1.0 for beta in betas):
            raise InputError(f"betas: {betas[:8]} were given; expected at least one number, all in (0, 1)")
        if len(weights) != len(betas) or not all(0.0 <= w < float("inf") for w in weights):
            raise InputError(f"weights: {weights[:8]} were given; expected {len(betas)} numbers, at least 0")
        object.__setattr__(self, "betas", betas)
        object.__setattr__(self, "weights", weights)

    @property
    def kept(self) -> Float[Tensor, " steps+1"]:
        """`abar_0 = 1, abar_1, ..., abar_N`."""
        return torch.cat(
            (torch.ones(1, dtype=torch.float64), (1.0 - torch.tensor(self.betas, dtype=torch.float64)).cumprod(0))
        )

    @property
    def share(self) -> Float[Tensor, " steps+1"]:
        """The share of the signal: `c_0 = 0, c_1, ..., c_N`, where `c_n = sqrt(abar_n) sum_{k <= n} w_k / sqrt(abar_{k-1})`."""
        root = self.kept.sqrt()
        assert self.weights is not None
        total = (torch.tensor(self.weights, dtype=torch.float64) / root[:-1]).cumsum(0)
        return torch.cat((torch.zeros(1, dtype=torch.float64), root[1:] * total))

    def marginal(
        self, e: Float[Tensor, "b *event"], n: int, z0: Float[Tensor, "b *event"] | None = None
    ) -> tuple[Float[Tensor, "b *event"], float]:
        """Mean and variance of `z_n`; `z0` is zero where it is not given.

        Raises:
            InputError: n is not one of 0 ... N.
        """
        self._check(n, 0)
        kept = self.kept[n]
        mean = left(self.share[n], e) * e
        return (mean if z0 is None else mean + left(kept.sqrt(), z0) * z0), 1.0 - kept.item()

    def posterior(
        self,
        z: Float[Tensor, "b *event"],
        e: Float[Tensor, "b *event"],
        n: int,
        z0: Float[Tensor, "b *event"] | None = None,
    ) -> tuple[Float[Tensor, "b *event"], float]:
        """Mean and variance of `z_{n-1}` given `z_n = z`, the signal and `z0`: the product of the step and the marginal.

        With mu the mean of `z_{n-1}`, `a = 1 - beta_n`: the mean is
        `(sqrt(a) (1 - abar_{n-1}) (z - sqrt(a) w_n e) + beta_n mu) / (1 - abar_n)` and the variance
        `beta_n (1 - abar_{n-1}) / (1 - abar_n)`.

        Raises:
            InputError: n is not one of 1 ... N.
        """
        self._check(n, 1)
        assert self.weights is not None
        beta, weight = self.betas[n - 1], self.weights[n - 1]
        before, here = 1.0 - self.kept[n - 1].item(), 1.0 - self.kept[n].item()
        mean = self.marginal(e, n - 1, z0)[0]
        root = (1.0 - beta) ** 0.5
        return (root * before * (z - root * weight * e) + beta * mean) / here, beta * before / here

    def _check(self, n: int, least: int) -> None:
        if not least <= n <= len(self.betas):
            raise InputError(f"n: {n} was given; expected a step from {least} to {len(self.betas)}")
