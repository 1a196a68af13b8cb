"""Language models of others as token denoisers: LLaDA and Dream, and causal ones (Qwen2, LLaMA) as guides.

Their folders hold `config.json`, safetensors and a tokenizer. The first two are parsed; code that comes with a model is not
run, and pickles are not opened. Nie et al., "Large Language Diffusion Models" (LLaDA, 2025); Ye et al., "Dream 7B" (2025).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tweed import nets
from tweed.core.processes import MaskedProcess
from tweed.core.token_denoiser import TokenDenoiser
from tweed.data.text_tokens import TextTokenizer, load_tokenizer
from tweed.errors import CheckpointError, InputError, MissingPackageError
from tweed.tokens.layouts import LAYOUTS
from tweed.training import files
from tweed.training.checkpoint import find

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_PATTERNS = ("*.json", "*.safetensors", "*.jinja", "tokenizer*", "*.txt")


def is_pretrained(folder: str | Path) -> bool:
    """Whether a folder holds a model of a kind that `load_pretrained` reads."""
    path = Path(folder) / "config.json"
    return path.is_file() and str(files.read_json(path).get("model_type", "")).lower() in LAYOUTS


def load_pretrained(
    name: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> TokenDenoiser:
    """A LLaDA, Dream, Qwen2 or LLaMA checkpoint, from a folder or the Hugging Face Hub.

    Its network is a `TextTransformer`, in evaluation mode; Dream's answers are read shifted. The tokenizer comes with it where
    there is one. Causal models are made denoisers too, as holders of their networks: give them as a guide.

    Args:
        name: a folder, or an id on the Hub.
        dtype: of the weights, which are read tensor by tensor.
        device: where to put them; the CPU by default.
        revision, token: of the Hub.

    Raises:
        CheckpointError: nothing of that name, an unknown kind, options that tweed does not compute, tensors that are missing,
            too many or of another shape, damaged files, or pickles alone.
    """
    folder = find(name, revision=revision, token=token, patterns=_PATTERNS)
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; expected the configuration of a model")
    config = files.read_json(path)
    kind = str(config.get("model_type", "")).lower()
    if kind not in LAYOUTS:
        raise CheckpointError(f"{path}: its model_type is {kind!r}; expected one of: {', '.join(LAYOUTS)}")
    layout = LAYOUTS[kind]
    options = layout.network(config)
    try:
        with torch.device("meta"):
            network: Any = nets.build({"name": "text-transformer", **options, "causal": layout.causal})
    except InputError as error:
        raise CheckpointError(f"{path}: {error}") from None
    table = layout.ours(options["depth"], options["tied"], options["qkv_bias"])
    network.to_empty(device=device or "cpu").to(dtype)
    _fill(network, _tensors(folder), table, folder)
    tokenizer = _tokenizer(folder, config)
    mask = config.get("mask_token_id")
    if mask is None:
        mask = None if tokenizer is None else tokenizer.mask
    if mask is None:
        if not layout.causal:
            raise CheckpointError(
                f"{path}: it has no mask_token_id, and the tokenizer no mask; expected the mask's number"
            )
        # A guide masks nothing: a number that no token has.
        mask = options["vocab"]
    denoiser = TokenDenoiser(network.eval().requires_grad_(False), MaskedProcess(int(mask)), shift=layout.shift)
    denoiser.tokenizer = tokenizer
    denoiser.meta = {"kind": kind, "end": None if tokenizer is None else tokenizer.end}  # type: ignore[assignment]
    return denoiser


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    index = folder / _INDEX
    if index.is_file():
        table = files.read_json(index).get("weight_map")
        if not isinstance(table, Mapping):
            raise CheckpointError(f"{index}: it has no weight_map; expected the file of each tensor")
        names = sorted({str(file) for file in table.values()})
    elif (folder / _SINGLE).is_file():
        names = [_SINGLE]
    else:
        pickles = sorted(path for path in folder.iterdir() if path.suffix.lower() in files.PICKLES)
        if pickles:
            files.refuse_pickle(pickles[0])
        raise CheckpointError(f"{folder}: it holds no weights; expected {_SINGLE} or {_INDEX}")
    for name in names:
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise CheckpointError(f"{path}: there is no such file; expected a part of the weights")
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (it is no mapping)
                    yield key, file.get_tensor(key)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: it is damaged ({error})") from None


@torch.no_grad()
def _fill(
    network: torch.nn.Module, tensors: Iterator[tuple[str, Tensor]], table: Mapping[str, str], folder: Path
) -> None:
    held, missing = dict(network.state_dict(keep_vars=True)), dict(table)
    for name, value in tensors:
        ours = missing.pop(name, None)
        if ours is None:
            if name.endswith(("rotary_emb.inv_freq", "lm_head.weight")):
                continue  # computed here; and tied to the embedding
            raise CheckpointError(f"{folder}: the tensor {name!r} has no place in this kind of model")
        if held[ours].shape != value.shape:
            raise CheckpointError(
                f"{folder}: the tensor {name!r} has the shape {tuple(value.shape)}; expected {tuple(held[ours].shape)}"
            )
        held[ours].copy_(value)
    if missing:
        raise CheckpointError(f"{folder}: the tensor {next(iter(missing))!r} is missing ({len(missing)} in all)")


def _tokenizer(folder: Path, config: Mapping[str, Any]) -> TextTokenizer | None:
    if not (folder / "tokenizer.json").is_file():
        return None
    end = config.get("eos_token_id")
    return load_tokenizer(folder, mask=config.get("mask_token_id"), end=end[0] if isinstance(end, list) else end)


def chat(folder: str | Path, messages: Sequence[Mapping[str, str]]) -> str:
    """The text of a conversation in a model's own template, ready for its answer.

    Args:
        folder: of the model.
        messages: `{"role": "user", "content": ...}`, and so on.

    Raises:
        MissingPackageError: transformers is not installed.
        InputError: the tokenizer has no template.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingPackageError(
            "chat: the package transformers is needed; expected `pip install tweed[text]`"
        ) from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # it raises many types of its own
        raise CheckpointError(f"{folder}: its tokenizer cannot be read ({error})") from None
    if tokenizer.chat_template is None:
        raise InputError(
            f"chat: the tokenizer of {folder} has no template of conversations; expected a model that has one"
        )
    return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
