"""Models of diffusers as denoisers: every solver, guidance, inversion and inverse method of tweed then runs on them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tweed.core import random
from tweed.core.denoiser import NetworkDenoiser
from tweed.errors import CheckpointError, IncompatibleError, InputError, MissingPackageError
from tweed.interop.models import KINDS, ModelNetwork
from tweed.interop.prompts import encode
from tweed.interop.schedules import Schedule, configuration, read_schedule

Conditions = dict[str, Tensor]


class DiffusersDenoiser(NetworkDenoiser):
    """A diffusers model; on latents where it came with an autoencoder.

    Attributes:
        pipeline: the diffusers pipeline that it came from, or None.
        autoencoder: its autoencoder, or None for a model of pixels.
        grid: the grid function that the model is usually sampled on: `tw.sample(denoiser, 4, grid=denoiser.grid)`.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        *,
        pipeline: Any = None,
        autoencoder: nn.Module | None = None,
        event: tuple[int, ...] | None = None,
    ):
        network = ModelNetwork(model, schedule.time_scale)
        event = event or network.event
        super().__init__(network, schedule.process, schedule.target, time=schedule.time, event=event)
        self.model_network = network
        self.autoencoder = autoencoder
        self.grid = schedule.grid(network.tokens(event))
        # Not a module: its parts are held once, as this denoiser's own.
        object.__setattr__(self, "pipeline", pipeline)

    def prompt(
        self, prompt: str | Sequence[str], negative: str | Sequence[str] = "", *, guidance: float = 3.5
    ) -> tuple[Conditions, Conditions]:
        """The conditions of texts, and the null conditions of as many.

        The first go to `tw.sample(..., cond=)`, the second to `tw.guidance.ClassifierFree(denoiser, scale, null=)`. They are
        empty for a model that was distilled to follow `guidance` without them.

        Args:
            prompt: one text a sample, or one for one sample.
            negative: what is guided away from; one text for all, or one each.
            guidance: the scale that distilled models are told.

        Raises:
            IncompatibleError: there is no pipeline with text encoders, or it is of an unknown kind.
            InputError: the numbers of texts differ.
        """
        if self.pipeline is None:
            raise IncompatibleError("prompt: this denoiser came without text encoders; load it from a pipeline")
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        against = [negative] * len(texts) if isinstance(negative, str) else list(negative)
        if not texts or len(against) != len(texts):
            raise InputError(
                f"prompt, negative: {len(texts)} and {len(against)} texts were given; expected as many, and one at least"
            )
        with torch.no_grad():
            return encode(self.pipeline, texts, against, guidance, self.device, self.pixels)

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of the picture that a sample of this denoiser decodes to."""
        factor = 1 if self.autoencoder is None else _factor(self.autoencoder)
        event = self.event or self.model_network.event
        return event[-2] * factor, event[-1] * factor

    def encode(self, images: Float[Tensor, "b c height width"], seed: int | None = None) -> Float[Tensor, "b z h w"]:
        """The latents of images in [-1, 1], in the scale that the model was trained in; images where there is no autoencoder.

        Args:
            seed: draw the latents from the encoder's law; its mode where not given.
        """
        if self.autoencoder is None:
            return images
        autoencoder: Any = self.autoencoder
        with torch.no_grad():
            made = autoencoder.encode(images.to(autoencoder.dtype))
        if hasattr(made, "latent_dist"):
            z = made.latent_dist.mean.float()
            if seed is not None:
                z = z + made.latent_dist.std.float() * random.normal(z.shape, seed, device=z.device)
        else:
            z = made.latent.float()
        scale, shift = _scaling(autoencoder)
        return (z - shift) * scale

    def decode(self, latents: Float[Tensor, "b z h w"]) -> Float[Tensor, "b c height width"]:
        """The images of latents, in [-1, 1] or a little out of it; latents themselves where there is no autoencoder."""
        if self.autoencoder is None:
            return latents
        autoencoder: Any = self.autoencoder
        scale, shift = _scaling(autoencoder)
        with torch.no_grad():
            return autoencoder.decode((latents / scale + shift).to(autoencoder.dtype)).sample.float()


def from_diffusers(
    source: Any,
    *,
    scheduler: Any = None,
    size: tuple[int, int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> DiffusersDenoiser:
    """A denoiser from a diffusers pipeline, a model, or the folder or Hub id of either.

    Process and target are read from the scheduler's configuration; any scheduler of the same training will do.

    Args:
        source: a pipeline with a `unet` or `transformer` of a known kind (see `tweed.interop.KINDS`); such a model, with its
            scheduler; or a folder or Hub id, of which safetensors alone are read and no code is run.
        scheduler: the scheduler, or its configuration, that is read instead of the pipeline's.
        size: height and width of a sample in pixels, where not those that the model was trained on.
        dtype, device: of everything that is loaded or moved; left as they are by default.

    Raises:
        MissingPackageError: diffusers is not installed.
        CheckpointError: there is no such pipeline or model, or its weights are missing or not safetensors.
        InputError: a model or scheduler of unknown kind, or a size that the autoencoder does not divide.
    """
    pipeline, model = (None, source)
    if isinstance(source, str | Path):
        source = _loaded(source, dtype)
    if not isinstance(source, nn.Module):
        pipeline = source
        parts: Mapping[str, Any] = getattr(source, "components", {})
        model = parts.get("transformer") or parts.get("unet")
        if model is None:
            raise InputError(f"source: {type(source).__name__} was given; expected a pipeline or model of diffusers")
        scheduler = parts.get("scheduler") if scheduler is None else scheduler
    else:
        model = source
    if scheduler is None:
        raise InputError("scheduler: None was given; expected the scheduler of a model that comes alone")
    schedule = read_schedule(configuration(scheduler))
    autoencoder = None if pipeline is None else pipeline.components.get("vae")
    event = None
    if size is not None:
        factor = 1 if autoencoder is None else _factor(autoencoder)
        if size[0] % factor or size[1] % factor or min(size) < 1:
            raise InputError(f"size: {size} was given; expected multiples of {factor} pixels")
        event = (ModelNetwork(model).event[0], size[0] // factor, size[1] // factor)
    made = DiffusersDenoiser(model, schedule, pipeline=pipeline, autoencoder=autoencoder, event=event).eval()
    if pipeline is not None and (dtype is not None or device is not None):
        pipeline.to(**{k: v for k, v in (("dtype", dtype), ("device", device)) if v is not None})
    return made.to(device=device, dtype=dtype)


def _loaded(source: str | Path, dtype: torch.dtype | None) -> Any:
    try:
        import diffusers
    except ImportError:
        raise MissingPackageError(
            "interop: the package diffusers is needed; expected `pip install tweed[diffusers]`"
        ) from None
    options: dict[str, Any] = {"use_safetensors": True} | ({} if dtype is None else {"torch_dtype": dtype})
    folder = Path(source)
    try:
        if folder.is_dir() and not (folder / "model_index.json").exists():
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            kind = config.get("_class_name")
            if kind not in KINDS:
                raise InputError(f"source: {source} holds a {kind!r}; expected a pipeline, or one of {sorted(KINDS)}")
            return getattr(diffusers, kind).from_pretrained(str(source), **options)
        return diffusers.DiffusionPipeline.from_pretrained(str(source), **options)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise CheckpointError(f"source: {source} cannot be read as a model of diffusers: {error}") from error


def _factor(autoencoder: Any) -> int:
    config = autoencoder.config
    blocks = getattr(config, "block_out_channels", None) or getattr(config, "encoder_block_out_channels", (1,))
    return 2 ** (len(blocks) - 1)


def _scaling(autoencoder: Any) -> tuple[float, float]:
    config = autoencoder.config
    return float(getattr(config, "scaling_factor", 1.0) or 1.0), float(getattr(config, "shift_factor", 0.0) or 0.0)
