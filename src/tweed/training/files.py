"""Files that are whole or absent: written under a temporary name, then renamed; read without running any of them."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tweed.errors import CheckpointError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz")
"""Endings of formats that run code when read; they are never opened."""


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON completely or not at all."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_tensors(folder: Path, stem: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Writes tensors to `stem-<hash>.safetensors`; returns `{"file", "sha256"}`, for the JSON that names the file.

    The name holds the content's hash, so writing a new version never touches the file that an earlier JSON names.
    """
    from safetensors.torch import save

    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    content = save(plain, metadata={"format": "pt"})
    digest = hashlib.sha256(content).hexdigest()
    name = f"{stem}-{digest[:12]}.safetensors"
    write_bytes(folder / name, content)
    return {"file": name, "sha256": digest}


def remove_others(folder: Path, stem: str, keep: str) -> None:
    """Removes earlier versions of `stem-<hash>.safetensors`."""
    for path in folder.glob(f"{stem}-*.safetensors"):
        if path.name != keep:
            path.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: it is missing, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path}: it is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: it holds a {type(value).__name__}; expected a JSON object")
    return value


def refuse_pickle(path: Path) -> None:
    """Raises a `CheckpointError` for the name of a file in a format that can run code."""
    if path.suffix.lower() in PICKLES:
        raise CheckpointError(
            f"{path}: files ending in {path.suffix} can run code when they are read and are never opened; "
            "expected weights as safetensors (convert them where they are trusted)"
        )


def read_tensors(folder: Path, entry: Any, where: str) -> dict[str, Tensor]:
    """The tensors that `write_tensors` wrote, on the CPU.

    Args:
        entry: what it returned.
        where: the file that held the entry, for messages.

    Raises:
        CheckpointError: the entry is malformed, or the file is missing, of another format, truncated or altered.
    """
    if not isinstance(entry, Mapping) or not isinstance(entry.get("file"), str):
        raise CheckpointError(f"{where}: {entry!r} stands for its weights; expected an object with 'file' and 'sha256'")
    name = entry["file"]
    refuse_pickle(folder / name)
    if Path(name).name != name or not name.endswith(".safetensors"):
        raise CheckpointError(f"{where}: its weights are {name!r}; expected a .safetensors file in the same folder")
    path = folder / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: its weights cannot be read ({error.strerror})") from None
    tensors = parse_tensors(content, path)
    if "sha256" in entry and hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise CheckpointError(f"{path}: its content is not what {where} says (sha256 differs): damaged or replaced")
    return tensors


def parse_tensors(content: bytes, path: Path) -> dict[str, Tensor]:
    """Tensors from the bytes of a safetensors file; `path` is for messages."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    if content[:1] == b"\x80" or content[:2] == b"PK":
        raise CheckpointError(f"{path}: it holds a pickle under the name of safetensors; pickles are never opened")
    try:
        return load(content)
    except (SafetensorError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{path}: it is no whole safetensors file ({error})") from None


def check_tensors(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path | str) -> None:
    """Raises a `CheckpointError` that names the first tensor missing, unexpected or of another shape."""
    for name, value in expected.items():
        if name not in given:
            raise CheckpointError(f"{path}: tensor {name!r} is missing (of {len(expected)} expected)")
        if given[name].shape != value.shape:
            raise CheckpointError(
                f"{path}: tensor {name!r} has shape {tuple(given[name].shape)}; expected {tuple(value.shape)}"
            )
        if given[name].dtype.is_floating_point != value.dtype.is_floating_point:
            raise CheckpointError(f"{path}: tensor {name!r} is {given[name].dtype}; expected {value.dtype}")
    for name in given:
        if name not in expected:
            raise CheckpointError(f"{path}: tensor {name!r} is not part of the model")


def to_dtype(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Floating-point tensors in another type; integers and booleans as they are."""
    if dtype is None:
        return dict(tensors)
    return {name: v.to(dtype) if v.dtype.is_floating_point else v for name, v in tensors.items()}
