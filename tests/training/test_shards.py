"""Shards of samples: the same files whatever the processes, whole or absent, resumed, and no more memory than a batch."""

import io
import json
import os
import subprocess
import sys
import tarfile

import numpy
import pytest
import torch

from tweed.core import random
from tweed.errors import InputError
from tweed.training.shards import PLAN, ShardPlan, missing_shards, place_in_world, write_shards


def draw(first, count):
    x = random.normal((count, 3, 4, 4), 7, index=first).clamp(-1, 1)
    return {"x": x, "label": (first + torch.arange(count)) % 5}


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("format", ["tar", "npz"])
@pytest.mark.parametrize("world", [2, 3, 7])
def test_the_files_are_the_same_whatever_the_processes(tmp_path, format, world):
    plan = ShardPlan(103, 20, format)
    one = write_shards(draw, plan, tmp_path / "one", batch=8)
    assert (one.written, one.samples, one.kept) == (6, 103, 0)
    parts = [write_shards(draw, plan, tmp_path / "more", batch=8, rank=r, world=world) for r in range(world)]
    assert sum(part.samples for part in parts) == 103
    assert contents(tmp_path / "one") == contents(tmp_path / "more")


def test_an_interrupted_run_keeps_whole_shards_and_goes_on(tmp_path):
    def breaks(first, count):
        if first >= 48:
            raise KeyboardInterrupt
        return draw(first, count)

    plan = ShardPlan(103, 20)
    with pytest.raises(KeyboardInterrupt):
        write_shards(breaks, plan, tmp_path / "a", batch=8)
    assert sorted(contents(tmp_path / "a")) == ["000000.tar", "000001.tar", PLAN]
    assert missing_shards(tmp_path / "a") == [2, 3, 4, 5]
    seen = []

    def noted(first, count):
        seen.append(first)
        return draw(first, count)

    rest = write_shards(noted, plan, tmp_path / "a", batch=8)
    assert (rest.written, rest.kept) == (4, 2)
    assert min(seen) == 40
    write_shards(draw, plan, tmp_path / "b", batch=8)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert missing_shards(tmp_path / "a") == []


def test_no_more_is_drawn_than_a_batch_and_none_twice(tmp_path):
    seen = []

    def noted(first, count):
        assert count <= 8
        seen.extend(range(first, first + count))
        return draw(first, count)

    write_shards(noted, ShardPlan(103, 20), tmp_path, batch=8)
    assert seen == list(range(103))


def test_members_are_pictures_and_conditions(tmp_path):
    from PIL import Image

    write_shards(draw, ShardPlan(5, 10), tmp_path)
    with tarfile.open(tmp_path / "000000.tar") as tar:
        names = tar.getnames()
        assert names[:4] == ["000000000.png", "000000000.json", "000000001.png", "000000001.json"]
        image = Image.open(io.BytesIO(tar.extractfile("000000003.png").read()))
        told = json.loads(tar.extractfile("000000003.json").read())
    truth = draw(3, 1)["x"][0]
    back = torch.from_numpy(numpy.array(image)).movedim(-1, 0).float() / 127.5 - 1.0
    assert float((back - truth).abs().max()) < 1 / 127
    assert told == {"label": 3}


def test_what_is_no_picture_is_an_array(tmp_path):
    def vectors(first, count):
        return {"x": random.normal((count, 6), 3, index=first)}

    write_shards(vectors, ShardPlan(4, 10), tmp_path / "tar")
    with tarfile.open(tmp_path / "tar" / "000000.tar") as tar:
        assert tar.getnames() == [f"{i:09d}.npy" for i in range(4)]
        row = numpy.load(io.BytesIO(tar.extractfile("000000002.npy").read()), allow_pickle=False)
    numpy.testing.assert_array_equal(row, vectors(2, 1)["x"][0].numpy())
    write_shards(draw, ShardPlan(30, 20, "npz"), tmp_path / "npz", batch=8)
    with numpy.load(tmp_path / "npz" / "000001.npz", allow_pickle=False) as held:
        assert held["samples"].shape == (10, 3, 4, 4)
        assert held["label"].tolist() == [i % 5 for i in range(20, 30)]


def test_progress_tells_the_rate_and_what_is_left(tmp_path):
    said = []
    write_shards(draw, ShardPlan(40, 10), tmp_path, batch=5, tell=lambda text, share: said.append((text, share)))
    assert said[0] == ("0 of 40", 0.0)
    assert said[-1][0].startswith("40 of 40, ")
    assert said[-1][1] == 1.0


def test_another_plan_in_the_same_folder_is_refused(tmp_path):
    write_shards(draw, ShardPlan(20, 10, told={"seed": 1}), tmp_path)
    with pytest.raises(InputError, match="holds samples of n 20; 30 was given"):
        write_shards(draw, ShardPlan(30, 10, told={"seed": 1}), tmp_path)
    with pytest.raises(InputError, match="told"):
        write_shards(draw, ShardPlan(20, 10, told={"seed": 2}), tmp_path)
    with pytest.raises(InputError, match=r"has no shards\.json"):
        missing_shards(tmp_path / "nowhere")


def test_mistakes_are_named(tmp_path, monkeypatch):
    for wrong in ({"n": 0}, {"n": 5, "size": 0}, {"n": 5, "format": "zip"}):
        with pytest.raises(InputError):
            ShardPlan(**wrong)
    with pytest.raises(InputError, match="expected a rank below"):
        write_shards(draw, ShardPlan(5), tmp_path, rank=2, world=2)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        write_shards(draw, ShardPlan(5), tmp_path / "file")
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    assert place_in_world() == (0, 1, 0)
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert place_in_world() == (3, 8, 0)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert place_in_world() == (1, 2, 1)
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(InputError, match="RANK, WORLD_SIZE"):
        place_in_world()


def test_two_processes_of_the_command_write_what_one_does(tmp_path):
    words = [sys.executable, "-m", "tweed", "sample", "glyphs", "--n", "11", "--steps", "2", "--shard-size", "4"]

    def start(folder, **environment):
        plain = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
        return subprocess.Popen(
            [*words, "--out", str(tmp_path / folder)],
            env={**plain, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    several = [start("two", RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    for process in [*several, start("one")]:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors.decode()
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    with tarfile.open(tmp_path / "one" / "000002.tar") as tar:
        assert json.loads(tar.extractfile("000000010.json").read()) == {"label": 10}
    refused = subprocess.run(
        [*words, "--out", str(tmp_path / "x.png")],
        env={**os.environ, "RANK": "0", "WORLD_SIZE": "2"},
        capture_output=True,
        check=False,
    )
    assert refused.returncode == 2
    assert b"was given to 2 processes; expected a folder" in refused.stderr
