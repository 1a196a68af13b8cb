"""Records from outside, decoded when they are asked for: folders of pictures, WebDataset tars, Hugging Face `datasets`.

All are addressed by index, like every data set here, so that shuffling, sharding and resuming stay a matter of indices, and
nothing is held in memory but the list of what there is. A record that cannot be read is named in a warning, counted, and
replaced by the next one that can, the same one every time.
"""

import io
import json
import os
import tarfile
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tweed.data.dataset import check_indices, one
from tweed.errors import CheckpointError, InputError, MissingPackageError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Endings of files that are read as pictures."""


def picture(content: bytes | Any, size: int, channels: int) -> Float[Tensor, "c size size"]:
    """A picture, from the bytes of its file or as PIL has it, in [-1, 1].

    Its shorter side is brought to `size` by area-aware bicubic resampling, and the middle square is taken.

    Raises:
        OSError, ValueError: PIL cannot read it.
    """
    from PIL import Image

    image = Image.open(io.BytesIO(content)) if isinstance(content, bytes) else content
    image = image.convert("L" if channels == 1 else "RGB")
    width, height = image.size
    scale = size / min(width, height)
    if scale != 1.0:
        image = image.resize(
            (max(round(width * scale), size), max(round(height * scale), size)), Image.Resampling.BICUBIC
        )
    left, top = (image.width - size) // 2, (image.height - size) // 2
    pixels = numpy.array(image.crop((left, top, left + size, top + size)))
    x = torch.from_numpy(pixels).float() * (2.0 / 255.0) - 1.0
    return x[None] if channels == 1 else x.movedim(-1, 0).contiguous()


class Records(ABC):
    """What the three sources share. Subclasses give `read` and `name`.

    Args:
        length: how many records there are.
        shape: of a sample.
        conditions: names of what a record has besides `x`.
        num_classes: how many values `label` takes, where there is one.
        workers: threads that decode the records of a batch.

    Attributes:
        broken: the names of the records that could not be read so far, and why.
    """

    def __init__(
        self, length: int, shape: Sequence[int], conditions: Sequence[str], num_classes: int | None, workers: int
    ):
        if workers < 1:
            raise InputError(f"workers: {workers} was given; expected at least one thread")
        self._length, self.workers = length, workers
        self.shape, self.conditions, self.num_classes = tuple(shape), tuple(conditions), num_classes
        self.broken: dict[str, str] = {}

    @abstractmethod
    def name(self, i: int) -> str:
        """How messages call record `i`."""

    @abstractmethod
    def read(self, i: int) -> dict[str, Any]:
        """Record `i`: `x` and its conditions. Whatever it raises makes the record a broken one."""

    def __len__(self) -> int:
        return self._length

    def batch(self, indices: Int[Tensor, " n"]) -> dict[str, Tensor]:
        places = check_indices(indices, self._length).tolist()
        if self.workers > 1 and len(places) > 1:
            with ThreadPoolExecutor(self.workers) as pool:
                rows = list(pool.map(self._readable, places))
        else:
            rows = [self._readable(i) for i in places]
        x = torch.stack([row["x"] for row in rows]) if rows else torch.zeros(0, *self.shape)
        told = {name: torch.as_tensor([row[name] for row in rows]) for name in self.conditions}
        return {"x": x, **told}

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return one(self, i)

    def _readable(self, i: int) -> dict[str, Any]:
        for step in range(self._length):
            place = (i + step) % self._length
            try:
                row = self.read(place)
                if tuple(row["x"].shape) != self.shape:
                    raise ValueError(f"its shape is {tuple(row['x'].shape)}; expected {self.shape}")
                missing = [name for name in self.conditions if name not in row]
                if missing:
                    raise ValueError(f"it has no {missing[0]!r}")
                return row
            except Exception as error:  # a foreign file fails in any way it likes
                name = self.name(place)
                if name not in self.broken:
                    self.broken[name] = f"{type(error).__name__}: {error}"
                    warnings.warn(f"{name}: it cannot be read, and is skipped ({self.broken[name]})", stacklevel=2)
        raise InputError(
            f"data: none of {self._length} records can be read; the first: {next(iter(self.broken.items()))}"
        )


class ImageFolder(Records):
    """The pictures of a folder and of those in it, `x` (channels, size, size) in [-1, 1].

    Where all lie in folders of the folder, the first folder on a picture's way is its class: `label`, in alphabetical order
    (`characters` has the names).

    Args:
        folder: where they are.
        size: of a side, in pixels.
        channels: 3, or 1 for grey.
        workers: threads that decode.

    Raises:
        InputError: there is no such folder, or no picture in it.
    """

    def __init__(self, folder: str, size: int = 64, channels: int = 3, workers: int = 4):
        _check(size, channels)
        root = Path(folder).expanduser()
        if not root.is_dir():
            raise InputError(f"folder: {root} is no folder; expected one with pictures in it")
        self._paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in PICTURES)
        if not self._paths:
            raise InputError(f"folder: {root} holds no pictures ({', '.join(PICTURES)})")
        tops = [path.relative_to(root).parts[0] if path.parent != root else "" for path in self._paths]
        self.characters = sorted(set(tops)) if all(tops) else None
        self._labels = None if self.characters is None else [self.characters.index(top) for top in tops]
        self._size, self._channels = size, channels
        told = () if self._labels is None else ("label",)
        classes = None if self.characters is None else len(self.characters)
        super().__init__(len(self._paths), (channels, size, size), told, classes, workers)

    def name(self, i: int) -> str:
        return str(self._paths[i])

    def read(self, i: int) -> dict[str, Any]:
        row: dict[str, Any] = {"x": picture(self._paths[i].read_bytes(), self._size, self._channels)}
        return row if self._labels is None else {**row, "label": self._labels[i]}


class _Member(NamedTuple):
    key: str
    tar: int
    offset: int
    size: int
    kind: str
    told: tuple[int, int] | None  # where its .json or .cls is
    told_kind: str


class WebDataset(Records):
    """Tars of records, as WebDataset and `tweed sample --out FOLDER` write them; what `tweed encode` leaves too.

    A record is the members of one key: a picture (resized to `size`) or an `.npy` array (as it is), and a `.json` with
    conditions, or a `.cls` with the number of a class. The tars' directories are read once; records are read in place.

    Args:
        tars: a folder of tars, or one tar.
        size: of a side, in pixels; for pictures alone.
        channels: 3, or 1 for grey.
        num_classes: how many values `label` takes, where records have one.
        workers: threads that decode.

    Raises:
        InputError: there are no tars, or no records in them; or pictures without a `size`.
        CheckpointError: a tar is damaged.
    """

    def __init__(
        self,
        tars: str,
        size: int | None = None,
        channels: int = 3,
        num_classes: int | None = None,
        workers: int = 4,
    ):
        root = Path(tars).expanduser()
        self._paths = sorted(root.glob("*.tar")) if root.is_dir() else [root]
        if not self._paths or not self._paths[0].is_file():
            raise InputError(f"tars: {root} was given; expected a tar, or a folder of some")
        self._members = [member for at, path in enumerate(self._paths) for member in _directory(path, at)]
        if not self._members:
            raise InputError(f"tars: {root} holds no records (pictures or .npy)")
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()
        if any(member.kind != ".npy" for member in self._members):
            if size is None:
                raise InputError("size: nothing was given; expected the side of the pictures, in pixels")
            _check(size, channels)
        self._size, self._channels = size or 0, channels
        self.broken = {}
        first = self._first()
        told = tuple(name for name in first if name != "x")
        broken = self.broken
        super().__init__(len(self._members), tuple(first["x"].shape), told, num_classes, workers)
        self.broken = broken

    def _first(self) -> dict[str, Any]:
        for i in range(len(self._members)):
            try:
                return self.read(i)
            except Exception as error:
                self.broken[self.name(i)] = f"{type(error).__name__}: {error}"
        raise InputError(f"tars: none of {len(self._members)} records can be read: {next(iter(self.broken.items()))}")

    def name(self, i: int) -> str:
        member = self._members[i]
        return f"{self._paths[member.tar]}: {member.key}{member.kind}"

    def read(self, i: int) -> dict[str, Any]:
        member = self._members[i]
        content = self._bytes(member.tar, member.offset, member.size)
        if member.kind == ".npy":
            x = torch.from_numpy(numpy.load(io.BytesIO(content), allow_pickle=False)).float()
        else:
            x = picture(content, self._size, self._channels)
        return {"x": x, **self._told(member)}

    def _told(self, member: _Member) -> dict[str, Any]:
        if member.told is None:
            return {}
        content = self._bytes(member.tar, *member.told)
        if member.told_kind == ".cls":
            return {"label": int(content)}
        table = json.loads(content)
        numbers = {name: value for name, value in table.items() if _numeric(value)}
        return numbers

    def _bytes(self, tar: int, offset: int, size: int) -> bytes:
        with self._lock:
            file = self._files.get(tar)
            if file is None:
                file = self._files[tar] = os.open(self._paths[tar], os.O_RDONLY)
        content = os.pread(file, size, offset)
        if len(content) < size:
            raise ValueError("the tar ends within it")
        return content

    def __del__(self):
        for file in getattr(self, "_files", {}).values():
            os.close(file)

    def __getstate__(self) -> dict[str, Any]:
        # Open files stay where they were opened.
        return {**self.__dict__, "_files": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in {**state, "_lock": threading.Lock()}.items():
            setattr(self, name, value)


class HubDataset(Records):
    """A data set of the Hugging Face library `datasets`: pictures, and the column of their classes where it has one.

    Args:
        name: on the Hub, or a folder that `datasets` can load.
        split: such as "train", or "train[:1000]".
        size: of a side, in pixels.
        channels: 3, or 1 for grey.
        image, label: the columns; None for no label.
        workers: threads that decode.
        data: such a data set in hand, instead of `name`.

    Raises:
        MissingPackageError: `datasets` is not installed.
        InputError: it cannot be loaded, or has no such column.
    """

    def __init__(
        self,
        name: str | None = None,
        split: str = "train",
        size: int = 64,
        channels: int = 3,
        image: str = "image",
        label: str | None = "label",
        workers: int = 4,
        data: Any = None,
    ):
        _check(size, channels)
        if data is None:
            data = _hub(name, split)
        columns = list(data.column_names)
        for column in (image, label):
            if column is not None and column not in columns:
                raise InputError(f"data: it has no column {column!r} (there are: {', '.join(columns)})")
        self._data, self._image, self._label, self._name = data, image, label, name or "data"
        self._size, self._channels = size, channels
        self.characters = None
        classes = None
        if label is not None:
            self.characters = getattr(data.features[label], "names", None)
            classes = len(self.characters) if self.characters else int(max(data[label])) + 1
        super().__init__(len(data), (channels, size, size), () if label is None else ("label",), classes, workers)

    def name(self, i: int) -> str:
        return f"{self._name}: row {i}"

    def read(self, i: int) -> dict[str, Any]:
        row = self._data[i]
        found = {"x": picture(row[self._image], self._size, self._channels)}
        return found if self._label is None else {**found, "label": int(row[self._label])}


def _hub(name: str | None, split: str) -> Any:
    if name is None:
        raise InputError("name: nothing was given; expected a data set of the Hub, or a folder")
    try:
        import datasets  # type: ignore[import-not-found]
    except ImportError:
        raise MissingPackageError("datasets: the package datasets is needed; expected `pip install datasets`") from None
    try:
        # Code of the data set's own is not run.
        return datasets.load_dataset(name, split=split, trust_remote_code=False)
    except Exception as error:  # its client fails in many types of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"name: {name!r} cannot be loaded: {reason}") from error


def _directory(path: Path, at: int) -> list[_Member]:
    parts: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isfile():
                    folder, _, file = member.name.rpartition("/")
                    stem, dot, ending = file.partition(".")
                    key = f"{folder}/{stem}" if folder else stem
                    parts.setdefault(key, {})[f"{dot}{ending.lower()}"] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise CheckpointError(f"{path}: it is no whole tar ({error})") from None
    members = []
    for key, files in parts.items():
        kind = next((kind for kind in files if kind in (*PICTURES, ".npy")), None)
        told = next((kind for kind in files if kind in (".json", ".cls")), None)
        if kind is not None:
            where = None if told is None else files[told]
            members.append(_Member(key, at, *files[kind], kind, where, told or ""))
    return members


def _numeric(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_numeric(item) for item in value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check(size: int, channels: int) -> None:
    if size < 1 or channels not in (1, 3):
        raise InputError(
            f"size, channels: {size}, {channels} were given; expected a positive side, and 1 or 3 channels"
        )
