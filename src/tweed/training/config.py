"""Training by configuration: a TOML file that names data, network, process, target, objective and settings.

```toml
seed = 0
[data]
name = "Digits"
split = "train"
[network]
name = "unet"
in_channels = 1
[process]
name = "RectifiedFlow"
[target]
name = "Velocity"
[optimisation]
steps = 1000
```
"""

import dataclasses
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from tweed import data as datasets
from tweed import nets
from tweed.core import learned_target
from tweed.core.denoiser import Denoiser, NetworkDenoiser
from tweed.core.processes import CategoricalProcess, Process
from tweed.core.token_denoiser import TokenDenoiser
from tweed.data import Dataset
from tweed.data.corpus import Corpus
from tweed.data.speech import NoisySpeech
from tweed.errors import IncompatibleError, InputError, choose
from tweed.training import fine_tuning, learned
from tweed.training.fit import FitResult, fit
from tweed.training.objectives import DenoisingLoss, Objective
from tweed.training.optimizers import OptimizerChoice
from tweed.training.plain import call, parse
from tweed.training.token_losses import TokenLoss

_BUNDLED = Path(__file__).parent.parent / "configs"


def bundled_configs() -> list[str]:
    """The names of the configurations that tweed brings, sorted."""
    return sorted(path.stem for path in _BUNDLED.glob("*.toml"))


def read_table(path: str | Path) -> tuple[dict[str, Any], str]:
    """The tables of a TOML file, or of a configuration that tweed brings, and how messages call it.

    Raises:
        InputError: there is no such file, or it is not TOML.
    """
    path = _BUNDLED / f"{path}.toml" if str(path) in bundled_configs() else Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")), path.name
    except OSError as error:
        known = ", ".join(bundled_configs())
        raise InputError(
            f"config: {path} cannot be read ({error.strerror}); expected a TOML file, or one of {known}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"config: {path} is not TOML ({error})") from None


@dataclass(frozen=True)
class Optimisation:
    """How weights are found: the arguments of `fit` of the same names (0 stands for none in `clip` and `ema`).

    `optimizer` is a name of `tweed.training.optimizers.choices`, or a table of its name and its own options.
    """

    steps: int
    batch_size: int = 128
    lr: float = 1e-3
    warmup: int = 0
    schedule: Literal["constant", "cosine"] = "constant"
    weight_decay: float = 0.0
    betas: tuple[float, ...] = (0.9, 0.999)
    clip: float = 1.0
    ema: float = 0.999
    power_ema: tuple[float, ...] = ()
    drop: float = 0.0
    conditions: tuple[str, ...] | None = None
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    micro_batch: int | None = None
    compile: bool = False
    channels_last: bool = False
    optimizer: OptimizerChoice | None = None


@dataclass(frozen=True)
class Logging:
    """What a run leaves on disk, and when: the arguments of `fit` of the same names."""

    save_every: int = 1000
    save_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    snapshot_every: int = 0
    sample_every: int = 0
    log_every: int = 50
    tensorboard: bool = False


@dataclass(frozen=True)
class Wrapping:
    """How the network is made a denoiser: the arguments of `NetworkDenoiser` of the same names."""

    time: str | None = None
    input_scale: str | None = None
    data_std: float = 1.0


@dataclass(frozen=True)
class TrainConfig:
    """A training run as a value.

    Attributes:
        data: `name` of a data set of `tweed.data` ("Digits", "Glyphs", "Photographs", "Phantoms", "NoisySpeech", "ImageFolder",
            "WebDataset", "HubDataset", "Corpus" of text, or a density of the plane such as "moons") and its options; images may
            also have `degrade`, a name of `tweed.data.DEGRADATIONS`, for pairs with a degraded image.
        network: `name` of a network of `tweed.nets` and its options.
        process, target: what the network is trained for. The target `LearnedK` is learned with it; a process of tokens has none.
        denoiser: how it is told of time and given its input.
        objective: the loss, with its weighting, times and coupling; `DenoisingLoss`, or `TokenLoss` for tokens, by default.
        optimisation, logging: the settings of `fit`.
        seed: of the weights and of everything random in training.
        start: a checkpoint, as for `tweed.load`, from whose network's weights training starts; see `start_from`.
        meta: plain values to keep in the checkpoint.
    """

    data: Mapping[str, Any]
    network: Mapping[str, Any]
    process: Process
    optimisation: Optimisation
    target: learned.Asked = None  # type: ignore[assignment] (tokens have none)
    objective: Objective = None  # type: ignore[assignment] (see below)
    denoiser: Wrapping = field(default_factory=Wrapping)
    logging: Logging = field(default_factory=Logging)
    seed: int = 0
    start: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.objective is None:
            tokens = isinstance(self.process, CategoricalProcess)
            object.__setattr__(self, "objective", TokenLoss() if tokens else DenoisingLoss())
        if self.target is None and not isinstance(self.process, CategoricalProcess):
            raise InputError("target: nothing was given; expected what the network answers, such as 'Velocity'")

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], where: str = "config") -> "TrainConfig":
        """A configuration from nested tables.

        Raises:
            InputError: an unknown key (the nearest is suggested), a missing one, or a value of a wrong type; the
                message names its path.
        """
        return parse(cls, table, where)

    @classmethod
    def read(cls, path: str | Path) -> "TrainConfig":
        """A configuration from a TOML file, or one of those that tweed brings, by its name ("digits", "glyphs", "speech").

        Raises:
            InputError: there is no such file, it is not TOML, or what `from_dict` raises.
        """
        return cls.from_dict(*read_table(path))

    def replace(self, **changes: Any) -> "TrainConfig":
        """The same with other values; those of `optimisation` and `logging` go by their own names (`steps=100`)."""
        own, inner = {f.name for f in dataclasses.fields(self)}, {}
        for part in ("optimisation", "logging"):
            names = {f.name for f in dataclasses.fields(getattr(self, part))}
            inner[part] = {name: changes.pop(name) for name in list(changes) if name in names and name not in own}
        for name in changes:
            choose("name", name, own)
        parts = {part: dataclasses.replace(getattr(self, part), **values) for part, values in inner.items() if values}
        return dataclasses.replace(self, **{**parts, **changes})


def build_data(config: Mapping[str, Any], where: str = "data") -> Dataset:
    """The data set that `{"name": ..., option: value, ...}` describes.

    Raises:
        InputError: an unknown name or option, or a value of a wrong type.
    """
    kinds: tuple[Any, ...] = (datasets.Digits, datasets.Glyphs, datasets.Photographs, datasets.Phantoms, NoisySpeech)
    kinds += (datasets.ImageFolder, datasets.WebDataset, datasets.HubDataset, Corpus)
    known: dict[str, Any] = {kind.__name__: kind for kind in kinds}
    known |= dict.fromkeys(datasets.DENSITIES, datasets.Plane)
    if not isinstance(config.get("name"), str):
        raise InputError(f"{where}: {dict(config)!r} was given; expected a table with a 'name': {', '.join(known)}")
    kind = choose(f"{where}.name", config["name"], known)
    # A density's name is an option of the data set of points in the plane.
    options = {key: value for key, value in config.items() if key != "name" or kind is datasets.Plane}
    degrade = options.pop("degrade", None)
    data = call(kind, options, where)
    return data if degrade is None else call(datasets.Degraded, {"data": data, "kind": degrade}, where)


def build(
    config: TrainConfig, data: Dataset | None = None
) -> tuple[NetworkDenoiser | learned_target.LearnedK | TokenDenoiser, Dataset]:
    """The untrained denoiser of a configuration, and its data (those that are given, where they are).

    Raises:
        InputError: an unknown name or option of the network or the data, or things that do not fit together.
    """
    data = build_data(config.data) if data is None else data
    network = nets.build(config.network, config.seed)
    if isinstance(config.process, CategoricalProcess):
        return _token_denoiser(config, network, config.process, data), data
    options = dataclasses.asdict(config.denoiser)
    made = learned.denoiser(network, config.process, config.target, event=tuple(data.shape), **options)
    time = made.time if isinstance(made, NetworkDenoiser) else made.inner.time
    routing = network.config.get("routing", 1.0)  # type: ignore[union-attr]
    if routing != 1.0 and time != "time":
        raise IncompatibleError(
            f"network.routing, denoiser.time: {routing}, {time!r} were given; expected the time 'time' with routing, whose "
            "windows follow it from 0 to 1"
        )
    return made, data


def _token_denoiser(config: TrainConfig, network: Any, process: CategoricalProcess, data: Dataset) -> TokenDenoiser:
    if config.target is not None or config.denoiser != Wrapping():
        raise InputError(
            "config.target, config.denoiser: they were given for tokens, which have none; expected neither"
        )
    tokenizer = getattr(data, "tokenizer", None)
    size, mask = getattr(tokenizer, "size", None), getattr(process, "mask", None)
    vocab = getattr(network, "vocab", None)
    if size is not None and vocab is not None and vocab < size:
        raise InputError(f"network.vocab: {vocab} was given; expected at least the {size} tokens of the data")
    if tokenizer is not None and mask is not None and mask != tokenizer.mask:
        raise InputError(f"process.mask: {mask} was given; expected {tokenizer.mask}, the mask of the data's tokenizer")
    made = TokenDenoiser(network, process, event=tuple(data.shape))
    made.tokenizer = tokenizer
    return made


def train(
    config: TrainConfig | str | Path,
    folder: str | Path | None = None,
    *,
    resume: bool = True,
    device: torch.device | str | None = None,
    progress: bool = True,
    meta: Mapping[str, Any] | None = None,
    data: Dataset | None = None,
    watch: Callable[[int, Denoiser], None] | None = None,
    watch_every: int = 0,
) -> FitResult:
    """Trains what a configuration describes: what `tweed train CONFIG` does.

    Args:
        config: a configuration, or the path of its TOML file.
        folder: where the checkpoint goes; a run in it is resumed.
        resume, device, progress, watch, watch_every: as for `fit`.
        meta: more plain values to keep in the checkpoint, besides those of the configuration.
        data: instead of the data of the configuration.

    Raises:
        InputError, NumericalError, CheckpointError: as `TrainConfig.read`, `build`, `start_from` and `fit` do.
    """
    config = config if isinstance(config, TrainConfig) else TrainConfig.read(config)
    denoiser, data = build(config, data)
    told: dict[str, Any] = {"data": dict(config.data), **config.meta, **(meta or {})}
    classes = getattr(data, "characters", None)
    if classes is not None and "label" in data.conditions:
        told.setdefault("classes", list(classes))
    if folder is not None and resume and fine_tuning.interrupted(folder):
        started = fine_tuning.recorded(Path(folder), config.start)
    elif config.start is not None:
        started = fine_tuning.start_from(learned.network_of(denoiser), config.start)
    else:
        started = None
    if started:
        told["start"] = started
    settings = {f.name: getattr(config.optimisation, f.name) for f in dataclasses.fields(config.optimisation)}
    settings |= {f.name: getattr(config.logging, f.name) for f in dataclasses.fields(config.logging)}
    if folder is None:
        settings |= {"tensorboard": False, "sample_every": 0, "snapshot_every": 0}
    settings |= {"clip": config.optimisation.clip or None, "ema": config.optimisation.ema or None}
    return fit(
        denoiser,
        data,
        objective=config.objective,
        seed=config.seed,
        folder=folder,
        resume=resume,
        device=device,
        progress=progress,
        watch=watch,
        watch_every=watch_every,
        meta=told,
        **settings,
    )
