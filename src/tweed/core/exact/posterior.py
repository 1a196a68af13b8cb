"""The posterior of a Gaussian mixture given a linear measurement: again a mixture, with everything in closed form.

For `y = A x_0 + noise n` and a component N(m, C) of the data: `S = A C A^T + noise^2 I`, `K = C A^T S^{-1}`, and the
component's posterior is N(m + K (y - A m), C - K A C), of weight proportional to its own times N(y; A m, S). What follows
is the exact conditional denoiser `E[x_0 | x_t, y]`: the truth for every method that samples a posterior, and an ideal
network of restoration. Everything is computed in float64.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import random
from tweed.core.exact.mixture import MixtureDenoiser
from tweed.core.processes import Process
from tweed.errors import InputError


class MixturePosterior(MixtureDenoiser):
    """The exact denoiser of `p(x_0 | y)`; `y` is the condition `measurement`, shape (b, m).

    Args:
        prior: the mixture of the data.
        matrix: `A`, shape (m, d), on flattened events.
        noise: the standard deviation of the measurement's noise.
        process: any process but a two-sided interpolant; that of the prior where not given. Its endpoint, if it has one,
            is the condition `y` as everywhere, and need not be the measurement.

    Raises:
        InputError: shapes do not fit, a negative noise, or none where a component leaves a measurement no variance.
    """

    matrix: Tensor
    gain: Tensor
    factor: Tensor

    def __init__(
        self, prior: MixtureDenoiser, matrix: Float[Tensor, "m d"], noise: float, process: Process | None = None
    ):
        k, d = prior.means.shape
        matrix = torch.as_tensor(matrix, dtype=torch.float64).to(prior.means.device)
        if matrix.ndim != 2 or matrix.shape[1] != d:
            raise InputError(f"matrix: shape {tuple(matrix.shape)} was given; expected (m, {d})")
        if not noise >= 0.0:
            raise InputError(f"noise: {noise} was given; expected a standard deviation, at least 0")
        values = prior.values.expand(k, d)
        vectors = prior.vectors
        covariance = torch.diag_embed(values) if vectors is None else (vectors * values[:, None]) @ vectors.mT
        cross = covariance @ matrix.T
        total = matrix @ cross + noise**2 * torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)
        factor, failed = torch.linalg.cholesky_ex(total)
        if bool(failed.any()):
            raise InputError(f"noise: {noise} was given; some measurement then has no variance at all")
        gain = torch.cholesky_solve(cross.mT, factor).mT
        posterior = covariance - gain @ cross.mT
        posterior = 0.5 * (posterior + posterior.mT)
        super().__init__(
            prior.means.reshape(k, *prior.event), _floored(posterior), prior.log_weights.exp(), process or prior.process
        )
        self.noise = float(noise)
        self.register_buffer("matrix", matrix)
        self.register_buffer("gain", gain)
        self.register_buffer("factor", factor)

    def _given(self, cond: dict) -> tuple[Tensor, Tensor]:
        measurement = cond.get("measurement")
        if measurement is None or measurement.ndim != 2 or measurement.shape[1] != len(self.matrix):
            shape = None if measurement is None else tuple(measurement.shape)
            raise InputError(f"measurement: {shape} was given; expected the condition (batch, {len(self.matrix)})")
        return self.components(measurement)

    def components(self, y: Float[Tensor, "b m"]) -> tuple[Float[Tensor, "b k d"], Float[Tensor, "b k"]]:
        """The means and the log weights of the posterior's components."""
        log_joint, surplus = self._joint(y)
        means = self.means + torch.einsum("kdm,bkm->bkd", self.gain, surplus)
        return means, log_joint.log_softmax(-1)

    def log_evidence(self, y: Float[Tensor, "b m"]) -> Float[Tensor, " b"]:
        """`log p(y)`, in nats."""
        return self._joint(y)[0].logsumexp(-1)

    def _joint(self, y: Tensor) -> tuple[Tensor, Tensor]:
        surplus = y.double()[:, None] - self.means @ self.matrix.T
        white = torch.linalg.solve_triangular(self.factor, surplus[..., None], upper=False)[..., 0]
        volume = 2.0 * self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = len(self.matrix) * math.log(2.0 * math.pi)
        return self.log_weights - 0.5 * ((white**2).sum(-1) + volume + constant), surplus

    def moments(self, y: Float[Tensor, "b m"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d d"]]:
        """The mean and the covariance of `p(x_0 | y)`, on flattened events."""
        means, log_weights = self.components(y)
        weights, spread = log_weights.exp(), self.values.expand(self.means.shape)
        assert self.vectors is not None
        within = (self.vectors * spread[:, None]) @ self.vectors.mT
        mean = torch.einsum("bk,bkd->bd", weights, means)
        centered = means - mean[:, None]
        between = torch.einsum("bk,bkd,bkf->bdf", weights, centered, centered)
        return mean, torch.einsum("bk,kdf->bdf", weights, within) + between

    def draw(self, y: Float[Tensor, "b m"], n: int, seed: int = 0) -> Float[Tensor, "n b *event"]:
        """`n` exact draws of the posterior for each measurement."""
        means, log_weights = self.components(y)
        b, k, d = means.shape
        which = random.uniform((b, n), seed, dtype=torch.float64, device=means.device)
        cumulative = log_weights.exp().cumsum(-1)
        component = torch.searchsorted(cumulative, which).clamp_max(k - 1)
        noise = random.normal((b, n, d), seed, draw=1, dtype=torch.float64, device=means.device)
        assert self.vectors is not None
        scaled = (self.vectors * self.values.expand(k, d).sqrt()[:, None])[component]
        chosen = means.gather(1, component[..., None].expand(b, n, d))
        drawn = chosen + torch.einsum("bnde,bne->bnd", scaled, noise)
        return drawn.transpose(0, 1).reshape(n, b, *self.event)


def _floored(covariance: Tensor) -> Tensor:
    """Without the negative variances that rounding leaves where a measurement is exact."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0.0)[:, None]) @ vectors.mT
