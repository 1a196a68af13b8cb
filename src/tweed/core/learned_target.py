"""A network whose target is learned with it: `k x_0 - (1 - k) eps`, one number k for all times.

"Revisiting Diffusion Model Predictions Through Dimensionality" (2026, arXiv 2601.21419).
"""

import math

import torch
from torch import Tensor, nn

from tweed.core import targets
from tweed.core.denoiser import Denoiser, NetworkDenoiser
from tweed.core.estimate import Estimate
from tweed.core.processes import Process
from tweed.core.time import as_time, left
from tweed.errors import IncompatibleError, InputError


class LearnedK(Denoiser):
    """A denoiser whose network answers `K(k)`, with k = sigmoid(rate w) a parameter beside the network's.

    It answers the velocity, which does not depend on k, so that any loss of velocity, data or noise teaches both: compare
    that of velocity, `DenoisingLoss(target=Velocity())`. (The loss of the target itself could be lowered by an easier
    target, and cannot be asked for here.) As k tends to 1 the velocity is singular at the data's end, at 0 at the
    noise's: keep training times a little away, `times.Uniform(low=0.05, high=0.95)`.

    Args:
        network, process, time, input_scale, data_std, event: as for `NetworkDenoiser`.
        init: k at the start, in (0, 1).
        rate: how much faster than a weight of the network the logit of k moves under Adam.

    Raises:
        InputError: an argument is out of its range.
        IncompatibleError: a two-sided interpolant, which has two unknowns.
    """

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        init: float = 0.5,
        rate: float = 10.0,
        *,
        time: str | None = None,
        input_scale: str | None = None,
        data_std: float = 1.0,
        event: tuple[int, ...] | None = None,
    ):
        super().__init__()
        if not (0.0 < init < 1.0 and rate > 0.0):
            raise InputError(f"init, rate: {init}, {rate} were given; expected a number in (0, 1), and a positive one")
        if process.endpoint == "drawn":
            raise IncompatibleError("process: a two-sided interpolant has two unknowns; expected one with one")
        self.process, self.rate = process, rate
        self.options = {"time": time, "input_scale": input_scale, "data_std": data_std}
        self.inner = NetworkDenoiser(network, process, targets.K(init), event=event, **self.options)
        self.weight = nn.Parameter(torch.tensor(math.log(init / (1.0 - init)) / rate))

    @property
    def event(self) -> tuple[int, ...] | None:  # type: ignore[override]
        """The shape of one sample."""
        return self.inner.event

    @event.setter
    def event(self, value: tuple[int, ...] | None) -> None:
        if "inner" in self._modules:
            self.inner.event = value

    @property
    def k(self) -> Tensor:
        """The present k, a number in float64."""
        return torch.sigmoid(self.rate * self.weight.double())

    def fixed(self) -> NetworkDenoiser:
        """The same denoiser with the present k for good, and the same network."""
        target = targets.K(self.k.item())
        return NetworkDenoiser(self.inner.network, self.process, target, event=self.event, **self.options)

    def forward(self, x, t, **cond):
        inner = self.inner(x, t, **cond)
        time, k = as_time(t).to(self.weight.device), self.k
        alpha, sigma = self.process.alpha(time), self.process.sigma(time)
        alpha_dot, sigma_dot = self.process.alpha_dot(time), self.process.sigma_dot(time)
        weight = k * sigma + (1.0 - k) * alpha
        state, y = inner.x, cond.get("y") if self.process.endpoint != "none" else None
        shifted = state if y is None else state - left(self.process.beta(time), state) * y
        of_answer = (alpha_dot * sigma - sigma_dot * alpha) / weight
        of_state = (alpha_dot * (1.0 - k) + sigma_dot * k) / weight
        velocity = left(of_answer, state) * inner.answer.to(state.dtype) + left(of_state, state) * shifted
        if y is not None:
            velocity = velocity + left(self.process.beta_dot(time), state) * y
        return Estimate(state, t, velocity, self.process, targets.Velocity(), y)
