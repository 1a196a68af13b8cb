"""A data set as a distribution: the exact denoiser of a kernel-smoothed empirical measure.

`p(x_0) = 1/n sum_i N(x_0; d_i, sigma0^2 I)`. At `sigma0 = 0` this is the denoiser that a network of unlimited capacity
learns (Karras et al., 2022, Appendix B.3). The data is streamed in chunks with a running log-sum-exp, so that memory
does not grow with their product.
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


class EmpiricalDenoiser(Denoiser):
    """The exact denoiser of `data` smoothed by N(0, sigma0^2 I).

    Args:
        data: shape (n, *event).
        sigma0: the standard deviation of the smoothing; 0 leaves the points themselves.
        process: any process but a two-sided interpolant; `VP()` where not given.
        labels: shape (n,): then the condition `label` (b,) restricts a sample to its class, unless `drop` (b,) is set.
        chunk: how many points are compared at once; memory is about `8 b chunk` bytes.

    Raises:
        InputError: shapes do not fit, or `sigma0` is negative.
    """

    event: tuple[int, ...]
    data: Tensor
    labels: Tensor | None

    def __init__(
        self,
        data: Float[Tensor, "n *event"],
        sigma0: float = 0.0,
        process: Process | None = None,
        labels: Int[Tensor, " n"] | None = None,
        chunk: int = 4096,
    ):
        super().__init__()
        self.process = process or VP()
        if self.process.endpoint == "drawn":
            raise IncompatibleError("process: a two-sided interpolant has a second distribution; none was given")
        if data.ndim < 2 or len(data) == 0:
            raise InputError(f"data: shape {tuple(data.shape)} was given; expected (samples, *event), at least one")
        if not 0.0 <= sigma0 < math.inf:
            raise InputError(f"sigma0: {sigma0} was given; expected a number of at least 0")
        if labels is not None and labels.shape != (len(data),):
            raise InputError(f"labels: shape {tuple(labels.shape)} was given; expected ({len(data)},)")
        if chunk < 1:
            raise InputError(f"chunk: {chunk} was given; expected at least 1")
        self.event, self.sigma0, self.chunk = tuple(data.shape[1:]), float(sigma0), chunk
        self.register_buffer("data", data.reshape(len(data), -1).double())
        self.register_buffer("labels", labels)

    def _moments(self, x: Tensor, t: Time, cond: dict, mean: bool) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Log density (b,), mean of the matching points (b, d), and the process's alpha and variance, (b or 1, d or 1)."""
        if tuple(x.shape[1:]) != self.event:
            raise InputError(
                f"x: shape {tuple(x.shape)} was given; expected (batch, {', '.join(map(str, self.event))})"
            )
        time = as_time(t)
        x = x.double()
        alpha, sigma = (_per_element(c, x) for c in (self.process.alpha(time), self.process.sigma(time)))
        if self.process.endpoint != "none":
            x = x - left(self.process.beta(time), x) * self.process._require(cond.get("y"), "denoiser", x).to(x)
        flat = x.flatten(1)
        variance = (sigma**2 + alpha**2 * self.sigma0**2).clamp_min(1e-300)
        best = torch.full((len(x), 1), -math.inf, dtype=torch.float64, device=x.device)
        total = torch.zeros_like(best)
        moment = torch.zeros_like(flat)
        for points, allowed in self._chunks(cond, len(x)):
            # -|x - alpha d|^2 / (2 variance), expanded so that the work is two matrix products.
            quadratic = (flat**2 / variance).sum(-1, keepdim=True) + (alpha**2 / variance).expand(
                len(x), points.shape[1]
            ) @ (points**2).mT
            logits = (flat * alpha / variance) @ points.mT - 0.5 * quadratic
            if allowed is not None:
                logits = logits.masked_fill(~allowed, -math.inf)
            peak = torch.maximum(best, logits.amax(-1, keepdim=True))
            anchor = peak.clamp_min(-1e300)
            weight, decay = (logits - anchor).exp(), (best - anchor).exp()
            total = total * decay + weight.sum(-1, keepdim=True)
            if mean:
                moment = moment * decay + weight @ points
            best = peak
        log_n = self._log_count(cond, len(x))
        volume = (2.0 * math.pi * variance).log().expand(flat.shape).sum(-1)
        log_prob = best[:, 0] + total[:, 0].log() - 0.5 * volume - log_n
        return log_prob, moment / total if mean else None, alpha, variance

    def _allowed(self, cond: dict) -> Tensor | None:
        label, drop = cond.get("label"), cond.get("drop")
        if label is None:
            return None
        if self.labels is None:
            raise InputError("label: this data has no classes; pass labels=... when the denoiser is built")
        allowed = self.labels[None, :] == label[:, None]
        return allowed if drop is None else allowed | drop[:, None]

    def _chunks(self, cond: dict, batch: int):
        allowed = self._allowed(cond)
        for first in range(0, len(self.data), self.chunk):
            part = slice(first, first + self.chunk)
            yield self.data[part], None if allowed is None else allowed[:, part]

    def _log_count(self, cond: dict, batch: int) -> Tensor | float:
        allowed = self._allowed(cond)
        return math.log(len(self.data)) if allowed is None else allowed.sum(-1).double().log()

    def forward(self, x, t, **cond):
        dtype = working_dtype(x)
        _, matched, alpha, variance = self._moments(x, t, cond, mean=True)
        assert matched is not None
        mean = matched
        if self.sigma0 > 0.0:
            time = as_time(t)
            shifted = x.double()
            if self.process.endpoint != "none":
                y = self.process._require(cond.get("y"), "denoiser", shifted)
                shifted = shifted - left(self.process.beta(time), shifted) * y.double()
            gain = alpha * self.sigma0**2 / variance
            mean = matched + gain * (shifted.flatten(1) - alpha * matched)
        return Estimate(x.to(dtype), t, mean.reshape(x.shape).to(dtype), self.process, _DATA, cond.get("y"))

    def log_prob(self, x: Float[Tensor, "b *event"], t: Time = 0.0, **cond: Tensor) -> Float[Tensor, " b"]:
        """The log density of the marginal at time `t`, in nats, float64 (infinite spikes at t = 0 if `sigma0 = 0`)."""
        return self._moments(x, t, cond, mean=False)[0]

    def sample(self, n: int, seed: int = 0, *, index: int = 0) -> Float[Tensor, "n *event"]:
        """Exact draws of the smoothed data, float64."""
        device = self.data.device
        which = random.uniform((n, 1), seed, index=index, dtype=torch.float64, device=device)[:, 0]
        rows = (which * len(self.data)).long().clamp_max(len(self.data) - 1)
        noise = random.normal((n, self.data.shape[1]), seed, index=index, draw=1, dtype=torch.float64, device=device)
        return (self.data[rows] + self.sigma0 * noise).reshape(n, *self.event)


def _per_element(c: Tensor, x: Tensor) -> Tensor:
    if c.ndim <= 1:
        return left(c, x).reshape(-1, 1)
    return left(c, x).expand(x.shape).flatten(1)
