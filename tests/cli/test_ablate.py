"""`tweed ablate`: what it prints where, and its exit codes."""

import json

import pytest

from tweed.cli import main
from tweed.training import held_out

CONFIG = """
[data]
name = "moons"
length = 200
[network]
name = "mlp"
dim = 2
width = 8
depth = 1
[process]
name = "RectifiedFlow"
[target]
name = "Velocity"
[optimisation]
steps = 3
batch_size = 8
precision = "no"
"""


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.setattr(held_out, "_EVALUATIONS", 32)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(CONFIG)
    return ["ablate", "mine.toml", "--vary", "target=velocity,k", "--vary", "optimisation.lr=1e-3,1e-2"]


def test_a_grid_is_trained_told_of_and_written(words, tmp_path, capsys):
    assert main([*words, "--seeds", "2"]) == 0
    shown = capsys.readouterr()
    for name in ("target=Velocity, optimisation.lr=0.001", "target=LearnedK, optimisation.lr=0.01"):
        assert name in shown.out
    assert "held-out loss" in shown.out
    assert "relative to the first" in shown.out
    assert "seed 1 (8 of 8)" in shown.err
    folder = tmp_path / "runs" / "ablate-mine"
    assert f"written to {folder.relative_to(tmp_path)}" in shown.err
    assert {path.name for path in folder.iterdir()} == {"runs", "table.md", "table.json", "curves.png"}
    assert len(list((folder / "runs").iterdir())) == 4
    # Again, as JSON: nothing is trained, and the table is the same.
    assert main([*words, "--seeds", "2", "--json", "--quiet"]) == 0
    again = capsys.readouterr()
    assert again.err == ""
    assert json.loads(again.out) == json.loads((folder / "table.json").read_text())


def test_mistakes_end_in_a_line_and_2(words, tmp_path, capsys):
    for wrong, message in (
        (["--vary", "lr=1"], "did you mean 'optimisation.lr'"),
        (["--vary", "target=nois", "--out", "elsewhere"], "target was given twice"),
        (["--vary", "network.depth=few"], "network.depth=few"),
        (["--seeds", "0"], "seeds: 0 was given"),
    ):
        assert main([*words, *wrong]) == 2
        shown = capsys.readouterr()
        assert message in shown.err
        assert shown.out == ""
    assert main(["ablate", "nothing.toml"]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert main(["ablate", "text"]) == 2
    assert "trains a process of tokens" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_help_teaches(capsys):
    assert main(["ablate", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in ("target=noise,velocity,data,k", "squared error of eps - x_0", "no run has trained on", "examples:"):
        assert part in text


def test_an_interrupt_ends_in_130_and_goes_on(words, monkeypatch, capsys):
    from tweed.training import ablation

    looked, look = [], ablation._Curve.look

    def stop(self, done, denoiser, loss):
        look(self, done, denoiser, loss)
        looked.append(done)
        if len(looked) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(ablation._Curve, "look", stop)
    assert main([*words, "--seeds", "1", "--quiet"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert main([*words, "--seeds", "1", "--quiet"]) == 0
    assert len(looked) == 5 + 3 + 3 + 3  # the run that was stopped before its first checkpoint, and the two after it
