"""What a process is: the marginals `x_t = alpha(t) x_0 + beta(t) x_1 + sigma(t) eps`, and everything that follows."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import random
from tweed.core.time import Time, as_time, left, working_dtype
from tweed.errors import IncompatibleError, InputError

Times = Float[Tensor, "*time"]


class Level(NamedTuple):
    """The coefficients of a process at one time, as numbers."""

    alpha: float
    beta: float
    sigma: float
    alpha_dot: float
    beta_dot: float
    sigma_dot: float
    log_snr: float


class Process(ABC):
    """A family of marginals between data (t = 0) and noise (t = 1); an immutable, hashable value.

    `x_t = alpha(t) x_0 + beta(t) x_1 + sigma(t) eps` with `eps ~ N(0, I)`. What `x_1` is, `endpoint` says:

    - "none": there is none (`beta = 0`), a Gaussian process;
    - "given": a given `y` (a degraded image, noisy speech). Such a process is a Gaussian one in `x - beta(t) y`;
    - "drawn": a draw of a second distribution (two-sided stochastic interpolants).

    `states` says what is denoised: "numbers", or "tokens" (`CategoricalProcess`), for which the line is one of probabilities.

    Coefficients are float64 tensors of the shape of `t`. Subclasses give `_alpha`, `_sigma` and their derivatives.
    """

    endpoint: ClassVar[Literal["none", "given", "drawn"]] = "none"
    states: ClassVar[Literal["numbers", "tokens"]] = "numbers"

    @abstractmethod
    def _alpha(self, t: Times) -> Times: ...

    @abstractmethod
    def _sigma(self, t: Times) -> Times: ...

    @abstractmethod
    def _alpha_dot(self, t: Times) -> Times: ...

    @abstractmethod
    def _sigma_dot(self, t: Times) -> Times: ...

    def _beta(self, t: Times) -> Times:
        return torch.zeros_like(t)

    def _beta_dot(self, t: Times) -> Times:
        return torch.zeros_like(t)

    def _log_snr(self, t: Times) -> Times:
        return self._alpha(t).log() - self._sigma(t).log()

    def _variance_dot(self, t: Times) -> Times:
        return 2.0 * self._sigma(t) * self._sigma_dot(t)

    def _carried(self, t: Times) -> Times:
        return self._alpha(t)

    @abstractmethod
    def _time(self, log_snr: Times) -> Times: ...

    @property
    def t_min(self) -> float:
        """The smallest time whose noise is worth a step: grids that end at 0 step there from here or earlier."""
        return 1e-3

    @property
    def t_max(self) -> float:
        """The largest time with a finite log-SNR that is worth a step (1 where log-SNR(1) is finite)."""
        return 1.0

    def alpha(self, t: Time) -> Times:
        """The coefficient of the data, float64, shape of `t`."""
        return self._alpha(as_time(t))

    def beta(self, t: Time) -> Times:
        """The coefficient of the endpoint `x_1`, float64, shape of `t`; zero for a Gaussian process."""
        return self._beta(as_time(t))

    def sigma(self, t: Time) -> Times:
        """The standard deviation of the noise, float64, shape of `t`."""
        return self._sigma(as_time(t))

    def carried(self, t: Time) -> Times:
        """What the forward chain keeps of a state: from s to t its factor is `carried(t) / carried(s)`.

        It is `alpha`, but where the data and the state are forgotten on different schedules (`Residual`, `Resfusion`); the
        posterior of a step, and so ancestral sampling, depends on it.
        """
        return self._carried(as_time(t))

    def alpha_dot(self, t: Time) -> Times:
        """The time derivative of `alpha`."""
        return self._alpha_dot(as_time(t))

    def beta_dot(self, t: Time) -> Times:
        """The time derivative of `beta`."""
        return self._beta_dot(as_time(t))

    def sigma_dot(self, t: Time) -> Times:
        """The time derivative of `sigma`; infinite where `sigma` leaves zero like a square root."""
        return self._sigma_dot(as_time(t))

    def variance_dot(self, t: Time) -> Times:
        """The time derivative of `sigma^2`, finite where that of `sigma` is not."""
        return self._variance_dot(as_time(t))

    def log_snr(self, t: Time) -> Times:
        """`log(alpha / sigma)` (half the logarithm of the signal-to-noise ratio), decreasing in `t`."""
        return self._log_snr(as_time(t))

    def time(self, log_snr: Time) -> Times:
        """The time at which `log(alpha / sigma)` is `log_snr`, float64: the inverse of `log_snr`."""
        if not isinstance(log_snr, Tensor):
            log_snr = torch.tensor(float(log_snr), dtype=torch.float64)
        return self._time(log_snr.to(torch.float64))

    def level(self, t: float) -> Level:
        """All coefficients at one time, as Python numbers; computed once a time."""
        return _level(self, float(t))

    def marginal(
        self, x0: Float[Tensor, "b *event"], t: Time, y: Float[Tensor, "b *event"] | None = None
    ) -> tuple[Float[Tensor, "b *event"], Tensor]:
        """Mean (shape of `x0`) and standard deviation (broadcastable to it) of `x_t` given `x_0` (and `x_1 = y`)."""
        x0 = x0.to(working_dtype(x0))
        time = as_time(t)
        mean = left(self._alpha(time), x0) * x0
        if self.endpoint != "none":
            mean = mean + left(self._beta(time), x0) * self._require(y, "marginal", x0)
        return mean, left(self._sigma(time), x0)

    def perturb(
        self,
        x0: Float[Tensor, "b *event"],
        t: Time,
        noise: Float[Tensor, "b *event"],
        y: Float[Tensor, "b *event"] | None = None,
    ) -> Float[Tensor, "b *event"]:
        """`x_t = alpha(t) x0 + beta(t) y + sigma(t) noise`, in float32 or better.

        Args:
            t: shape (), (b,) or longer; each sample, token or action may have a time of its own.
            y: the endpoint, like `x0`, for processes that have one.

        Raises:
            InputError: shapes do not fit, or the process has an endpoint and `y` is missing.
        """
        if noise.shape != x0.shape:
            raise InputError(f"noise: shape {tuple(noise.shape)} was given; expected that of x0, {tuple(x0.shape)}")
        mean, std = self.marginal(x0, t, y)
        return mean + std * noise.to(mean.dtype)

    def drift(
        self, x: Float[Tensor, "b *event"], t: Time, y: Float[Tensor, "b *event"] | None = None
    ) -> Float[Tensor, "b *event"]:
        """The drift of the forward SDE, `f(t) (x - beta y) + beta' y` with `f = alpha' / alpha`."""
        self._require_linear("drift")
        time = as_time(t)
        x = x.to(working_dtype(x))
        rate = left(self._alpha_dot(time) / self._alpha(time), x)
        if self.endpoint == "none":
            return rate * x
        y = self._require(y, "drift", x)
        return rate * (x - left(self._beta(time), x) * y) + left(self._beta_dot(time), x) * y

    def diffusion(self, t: Time) -> Times:
        """The diffusion coefficient `g(t)` of the forward SDE: `g^2 = (sigma^2)' - 2 (alpha'/alpha) sigma^2`."""
        self._require_linear("diffusion")
        return self._diffusion(as_time(t))

    def _diffusion(self, t: Times) -> Times:
        squared = self._variance_dot(t) - 2.0 * self._alpha_dot(t) / self._alpha(t) * self._sigma(t) ** 2
        return squared.clamp_min(0.0).sqrt()

    def prior(
        self,
        shape: Sequence[int],
        seed: int = 0,
        *,
        index: int = 0,
        t: float = 1.0,
        y: Float[Tensor, "b *event"] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Float[Tensor, "b *event"]:
        """Where sampling starts: `sigma(t) noise`, around `y` for endpoint-conditioned processes.

        Sample `index + i` is the same under the same seed whatever the batch. For a two-sided interpolant `y` is the
        draw of the second distribution, and the start is `beta(t) y + sigma(t) noise`.
        """
        level = self.level(t)
        if y is not None and y.dtype.is_complex and not dtype.is_complex:
            dtype = dtype.to_complex()
        start = random.normal(shape, seed, index=index, dtype=dtype, device=device) * level.sigma
        if self.endpoint == "none":
            return start
        return start + self._endpoint_share(level) * self._require(y, "prior", start).to(start)

    def _endpoint_share(self, level: Level) -> float:
        # An endpoint-conditioned process starts from its mean with `x_0` taken for `y`, as published: they are close.
        return level.alpha + level.beta if self.endpoint == "given" else level.beta

    def _require(self, y: Tensor | None, what: str, like: Tensor) -> Tensor:
        if y is None:
            raise InputError(f"y: {type(self).__name__}.{what} needs the endpoint y (a tensor like x0); none was given")
        if y.ndim != like.ndim or any(n not in (1, m) for n, m in zip(y.shape, like.shape, strict=True)):
            raise InputError(f"y: shape {tuple(y.shape)} was given; expected that of the state, {tuple(like.shape)}")
        return y

    def _require_linear(self, what: str) -> None:
        if self.endpoint == "drawn":
            raise IncompatibleError(
                f"{type(self).__name__}.{what}: a two-sided interpolant has no forward SDE of its own; "
                "use its velocity and score"
            )


@lru_cache(maxsize=65536)
def _level(process: Process, t: float) -> Level:
    time = as_time(t)
    values = (
        process._alpha(time),
        process._beta(time),
        process._sigma(time),
        process._alpha_dot(time),
        process._beta_dot(time),
        process._sigma_dot(time),
        process._log_snr(time),
    )
    return Level(*(v.item() for v in values))
