"""How much each noise level counts in a loss, independent of what the network is asked for.

At a given state the errors of all targets are one error: `alpha e_data + sigma e_noise = 0`, so the error of a target
with the row (data a, noise b) is `(alpha b - sigma a) / alpha` times that of the noise. Every weighting is stated once,
for the squared error of one target (its `on`), and `weight` turns it into the weight of any other:
`w_F = w_on (gain_on / gain_F)^2`, with `gain = alpha b - sigma a`.

SNR is `alpha^2 / sigma^2`; `log_snr` is half of its logarithm.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import targets
from tweed.core.processes import Process
from tweed.core.targets import Target
from tweed.errors import IncompatibleError, InputError, choose

Times = Float[Tensor, "*time"]


def gain(process: Process, target: Target, t: Times) -> Times:
    """`alpha b - sigma a` of the target's row: what its errors are proportional to at a given state, float64."""
    row = target.row(process, t)
    return process.alpha(t) * row.noise - process.sigma(t) * row.data


class Weighting(ABC):
    """A weight of the squared error at each time; an immutable value. Subclasses give `on` and `_weight`."""

    on: ClassVar[str] = "Noise"
    """The target (by the name of `tweed.targets.BY_NAME`) whose squared error `_weight` multiplies."""

    @abstractmethod
    def _weight(self, process: Process, t: Times) -> Times: ...

    def weight(self, process: Process, target: Target, t: Times) -> Times:
        """The weight of the squared error of `target` at times `t`, float64, shape of `t`.

        Raises:
            IncompatibleError: the process is a two-sided interpolant, where errors of targets are not proportional.
        """
        if process.endpoint == "drawn":
            raise IncompatibleError(
                f"weighting: {type(self).__name__} was given for a two-sided interpolant; expected Uniform()"
            )
        stated = targets.BY_NAME[self.on]()
        weight = self._weight(process, t.to(torch.float64))
        if type(stated) is type(target) and not isinstance(target, targets.EDM):
            return weight
        return weight * (gain(process, stated, t) / gain(process, target, t)) ** 2


@dataclass(frozen=True)
class Uniform(Weighting):
    """Weight 1 on the squared error of a chosen target.

    Args:
        on: "own", the target that is compared, whatever it is (the plain regression); or the name of a target:
            "Noise" is DDPM's simple loss (Ho et al., 2020), "Velocity" flow matching, "Data" plain denoising.
    """

    on: str = "own"  # type: ignore[misc]

    def __post_init__(self):
        choose("on", self.on, ["own", *(name for name in targets.BY_NAME if name != "EDM")])

    def _weight(self, process: Process, t: Times) -> Times:
        return torch.ones_like(t)

    def weight(self, process: Process, target: Target, t: Times) -> Times:
        return self._weight(process, t.to(torch.float64)) if self.on == "own" else super().weight(process, target, t)


@dataclass(frozen=True)
class SNR(Weighting):
    """`SNR` on the data: the same as 1 on the noise (Salimans & Ho, ICLR 2022, Section 4)."""

    def _weight(self, process: Process, t: Times) -> Times:
        return torch.ones_like(t)


@dataclass(frozen=True)
class TruncatedSNR(Weighting):
    """`max(SNR, least)` on the data (Salimans & Ho, ICLR 2022, Section 4, with 1)."""

    least: float = 1.0

    on: ClassVar[str] = "Data"

    def __post_init__(self):
        _positive("least", self.least)

    def _weight(self, process: Process, t: Times) -> Times:
        return _snr(process, t).clamp_min(self.least)


@dataclass(frozen=True)
class MinSNR(Weighting):
    """`min(SNR, gamma)` on the data (Hang et al., "Efficient Diffusion Training via Min-SNR Weighting", ICCV 2023)."""

    gamma: float = 5.0

    on: ClassVar[str] = "Data"

    def __post_init__(self):
        _positive("gamma", self.gamma)

    def _weight(self, process: Process, t: Times) -> Times:
        return _snr(process, t).clamp_max(self.gamma)


@dataclass(frozen=True)
class P2(Weighting):
    """`1 / (k + SNR)^gamma` on the noise (Choi et al., "Perception Prioritized Training", CVPR 2022, Eq. 8)."""

    k: float = 1.0
    gamma: float = 1.0

    def __post_init__(self):
        _positive("k", self.k)

    def _weight(self, process: Process, t: Times) -> Times:
        return (self.k + _snr(process, t)) ** -self.gamma


@dataclass(frozen=True)
class Sigmoid(Weighting):
    """`sigmoid(bias - log SNR)` on the noise (Kingma & Gao, "Understanding Diffusion Objectives", NeurIPS 2023).

    Args:
        bias: where, in log SNR (twice `log_snr`), the weight has fallen to one half.
        measure: "log_snr" integrates over the logarithm of the SNR, as published: times drawn uniformly also get the
            factor `-d log SNR / dt`. "time" leaves this out, for samplers that are already spread over noise levels.
    """

    bias: float = 2.0
    measure: Literal["log_snr", "time"] = "log_snr"

    def __post_init__(self):
        choose("measure", self.measure, ("log_snr", "time"))

    def _weight(self, process: Process, t: Times) -> Times:
        weight = torch.sigmoid(self.bias - 2.0 * process.log_snr(t))
        return weight if self.measure == "time" else weight * _snr_rate(process, t)


@dataclass(frozen=True)
class EDM(Weighting):
    """`(s^2 + d^2) / (s d)^2` on the data, `s = sigma/alpha`, `d = data_std` (Karras et al., 2022, Table 1).

    It is 1 on the raw network of EDM's preconditioning.
    """

    data_std: float = 0.5

    on: ClassVar[str] = "Data"

    def __post_init__(self):
        _positive("data_std", self.data_std)

    def _weight(self, process: Process, t: Times) -> Times:
        return self.data_std**-2 + _snr(process, t)


@dataclass(frozen=True)
class Likelihood(Weighting):
    """`g^2 / sigma^2` on the noise, which is `-d log SNR / dt`.

    With uniform times, half of the squared error summed over the dimensions is the likelihood bound up to a constant:
    Song et al., "Maximum Likelihood Training of Score-Based Diffusion Models" (NeurIPS 2021); Kingma et al. (2021).
    """

    def _weight(self, process: Process, t: Times) -> Times:
        return _snr_rate(process, t)


def _snr(process: Process, t: Times) -> Times:
    return (2.0 * process.log_snr(t)).exp()


def _snr_rate(process: Process, t: Times) -> Times:
    return process.diffusion(t) ** 2 / process.sigma(t) ** 2


def _positive(name: str, value: float) -> None:
    if not value > 0.0:
        raise InputError(f"{name}: {value} was given; expected a positive number")


BY_NAME: dict[str, type[Weighting]] = {
    kind.__name__: kind for kind in (Uniform, SNR, TruncatedSNR, MinSNR, P2, Sigmoid, EDM, Likelihood)
}
"""Every weighting by the name that configurations use."""
