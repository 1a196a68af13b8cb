"""What solvers are compared on: a denoiser, its starts, and how far the run goes."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tweed.core import random
from tweed.core.denoiser import Denoiser
from tweed.core.exact import EmpiricalDenoiser, MixtureDenoiser
from tweed.core.processes import EDM
from tweed.solvers.accuracy import converged


@dataclass(frozen=True)
class Case:
    """A denoiser, its starts at time `start` (shape (b, *event)), and the last level above the data, `end`."""

    denoiser: Denoiser
    x: Tensor
    start: float
    end: float
    tolerance: float

    def reference(self, steps: int = 150) -> Tensor:
        """Where the flow carries the starts by time `end`, to `tolerance`."""
        return converged(self.denoiser, self.x, start=self.start, end=self.end, steps=steps, tolerance=self.tolerance)


def digits_mixture(starts: int, seed: int) -> Case:
    """Handwritten digits smoothed by N(0, 0.15^2), with their exact score, on EDM's process from 80 to 0.002."""
    from tweed.data import Digits

    process = EDM(0.002, 80.0)
    denoiser = EmpiricalDenoiser(Digits(flat=True).x, 0.15, process)
    x = process.sigma_max * random.normal((starts, 64), seed, dtype=torch.float64)
    return Case(denoiser, x, 1.0, process.t_min, 1e-4)


def bundled(starts: int, seed: int) -> Case:
    """The bundled model `glyphs`, each sample of another class; its reference is converged to 1e-3 only."""
    from tweed.training import load

    model = load("glyphs")
    process = model.process
    start = model.t_max if math.isfinite(process.level(model.t_max).log_snr) else process.t_max
    x = process.prior((starts, *(model.event or ())), seed, t=start)
    return Case(_Labelled(model, starts), x, start, process.t_min, 1e-3)


class _Labelled(Denoiser):
    """A model whose samples carry the classes 0, 1, 2, ... in turn."""

    def __init__(self, model: Denoiser, n: int):
        super().__init__()
        self.model, self.process, self.event = model, model.process, model.event
        classes = getattr(getattr(model, "network", None), "config", {}).get("num_classes", 0)
        self.label = torch.arange(n) % classes if classes else None

    def forward(self, x, t, **cond):
        return self.model(x, t, **cond) if self.label is None else self.model(x, t, label=self.label, **cond)


def mixture32(starts: int, seed: int) -> Case:
    """Eight Gaussians of unequal, correlated spread in 32 dimensions, on EDM's process from 80 to 0.002."""
    from tweed.data import random_mixture

    made, process = random_mixture(8, 32, seed=random.fold(seed, 32)), EDM(0.002, 80.0)
    denoiser = MixtureDenoiser(made.means, made.covariances, made.weights, process)
    x = process.sigma_max * random.normal((starts, 32), seed, dtype=torch.float64)
    return Case(denoiser, x, 1.0, process.t_min, 1e-5)
