"""The probability flow as a gradient flow in Wasserstein space ("Are We Really Learning the Score Function?", TMLR 2025, arXiv
2509.00336).

The forward process carries p by the velocity `w = f x - (g^2 / 2) grad log p`, which for a variance-preserving process is the
steepest descent of `F(p) = KL(p | N(0, I))`, `dF/dt = - (g^2 / 2) E |x + grad log p|^2`. Regression on the conditional velocity
`alpha' x_0 + sigma' eps` has w for its minimiser: it is the `Velocity` target of `DenoisingLoss`, and needs nothing of its own.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core.processes import Process
from tweed.errors import IncompatibleError, InputError, NumericalError


def wgf_velocity(
    process: Process, x: Float[Tensor, "b *event"], t: float, score: Float[Tensor, "b *event"]
) -> Float[Tensor, "b *event"]:
    """`f x - (g^2 / 2) score`, per unit of forward time; with the true score, `Estimate.velocity`.

    Raises:
        IncompatibleError: the process has an endpoint.
    """
    if process.endpoint != "none":
        raise IncompatibleError(f"process: {type(process).__name__} has an endpoint; expected a Gaussian process")
    return process.drift(x, t) - 0.5 * process.diffusion(t).item() ** 2 * score


def free_energy(mean: Float[Tensor, " d"], covariance: Float[Tensor, "d d"]) -> float:
    """`KL(N(mean, covariance) | N(0, I))`, in nats.

    Raises:
        NumericalError: the covariance is not positive definite.
    """
    sign, volume = torch.linalg.slogdet(covariance.double())
    if not bool(sign > 0):
        raise NumericalError("covariance: it is not positive definite")
    square = mean.double().square().sum() + covariance.double().diagonal().sum() - len(mean)
    return 0.5 * (square - volume).item()


def relative_fisher(x: Float[Tensor, "n d"], score: Float[Tensor, "n d"]) -> float:
    """`E |x + score|^2`, which is twice the rate of `-F` over `g^2`, from samples and their score."""
    return (x.double() + score.double()).flatten(1).square().sum(1).mean().item()


def jko_step(std: Float[Tensor, " d"], tau: float) -> Float[Tensor, " d"]:
    """One implicit step of the flow of `KL(. | N(0, I))` from `N(0, diag(std^2))`: `argmin_p F(p) + W2(p, p_0)^2 / (2 tau)`.

    The minimiser is Gaussian, and each standard deviation solves `(1 + tau) s^2 - s_0 s - tau = 0` (Jordan, Kinderlehrer &
    Otto, 1998).

    Raises:
        InputError: `tau` or a standard deviation is not positive.
    """
    if not tau > 0.0 or bool((std <= 0).any()):
        raise InputError(f"std, tau: {std.tolist()}, {tau} were given; expected positive numbers")
    return (std + (std.square() + 4.0 * tau * (1.0 + tau)).sqrt()) / (2.0 * (1.0 + tau))


def gaussian_variance(variance: float, rate: float) -> float:
    """The variance after a forward flow of a variance-preserving process with `int g^2 dt = rate`: `1 + (v - 1) e^{-rate}`."""
    return 1.0 + (variance - 1.0) * math.exp(-rate)
