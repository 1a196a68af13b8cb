"""How each kind of diffusers model is called: state, time and conditions in, the answer out, shaped like the state."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tweed.errors import IncompatibleError, InputError, choose

Cond = Mapping[str, Tensor]


class ModelNetwork(nn.Module):
    """A diffusers model as a network of tweed: `network(x, t, **cond)` answers with the shape of `x`.

    Models that also answer a variance have it cut off. Conditions are `label`; `tokens` (b, n, d) with `mask` (b, n); `vector`
    (b, d), the pooled text; `sizes` (b, 6) of Stable Diffusion XL; `guidance` (b,) of distilled models. `drop` is
    understood by models of classes alone, which have a null class.

    Args:
        model: one of `KINDS`.
        time_scale: what the time is multiplied by.

    Raises:
        InputError: a model of another kind.
    """

    def __init__(self, model: nn.Module, time_scale: float = 1.0):
        super().__init__()
        self.kind = type(model).__name__
        self._call, self._event, self._known = choose("model", self.kind, KINDS)
        self.model, self.time_scale = model, time_scale

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of one sample that the model was trained on."""
        return self._event(self.model.config)

    @property
    def classes(self) -> int:
        """How many classes it has, 0 for none."""
        config: Any = self.model.config
        known = {"DiTTransformer2DModel": "num_embeds_ada_norm", "UNet2DModel": "num_class_embeds"}
        return getattr(config, known.get(self.kind, ""), 0) or 0

    def tokens(self, event: tuple[int, ...]) -> int:
        """How many patches a sample of this shape has."""
        config: Any = self.model.config
        side = 2 if self.kind == "FluxTransformer2DModel" else getattr(config, "patch_size", None) or 1
        return (event[-2] // side) * (event[-1] // side)

    def forward(self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], **cond: Tensor) -> Float[Tensor, "b c h w"]:
        cond = {name: value for name, value in cond.items() if value is not None}
        unknown = sorted(set(cond) - self._known)
        if unknown:
            more = "; give the null conditions to ClassifierFree(null=...)" if "drop" in unknown else ""
            raise InputError(
                f"cond: {unknown} were given to {self.kind}; expected {sorted(self._known) or 'none'}{more}"
            )
        own = next(self.model.parameters()).dtype
        given = {n: v.to(own) if v.is_floating_point() and n not in ("sizes", "mask") else v for n, v in cond.items()}
        return self._call(self.model, x.to(own), t * self.time_scale, given)[:, : x.shape[1]]


def _needed(cond: Cond, kind: str, *names: str) -> list[Tensor]:
    missing = [name for name in names if name not in cond]
    if missing:
        raise IncompatibleError(f"cond: {kind} needs {missing}; DiffusersDenoiser.prompt makes them from a text")
    return [cond[name] for name in names]


def _unet(model: Any, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    return model(x, t, class_labels=cond.get("label")).sample


def _conditional_unet(model: Any, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    (tokens,) = _needed(cond, "UNet2DConditionModel", "tokens")
    added = None
    if model.config.addition_embed_type == "text_time":
        vector, sizes = _needed(cond, "this UNet2DConditionModel", "vector", "sizes")
        added = {"text_embeds": vector, "time_ids": sizes}
    given = {"class_labels": cond["label"]} if "label" in cond else {}
    return model(x, t, encoder_hidden_states=tokens, added_cond_kwargs=added, **given).sample


def _dit(model: Any, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    null = model.config.num_embeds_ada_norm
    label = cond.get("label", torch.full((len(x),), null, device=x.device))
    if "drop" in cond:
        label = torch.where(cond["drop"], null, label)
    return model(x, timestep=t, class_labels=label).sample


def _pixart(model: Any, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    (tokens,) = _needed(cond, "PixArtTransformer2DModel", "tokens")
    side = model.config.sample_size * 8.0
    # The larger models are told the picture's size and proportions.
    sizes = {"resolution": None, "aspect_ratio": None}
    if model.use_additional_conditions:
        ones = torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
        sizes = {"resolution": torch.cat((side * ones, side * ones), dim=1), "aspect_ratio": ones}
    return model(
        x, encoder_hidden_states=tokens, timestep=t, encoder_attention_mask=cond.get("mask"), added_cond_kwargs=sizes
    ).sample


def _sd3(model: Any, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    tokens, vector = _needed(cond, "SD3Transformer2DModel", "tokens", "vector")
    return model(hidden_states=x, timestep=t, encoder_hidden_states=tokens, pooled_projections=vector).sample


def _flux(model: Any, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    tokens, vector = _needed(cond, "FluxTransformer2DModel", "tokens", "vector")
    b, c, h, w = x.shape
    if h % 2 or w % 2:
        raise InputError(f"x: shape {tuple(x.shape)} was given; expected an even height and width")
    # Two by two pixels make a token; its place is told by three numbers.
    packed = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)
    place = torch.zeros(h // 2, w // 2, 3, device=x.device, dtype=x.dtype)
    place[..., 1] += torch.arange(h // 2, device=x.device)[:, None]
    place[..., 2] += torch.arange(w // 2, device=x.device)
    guidance = None
    if model.config.guidance_embeds:
        (guidance,) = _needed(cond, "this FluxTransformer2DModel", "guidance")
    answer = model(
        hidden_states=packed,
        timestep=t / 1000.0,
        guidance=guidance,
        pooled_projections=vector,
        encoder_hidden_states=tokens,
        txt_ids=torch.zeros(tokens.shape[1], 3, device=x.device, dtype=x.dtype),
        img_ids=place.reshape(-1, 3),
    ).sample
    return answer.reshape(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)


def _square(config: Any) -> tuple[int, ...]:
    size = config.sample_size
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return (config.in_channels, height, width)


def _packed_square(config: Any) -> tuple[int, ...]:
    # Its configuration does not say: 1024 x 1024 pixels, an eighth of that in latents.
    return (config.in_channels // 4, 128, 128)


KINDS: dict[str, tuple[Callable[..., Tensor], Callable[[Any], tuple[int, ...]], frozenset[str]]] = {
    "UNet2DModel": (_unet, _square, frozenset({"label"})),
    "UNet2DConditionModel": (_conditional_unet, _square, frozenset({"tokens", "vector", "sizes", "label"})),
    "DiTTransformer2DModel": (_dit, _square, frozenset({"label", "drop"})),
    "PixArtTransformer2DModel": (_pixart, _square, frozenset({"tokens", "mask"})),
    "SD3Transformer2DModel": (_sd3, _square, frozenset({"tokens", "vector"})),
    "FluxTransformer2DModel": (_flux, _packed_square, frozenset({"tokens", "vector", "guidance"})),
}
"""The models that are known: how they are called, the shape of a sample, and their conditions."""
