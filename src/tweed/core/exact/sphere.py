"""The uniform distribution on a sphere in a subspace: a curved manifold of known dimension, with its exact denoiser.

Given `x = alpha x_0 + sigma eps` the point `x_0` has a von Mises-Fisher law about the direction of x's part in the subspace,
with concentration `kappa = radius alpha |x| / sigma^2`; its mean length is the ratio of Bessel functions
`A = I_{p/2}(kappa) / I_{p/2-1}(kappa)`, and `A' = 1 - A^2 - (p - 1) A / kappa` (Mardia & Jupp, "Directional Statistics", 2000,
Sec. 9.3). Everything is computed in float64.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import random, targets
from tweed.core.denoiser import Denoiser
from tweed.core.estimate import Estimate
from tweed.core.processes import EDM, Process
from tweed.core.time import as_time, working_dtype
from tweed.errors import IncompatibleError, InputError

_DATA = targets.Data()
_TERMS = 120


class SphereDenoiser(Denoiser):
    """The exact denoiser of points drawn evenly from a sphere of dimension `dimension` in R^`ambient`.

    Args:
        dimension: of the sphere, at least 1 (a circle); it lies in a subspace of one dimension more.
        ambient: of the space, larger than `dimension`.
        radius: of the sphere.
        process: any Gaussian process; `EDM()` where not given.
        seed: of the subspace, which is turned at random.

    Raises:
        InputError: dimensions that do not fit.
        IncompatibleError: a process with an endpoint.
    """

    event: tuple[int, ...]
    basis: Tensor

    def __init__(
        self, dimension: int, ambient: int, radius: float = 1.0, process: Process | None = None, seed: int = 0
    ):
        super().__init__()
        if not 1 <= dimension < ambient or not radius > 0.0:
            raise InputError(
                f"dimension, ambient, radius: {dimension}, {ambient}, {radius} were given; expected 1 <= dimension < "
                "ambient, and a positive radius"
            )
        self.process = process or EDM()
        if self.process.endpoint != "none":
            raise IncompatibleError(
                f"process: {type(self.process).__name__} has an endpoint; expected a Gaussian process"
            )
        self.dimension, self.radius, self.event = dimension, radius, (ambient,)
        turned = torch.linalg.qr(random.normal((ambient, ambient), seed, dtype=torch.float64)).Q
        self.register_buffer("basis", turned[:, : dimension + 1])

    def _polar(self, x: Tensor, t) -> tuple[Tensor, Tensor, Tensor]:
        """Direction and concentration of the posterior, and its mean length over the radius."""
        if x.ndim != 2 or x.shape[1] != self.event[0]:
            raise InputError(f"x: shape {tuple(x.shape)} was given; expected (batch, {self.event[0]})")
        time = as_time(t).to(x.device)
        alpha, sigma = (c.reshape(-1, 1) for c in (self.process.alpha(time), self.process.sigma(time)))
        inner = x.double() @ self.basis
        length = inner.norm(dim=1, keepdim=True).clamp_min(1e-300)
        kappa = self.radius * alpha * length / sigma**2
        return inner / length, kappa, bessel_ratio(self.dimension + 1, kappa)

    def forward(self, x, t, **cond):
        direction, _, mean = self._polar(x, t)
        dtype = working_dtype(x)
        x0 = (self.radius * mean * direction) @ self.basis.T
        return Estimate(x.to(dtype), t, x0.to(dtype), self.process, _DATA)

    def posterior_covariance(self, x: Float[Tensor, "b d"], t, **cond: Tensor) -> Float[Tensor, "b d d"]:
        """`Cov[x_0 | x_t]`, float64."""
        direction, kappa, mean = self._polar(x, t)
        along = 1.0 - mean**2 - self.dimension * mean / kappa
        outer = direction[:, :, None] * direction[:, None, :]
        eye = torch.eye(self.dimension + 1, dtype=outer.dtype, device=outer.device)
        inner = along[..., None] * outer + (mean / kappa)[..., None] * (eye - outer)
        return self.radius**2 * self.basis @ inner @ self.basis.T

    def sample(self, n: int, seed: int = 0, *, index: int = 0) -> Float[Tensor, "n d"]:
        """Exact draws of the data, float64."""
        z = random.normal((n, self.dimension + 1), seed, index=index, dtype=torch.float64, device=self.basis.device)
        return self.radius * (z / z.norm(dim=1, keepdim=True)) @ self.basis.T

    def tangent(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d d"]:
        """The projection onto the tangent space of the sphere at the point next to x."""
        inner = x.double() @ self.basis
        direction = inner / inner.norm(dim=1, keepdim=True)
        eye = torch.eye(self.dimension + 1, dtype=inner.dtype, device=inner.device)
        return self.basis @ (eye - direction[:, :, None] * direction[:, None, :]) @ self.basis.T


def bessel_ratio(p: int, kappa: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """`I_{p/2}(kappa) / I_{p/2-1}(kappa)`, to about eight digits: its continued fraction, begun between Amos's bounds (1974)."""
    order = p / 2.0 - 1.0
    top = order + _TERMS + 0.5
    low, high = (kappa / (top + ((top + more) ** 2 + kappa**2).sqrt()) for more in (1.0, 0.0))
    ratio = 0.5 * (low + high)
    for k in reversed(range(_TERMS)):
        ratio = 1.0 / (2.0 * (order + k + 1.0) / kappa + ratio)
    return ratio
