"""Reproduce the claims of published systems here, and say which relations hold."""

import sys
import traceback
from pathlib import Path
from typing import Annotated

import tyro
from rich.markup import escape

from tweed.cli._console import print_json, print_table, progress_bar
from tweed.errors import InputError, TweedError
from tweed.recipes.registry import Scale, available, reproduce, require
from tweed.recipes.report import Report, Row, show

EXAMPLES = (
    "tweed reproduce score-sde",
    "tweed reproduce score-sde dpm-solver --seed 7 --out out",
    "tweed reproduce --all --scale smoke --json",
)


def run(
    slugs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[SYSTEM ...]")] = (),
    *,
    all: bool = False,
    seed: int = 0,
    scale: Scale = "default",
    out: Path = Path("out"),
    json: bool = False,
) -> int:
    """Run the recipes of published systems, print their tables, and write `OUT/<system>/report.json`, `.md` and PNGs.

    The exit code is 1 if a relation does not hold. A recipe that fails does not stop the ones after it.

    Args:
        slugs: The systems, by the names that `tweed systems` lists.
        all: Run every system whose recipe is built.
        seed: Any integer; every random number follows from it.
        scale: `smoke` takes seconds, `default` some minutes on two cores, `gpu` needs a CUDA device.
        out: The folder for the reports.
        json: Print one JSON object on stdout; progress goes to stderr.
    """
    chosen = _chosen(slugs, all)
    reports: list[Report] = []
    errors: dict[str, Exception] = {}
    for slug in chosen:
        try:
            with progress_bar(slug) as progress:
                report = reproduce(slug, seed=seed, scale=scale, progress=progress)
            folder = report.write(out)
        except Exception as error:
            if len(chosen) == 1:
                raise
            errors[slug] = error
            if not isinstance(error, TweedError):
                traceback.print_exception(error, file=sys.stderr)
            print(f"tweed: error: {slug}: {error}", file=sys.stderr)
            continue
        reports.append(report)
        if not json:
            _print(report, folder)
    code = _code(reports, errors)
    if json:
        failures = [{"slug": slug, "error": f"{type(error).__name__}: {error}"} for slug, error in errors.items()]
        written = [report.to_dict() for report in reports]
        print_json({"holds": code == 0, "seed": seed, "scale": scale, "reports": written, "errors": failures})
    elif len(chosen) > 1:
        _print_summary(reports, errors)
    return code


def _code(reports: list[Report], errors: dict[str, Exception]) -> int:
    if errors:
        return 2 if all(isinstance(error, TweedError | OSError) for error in errors.values()) else 70
    return 0 if all(report.holds for report in reports) else 1


def _chosen(slugs: tuple[str, ...], every: bool) -> list[str]:
    """The slugs to run, each once, all of them known to be built before the first one starts."""
    if every and slugs:
        raise InputError(f"slugs: {', '.join(slugs)} and --all were given; expected one of the two")
    ready = available()
    if every:
        if not ready:
            raise InputError("--all: no recipe is built")
        return ready
    if not slugs:
        raise InputError(f"slugs: none was given; expected --all or some of: {', '.join(ready) or 'none is built'}")
    chosen = list(dict.fromkeys(slugs))
    for slug in chosen:
        require(slug)
    return chosen


def _print(report: Report, folder: Path) -> None:
    rows = [_cells(row) for row in report.rows]
    print_table(
        ("quantity", "published", "baseline", "here", "relation", "holds"),
        rows,
        title=f"[bold]{report.slug}[/bold]: {escape(report.title)} ({escape(report.reference)})",
        right=("published", "baseline", "here"),
    )
    for row in report.rows:
        if row.note:
            print(f"  {row.quantity}: {row.note}")
    for note in report.notes:
        print(f"  {note}")
    verdict = "every relation holds" if report.holds else f"{len(report.failed)} relation(s) do not hold"
    print(f"  seed {report.seed}, scale {report.scale}, {report.seconds:.1f} s: {verdict}; written to {folder}\n")


def _cells(row: Row) -> tuple[str, ...]:
    mark = {True: "[green]yes[/green]", False: "[bold red]NO[/bold red]", None: ""}[row.holds]
    return (*(escape(show(cell)) for cell in (row.quantity, row.published, row.baseline, row.here, row.relation)), mark)


def _print_summary(reports: list[Report], errors: dict[str, Exception]) -> None:
    rows = [
        (
            report.slug,
            f"{sum(row.holds is not None for row in report.rows)}",
            f"{len(report.failed)}",
            f"{report.seconds:.1f}",
            "[green]holds[/green]" if report.holds else "[bold red]DOES NOT HOLD[/bold red]",
        )
        for report in reports
    ]
    rows += [(slug, "", "", "", "[bold red]error[/bold red]") for slug in errors]
    print_table(("system", "relations", "failed", "seconds", "verdict"), rows, right=("relations", "failed", "seconds"))
