"""Training that starts from the weights of a trained network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from tweed.core.denoiser import NetworkDenoiser
from tweed.errors import CheckpointError, IncompatibleError, InputError
from tweed.training import checkpoint, files, state

_FREE = ("attention", "dropout", "gradient_checkpointing", "zero_init")  # options that the meaning of weights is not in


def start_from(network: nn.Module, name: str) -> dict[str, str]:
    """Copies the weights of a checkpoint's network into `network`, in place.

    Args:
        network: made by `tweed.nets.build`, with the options of the checkpoint's network; `dropout`, `attention`,
            `gradient_checkpointing` and `zero_init` may differ, and so may process, target and what it is told of time.
        name: a checkpoint, as for `tweed.load`.

    Returns:
        `name` and `sha256`, the weights' hash.

    Raises:
        CheckpointError: there is no such checkpoint, it is damaged, or a tensor differs.
        IncompatibleError: an option differs; the first is named.
        InputError: the checkpoint holds no single network.
    """
    try:
        folder = checkpoint.find(name)
        source = checkpoint.load(folder)
        digest = checkpoint.read_config(folder)["weights"]["sha256"]
    except CheckpointError as error:
        raise CheckpointError(f"start: {error}") from None
    if not isinstance(source, NetworkDenoiser) or not isinstance(source.network, nn.Module):
        raise InputError(f"start: {name} holds a {type(source).__name__}; expected a denoiser of one network")
    before: Mapping[str, Any] = source.network.config  # type: ignore[assignment]
    now: Mapping[str, Any] = network.config  # type: ignore[assignment]
    for option in [*now, *(key for key in before if key not in now)]:
        if option not in _FREE and before.get(option) != now.get(option):
            raise IncompatibleError(
                f"start: {option} of the network is {before.get(option)!r} in {name} and {now.get(option)!r} here; "
                "expected the same network"
            )
    weights = source.network.state_dict()
    files.check_tensors(weights, network.state_dict(), f"start: {name}")
    network.load_state_dict(weights)
    return {"name": name, "sha256": digest}


def recorded(folder: Path, start: str | None) -> dict[str, str] | None:
    """What `start_from` returned for the run that the folder holds, which must have started from the same.

    Raises:
        InputError: it started from something else.
        CheckpointError: the folder's checkpoint is damaged.
    """
    told = checkpoint.read_config(folder)["meta"].get("start")
    before = told.get("name") if isinstance(told, Mapping) else None
    if before != start:
        raise InputError(
            f"start: {start!r} was given, and {folder} holds a run that started from {before!r}; expected the same, "
            "another folder, or resume=False"
        )
    return dict(told) if isinstance(told, Mapping) else None


def interrupted(folder: str | Path | None) -> bool:
    """Whether the folder holds a run that can go on."""
    if folder is None:
        return False
    return (Path(folder) / "state" / state.STATE).is_file() and (Path(folder) / checkpoint.CONFIG).is_file()
