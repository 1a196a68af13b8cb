"""A backbone whose features answer the noise and every modality, each by a head of its own.

Chen et al., "Diffusion Models for Multi-Task Generative Modeling" (ICLR 2024, arXiv 2407.17571). The encoders belong to the
network too, so that its configuration is the whole model; `tweed.core.modalities.ModalNetwork` makes it a denoiser.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tweed.core.aggregate import Aggregate, Embedding, Scaled
from tweed.errors import InputError, choose, reject_unknown
from tweed.nets.mlp import MLP
from tweed.nets.registry import build, register, zero

_ENCODERS = ("scaled", "orthonormal", "learned")


@register("multi_head")
class MultiHead(nn.Module):
    """Features from any network of the registry, then one linear map for the noise and one for each modality.

    The maps to the noise, and to modalities of the diffusion variable's shape, see the state beside the features: where there is
    little noise, it is most of the answer.

    The network is also told which modalities are in the aggregate, as the `vector` condition of the backbone: aggregates of
    fewer modalities are other data, and one that cannot tell them apart generates them all in turn.

    A modality is `{"shape": [...]}` (continuous: its head answers the mean) or `{"classes": c}` (its head answers logits), with

    - `encoder`: "scaled" (`scale x`, for the shape of the diffusion variable), "orthonormal" (fixed random directions; the
      default of labels) or "learned" (these at the start);
    - `scale`: what brings it to root mean square 1 (1 by default; labels are there already);
    - `seed`: of the directions; give each modality its own.

    Args:
        backbone: the configuration of a network, without the numbers of its inputs and outputs and its conditions.
        modalities: name -> modality.
        event: the shape of the diffusion variable, channels first.
        features: channels of the backbone's output.
        power: of the number of modalities; see `tweed.core.modalities`.
        told: make the network able to be told known modalities: an input more, their share of the aggregate, or zero.

    Raises:
        InputError: an option is unknown or out of its range.
    """

    def __init__(
        self,
        backbone: dict,
        modalities: dict,
        event: Sequence[int],
        *,
        features: int = 128,
        power: float = 1.0,
        told: bool = False,
    ) -> None:
        super().__init__()
        self.event, self.told = tuple(event), told
        self.aggregate = aggregate(modalities, self.event, power)
        channels = self.event[0]
        if backbone.get("name") == "mlp":
            sizes = {"dim": math.prod(event), "out_dim": features, "endpoint_channels": math.prod(event) * told}
        else:
            sizes = {"in_channels": channels, "out_channels": features, "endpoint_channels": channels * told}
        own = {**sizes, "vector_dim": len(modalities), "zero_init": False}
        self.backbone = build({**backbone, **own})
        self.activation = nn.SiLU()
        flat = isinstance(self.backbone, MLP)
        wide = math.prod(event) if flat else channels
        self.noise = zero(nn.Linear(features + wide, wide))
        self.shapes = {name: tuple(m["shape"] if "shape" in m else (m["classes"],)) for name, m in modalities.items()}
        # A modality on the same positions is read at each of them, any other from their mean.
        self.pooled = {n for n, shape in self.shapes.items() if flat or shape[1:] != self.event[1:] or len(shape) < 2}
        self.skipped = {n for n, shape in self.shapes.items() if n not in self.pooled or (flat and shape == self.event)}
        self.heads = nn.ModuleDict(
            {
                n: nn.Linear(features + wide * (n in self.skipped), math.prod(s) if n in self.pooled else s[0])
                for n, s in self.shapes.items()
            }
        )

    def everything(
        self,
        x: Float[Tensor, "b *event"],
        t: Float[Tensor, " b"],
        present: Bool[Tensor, "b n"] | None = None,
        known: Float[Tensor, "b *event"] | None = None,
    ) -> tuple[Float[Tensor, "b *event"], dict[str, Tensor]]:
        """The noise (or whatever the target is) and each modality, (b, *shape) or logits (b, classes).

        Args:
            present: the modalities that are in the aggregate; all by default.
            known: `aggregate.partial` of what is told, for a network that can be.
        """
        names = self.aggregate.names
        there = torch.ones(len(x), len(names), device=x.device) if present is None else present
        options: dict[str, Any] = {"vector": there.to(x.dtype)}
        if self.told:
            context = torch.zeros_like(x) if known is None else known.to(x.dtype)
            options["y"] = context.flatten(1) if isinstance(self.backbone, MLP) else context
        h = self.activation(self.backbone(x, t, **options))
        h, state = (h.flatten(1), x.flatten(1)) if isinstance(self.backbone, MLP) else (h, x)
        whole = torch.cat((h, state.to(h.dtype)), 1)
        pooled = h.flatten(2).mean(2) if h.ndim > 2 else h
        read = {}
        for name in names:
            seen = whole if name in self.skipped else pooled
            answer = _pointwise(self.heads[name], seen)
            read[name] = answer.reshape(len(x), *self.shapes[name])
        return _pointwise(self.noise, whole).reshape(x.shape).to(x.dtype), read

    def forward(
        self,
        x: Float[Tensor, "b *event"],
        t: Float[Tensor, " b"],
        present: Bool[Tensor, "b n"] | None = None,
        known: Float[Tensor, "b *event"] | None = None,
    ) -> Float[Tensor, "b *event"]:
        """The answer to the target alone."""
        return self.everything(x, t, present, known)[0]


def aggregate(modalities: Mapping[str, Mapping[str, Any]], event: tuple[int, ...], power: float = 1.0) -> Aggregate:
    """The encoders that a configuration of modalities describes, see `MultiHead`."""
    encoders: dict[str, nn.Module] = {}
    classes = {name: m["classes"] for name, m in modalities.items() if "classes" in m}
    for name, m in modalities.items():
        reject_unknown(f"option of modality {name!r}", m, ("shape", "classes", "encoder", "scale", "seed"))
        if ("shape" in m) == ("classes" in m):
            raise InputError(f"modality {name!r}: {dict(m)} was given; expected either 'shape' or 'classes'")
        label = name in classes
        kind = choose("encoder", m.get("encoder", "orthonormal" if label else "scaled"), _ENCODERS)
        scale, d = m.get("scale", 1.0), math.prod(event)
        if kind == "scaled":
            if label or tuple(m["shape"]) != event:
                raise InputError(f"encoder: 'scaled' was given for {dict(m)}; expected the shape {event} itself")
            encoders[name] = Scaled(scale)
            continue
        size = m["classes"] if label else math.prod(m["shape"])
        gain = scale * math.sqrt(d if label else d / size)
        encoders[name] = Embedding(size, event, gain, m.get("seed", 0), learned=kind == "learned")
    return Aggregate(encoders, classes, power)


def _pointwise(head: nn.Module, h: Float[Tensor, "b f *space"]) -> Float[Tensor, "b c *space"]:
    return head(h.movedim(1, -1)).movedim(-1, 1)
