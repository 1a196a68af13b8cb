"""List the published systems, their family, and whether their recipe is built."""

from dataclasses import asdict
from typing import Literal

from rich.markup import escape

from tweed.cli._console import print_json, print_table
from tweed.errors import choose
from tweed.recipes import registry
from tweed.recipes.systems import catalogue, families

EXAMPLES = (
    "tweed systems",
    "tweed systems --family solvers",
    "tweed systems --status ready --json",
)


def run(
    *,
    family: str = "any",
    status: Literal["any", "ready", "planned"] = "any",
    json: bool = False,
) -> int:
    """List the published systems, their family, and whether their recipe is built.

    Args:
        family: Only the systems of this room of the library.
        status: Only those whose recipe is built (`ready`), or only those whose is not (`planned`).
        json: Print a JSON list on stdout, with references and summaries.
    """
    choose("family", family, ["any", *families()])
    built = set(registry.available())
    entries = [asdict(entry) | {"status": "ready" if entry.slug in built else "planned"} for entry in catalogue()]
    chosen = [entry for entry in entries if family in ("any", entry["family"]) and status in ("any", entry["status"])]
    if json:
        print_json(chosen)
        return 0
    ready = sum(entry["status"] == "ready" for entry in chosen)
    print_table(
        ("system", "family", "status", "year", "title"),
        [
            (
                entry["slug"],
                entry["family"],
                "[green]ready[/green]" if entry["status"] == "ready" else "planned",
                str(entry["year"]),
                escape(entry["title"]),
            )
            for entry in chosen
        ],
        caption=f"{len(chosen)} systems, {ready} ready: run one with `tweed reproduce SYSTEM`",
    )
    return 0
