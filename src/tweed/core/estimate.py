"""A denoiser's answer, read as whatever one needs: data, noise, score, velocity, v."""

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import targets
from tweed.core.processes import Process
from tweed.core.targets import Target
from tweed.core.time import Time, as_time, left, times_number, working_dtype
from tweed.errors import IncompatibleError, InputError

_DATA, _NOISE, _SCORE = targets.Data(), targets.Noise(), targets.Score()
_V, _VELOCITY = targets.V(), targets.Velocity()


Reading = tuple[float, Tensor, float, Tensor]
"""An answer read as some target, `(a, x, b, answer)` for `a x + b answer`, not computed yet."""


def value_of(reading: Reading) -> Tensor:
    """What a reading stands for, shape of the state."""
    share, x, scale, answer = reading
    result = answer if scale == 1.0 else times_number(answer, scale)
    return result if share == 0.0 else torch.add(result, x, alpha=share)


class Estimate:
    """What a denoiser says of a state: its answer to one target, converted on demand to any other.

    Every property has the shape of `x` and is in float32 or better, whatever the network runs in.

    Attributes:
        x: the state, shape (b, *event).
        t: its time, a number or a tensor that broadcasts from the left.
        answer: the network's answer to `target`, shape of `x`.
        y: the endpoint, where the process has one.
        variance: the posterior variance of the data, shape of `x`, where the denoiser knows it.
    """

    __slots__ = ("answer", "process", "t", "target", "variance", "x", "y")

    def __init__(
        self,
        x: Float[Tensor, "b *event"],
        t: Time,
        answer: Float[Tensor, "b *event"],
        process: Process,
        target: Target,
        y: Float[Tensor, "b *event"] | None = None,
        variance: Float[Tensor, "b *event"] | None = None,
    ):
        self.x, self.t, self.answer = x, t, answer
        self.process, self.target, self.y, self.variance = process, target, y, variance

    def to(self, wanted: Target) -> Float[Tensor, "b *event"]:
        """The answer to any other target, by `tweed.targets.convert`."""
        x, answer, process = self.x, self.answer, self.process
        dtype = working_dtype(x)
        if answer.dtype is not dtype:
            answer = answer.to(dtype)
        if wanted is self.target or (type(wanted) is type(self.target) and wanted == self.target):
            return answer
        if x.dtype is not dtype:
            x = x.to(dtype)
        endpoint = process.endpoint
        if endpoint == "drawn" and self.y is not None:
            state, scale, shift = targets.convert_given_endpoint(process, self.target, wanted, self.t)
        else:
            state, scale, shift = targets.convert(process, self.target, wanted, self.t)
        if isinstance(state, Tensor):
            result = left(state, x) * x + left(scale, x) * answer  # type: ignore[arg-type]
            shift_by = left(shift, x)  # type: ignore[arg-type]
        else:
            # Numbers: two fused operations, and one where a coefficient vanishes.
            result = times_number(answer, scale)  # type: ignore[arg-type]
            if state != 0.0:
                result.add_(x, alpha=state)
            shift_by = shift
        if endpoint != "none":
            if self.y is None:
                raise InputError("y: the process is conditioned on an endpoint; pass y=... to the denoiser")
            result = result + shift_by * self.y.to(dtype)
        return result

    def reading(self, wanted: Target) -> Reading:
        """`to(wanted)` as a combination of state and answer, for those who combine it further."""
        x, t, answer, process = self.x, self.t, self.answer, self.process
        dtype = x.dtype
        if type(t) is float and process.endpoint == "none" and answer.dtype is dtype and dtype is working_dtype(x):
            if wanted is self.target:
                return 0.0, x, 1.0, answer
            share, scale, _ = targets.convert(process, self.target, wanted, t)
            return share, x, scale, answer  # type: ignore[return-value]
        return 0.0, x, 1.0, self.to(wanted)

    @property
    def x0(self) -> Float[Tensor, "b *event"]:
        """The posterior mean of the data, E[x_0 | x_t]."""
        return self.to(_DATA)

    @property
    def eps(self) -> Float[Tensor, "b *event"]:
        """The posterior mean of the noise, E[eps | x_t]."""
        return self.to(_NOISE)

    @property
    def score(self) -> Float[Tensor, "b *event"]:
        """The gradient of the log marginal density, `-eps / sigma` (Tweedie's formula)."""
        return self.to(_SCORE)

    @property
    def velocity(self) -> Float[Tensor, "b *event"]:
        """The velocity of the probability-flow ODE, `alpha' x_0 + sigma' eps + beta' y`, per unit of time."""
        return self.to(_VELOCITY)

    @property
    def v(self) -> Float[Tensor, "b *event"]:
        """`alpha eps - sigma x_0`."""
        return self.to(_V)

    @property
    def log_snr(self) -> Tensor:
        """`log(alpha / sigma)` at the estimate's time, float64."""
        return self.process.log_snr(self.t)

    def replace(self, target: Target, answer: Float[Tensor, "b *event"]) -> "Estimate":
        """The same state with another answer: how guidance and other wrappers return what they changed."""
        return Estimate(self.x, self.t, answer, self.process, target, self.y)


class TwoSidedEstimate(Estimate):
    """An estimate on a two-sided interpolant: the velocity, and the latent noise where it is known.

    The three unknowns x_0, x_1, z follow from the state, the velocity and the noise:
    `x - sigma z = alpha x_0 + beta x_1` and `velocity - sigma' z = alpha' x_0 + beta' x_1`.
    """

    __slots__ = ("noise",)

    def __init__(
        self,
        x: Float[Tensor, "b *event"],
        t: Time,
        velocity: Float[Tensor, "b *event"],
        noise: Float[Tensor, "b *event"] | None,
        process: Process,
    ):
        super().__init__(x, t, velocity, process, _VELOCITY)
        self.noise = noise

    def to(self, wanted: Target) -> Float[Tensor, "b *event"]:
        """Velocity, noise and score directly, data by the 2 x 2 solve above.

        Raises:
            IncompatibleError: the target needs the noise, and this estimate holds the velocity alone.
        """
        dtype = working_dtype(self.x)
        if wanted == _VELOCITY:
            return self.answer.to(dtype)
        if self.noise is None:
            raise IncompatibleError(
                f"target: {type(wanted).__name__} needs the latent noise of the interpolant; only the velocity is known"
            )
        noise = self.noise.to(dtype)
        if wanted == _NOISE:
            return noise
        if wanted == _SCORE:
            return -noise / left(self.process.sigma(self.t), noise)
        ends = self._ends(noise)
        if wanted == _DATA:
            return ends[0]
        row = wanted.row(self.process, as_time(self.t))
        share = left(row.endpoint, noise)
        known = left(row.data, noise) * ends[0] + left(row.noise, noise) * noise
        return known + torch.where(share == 0.0, 0.0, share * ends[1])

    @property
    def x1(self) -> Float[Tensor, "b *event"]:
        """The posterior mean of the other end, E[x_1 | x_t]."""
        if self.noise is None:
            raise IncompatibleError("x1 needs the latent noise of the interpolant; only the velocity is known")
        return self._ends(self.noise.to(working_dtype(self.x)))[1]

    def _ends(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        p, t, x = self.process, self.t, self.x.to(noise.dtype)
        alpha, beta, sigma = (left(c, x) for c in (p.alpha(t), p.beta(t), p.sigma(t)))
        alpha_dot, beta_dot, sigma_dot = (left(c, x) for c in (p.alpha_dot(t), p.beta_dot(t), p.sigma_dot(t)))
        position, speed = x - sigma * noise, self.answer.to(noise.dtype) - sigma_dot * noise
        determinant = alpha * beta_dot - beta * alpha_dot
        data = (beta_dot * position - beta * speed) / determinant
        other = (alpha * speed - alpha_dot * position) / determinant
        # Where one end has no share (mirror, encoder-decoder) the position is the other's alone.
        data = torch.where((beta == 0.0) & (beta_dot == 0.0), position / alpha, data)
        other = torch.where((alpha == 0.0) & (alpha_dot == 0.0), position / beta, other)
        return data, other
