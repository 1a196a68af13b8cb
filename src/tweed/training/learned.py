"""What a configuration asks of a network: a fixed target, or one that is learned with it."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from tweed.core import learned_target, targets
from tweed.core.denoiser import NetworkDenoiser
from tweed.core.processes import Process
from tweed.core.targets import Target
from tweed.core.token_denoiser import TokenDenoiser
from tweed.errors import InputError


@dataclass(frozen=True)
class LearnedK:
    """Stands for `tweed.LearnedK`: the target `k x_0 - (1 - k) eps`, its k learned beside the network.

    Args:
        init: k at the start, in (0, 1).
        rate: how much faster than a weight of the network the logit of k moves under Adam.

    Raises:
        InputError: an argument is out of its range.
    """

    init: float = 0.5
    rate: float = 10.0

    def __post_init__(self):
        if not (0.0 < self.init < 1.0 and self.rate > 0.0):
            raise InputError(
                f"init, rate: {self.init}, {self.rate} were given; expected a number in (0, 1), and a positive one"
            )


Asked = Target | LearnedK

BY_NAME: dict[str, type] = {**targets.BY_NAME, "LearnedK": LearnedK}
"""All that `target` of a configuration may name."""


def denoiser(
    network: nn.Module, process: Process, asked: Asked, **options: Any
) -> NetworkDenoiser | learned_target.LearnedK:
    """The network as a denoiser that is asked for this; `options` as for `NetworkDenoiser`."""
    if isinstance(asked, LearnedK):
        return learned_target.LearnedK(network, process, asked.init, asked.rate, **options)
    return NetworkDenoiser(network, process, asked, **options)


def network_of(model: NetworkDenoiser | learned_target.LearnedK | TokenDenoiser) -> nn.Module:
    """The network inside."""
    return model.inner.network if isinstance(model, learned_target.LearnedK) else model.network  # type: ignore[return-value]
