"""The one interface everything meets at: `denoiser(x, t, **cond) -> Estimate`."""

import math
from abc import abstractmethod
from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tweed.core import targets
from tweed.core.estimate import Estimate, TwoSidedEstimate
from tweed.core.processes import FromBetas, Interpolant, Process
from tweed.core.targets import Target, singular_at
from tweed.core.time import Time, as_time, left, working_dtype
from tweed.errors import IncompatibleError, InputError, choose


class Denoiser(nn.Module):
    """Maps a state and its time to an `Estimate`; a module, so that `.to(device)` and `parameters()` work.

    `process` says what the marginals are. Conditions are tensors batched like `x`; "y" is the endpoint of an
    endpoint-conditioned process, "drop" a mask of samples whose other conditions are to be ignored.
    """

    process: Process
    event: tuple[int, ...] | None = None
    """The shape of one sample, where the denoiser knows it."""

    @abstractmethod
    def forward(self, x: Float[Tensor, "b *event"], t: Time, **cond: Tensor | None) -> Estimate:
        """The estimate at state `x` and time `t` (a number, or a tensor that broadcasts against `x` from the left)."""

    if TYPE_CHECKING:

        def __call__(self, x: Float[Tensor, "b *event"], t: Time, **cond: Tensor | None) -> Estimate: ...

    def start(self) -> "Denoiser":
        """The denoiser for one run. One that remembers anything along a run returns a fresh copy of itself."""
        return self

    @property
    def call(self) -> Callable[..., Estimate]:
        """What a loop calls: `forward` itself, without a module's detour, where nothing is hooked to it."""
        hooked = self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks
        return self if hooked or self._compiled_call_impl is not None else self.forward

    @property
    def t_max(self) -> float:
        """The largest time at which the estimate is defined: below 1 for a noise target where alpha(1) = 0."""
        return 1.0

    @property
    def device(self) -> torch.device:
        """The device of its first parameter or buffer; the CPU where it has none."""
        held = next(self.parameters(), None)
        held = next(self.buffers(), None) if held is None else held
        return torch.device("cpu") if held is None else held.device


class Wrapper(Denoiser):
    """A denoiser made from a denoiser: guidance, caches, corrections. Subclasses give `forward`."""

    def __init__(self, denoiser: Denoiser):
        super().__init__()
        if not isinstance(denoiser, Denoiser):
            raise InputError(f"denoiser: {type(denoiser).__name__} was given; expected a tweed Denoiser")
        self.denoiser = denoiser
        self.process = denoiser.process
        self.event = denoiser.event

    @property
    def t_max(self) -> float:
        return self.denoiser.t_max

    def start(self) -> "Denoiser":
        """This wrapper around the wrapped denoiser's own start; one with a memory of its own overrides it."""
        inner = self.denoiser.start()
        if inner is self.denoiser:
            return self
        fresh = copy(self)
        # A shallow copy shares its dictionary of modules; the original keeps its denoiser.
        fresh._modules = {**self._modules, "denoiser": inner}
        return fresh


class FunctionDenoiser(Denoiser):
    """A denoiser from any function `(x, t, **cond) -> answer` to `target`; `t` reaches it as it is given."""

    def __init__(
        self,
        function: Callable[..., Tensor],
        process: Process,
        target: Target | None = None,
        event: tuple[int, ...] | None = None,
    ):
        super().__init__()
        self.event = event
        self.function, self.process, self.target = function, process, target or targets.Data()

    def forward(self, x, t, **cond):
        return Estimate(x, t, self.function(x, t, **cond), self.process, self.target, cond.get("y"))


class CountingDenoiser(Wrapper):
    """Counts what a method costs: `evaluations` (calls) and `samples` (rows over all calls)."""

    def __init__(self, denoiser: Denoiser):
        super().__init__(denoiser)
        # Shared with the copies that `start` makes, so that a run is counted here.
        self._counts = {"evaluations": 0, "samples": 0}

    @property
    def evaluations(self) -> int:
        """The calls so far."""
        return self._counts["evaluations"]

    @property
    def samples(self) -> int:
        """The rows over all calls so far."""
        return self._counts["samples"]

    def forward(self, x, t, **cond):
        self._counts["evaluations"] += 1
        self._counts["samples"] += len(x)
        return self.denoiser(x, t, **cond)


def _c_noise(process: Process, t: Tensor) -> Tensor:
    return -0.25 * process.log_snr(t)


def _index(process: Process, t: Tensor) -> Tensor:
    if not isinstance(process, FromBetas):
        raise IncompatibleError(f"time: 'index' needs a FromBetas process; {type(process).__name__} was given")
    return process.index(t)


_KEPT_TIMES = 4096
_TIME_INPUTS: dict[str, Callable[[Process, Tensor], Tensor]] = {
    "time": lambda process, t: t,
    "log_snr": lambda process, t: process.log_snr(t),
    "c_noise": _c_noise,
    "index": _index,
}


class NetworkDenoiser(Denoiser):
    """A trained or loaded network: `network(x, t, **cond)` answers `target`.

    The network is called with the state in its own type, a float32 time of shape (b,) (or (b, l) where the caller gave
    one), and the conditions as keywords. For the `EDM` target the published preconditioning is the default: input
    `x / sqrt(sigma^2 + data_std^2 alpha^2)`, time `c_noise = log(sigma/alpha) / 4`.

    Args:
        network: any callable `(x, t, **cond) -> Tensor` shaped like `x`; a module or a plain function.
        process: the process that the network was trained on.
        target: what the network answers.
        time: what is passed as time: "time" (t in [0, 1]), "log_snr", "c_noise", or "index" (the step of `FromBetas`).
        input_scale: "none", or "unit" to divide the input by its standard deviation under the process.
        data_std: the standard deviation of the data, for "unit" (the `EDM` target brings its own).
        event: the shape of one sample, so that `tweed.sample(denoiser, 16)` knows it.

    Raises:
        InputError: an unknown name.
        IncompatibleError: the target cannot be used on the process (anything but the velocity on a two-sided
            interpolant).
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        process: Process,
        target: Target,
        *,
        time: str | None = None,
        input_scale: str | None = None,
        data_std: float = 1.0,
        event: tuple[int, ...] | None = None,
    ):
        super().__init__()
        self.event = None if event is None else tuple(event)
        _check_kinds(process, target)
        if process.endpoint == "drawn" and not isinstance(target, targets.Velocity):
            raise IncompatibleError(
                f"target: {type(target).__name__} on a two-sided interpolant leaves one unknown; use the Velocity "
                "target, or InterpolantDenoiser with a velocity and a noise network"
            )
        preconditioned = isinstance(target, targets.EDM)
        self.network, self.process, self.target = network, process, target
        self.time = choose("time", time or ("c_noise" if preconditioned else "time"), list(_TIME_INPUTS))
        self.input_scale = choose(
            "input_scale", input_scale or ("unit" if preconditioned else "none"), ("none", "unit")
        )
        self.data_std = target.data_std if isinstance(target, targets.EDM) else data_std
        self._dtype = self._network_dtype()
        # Already computed for a time: the process is immutable, so they cannot change.
        self._numbers: dict[float, float] = {}
        self._labels: dict[float, Tensor] = {}
        self._scales: dict[float, float] = {}

    @property
    def t_max(self) -> float:
        # A label in log-SNR must be finite too.
        told = self.time in ("log_snr", "c_noise") and math.isinf(self.process.level(1.0).log_snr)
        return self.process.t_max if told or singular_at(self.process, self.target, 1.0) else 1.0

    def _network_dtype(self) -> torch.dtype | None:
        if not isinstance(self.network, nn.Module):
            return None
        kinds = (p.dtype for p in self.network.parameters() if p.dtype.is_floating_point or p.dtype.is_complex)
        return next(kinds, None)

    def _apply(self, *args: Any, **kwargs: Any):
        result = super()._apply(*args, **kwargs)
        self._dtype = self._network_dtype()
        return result

    def time_input(self, x: Float[Tensor, "b *event"], t: Time) -> Float[Tensor, "b *length"]:
        """What the network is told of the time, float32, shape (b,) or that of a longer `t`."""
        if isinstance(t, Tensor):
            label = _TIME_INPUTS[self.time](self.process, t.to(torch.float64)).to(device=x.device, dtype=torch.float32)
            return label.expand(len(x)) if label.ndim == 0 else label.expand(len(x), *label.shape[1:])
        n, label, kept = x.shape[0], self._labels.get(t), x.is_cpu and not torch.compiler.is_compiling()
        # The tensor of last time, unless a network has written into it.
        if kept and label is not None and label.shape[0] == n and label._version == 0:
            return label
        number = self._numbers.get(t)
        if number is None:
            if len(self._numbers) >= _KEPT_TIMES:
                # A solver that chooses its own steps never meets the same time again.
                for kept_by_time in (self._numbers, self._labels, self._scales):
                    kept_by_time.clear()
            number = self._numbers[t] = _TIME_INPUTS[self.time](self.process, as_time(t)).item()
        if not kept:
            return torch.full((n,), number, dtype=torch.float32, device=x.device)
        with torch.inference_mode(False):
            label = self._labels[t] = torch.full((n,), number, dtype=torch.float32)
        return label

    def _scaled(self, x: Tensor, t: Time) -> Tensor:
        if isinstance(t, Tensor):
            alpha, sigma = self.process.alpha(t), self.process.sigma(t)
            return x * left((sigma**2 + (self.data_std * alpha) ** 2).rsqrt(), x)
        scale = self._scales.get(t)
        if scale is None:
            level = self.process.level(t)
            scale = self._scales[t] = (level.sigma**2 + (self.data_std * level.alpha) ** 2) ** -0.5
        return x * scale

    def forward(self, x, t, **cond):
        dtype = working_dtype(x)
        state = x if x.dtype is dtype else x.to(dtype)
        given = self._scaled(state, t) if self.input_scale == "unit" else state
        if self._dtype is not None and self._dtype is not dtype and not dtype.is_complex:
            given = given.to(self._dtype)
        answer = self.network(given, self.time_input(x, t), **cond)
        if not isinstance(answer, Tensor) or answer.shape != x.shape:
            got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise InputError(f"network: its answer is {got}; expected a tensor of the state's shape {tuple(x.shape)}")
        if self.process.endpoint == "drawn" and cond.get("y") is None:
            return TwoSidedEstimate(state, t, answer, None, self.process)
        return Estimate(state, t, answer, self.process, self.target, cond.get("y"))


class InterpolantDenoiser(Denoiser):
    """Two fields of a two-sided interpolant: its velocity `b` and its latent noise `E[z | x]`.

    Args:
        velocity, noise: callables `(x, t, **cond) -> Tensor` shaped like `x`; `noise` may be left out where
            only the ODE is wanted, or where the interpolant has no latent noise.
    """

    def __init__(self, velocity: Callable[..., Tensor], noise: Callable[..., Tensor] | None, process: Interpolant):
        super().__init__()
        if process.endpoint != "drawn":
            raise IncompatibleError("process: a one-sided interpolant is Gaussian; use NetworkDenoiser")
        self.velocity, self.noise, self.process = velocity, noise, process

    def forward(self, x, t, **cond):
        state = x.to(working_dtype(x))
        time = as_time(t).to(device=x.device, dtype=torch.float32)
        time = time.expand(len(x)) if time.ndim == 0 else time
        noise = None if self.noise is None else self.noise(state, time, **cond)
        return TwoSidedEstimate(state, t, self.velocity(state, time, **cond), noise, self.process)


def _check_kinds(process: Any, target: Any) -> None:
    if not isinstance(process, Process):
        raise InputError(f"process: {process!r} was given; expected a tweed process, such as tweed.processes.VP()")
    if not isinstance(target, Target):
        raise InputError(f"target: {target!r} was given; expected a tweed target, such as tweed.targets.Noise()")
    if process.states != "numbers":
        raise IncompatibleError(
            f"process: {type(process).__name__} is one of tokens; use TokenDenoiser(network, process)"
        )
