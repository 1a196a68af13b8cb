"""One model under another process: the schedule is a choice of sampling, not of training.

Two Gaussian processes with the same log-SNR differ by a scale: `x'_t' = (alpha' / alpha) x_t` where
`log(alpha'(t') / sigma'(t')) = log(alpha(t) / sigma(t))` (Karras et al., 2022, Sec. 3; Kingma et al., "Variational
Diffusion Models", 2021, Sec. 5.1). So a denoiser of one is a denoiser of the other, exactly.
"""

import torch
from torch import Tensor

from tweed.core import targets
from tweed.core.denoiser import Denoiser, Wrapper
from tweed.core.estimate import Estimate
from tweed.core.processes import Process
from tweed.core.time import left, working_dtype
from tweed.errors import IncompatibleError

_DATA = targets.Data()


class Rescheduled(Wrapper):
    """`denoiser` as a denoiser of another Gaussian `process`.

    Levels of noise beyond those that the inner process has are asked of it at its nearest one.

    Raises:
        IncompatibleError: one of the processes has an endpoint.
    """

    def __init__(self, denoiser: Denoiser, process: Process):
        super().__init__(denoiser)
        for name, given in (("denoiser", self.process), ("process", process)):
            if given.endpoint != "none":
                raise IncompatibleError(
                    f"{name}: {type(given).__name__} has an endpoint; expected a Gaussian process, whose state can be "
                    "scaled to another's"
                )
        self.process = process

    @property
    def t_max(self) -> float:
        # The denoiser is never asked beyond its own largest time.
        return 1.0

    def forward(self, x, t, **cond):
        x = x.to(working_dtype(x))
        inner, top = self.denoiser.process, self.denoiser.t_max
        if isinstance(t, Tensor):
            log_snr = self.process.log_snr(t)
            time = inner.time(log_snr).clamp(max=top)
            # Equal where log-SNR is; of the two, the one that is not 0 / 0.
            by_data, by_noise = inner.alpha(time) / self.process.alpha(t), inner.sigma(time) / self.process.sigma(t)
            scale = left(torch.where(log_snr > 0.0, by_data, by_noise), x)
        else:
            outer = self.process.level(t)
            time = min(inner.time(outer.log_snr).item(), top)
            here = inner.level(time)
            scale = here.alpha / outer.alpha if outer.log_snr > 0.0 else here.sigma / outer.sigma
        estimate = self.denoiser(scale * x, time, **cond)
        return Estimate(x, t, estimate.x0, self.process, _DATA, cond.get("y"))
