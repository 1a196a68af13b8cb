"""`tweed grid`: a grid is found, written, kept with a model, and used by `tweed sample`."""

import json

import pytest

import tweed as tw
from tweed.cli import main
from tweed.solvers import FittedGrid, kept_grids


@pytest.fixture
def folder(tmp_path):
    network = tw.nets.build({"name": "mlp", "dim": 2, "width": 8}, 1)
    model = tw.NetworkDenoiser(network, tw.processes.VP(), tw.targets.Noise(), event=(2,))
    return str(tw.save(model, tmp_path / "model"))


def test_it_is_found_written_kept_and_used(folder, tmp_path, capsys):
    out = tmp_path / "grid.json"
    words = ["grid", folder, "--solver", "DPMSolver", "--steps", "4", "--starts", "4", "--tries", "2"]
    assert main([*words, "--keep", "--out", str(out), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    found = FittedGrid.from_dict(json.loads(out.read_text()))
    assert shown["log_snr"] == list(found.log_snr)
    assert found.error <= found.baseline
    assert kept_grids(tw.load(folder)) == [found]
    samples = ["sample", folder, "--n", "3", "--solver", "DPMSolver", "--steps", "4", "--out"]
    for k, grid in enumerate(("fitted", str(out))):
        assert main([*samples, str(tmp_path / f"{k}.npz"), "--grid", grid]) == 0
    assert (tmp_path / "0.npz").read_bytes()[-200:] == (tmp_path / "1.npz").read_bytes()[-200:]


def test_bad_input(folder, tmp_path, capsys):
    assert main(["grid", folder, "--steps", "1", "--out", str(tmp_path / "g.json")]) == 2
    assert "steps" in capsys.readouterr().err
    assert main(["grid", "glyphs", "--keep"]) == 2
    assert "keep" in capsys.readouterr().err
    assert main(["grid", folder, "--out", str(tmp_path / "g.txt")]) == 2
    assert main(["sample", folder, "--solver", "DDIM", "--grid", "fitted", "--out", str(tmp_path / "x.npz")]) == 2
    assert "no grid is kept" in capsys.readouterr().err
    assert main(["sample", folder, "--grid", "nothing", "--out", str(tmp_path / "x.npz")]) == 2
    assert not (tmp_path / "x.npz").exists()
