"""`tweed encode`: the latents of pictures, as the autoencoder gives them, ready to train on."""

import json

import numpy
import pytest
import torch

from tweed.cli import main
from tweed.data import ImageFolder, WebDataset

pytest.importorskip("diffusers")
Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[1] / "interop"))
    import pipelines

    root = tmp_path_factory.mktemp("encode")
    pipelines.dit().save_pretrained(root / "model")
    for i in range(5):
        path = root / "pictures" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draws = numpy.random.default_rng(i)
        Image.fromarray(draws.integers(0, 256, (18, 16, 3), dtype=numpy.uint8)).save(path)
    return root


def encode(root, out, capsys, *more):
    words = ["encode", str(root / "pictures"), "--model", str(root / "model"), "--size", "16", "--out", str(out)]
    code = main([*words, "--batch", "2", "--shard-size", "3", "--json", *more])
    said = capsys.readouterr()
    return code, json.loads(said.out) if code == 0 else said.err


def test_latents_are_those_of_the_autoencoder(places, tmp_path, capsys):
    from tweed.interop import from_diffusers

    code, facts = encode(places, tmp_path / "latents", capsys)
    assert code == 0
    assert (facts["n"], facts["written"], facts["broken"]) == (5, 2, {})
    held = WebDataset(str(tmp_path / "latents")).batch(torch.arange(5))
    pictures = ImageFolder(str(places / "pictures"), 16).batch(torch.arange(5))
    denoiser = from_diffusers(str(places / "model"))
    torch.testing.assert_close(held["x"], denoiser.encode(pictures["x"]), rtol=1e-4, atol=1e-5)
    assert torch.equal(held["label"], pictures["label"])
    code, facts = encode(places, tmp_path / "latents", capsys)
    assert (facts["written"], facts["kept"]) == (0, 2)


def test_mistakes_end_in_two(places, tmp_path, capsys):
    code, error = encode(places, tmp_path / "a", capsys, "--size", "0")
    assert code == 2
    assert "size, channels: 0" in error
    assert main(["encode", str(tmp_path / "none"), "--model", str(places / "model"), "--out", str(tmp_path / "b")]) == 2
    assert "is no folder" in capsys.readouterr().err
