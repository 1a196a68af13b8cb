"""Data estimates kept within the range of data: Ho et al. (2020) clip them, Saharia et al. (2022) rescale them first.

Near the noise's end, and under strong guidance, a small error of the network is a large one of the data.
"""

import torch

from tweed.core import targets
from tweed.core.denoiser import Denoiser, Wrapper
from tweed.core.estimate import Estimate
from tweed.core.time import left
from tweed.errors import InputError

_DATA = targets.Data()


class Thresholding(Wrapper):
    """Clips the data estimate to [-limit, limit]; with `quantile`, of each sample's own size where that is larger.

    Dynamic thresholding ("Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding", 2022, Section 2.3):
    s, the quantile of a sample's absolute values, but at least `limit`; what is beyond s is clipped, and all of it
    multiplied by limit / s.

    Args:
        denoiser: of data that lie within [-limit, limit].
        limit: positive.
        quantile: in (0, 1], such as 0.995; None for static clipping.

    Raises:
        InputError: an argument is out of its range.
    """

    def __init__(self, denoiser: Denoiser, limit: float = 1.0, quantile: float | None = None):
        super().__init__(denoiser)
        if not limit > 0.0 or not (quantile is None or 0.0 < quantile <= 1.0):
            raise InputError(f"limit, quantile: {limit}, {quantile} were given; expected a positive number, and (0, 1]")
        self.limit, self.quantile = limit, quantile

    def forward(self, x, t, **cond):
        x0 = self.denoiser(x, t, **cond).x0
        if self.quantile is None or not len(x0):
            kept = x0.clamp(-self.limit, self.limit)
        else:
            size = torch.quantile(x0.abs().flatten(1), self.quantile, dim=1).clamp_min(self.limit)
            size = left(size, x0)
            kept = self.limit * torch.maximum(torch.minimum(x0, size), -size) / size
        return Estimate(x.to(x0.dtype), t, kept, self.process, _DATA, cond.get("y"))
