"""Frozen dataclasses from plain values (JSON, TOML) and back, with every mistake named.

A value of a family (a process, a target, a weighting ...) is written as `{"name": "VP", "beta_min": 0.1}`: the name of
its class and its fields. What is left out takes its default.
"""

import dataclasses
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from tweed.core import processes, targets
from tweed.core.processes import Process
from tweed.core.targets import Target
from tweed.errors import InputError, choose, reject_unknown
from tweed.training import couplings, learned, objectives, times, weightings
from tweed.training.optimizers import choices

_T = TypeVar("_T")

FAMILIES: dict[Any, Mapping[str, type]] = {
    Process: {**processes.BY_NAME, **processes.CATEGORICAL},
    Target: targets.BY_NAME,
    learned.Asked: learned.BY_NAME,
    choices.OptimizerChoice: choices.BY_NAME,
    weightings.Weighting: weightings.BY_NAME,
    times.TimeSampler: times.BY_NAME,
    couplings.Coupling: couplings.BY_NAME,
    objectives.Objective: objectives.BY_NAME,
}
"""The classes of each family by name; a field of such a type holds one of them."""


def to_config(value: Any) -> dict[str, Any]:
    """A frozen dataclass as `{"name": ..., field: value, ...}` of plain JSON values, every field explicit.

    Raises:
        InputError: it is no dataclass, or a field is not a plain value.
    """
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise InputError(f"value: {value!r} was given; expected a process, a target or another dataclass")
    name = type(value).__name__
    return {"name": name, **{f.name: _plain(f"{name}.{f.name}", getattr(value, f.name)) for f in _fields(type(value))}}


def from_config(config: Any, known: Mapping[str, type[_T]], where: str = "config") -> _T:
    """The value that `to_config` wrote.

    Args:
        config: `{"name": ..., field: value, ...}`, or the name alone.
        known: the classes by name, such as `tweed.processes.BY_NAME`.
        where: how messages call it.

    Raises:
        InputError: an unknown name or field (the nearest is suggested), a missing field, a value of a wrong type.
    """
    if isinstance(config, str):
        config = {"name": config}
    if not isinstance(config, Mapping) or not isinstance(config.get("name"), str):
        raise InputError(f"{where}: {config!r} was given; expected a table with a 'name', one of: {', '.join(known)}")
    kind = choose(f"{where}.name", config["name"], known)
    return parse(kind, {key: value for key, value in config.items() if key != "name"}, where)


def process_from_config(config: Any, where: str = "process") -> Process:
    """A process from its configuration; raises as `from_config`."""
    return from_config(config, FAMILIES[Process], where)


def target_from_config(config: Any, where: str = "target") -> Target:
    """A target from its configuration; raises as `from_config`."""
    return from_config(config, targets.BY_NAME, where)


def parse(kind: type[_T], table: Any, where: str) -> _T:
    """A dataclass of type `kind` from a table of its fields, nested dataclasses included.

    Raises:
        InputError: an unknown or missing field, or a value of a wrong type, named with its path.
    """
    if not isinstance(table, Mapping):
        raise InputError(f"{where}: {table!r} was given; expected a table")
    hints, fields = _hints(kind), _fields(kind)
    reject_unknown(f"key of {where}", table, [f.name for f in fields])
    given = {}
    for field in fields:
        if field.name in table:
            given[field.name] = _value(table[field.name], hints[field.name], f"{where}.{field.name}")
        elif (
            field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
            and not _optional_in_constructor(kind, field.name)
        ):
            raise InputError(f"{where}.{field.name}: nothing was given; expected {_shown(hints[field.name])}")
    try:
        return kind(**given)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def family_of(value: Any, field: str) -> Mapping[str, type] | None:
    """The classes by name that `field` of a dataclass chooses from; None where it holds something else."""
    hint = _hints(type(value)).get(field) if dataclasses.is_dataclass(value) else None
    if hint in FAMILIES:
        return FAMILIES[hint]
    options = [option for option in typing.get_args(hint) if option in FAMILIES]
    return FAMILIES[options[0]] if options else None


def _fields(kind: Any) -> list[dataclasses.Field]:
    return [f for f in dataclasses.fields(kind) if f.init and not f.name.startswith("_")]


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _optional_in_constructor(kind: Any, name: str) -> bool:
    # A dataclass with an __init__ of its own may have defaults that its fields do not show.
    parameter = inspect.signature(kind).parameters.get(name)
    return parameter is not None and parameter.default is not parameter.empty


def _plain(where: str, value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(where, item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if dataclasses.is_dataclass(value):
        return to_config(value)
    raise InputError(f"{where}: {value!r} cannot be written as a plain value")


def _shown(hint: Any) -> str:
    if dataclasses.is_dataclass(hint):
        return "a table"
    text = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    return text.replace("typing.", "").replace("collections.abc.", "")


def _value(value: Any, hint: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if hint in FAMILIES:
        return from_config(value, FAMILIES[hint], where)
    if origin in (typing.Union, types.UnionType):
        if type(None) in arguments:
            if value is None:
                return None
            arguments = tuple(option for option in arguments if option is not type(None))
        if len(arguments) == 1:
            return _value(value, arguments[0], where)
        last: InputError | None = None
        for option in arguments:
            try:
                return _value(value, option, where)
            except InputError as error:
                last = error
        raise InputError(f"{where}: {value!r} was given; expected {_shown(hint)}") from last
    if origin is typing.Literal:
        if any(type(value) is type(option) and value == option for option in arguments):
            return value
        if isinstance(value, str):
            choose(where, value, [str(option) for option in arguments])
    elif origin in (tuple, list, Sequence):
        if isinstance(value, list | tuple):
            return tuple(_value(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value))
    elif origin in (dict, Mapping) or hint is dict:
        if isinstance(value, Mapping):
            return dict(value)
    elif dataclasses.is_dataclass(hint):
        return parse(typing.cast(type, hint), value, where)
    elif hint is type(None):
        if value is None:
            return None
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif isinstance(value, hint):
        return value
    raise InputError(f"{where}: {value!r} was given; expected {_shown(hint)}")


def call(function: Callable[..., _T], table: Mapping[str, Any], where: str) -> _T:
    """Calls a function or class with the options of a table, checked against its annotations.

    Raises:
        InputError: an unknown or missing option, or a value of a wrong type.
    """
    target: Any = function.__init__ if isinstance(function, type) else function
    known = {name: p for name, p in inspect.signature(function).parameters.items() if p.kind != p.VAR_KEYWORD}
    hints = typing.get_type_hints(target)
    reject_unknown(f"key of {where}", table, known)
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in table:
            raise InputError(f"{where}.{name}: nothing was given; expected {_shown(hints.get(name, Any))}")
    return function(**{name: _value(value, hints.get(name, Any), f"{where}.{name}") for name, value in table.items()})
