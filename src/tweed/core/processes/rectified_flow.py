"""The straight path: Liu et al., "Flow Straight and Fast" (ICLR 2023); Lipman et al., "Flow Matching" (ICLR 2023)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tweed.core.processes.base import Process


@dataclass(frozen=True)
class RectifiedFlow(Process):
    """`alpha = 1 - t`, `sigma = t`; the velocity of a path is `eps - x_0`."""

    @property
    def t_max(self) -> float:
        return 1.0 - 1e-3

    def _alpha(self, t: Tensor) -> Tensor:
        return 1.0 - t

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr)
