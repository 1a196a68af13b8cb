"""The exact fields of a two-sided interpolant between two Gaussian mixtures.

With `x_0 ~ sum p_i N(m_i, C_i)` and `x_1 ~ sum q_j N(n_j, D_j)` independent, `x_t` is the mixture over pairs (i, j) of
means `m_ij = alpha m_i + beta n_j` and covariances `C_ij = alpha^2 C_i + beta^2 D_j + sigma^2 I`. With the posterior
weights r_ij: `velocity = sum r_ij [m_ij' + C_ij'/2 C_ij^{-1} (x - m_ij)]`, `score = -sum r_ij C_ij^{-1} (x - m_ij)`
(Albergo et al., arXiv 2303.08797, Appendix A).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core.denoiser import Denoiser
from tweed.core.estimate import TwoSidedEstimate
from tweed.core.exact.mixture import MixtureDenoiser
from tweed.core.processes import Interpolant
from tweed.core.time import Time, as_time, working_dtype
from tweed.errors import InputError


class MixtureInterpolantDenoiser(Denoiser):
    """Exact velocity, latent noise and score between two mixtures.

    Args:
        data, other: the mixtures at t = 0 and t = 1 (their own processes do not matter); same event shape.
        process: a two-sided interpolant.
    """

    def __init__(self, data: MixtureDenoiser, other: MixtureDenoiser, process: Interpolant):
        super().__init__()
        if process.endpoint != "drawn":
            raise InputError("process: a one-sided interpolant was given; expected a two-sided one")
        if data.event != other.event:
            raise InputError(f"other: events of shape {other.event} were given; expected {data.event}, as in data")
        self.data, self.other, self.process, self.event = data, other, process, data.event

    def _pairs(self, x: Tensor, t: Time) -> tuple[Tensor, Tensor, Tensor]:
        """Log joint weights (b, k), whitened offsets C^{-1}(x - m) (b, k, d) and velocities (b, k, d) of all pairs."""
        time = as_time(t).to(x.device)
        if tuple(x.shape[1:]) != self.data.event:
            expected = ", ".join(map(str, self.data.event))
            raise InputError(f"x: shape {tuple(x.shape)} was given; expected (batch, {expected})")
        if time.ndim > 1:
            raise InputError(f"t: shape {tuple(time.shape)} was given; expected () or (b,)")
        p = self.process
        a, b, a_dot, b_dot = (
            c.reshape(-1, 1, 1, 1) for c in (p.alpha(time), p.beta(time), p.alpha_dot(time), p.beta_dot(time))
        )
        noise, noise_dot = (c.reshape(-1, 1, 1, 1, 1) for c in (p.sigma(time) ** 2, p.variance_dot(time)))
        m, n = self.data.means[None, :, None], self.other.means[None, None]
        mean, mean_dot = a * m + b * n, a_dot * m + b_dot * n
        left_cov = _matrices(self.data)[None, :, None]
        right_cov = _matrices(self.other)[None, None]
        identity = torch.eye(m.shape[-1], dtype=torch.float64, device=x.device)
        a5, b5, a5_dot, b5_dot = (c[..., None] for c in (a, b, a_dot, b_dot))
        cov = a5**2 * left_cov + b5**2 * right_cov + noise * identity
        cov_dot = 2 * a5 * a5_dot * left_cov + 2 * b5 * b5_dot * right_cov + noise_dot * identity
        centered = x.double().flatten(1)[:, None, None] - mean
        factor = torch.linalg.cholesky(cov)
        factor = factor.expand(*centered.shape, centered.shape[-1])
        solved = torch.cholesky_solve(centered[..., None], factor)[..., 0]
        velocity = mean_dot + 0.5 * (cov_dot @ solved[..., None])[..., 0]
        volume = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        weights = self.data.log_weights[:, None] + self.other.log_weights[None]
        constant = centered.shape[-1] * math.log(2 * math.pi)
        log_joint = weights - 0.5 * ((centered * solved).sum(-1) + volume + constant)
        return log_joint.flatten(1), solved.flatten(1, 2), velocity.flatten(1, 2)

    def forward(self, x, t, **cond):
        dtype = working_dtype(x)
        log_joint, solved, velocity = self._pairs(x, t)
        weight = log_joint.softmax(-1)
        sigma = self.process.sigma(t).to(x.device).reshape(-1, 1)
        noise = sigma * torch.einsum("bk,bkd->bd", weight, solved)
        drift = torch.einsum("bk,bkd->bd", weight, velocity)
        known = noise.reshape(x.shape).to(dtype) if self.process.latent != "none" else None  # type: ignore[attr-defined]
        return TwoSidedEstimate(x.to(dtype), t, drift.reshape(x.shape).to(dtype), known, self.process)

    def log_prob(self, x: Float[Tensor, "b *event"], t: Time = 0.0) -> Float[Tensor, " b"]:
        """The log density of the marginal at time `t`, in nats, float64."""
        return self._pairs(x, t)[0].logsumexp(-1)


def _matrices(mixture: MixtureDenoiser) -> Tensor:
    k, d = mixture.means.shape
    values = mixture.values.expand(k, d)
    if mixture.vectors is None:
        return torch.diag_embed(values)
    return torch.einsum("kde,ke,kfe->kdf", mixture.vectors, values, mixture.vectors)
