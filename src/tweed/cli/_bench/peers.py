"""Samplers of other libraries, as far as they are installed, behind one call.

They know the noise level `s = sigma / alpha` and the state `x / alpha`; any of our processes is that after a change of
variables. Each runs on its own usual grid: Karras et al.'s (2022), rho = 7, of n levels and a last step to 0.
"""

import importlib.metadata
import importlib.util
import math
import sys
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core.denoiser import Denoiser
from tweed.core.processes import Process


@dataclass(frozen=True)
class Field:
    """A denoiser in the variables of the peers.

    Attributes:
        x: the starts, shape (b, *event), at level `high`.
        high, low: the largest and the smallest noise level of the grids.
    """

    denoiser: Denoiser
    x: Float[Tensor, "b *event"]
    high: float
    low: float

    def denoise(self, x: Float[Tensor, "b *event"], s: Tensor | float) -> Float[Tensor, "b *event"]:
        """The data estimate at level `s`, a number or a tensor of one value."""
        process: Process = self.denoiser.process
        level = torch.as_tensor(s, dtype=torch.float64).flatten()[0]
        t = float(process.time(-level.log()))
        return self.denoiser(x.to(self.x.dtype) * process.level(t).alpha, t).x0


@dataclass(frozen=True)
class Peer:
    """A sampler: `run(field, n)` with `n` levels above zero gives the result; it takes `evaluations(n)`."""

    library: str
    name: str
    run: Callable[[Field, int], Tensor]
    evaluations: Callable[[int], int]

    def levels(self, budget: int) -> int:
        """The most levels that the budget allows; 0 where not even two."""
        fits = [n for n in range(2, budget + 1) if self.evaluations(n) <= budget]
        return max(fits, default=0)


def peers() -> list[Peer]:
    """All that is installed."""
    return [*k_diffusion(), *diffusers()]


def versions() -> dict[str, str]:
    """The libraries found, with their versions."""
    return {name: importlib.metadata.version(name) for name in ("k-diffusion", "diffusers") if _installed(name)}


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@lru_cache(maxsize=1)
def k_sampling() -> Any:
    """The module `k_diffusion.sampling` alone, without the rest of its package; None where it cannot be loaded."""
    if not _installed("k-diffusion"):
        return None
    files = [file.locate() for file in importlib.metadata.files("k-diffusion") or []]
    path = next((str(file) for file in files if str(file).endswith("k_diffusion/sampling.py")), None)
    package, helpers = types.ModuleType("k_alone"), types.ModuleType("k_alone.utils")
    package.__path__ = []
    vars(helpers)["append_dims"] = lambda x, ndim: x.reshape(x.shape + (1,) * (ndim - x.ndim))
    vars(package)["utils"] = helpers
    names = {"k_alone": package, "k_alone.utils": helpers}
    spec = importlib.util.spec_from_file_location("k_alone.sampling", path) if path else None
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    sys.modules.update(names)
    try:
        spec.loader.exec_module(module)
    except ImportError:  # one of its own requirements is missing
        return None
    finally:
        for name in names:
            sys.modules.pop(name, None)
    return module


def k_diffusion() -> list[Peer]:
    """The samplers of k-diffusion that follow the ODE (the others at eta = 0)."""
    module = k_sampling()
    if module is None:
        return []

    def once(n: int) -> int:
        return n

    def twice(n: int) -> int:
        return 2 * n - 1

    def peer(name: str, count: Callable[[int], int], **options: Any) -> Peer:
        def run(field: Field, n: int) -> Tensor:
            sigmas = module.get_sigmas_karras(n, field.low, field.high).double()
            return getattr(module, f"sample_{name}")(field.denoise, field.x, sigmas, disable=True, **options)

        return Peer("k-diffusion", name, run, count)

    def fast(field: Field, n: int) -> Tensor:
        return module.sample_dpm_fast(field.denoise, field.x, field.low, field.high, n, disable=True)

    quiet: dict[str, Any] = {"eta": 0.0, "noise_sampler": lambda *_: 0.0}
    return [
        peer("euler", once),
        peer("heun", twice),
        peer("dpm_2", twice),
        peer("lms", once),
        peer("dpmpp_2s_ancestral", twice, **quiet),
        peer("dpmpp_sde", twice, **quiet),
        peer("dpmpp_2m", once),
        peer("dpmpp_3m_sde", once, **quiet),
        Peer("k-diffusion", "dpm_fast", fast, once),
    ]


def diffusers() -> list[Peer]:
    """The deterministic schedulers of diffusers, over a table of 1000 levels between those of the field."""
    if importlib.util.find_spec("diffusers") is None:
        return []

    def once(n: int) -> int:
        return n

    def peer(name: str, shown: str, unit: bool, count: Callable[[int], int] = once, **options: Any) -> Peer:
        def run(field: Field, n: int) -> Tensor:
            from diffusers.utils import logging

            level = logging.get_verbosity()
            logging.set_verbosity_error()  # remarks on what it changes about its own options
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return _scheduled(_scheduler(name, field, n, options), field, unit)
            finally:
                logging.set_verbosity(level)

        return Peer("diffusers", shown, run, count)

    zero: dict[str, Any] = {"final_sigmas_type": "zero"}
    found = []
    for order in (2, 3):
        found += [
            peer("DPMSolverMultistepScheduler", f"DPMSolverMultistep {order}", True, solver_order=order, **zero),
            peer(
                "DPMSolverMultistepScheduler",
                f"DPMSolverMultistep {order} (noise)",
                True,
                solver_order=order,
                algorithm_type="dpmsolver",
                final_sigmas_type="sigma_min",
            ),
            peer("DPMSolverSinglestepScheduler", f"DPMSolverSinglestep {order}", True, solver_order=order, **zero),
            peer("UniPCMultistepScheduler", f"UniPCMultistep {order}", True, solver_order=order, **zero),
            peer("DEISMultistepScheduler", f"DEISMultistep {order}", True, solver_order=order),
        ]
    return [
        *found,
        peer("HeunDiscreteScheduler", "HeunDiscrete", False, lambda n: 2 * n - 1),
        peer("LMSDiscreteScheduler", "LMSDiscrete", False),
    ]


def _scheduler(name: str, field: Field, n: int, options: dict[str, Any]) -> Any:
    import diffusers

    grid = torch.logspace(math.log10(field.low), math.log10(field.high), 1000, dtype=torch.float64)
    kept = 1.0 / (1.0 + grid**2)
    betas = 1.0 - kept / torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
    made = getattr(diffusers, name)(trained_betas=betas.numpy(), use_karras_sigmas=True, **options)
    made.set_timesteps(n)
    made.set_begin_index(0)
    return made


def _scheduled(scheduler: Any, field: Field, unit: bool) -> Tensor:
    """The scheduler's own loop; `unit`: its states are divided by `sqrt(1 + s^2)`."""
    levels = scheduler.sigmas.double()

    def scale(s: Tensor) -> Tensor:
        return (1.0 + s**2).sqrt() if unit else torch.ones_like(s)

    x = field.x / scale(levels[0])
    for i, t in enumerate(scheduler.timesteps):
        inner = x.double() * scale(levels[i])
        eps = (inner - field.denoise(inner, levels[i])) / levels[i]
        x = scheduler.step(eps.to(x.dtype), t, x).prev_sample
    return x.double() * scale(levels[-1])
