"""Relations, reports and their files; the catalogue and the registry."""

import dataclasses
import json
import math
import struct
import sys

import pytest

import tweed.recipes
from tweed.errors import InputError, TweedError
from tweed.recipes import Report, at_least, at_most, check, greater_than, info, less_than, registry, span, within
from tweed.recipes.report import plain
from tweed.recipes.systems import catalogue, families, system

NAN, INF = float("nan"), float("inf")


def make(**changes):
    given = {"slug": "fake", "rows": [at_most("error", 0.01, 0.02)], "seed": 3, "scale": "smoke"}
    return Report(**(given | changes))


def picture():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1], [0, 1])
    return figure


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (at_most("q", 1.0, 1.0), True),
        (at_most("q", 1.0 + 1e-12, 1.0), False),
        (at_least("q", 1.0, 1.0), True),
        (at_least("q", 0.999, 1.0), False),
        (less_than("q", 1.0, 1.0), False),
        (less_than("q", 0.69, 1.0, 0.7), True),
        (less_than("q", 0.71, 1.0, 0.7), False),
        (greater_than("q", 2.1, 1.0, 2.0), True),
        (greater_than("q", 2.0, 1.0, 2.0), False),
        (within("q", 1.9, 2.0, 0.15), True),
        (within("q", 2.2, 2.0, 0.15), False),
        (check("q", True, "monotone"), True),
        (check("q", 0, "monotone"), False),
        (info("q", 1.0), None),
    ],
)
def test_relations(row, expected):
    assert row.holds is expected


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_number_that_is_not_finite_never_holds(bad):
    rows = [
        at_most("q", bad, 1.0),
        at_most("q", 1.0, bad),
        at_least("q", bad, 1.0),
        at_least("q", 1.0, bad),
        less_than("q", bad, 1.0),
        less_than("q", 1.0, bad),
        greater_than("q", bad, 1.0),
        greater_than("q", 1.0, bad),
        within("q", bad, 1.0, 1.0),
        within("q", 1.0, 1.0, bad),
        check("q", True, "monotone", here=bad),
        check("q", True, "monotone", baseline=bad),
    ]
    assert [row.holds for row in rows] == [False] * len(rows)


def test_relations_take_tensors_and_say_their_words():
    torch = pytest.importorskip("torch")
    row = less_than("q", torch.tensor(0.5), torch.tensor(1.0, dtype=torch.float64), 0.7)
    assert row.holds is True
    assert (type(row.here), type(row.baseline), row.relation) == (float, float, "< 0.7 x baseline")
    assert within("q", 2, 2, 0.15).relation == "2 +- 0.15"


def test_a_check_without_words_is_refused():
    with pytest.raises(InputError, match="relation"):
        check("q", True, "")


def test_a_report_holds_when_no_row_fails():
    good, bad = at_most("a", 0, 1), at_most("b", 2, 1)
    assert make(rows=[good, info("c")]).holds
    report = make(rows=[good, bad])
    assert not report.holds
    assert report.failed == [bad]


@pytest.mark.parametrize("rows", [[], [info("a", 1.0)]])
def test_a_report_that_cannot_fail_is_refused(rows):
    with pytest.raises(InputError, match="no relation"):
        make(rows=rows)


@pytest.mark.parametrize("name", ["", "../escape", "a b", ".hidden", "a/b"])
def test_a_figure_name_that_is_no_file_name_is_refused(name):
    with pytest.raises(InputError, match="figures"):
        make(figures={name: picture})


def test_a_report_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().seed = 4  # type: ignore[misc]


def test_written_files(tmp_path):
    rows = [at_most("err|or", NAN, 0.02, published=0.01), less_than("loss", 0.5, 1.0), info("rate", 1234.5678)]
    settings = {"steps": (1, 2), "lr": 1e-3, "start": INF, "where": tmp_path}
    report = make(rows=rows, settings=settings, figures={"one": picture, "two": picture()}, notes="a note")
    folder = report.write(tmp_path)
    assert folder == tmp_path / "fake"
    assert sorted(path.name for path in folder.iterdir()) == ["one.png", "report.json", "report.md", "two.png"]

    read = json.loads((folder / "report.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    assert (read["slug"], read["seed"], read["scale"], read["holds"]) == ("fake", 3, "smoke", False)
    assert [row["holds"] for row in read["rows"]] == [False, True, None]
    assert read["rows"][0]["here"] == "nan"
    assert read["rows"][1] | {"note": ""} == read["rows"][1]
    assert read["settings"] == {"steps": [1, 2], "lr": 1e-3, "start": "inf", "where": str(tmp_path)}
    assert read["figures"] == ["one.png", "two.png"]
    assert read["versions"]["python"].startswith("3.")

    page = (folder / "report.md").read_text()
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(rows)
    assert {line.replace("\\|", "").count("|") for line in table} == {8}  # an escaped bar splits no cell
    assert "![one](one.png)" in page
    assert "a note" in page
    for name in ("one.png", "two.png"):
        content = (folder / name).read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        assert min(struct.unpack(">II", content[16:24])) > 50


def test_writing_again_replaces_and_leaves_the_files_of_others(tmp_path):
    folder = make(figures={"old": picture, "kept": picture}).write(tmp_path)
    (folder / "mine.png").write_bytes(b"mine")
    make(figures={"kept": picture}, seed=4).write(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["kept.png", "mine.png", "report.json", "report.md"]
    assert json.loads((folder / "report.json").read_text())["seed"] == 4


def test_a_figure_that_fails_leaves_the_earlier_report_whole(tmp_path):
    folder = make(figures={"one": picture}).write(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def broken():
        raise ValueError("no picture")

    with pytest.raises(ValueError, match="no picture"):
        make(seed=9, figures={"one": picture, "two": broken}).write(tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_failed_rename_leaves_no_temporary_file(tmp_path):
    (tmp_path / "fake" / "report.md").mkdir(parents=True)  # a folder stands where the file should go
    with pytest.raises(OSError, match=r"report\.md"):
        make().write(tmp_path)
    assert [path.name for path in (tmp_path / "fake").iterdir()] == ["report.md"]


def test_figures_are_the_same_bytes_each_time(tmp_path):
    first = (make(figures={"one": picture}).write(tmp_path / "a") / "one.png").read_bytes()
    assert (make(figures={"one": picture}).write(tmp_path / "b") / "one.png").read_bytes() == first


def test_plain_keeps_json_values_and_names_the_rest():
    assert plain({1: (True, None, "x", -INF)}) == {"1": [True, None, "x", "-inf"]}
    assert plain(at_most("a", 1, 2))["quantity"] == "a"


def test_span_maps_fractions():
    heard = []
    part = span(lambda text, fraction=None: heard.append((text, fraction)), 0.5, 0.7)
    part("x", 0.0)
    part("y", 0.5)
    part("z")
    assert [text for text, _ in heard] == ["x", "y", "z"]
    assert [fraction for _, fraction in heard] == pytest.approx([0.5, 0.6, 0.5])


# The catalogue


def test_catalogue_is_complete_and_well_formed():
    slugs = [entry.slug for entry in catalogue()]
    assert len(slugs) == len(set(slugs)) == 92
    assert {"score-sde", "dpm-solver", "stochastic-interpolants", "principles"} <= set(slugs)
    for entry in catalogue():
        assert entry.slug.replace("-", "").isalnum()
        assert entry.slug == entry.slug.lower()
        assert 2015 <= entry.year <= 2030
        assert all((entry.title, entry.reference, entry.family, entry.summary))
        assert entry.summary.endswith(".")
    assert families() == sorted({entry.family for entry in catalogue()})


def test_an_unknown_system_gets_the_nearest_name():
    assert system("bdia").family == "solvers"
    with pytest.raises(InputError, match="'score-sde'"):
        system("score-sd")


# The registry

RECIPE = """
from tweed.recipes import Report, at_most

def run(seed, scale, progress):
    progress("working", 0.5)
    return Report(slug="fake-recipe", rows=[at_most("seed", seed, 100)], seed=seed, scale=scale)
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Writes the file of a recipe called `fake-recipe`, beside those of the package."""

    def write(source=RECIPE):
        (tmp_path / "fake_recipe.py").write_text(source)
        (tmp_path / "_shared.py").write_text("")
        monkeypatch.setattr(tweed.recipes, "__path__", [*tweed.recipes.__path__, str(tmp_path)])
        monkeypatch.delitem(sys.modules, "tweed.recipes.fake_recipe", raising=False)

    yield write
    sys.modules.pop("tweed.recipes.fake_recipe", None)


def test_every_recipe_of_the_package_is_in_the_catalogue():
    assert set(registry.available()) <= {entry.slug for entry in catalogue()}


def test_recipes_are_found_by_their_file_and_imported_only_when_used(recipe):
    assert registry.status("fake-recipe") == "planned"
    recipe()
    assert "fake-recipe" in registry.available()
    assert not {"report", "registry", "systems", "-shared"} & set(registry.available())
    assert registry.status("fake-recipe") == "ready"
    assert "tweed.recipes.fake_recipe" not in sys.modules
    registry.load("fake-recipe")
    assert "tweed.recipes.fake_recipe" in sys.modules


def test_reproduce_runs_the_recipe_and_completes_its_report(recipe):
    recipe()
    heard = []
    report = registry.reproduce(
        "fake-recipe", seed=7, scale="smoke", progress=lambda text, fraction=None: heard.append((text, fraction))
    )
    assert heard == [("working", 0.5)]
    assert (report.seed, report.scale, report.title) == (7, "smoke", "fake-recipe")
    assert report.holds
    assert math.isfinite(report.seconds)
    assert report.seconds > 0
    assert not registry.reproduce("fake-recipe", seed=101, scale="smoke").holds


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "no function run"),
        ("def run(seed, scale, progress): return 3", "expected a Report"),
        (RECIPE.replace("seed=seed", "seed=0"), "expected"),
        (RECIPE.replace('slug="fake-recipe"', 'slug="bdia"'), "expected"),
    ],
)
def test_a_recipe_that_breaks_the_contract_is_named(recipe, source, words):
    recipe(source)
    with pytest.raises(TweedError, match=words):
        registry.reproduce("fake-recipe", seed=7, scale="smoke")


def test_names_and_scales_that_are_not_there(recipe, monkeypatch):
    recipe()
    with pytest.raises(InputError, match="did you mean 'fake-recipe'"):
        registry.load("fake_recipe")
    with pytest.raises(InputError, match="scale: 'large'"):
        registry.reproduce("fake-recipe", scale="large")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="CUDA"):
        registry.reproduce("fake-recipe", scale="gpu")


def test_a_planned_system_says_so(monkeypatch):
    monkeypatch.setattr(registry, "available", list)
    with pytest.raises(InputError, match="planned"):
        registry.load("bdia")
