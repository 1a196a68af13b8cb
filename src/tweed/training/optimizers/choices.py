"""Optimizers as values, by the names that configurations use.

A choice holds only what is an optimizer's own. The learning rate, the decay of the weights and the betas stay settings of
`fit`, so that one optimizer can be put in another's place.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from tweed.errors import InputError
from tweed.training.optimizers import dual_adam

Parameters = list[nn.Parameter]
Betas = tuple[float, ...]


class OptimizerChoice(ABC):
    """Which optimizer; an immutable value. Subclasses give `make`."""

    @abstractmethod
    def make(self, parameters: Parameters, lr: float, betas: Betas, weight_decay: float) -> Optimizer:
        """The optimizer of these parameters; one that has no use for `betas` ignores them."""


@dataclass(frozen=True)
class AdamW(OptimizerChoice):
    """Adam with decoupled decay of the weights (Loshchilov & Hutter, ICLR 2019): what `fit` uses by itself."""

    eps: float = 1e-8

    def __post_init__(self):
        _check_eps(self.eps)

    def make(self, parameters: Parameters, lr: float, betas: Betas, weight_decay: float) -> Optimizer:
        """See `OptimizerChoice`."""
        pair = _pair(betas)
        return torch.optim.AdamW(parameters, lr=lr, betas=pair, eps=self.eps, weight_decay=weight_decay, fused=True)


@dataclass(frozen=True)
class Adam(OptimizerChoice):
    """Adam (Kingma & Ba, ICLR 2015); `weight_decay` adds to the gradient, unlike in `AdamW`."""

    eps: float = 1e-8

    def __post_init__(self):
        _check_eps(self.eps)

    def make(self, parameters: Parameters, lr: float, betas: Betas, weight_decay: float) -> Optimizer:
        """See `OptimizerChoice`."""
        pair = _pair(betas)
        return torch.optim.Adam(parameters, lr=lr, betas=pair, eps=self.eps, weight_decay=weight_decay, fused=True)


@dataclass(frozen=True)
class SGD(OptimizerChoice):
    """Gradient descent, `weight_decay` added to the gradient; it has no use for betas.

    Args:
        momentum: share of the last step's direction that stays, in [0, 1).
        nesterov: look ahead along the momentum.

    Raises:
        InputError: `momentum` is out of its range, or `nesterov` without it.
    """

    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self):
        if not 0.0 <= self.momentum < 1.0 or (self.nesterov and not self.momentum):
            raise InputError(
                f"momentum, nesterov: {self.momentum}, {self.nesterov} were given; expected a number in [0, 1), "
                "above 0 for nesterov"
            )

    def make(self, parameters: Parameters, lr: float, betas: Betas, weight_decay: float) -> Optimizer:
        """See `OptimizerChoice`."""
        return torch.optim.SGD(
            parameters, lr=lr, momentum=self.momentum, nesterov=self.nesterov, weight_decay=weight_decay
        )


@dataclass(frozen=True)
class DualAdam(OptimizerChoice):
    """`tweed.training.optimizers.DualAdam`: InvAdam first, Adam after `1 / switch_rate` steps; decoupled decay.

    Raises:
        InputError: `switch_rate` outside (0, 1], or `eps` not positive.
    """

    switch_rate: float = 1e-2
    eps: float = 1e-8

    def __post_init__(self):
        _check_eps(self.eps)
        if not 0.0 < self.switch_rate <= 1.0:
            raise InputError(f"switch_rate: {self.switch_rate} was given; expected a number in (0, 1]")

    def make(self, parameters: Parameters, lr: float, betas: Betas, weight_decay: float) -> Optimizer:
        """See `OptimizerChoice`."""
        return dual_adam.DualAdam(parameters, lr, _pair(betas), self.eps, weight_decay, self.switch_rate)


@dataclass(frozen=True)
class InvAdam(OptimizerChoice):
    """`tweed.training.optimizers.InvAdam`: multiplied by the second moment for good; decoupled decay."""

    eps: float = 1e-8

    def __post_init__(self):
        _check_eps(self.eps)

    def make(self, parameters: Parameters, lr: float, betas: Betas, weight_decay: float) -> Optimizer:
        """See `OptimizerChoice`."""
        return dual_adam.InvAdam(parameters, lr, betas=_pair(betas), eps=self.eps, weight_decay=weight_decay)


def _check_eps(eps: float) -> None:
    if not eps > 0.0:
        raise InputError(f"eps: {eps} was given; expected a positive number")


def _pair(betas: Betas) -> tuple[float, float]:
    if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
        raise InputError(f"betas: {tuple(betas)} was given; expected two numbers in [0, 1)")
    return betas[0], betas[1]


BY_NAME: dict[str, type[OptimizerChoice]] = {kind.__name__: kind for kind in (AdamW, Adam, SGD, DualAdam, InvAdam)}
"""Every optimizer by the name that configurations use."""
