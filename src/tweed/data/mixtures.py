"""Gaussian mixtures of any dimension: parameters, samples and density, in float64.

The parameters have the shapes that the exact denoiser of a mixture takes, so that a mixture is at once a data set, a
density and (through that denoiser) the true score at every time.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tweed.core.random import normal, uniform
from tweed.errors import InputError

_CHUNK = 1 << 24  # numbers held at once by a log density


@dataclass(frozen=True)
class Mixture:
    """The density `sum_k weights_k N(means_k, covariances_k)`.

    Attributes:
        means: (k, d).
        covariances: (k,) isotropic variances, (k, d) diagonal ones, or (k, d, d) symmetric positive definite matrices.
        weights: (k,), positive, normalised here; equal where None is given.
        labels: (k,), the class of each component, or None.

    Raises:
        InputError: shapes do not fit, or a weight or a variance is not positive.
    """

    means: Float[Tensor, "k d"]
    covariances: Float[Tensor, "k ..."]
    weights: Float[Tensor, " k"] | None = None
    labels: Int[Tensor, " k"] | None = None

    def __post_init__(self):
        means = torch.as_tensor(self.means, dtype=torch.float64)
        if means.ndim != 2 or means.numel() == 0:
            raise InputError(f"means: shape {tuple(means.shape)} was given; expected (components, dimension)")
        k, d = means.shape
        covariances = torch.as_tensor(self.covariances, dtype=torch.float64)
        if covariances.shape not in ((k,), (k, d), (k, d, d)):
            shapes = f"({k},), ({k}, {d}) or ({k}, {d}, {d})"
            raise InputError(f"covariances: shape {tuple(covariances.shape)} was given; expected {shapes}")
        if covariances.ndim == 3:
            if not torch.allclose(covariances, covariances.mT) or bool((torch.linalg.eigvalsh(covariances) <= 0).any()):
                raise InputError("covariances: a matrix is not symmetric positive definite")
        elif bool((covariances <= 0).any()):
            raise InputError(f"covariances: a variance of {covariances.min().item():.3g} was given; expected above 0")
        weights = torch.ones(k) if self.weights is None else torch.as_tensor(self.weights)
        if weights.shape != (k,) or bool((weights <= 0).any()):
            raise InputError(f"weights: shape {tuple(weights.shape)} was given; expected {k} positive numbers")
        if self.labels is not None and self.labels.shape != (k,):
            raise InputError(f"labels: shape {tuple(self.labels.shape)} was given; expected one a component, ({k},)")
        object.__setattr__(self, "means", means)
        object.__setattr__(self, "covariances", covariances)
        object.__setattr__(self, "weights", weights.double() / weights.double().sum())

    @property
    def components(self) -> int:
        return self.means.shape[0]

    @property
    def dim(self) -> int:
        return self.means.shape[1]

    @property
    def matrices(self) -> Float[Tensor, "k d d"]:
        """The covariances as full matrices."""
        c = self.covariances
        return c if c.ndim == 3 else torch.diag_embed(c if c.ndim == 2 else c[:, None].expand(-1, self.dim))

    @property
    def mean(self) -> Float[Tensor, " d"]:
        assert self.weights is not None
        return self.weights @ self.means

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Of the whole: within the components plus between their means."""
        assert self.weights is not None
        centered = self.means - self.mean
        within = torch.einsum("k,kij->ij", self.weights, self.matrices)
        return within + torch.einsum("k,ki,kj->ij", self.weights, centered, centered)

    def choose(self, n: int, seed: int = 0, index: int | Int[Tensor, " n"] = 0) -> Int[Tensor, " n"]:
        """The components that the same samples of `sample` come from."""
        assert self.weights is not None
        u = uniform((n, 1), seed, index=index, draw=0, dtype=torch.float64)[:, 0]
        return torch.searchsorted(self.weights.cumsum(0), u).clamp_max(self.components - 1)

    def sample(self, n: int, seed: int = 0, index: int | Int[Tensor, " n"] = 0) -> Float[Tensor, "n d"]:
        """Samples `index, index + 1, ...` (or those that a tensor `index` names) under `seed`, whatever `n`."""
        k = self.choose(n, seed, index)
        z = normal((n, self.dim), seed, index=index, draw=1, dtype=torch.float64)
        if self.covariances.ndim == 3:
            factor = torch.linalg.cholesky(self.covariances)
            return self.means[k] + (factor[k] * z[:, None, :]).sum(-1)
        std = self.covariances.sqrt()
        return self.means[k] + z * (std[k] if std.ndim == 2 else std[k, None])

    def log_joint(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """`log(weights_k N(x; means_k, covariances_k))` of every component."""
        assert self.weights is not None
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise InputError(f"x: shape {tuple(x.shape)} was given; expected (n, {self.dim})")
        centered = x.double()[:, None, :] - self.means
        if self.covariances.ndim == 3:
            factor = torch.linalg.cholesky(self.covariances)
            solved = torch.linalg.solve_triangular(factor, centered.permute(1, 2, 0), upper=False)
            quadratic = solved.square().sum(1).mT
            volume = 2.0 * factor.diagonal(dim1=1, dim2=2).log().sum(-1)
        else:
            variance = self.covariances if self.covariances.ndim == 2 else self.covariances[:, None]
            quadratic = (centered.square() / variance).sum(-1)
            volume = variance.expand(-1, self.dim).log().sum(-1)
        return self.weights.log() - 0.5 * (quadratic + volume + self.dim * math.log(2.0 * math.pi))

    def log_prob(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Log density, in nats.

        Raises:
            InputError: `x` is not of shape (n, d).
        """
        rows = max(1, _CHUNK // (self.components * self.dim))
        return torch.cat([self.log_joint(part).logsumexp(1) for part in x.split(rows)])


def random_mixture(
    components: int, dim: int, seed: int = 0, spread: float = 2.0, std: float = 0.2, isotropic: bool = False
) -> Mixture:
    """A mixture drawn at random: unequal weights, normal means, covariances with random axes.

    Args:
        spread: standard deviation of each coordinate of the means.
        std: geometric mean of the standard deviations along a component's axes; they vary by about a factor of 1.5.
        isotropic: make every component a sphere of standard deviation `std`.

    Raises:
        InputError: `components` or `dim` below 1, or `std` not positive.
    """
    if components < 1 or dim < 1 or std <= 0.0:
        raise InputError(f"components, dim, std: {components}, {dim}, {std} were given; expected >= 1, >= 1 and > 0")
    f64 = torch.float64
    # Half equal, half exponential (Dirichlet) weights: unequal, but no component is lost.
    exponential = -uniform((components, 1), seed, draw=0, dtype=f64)[:, 0].log()
    weights = 0.5 / components + 0.5 * exponential / exponential.sum()
    means = spread * normal((components, dim), seed, draw=1, dtype=f64)
    if isotropic:
        return Mixture(means, torch.full((components,), std**2, dtype=f64), weights)
    log_std = 0.4 * normal((components, dim), seed, draw=2, dtype=f64)
    variance = std**2 * (2.0 * (log_std - log_std.mean(1, keepdim=True))).exp()
    axes = torch.linalg.qr(normal((components, dim, dim), seed, draw=3, dtype=f64)).Q
    covariances = torch.einsum("kij,kj,klj->kil", axes, variance, axes)
    return Mixture(means, 0.5 * (covariances + covariances.mT), weights)


def ring_mixture(components: int = 8, radius: float = 2.0**0.5, std: float = 0.1, dim: int = 2) -> Mixture:
    """Equal spheres evenly on a circle of `radius` in the first two of `dim` coordinates; the first lies on +x.

    Raises:
        InputError: `components` below 1, `dim` below 2, or `std` not positive.
    """
    if components < 1 or dim < 2 or std <= 0.0:
        raise InputError(f"components, dim, std: {components}, {dim}, {std} were given; expected >= 1, >= 2 and > 0")
    angle = torch.arange(components, dtype=torch.float64) * (2.0 * math.pi / components)
    means = torch.zeros(components, dim, dtype=torch.float64)
    means[:, 0], means[:, 1] = radius * angle.cos(), radius * angle.sin()
    return Mixture(means, torch.full((components,), std**2), labels=torch.arange(components))


def grid_mixture(side: int = 5, spacing: float = 0.7, std: float = 0.05, dim: int = 2) -> Mixture:
    """Equal spheres on a centred cubic grid, `side` along each of `dim` axes, `spacing` apart.

    Raises:
        InputError: `side` or `dim` below 1, or `std` not positive.
    """
    if side < 1 or dim < 1 or std <= 0.0:
        raise InputError(f"side, dim, std: {side}, {dim}, {std} were given; expected >= 1, >= 1 and > 0")
    axis = (torch.arange(side, dtype=torch.float64) - 0.5 * (side - 1)) * spacing
    means = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    return Mixture(means, torch.full((len(means),), std**2), labels=torch.arange(len(means)))


def digits_mixture(std: float = 0.15, split: str = "all") -> Mixture:
    """The handwritten digits, each smoothed to a sphere of `std`: 64 dimensions, a component an image, labels 0 .. 9.

    Raises:
        InputError: an unknown split, or `std` not positive.
    """
    from tweed.data.digits import Digits

    digits = Digits(split, flat=True)
    batch = digits.batch(torch.arange(len(digits)))
    return Mixture(batch["x"], torch.full((len(digits),), std**2, dtype=torch.float64), labels=batch["label"])
