"""Stochastic interpolants: Albergo, Boffi & Vanden-Eijnden (arXiv 2303.08797); SiT: Ma et al. (ECCV 2024).

Published time runs from the base (0) to the data (1); here t = 0 is data, so `a(t)` and `b(t)` of the paper are
`beta(1 - t)` and `alpha(1 - t)`.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tweed.core.processes.base import Level, Process
from tweed.core.time import invert_increasing
from tweed.errors import IncompatibleError, InputError, choose

_PATHS = ("linear", "trigonometric", "encoder-decoder", "mirror", "vp")
_LATENTS = ("none", "brownian", "quadratic", "sine", "sigmoid")


@dataclass(frozen=True)
class Interpolant(Process):
    """`x_t = alpha(t) x_0 + beta(t) x_1 + sigma(t) z` between the data `x_0` and a second distribution's `x_1`.

    Args:
        path: "linear" (1 - t, t), "trigonometric" (cos, sin, times sqrt(1 - sigma^2)), "encoder-decoder" (through
            pure noise at t = 1/2, cos^2(pi t) on either side), "mirror" (alpha = 1, beta = 0: both ends are the data),
            "vp" (one-sided only: alpha = 1 - t, sigma = sqrt(1 - alpha^2)).
        latent: the latent noise `sigma`: "none", "brownian" sqrt(scale t (1 - t)), "quadratic" scale t (1 - t),
            "sine" scale sin^2(pi t), "sigmoid" (a smooth bump, scale times a difference of sigmoids).
        scale: the factor in `latent`.
        one_sided: the second distribution is N(0, I): its coefficient becomes `sigma`, and the process is Gaussian.

    Raises:
        InputError: an unknown name, or a combination that is no interpolant (encoder-decoder and mirror paths need a
            latent noise; the trigonometric path needs sigma <= 1).
    """

    path: Literal["linear", "trigonometric", "encoder-decoder", "mirror", "vp"] = "linear"
    latent: Literal["none", "brownian", "quadratic", "sine", "sigmoid"] = "none"
    scale: float = 1.0
    one_sided: bool = False

    def __post_init__(self):
        choose("path", self.path, _PATHS)
        choose("latent", self.latent, _LATENTS)
        if not self.scale > 0.0:
            raise InputError(f"scale: {self.scale} was given; expected a positive number")
        if self.one_sided and self.latent != "none":
            raise InputError(f"latent: {self.latent!r} was given; a one-sided interpolant has its noise in x_1 already")
        if self.one_sided and self.path in ("encoder-decoder", "mirror"):
            raise InputError(f"path: {self.path!r} was given; expected linear, trigonometric or vp when one_sided")
        if not self.one_sided and self.path == "vp":
            raise InputError("path: 'vp' was given; it is defined only with one_sided=True")
        if self.path in ("encoder-decoder", "mirror") and self.latent == "none":
            raise InputError(f"latent: 'none' was given; the {self.path} path needs a latent noise")
        if self.path == "encoder-decoder" and self.latent != "sine":
            raise InputError(
                f"latent: {self.latent!r} was given; the encoder-decoder path goes with 'sine' (all noise at t = 1/2)"
            )
        if self.path == "trigonometric" and self._latent(torch.tensor(0.5, dtype=torch.float64)).item() > 1.0:
            raise InputError(f"scale: {self.scale} was given; the trigonometric path needs a latent noise of at most 1")

    @property
    def endpoint(self) -> Literal["none", "given", "drawn"]:  # type: ignore[override]
        return "none" if self.one_sided else "drawn"

    def _endpoint_share(self, level: Level) -> float:
        # Both ends of a mirror are the data: its `y` is a draw of that.
        return 1.0 if self.path == "mirror" else level.beta

    @property
    def t_max(self) -> float:
        return 1.0 - 1e-3

    # The latent noise, and its variance's derivative, which stays finite where its own does not.
    def _latent(self, t: Tensor) -> Tensor:
        a = self.scale
        match self.latent:
            case "brownian":
                return (a * t * (1.0 - t)).sqrt()
            case "quadratic":
                return a * t * (1.0 - t)
            case "sine":
                return a * (math.pi * t).sin() ** 2
            case "sigmoid":
                return a * (_bump(t) - _bump(torch.zeros_like(t)))
        return torch.zeros_like(t)

    def _latent_dot(self, t: Tensor) -> Tensor:
        a = self.scale
        match self.latent:
            case "brownian":
                return 0.5 * a * (1.0 - 2.0 * t) / self._latent(t)
            case "quadratic":
                return a * (1.0 - 2.0 * t)
            case "sine":
                return a * math.pi * (2.0 * math.pi * t).sin()
            case "sigmoid":
                return a * _bump_dot(t)
        return torch.zeros_like(t)

    def _latent_variance_dot(self, t: Tensor) -> Tensor:
        if self.latent == "brownian":
            return self.scale * (1.0 - 2.0 * t)
        return 2.0 * self._latent(t) * self._latent_dot(t)

    def _norm(self, t: Tensor) -> Tensor:
        return (1.0 - self._latent(t) ** 2).sqrt()

    def _norm_dot(self, t: Tensor) -> Tensor:
        # Where the latent noise reaches 1 the norm has a kink; 0 is the mean of its two slopes.
        norm = self._norm(t)
        return torch.where(norm > 0.0, -0.5 * self._latent_variance_dot(t) / norm, 0.0)

    def _alpha(self, t: Tensor) -> Tensor:
        match self.path:
            case "linear" | "vp":
                return 1.0 - t
            case "trigonometric":
                return self._norm(t) * (0.5 * math.pi * (1.0 - t)).sin()
            case "encoder-decoder":
                return torch.where(t < 0.5, (math.pi * t).cos() ** 2, 0.0)
        return torch.ones_like(t)

    def _alpha_dot(self, t: Tensor) -> Tensor:
        match self.path:
            case "linear" | "vp":
                return -torch.ones_like(t)
            case "trigonometric":
                turn = 0.5 * math.pi * t
                return self._norm_dot(t) * turn.cos() - 0.5 * math.pi * self._norm(t) * turn.sin()
            case "encoder-decoder":
                return torch.where(t < 0.5, -math.pi * (2.0 * math.pi * t).sin(), 0.0)
        return torch.zeros_like(t)

    def _other(self, t: Tensor) -> Tensor:
        match self.path:
            case "linear":
                return t.clone()
            case "vp":
                return (t * (2.0 - t)).sqrt()
            case "trigonometric":
                return self._norm(t) * (0.5 * math.pi * t).sin()
            case "encoder-decoder":
                return torch.where(t > 0.5, (math.pi * t).cos() ** 2, 0.0)
        return torch.zeros_like(t)

    def _other_dot(self, t: Tensor) -> Tensor:
        match self.path:
            case "linear":
                return torch.ones_like(t)
            case "vp":
                return (1.0 - t) / self._other(t)
            case "trigonometric":
                turn = 0.5 * math.pi * t
                return self._norm_dot(t) * turn.sin() + 0.5 * math.pi * self._norm(t) * turn.cos()
            case "encoder-decoder":
                return torch.where(t > 0.5, -math.pi * (2.0 * math.pi * t).sin(), 0.0)
        return torch.zeros_like(t)

    def _beta(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t) if self.one_sided else self._other(t)

    def _beta_dot(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t) if self.one_sided else self._other_dot(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self._other(t) if self.one_sided else self._latent(t)

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return self._other_dot(t) if self.one_sided else self._latent_dot(t)

    def _variance_dot(self, t: Tensor) -> Tensor:
        if not self.one_sided:
            return self._latent_variance_dot(t)
        return 2.0 * (1.0 - t) if self.path == "vp" else super()._variance_dot(t)

    def _time(self, log_snr: Tensor) -> Tensor:
        if not self.one_sided:
            raise IncompatibleError(
                "Interpolant.time: a two-sided interpolant has no log-SNR that falls in time; "
                "use solvers and grids in time, or one_sided=True"
            )
        return invert_increasing(lambda t: -self._log_snr(t), -log_snr)


_WIDTH = 10.0


def _bump(t: Tensor) -> Tensor:
    return torch.sigmoid(_WIDTH * (t - 0.5) + 1.0) - torch.sigmoid(_WIDTH * (t - 0.5) - 1.0)


def _bump_dot(t: Tensor) -> Tensor:
    up, down = torch.sigmoid(_WIDTH * (t - 0.5) + 1.0), torch.sigmoid(_WIDTH * (t - 0.5) - 1.0)
    return _WIDTH * (up * (1.0 - up) - down * (1.0 - down))
