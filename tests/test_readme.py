"""The README's Python lines run as they stand."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_the_lines_run_and_the_inversion_returns(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 1
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(blocks[0], str(README), "exec"), names)
    assert (tmp_path / "characters.png").stat().st_size > 1000
    # DDIM is its own inverse up to its error: far closer than two characters are to each other.
    distance = (names["images"] - names["again"]).square().mean().sqrt()
    other = (names["images"] - names["images"].roll(1, 0)).square().mean().sqrt()
    assert isinstance(distance, torch.Tensor)
    assert distance < 0.5 * other
