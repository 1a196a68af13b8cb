"""Records from outside: pictures, tars, `datasets`; the same by any way, in place, and what is broken is named."""

import io
import pickle
import tarfile
import warnings

import numpy
import pytest
import torch

import tweed as tw
from tweed.core import random
from tweed.data import HubDataset, ImageFolder, WebDataset
from tweed.data.records import picture
from tweed.errors import CheckpointError, InputError
from tweed.training.shards import ShardPlan, write_shards

Image = pytest.importorskip("PIL.Image")


def pixels(i, width=20, height=14):
    draws = numpy.random.default_rng(i)
    return draws.integers(0, 256, (height, width, 3), dtype=numpy.uint8)


def png(i, **size):
    held = io.BytesIO()
    Image.fromarray(pixels(i, **size)).save(held, format="PNG")
    return held.getvalue()


@pytest.fixture
def folder(tmp_path):
    for i in range(6):
        path = tmp_path / "pictures" / ["cats", "dogs"][i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))
    return tmp_path / "pictures"


def test_a_square_picture_of_the_size_is_itself():
    x = picture(png(1, width=16, height=16), 16, 3)
    torch.testing.assert_close((x + 1) * 127.5, torch.from_numpy(pixels(1, 16, 16)).movedim(-1, 0).float())


def test_the_middle_square_is_taken():
    wide = numpy.zeros((8, 24, 3), dtype=numpy.uint8)
    wide[:, 8:16] = 255
    held = io.BytesIO()
    Image.fromarray(wide).save(held, format="PNG")
    assert torch.equal(picture(held.getvalue(), 8, 3), torch.ones(3, 8, 8))
    assert picture(held.getvalue(), 8, 1).shape == (1, 8, 8)
    assert picture(held.getvalue(), 5, 3).shape == (3, 5, 5)
    assert picture(png(1, width=7, height=301), 4, 3).shape == (3, 4, 4)


def test_folders_are_classes(folder):
    data = ImageFolder(str(folder), 8)
    assert (len(data), data.shape, data.num_classes, data.characters) == (6, (3, 8, 8), 2, ["cats", "dogs"])
    batch = data.batch(torch.tensor([0, 3, 5]))
    assert batch["label"].tolist() == [0, 1, 1]
    torch.testing.assert_close(batch["x"][1], picture(png(1), 8, 3))
    flat = ImageFolder(str(folder / "cats"), 8)
    assert flat.conditions == ()
    assert data.batch(torch.zeros(0, dtype=torch.long))["x"].shape == (0, 3, 8, 8)


@pytest.mark.parametrize("workers", [1, 4])
def test_a_broken_record_is_named_once_and_its_neighbour_takes_its_place(folder, workers):
    bad = folder / "cats" / "2.png"
    bad.write_bytes(bad.read_bytes()[:60])
    data = ImageFolder(str(folder), 8, workers=workers)
    with pytest.warns(UserWarning, match=r"2\.png: it cannot be read, and is skipped"):
        x = data.batch(torch.tensor([0, 1, 2]))["x"]
    assert torch.equal(x[1], x[2])
    assert list(data.broken) == [str(bad)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(data.batch(torch.tensor([1]))["x"][0], x[1])


def test_where_nothing_can_be_read_it_says_so(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(InputError, match="none of 3 records can be read"):
        ImageFolder(str(tmp_path), 8).batch(torch.tensor([1]))


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_tars_hold_what_the_folder_does(tmp_path, folder):
    for tar in range(2):
        members = []
        for i in range(3 * tar, 3 * tar + 3):
            members += [(f"a/{i:03d}.png", png(i)), (f"a/{i:03d}.cls", str(i % 2).encode())]
        write_tar(tmp_path / f"{tar}.tar", members)
    data = WebDataset(str(tmp_path), 8, num_classes=2)
    assert (len(data), data.conditions, data.shape) == (6, ("label",), (3, 8, 8))
    batch = data.batch(torch.tensor([4, 1]))
    torch.testing.assert_close(batch["x"][0], picture(png(4), 8, 3))
    assert batch["label"].tolist() == [0, 1]
    assert torch.equal(pickle.loads(pickle.dumps(data)).batch(torch.tensor([4, 1]))["x"], batch["x"])
    alone = WebDataset(str(tmp_path / "1.tar"), 8)
    assert len(alone) == 3


def test_arrays_and_their_conditions_come_back_exactly(tmp_path):
    def draw(first, count):
        x = 3.0 * random.normal((count, 3, 4, 4), 1, index=first)
        return {"x": x, "label": (first + torch.arange(count)) % 4, "vector": x.flatten(1)[:, :2]}

    write_shards(draw, ShardPlan(11, 4, arrays=True), tmp_path)
    data = WebDataset(str(tmp_path))
    batch, truth = data.batch(torch.arange(11)), draw(0, 11)
    assert torch.equal(batch["x"], truth["x"])
    assert torch.equal(batch["label"], truth["label"])
    torch.testing.assert_close(batch["vector"], truth["vector"])
    assert data.conditions == ("label", "vector")


def test_a_broken_member_and_a_broken_tar(tmp_path):
    held = io.BytesIO()
    numpy.save(held, numpy.zeros((2, 2), numpy.float32))
    objects = io.BytesIO()
    numpy.save(objects, numpy.array([{"a": 1}]), allow_pickle=True)
    members = [("0.npy", objects.getvalue()), ("1.npy", held.getvalue()), ("2.npy", b"\x00" * 80), ("3.txt", b"words")]
    write_tar(tmp_path / "a.tar", members)
    data = WebDataset(str(tmp_path / "a.tar"))
    with pytest.warns(UserWarning, match="2.npy"):
        x = data.batch(torch.arange(3))["x"]
    assert torch.equal(x, torch.zeros(3, 2, 2))
    # A pickle within an array is a broken record, not one that is opened.
    assert len(data.broken) == 2
    assert len(data) == 3
    (tmp_path / "b.tar").write_bytes(b"not a tar at all" * 100)
    with pytest.raises(CheckpointError, match=r"b\.tar: it is no whole tar"):
        WebDataset(str(tmp_path / "b.tar"))


def test_a_data_set_of_the_hub(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = {"image": [Image.fromarray(pixels(i)) for i in range(4)], "label": [0, 1, 1, 0]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])})
    held = datasets.Dataset.from_dict(table, features=features)
    data = HubDataset(data=held, size=8)
    assert (len(data), data.num_classes, data.characters) == (4, 2, ["x", "y"])
    batch = data.batch(torch.tensor([2, 0]))
    torch.testing.assert_close(batch["x"][0], picture(png(2), 8, 3))
    assert batch["label"].tolist() == [1, 0]
    with pytest.raises(InputError, match="it has no column 'class'"):
        HubDataset(data=held, label="class")


def test_a_model_is_trained_on_a_folder_by_configuration(folder, tmp_path):
    config = tw.training.TrainConfig.from_dict(
        {
            "data": {"name": "ImageFolder", "folder": str(folder), "size": 8},
            "network": {"name": "unet", "channels": 8, "multipliers": [1], "groups": 4, "num_classes": 2},
            "process": "RectifiedFlow",
            "target": "Velocity",
            "optimisation": {"steps": 2, "batch_size": 3},
        }
    )
    result = tw.training.train(config, tmp_path / "run", progress=False, device="cpu")
    assert len(result.losses) == 2
    assert tw.load(tmp_path / "run").meta["classes"] == ["cats", "dogs"]


def test_mistakes_are_named(tmp_path, folder):
    write_tar(tmp_path / "p.tar", [("0.png", png(0))])
    (tmp_path / "empty").mkdir()
    cases = [
        (lambda: ImageFolder(str(tmp_path / "none")), "is no folder"),
        (lambda: ImageFolder(str(tmp_path / "empty")), "holds no pictures"),
        (lambda: ImageFolder(str(folder), 0), "size, channels: 0"),
        (lambda: ImageFolder(str(folder), channels=2), "1 or 3 channels"),
        (lambda: ImageFolder(str(folder), workers=0), "workers: 0"),
        (lambda: WebDataset(str(tmp_path / "empty")), "expected a tar"),
        (lambda: WebDataset(str(tmp_path / "p.tar")), "size: nothing was given"),
        (lambda: HubDataset(), "name: nothing was given"),
    ]
    for call, words in cases:
        with pytest.raises(InputError, match=words):
            call()
