"""The errors that tweed raises, all under `TweedError`.

Every message names the argument, what was given and what was expected. The command line turns a `TweedError` into
exit code 2.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class TweedError(Exception):
    """Anything that tweed refuses or could not do."""


class InputError(TweedError, ValueError):
    """An argument, a shape, a name or a configuration is not what it must be."""


class IncompatibleError(InputError):
    """Two things that are each fine do not fit together (a solver and a process, a target and a time)."""


class NumericalError(TweedError, ArithmeticError):
    """A computation left the finite numbers or did not converge."""


class CheckpointError(TweedError):
    """A file of weights or settings is damaged, of an unknown format, or not safe to read."""


class MissingPackageError(TweedError, ImportError):
    """A package is needed that `pip install tweed` does not bring; the message says which."""


def choose(argument: str, name: str, options: Mapping[str, Any] | Iterable[str]) -> Any:
    """The entry `name` of `options` (the name itself where `options` is no mapping).

    Raises:
        InputError: `name` is none of `options`; the nearest ones are suggested.
    """
    names = list(options)
    if name in names:
        return options[name] if isinstance(options, Mapping) else name
    # Names that begin like it, else those spelt like it; in small letters, since "ddim" is DDIM.
    small, given = {str(n).lower(): str(n) for n in names}, str(name).lower()
    near = [n for key, n in small.items() if given and key.startswith(given)][:3]
    near = near or [small[key] for key in difflib.get_close_matches(given, small, n=3)]
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise InputError(f"{argument}: {name!r} is unknown{hint} (expected one of: {', '.join(sorted(map(str, names)))})")


def reject_unknown(argument: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise an `InputError` for the first of `given` that is not in `known`."""
    known = list(known)
    for name in given:
        if name not in known:
            choose(argument, name, known)
