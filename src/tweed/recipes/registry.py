"""Recipes by name: found by their file, imported when they are used, run with their time taken.

A recipe is a module `tweed/recipes/<slug with underscores>.py` with

    def run(seed: int, scale: str, progress: Progress) -> Report: ...

Nothing else names it. Modules whose name begins with an underscore are blocks that recipes share.
"""

import dataclasses
import difflib
import importlib
import pkgutil
import time
from types import ModuleType
from typing import Literal, get_args

from tweed import recipes as _package
from tweed.errors import InputError, TweedError, choose
from tweed.recipes.report import Progress, Report, silent
from tweed.recipes.systems import catalogue

Scale = Literal["smoke", "default", "gpu"]
SCALES: tuple[str, ...] = get_args(Scale)
_FRAMEWORK = frozenset({"report", "registry", "systems"})


def available() -> list[str]:
    """The slugs of the recipes that are built, in alphabetical order; none is imported."""
    modules = (module.name for module in pkgutil.iter_modules(_package.__path__))
    return sorted({name.replace("_", "-") for name in modules if name not in _FRAMEWORK and name[0] != "_"})


def status(slug: str) -> Literal["ready", "planned"]:
    """`"ready"` where the recipe of `slug` is built, else `"planned"`."""
    return "ready" if slug in available() else "planned"


def require(slug: str) -> None:
    """Do nothing where the recipe `slug` is built; it is not imported.

    Raises:
        InputError: No system is called so (the nearest names are suggested), or its recipe is not built yet.
    """
    ready = available()
    if slug in ready:
        return
    planned = [system.slug for system in catalogue()]
    if slug in planned:
        listed = ", ".join(ready) or "none"
        raise InputError(f"slug: {slug!r} is planned, its recipe is not built yet (expected one of: {listed})")
    # All the names would fill a screen: the nearest ones, and where the list is.
    near = difflib.get_close_matches(slug, sorted({*ready, *planned}), n=3)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise InputError(f"slug: {slug!r} is unknown{hint} (expected a name that `tweed systems` lists)")


def load(slug: str) -> ModuleType:
    """The module of the recipe `slug`.

    Raises:
        InputError: As `require`.
        TweedError: The module has no `run`.
    """
    require(slug)
    module = importlib.import_module(f"tweed.recipes.{slug.replace('-', '_')}")
    if not callable(getattr(module, "run", None)):
        raise TweedError(f"{module.__name__}: has no function run(seed, scale, progress) -> Report")
    return module


def reproduce(slug: str, *, seed: int = 0, scale: str = "default", progress: Progress = silent) -> Report:
    """Run the recipe `slug`, and return its report with the wall time and the catalogue's title and reference.

    Args:
        slug: A name out of `available()`.
        seed: Any integer; every random number of the recipe follows from it.
        scale: `"smoke"` (seconds), `"default"` (some minutes on two cores) or `"gpu"`.
        progress: Told what the recipe is doing.

    Raises:
        InputError: As `require`; an unknown scale, or scale `"gpu"` without a CUDA device.
        TweedError: The recipe returned no `Report`, or one of another run.
    """
    choose("scale", scale, SCALES)
    module = load(slug)
    if scale == "gpu":
        import torch

        if not torch.cuda.is_available():
            raise InputError("scale: 'gpu' was given; expected a CUDA device, and none is visible")
    start = time.perf_counter()
    report = module.run(seed=seed, scale=scale, progress=progress)
    seconds = time.perf_counter() - start
    if not isinstance(report, Report):
        raise TweedError(f"{module.__name__}: run returned {type(report).__name__}; expected a Report")
    if (report.slug, report.seed, report.scale) != (slug, seed, scale):
        raise TweedError(
            f"{module.__name__}: the report is of {(report.slug, report.seed, report.scale)}; "
            f"expected (slug, seed, scale) = {(slug, seed, scale)}"
        )
    known = {system.slug: system for system in catalogue()}.get(slug)
    return dataclasses.replace(
        report,
        title=report.title or (known.title if known else slug),
        reference=report.reference or (known.reference if known else ""),
        seconds=seconds,
    )
