"""Gaussians and Gaussian mixtures: the exact posterior mean, density and flow under any process.

Under `x_t = alpha x_0 + sigma eps` a mixture of N(m_k, C_k) becomes one of N(alpha m_k, alpha^2 C_k + sigma^2 I), and
`E[x_0 | x_t] = sum_k r_k (m_k + alpha C_k (alpha^2 C_k + sigma^2 I)^{-1} (x_t - alpha m_k))` with the posterior weights
`r_k`. Everything is computed in float64.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tweed.core import random, targets
from tweed.core.denoiser import Denoiser
from tweed.core.estimate import Estimate
from tweed.core.processes import VP, Process
from tweed.core.time import Time, as_time, left, working_dtype
from tweed.errors import IncompatibleError, InputError

_DATA = targets.Data()


class MixtureDenoiser(Denoiser):
    """The exact denoiser of a Gaussian mixture.

    Args:
        means: shape (k, *event).
        covariances: shape (k,) isotropic variances, (k, *event) diagonal ones, or (k, d, d) full matrices with
            d the number of elements of an event; a number is one isotropic variance for all.
        weights: shape (k,), positive, normalised here; equal where not given.
        process: any process but a two-sided interpolant; `VP()` where not given.
        labels: shape (k,), the class of each component: then the condition `label` (b,) restricts a sample to its
            class, unless `drop` (b,) says otherwise.

    Raises:
        InputError: shapes do not fit, a weight or a variance is negative, a covariance is not symmetric positive
            semi-definite.
    """

    event: tuple[int, ...]
    means: Tensor
    values: Tensor
    vectors: Tensor | None
    log_weights: Tensor
    labels: Tensor | None

    def __init__(
        self,
        means: Float[Tensor, "k *event"],
        covariances: float | Float[Tensor, "k *shape"],
        weights: Float[Tensor, " k"] | None = None,
        process: Process | None = None,
        labels: Int[Tensor, " k"] | None = None,
    ):
        super().__init__()
        self.process = process or VP()
        if self.process.endpoint == "drawn":
            raise IncompatibleError("process: use MixtureInterpolantDenoiser for a two-sided interpolant")
        means = torch.as_tensor(means, dtype=torch.float64)
        if means.ndim < 2 or len(means) == 0:
            raise InputError(f"means: shape {tuple(means.shape)} was given; expected (components, *event)")
        k, self.event = len(means), tuple(means.shape[1:])
        d = math.prod(self.event)
        covariances = torch.as_tensor(covariances, dtype=torch.float64)
        values, vectors = _eigen(covariances, k, d, self.event)
        if bool((values < 0).any()):
            raise InputError(f"covariances: a variance of {values.min().item():.3g} was given; expected none below 0")
        weights = torch.ones(k) if weights is None else torch.as_tensor(weights)
        if weights.shape != (k,) or bool((weights <= 0).any()):
            raise InputError(f"weights: shape {tuple(weights.shape)} was given; expected {k} positive numbers")
        if labels is not None and labels.shape != (k,):
            raise InputError(f"labels: shape {tuple(labels.shape)} was given; expected one class a component, ({k},)")
        self.register_buffer("means", means.reshape(k, d))
        self.register_buffer("values", values)
        self.register_buffer("vectors", vectors)
        self.register_buffer("log_weights", (weights.double() / weights.double().sum()).log())
        self.register_buffer("labels", labels)

    def _center(self, x: Tensor, y: Tensor | None, t: Tensor) -> Tensor:
        if self.process.endpoint != "none":
            x = x - left(self.process.beta(t), x) * self.process._require(y, "denoiser", x).to(x)
        return x

    def _given(self, cond: dict) -> tuple[Tensor, Tensor]:
        """Means (k, d) and log weights (k,) of the data; with a leading b where each sample has a mixture of its own."""
        return self.means, self.log_weights

    def _components(self, x: Tensor, t: Time, cond: dict) -> tuple[Tensor, Tensor]:
        """Log joint weights (b, k) and posterior means (b, k, d) of the components."""
        means, log_weights = self._given(cond)
        if tuple(x.shape[1:]) != self.event:
            raise InputError(
                f"x: shape {tuple(x.shape)} was given; expected (batch, {', '.join(map(str, self.event))})"
            )
        time = as_time(t)
        x = self._center(x.double(), cond.get("y"), time)
        full = torch.ones(x.shape, dtype=torch.float64, device=x.device)
        flat = x.flatten(1)[:, None]
        alpha, sigma = (
            (left(c, x) * (full if c.ndim > 1 else 1.0)).reshape(flat.shape if c.ndim > 1 else (-1, 1, 1))
            for c in (self.process.alpha(time), self.process.sigma(time))
        )
        centered = flat - alpha * means
        if self.vectors is None:
            variance = (alpha**2 * self.values + sigma**2).clamp_min(1e-300)
            gain = alpha * self.values / variance
            quadratic = (centered**2 / variance).sum(-1)
            volume = variance.expand(centered.shape).log().sum(-1)
            posterior = means + gain * centered
        elif time.ndim <= 1:
            variance = (alpha**2 * self.values + sigma**2).clamp_min(1e-300)
            turned = torch.einsum("kde,bkd->bke", self.vectors, centered)
            quadratic = (turned**2 / variance).sum(-1)
            volume = variance.log().sum(-1).expand(quadratic.shape)
            posterior = means + torch.einsum("kde,bke->bkd", self.vectors, alpha * self.values / variance * turned)
        else:
            # A time per element: the noise no longer commutes with the covariance.
            covariance = torch.einsum("kde,ke,kfe->kdf", self.vectors, self.values, self.vectors)
            noise = torch.diag_embed((sigma**2).expand(len(x), 1, -1))
            total = alpha[..., :, None] * covariance * alpha[..., None, :] + noise
            factor = torch.linalg.cholesky(total)
            solved = torch.cholesky_solve(centered[..., None], factor)[..., 0]
            quadratic = (centered * solved).sum(-1)
            volume = 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            posterior = means + torch.einsum("kdf,bkf->bkd", covariance, alpha * solved)
        log_joint = log_weights - 0.5 * (quadratic + volume + self.means.shape[1] * math.log(2.0 * math.pi))
        return self._restrict(log_joint, cond), posterior

    def _restrict(self, log_joint: Tensor, cond: dict) -> Tensor:
        label, drop = cond.get("label"), cond.get("drop")
        if label is None:
            return log_joint
        if self.labels is None:
            raise InputError("label: this mixture has no classes; pass labels=... when it is built")
        other = self.labels[None, :] != label[:, None]
        if drop is not None:
            other = other & ~drop[:, None]
        within = self.log_weights.expand(other.shape).masked_fill(other, -math.inf).logsumexp(-1, keepdim=True)
        return log_joint.masked_fill(other, -math.inf) - within

    def forward(self, x, t, **cond):
        dtype = working_dtype(x)
        log_joint, posterior = self._components(x, t, cond)
        mean = torch.einsum("bk,bkd->bd", log_joint.softmax(-1), posterior)
        return Estimate(x.to(dtype), t, mean.reshape(x.shape).to(dtype), self.process, _DATA, cond.get("y"))

    def log_prob(self, x: Float[Tensor, "b *event"], t: Time = 0.0, **cond: Tensor) -> Float[Tensor, " b"]:
        """The log density of the marginal at time `t`, in nats, float64."""
        return self._components(x, t, cond)[0].logsumexp(-1)

    def responsibilities(self, x: Float[Tensor, "b *event"], t: Time = 0.0, **cond: Tensor) -> Float[Tensor, "b k"]:
        """The posterior probability of each component."""
        return self._components(x, t, cond)[0].softmax(-1)

    def posterior_covariance(self, x: Float[Tensor, "b *event"], t: Time, **cond: Tensor) -> Float[Tensor, "b d d"]:
        """`Cov[x_0 | x_t]`, float64: within components plus between their means. `t` of shape () or (b,)."""
        time = as_time(t)
        log_joint, posterior = self._components(x, t, cond)
        weight = log_joint.softmax(-1)
        if time.ndim > 1:
            raise InputError(f"t: shape {tuple(time.shape)} was given; expected () or (b,)")
        alpha, sigma = (c.to(x.device).reshape(-1, 1, 1) for c in (self.process.alpha(time), self.process.sigma(time)))
        d = self.means.shape[1]
        inner = self.values * sigma**2 / (alpha**2 * self.values + sigma**2).clamp_min(1e-300)
        inner = inner.expand(*inner.shape[:2], d)
        if self.vectors is None:
            within = torch.diag_embed(torch.einsum("bk,bkd->bd", weight, inner.expand(len(x), -1, -1)))
        else:
            spread = inner.expand(len(x), -1, -1)
            within = torch.einsum("bk,kde,bke,kfe->bdf", weight, self.vectors, spread, self.vectors)
        centered = posterior - torch.einsum("bk,bkd->bd", weight, posterior)[:, None]
        return within + torch.einsum("bk,bkd,bkf->bdf", weight, centered, centered)

    def sample(
        self, n: int, seed: int = 0, *, index: int = 0, label: Int[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n *event"]:
        """Exact draws of the data, float64; draw `index + i` is the same whatever `n`."""
        device = self.means.device
        which = random.uniform((n, 1), seed, index=index, dtype=torch.float64, device=device)
        log_weights = self.log_weights.expand(n, -1)
        if label is not None:
            log_weights = self._restrict(log_weights, {"label": label.to(device)})
        cumulative = log_weights.softmax(-1).cumsum(-1)
        component = (which >= cumulative).sum(-1).clamp_max(len(self.means) - 1)
        noise = random.normal((n, self.means.shape[1]), seed, index=index, draw=1, dtype=torch.float64, device=device)
        values = self.values.expand(len(self.means), self.means.shape[1])[component].sqrt()
        if self.vectors is None:
            return (self.means[component] + values * noise).reshape(n, *self.event)
        scattered = torch.einsum("bde,be->bd", self.vectors[component], values * noise)
        return (self.means[component] + scattered).reshape(n, *self.event)


class GaussianDenoiser(MixtureDenoiser):
    """The exact denoiser of one Gaussian, with its probability flow in closed form.

    Args:
        mean: shape (*event).
        covariance: a number or shape () (isotropic variance), (*event) (diagonal) or (d, d) (full).
        process: any process but a two-sided interpolant; `VP()` where not given.
    """

    def __init__(
        self, mean: Float[Tensor, "*event"], covariance: float | Float[Tensor, "*shape"], process: Process | None = None
    ):
        mean = torch.as_tensor(mean, dtype=torch.float64)
        super().__init__(mean[None], torch.as_tensor(covariance, dtype=torch.float64)[None], None, process)

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """The mean, flat, float64."""
        return self.means[0]

    def flow(
        self, x: Float[Tensor, "b *event"], t: float, s: float, y: Float[Tensor, "b *event"] | None = None
    ) -> Float[Tensor, "b *event"]:
        """Where the probability-flow ODE carries `x` from time `t` to time `s`, exactly, float64.

        Each principal component is scaled by `sqrt((alpha_s^2 L + sigma_s^2) / (alpha_t^2 L + sigma_t^2))`, with `L`
        its variance in the data.

        Raises:
            IncompatibleError: from a time at which a direction without variance has no noise either.
        """
        here, there = self.process.level(t), self.process.level(s)
        flat = self._center(x.double(), y, as_time(t)).flatten(1) - here.alpha * self.means
        ratio = (
            (there.alpha**2 * self.values + there.sigma**2) / (here.alpha**2 * self.values + here.sigma**2)
        ).sqrt()[0]
        if not bool(ratio.isfinite().all()):
            raise IncompatibleError(
                f"t: {t} was given; there a direction has neither variance nor noise, and no flow leads on"
            )
        if self.vectors is None:
            moved = ratio * flat
        else:
            moved = ((flat @ self.vectors[0]) * ratio) @ self.vectors[0].T
        moved = (moved + there.alpha * self.means).reshape(x.shape)
        return moved if self.process.endpoint == "none" else moved + there.beta * y.double()  # type: ignore[union-attr]


def _eigen(covariances: Tensor, k: int, d: int, event: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
    """Variances (k, 1 or d) and, for full matrices, their axes (k, d, d)."""
    if covariances.ndim == 0:
        covariances = covariances.expand(k)
    if covariances.shape == (k,):
        return covariances[:, None], None
    if covariances.shape == (k, *event):
        return covariances.reshape(k, d), None
    if covariances.shape != (k, d, d):
        raise InputError(
            f"covariances: shape {tuple(covariances.shape)} was given; expected ({k},), {(k, *event)} or {(k, d, d)}"
        )
    scale = covariances.abs().amax().clamp_min(1e-300)
    if bool(((covariances - covariances.mT).abs() > 1e-8 * scale).any()):
        raise InputError("covariances: a matrix is not symmetric")
    values, vectors = torch.linalg.eigh(0.5 * (covariances + covariances.mT))
    return torch.where(values.abs() < 1e-12 * scale, values.clamp_min(0.0), values), vectors
