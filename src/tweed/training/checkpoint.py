"""Checkpoints: a folder of `config.json` and safetensors, parsed and never unpickled.

`config.json` is written last, in one rename, and names the file of weights with its hash: a save that is interrupted
leaves the earlier checkpoint as it was.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tweed import nets
from tweed.core.denoiser import Denoiser, InterpolantDenoiser, NetworkDenoiser
from tweed.core.learned_target import LearnedK
from tweed.core.token_denoiser import TokenDenoiser
from tweed.data.text_tokens import TOKENIZER, load_tokenizer
from tweed.errors import CheckpointError, InputError
from tweed.training import files
from tweed.training.plain import process_from_config, target_from_config, to_config

FORMAT = "tweed"
VERSION = 1
CONFIG = "config.json"
_STORED_AS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def denoiser_config(denoiser: Denoiser) -> dict[str, Any]:
    """What rebuilds a denoiser without its weights, as plain JSON values.

    Raises:
        InputError: it is no `NetworkDenoiser`, `InterpolantDenoiser` or `TokenDenoiser`, or a network has no configuration.
    """
    event = None if denoiser.event is None else list(denoiser.event)
    if isinstance(denoiser, TokenDenoiser):
        return {
            "kind": "TokenDenoiser",
            "network": _network_config("network", denoiser.network),
            "process": to_config(denoiser.process),
            "shift": denoiser.shift,
            "timed": denoiser.timed,
            "event": event,
        }
    if isinstance(denoiser, NetworkDenoiser):
        return {
            "kind": "NetworkDenoiser",
            "network": _network_config("network", denoiser.network),
            "process": to_config(denoiser.process),
            "target": to_config(denoiser.target),
            "time": denoiser.time,
            "input_scale": denoiser.input_scale,
            "data_std": denoiser.data_std,
            "event": event,
        }
    if isinstance(denoiser, InterpolantDenoiser):
        noise = None if denoiser.noise is None else _network_config("noise", denoiser.noise)
        return {
            "kind": "InterpolantDenoiser",
            "velocity": _network_config("velocity", denoiser.velocity),
            "noise": noise,
            "process": to_config(denoiser.process),
            "event": event,
        }
    raise InputError(
        f"denoiser: {type(denoiser).__name__} was given; expected a NetworkDenoiser, InterpolantDenoiser or TokenDenoiser "
        "(save the one inside a wrapper)"
    )


def build_denoiser(config: Mapping[str, Any], seed: int = 0) -> Denoiser:
    """The denoiser of a `denoiser_config`, with fresh weights drawn from `seed`.

    Raises:
        InputError: the configuration has an unknown, missing or wrong entry.
    """
    kinds = {
        "NetworkDenoiser": ("network", "process", "target", "time", "input_scale", "data_std", "event"),
        "InterpolantDenoiser": ("velocity", "noise", "process", "event"),
        "TokenDenoiser": ("network", "process", "shift", "timed", "event"),
    }
    kind = config.get("kind")
    if kind not in kinds:
        raise InputError(f"kind: {kind!r} was given; expected one of: {', '.join(kinds)}")
    for name in kinds[kind]:
        if name not in config:
            raise InputError(f"{name}: nothing was given; expected an entry of a {kind}")
    process = process_from_config(config["process"])
    event = config["event"]
    if event is not None and not (isinstance(event, list | tuple) and all(type(n) is int and n > 0 for n in event)):
        raise InputError(f"event: {event!r} was given; expected the shape of one sample, a list of positive integers")
    if kind == "InterpolantDenoiser":
        noise = None if config["noise"] is None else nets.build(config["noise"], seed + 1)
        denoiser = InterpolantDenoiser(nets.build(config["velocity"], seed), noise, process)  # type: ignore[arg-type]
        denoiser.event = None if event is None else tuple(event)
        return denoiser
    if kind == "TokenDenoiser":
        for name in ("shift", "timed"):
            if not isinstance(config[name], bool):
                raise InputError(f"{name}: {config[name]!r} was given; expected true or false")
        return TokenDenoiser(
            nets.build(config["network"], seed),
            process,  # type: ignore[arg-type]
            shift=config["shift"],
            timed=config["timed"],
            event=None if event is None else tuple(event),
        )
    if not isinstance(config["data_std"], int | float):
        raise InputError(f"data_std: {config['data_std']!r} was given; expected a number")
    return NetworkDenoiser(
        nets.build(config["network"], seed),
        process,
        target_from_config(config["target"]),
        time=config["time"],
        input_scale=config["input_scale"],
        data_std=config["data_std"],
        event=None if event is None else tuple(event),
    )


def _network_config(where: str, network: Any) -> dict[str, Any]:
    config = getattr(network, "config", None)
    if not isinstance(network, nn.Module) or not isinstance(config, Mapping):
        raise InputError(
            f"{where}: {type(network).__name__} has no configuration; expected a network of tweed.nets.build "
            "(register your own with tweed.nets.register)"
        )
    return dict(config)


def save(
    denoiser: Denoiser,
    folder: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a denoiser to a folder, which is made if need be: `config.json` and `model-<hash>.safetensors`.

    Args:
        denoiser: a `NetworkDenoiser`, `InterpolantDenoiser` or `TokenDenoiser` whose networks come from the registry; a
            `LearnedK` is written with its present k.
        folder: where to; other files in it stay.
        dtype: what floating-point weights are stored in ("float16", "bfloat16", ...); as they are by default.
        meta: plain values to keep with it (a description, classes, figures), `load` gives them back as `.meta`.

    Returns:
        The folder.

    Raises:
        InputError: the denoiser cannot be written, or `dtype` or `meta` is not what it must be.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"folder: {folder} is a file; expected a folder")
    stored = _dtype(dtype)
    meta = dict(meta if meta is not None else getattr(denoiser, "meta", {}))
    denoiser = denoiser.fixed() if isinstance(denoiser, LearnedK) else denoiser
    config = denoiser_config(denoiser)
    tensors = files.to_dtype(denoiser.state_dict(), stored)
    folder.mkdir(parents=True, exist_ok=True)
    weights = files.write_tensors(folder, "model", tensors)
    tokenizer = getattr(denoiser, "tokenizer", None)
    if tokenizer is not None:
        files.write_bytes(folder / TOKENIZER, tokenizer.json.encode())
    header = {"format": FORMAT, "version": VERSION, "weights": weights}
    try:
        files.write_json(folder / CONFIG, {**header, "denoiser": config, "meta": meta})
    except (TypeError, ValueError) as error:
        raise InputError(f"meta: it cannot be written as JSON ({error})") from None
    files.remove_others(folder, "model", weights["file"])
    return folder


def load(
    name: str | Path, *, device: torch.device | str | None = None, revision: str | None = None, token: str | None = None
) -> Denoiser:
    """A denoiser by name: a bundled model, a local folder, or an id on the Hugging Face Hub, tried in this order.

    Weights are returned in float32, in evaluation mode; `.meta` is what was saved with them, and `.tokenizer` of a model of
    text its tokenizer.

    Args:
        name: such as "glyphs", "runs/digits" or "someone/model".
        device: where to put it; the CPU by default.
        revision, token: of the Hub: branch, tag or commit, and access token.

    Raises:
        CheckpointError: nothing of that name was found (what was tried is listed), or a file is damaged, of an unknown
            format or version, not fitting to its configuration, or a pickle.
    """
    folder = find(name, revision=revision, token=token)
    config = read_config(folder)
    tensors = files.read_tensors(folder, config["weights"], f"{folder / CONFIG}")
    try:
        denoiser = build_denoiser(config["denoiser"])
    except (InputError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None
    expected = denoiser.state_dict()
    files.check_tensors(tensors, expected, folder / config["weights"]["file"])
    denoiser.load_state_dict({key: tensors[key].to(value.dtype) for key, value in expected.items()})
    denoiser.meta = config["meta"]  # type: ignore[assignment]
    if isinstance(denoiser, TokenDenoiser) and (folder / TOKENIZER).is_file():
        denoiser.tokenizer = load_tokenizer(folder)
    return denoiser.eval().to(device or "cpu")


def read_config(folder: str | Path) -> dict[str, Any]:
    """The checked `config.json` of a checkpoint: its header, `denoiser` and `meta`.

    Raises:
        CheckpointError: it is missing, damaged, or of an unknown format or version.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        pickles = sorted(p.name for p in Path(folder).iterdir() if p.suffix.lower() in files.PICKLES)
        if pickles:
            files.refuse_pickle(Path(folder) / pickles[0])
        raise CheckpointError(f"{path}: there is no such file; expected a folder that tweed.save wrote")
    config = files.read_json(path)
    if config.get("format") != FORMAT:
        raise CheckpointError(f"{path}: its format is {config.get('format')!r}; expected {FORMAT!r}")
    if config.get("version") != VERSION:
        raise CheckpointError(f"{path}: its version is {config.get('version')!r}; this tweed reads version {VERSION}")
    for name in ("weights", "denoiser"):
        if not isinstance(config.get(name), dict):
            raise CheckpointError(f"{path}: its entry {name!r} is missing or no object")
    unknown = sorted(set(config) - {"format", "version", "weights", "denoiser", "meta"})
    if unknown:
        raise CheckpointError(f"{path}: its entry {unknown[0]!r} is unknown to version {VERSION}")
    config.setdefault("meta", {})
    return config


def bundled() -> list[str]:
    """The names of the models that come with tweed."""
    root = _bundle()
    return sorted(p.name for p in root.iterdir() if (p / CONFIG).is_file()) if root.is_dir() else []


def find(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    patterns: Sequence[str] = ("config.json", "*.safetensors", TOKENIZER),
) -> Path:
    """The folder of a checkpoint, downloaded if it is an id on the Hub (files of these `patterns`); the rest as for `load`."""
    text = str(name)
    if isinstance(name, str) and text in bundled():
        return _bundle() / text
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    files.refuse_pickle(path)
    if path.is_file():
        raise CheckpointError(f"{path}: it is a file; expected the folder with its {CONFIG}")
    near = difflib.get_close_matches(text, bundled(), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    tried = f"a bundled model (there are: {', '.join(bundled()) or 'none'}), the folder {path}"
    if not _HUB_ID.fullmatch(text):
        raise CheckpointError(f"{text}: not found{hint} Tried {tried}; a Hub id has the form 'owner/name'")
    return _download(text, revision, token, patterns, f"{tried} and the Hub id {text!r}")


def _download(name: str, revision: str | None, token: str | None, patterns: Sequence[str], tried: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, token=token, allow_patterns=list(patterns)))
    except Exception as error:
        # The Hub's client fails in many types of its own, httpx's and the system's.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{name}: not found. Tried {tried}: {reason}") from error


def push_to_hub(
    denoiser: Denoiser,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    dtype: torch.dtype | str | None = None,
    meta: Mapping[str, Any] | None = None,
    message: str = "Upload a tweed denoiser",
) -> str:
    """Uploads a checkpoint to the Hugging Face Hub, in one commit, making the repository if need be.

    Args:
        repo_id: "owner/name".
        dtype, meta: as for `save`.

    Returns:
        The address of the commit.

    Raises:
        InputError: `repo_id` is not of that form, or what `save` raises.
        CheckpointError: the Hub could not be reached or refused.
    """
    import tempfile

    from huggingface_hub import HfApi

    if not _HUB_ID.fullmatch(repo_id):
        raise InputError(f"repo_id: {repo_id!r} was given; expected 'owner/name'")
    with tempfile.TemporaryDirectory() as folder:
        save(denoiser, folder, dtype=dtype, meta=meta)
        try:
            api = HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=message, delete_patterns=["model-*.safetensors"]
            )
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(f"{repo_id}: the upload failed: {reason}") from error
    return str(commit)


def _bundle() -> Path:
    return Path(str(resources.files("tweed"))) / "models"


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if isinstance(dtype, str):
        if dtype not in _STORED_AS:
            raise InputError(f"dtype: {dtype!r} was given; expected one of: {', '.join(_STORED_AS)}")
        return _STORED_AS[dtype]
    if dtype is not None and dtype not in _STORED_AS.values():
        raise InputError(f"dtype: {dtype} was given; expected one of: {', '.join(_STORED_AS)}")
    return dtype
