"""Denoisers `D(x, sigma)` of k-diffusion and EDM, from there and to there."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tweed.core import targets
from tweed.core.denoiser import Denoiser, NetworkDenoiser
from tweed.core.processes import EDM, Process
from tweed.core.time import left
from tweed.errors import IncompatibleError


def from_sigma(
    denoiser: Callable[..., Tensor],
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    event: tuple[int, ...] | None = None,
) -> NetworkDenoiser:
    """A denoiser of tweed from `denoiser(x, sigma, **cond)`, which answers the data in `x = x_0 + sigma eps`.

    Args:
        denoiser: a module or function; sigma reaches it as a float32 tensor of shape (b,).
        sigma_min, sigma_max: the smallest and largest noise that it knows.
        event: the shape of one sample.

    Raises:
        InputError: the noise levels are not rising and positive.
    """
    process = EDM(sigma_min, sigma_max)
    return NetworkDenoiser(_OfSigma(denoiser, process), process, targets.Data(), event=event)


class _OfSigma(nn.Module):
    """The time of the process told as its noise."""

    def __init__(self, denoiser: Callable[..., Tensor], process: Process):
        super().__init__()
        self.denoiser, self.process = denoiser, process

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.denoiser(x, self.process.sigma(t.double()).to(t.dtype), **cond)


class SigmaDenoiser(nn.Module):
    """A denoiser of tweed as the `D(x, sigma)` that samplers of k-diffusion call: `x = x_0 + sigma eps`.

    Any process whose levels reach the asked sigma: its state is this one times alpha.

    Raises:
        IncompatibleError: the process has an endpoint.
    """

    def __init__(self, denoiser: Denoiser):
        super().__init__()
        if denoiser.process.endpoint != "none":
            raise IncompatibleError(
                f"denoiser: its process, {type(denoiser.process).__name__}, has an endpoint; expected data and noise alone"
            )
        self.denoiser = denoiser

    def forward(
        self, x: Float[Tensor, "b *event"], sigma: Float[Tensor, " b"], **cond: Tensor
    ) -> Float[Tensor, "b *event"]:
        """The data that is expected at noise `sigma`."""
        process = self.denoiser.process
        t = process.time(-torch.as_tensor(sigma, device=x.device).double().log())
        alpha = process.alpha(t)
        return self.denoiser(x * (left(alpha, x) if alpha.ndim else alpha.item()), t, **cond).x0
