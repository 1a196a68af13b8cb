"""Any number of samples on disk: shards by sample index, written by any number of processes, and whole or absent each.

Sample i is a function of the seed and i alone, so the files are the same however many processes write them, and a run that
was stopped goes on with the shards that are missing. Nothing is kept of a shard that is written, nor of any but its present
batch, so memory does not grow with the number of samples.
"""

import io
import json
import math
import os
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy
import torch
from jaxtyping import Float
from torch import Tensor

from tweed.errors import InputError, choose
from tweed.training.files import read_json, write_json

PLAN = "shards.json"
_SECONDS_BETWEEN = 5.0  # lines of progress
ShardFormat = Literal["tar", "npz"]
Draw = Callable[[int, int], Mapping[str, Tensor]]
"""`draw(first, count)`: the samples `first ... first + count - 1`, `x` (count, *event), and conditions with as many rows."""


@dataclass(frozen=True)
class ShardPlan:
    """What a folder of shards holds.

    Args:
        n: samples in all.
        size: samples of a shard; the last one may be smaller.
        format: "tar" for WebDataset's: a member a sample, `000000042.png` where samples are images (`.npy` otherwise), and
            `.json` with its conditions; or "npz" for arrays of the whole shard.
        arrays: write images in a tar as arrays too, as latents must be: nothing is rounded or clipped.
        told: what made them (model, solver, seed ...), plain values; a run goes on only in a folder that was told the same.

    Raises:
        InputError: a number is not positive, or the format unknown.
    """

    n: int
    size: int = 10000
    format: ShardFormat = "tar"
    arrays: bool = False
    told: Mapping[str, Any] | None = None

    def __post_init__(self):
        if self.n < 1 or self.size < 1:
            raise InputError(f"n, size: {self.n}, {self.size} were given; expected positive numbers of samples")
        choose("format", self.format, ("tar", "npz"))

    @property
    def count(self) -> int:
        """The number of shards."""
        return -(-self.n // self.size)

    def path(self, folder: Path, shard: int) -> Path:
        """The file of a shard."""
        return folder / f"{shard:06d}.{self.format}"

    def span(self, shard: int) -> tuple[int, int]:
        """The first sample of a shard, and the one after its last."""
        return shard * self.size, min((shard + 1) * self.size, self.n)


@dataclass(frozen=True)
class Sharded:
    """What a process has done: shards and samples written now, shards that were there before, and seconds."""

    written: int
    samples: int
    kept: int
    seconds: float


def place_in_world() -> tuple[int, int, int]:
    """The number of this process, how many there are, and its number on this machine: as torchrun, `accelerate launch` or
    SLURM tell them; (0, 1, 0) where nobody does.

    Raises:
        InputError: they are no numbers that fit together.
    """
    for rank, world, local in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    ):
        if rank in os.environ and world in os.environ:
            texts = os.environ[rank], os.environ[world], os.environ.get(local, "0")
            try:
                place = int(texts[0]), int(texts[1]), int(texts[2])
            except ValueError:
                raise InputError(f"{rank}, {world}: {texts[:2]} were given; expected whole numbers") from None
            if not 0 <= place[0] < place[1]:
                raise InputError(
                    f"{rank}, {world}: {texts[:2]} were given; expected a rank below the number of processes"
                )
            return place
    return 0, 1, 0


def write_shards(
    draw: Draw,
    plan: ShardPlan,
    folder: str | Path,
    *,
    batch: int = 256,
    rank: int = 0,
    world: int = 1,
    tell: Callable[[str, float | None], None] | None = None,
) -> Sharded:
    """Writes the shards of `plan` whose number is `rank` modulo `world`, those that are missing in `folder`.

    Args:
        draw: makes samples by their numbers; those of a batch lie within one shard.
        folder: where to; `shards.json` says what it holds.
        batch: samples drawn at once.
        tell: told of the progress, with the rate and the time that is left.

    Raises:
        InputError: `folder` holds shards of another plan, or a number is out of its range.
    """
    folder = Path(folder)
    if batch < 1 or not 0 <= rank < world:
        raise InputError(
            f"batch, rank, world: {batch}, {rank}, {world} were given; expected a rank below a positive number"
        )
    _agree(plan, folder)
    own = [shard for shard in range(plan.count) if shard % world == rank]
    missing = [shard for shard in own if not plan.path(folder, shard).exists()]
    total = sum(last - first for first, last in map(plan.span, missing))
    begun, done, told = time.monotonic(), 0, -math.inf
    for shard in missing:
        first, last = plan.span(shard)

        def pieces(first: int = first, last: int = last) -> Iterator[tuple[int, Mapping[str, Tensor]]]:
            nonlocal done, told
            for at in range(first, last, batch):
                now = time.monotonic()
                if tell is not None and now - told > _SECONDS_BETWEEN:
                    told = now
                    tell(_said(done, total, now - begun), done / max(total, 1))
                count = min(batch, last - at)
                yield at, draw(at, count)
                done += count

        _write(plan.path(folder, shard), plan, pieces())
    seconds = time.monotonic() - begun
    if tell is not None:
        tell(_said(done, total, seconds), 1.0)
    return Sharded(len(missing), done, len(own) - len(missing), seconds)


def missing_shards(folder: str | Path) -> list[int]:
    """The shards of a folder that no process has written yet.

    Raises:
        InputError: the folder has no plan.
        CheckpointError: its plan is damaged.
    """
    folder = Path(folder)
    if not (folder / PLAN).exists():
        raise InputError(f"folder: {folder} has no {PLAN}; expected a folder that `tweed sample --out FOLDER` wrote")
    plan = ShardPlan(**read_json(folder / PLAN))
    return [shard for shard in range(plan.count) if not plan.path(folder, shard).exists()]


def _agree(plan: ShardPlan, folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"folder: {folder} is a file; expected a folder")
    path, wanted = folder / PLAN, json.loads(json.dumps(asdict(plan)))
    if not path.exists():
        # Every process writes the same; the last one to rename wins nothing.
        write_json(path, wanted)
        return
    found = read_json(path)
    for name, value in wanted.items():
        if found.get(name) != value:
            raise InputError(
                f"folder: {folder} holds samples of {name} {found.get(name)!r}; {value!r} was given (choose another folder)"
            )


def _said(done: int, total: int, seconds: float) -> str:
    if not done:
        return f"{done} of {total}"
    rate = done / max(seconds, 1e-9)
    left = int((total - done) / rate)
    return f"{done} of {total}, {rate:,.1f}/s, {left // 3600}:{left % 3600 // 60:02d}:{left % 60:02d} left"


def _write(path: Path, plan: ShardPlan, pieces: Iterator[tuple[int, Mapping[str, Tensor]]]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            if plan.format == "tar":
                _write_tar(file, pieces, plan.arrays)
            else:
                _write_npz(file, pieces)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_tar(file: Any, pieces: Iterator[tuple[int, Mapping[str, Tensor]]], arrays: bool) -> None:
    # Times and owners are left at zero: the same samples are the same bytes.
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for first, piece in pieces:
            x = piece["x"].detach().float().cpu()
            others = {name: value.detach().cpu() for name, value in piece.items() if name != "x"}
            for i in range(len(x)):
                key = f"{first + i:09d}"
                _member(tar, *_encoded(key, x[i], arrays))
                if others:
                    told = {name: value[i].tolist() for name, value in others.items()}
                    _member(tar, f"{key}.json", json.dumps(told).encode())


def _member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _encoded(key: str, x: Float[Tensor, "*event"], arrays: bool) -> tuple[str, bytes]:
    held = io.BytesIO()
    if not arrays and x.ndim == 3 and x.shape[0] in (1, 3):
        from PIL import Image

        pixels = ((x.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8).movedim(0, -1).numpy()
        Image.fromarray(pixels[..., 0] if x.shape[0] == 1 else pixels).save(held, format="PNG")
        return f"{key}.png", held.getvalue()
    numpy.save(held, x.numpy(), allow_pickle=False)
    return f"{key}.npy", held.getvalue()


def _write_npz(file: Any, pieces: Iterator[tuple[int, Mapping[str, Tensor]]]) -> None:
    held: dict[str, list[numpy.ndarray]] = {}
    for _, piece in pieces:
        for name, value in piece.items():
            value = value.detach().float() if name == "x" else value.detach()
            held.setdefault("samples" if name == "x" else name, []).append(value.cpu().numpy())
    numpy.savez_compressed(file, **{name: numpy.concatenate(parts) for name, parts in held.items()})  # type: ignore[arg-type]
