"""What a recipe hands back: rows that relate numbers, figures, and the files that hold them.

A `Row` states a quantity, what was published for it, what a baseline and the method measured here, and the relation
that must hold. `at_most`, `at_least`, `less_than`, `greater_than`, `within` and `check` evaluate a relation; `info`
only reports. A number that is not finite never satisfies a relation.
"""

import io
import json
import math
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from tweed.errors import InputError

Value = float | str | None
"""What a cell of the table holds: a number, a text (a published claim, a range), or nothing."""


class Progress(Protocol):
    """Told by a recipe what it does, and how far it is (a fraction in [0, 1], or None where that is not known)."""

    def __call__(self, text: str, fraction: float | None = None) -> None: ...


def silent(text: str, fraction: float | None = None) -> None:
    """A `Progress` that shows nothing."""


def span(progress: Progress, start: float, stop: float) -> Progress:
    """A `Progress` for a part of the work: its fractions 0..1 are `start`..`stop` of `progress`."""

    def inner(text: str, fraction: float | None = None) -> None:
        progress(text, start if fraction is None else start + (stop - start) * fraction)

    return inner


@dataclass(frozen=True)
class Row:
    """One line of a report.

    Args:
        quantity: What is measured, with its unit and conditions; ends up in the first column.
        published: The claim of the paper, a number or a few words; None where it makes none.
        baseline: The number that the compared method reached here; None without one.
        here: The number that the method reached here.
        relation: The relation in words (`"<= 0.02"`); empty for a row that only reports.
        holds: Whether it holds; None for a row that only reports.
        note: Anything a reader must know to read the numbers.
    """

    quantity: str
    published: Value = None
    baseline: Value = None
    here: Value = None
    relation: str = ""
    holds: bool | None = None
    note: str = ""


def show(value: Value) -> str:
    """A cell as text: numbers to four significant digits, nothing as an empty text."""
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:.4g}"


def _cell(value: Any) -> Value:
    return value if value is None or isinstance(value, str) else float(value)


def _row(quantity: str, relation: str, holds: bool | None, published: Any, baseline: Any, here: Any, note: str) -> Row:
    verdict = None if holds is None else bool(holds)
    return Row(quantity, _cell(published), _cell(baseline), _cell(here), relation, verdict, note)


def _finite(*numbers: Any) -> bool:
    return all(math.isfinite(float(number)) for number in numbers)


def at_most(quantity: str, here: Any, bound: float, *, baseline: Any = None, published: Any = None, note="") -> Row:
    """A row that holds where `here <= bound`."""
    holds = _finite(here, bound) and float(here) <= float(bound)
    return _row(quantity, f"<= {show(float(bound))}", holds, published, baseline, here, note)


def at_least(quantity: str, here: Any, bound: float, *, baseline: Any = None, published: Any = None, note="") -> Row:
    """A row that holds where `here >= bound`."""
    holds = _finite(here, bound) and float(here) >= float(bound)
    return _row(quantity, f">= {show(float(bound))}", holds, published, baseline, here, note)


def less_than(quantity: str, here: Any, baseline: Any, factor: float = 1.0, *, published: Any = None, note="") -> Row:
    """A row that holds where `here < factor * baseline`."""
    holds = _finite(here, baseline, factor) and float(here) < float(factor) * float(baseline)
    relation = "< baseline" if factor == 1.0 else f"< {show(float(factor))} x baseline"
    return _row(quantity, relation, holds, published, baseline, here, note)


def greater_than(
    quantity: str, here: Any, baseline: Any, factor: float = 1.0, *, published: Any = None, note=""
) -> Row:
    """A row that holds where `here > factor * baseline`."""
    holds = _finite(here, baseline, factor) and float(here) > float(factor) * float(baseline)
    relation = "> baseline" if factor == 1.0 else f"> {show(float(factor))} x baseline"
    return _row(quantity, relation, holds, published, baseline, here, note)


def within(
    quantity: str, here: Any, expected: float, tolerance: float, *, baseline: Any = None, published: Any = None, note=""
) -> Row:
    """A row that holds where `|here - expected| <= tolerance`."""
    holds = _finite(here, expected, tolerance) and abs(float(here) - float(expected)) <= float(tolerance)
    relation = f"{show(float(expected))} +- {show(float(tolerance))}"
    return _row(quantity, relation, holds, published, baseline, here, note)


def check(
    quantity: str, holds: Any, relation: str, *, here: Any = None, baseline: Any = None, published: Any = None, note=""
) -> Row:
    """A row whose relation the recipe evaluated itself (`holds`, with its words in `relation`).

    A number in `here` or `baseline` that is not finite makes it not hold all the same.

    Raises:
        InputError: `relation` is empty, so that a reader could not tell what was checked.
    """
    if not relation:
        raise InputError(f"relation: empty for {quantity!r}; expected the words of what must hold")
    numbers = [value for value in (here, baseline) if value is not None and not isinstance(value, str)]
    return _row(quantity, relation, bool(holds) and _finite(*numbers), published, baseline, here, note)


def info(quantity: str, here: Any = None, *, baseline: Any = None, published: Any = None, note="") -> Row:
    """A row that only reports; its `holds` is None."""
    return _row(quantity, "", None, published, baseline, here, note)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a recipe measured, under which settings.

    Args:
        slug: The system's name in the catalogue.
        rows: At least one of them with a relation.
        seed: The seed that everything was derived from.
        scale: `"smoke"`, `"default"` or `"gpu"`.
        settings: Whatever a reader needs to repeat it: sizes, steps, learning rates (JSON values).
        figures: Name -> a matplotlib figure, or a function without arguments that returns one.
        files: Name with its ending -> a function without arguments that returns the bytes of another file (sounds, say).
        notes: What the table cannot say: what this scale does not show, and why.
        title, reference: Filled from the catalogue where empty.
        seconds: The wall time of the run, filled by the runner.

    Raises:
        InputError: There is no row with a relation, or a figure's or a file's name is no plain file name.
    """

    slug: str
    rows: Sequence[Row]
    seed: int
    scale: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    title: str = ""
    reference: str = ""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.notes, str):
            object.__setattr__(self, "notes", (self.notes,))
        if all(row.holds is None for row in self.rows):
            raise InputError(f"rows: the report of {self.slug!r} has no relation; expected at least one that can fail")
        for name in self.figures:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
                raise InputError(f"figures: {name!r} was given as a name; expected letters, digits, '-' and '_'")
        for name in self.files:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*\.[a-z0-9]+", name) or name in ("report.md", "report.json"):
                raise InputError(
                    f"files: {name!r} was given as a name; expected letters, digits, '-', '_', and an ending"
                )

    @property
    def holds(self) -> bool:
        """Whether every relation holds."""
        return all(row.holds is not False for row in self.rows)

    @property
    def failed(self) -> list[Row]:
        """The rows whose relation does not hold."""
        return [row for row in self.rows if row.holds is False]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values; numbers that are not finite become texts, figures their file names."""
        return {
            "slug": self.slug,
            "title": self.title,
            "reference": self.reference,
            "seed": self.seed,
            "scale": self.scale,
            "holds": self.holds,
            "seconds": round(self.seconds, 3),
            "rows": [plain(asdict(row)) for row in self.rows],
            "settings": plain(self.settings),
            "figures": [f"{name}.png" for name in self.figures],
            "notes": list(self.notes),
            "versions": _versions(),
        }

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """A page with the table, the notes, the figures and the settings."""
        head = ["quantity", "published", "baseline", "here", "relation", "holds", "note"]
        source = f" ({self.reference})" if self.reference else ""
        verdict = "every relation holds" if self.holds else f"{len(self.failed)} relation(s) do not hold"
        run = f"seed {self.seed}, scale `{self.scale}`, {self.seconds:.1f} s"
        lines = [f"# {self.title or self.slug}", "", f"`{self.slug}`{source}, {run}: **{verdict}**.", ""]
        lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for row in self.rows:
            mark = {True: "yes", False: "**no**", None: ""}[row.holds]
            numbers = [show(row.published), show(row.baseline), show(row.here)]
            cells = [row.quantity, *numbers, row.relation, mark, row.note]
            lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
        lines += [""] + [f"- {note}" for note in self.notes] + ([""] if self.notes else [])
        for name in self.figures:
            lines += [f"![{name}]({name}.png)", ""]
        settings = json.dumps(plain(self.settings), indent=2, ensure_ascii=False, allow_nan=False)
        lines += ["## Settings", "", "```json", settings, "```"]
        return "\n".join(lines) + "\n"

    def write(self, out: str | os.PathLike[str]) -> Path:
        """Write `report.json`, `report.md`, one PNG a figure and the other files into `out/<slug>/`; the folder is returned.

        Every file is complete or absent: figures are drawn before anything is written, each file is written to a
        temporary name and renamed, and `report.json` comes last. Figures of an earlier report that this one does not
        have are removed.
        """
        pictures = {f"{name}.png": _png(figure) for name, figure in self.figures.items()}
        others = {name: made() for name, made in self.files.items()}
        texts = {"report.md": self.to_markdown().encode(), "report.json": self.to_json().encode()}
        folder = Path(out) / self.slug
        folder.mkdir(parents=True, exist_ok=True)
        stale = _pictures_of(folder / "report.json") - set(pictures)
        for name, content in (pictures | others | texts).items():
            _replace(folder / name, content)
        for name in stale:
            (folder / name).unlink(missing_ok=True)
        return folder


def plain(value: Any) -> Any:
    """`value` in JSON's types: mappings, sequences, dataclasses, 0-d arrays; anything else as its text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    to_list = getattr(value, "tolist", None)  # numpy arrays and scalars, torch tensors
    if callable(to_list):
        return plain(to_list())
    return str(value)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("tweed", "torch", "numpy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _png(figure: Any) -> bytes:
    drawn = figure if hasattr(figure, "savefig") else figure()
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=120, bbox_inches="tight", metadata={"Software": None})
    if "matplotlib.pyplot" in sys.modules:  # a figure made by pyplot stays alive until it is closed there
        sys.modules["matplotlib.pyplot"].close(drawn)
    return buffer.getvalue()


def _pictures_of(report: Path) -> set[str]:
    """The figure files that an earlier report in this folder names."""
    try:
        names = json.loads(report.read_text())["figures"]
        return {name for name in names if name.endswith(".png") and Path(name).name == name}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
