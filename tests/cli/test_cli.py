"""The command line: what it prints where, and with which exit code it ends."""

import json
import os
import subprocess
import sys
from importlib import metadata

import pytest

import tweed.cli
import tweed.recipes
from tweed.cli import _dispatch, main
from tweed.recipes import registry
from tweed.recipes.systems import catalogue

RECIPE = """
from tweed.errors import IncompatibleError
from tweed.recipes import Report, at_most, info

def run(seed, scale, progress):
    progress("working hard", 0.5)
    if seed == 500:
        raise IncompatibleError("solver: does not fit")
    if seed == 501:
        raise ZeroDivisionError("a fault")
    if seed == 502:
        raise KeyboardInterrupt
    rows = [at_most("the seed [m]", seed, 100, published=50.0, note="a note"), info("rate", 3.0)]
    return Report(slug="{slug}", rows=rows, seed=seed, scale=scale, figures={{"one": draw}})

def draw():
    from matplotlib.figure import Figure
    figure = Figure(figsize=(1, 1))
    figure.subplots()
    return figure
"""


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """Two recipes, `fake-one` and `fake-two`, instead of those of the package; the working folder is temporary."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    names = ("fake-one", "fake-two")
    for name in names:
        (folder / f"{name.replace('-', '_')}.py").write_text(RECIPE.format(slug=name))
    monkeypatch.setattr(tweed.recipes, "__path__", [*tweed.recipes.__path__, str(folder)])
    monkeypatch.setattr(registry, "available", lambda: list(names))
    monkeypatch.setattr("tweed.cli.reproduce.available", lambda: list(names))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in names:
        sys.modules.pop(f"tweed.recipes.{name.replace('-', '_')}", None)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Adds a command `extra` from a source text."""

    def write(source):
        (tmp_path / "extra.py").write_text(source)
        (tmp_path / "_hidden.py").write_text("")
        monkeypatch.setattr(tweed.cli, "__path__", [*tweed.cli.__path__, str(tmp_path)])

    yield write
    sys.modules.pop("tweed.cli.extra", None)


def test_overview_lists_every_command_with_its_line(capsys):
    for words in ([], ["--help"], ["-h"], ["help"]):
        assert main(words) == 0
        text = capsys.readouterr().out
        assert text.startswith("usage: tweed")
        for name in _dispatch.commands():
            assert f"  {name:<12} {_dispatch.summary(name)}" in text
    assert {"systems", "reproduce"} <= set(_dispatch.commands())
    assert all(_dispatch.summary(name) for name in _dispatch.commands())


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tweed {metadata.version('tweed')}\n"


def test_help_of_a_command_has_its_options_and_examples(capsys):
    for words in (["reproduce", "--help"], ["help", "reproduce"]):
        assert main(words) == 0
        text = capsys.readouterr().out
        assert "usage: tweed reproduce" in text
        assert "tweed reproduce --all --scale smoke --json" in text
        for option in ("--all", "--seed", "--scale", "--out", "--json"):
            assert option in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["reprodce"], "did you mean 'reproduce'"),
        (["systems", "--family", "solver"], "did you mean 'solvers'"),
        (["systems", "--status", "done"], "--status"),
        (["systems", "--famly", "core"], "--famly"),
        (["reproduce"], "--all"),
        (["reproduce", "fake-oen"], "did you mean 'fake-one'"),
        (["reproduce", "bdia"], "planned"),
        (["reproduce", "fake-one", "--all"], "one of the two"),
        (["reproduce", "fake-one", "--seed", "x"], "--seed"),
        (["reproduce", "fake-one", "--scale", "huge"], "--scale"),
        (["reproduce", "fake-one", "bdia"], "planned"),
    ],
)
def test_bad_input_is_two_with_a_message_on_stderr_and_nothing_written(recipes, capsys, words, said):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert not (recipes / "out").exists()


def test_traceback_on_request(recipes, capsys):
    assert main(["reproduce", "bdia", "--traceback"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_reproduce_prints_a_table_and_writes_the_report(recipes, capsys):
    assert main(["reproduce", "fake-one", "--seed", "7", "--scale", "smoke"]) == 0
    captured = capsys.readouterr()
    assert "working hard" in captured.err
    for word in ("the seed [m]", "<= 100", "50", "yes", "a note", "every relation holds"):
        assert word in captured.out
    folder = recipes / "out" / "fake-one"
    assert sorted(path.name for path in folder.iterdir()) == ["one.png", "report.json", "report.md"]
    assert json.loads((folder / "report.json").read_text())["seed"] == 7


def test_a_relation_that_does_not_hold_is_one(recipes, capsys):
    assert main(["reproduce", "fake-one", "--seed", "101"]) == 1
    out = capsys.readouterr().out
    assert "NO" in out
    assert "1 relation(s) do not hold" in out
    assert json.loads((recipes / "out" / "fake-one" / "report.json").read_text())["holds"] is False


def test_json_alone_is_on_stdout(recipes, capsys):
    assert main(["reproduce", "fake-two", "fake-one", "fake-two", "--seed", "7", "--out", "there", "--json"]) == 0
    captured = capsys.readouterr()
    read = json.loads(captured.out)
    assert (read["holds"], read["seed"], read["errors"]) == (True, 7, [])
    assert [report["slug"] for report in read["reports"]] == ["fake-two", "fake-one"]
    assert "working hard" in captured.err
    assert (recipes / "there" / "fake-two" / "report.json").exists()
    assert main(["reproduce", "--all", "--seed", "101", "--json"]) == 1
    read = json.loads(capsys.readouterr().out)
    assert read["holds"] is False
    assert len(read["reports"]) == 2


def test_all_runs_every_recipe_and_sums_up(recipes, capsys):
    assert main(["reproduce", "--all"]) == 0
    out = capsys.readouterr().out
    assert out.count("every relation holds") == 2
    assert "verdict" in out


def test_a_recipe_that_fails_does_not_stop_the_next(recipes, capsys, monkeypatch):
    two = recipes / "recipes" / "fake_two.py"
    two.write_text(two.read_text().replace("seed == 500", "seed < 0"))
    assert main(["reproduce", "--all", "--seed", "500", "--json"]) == 2
    captured = capsys.readouterr()
    read = json.loads(captured.out)
    assert read["holds"] is False
    assert read["errors"] == [{"slug": "fake-one", "error": "IncompatibleError: solver: does not fit"}]
    assert [report["slug"] for report in read["reports"]] == ["fake-two"]
    assert "fake-one: solver: does not fit" in captured.err


def test_errors_interrupts_and_faults_of_a_recipe(recipes, capsys):
    assert main(["reproduce", "fake-one", "--seed", "500"]) == 2
    assert "tweed: error: solver: does not fit" in capsys.readouterr().err
    assert main(["reproduce", "fake-one", "--seed", "501"]) == 70
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert main(["reproduce", "--all", "--seed", "501"]) == 70
    capsys.readouterr()
    assert main(["reproduce", "fake-one", "--seed", "502"]) == 130
    assert capsys.readouterr().err.endswith("tweed: interrupted\n")


def test_an_output_folder_that_cannot_be_made_is_bad_input(recipes, capsys):
    (recipes / "file").write_text("")
    assert main(["reproduce", "fake-one", "--out", "file"]) == 2
    assert "file" in capsys.readouterr().err


def test_systems_as_a_table_and_as_json(capsys):
    assert main(["systems"]) == 0
    out = capsys.readouterr().out
    assert all(f"│ {entry.slug} " in out for entry in catalogue())
    assert f"{len(catalogue())} systems" in out

    assert main(["systems", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert len(entries) == len(catalogue())
    keys = {"slug", "title", "year", "reference", "family", "summary", "status"}
    assert all(set(entry) == keys for entry in entries)
    assert [entry["status"] == "ready" for entry in entries] == [
        entry["slug"] in registry.available() for entry in entries
    ]


def test_systems_filters(capsys):
    assert main(["systems", "--family", "restoration", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert {entry["slug"] for entry in entries} == {"mrs", "resfusion", "residual-denoising", "speech-enhancement"}
    counts = []
    for status in ("ready", "planned"):
        assert main(["systems", "--status", status, "--json"]) == 0
        counts.append(len(json.loads(capsys.readouterr().out)))
    assert sum(counts) == len(catalogue())


def test_a_new_file_is_a_new_command(command, capsys):
    command(
        '"""Says a word.\n\nMore."""\n'
        "def run(word: str, *, times: int = 1, loud: bool = False) -> int | None:\n"
        '    """Say a word.\n\n    Args:\n        word: The word.\n        times: How often.\n    """\n'
        "    print((word.upper() if loud else word) * times)\n"
        "    return 5 if times > 2 else None\n"
    )
    assert "extra" in _dispatch.commands()
    assert "_hidden" not in _dispatch.commands()
    assert "Says a word." in _dispatch.overview()
    assert "tweed.cli.extra" not in sys.modules
    assert main(["extra", "--word", "a", "--times", "2", "--loud"]) == 0
    assert capsys.readouterr().out == "AA\n"
    assert main(["extra", "--word", "a", "--times", "3"]) == 5
    capsys.readouterr()
    assert main(["extra", "--help"]) == 0
    assert "How often." in capsys.readouterr().out


def test_a_command_with_a_broken_import_leaves_the_overview_alone(command, capsys):
    command('"""Broken."""\nimport no_such_module\ndef run() -> int:\n    return 0\n')
    assert main(["--help"]) == 0
    assert "Broken." in capsys.readouterr().out
    assert main(["extra"]) == 70


def run_process(*words, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tweed", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, **options)


def test_as_a_module_and_the_overview_imports_no_command():
    source = (
        "import sys; from tweed.cli import main; code = main(['--help']); "
        "loaded = [n for n in sys.modules if n.split('.')[0] in ('tyro', 'rich', 'matplotlib') "
        "or n in ('tweed.cli.systems', 'tweed.cli.reproduce')]; sys.exit(repr(loaded) if loaded else code)"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    done = run_process("reprodce")
    assert done.returncode == 2
    assert done.stderr.startswith("tweed: error: command: 'reprodce'")


def test_a_closed_pipe_is_quiet():
    command = f"{sys.executable} -m tweed systems --json | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[\n"
    assert done.stderr == ""
