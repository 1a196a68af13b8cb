"""A denoiser by a potential: its score is the gradient of one number, and so a conservative field by construction.

`score = grad_x phi(x, t)`, where the network gives `phi`, the log density up to a constant of time (Salimans & Ho, "Should
EBMs model the energy or the score?", 2021; Du et al., 2023). A vector network is an energy's, too: `phi = - |x - net(x)|^2 /
(2 sigma^2)`, whose gradient is the score that the network's data estimate would have if it were one (their Eq. 6).
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import targets
from tweed.core.denoiser import Denoiser
from tweed.core.estimate import Estimate
from tweed.core.processes import Process
from tweed.core.time import Time, as_time, left, working_dtype
from tweed.errors import IncompatibleError, InputError, choose

_SCORE = targets.Score()


class PotentialDenoiser(Denoiser):
    """The denoiser whose score is the gradient of a scalar network.

    Sampling loops turn gradients off; the one in the state is taken all the same. While a loss is computed, the graph is
    kept, and the network is differentiated twice: take smooth activations.

    Args:
        network: `(x, t, **cond) -> (b,)` or (b, 1), with `t` float32, shape (b,); for "distance", shaped like `x`.
        process: any process but a two-sided interpolant.
        kind: "log_density", `phi` itself; "distance", `- |x - alpha net(x)|^2 / (2 sigma^2)`.
        data_std: for "log_density": the network's answer is added to the log density of `N(0, (alpha^2 data_std^2 +
            sigma^2) I)`, which leads states that are far from all data back to it; None for the answer alone.
        event: the shape of one sample.

    Raises:
        IncompatibleError: the process is two-sided.
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        process: Process,
        *,
        kind: Literal["log_density", "distance"] = "log_density",
        data_std: float | None = None,
        event: tuple[int, ...] | None = None,
    ):
        super().__init__()
        if process.endpoint == "drawn":
            raise IncompatibleError(
                "process: a two-sided interpolant has no score to be a gradient; use Velocity networks"
            )
        self.network, self.process = network, process
        self.kind = choose("kind", kind, ("log_density", "distance"))
        if data_std is not None and not data_std > 0.0:
            raise InputError(f"data_std: {data_std} was given; expected a positive number")
        self.data_std = data_std
        self.event = None if event is None else tuple(event)

    def log_density(self, x: Float[Tensor, "b *event"], t: Time, **cond: Tensor | None) -> Float[Tensor, " b"]:
        """The potential, shape (b,): the log density up to a constant, where the network has learned it."""
        time = as_time(t).to(x.device)
        time = time.expand(len(x)) if time.ndim == 0 else time
        dtype = next((p.dtype for p in self.parameters()), x.dtype)
        answer = self.network(x.to(dtype), time.to(torch.promote_types(dtype, torch.float32)), **cond)
        if self.kind == "distance":
            if answer.shape != x.shape:
                raise InputError(
                    f"network: its answer is {tuple(answer.shape)}; expected the state's shape {tuple(x.shape)}"
                )
            alpha, sigma = (left(c, x) for c in (self.process.alpha(time), self.process.sigma(time)))
            answer = -0.5 * ((x - alpha * answer) / sigma).square().flatten(1).sum(1)
        if answer.shape not in ((len(x),), (len(x), 1)):
            raise InputError(f"network: its answer is {tuple(answer.shape)}; expected one number a sample, ({len(x)},)")
        answer = answer.reshape(len(x))
        if self.kind == "distance" or self.data_std is None:
            return answer
        spread = (self.process.alpha(time) * self.data_std) ** 2 + self.process.sigma(time) ** 2
        flat = x.flatten(1)
        base = -0.5 * flat.square().sum(1) / spread.to(x) - 0.5 * flat.shape[1] * (2.0 * math.pi * spread).log().to(x)
        return answer + base

    def forward(self, x, t, **cond):
        keep = torch.is_grad_enabled()
        x = x.to(working_dtype(x))
        with torch.enable_grad():
            state = x if keep and x.requires_grad else x.detach().requires_grad_()
            total = self.log_density(state, t, **cond).sum()
            (score,) = torch.autograd.grad(total, state, create_graph=keep)
        return Estimate(x, t, score.to(x.dtype), self.process, _SCORE, cond.get("y"))
