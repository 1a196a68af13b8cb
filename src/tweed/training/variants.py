"""A grid of configurations from one: `target=noise,velocity` and `network.routing=1.0,0.8` make four."""

import dataclasses
import itertools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tweed.errors import InputError, choose
from tweed.training.config import TrainConfig
from tweed.training.plain import family_of, to_config

SHORT = {"target": {"eps": "Noise", "x0": "Data", "k": "LearnedK"}}
"""Short names of values, besides the names themselves in any case; `k` is the learned one, `K` a fixed one."""

_REFUSED = {
    "seed": "it is what `seeds` varies",
    "optimisation.steps": "all variants have the same steps",
    "data": "all variants have the same data, and would have no common loss otherwise",
    "logging": "it changes no result",
    "meta": "it changes no result",
}


@dataclass(frozen=True)
class Variant:
    """A configuration of the grid.

    Attributes:
        changes: the values it has instead of the given ones, by dotted path.
        table: its tables, as in a TOML file.
        config: what they say.
    """

    changes: Mapping[str, Any]
    table: Mapping[str, Any]
    config: TrainConfig

    @property
    def name(self) -> str:
        """All changes in words, `target=Noise, network.routing=0.8`."""
        return ", ".join(f"{path}={shown(value)}" for path, value in self.changes.items()) or "as given"


def grid(table: Mapping[str, Any], vary: Sequence[str], where: str = "config") -> list[Variant]:
    """All combinations of the values of `vary`, the last path changing fastest; the first value of each comes first.

    Args:
        table: the tables of the configuration.
        vary: texts `path=value,value`: a dotted path of the configuration, and values as TOML has them (names without quotes).
        where: how messages call the configuration.

    Raises:
        InputError: an unknown path, option or name (the nearest is suggested), a value of a wrong type, a path whose
            variants could not be compared, or twice the same.
    """
    base = TrainConfig.from_dict(table, where)
    axes: dict[str, list[Any]] = {}
    for text in vary:
        path, values = read_axis(text)
        if path in axes:
            raise InputError(f"vary: {path} was given twice; expected all its values in one")
        _check_path(path, base)
        axes[path] = values
    variants: list[Variant] = []
    for values in itertools.product(*axes.values()):
        made = _variant(table, dict(zip(axes, values, strict=True)), where)
        if any(made.changes == other.changes for other in variants):
            raise InputError(f"vary: {made.name} was given twice; expected different values")
        variants.append(made)
    return variants


def read_axis(text: str) -> tuple[str, list[Any]]:
    """The path and the values of `path=value,value`; commas within brackets, braces and quotes do not separate.

    Raises:
        InputError: it is not of that form.
    """
    path, equals, rest = text.partition("=")
    values = list(_split(rest))
    if not equals or not path.strip() or not all(values):
        raise InputError(f"vary: {text!r} was given; expected a path and its values, such as target=noise,velocity")
    return path.strip(), [_value(value) for value in values]


def shown(value: Any) -> str:
    """A value in few words: `DualAdam(switch_rate=0.001)` for a table with a name."""
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        options = ", ".join(f"{key}={shown(each)}" for key, each in value.items() if key != "name")
        return f"{value['name']}({options})" if options else value["name"]
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _split(text: str) -> Iterator[str]:
    depth, quote, piece = 0, "", ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        depth += 0 if quote else (letter in "[{") - (letter in "]}")
        if letter == "," and not depth and not quote:
            yield piece.strip()
            piece = ""
        else:
            piece += letter
    yield piece.strip()


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if text[0] in "[{\"'":
            raise InputError(f"vary: {text} was given; expected a value as TOML has it") from None
        return text


def _check_path(path: str, base: TrainConfig) -> None:
    for refused, why in _REFUSED.items():
        if path == refused or path.startswith(f"{refused}."):
            raise InputError(f"vary: {path} was given; expected another path: {why}")
    top = path.split(".")[0]
    names = [f.name for f in dataclasses.fields(base)]
    if top not in names:
        # Often it is the name of a value in one of the tables.
        inner = {
            f.name: f"{part}.{f.name}"
            for part in names
            if dataclasses.is_dataclass(getattr(base, part))
            for f in dataclasses.fields(getattr(base, part))
        }
        inner |= {option: f"network.{option}" for option in base.network if option != "name"}
        if path in inner:
            raise InputError(f"vary: {path!r} is unknown; did you mean {inner[path]!r}?")
        choose("vary", top, names)


def _variant(table: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> Variant:
    made, taken = dict(table), {}
    for path, value in changes.items():
        try:
            parts = path.split(".")
            taken[path] = _named(parts, value, TrainConfig.from_dict(made, where))
            made = _with(made, TrainConfig.from_dict(made, where), parts, taken[path])
            config = TrainConfig.from_dict(made, where)
        except InputError as error:
            raise type(error)(f"vary: {path}={shown(value)}: {error}") from None
    return Variant(taken, made, config if changes else TrainConfig.from_dict(made, where))


def _named(parts: Sequence[str], value: Any, config: Any) -> Any:
    """A name of a process, a target, ... as it is spelt, where `value` is one in other letters or short."""
    for part in parts[:-1]:
        config = getattr(config, part, None)
    known = family_of(config, parts[-1])
    if known is None or not isinstance(value, str) or value in known:
        return value
    small = {name.lower(): name for name in known} | SHORT.get(".".join(parts), {})
    return small.get(value.lower(), value)


def _with(table: Mapping[str, Any], config: Any, parts: Sequence[str], value: Any) -> dict[str, Any]:
    """The table with one value replaced, and the tables on the way to it made where they are left out."""
    first, rest = parts[0], parts[1:]
    if not rest:
        return {**table, first: value}
    present, inner = table.get(first), getattr(config, first, None)
    if isinstance(present, str):
        present = {"name": present}
    elif present is None and family_of(config, first) is not None and dataclasses.is_dataclass(inner):
        present = to_config(inner)
    elif present is None:
        present = {}
    if not isinstance(present, Mapping):
        raise InputError(f"{first}: it is {present!r}, which has no {rest[0]!r}; expected a path of the configuration")
    return {**table, first: _with(present, inner, rest, value)}
