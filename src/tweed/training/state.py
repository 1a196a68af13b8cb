"""The state of a training run on disk: all that the next step depends on, besides the call's own arguments.

`state.json` is replaced last and names the file of tensors, so a run that is killed, even while it writes, resumes
from its last complete state.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tweed.errors import CheckpointError, InputError
from tweed.training import files
from tweed.training.ema import PowerEMA, reconstruct

STATE = "state.json"
LOSSES = "losses.jsonl"
_FORMAT, _VERSION = "tweed-training", 1


def write(
    folder: Path,
    step: int,
    settings: Mapping[str, Any],
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    scaler: Mapping[str, Any],
) -> None:
    """Writes the state after `step` steps: modules by name, the optimizer and the gradient scaler."""
    tensors = {f"{name}/{key}": v for name, module in modules.items() for key, v in module.state_dict().items()}
    numbers: dict[str, Any] = {}
    for i, parameter in enumerate(_parameters(optimizer)):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{i}/{key}"] = value
            else:
                numbers[f"{i}/{key}"] = value
    place = folder / "state"
    entry = files.write_tensors(place, "state", tensors)
    header = {"format": _FORMAT, "version": _VERSION, "step": step, "settings": settings}
    files.write_json(place / STATE, {**header, "scaler": dict(scaler), "optimizer": numbers, "tensors": entry})
    files.remove_others(place, "state", entry["file"])


def read(
    folder: Path,
    settings: Mapping[str, Any],
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
) -> tuple[int, dict[str, Any]]:
    """Restores modules and optimizer in place; returns the step and the state of the gradient scaler.

    Returns step 0, and changes nothing, where the folder holds no run.

    Raises:
        InputError: the folder holds a run with other settings; the first that differs is named.
        CheckpointError: a file is damaged or does not fit the modules.
    """
    path = folder / "state" / STATE
    if not path.is_file():
        return 0, {}
    state = files.read_json(path)
    if state.get("format") != _FORMAT or state.get("version") != _VERSION:
        raise CheckpointError(
            f"{path}: its format is {state.get('format')!r} {state.get('version')!r}; expected {_FORMAT!r} {_VERSION}"
        )
    if not isinstance(state.get("step"), int) or not isinstance(state.get("settings"), dict):
        raise CheckpointError(f"{path}: its entries 'step' and 'settings' are missing or wrong")
    _check_settings(folder, state["settings"], json.loads(json.dumps(settings)))
    tensors = files.read_tensors(folder / "state", state.get("tensors"), str(path))
    source = folder / "state" / state["tensors"]["file"]
    expected = {f"{name}/{key}": v for name, module in modules.items() for key, v in module.state_dict().items()}
    held = {key: value for key, value in tensors.items() if not key.startswith("optimizer/")}
    files.check_tensors(held, expected, source)
    for name, module in modules.items():
        module.load_state_dict({key: held[f"{name}/{key}"] for key in module.state_dict()})
    _restore_optimizer(optimizer, tensors, state.get("optimizer", {}), source)
    return state["step"], state.get("scaler", {})


def clear(folder: Path) -> None:
    """Forgets an earlier run in the folder; its checkpoint stays until the new run writes one."""
    (folder / "state" / STATE).unlink(missing_ok=True)
    for path in [*(folder / "state").glob("state-*.safetensors"), *(folder / "snapshots").glob("*")]:
        path.unlink(missing_ok=True)
    files.write_bytes(folder / LOSSES, b"")


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], source: Path
) -> None:
    parameters = _parameters(optimizer)
    for key, value in [*tensors.items(), *((f"optimizer/{name}", number) for name, number in numbers.items())]:
        if not key.startswith("optimizer/"):
            continue
        _, place, name = key.split("/", 2)
        if not place.isdigit() or int(place) >= len(parameters):
            raise CheckpointError(f"{source}: tensor {key!r} belongs to none of the {len(parameters)} parameters")
        parameter = parameters[int(place)]
        if isinstance(value, Tensor) and value.ndim and value.shape == parameter.shape:
            # Like the parameter in its memory format too: fused kernels walk both together.
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        elif isinstance(value, Tensor):
            fused = bool(optimizer.defaults.get("fused")) or bool(optimizer.defaults.get("capturable"))
            # Counts of steps stay on the CPU otherwise; the moments of a parameter that is one number do not.
            value = value.to(parameter.device if fused or name != "step" else "cpu")
        optimizer.state[parameter][name] = value


def _check_settings(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            raise InputError(
                f"folder: {folder} holds a run with {name} = {before.get(name)!r}, and {now.get(name)!r} was given; "
                "expected the same call, another folder, or resume=False"
            )


def read_losses(folder: Path, last: int) -> list[float]:
    """The losses of steps 1 ... `last`, and the file cut to them.

    Raises:
        CheckpointError: a line is damaged or a step is missing.
    """
    path = folder / LOSSES
    lines = path.read_text().splitlines()[:last] if path.is_file() else []
    losses = []
    for i, line in enumerate(lines):
        try:
            entry = json.loads(line)
            if entry["step"] != i + 1:
                raise ValueError(f"step {entry['step']} stands where step {i + 1} is expected")
            losses.append(float(entry["loss"]))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: line {i + 1} is no loss of a step ({error})") from None
    if len(losses) < last:
        raise CheckpointError(f"{path}: it holds {len(losses)} steps; expected {last}")
    files.write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
    return losses


def append_losses(folder: Path, first: int, losses: Iterable[float], rate: float) -> None:
    """Adds a line a step to `losses.jsonl`."""
    with (folder / LOSSES).open("a") as file:
        file.writelines(
            json.dumps({"step": first + i, "loss": loss, "lr": rate}) + "\n" for i, loss in enumerate(losses)
        )


def write_snapshot(folder: Path, step: int, averages: Sequence[tuple[PowerEMA, nn.Module]]) -> None:
    """Stores the power-function averages of this step, in float16, for `posthoc_ema`."""
    place = folder / "snapshots"
    for average, module in averages:
        stem = f"{step:08d}-{average.width:g}"
        tensors = files.to_dtype(module.state_dict(), torch.float16)
        entry = files.write_tensors(place, stem, tensors)
        files.write_json(place / f"{stem}.json", {"step": step, "width": average.width, "tensors": entry})


def posthoc_ema(folder: str | Path, width: float, step: int | None = None) -> dict[str, Tensor]:
    """The weights averaged under a profile chosen after training, from the snapshots that `fit` left.

    Karras et al. (CVPR 2024), Section 3.2.

    Args:
        folder: of the run, trained with `power_ema` and `snapshot_every`.
        width: the relative width of the profile, in (0, 0.2887).
        step: at which step of the training; the last snapshot by default.

    Returns:
        Tensors by name for `denoiser.load_state_dict`.

    Raises:
        CheckpointError: there are no snapshots, or one is damaged.
        InputError: `width` or `step` is out of range.
    """
    place = Path(folder) / "snapshots"
    stored = []
    for path in sorted(place.glob("*.json")):
        entry = files.read_json(path)
        tensors = files.read_tensors(place, entry.get("tensors"), str(path))
        stored.append((float(entry["step"]), PowerEMA(float(entry["width"])).gamma, tensors))
    if not stored:
        raise CheckpointError(f"{place}: it holds no snapshots; train with power_ema=(...) and snapshot_every=...")
    last = max(at for at, _, _ in stored)
    return reconstruct(stored, (last if step is None else step, PowerEMA(width).gamma))
