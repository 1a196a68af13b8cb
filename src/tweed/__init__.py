"""tweed: denoising generative models in one grammar (process, target, denoiser, solver)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tweed import errors
from tweed.core import exact, grids, processes, random, targets
from tweed.core.denoiser import (
    CountingDenoiser,
    Denoiser,
    FunctionDenoiser,
    InterpolantDenoiser,
    NetworkDenoiser,
    Wrapper,
)
from tweed.core.estimate import Estimate
from tweed.core.exact import EmpiricalDenoiser, GaussianDenoiser, MixtureDenoiser, MixtureInterpolantDenoiser
from tweed.core.learned_target import LearnedK
from tweed.core.potential import PotentialDenoiser
from tweed.core.rescheduled import Rescheduled
from tweed.core.starts import Start
from tweed.core.token_denoiser import TokenDenoiser, TokenEstimate

__version__ = "0.1.0"

_ROOMS = (
    "solvers",
    "nets",
    "data",
    "metrics",
    "guidance",
    "starts",
    "training",
    "analysis",
    "science",
    "inverse",
    "restoration",
    "interop",
    "tokens",
    "recipes",
)
_FUNCTIONS = {
    "sample": "solvers",
    "invert": "solvers",
    "log_likelihood": "solvers",
    "fit": "training",
    "save": "training",
    "load": "training",
}

if TYPE_CHECKING:
    from tweed import (
        analysis,
        data,
        guidance,
        interop,
        inverse,
        metrics,
        nets,
        recipes,
        restoration,
        science,
        solvers,
        starts,
        tokens,
        training,
    )
    from tweed.solvers import invert, log_likelihood, sample
    from tweed.training import fit, load, save


def __getattr__(name: str) -> Any:
    # Rooms are imported at their first use: `import tweed` loads little more than torch.
    if name in _ROOMS:
        return import_module(f"tweed.{name}")
    if name in _FUNCTIONS:
        return getattr(import_module(f"tweed.{_FUNCTIONS[name]}"), name)
    raise AttributeError(f"module 'tweed' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS, *_FUNCTIONS])


__all__ = [
    "CountingDenoiser",
    "Denoiser",
    "EmpiricalDenoiser",
    "Estimate",
    "FunctionDenoiser",
    "GaussianDenoiser",
    "InterpolantDenoiser",
    "LearnedK",
    "MixtureDenoiser",
    "MixtureInterpolantDenoiser",
    "NetworkDenoiser",
    "PotentialDenoiser",
    "Rescheduled",
    "Start",
    "TokenDenoiser",
    "TokenEstimate",
    "Wrapper",
    "analysis",
    "data",
    "errors",
    "exact",
    "fit",
    "grids",
    "guidance",
    "interop",
    "inverse",
    "invert",
    "load",
    "log_likelihood",
    "metrics",
    "nets",
    "processes",
    "random",
    "recipes",
    "restoration",
    "sample",
    "save",
    "science",
    "solvers",
    "starts",
    "targets",
    "tokens",
    "training",
]
