"""Solvers by name, for configurations and the command line: `DPMSolver(order=3, kind=singlestep)`."""

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import tweed.solvers as room
from tweed.errors import InputError, choose, reject_unknown
from tweed.solvers.base import Solver

_FORM = re.compile(r"^\s*(\w+)\s*(?:\((.*)\))?\s*$", re.DOTALL)


def names() -> list[str]:
    """The solvers that `parse` knows, sorted: the public classes of `tweed.solvers` that need no arguments."""
    return sorted(_makers())


def parse(text: str) -> Solver:
    """The solver that `text` names, with options in parentheses; words need no quotes.

    Raises:
        InputError: an unknown solver or option (the nearest is suggested), or a text that is no solver.
    """
    return _parse(text, _makers())


def _parse(text: str, makers: Mapping[str, Callable[..., Any]]) -> Any:
    match = _FORM.match(text)
    if match is None:
        raise InputError(f"solver: {text!r} was given; expected a name such as DPMSolver, or DPMSolver(order=3)")
    lower = {name.lower(): name for name in makers}
    name = lower.get(match[1].lower().replace("_", ""), match[1])
    maker = choose("solver", name, makers)
    options = _options(text, match[2] or "")
    reject_unknown(f"solver: {name}", options, inspect.signature(maker).parameters)
    try:
        return maker(**options)
    except TypeError as error:
        raise InputError(f"solver: {text!r} was given; {error}") from error


def describe(solver: Any) -> str:
    """The shortest text that `parse` turns into `solver`: options at their defaults are left out."""
    shown = []
    for name, parameter in inspect.signature(type(solver)).parameters.items():
        value = getattr(solver, name)
        if value != parameter.default:
            shown.append(f"{name}={describe(value) if dataclasses.is_dataclass(value) else value}")
    return type(solver).__name__ + (f"({', '.join(shown)})" if shown else "")


def _makers() -> dict[str, Callable[..., Solver]]:
    found: dict[str, Callable[..., Solver]] = {}
    for name in room.__all__:
        value = getattr(room, name)
        if inspect.isclass(value) and issubclass(value, Solver) and not inspect.isabstract(value):
            found[name] = value
    return found | {"DDPM": room.DDPM, "LMS": room.LMS, "EulerAncestral": room.EulerAncestral}


def _parts() -> dict[str, Callable[..., Any]]:
    public = {name: getattr(room, name) for name in room.__all__}
    return {name: value for name, value in public.items() if inspect.isclass(value) and dataclasses.is_dataclass(value)}


def _split(inside: str) -> list[str]:
    """The parts between the commas outside parentheses."""
    parts, depth = [""], 0
    for letter in inside:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _options(text: str, inside: str) -> dict[str, object]:
    options: dict[str, object] = {}
    for part in filter(None, (p.strip() for p in _split(inside))):
        name, equals, value = (p.strip() for p in part.partition("="))
        if not equals or not name.isidentifier():
            raise InputError(f"solver: {part!r} in {text!r}; expected options as name=value")
        if value in _parts() or ("(" in value and value[0].isalpha()):
            # A part of the solver, such as a predictor-corrector's corrector.
            options[name] = _parse(value, _parts())
            continue
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = float(value) if value in ("inf", "-inf") else value
    return options
