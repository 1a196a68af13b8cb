"""`tweed train`, `info` and `sample` on a network trained for a few steps."""

import json

import numpy
import pytest

from tweed.cli import main

CONFIG = """
[data]
name = "Digits"
[network]
name = "unet"
in_channels = 1
channels = 8
multipliers = [1]
blocks = 1
groups = 4
middle_attention = false
num_classes = 10
[process]
name = "VP"
[target]
name = "V"
[optimisation]
steps = 6
batch_size = 16
drop = 0.1
precision = "no"
[logging]
save_every = 3
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = folder / "tiny.toml"
    config.write_text(CONFIG)
    assert main(["train", str(config), "--out", str(folder / "model"), "--quiet"]) == 0
    return folder / "model"


def samples(model, tmp_path, *options):
    path = tmp_path / "x.npz"
    assert main(["sample", str(model), "--out", str(path), "--steps", "3", *options]) == 0
    with numpy.load(path, allow_pickle=False) as arrays:
        return arrays["samples"], arrays["label"]


def test_training_again_resumes_and_more_steps_go_on(model, capsys):
    config = model.parent / "tiny.toml"
    assert main(["train", str(config), "--out", str(model), "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 6
    losses = (model / "losses.jsonl").read_text().splitlines()
    assert len(losses) == 6


def test_info_says_what_the_model_is(model, capsys):
    assert main(["info", str(model), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["process"]["name"] == "VP"
    assert facts["target"]["name"] == "V"
    assert facts["parameters"] > 1000
    assert facts["meta"]["steps"] == 6
    assert main(["info", str(model)]) == 0
    assert "VP" in capsys.readouterr().out


def test_samples_do_not_depend_on_the_batch_and_labels_go_in_turn(model, tmp_path):
    whole, label = samples(model, tmp_path, "--n", "7", "--seed", "3")
    parts, _ = samples(model, tmp_path, "--n", "7", "--seed", "3", "--batch", "3")
    numpy.testing.assert_allclose(whole, parts, atol=1e-4)
    assert label.tolist() == [0, 1, 2, 3, 4, 5, 6]
    late, label = samples(model, tmp_path, "--n", "2", "--seed", "3", "--index", "5", "--label", "5,6")
    numpy.testing.assert_allclose(whole[5:], late, atol=1e-4)
    assert label.tolist() == [5, 6]
    other, _ = samples(model, tmp_path, "--n", "7", "--seed", "4")
    assert numpy.abs(whole - other).max() > 0.1


def test_a_sheet_is_a_picture(model, tmp_path):
    from matplotlib.image import imread

    path = tmp_path / "sheet.png"
    assert main(["sample", str(model), "--n", "4", "--steps", "2", "--out", str(path), "--solver", "DDIM"]) == 0
    assert imread(path).shape[0] > 32


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--solver", "DPMSolvr"], "DPMSolver"),
        (["--grid", "karas"], "karras"),
        (["--label", "x"], "label"),
        (["--n", "0"], "n, batch"),
        (["--out", "x.jpg"], "out"),
        (["--steps", "0"], "steps"),
    ],
)
def test_bad_options_end_with_2_and_a_word(model, options, says, capsys):
    assert main(["sample", str(model), *options]) == 2
    assert says in capsys.readouterr().err


def test_what_is_no_model_or_no_configuration(tmp_path, capsys):
    assert main(["info", str(tmp_path)]) == 2
    assert main(["train", str(tmp_path / "none.toml")]) == 2
    assert "digits" in capsys.readouterr().err
    bad = tmp_path / "bad.toml"
    bad.write_text(CONFIG.replace("batch_size", "bach_size"))
    assert main(["train", str(bad), "--out", str(tmp_path / "x")]) == 2
    assert "batch_size" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
