"""A Gaussian by its principal directions: exact denoiser, flow and density where a full covariance is too large.

The covariance is `U diag(L) U^T + rho (I - U U^T)`: `r` directions of their own variance, and one variance `rho` for all
that is orthogonal to them. Under `x_t = alpha x_0 + sigma eps` every direction keeps to itself, so the probability flow
from t to s scales the part along `u_k` by `psi_k = sqrt((alpha_s^2 L_k + sigma_s^2) / (alpha_t^2 L_k + sigma_t^2))`, and
the rest by the same with `rho` (Wang & Vastola, 2023, arXiv 2303.02490, Eq. 8). Everything is computed in float64.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tweed.core import targets
from tweed.core.denoiser import Denoiser
from tweed.core.estimate import Estimate
from tweed.core.exact.mixture import MixtureDenoiser
from tweed.core.processes import VP, Process
from tweed.core.time import as_time, left, working_dtype
from tweed.errors import IncompatibleError, InputError

_DATA = targets.Data()


class PrincipalGaussian(Denoiser):
    """The exact denoiser of N(mean, U diag(variances) U^T + remainder (I - U U^T)).

    Args:
        mean: shape (*event).
        variances: along the directions, shape (r,), none below 0.
        directions: orthonormal columns `u_k`, shape (d, r), d the number of elements of an event.
        remainder: the variance orthogonal to them; 0 for a distribution on their span alone.
        process: any process but a two-sided interpolant; `VP()` where not given.

    Raises:
        InputError: shapes do not fit, a variance is negative, the directions are not orthonormal.
    """

    event: tuple[int, ...]
    mean: Tensor
    variances: Tensor
    directions: Tensor

    def __init__(
        self,
        mean: Float[Tensor, "*event"],
        variances: Float[Tensor, " r"],
        directions: Float[Tensor, "d r"],
        remainder: float = 0.0,
        process: Process | None = None,
    ):
        super().__init__()
        self.process = process or VP()
        if self.process.endpoint == "drawn":
            raise IncompatibleError("process: a two-sided interpolant has a second distribution; none was given")
        mean, variances, directions = (torch.as_tensor(a, dtype=torch.float64) for a in (mean, variances, directions))
        d, r = mean.numel(), len(variances)
        if directions.shape != (d, r) or r > d:
            raise InputError(
                f"directions: shape {tuple(directions.shape)} was given; expected ({d}, {r}), r at most {d}"
            )
        if bool((variances < 0).any()) or not 0.0 <= remainder < math.inf:
            raise InputError(
                f"variances, remainder: {variances.min().item():.3g}, {remainder} were given; expected none below 0"
            )
        gram = directions.T @ directions
        if r and not torch.allclose(gram, torch.eye(r, dtype=gram.dtype, device=gram.device), atol=1e-6):
            raise InputError("directions: the columns are not orthonormal")
        self.event, self.remainder = tuple(mean.shape), float(remainder)
        self.register_buffer("mean", mean.reshape(d))
        self.register_buffer("variances", variances)
        self.register_buffer("directions", directions)

    def _coordinates(self, x: Tensor, time: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """What is left of the centre, by direction (b, r) and beside them (b, d)."""
        if tuple(x.shape[1:]) != self.event:
            raise InputError(
                f"x: shape {tuple(x.shape)} was given; expected (batch, {', '.join(map(str, self.event))})"
            )
        if time.ndim > 1:
            raise InputError(f"t: shape {tuple(time.shape)} was given; expected () or (b,)")
        x = x.double()
        if self.process.endpoint != "none":
            x = x - left(self.process.beta(time), x) * self.process._require(y, "denoiser", x).to(x)
        flat = x.flatten(1) - left(self.process.alpha(time), x.flatten(1)) * self.mean
        along = flat @ self.directions
        return along, flat - along @ self.directions.T

    def forward(self, x, t, **cond):
        dtype, time = working_dtype(x), as_time(t)
        along, beside = self._coordinates(x, time, cond.get("y"))
        alpha, sigma = (c.to(x.device).reshape(-1, 1) for c in (self.process.alpha(time), self.process.sigma(time)))

        def gain(variance: Tensor | float) -> Tensor:
            return alpha * variance / (alpha**2 * variance + sigma**2).clamp_min(1e-300)

        x0 = self.mean + (gain(self.variances) * along) @ self.directions.T + gain(self.remainder) * beside
        return Estimate(x.to(dtype), t, x0.reshape(x.shape).to(dtype), self.process, _DATA, cond.get("y"))

    def flow(
        self, x: Float[Tensor, "b *event"], t: float, s: float, y: Float[Tensor, "b *event"] | None = None
    ) -> Float[Tensor, "b *event"]:
        """Where the probability-flow ODE carries `x` from time `t` to time `s`, exactly, float64.

        Raises:
            IncompatibleError: from a time at which a direction without variance has no noise either.
        """
        along, beside = self._coordinates(x, as_time(t), y)
        there = self.process.level(s)
        ratio = psi(self.process, self.variances, t, s)
        rest = float(psi(self.process, torch.tensor(self.remainder, dtype=torch.float64), t, s))
        if not (math.isfinite(rest) or self.directions.shape[0] == self.directions.shape[1]) or not bool(
            ratio.isfinite().all()
        ):
            raise IncompatibleError(
                f"t: {t} was given; there a direction has neither variance nor noise, and no flow leads on"
            )
        rest = rest if math.isfinite(rest) else 0.0
        moved = (ratio * along) @ self.directions.T + rest * beside + there.alpha * self.mean
        moved = moved.reshape(x.shape)
        return moved if self.process.endpoint == "none" else moved + there.beta * y.double()  # type: ignore[union-attr]

    def log_prob(self, x: Float[Tensor, "b *event"], t: float, **cond: Tensor) -> Float[Tensor, " b"]:
        """The log density of the marginal at time `t`, in nats, float64; infinite where it is degenerate."""
        along, beside = self._coordinates(x, as_time(t), cond.get("y"))
        level, (d, r) = self.process.level(t), self.directions.shape
        inner = level.alpha**2 * self.variances + level.sigma**2
        outer = level.alpha**2 * self.remainder + level.sigma**2
        quadratic = (along**2 / inner).sum(1) + (beside**2).sum(1) / outer if d > r else (along**2 / inner).sum(1)
        volume = inner.log().sum() + (d - r) * (math.log(outer) if d > r else 0.0)
        return -0.5 * (quadratic + volume + d * math.log(2.0 * math.pi))


def psi(process: Process, variance: Float[Tensor, "*n"], t: float, s: float) -> Float[Tensor, "*n"]:
    """How the probability flow from `t` to `s` scales a direction of that variance in the data; float64."""
    here, there = process.level(t), process.level(s)
    return ((there.alpha**2 * variance + there.sigma**2) / (here.alpha**2 * variance + here.sigma**2)).sqrt()


def fit_gaussian(
    data: Float[Tensor, "n *event"], process: Process | None = None, rank: int | None = None, noise: float = 0.0
) -> PrincipalGaussian:
    """The Gaussian with the mean and covariance of `data`, by a singular value decomposition; no covariance is formed.

    Args:
        data: at least two samples.
        rank: how many directions are kept, the largest; all that the samples span where not given. The mean of the
            variances that are left goes to the remainder.
        noise: a standard deviation that the data has besides, in every direction (the smoothing of an
            `EmpiricalDenoiser`).

    Raises:
        InputError: fewer than two samples, values that are not finite, or a rank below 1.
    """
    if data.ndim < 2 or len(data) < 2:
        raise InputError(f"data: shape {tuple(data.shape)} was given; expected at least two samples, (n, *event)")
    if rank is not None and rank < 1:
        raise InputError(f"rank: {rank} was given; expected at least 1")
    flat = data.double().flatten(1)
    if not bool(flat.isfinite().all()):
        raise InputError("data: some values are not finite")
    n, mean = len(flat), flat.mean(0)
    rows = (flat - mean) / math.sqrt(n - 1)
    return _of_rows(mean.reshape(data.shape[1:]), rows, n - 1, rank, noise, process)


def fit_class_gaussians(
    data: Float[Tensor, "n *event"],
    label: Int[Tensor, " n"],
    process: Process | None = None,
    rank: int | None = None,
    noise: float = 0.0,
    pooled: float = 0.0,
) -> list[PrincipalGaussian]:
    """A Gaussian for each class 0, 1, ..., with the class's mean, as `tweed.starts.gaussian_jump` takes them.

    Args:
        label: the classes; each has a sample, and at least two where `pooled` is 0.
        rank, noise: as for `fit_gaussian`.
        pooled: the share, from 0 to 1, of the covariance that is common to all classes (that of the samples about their
            classes' means); the rest is the class's own. For classes with few samples.

    Raises:
        InputError: shapes do not fit, a class has too few samples, or a share outside 0 and 1.
    """
    if not 0.0 <= pooled <= 1.0 or (rank is not None and rank < 1):
        raise InputError(f"pooled, rank: {pooled}, {rank} were given; expected a share from 0 to 1, and at least 1")
    if data.ndim < 2 or label.shape != (len(data),) or label.is_floating_point() or not len(data):
        raise InputError(
            f"data, label: {tuple(data.shape)}, {tuple(label.shape)} were given; expected a class a sample"
        )
    flat, label = data.double().flatten(1), label.to(data.device).long()
    if bool((label < 0).any()) or not bool(flat.isfinite().all()):
        raise InputError("data, label: values that are not finite, or a class below 0; expected neither")
    counts = label.bincount()
    if int(counts.min()) < (1 if pooled > 0.0 else 2) or len(flat) <= len(counts):
        raise InputError(
            f"label: a class has {int(counts.min())} of {len(flat)} samples; expected at least two, or one with pooled > 0"
        )
    means = torch.zeros(len(counts), flat.shape[1], dtype=flat.dtype, device=flat.device)
    means = means.index_add(0, label, flat) / counts[:, None]
    centered, free = flat - means[label], len(flat) - len(counts)
    common = None
    if pooled > 0.0:
        _, values, directions = torch.linalg.svd(centered / math.sqrt(free), full_matrices=False)
        common = math.sqrt(pooled) * (values[:, None] * directions)[: min(free, flat.shape[1])]
    found = []
    for k, (mean, n) in enumerate(zip(means, counts.tolist(), strict=True)):
        own = centered[label == k] * math.sqrt((1.0 - pooled) / max(n - 1, 1))
        rows, spanned = (own, n - 1) if common is None else (torch.cat((own, common)), free)
        found.append(_of_rows(mean.reshape(data.shape[1:]), rows, spanned, rank, noise, process))
    return found


def _of_rows(
    mean: Tensor, rows: Float[Tensor, "m d"], spanned: int, rank: int | None, noise: float, process: Process | None
) -> PrincipalGaussian:
    """The Gaussian whose covariance is `rows^T rows`, of rank at most `spanned`."""
    _, values, directions = torch.linalg.svd(rows, full_matrices=False)
    d, variances = rows.shape[1], values**2
    spanned = min(spanned, d, len(variances))
    kept = spanned if rank is None else min(rank, spanned)
    rest = variances[kept:spanned].sum().item() / (d - kept) if d > kept else 0.0
    return PrincipalGaussian(mean, variances[:kept] + noise**2, directions[:kept].T, rest + noise**2, process)


def fit_mixture(
    data: Float[Tensor, "n *event"],
    components: int,
    process: Process | None = None,
    *,
    floor: float = 1e-4,
    seed: int = 0,
) -> MixtureDenoiser:
    """A Gaussian mixture of k-means clusters of `data`, each with the mean and covariance of its samples.

    Args:
        components: clusters; one with a single sample keeps `floor` alone.
        floor: a variance added in every direction, in units of the data squared.

    Raises:
        InputError: no more components than samples are possible.
    """
    from sklearn.cluster import KMeans

    flat = data.double().flatten(1)
    if not 1 <= components <= len(flat):
        raise InputError(f"components: {components} was given for {len(flat)} samples; expected from 1 to as many")
    found = KMeans(components, n_init=4, random_state=seed % 2**32).fit_predict(flat.cpu().numpy())  # type: ignore[arg-type]
    which = torch.nn.functional.one_hot(torch.from_numpy(found).long(), components).double().to(flat)
    counts = which.sum(0)
    means = which.T @ flat / counts[:, None]
    centered = flat - means[found]
    covariances = torch.stack(
        [(w[:, None] * centered).T @ centered / n.clamp_min(1.0) for w, n in zip(which.T, counts, strict=True)]
    )
    eye = torch.eye(flat.shape[1], dtype=flat.dtype, device=flat.device)
    return MixtureDenoiser(means.reshape(components, *data.shape[1:]), covariances + floor * eye, counts, process)
