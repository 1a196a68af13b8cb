"""The conditions that a text gives, for each kind of diffusers pipeline."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tweed.errors import choose

Conditions = dict[str, Tensor]
Encoded = tuple[Conditions, Conditions]


def encode(
    pipeline: Any,
    prompt: Sequence[str],
    negative: Sequence[str],
    guidance: float,
    device: torch.device,
    pixels: tuple[int, int],
) -> Encoded:
    """Conditions of the prompts and of the negative ones, a row each.

    Args:
        pipeline: with text encoders, of a kind in `PIPELINES`.
        guidance: the scale that distilled models are told.
        pixels: height and width of the picture, which Stable Diffusion XL is told.

    Raises:
        InputError: a pipeline of another kind.
    """
    made = choose("pipeline", type(pipeline).__name__, PIPELINES)
    return made(pipeline, list(prompt), list(negative), guidance, device, pixels)


def _stable_diffusion(pipeline, prompt, negative, guidance, device, pixels) -> Encoded:
    tokens, null = pipeline.encode_prompt(prompt, device, 1, True, negative_prompt=negative)
    return {"tokens": tokens}, {"tokens": null}


def _stable_diffusion_xl(pipeline, prompt, negative, guidance, device, pixels) -> Encoded:
    tokens, null, vector, null_vector = pipeline.encode_prompt(
        prompt, device=device, do_classifier_free_guidance=True, negative_prompt=negative
    )
    # The original size, the crop's corner, and the size that is wanted.
    sizes = torch.tensor([[*pixels, 0, 0, *pixels]], dtype=torch.float32, device=device).expand(len(tokens), -1)
    return (
        {"tokens": tokens, "vector": vector, "sizes": sizes},
        {"tokens": null, "vector": null_vector, "sizes": sizes},
    )


def _stable_diffusion_3(pipeline, prompt, negative, guidance, device, pixels) -> Encoded:
    tokens, null, vector, null_vector = pipeline.encode_prompt(
        prompt, None, None, device=device, do_classifier_free_guidance=True, negative_prompt=negative
    )
    return {"tokens": tokens, "vector": vector}, {"tokens": null, "vector": null_vector}


def _pixart(pipeline, prompt, negative, guidance, device, pixels) -> Encoded:
    tokens, mask, null, null_mask = pipeline.encode_prompt(prompt, negative_prompt=negative, device=device)
    return {"tokens": tokens, "mask": mask}, {"tokens": null, "mask": null_mask}


def _flux(pipeline, prompt, negative, guidance, device, pixels) -> Encoded:
    tokens, vector, _ = pipeline.encode_prompt(prompt, None, device=device)
    told = {"tokens": tokens, "vector": vector}
    if pipeline.transformer.config.guidance_embeds:
        told["guidance"] = torch.full((len(tokens),), guidance, dtype=torch.float32, device=device)
        return told, {}
    null, null_vector, _ = pipeline.encode_prompt(negative, None, device=device)
    return told, {"tokens": null, "vector": null_vector}


PIPELINES: dict[str, Callable[..., Encoded]] = {
    "StableDiffusionPipeline": _stable_diffusion,
    "StableDiffusionImg2ImgPipeline": _stable_diffusion,
    "StableDiffusionXLPipeline": _stable_diffusion_xl,
    "StableDiffusion3Pipeline": _stable_diffusion_3,
    "PixArtAlphaPipeline": _pixart,
    "PixArtSigmaPipeline": _pixart,
    "FluxPipeline": _flux,
}
"""The pipelines whose texts are understood."""
