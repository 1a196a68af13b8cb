"""Models and samplers of other libraries in tweed, and tweed's in theirs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tweed.interop.diffusers_denoiser import DiffusersDenoiser, from_diffusers
from tweed.interop.models import KINDS, ModelNetwork
from tweed.interop.schedules import Schedule, read_schedule
from tweed.interop.sigma_denoiser import SigmaDenoiser, from_sigma

if TYPE_CHECKING:
    from tweed.interop.scheduler import DiffusersScheduler

__all__ = [
    "KINDS",
    "DiffusersDenoiser",
    "DiffusersScheduler",
    "ModelNetwork",
    "Schedule",
    "SigmaDenoiser",
    "from_diffusers",
    "from_sigma",
    "read_schedule",
]


def __getattr__(name: str) -> Any:
    # It is a class of diffusers, which is imported here and nowhere else before it is needed.
    if name == "DiffusersScheduler":
        from tweed.errors import MissingPackageError

        try:
            return import_module("tweed.interop.scheduler").DiffusersScheduler
        except ImportError as error:
            raise MissingPackageError(
                f"interop: {error}; DiffusersScheduler needs `pip install tweed[diffusers]`"
            ) from None
    raise AttributeError(f"module 'tweed.interop' has no attribute {name!r}")
