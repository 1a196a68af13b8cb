"""`tweed restore`: files in, files out, and what cannot be restored is named."""

import json

import numpy as np
import pytest
import torch

from tweed.cli import main
from tweed.data import Glyphs
from tweed.inverse.operators import Blur, Radon, SuperResolution, gaussian_kernel, parallel_angles
from tweed.training.sheets import write_sheet

EVENT = (1, 32, 32)


@pytest.fixture(scope="module")
def letter():
    return Glyphs().batch(torch.tensor([700]))["x"].double()


def restored(tmp_path, capsys, *words):
    code = main(["restore", *words, "--out", str(tmp_path / "out"), "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    return json.loads(said.out), np.load(tmp_path / "out" / "restored.npy")


def test_a_picture_is_degraded_and_restored(tmp_path, capsys, letter):
    from matplotlib.image import imsave

    imsave(tmp_path / "letter.png", (0.5 * letter[0, 0] + 0.5).numpy(), cmap="gray")
    facts, images = restored(
        tmp_path, capsys, str(tmp_path / "letter.png"), "--task", "inpaint", "--degrade", "--method", "ddrm", "--steps", "10",
        "--n", "2",
    )  # fmt: skip
    assert images.shape == (2, *EVENT)
    assert facts["psnr"] > 18.0
    assert facts["psnr_of_mean"] >= facts["psnr"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"restored.npy", "restored.png", "comparison.png"}


@pytest.mark.parametrize(("task", "options"), [("sr", ["--factor", "2"]), ("deblur", ["--blur", "1.0"]), ("ct", [])])
def test_measurements_from_files(tmp_path, capsys, letter, task, options):
    operators = {
        "sr": SuperResolution(EVENT, 2),
        "deblur": Blur(EVENT, gaussian_kernel(1.0)),
        "ct": Radon(EVENT, parallel_angles(20)),
    }
    # A sinogram is one of absorption in [0, 1].
    seen = operators[task](0.5 * letter + 0.5 if task == "ct" else letter)
    np.save(tmp_path / "seen.npy", seen[0, 0].numpy())
    words = [str(tmp_path / "seen.npy"), "--task", task, "--method", "diffpir", "--steps", "10", *options]
    facts, images = restored(tmp_path, capsys, *words)
    error = (torch.from_numpy(images[0]).double() - letter[0]).square().mean().sqrt().item()
    assert error < 0.35
    assert "psnr" not in facts


def test_what_is_hidden_may_be_nan_or_transparent(tmp_path, capsys, letter):
    from matplotlib.image import imsave

    hidden = letter[0, 0].numpy().copy()
    hidden[8:14, 8:14] = np.nan
    np.save(tmp_path / "hole.npy", hidden)
    words = ["--task", "inpaint", "--method", "ddrm", "--steps", "6", "--noise", "0"]
    _, images = restored(tmp_path, capsys, str(tmp_path / "hole.npy"), *words)
    known = ~np.isnan(hidden)
    assert np.abs(images[0, 0] - hidden)[known].max() < 0.05
    pixels = np.ones((32, 32, 4))
    pixels[..., :3] = (0.5 * letter[0, 0] + 0.5).numpy()[..., None]
    pixels[8:14, 8:14, 3] = 0.0
    imsave(tmp_path / "hole.png", pixels)
    _, again = restored(tmp_path, capsys, str(tmp_path / "hole.png"), *words)
    assert np.abs(again - images).max() < 0.2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.png", "--task", "sr"], "no file"),
        (["small.npy", "--task", "deblur"], "shape"),
        (["small.npy", "--task", "inpaint"], "mask"),
        (["small.npy", "--task", "sr", "--n", "0"], "n:"),
        (["small.npy", "--task", "sr", "--label", "nobody"], "label"),
        (["small.npy", "--task", "sr", "--scale", "2"], "scale"),
        (["small.npy", "--task", "sr", "--factor", "5"], "factor"),
        (["words.txt", "--task", "sr"], "input"),
        (["words.png", "--task", "sr"], "input"),
        (["pickled.npy", "--task", "sr"], "input"),
        (["complex.npy", "--task", "deblur"], "complex"),
    ],
)
def test_what_cannot_be_restored_is_named(tmp_path, capsys, words, message):
    np.save(tmp_path / "small.npy", np.zeros((16, 16)))
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "complex.npy", np.zeros((32, 32), dtype=complex))
    (tmp_path / "words.txt").write_text("words")
    (tmp_path / "words.png").write_text("words")
    write_sheet(torch.zeros(1, 1, 8, 8), tmp_path / "sheet.png")
    code = main(["restore", str(tmp_path / words[0]), *words[1:], "--out", str(tmp_path / "out")])
    assert code == 2
    assert message in capsys.readouterr().err


def test_a_recording_keeps_its_rate_channels_and_length(tmp_path, capsys):
    soundfile = pytest.importorskip("soundfile", reason="needs tweed[audio]")
    t = np.arange(22050) / 22050.0
    voice = sum(np.sin(2 * np.pi * 140.0 * k * t) / k for k in range(1, 20)) * (0.5 + 0.5 * np.sin(9.0 * t))
    noise = np.random.default_rng(0).standard_normal((2, len(t)))
    soundfile.write(tmp_path / "noisy.wav", (0.1 * voice + 0.05 * noise).T, 22050)
    words = [str(tmp_path / "noisy.wav"), "--task", "denoise-speech", "--steps", "4"]
    assert main(["restore", *words, "--out", str(tmp_path / "out"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rate"], facts["channels"]) == (22050, 2)
    restored, rate = soundfile.read(tmp_path / "out" / "restored.wav")
    assert (restored.shape, rate) == ((len(t), 2), 22050)
    assert np.abs(restored).max() > 0.01
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"restored.wav", "spectrograms.png"}
    soundfile.write(tmp_path / "click.wav", 0.1 * noise[0, :60], 16000)
    assert main(["restore", str(tmp_path / "click.wav"), *words[1:], "--out", str(tmp_path / "click")]) == 0
    assert len(soundfile.read(tmp_path / "click" / "restored.wav")[0]) == 60
    soundfile.write(tmp_path / "empty.wav", noise[0, :0], 16000)
    assert main(["restore", str(tmp_path / "empty.wav"), *words[1:], "--out", str(tmp_path / "out")]) == 2
    assert "no samples" in capsys.readouterr().err
    (tmp_path / "words.wav").write_text("words")
    assert main(["restore", str(tmp_path / "words.wav"), *words[1:], "--out", str(tmp_path / "out")]) == 2
    assert "words.wav" in capsys.readouterr().err
