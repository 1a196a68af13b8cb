"""The Fréchet distance between Gaussians fitted to two sets of features, and the moments it needs as a stream.

`|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^{1/2})` (Dowson & Landau, J. Multivariate Analysis 1982; FID: Heusel et al.,
"GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS 2017). The trace of the
root is the sum of the singular values of `C_x^{1/2} C_y^{1/2}`: no root of a non-symmetric matrix, no complex numbers,
and singular covariances (fewer samples than dimensions) lose no digits.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from tweed.errors import InputError
from tweed.metrics.samples import pair, rows


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter `sum (x - mean)(x - mean)^T` of the rows seen so far, in float64.

    Start from `Moments.of(batch)` or `Moments.empty(d)`. Merging is associative and commutative up to rounding, so
    shards may be accumulated apart (Chan, Golub & LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing
    Sample Variances", 1979).
    """

    count: int
    mean: Float[Tensor, " d"]
    scatter: Float[Tensor, "d d"]

    @classmethod
    def empty(cls, d: int, device: torch.device | str | None = None) -> "Moments":
        zeros = torch.zeros(d, d, dtype=torch.float64, device=device)
        return cls(0, zeros.new_zeros(d), zeros)

    @classmethod
    def of(cls, batch: Shaped[Tensor, "n *event"]) -> "Moments":
        """The moments of one batch, flattened to (n, d).

        Raises:
            InputError: the batch is empty or holds values that are not finite.
        """
        x = rows("batch", batch)
        mean = x.mean(0)
        centered = x - mean
        return cls(len(x), mean, centered.T @ centered)

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets together.

        Raises:
            InputError: the dimensions differ.
        """
        if self.mean.shape != other.mean.shape:
            raise InputError(
                f"other: moments in {len(other.mean)} dimensions were given; expected {len(self.mean)} like these"
            )
        count = self.count + other.count
        if count == 0:
            return self
        gap = other.mean - self.mean
        mean = self.mean + gap * (other.count / count)
        scatter = self.scatter + other.scatter + torch.outer(gap, gap) * (self.count * other.count / count)
        return Moments(count, mean, scatter)

    def update(self, batch: Shaped[Tensor, "n *event"]) -> "Moments":
        """The moments with one more batch; an empty batch changes nothing."""
        return self if batch.shape[0] == 0 else self.merge(Moments.of(batch))

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """The unbiased covariance.

        Raises:
            InputError: fewer than two samples.
        """
        if self.count < 2:
            raise InputError(f"count: {self.count} samples were given; expected at least 2 for a covariance")
        return self.scatter / (self.count - 1)


def _root(name: str, covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """`R` with `R R^T = covariance`, exactly 0 along the directions that have no variance."""
    covariance = covariance.detach().double()
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise InputError(f"{name}: shape {tuple(covariance.shape)} was given; expected a square matrix (d, d)")
    if not bool(covariance.isfinite().all()):
        raise InputError(f"{name}: values that are not finite were given; expected a covariance")
    values, vectors = torch.linalg.eigh(0.5 * (covariance + covariance.T))
    noise = values.abs().max() * len(values) * torch.finfo(torch.float64).eps
    if bool((values < -1e4 * noise).any()):
        raise InputError(f"{name}: an eigenvalue of {float(values[0]):.3g} was given; expected none below 0")
    # The root of a rounding error of 1e-16 would be 1e-8.
    return vectors * torch.where(values > noise, values, 0.0).sqrt()


def frechet_distance_of_moments(
    mean_x: Float[Tensor, " d"],
    covariance_x: Float[Tensor, "d d"],
    mean_y: Float[Tensor, " d"],
    covariance_y: Float[Tensor, "d d"],
) -> float:
    """The squared Fréchet (2-Wasserstein) distance between two Gaussians.

    Raises:
        InputError: shapes do not fit, or a covariance is not positive semi-definite.
    """
    root_x, root_y = _root("covariance_x", covariance_x), _root("covariance_y", covariance_y)
    if mean_x.shape != mean_y.shape or root_x.shape != root_y.shape or mean_x.shape != root_x.shape[:1]:
        raise InputError(
            f"mean_y, covariance_y: shapes {tuple(mean_y.shape)}, {tuple(root_y.shape)} were given; expected (d,) and "
            f"(d, d), like mean_x and covariance_x of shapes {tuple(mean_x.shape)}, {tuple(root_x.shape)}"
        )
    cross = torch.linalg.svdvals(root_x.T @ root_y).sum()
    gap = (mean_x.double() - mean_y.double()).square().sum()
    return max(float(gap + root_x.square().sum() + root_y.square().sum() - 2.0 * cross), 0.0)


def frechet_distance(
    features_x: Shaped[Tensor, "n *event"] | Moments, features_y: Shaped[Tensor, "m *event"] | Moments
) -> float:
    """The squared Fréchet distance between Gaussians fitted to two sets of features (FID, for Inception's features).

    Each set is features (n, d) or the `Moments` of a stream of them. The estimate is biased upwards by O(1/n): compare
    only sets of the same sizes.

    Raises:
        InputError: the features differ in shape, or a set has fewer than two samples.
    """
    if isinstance(features_x, Tensor) and isinstance(features_y, Tensor):
        features_x, features_y = pair(features_x, features_y, least=2, names=("features_x", "features_y"))
    x = features_x if isinstance(features_x, Moments) else Moments.of(rows("features_x", features_x, least=2))
    y = features_y if isinstance(features_y, Moments) else Moments.of(rows("features_y", features_y, least=2))
    return frechet_distance_of_moments(x.mean, x.covariance, y.mean, y.covariance)
