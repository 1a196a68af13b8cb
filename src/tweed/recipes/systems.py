"""The catalogue: every published system of which tweed has, or will have, a recipe (`systems.json`)."""

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

from tweed.errors import choose


@dataclass(frozen=True)
class System:
    """One published system.

    Args:
        slug: Its short name, on the command line and (with underscores) as the name of its recipe's file.
        title: The paper's title.
        year: The year of the publication that `title` is from.
        reference: An arXiv identifier or the venue.
        family: The room of the library that it belongs to.
        summary: What it does, in one line.
    """

    slug: str
    title: str
    year: int
    reference: str
    family: str
    summary: str


@cache
def catalogue() -> tuple[System, ...]:
    """All systems, by slug."""
    text = resources.files("tweed.recipes").joinpath("systems.json").read_text(encoding="utf-8")
    return tuple(sorted((System(**entry) for entry in json.loads(text)), key=lambda system: system.slug))


def families() -> list[str]:
    """The families that occur, in alphabetical order."""
    return sorted({system.family for system in catalogue()})


def system(slug: str) -> System:
    """The system called `slug`.

    Raises:
        InputError: There is none; the nearest names are suggested.
    """
    return choose("slug", slug, {entry.slug: entry for entry in catalogue()})
