"""What solvers are compared on: a denoiser, its starts, and how far the run goes."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tweed.core import random
from tweed.core.denoiser import Denoiser, Wrapper
from tweed.core.exact import EmpiricalDenoiser, MixtureDenoiser
from tweed.core.processes import EDM, Process
from tweed.core.rescheduled import Rescheduled
from tweed.errors import InputError
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


def digits_mixture(starts: int, seed: int, process: Process | None = None) -> Case:
    """Handwritten digits smoothed by N(0, 0.15^2), with their exact score; by default on EDM's process from 80 to 0.002."""
    from tweed.data import Digits

    process = process or EDM(0.002, 80.0)
    denoiser = EmpiricalDenoiser(Digits(flat=True).x, 0.15, process)
    return _case(denoiser, starts, seed, (64,), 1e-4, torch.float64)


def bundled(starts: int, seed: int) -> Case:
    """The bundled model `glyphs`, each sample of another class; its reference is converged to 1e-3 only."""
    return loaded("glyphs", starts, seed)


def loaded(name: str, starts: int, seed: int, process: Process | None = None, scale: float = 1.0) -> Case:
    """A model that `tweed.load` knows, with its classes in turn; under another process, and guided, if wanted."""
    from tweed.guidance import ClassifierFree
    from tweed.training import load

    model = load(name)
    if model.event is None:
        raise InputError(f"model: {name!r} does not know the shape of a sample")
    classes = getattr(getattr(model, "network", None), "config", {}).get("num_classes", 0)
    if scale != 1.0 and not classes:
        raise InputError(f"scale: {scale} was given, and {name!r} has no classes to guide towards")
    denoiser = model if scale == 1.0 else ClassifierFree(model, scale)
    denoiser = denoiser if process is None else Rescheduled(denoiser, process)
    label = torch.arange(starts) % classes if classes else None
    return _case(Labelled(denoiser, label, classes), starts, seed, model.event, 1e-3, torch.float32)


def _case(
    denoiser: Denoiser, starts: int, seed: int, event: tuple[int, ...], tolerance: float, dtype: torch.dtype
) -> Case:
    process = denoiser.process
    start = denoiser.t_max if math.isfinite(process.level(denoiser.t_max).log_snr) else process.t_max
    end = 0.0 if math.isfinite(process.level(0.0).log_snr) else process.t_min
    return Case(denoiser, process.prior((starts, *event), seed, t=start, dtype=dtype), start, end, tolerance)


class Labelled(Wrapper):
    """A model whose samples carry the classes in `label`, from the first row on."""

    def __init__(self, denoiser: Denoiser, label: Tensor | None, classes: int = 0):
        super().__init__(denoiser)
        self.label, self.classes = label, classes

    def forward(self, x, t, **cond):
        return (
            self.denoiser(x, t, **cond)
            if self.label is None
            else self.denoiser(x, t, label=self.label[: len(x)], **cond)
        )


def mixture32(starts: int, seed: int) -> Case:
    """Eight Gaussians of unequal, correlated spread in 32 dimensions, on EDM's process from 80 to 0.002."""
    from tweed.data import random_mixture

    made, process = random_mixture(8, 32, seed=random.fold(seed, 32)), EDM(0.002, 80.0)
    denoiser = MixtureDenoiser(made.means, made.covariances, made.weights, process)
    x = process.sigma_max * random.normal((starts, 32), seed, dtype=torch.float64)
    return Case(denoiser, x, 1.0, process.t_min, 1e-4)
