"""Flow maps: where the probability-flow ODE carries a state from time t to time s, in one evaluation.

`Psi(x, t, s)` solves `dx/dt = velocity(x, t)` from t to s (s < t goes towards the data). Every flow map satisfies

    identity      Psi(x, t, t) = x
    semigroup     Psi(Psi(x, t, s), s, r) = Psi(x, t, r)
    Eulerian      d/dt Psi(x, t, s) + (d Psi/dx) velocity(x, t) = 0
    Lagrangian    d/ds Psi(x, t, s) = velocity(Psi(x, t, s), s)

(Boffi, Albergo & Vanden-Eijnden, "Flow Map Matching", TMLR 2025, Section 2). A network stands for one in either of two
ways: by the average velocity between the two times (`MeanFlow`), or by the clean data alone (`ConsistencyModel`).
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tweed.core import targets
from tweed.core.denoiser import Denoiser
from tweed.core.estimate import Estimate, TwoSidedEstimate
from tweed.core.exact import GaussianDenoiser
from tweed.core.processes import Process, RectifiedFlow
from tweed.core.time import Time, as_time, left, working_dtype
from tweed.errors import IncompatibleError, InputError, choose

Field = Callable[[Tensor, Tensor], Tensor]
_VELOCITY = targets.Velocity()


def batch_time(t: Time, x: Float[Tensor, "b *event"], name: str = "t") -> Float[Tensor, " b"]:
    """`t` as one float64 time a sample.

    Raises:
        InputError: its shape is neither () nor (b,).
    """
    time = as_time(t).to(x.device)
    if time.ndim == 0:
        return time.repeat(len(x))  # not expanded: each entry carries a tangent of its own in forward mode
    if time.shape != (len(x),):
        raise InputError(f"{name}: shape {tuple(time.shape)} was given; expected () or ({len(x)},), one time a sample")
    return time


class FlowMap(nn.Module):
    """Maps a state at time `t` to the state at time `s` on the same trajectory of the probability-flow ODE.

    Attributes:
        process: what the marginals are.
        event: the shape of one sample, where it is known.
    """

    process: Process
    event: tuple[int, ...] | None = None

    @abstractmethod
    def forward(self, x: Float[Tensor, "b *event"], t: Time, s: Time, **cond: Tensor | None) -> Tensor:
        """`Psi(x, t, s)`, shape of `x`, in float32 or better.

        Args:
            t, s: the time of `x` and the time asked for: numbers, or tensors (b,).
        """

    if TYPE_CHECKING:

        def __call__(self, x: Float[Tensor, "b *event"], t: Time, s: Time, **cond: Tensor | None) -> Tensor: ...

    @property
    def t_min(self) -> float:
        """The time that stands for the data: 0, or the small one to which a consistency model maps."""
        return 0.0

    def velocity(self, x: Float[Tensor, "b *event"], t: Time, **cond: Tensor | None) -> Float[Tensor, "b *event"]:
        """The velocity of the ODE that the map solves: `d/ds Psi(x, t, s)` at `s = t`."""
        time = batch_time(t, x)
        return torch.func.jvp(lambda s: self(x, time, s, **cond), (time,), (torch.ones_like(time),))[1]

    def denoiser(self) -> Denoiser:
        """The field of this map as a denoiser, for any solver, guidance or likelihood."""
        return FlowMapDenoiser(self)


class FlowMapDenoiser(Denoiser):
    """The instantaneous velocity of a flow map as a denoiser."""

    def __init__(self, flow_map: FlowMap):
        super().__init__()
        self.flow_map, self.process, self.event = flow_map, flow_map.process, flow_map.event

    def forward(self, x, t, **cond):
        state = x.to(working_dtype(x))
        velocity = self.flow_map.velocity(state, t, **cond)
        if self.process.endpoint == "drawn" and cond.get("y") is None:
            return TwoSidedEstimate(state, t, velocity, None, self.process)
        return Estimate(state, t, velocity, self.process, _VELOCITY, cond.get("y"))


class GaussianFlow(FlowMap):
    """The exact flow map of a Gaussian, differentiable in the state and in both times; float64.

    Each principal component is scaled by `sqrt((alpha_s^2 L + sigma_s^2) / (alpha_t^2 L + sigma_t^2))`, with `L` its
    variance in the data.
    """

    def __init__(self, denoiser: GaussianDenoiser):
        super().__init__()
        self.exact, self.process, self.event = denoiser, denoiser.process, denoiser.event

    def forward(self, x, t, s, **cond):
        exact, process = self.exact, self.process
        t, s = batch_time(t, x)[:, None], batch_time(s, x, "s")[:, None]
        y = cond.get("y")
        flat = exact._center(x.double(), y, t[:, 0]).flatten(1) - process.alpha(t) * exact.means
        there = process.alpha(s) ** 2 * exact.values + process.sigma(s) ** 2
        here = process.alpha(t) ** 2 * exact.values + process.sigma(t) ** 2
        ratio = (there / here).sqrt()
        if exact.vectors is None:
            moved = ratio * flat
        else:
            moved = ((flat @ exact.vectors[0]) * ratio) @ exact.vectors[0].T
        moved = (moved + process.alpha(s) * exact.means).reshape(x.shape)
        return moved if y is None or process.endpoint == "none" else moved + left(process.beta(s[:, 0]), x) * y.double()


class MeanFlow(FlowMap):
    """A network of the average velocity: `Psi(x, t, s) = x - (t - s) w(x, t, s)`.

    Geng et al., "Mean Flows for One-step Generative Modeling" (NeurIPS 2025): `w = 1/(t - s) int_s^t velocity`, so that
    `w(x, t, t)` is the velocity itself and one step from noise is `x_1 - w(x_1, 1, 0)`.

    Args:
        network: `network(x, t, s, **cond) -> Tensor` shaped like `x`, with times of shape (b,); `TwoTimes` makes one
            from any network of tweed.
        process: any process, `RectifiedFlow()` where not given.
        event: the shape of one sample.
    """

    def __init__(
        self, network: Callable[..., Tensor], process: Process | None = None, event: tuple[int, ...] | None = None
    ):
        super().__init__()
        self.network, self.process, self.event = network, process or RectifiedFlow(), event

    def average_velocity(
        self, x: Float[Tensor, "b *event"], t: Time, s: Time, **cond: Tensor | None
    ) -> Float[Tensor, "b *event"]:
        """`w(x, t, s)`, in float32 or better.

        Raises:
            InputError: the network's answer is not shaped like `x`.
        """
        dtype = _weights_dtype(self.network) or working_dtype(x)
        label = torch.promote_types(dtype, torch.float32)
        answer = self.network(x.to(dtype), batch_time(t, x).to(label), batch_time(s, x, "s").to(label), **cond)
        if answer.shape != x.shape:
            raise InputError(
                f"network: its answer is {tuple(answer.shape)}; expected the state's shape {tuple(x.shape)}"
            )
        return answer.to(working_dtype(x))

    def forward(self, x, t, s, **cond):
        span = batch_time(t, x) - batch_time(s, x, "s")
        state = x.to(working_dtype(x))
        return state - left(span, state) * self.average_velocity(state, t, s, **cond)

    def velocity(self, x, t, **cond):
        return self.average_velocity(x, t, t, **cond)


class ConsistencyModel(FlowMap):
    """A network that maps every state to the beginning of its trajectory: a flow map whose `s` is `t_min` or 0.

    Song et al., "Consistency Models" (ICML 2023), Appendix C. With `l = sigma/alpha`, `e = l(t_min)`, `d = data_std`:
    `f(x, t) = c_skip x/alpha + c_out F(c_in x/alpha)`, `c_skip = d^2 / ((l - e)^2 + d^2)`,
    `c_out = d (l - e) / sqrt(l^2 + d^2)`, `c_in = 1 / sqrt(l^2 + d^2)`, so that `f(x, t_min) = x/alpha` whatever the
    network. Published for EDM's process (alpha = 1); here for any with Gaussian marginals, finite where alpha = 0.

    Args:
        network: `network(x, t, **cond) -> Tensor` shaped like `x`.
        process: a Gaussian or an endpoint-conditioned process.
        data_std: the standard deviation of the data.
        t_min: the time of the boundary condition; `process.t_min` where not given.
        time: what the network is told: "c_noise", `log(l) / 4`, or "time", t itself. By default "c_noise" unless
            log-SNR is infinite at t = 1.
        event: the shape of one sample.

    Raises:
        InputError: an option is out of its range.
        IncompatibleError: a two-sided interpolant, or "c_noise" where it is infinite.
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        process: Process,
        *,
        data_std: float = 0.5,
        t_min: float | None = None,
        time: Literal["c_noise", "time"] | None = None,
        event: tuple[int, ...] | None = None,
    ):
        super().__init__()
        if process.endpoint == "drawn":
            raise IncompatibleError("process: a two-sided interpolant has no noise level; use MeanFlow")
        endless = math.isinf(process.level(1.0).log_snr)
        self.time = choose("time", time or ("time" if endless else "c_noise"), ("c_noise", "time"))
        if self.time == "c_noise" and endless:
            raise IncompatibleError(f"time: 'c_noise' is infinite at t = 1 of {type(process).__name__}; use 'time'")
        if not data_std > 0.0:
            raise InputError(f"data_std: {data_std} was given; expected a positive number")
        self._t_min = process.t_min if t_min is None else t_min
        if not (0.0 <= self._t_min < 1.0 and math.isfinite(process.level(self._t_min).log_snr)):
            raise InputError(f"t_min: {self._t_min} was given; expected a time in [0, 1) with noise in its state")
        self.network, self.process, self.data_std, self.event = network, process, data_std, event

    @property
    def t_min(self) -> float:
        return self._t_min

    def data(self, x: Float[Tensor, "b *event"], t: Time, **cond: Tensor | None) -> Float[Tensor, "b *event"]:
        """`f(x, t)`: the data at the beginning of the trajectory, in float32 or better."""
        process, d = self.process, self.data_std
        state, time = x.to(working_dtype(x)), batch_time(t, x)
        if process.endpoint == "given":
            state = state - left(process.beta(time), state) * process._require(cond.get("y"), "flow map", state)
        alpha, sigma, low = process.alpha(time), process.sigma(time), process.level(self._t_min)
        # All multiplied by alpha, so that alpha = 0 is no exception.
        excess = sigma - (low.sigma / low.alpha) * alpha
        norm = (sigma**2 + (d * alpha) ** 2).sqrt()
        skip, out = d**2 * alpha / (excess**2 + (d * alpha) ** 2), d * excess / norm
        dtype = _weights_dtype(self.network) or state.dtype
        label = time if self.time == "time" else -0.25 * process.log_snr(time)
        answer = self.network(
            (state / left(norm, state)).to(dtype), label.to(torch.promote_types(dtype, torch.float32)), **cond
        )
        return left(skip, state) * state + left(out, state) * answer.to(state.dtype)

    def forward(self, x, t, s=0.0, **cond):
        """The data where `s = 0`; the state at `t_min` where `s = t_min`.

        Raises:
            IncompatibleError: any other `s`.
        """
        if isinstance(s, Tensor) or s not in (0.0, self._t_min):
            raise IncompatibleError(
                f"s: {s} was given; a consistency model maps to its t_min = {self._t_min} (or 0, the data) only: "
                "sample it with renoise=1"
            )
        data = self.data(x, t, **cond)
        if s == 0.0:
            return data
        low = self.process.level(self._t_min)
        y = cond.get("y")
        state = low.alpha * data
        return state if y is None or self.process.endpoint == "none" else state + low.beta * y.to(state.dtype)

    def velocity(self, x, t, **cond):
        raise IncompatibleError("flow_map: a consistency model holds the data alone, not the velocity at each time")


class TwoTimes(nn.Module):
    """A network of one time, told of a second one through its `vector` condition: `network(x, t, s, **cond)`.

    The vector is `t - s` with `cos` and `sin` of `pi k (t - s)`, k = 1 .. `harmonics`, before any vector that the
    caller gives: build the network with `vector_dim = TwoTimes.width(harmonics)` plus that. Its time features should be
    smooth (MLP's `time_scale` about 10): training differentiates through them.
    """

    def __init__(self, network: Callable[..., Tensor], harmonics: int = 2):
        super().__init__()
        self.network, self.harmonics = network, harmonics

    @staticmethod
    def width(harmonics: int = 2) -> int:
        """How many numbers the second time takes."""
        return 1 + 2 * harmonics

    def forward(
        self, x: Float[Tensor, "b *event"], t: Float[Tensor, " b"], s: Float[Tensor, " b"], **cond: Tensor | None
    ) -> Float[Tensor, "b *event"]:
        """The network's answer.

        Raises:
            InputError: a `drop` mask, which would drop the second time as well.
        """
        if cond.get("drop") is not None:
            raise InputError("drop: it would drop the second time too; give those samples the null label num_classes")
        span = (t - s)[:, None]
        phase = span * (math.pi * torch.arange(1, self.harmonics + 1, device=span.device, dtype=span.dtype))
        parts = [span, phase.cos(), phase.sin()]
        vector = cond.pop("vector", None)
        if vector is not None:
            parts.append(vector.to(span.dtype))
        return self.network(x, t, vector=torch.cat(parts, dim=1), **cond)


def _weights_dtype(network: object) -> torch.dtype | None:
    if not isinstance(network, nn.Module):
        return None
    return next((p.dtype for p in network.parameters() if p.dtype.is_floating_point), None)


def along(
    function: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Float[Tensor, " b"], velocity: Tensor
) -> tuple[Tensor, Tensor]:
    """`function(x, t)` and its derivative along the trajectory, `d/dt + velocity . d/dx`, in forward mode."""
    value, derivative = torch.func.jvp(function, (x, t), (velocity, torch.ones_like(t)))[:2]
    return value, derivative


def semigroup_residual(flow_map: FlowMap, x: Float[Tensor, "b *event"], t: Time, s: Time, r: Time) -> Tensor:
    """`Psi(Psi(x, t, s), s, r) - Psi(x, t, r)`, which vanishes for a flow map."""
    return flow_map(flow_map(x, t, s), s, r) - flow_map(x, t, r)


def eulerian_residual(flow_map: FlowMap, velocity: Field, x: Float[Tensor, "b *event"], t: Time, s: Time) -> Tensor:
    """`d/dt Psi + (d Psi/dx) velocity(x, t)`: where a trajectory ends does not depend on where it is picked up."""
    time = batch_time(t, x)
    return along(lambda x, t: flow_map(x, t, s), x, time, velocity(x, time))[1]


def lagrangian_residual(flow_map: FlowMap, velocity: Field, x: Float[Tensor, "b *event"], t: Time, s: Time) -> Tensor:
    """`d/ds Psi(x, t, s) - velocity(Psi(x, t, s), s)`: the end moves with the field."""
    end = batch_time(s, x, "s")
    value, rate = torch.func.jvp(lambda s: flow_map(x, t, s), (end,), (torch.ones_like(end),))[:2]
    return rate - velocity(value, end)


def mean_flow_residual(
    average: Callable[[Tensor, Tensor, Tensor], Tensor],
    velocity: Field,
    x: Float[Tensor, "b *event"],
    t: Time,
    s: Time,
) -> Tensor:
    """`w - velocity + (t - s) dw/dt` of an average velocity `w(x, t, s)` (Geng et al., 2025, Eq. 6)."""
    time, end = batch_time(t, x), batch_time(s, x, "s")
    field = velocity(x, time)
    value, rate = along(lambda x, t: average(x, t, end), x, time, field)
    return value - field + left(time - end, x) * rate
