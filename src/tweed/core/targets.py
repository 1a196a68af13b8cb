"""What a network is asked for. Every target is a row, and one 2 x 2 solve converts any to any.

A target is `F = data x_0 + noise eps + endpoint y`, with coefficients that depend on time. Together with the state,
`x = alpha x_0 + sigma eps + beta y`, an answer `F` determines `x_0` and `eps`, and so every other target: see `convert`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from tweed.core.processes import MeanReverting, Process, Resfusion
from tweed.core.time import as_time
from tweed.errors import IncompatibleError, InputError


class Row(NamedTuple):
    """The coefficients of a target: `data x_0 + noise eps + endpoint y`, float64 tensors of the shape of `t`."""

    data: Tensor
    noise: Tensor
    endpoint: Tensor


class Target(ABC):
    """One row; an immutable, hashable value."""

    @abstractmethod
    def row(self, process: Process, t: Tensor) -> Row:
        """The row at times `t` (float64, any shape)."""


@dataclass(frozen=True)
class Data(Target):
    """The clean data, `x_0`."""

    def row(self, process: Process, t: Tensor) -> Row:
        zero = torch.zeros_like(t)
        return Row(torch.ones_like(t), zero, zero)


@dataclass(frozen=True)
class Noise(Target):
    """The noise, `eps` (Ho et al., 2020)."""

    def row(self, process: Process, t: Tensor) -> Row:
        zero = torch.zeros_like(t)
        return Row(zero, torch.ones_like(t), zero)


@dataclass(frozen=True)
class V(Target):
    """`v = alpha eps - sigma x_0` (Salimans & Ho, "Progressive Distillation for Fast Sampling", ICLR 2022)."""

    def row(self, process: Process, t: Tensor) -> Row:
        return Row(-process.sigma(t), process.alpha(t), torch.zeros_like(t))


@dataclass(frozen=True)
class Velocity(Target):
    """The velocity of the path, `alpha' x_0 + sigma' eps + beta' y`; its mean drives the probability-flow ODE."""

    def row(self, process: Process, t: Tensor) -> Row:
        return Row(process.alpha_dot(t), process.sigma_dot(t), process.beta_dot(t))


@dataclass(frozen=True)
class Score(Target):
    """The score of the marginal, whose conditional form is `-eps / sigma`."""

    def row(self, process: Process, t: Tensor) -> Row:
        zero = torch.zeros_like(t)
        return Row(zero, -1.0 / process.sigma(t), zero)


@dataclass(frozen=True)
class MeanRevertingV(Target):
    """The velocity of mean-reverting diffusion, with `n` its stationary standard deviation and `y` its mean:
    `u = -(sigma / n) (x_0 - y) + n alpha eps`, so that `x_0 - y = alpha (x - y) - (sigma / n) u`.

    Li et al., "MRS: A Fast Sampler for Mean Reverting Diffusion" (ICLR 2025, arXiv 2502.07856). For `MeanReverting` alone.
    """

    def row(self, process: Process, t: Tensor) -> Row:
        if not isinstance(process, MeanReverting):
            raise IncompatibleError(
                f"target: MeanRevertingV needs the MeanReverting process; {type(process).__name__} was given"
            )
        share = process.sigma(t) / process.noise
        return Row(-share, process.noise * process.alpha(t), share)


@dataclass(frozen=True)
class DataResidual(Target):
    """The residual `y - x_0` from the data to the endpoint (RDDM's `I_res`; Liu et al., CVPR 2024)."""

    def row(self, process: Process, t: Tensor) -> Row:
        one = torch.ones_like(t)
        return Row(-one, torch.zeros_like(t), one)


@dataclass(frozen=True)
class Resnoise(Target):
    """`eps + k (y - x_0)`, noise and residual in one: what a step of `Resfusion`'s chain needs, and finite at t = 1.

    Shi et al. (NeurIPS 2024, arXiv 2311.14900), Eq. 12, with `k` as in `Resfusion.residual_share`.
    """

    def row(self, process: Process, t: Tensor) -> Row:
        if not isinstance(process, Resfusion):
            raise IncompatibleError(f"target: Resnoise needs the Resfusion process; {type(process).__name__} was given")
        share = process.residual_share(t)
        return Row(-share, torch.ones_like(t), share)


@dataclass(frozen=True)
class EDM(Target):
    """The raw network of EDM's preconditioning, `x_0 = c_skip x/alpha + c_out F` (Karras et al., 2022, Table 1).

    With `s = sigma/alpha`: `c_skip = d^2 / (s^2 + d^2)`, `c_out = s d / sqrt(s^2 + d^2)`, `d` the standard deviation of
    the data, written here for any process and finite at both ends. Its sign is opposite to that of `V`.
    """

    data_std: float = 0.5

    def __post_init__(self):
        if not self.data_std > 0.0:
            raise InputError(f"data_std: {self.data_std} was given; expected a positive number")

    def row(self, process: Process, t: Tensor) -> Row:
        alpha, sigma, d = process.alpha(t), process.sigma(t), self.data_std
        norm = (sigma**2 + (d * alpha) ** 2).sqrt()
        return Row(sigma / (d * norm), -d * alpha / norm, torch.zeros_like(t))


@dataclass(frozen=True)
class K(Target):
    """`k x_0 - (1 - k) eps`: from the noise (k = 0, with a minus) over the velocity of a straight path (1/2) to the data (1).

    "Revisiting Diffusion Model Predictions Through Dimensionality" (2026, arXiv 2601.21419). A network of limited width is
    asked for least at `k_star`. `LearnedK` learns k with the network.
    """

    k: float = 0.5

    def __post_init__(self):
        if not 0.0 <= self.k <= 1.0:
            raise InputError(f"k: {self.k} was given; expected a number in [0, 1]")

    def row(self, process: Process, t: Tensor) -> Row:
        one = torch.ones_like(t)
        return Row(self.k * one, (self.k - 1.0) * one, torch.zeros_like(t))


def k_star(ambient: float, intrinsic: float, variance: float = 1.0) -> float:
    """The `k` of the target with the least energy, `D / (D + d c^2)`: data of variance c^2 on d of D dimensions.

    Raises:
        InputError: a dimension or the variance is not positive.
    """
    if not min(ambient, intrinsic, variance) > 0.0:
        raise InputError(
            f"ambient, intrinsic, variance: {ambient}, {intrinsic}, {variance} were given; expected positive numbers"
        )
    return ambient / (ambient + intrinsic * variance)


BY_NAME: dict[str, type[Target]] = {
    kind.__name__: kind for kind in (Data, Noise, V, Velocity, Score, EDM, K, MeanRevertingV, DataResidual, Resnoise)
}
"""Every target by the name that configurations and checkpoints use."""


class Conversion(NamedTuple):
    """`wanted = state x + answer F + endpoint y`: numbers for a time that is a number, float64 tensors otherwise."""

    state: float | Tensor
    answer: float | Tensor
    endpoint: float | Tensor


def convert(process: Process, given: Target, wanted: Target, t: float | Tensor) -> Conversion:
    """How `wanted` follows from a state and an answer to `given`, at time `t`.

    The one conversion that every pair of targets goes through. Where it is singular (the noise target at alpha = 0, the
    data target's noise at sigma = 0) the coefficients are infinite or NaN, as they are in truth.

    Raises:
        IncompatibleError: the process has a drawn endpoint, whose row has one unknown too many.
    """
    if not isinstance(t, Tensor):
        return _convert_number(process, given, wanted, t)
    return _convert(process, given, wanted, t.to(torch.float64))


def _convert(process: Process, given: Target, wanted: Target, t: Tensor) -> Conversion:
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    if given == wanted:
        return Conversion(zero, one, zero)
    if process.endpoint == "drawn":
        raise IncompatibleError(
            f"target: {type(wanted).__name__} does not follow from {type(given).__name__} alone on a two-sided "
            "interpolant whose x_1 is unknown; use InterpolantDenoiser, or give y"
        )
    return _solve(process, given.row(process, t), wanted.row(process, t), t)


def _solve(process: Process, have: Row, want: Row, t: Tensor) -> Conversion:
    alpha, sigma, beta = process.alpha(t), process.sigma(t), process.beta(t)
    determinant = alpha * have.noise - sigma * have.data
    state = (want.data * have.noise - want.noise * have.data) / determinant
    answer = (alpha * want.noise - sigma * want.data) / determinant
    return Conversion(state, answer, want.endpoint - state * beta - answer * have.endpoint)


@lru_cache(maxsize=65536)
def _convert_number(process: Process, given: Target, wanted: Target, t: float) -> Conversion:
    return Conversion(*(float(c) for c in _convert(process, given, wanted, as_time(t))))


def convert_given_endpoint(process: Process, given: Target, wanted: Target, t: float | Tensor) -> Conversion:
    """`convert` for an endpoint that is known although the process draws it (a paired interpolant)."""
    time = as_time(t)
    one, zero = torch.ones_like(time), torch.zeros_like(time)
    if given == wanted:
        return Conversion(zero, one, zero)
    return _solve(process, given.row(process, time), wanted.row(process, time), time)


def singular_at(process: Process, target: Target, t: float) -> bool:
    """Whether data and noise cannot both be told from a state and an answer to `target` at time `t`."""
    if process.endpoint == "drawn":
        return False
    row = target.row(process, as_time(t))
    level = process.level(t)
    determinant = level.alpha * row.noise.item() - level.sigma * row.data.item()
    return not (abs(determinant) > 1e-12 and math.isfinite(determinant))
