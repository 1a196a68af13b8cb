"""What the commands share to speak: tables and JSON on stdout, progress and remarks on stderr."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tweed.recipes.report import Progress, plain

_PIPED_WIDTH = 160


def console(*, stderr: bool = False) -> Console:
    """A console on the present stdout or stderr; one that is no terminal gets lines of 160 characters."""
    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal:
        made.width = _PIPED_WIDTH
    return made


def print_json(value: Any) -> None:
    """`value` as JSON on stdout; numbers that are not finite become texts."""
    print(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str = "",
    caption: str = "",
    right: Iterable[str] = (),
) -> None:
    """A table on stdout.

    Args:
        columns: The heads of the columns.
        rows: The cells, as texts with rich's markup (pass foreign texts through `rich.markup.escape`).
        title: A line above it.
        caption: A line below it.
        right: The columns that are aligned to the right.
    """
    made = Table(title=title or None, caption=caption or None, title_justify="left", caption_justify="left")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    console().print(made)


@contextmanager
def progress_bar(label: str) -> Iterator[Progress]:
    """A `Progress` shown on stderr while the block runs: a bar on a terminal, else a line whenever the text changes."""
    screen = console(stderr=True)
    if not screen.is_terminal:
        yield _lines(screen, label)
        return
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    look = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Bar(*look, console=screen, transient=True) as bar:
        task = bar.add_task(escape(label), total=None)

        def tell(text: str, fraction: float | None = None) -> None:
            bar.update(task, description=escape(f"{label}: {text}"))
            if fraction is not None:
                bar.update(task, total=1.0, completed=min(max(fraction, 0.0), 1.0))

        yield tell


def _lines(screen: Console, label: str) -> Progress:
    start, last = time.perf_counter(), ""

    def tell(text: str, fraction: float | None = None) -> None:
        nonlocal last
        if text != last:
            last = text
            done = "" if fraction is None else f", {fraction:.0%}"
            screen.print(f"{label}: {text} ({time.perf_counter() - start:.0f} s{done})", markup=False)

    return tell
