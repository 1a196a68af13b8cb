"""Data on a linear subspace, `x_0 = A z`: the exact denoiser, from that of the latent.

Noise off the subspace says nothing of z, so `E[x_0 | x_t] = A E[z | A^T x_t]`, and the score splits into
`A grad log p_t^z(A^T x) - (I - A A^T) x / sigma^2` (Chen et al., ICML 2023, Lemma 1; arXiv 2404.07771). The second part
grows like 1 / sigma^2 and forces samples onto the subspace.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import targets
from tweed.core.denoiser import Denoiser
from tweed.core.estimate import Estimate
from tweed.core.time import Time, as_time, working_dtype
from tweed.errors import IncompatibleError, InputError

_DATA = targets.Data()


class SubspaceDenoiser(Denoiser):
    """The denoiser of `A z`, exact where that of z is.

    Args:
        latent: a denoiser of z, samples of shape (d,), on a Gaussian process, which is also this one's.
        basis: A, orthonormal columns, shape (D, d).

    Raises:
        InputError: the latent's samples are not of shape (d,), or the columns are not orthonormal.
        IncompatibleError: the process has an endpoint.
    """

    event: tuple[int, ...]
    basis: Tensor

    def __init__(self, latent: Denoiser, basis: Float[Tensor, "D d"]):
        super().__init__()
        if latent.process.endpoint != "none":
            raise IncompatibleError(
                f"latent: its process, {type(latent.process).__name__}, has an endpoint; expected a Gaussian process"
            )
        basis = torch.as_tensor(basis, dtype=torch.float64)
        if basis.ndim != 2 or latent.event not in (None, (basis.shape[1],)):
            raise InputError(f"basis: shape {tuple(basis.shape)} was given for latents {latent.event}; expected (D, d)")
        if not torch.allclose(basis.T @ basis, torch.eye(basis.shape[1]).to(basis), atol=1e-6):
            raise InputError("basis: the columns are not orthonormal")
        self.latent, self.process, self.event = latent, latent.process, (basis.shape[0],)
        self.register_buffer("basis", basis)

    @property
    def t_max(self) -> float:
        return self.latent.t_max

    def _inner(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.event:
            raise InputError(f"x: shape {tuple(x.shape)} was given; expected (batch, {self.event[0]})")
        return x.double() @ self.basis

    def forward(self, x, t, **cond):
        dtype = working_dtype(x)
        inner = self.latent(self._inner(x), t, **cond).x0
        return Estimate(x.to(dtype), t, (inner.double() @ self.basis.T).to(dtype), self.process, _DATA)

    def log_prob(self, x: Float[Tensor, "b D"], t: Time, **cond: Tensor) -> Float[Tensor, " b"]:
        """The log density of the marginal at time `t`, in nats, float64; there is none where sigma(t) = 0.

        Raises:
            InputError: `t` is neither of shape () nor (b,).
        """
        time = as_time(t).to(x.device)
        if time.ndim > 1:
            raise InputError(f"t: shape {tuple(time.shape)} was given; expected () or (b,)")
        inner = self._inner(x)
        rest = (x.double() - inner @ self.basis.T).square().sum(1)
        variance, normal = self.process.sigma(time).square(), x.shape[1] - self.basis.shape[1]
        beside = -0.5 * (rest / variance + normal * (2.0 * math.pi * variance).log())
        return self.latent.log_prob(inner, t, **cond) + beside  # type: ignore[operator]

    def posterior_covariance(self, x: Float[Tensor, "b D"], t: Time, **cond: Tensor) -> Float[Tensor, "b D D"]:
        """`Cov[x_0 | x_t]`, float64, where the latent's denoiser has one."""
        return self.basis @ self.latent.posterior_covariance(self._inner(x), t, **cond) @ self.basis.T  # type: ignore[operator]

    def sample(self, n: int, seed: int = 0, **options) -> Float[Tensor, "n D"]:
        """Exact draws of the data, float64, where the latent's denoiser makes them."""
        return self.latent.sample(n, seed, **options).double() @ self.basis.T  # type: ignore[operator]
