"""`tweed sample` on folders of diffusers."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

sys.path.insert(0, str(Path(__file__).parents[1] / "interop"))
import pipelines as tiny

import tweed as tw
from tweed.cli import main
from tweed.interop import from_diffusers

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


def test_a_text_becomes_pictures(tmp_path, capsys):
    folder, out = tmp_path / "model", tmp_path / "made.npy"
    tiny.stable_diffusion().save_pretrained(folder)
    words = ["sample", str(folder), "--prompt", "a cat", "--negative", "rain", "--n", "3", "--batch", "2"]
    assert main([*words, "--steps", "4", "--out", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["shape"], facts["scale"]) == ([3, 3, 16, 16], 5.0)
    denoiser = from_diffusers(folder)
    cond, null = denoiser.prompt(["a cat"] * 3, "rain")
    guided = tw.guidance.ClassifierFree(denoiser, 5.0, null=null)
    with torch.no_grad():
        expected = denoiser.decode(
            tw.sample(guided, 3, solver=tw.solvers.DPMSolver(), steps=4, grid=denoiser.grid, cond=cond)
        )
    np.testing.assert_allclose(np.load(out), expected.numpy(), atol=1e-4)
    assert main([*words, "--scale", "1", "--size", "8", "12", "--steps", "2", "--out", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").exists()


def test_distilled_guidance_and_classes(tmp_path, capsys):
    tiny.flux().save_pretrained(tmp_path / "flux")
    tiny.dit().save_pretrained(tmp_path / "dit")
    out = str(tmp_path / "made.npz")
    words = ["sample", str(tmp_path / "flux"), "--prompt", "a cat", "--size", "16", "16", "--n", "1", "--steps", "2"]
    assert main([*words, "--out", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scale"] == 1.0
    assert (
        main(["sample", str(tmp_path / "dit"), "--label", "3,7", "--n", "2", "--steps", "2", "--out", out, "--json"])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["shape"] == [2, 3, 16, 16]


def test_mistakes_are_named(tmp_path, capsys):
    assert main(["sample", "glyphs", "--size", "8", "8", "--out", str(tmp_path / "a.png")]) == 2
    assert "size" in capsys.readouterr().err
    assert main(["sample", str(tmp_path / "nothing"), "--prompt", "a cat", "--out", str(tmp_path / "a.png")]) == 2
    assert "cannot be read" in capsys.readouterr().err
