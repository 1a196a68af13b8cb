"""Several modalities of one thing (an image, its label, ...) in ONE diffusion variable, read back by a head each.

Chen et al., "Diffusion Models for Multi-Task Generative Modeling" (ICLR 2024, arXiv 2407.17571). Each modality `x_i` has an
encoder `E_i` into the space of the diffusion; their aggregate

    e = sum_i E_i(x_i) / n^power,    over the n modalities that are there,

is ordinary data for any one-sided process and any solver. A denoiser of e that also tells what each `x_i` is given the state
answers with a `ModalEstimate`. `power = 1` is the mean, as published; with `1/2` the aggregate of unlike encodings has the
same size however many there are, so the noise levels keep their meaning.

**Conditional sampling.** Where some modalities K are known, the flow of `p(e | x_K)` needs

    E[e | z_t, x_K] = (sum_K E_k(x_K) + sum_U E[E_u(x_u) | z_t, x_K]) / N^power.

A `ModalEstimate` made under the conditions `x_K` gives it: then it is `tweed.sample(denoiser, n, cond={"label": labels})`, as
any conditional sampling, exact up to the solver. The published rule (`PlugIn`) takes `E[E_u(x_u) | z_t]` in its place, as a
network does that is told of nothing but the state. That is biased: it knows x_K only through the noise in z_t, and the known
part of the state carries the same eps all along the run, which the guess of x_u takes for a signal. For two standard
normals of correlation r (orthogonal encoders, any process and aggregate) its samples of x_2 given x_1 have the mean `m x_1`,

    m = r (1 - r^2)^{1/4} / 2 int_1^inf (v^2 - r^2)^{-5/4} dv,

instead of `r x_1`: a third of it where the two depend on each other weakly, all of it only where one determines the other.
(In s = sigma / alpha the guess has the gain `r s^2 / D` on x_1, `D = (1 + s^2)^2 - r^2`, hence `m' = s ((1 + s^2) m - r) / D`,
with m = o(s) at the noise.) `mix` between the guess and the plain estimate does not mend it. Tell the network what is known.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from tweed.core import random, targets
from tweed.core.denoiser import Denoiser, NetworkDenoiser, Wrapper
from tweed.core.estimate import Estimate
from tweed.core.processes import Process
from tweed.core.targets import Target
from tweed.core.time import left, working_dtype
from tweed.errors import IncompatibleError, InputError

Entries = Mapping[str, Tensor]
_DATA = targets.Data()
_RESERVED = ("x", "t", "noise", "weight", "drop", "present", "told", "y")


class Scaled(nn.Module):
    """The encoder `scale x`, for a modality of the shape of the diffusion variable."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = scale

    def forward(self, x: Float[Tensor, "b *event"]) -> Float[Tensor, "b *event"]:
        return self.scale * x

    def invert(self, code: Float[Tensor, "b *event"]) -> Float[Tensor, "b *event"]:
        """The x of an encoding."""
        return code / self.scale


class Embedding(nn.Module):
    """The encoder `gain Q x`: a flattened x (a one-hot label) on orthonormal directions of the diffusion space.

    With the gain `sqrt(d / size)`, which is the default, an x of root mean square 1 stays so; a one-hot vector, which is
    smaller, needs `sqrt(d)`.

    Args:
        size: numbers in x.
        event: the shape of the diffusion variable, d numbers.
        gain: a number, or None.
        seed: of the directions, which no initialisation of a network changes.
        learned: make the matrix `gain Q` a parameter.
        matrix: Q itself, (d, size), where it is given.

    Raises:
        InputError: more numbers than the space has, or a matrix of another shape.
    """

    matrix: Tensor

    def __init__(
        self,
        size: int,
        event: tuple[int, ...],
        gain: float | None = None,
        seed: int = 0,
        learned: bool = False,
        matrix: Float[Tensor, "d size"] | None = None,
    ):
        super().__init__()
        self.event, d = tuple(event), math.prod(event)
        if matrix is None and not 1 <= size <= d:
            raise InputError(f"size: {size} was given; expected 1 to {d}, the numbers of the diffusion variable")
        draws = random.normal((d, size), random.fold(seed, 0x656D62), dtype=torch.float64) if matrix is None else None
        directions = matrix if draws is None else torch.linalg.qr(draws)[0].float()
        assert directions is not None
        if directions.shape != (d, size):
            raise InputError(f"matrix: shape {tuple(directions.shape)} was given; expected ({d}, {size})")
        scaled = (math.sqrt(d / size) if gain is None else gain) * directions
        if learned:
            self.matrix = nn.Parameter(scaled)
        else:
            self.register_buffer("matrix", scaled)

    def forward(self, x: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *event"]:
        return (x.flatten(1).to(self.matrix.dtype) @ self.matrix.T).reshape(len(x), *self.event)


class Aggregate(nn.Module):
    """`sum_i E_i(x_i) / n^power` over the modalities that are there; their names are those of a batch's entries.

    Args:
        encoders: name -> a module from x_i (b, *shape) to the diffusion space (b, *event); never the same one twice, or the
            aggregate could not tell the two apart. Their order is that of the columns of `present` and `told`.
        classes: name -> number of classes, for categorical modalities: their values are labels (b,), or probabilities
            (b, classes), which stand for the expected encoding.
        power: of the number of modalities; see above.

    Raises:
        InputError: no encoders, a name that means something else, or classes of an unknown modality.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], classes: Mapping[str, int] | None = None, power: float = 1.0):
        super().__init__()
        if not encoders or set(encoders) & set(_RESERVED):
            raise InputError(f"encoders: {list(encoders)} were given; expected at least one, none of {_RESERVED}")
        self.encoders, self.classes, self.power = nn.ModuleDict(encoders), dict(classes or {}), power
        if not set(self.classes) <= set(encoders):
            raise InputError(f"classes: {list(self.classes)} were given; expected some of {list(encoders)}")

    @property
    def names(self) -> list[str]:
        """The modalities, in order."""
        return list(self.encoders)

    def known(self, entries: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        """The modalities among some entries."""
        return {name: value for name in self.names if (value := entries.get(name)) is not None}

    def encode(self, name: str, x: Shaped[Tensor, "b ..."]) -> Float[Tensor, "b *event"]:
        """`E_name(x)`."""
        if name in self.classes and not x.is_floating_point():
            x = F.one_hot(x.long(), self.classes[name]).to(torch.get_default_dtype())
        return self.encoders[name](x)

    def partial(self, entries: Entries, told: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b *event"]:
        """What the modalities among `entries` contribute to the aggregate of all, zero in rows where they are not `told`."""
        total: Tensor | None = None
        for place, name in enumerate(self.names):
            if name in entries:
                code = self.encode(name, entries[name])
                # A modality that a row lacks may hold anything, but not a number times zero.
                code = code if told is None else torch.where(left(told[:, place], code).bool(), code, 0.0)
                total = code if total is None else total + code
        if total is None:
            raise InputError(f"entries: {list(entries)} were given; expected at least one of {self.names}")
        return total / len(self.names) ** self.power

    def forward(self, entries: Entries, present: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b *event"]:
        """The aggregate of the modalities among `entries`, in each row of those that are `present` (all, by default).

        Raises:
            InputError: none of `entries` is a modality.
        """
        total = self.partial(entries, present)
        if present is None:
            count: Tensor | float = len(self.known(entries))
            return total * (len(self.names) / count) ** self.power
        there = [name in entries for name in self.names]
        count = (present & torch.tensor(there, device=present.device)).sum(1).clamp_min(1)
        return total * left((len(self.names) / count) ** self.power, total)

    def invert(self, name: str, e: Float[Tensor, "b *event"], others: Entries) -> Float[Tensor, "b *event"]:
        """The modality that, with all others, has the aggregate e: `E^{-1}(n^power e - sum_j E_j(x_j))`, for a `Scaled` one.

        Encoders are linear, so what holds for values holds for their means given the state. Errors of e grow by `n^power`.

        Raises:
            InputError: the encoder has no inverse, or one of the others is missing.
        """
        encoder = self.encoders[name] if name in self.names else None
        rest = {other: others[other] for other in self.names if other != name and other in others}
        if not isinstance(encoder, Scaled) or len(rest) != len(self.names) - 1:
            raise InputError(f"name: {name!r} with {list(others)} was given; expected a Scaled one, and all the others")
        total = len(self.names) ** self.power
        return encoder.invert(total * (e - self.partial(rest)) if rest else e)


class ModalEstimate(Estimate):
    """An estimate of the aggregate with, for each modality, the mean given the state; of a categorical one the logits.

    Attributes:
        modalities: name -> (b, *shape) or (b, classes); a wrapper that changes the estimate leaves them as they were read.
    """

    __slots__ = ("modalities",)

    def __init__(self, *args, modalities: dict[str, Tensor], **options):
        super().__init__(*args, **options)
        self.modalities = modalities

    def replace(self, target, answer):
        return ModalEstimate(self.x, self.t, answer, self.process, target, self.y, modalities=self.modalities)


class ModalNetwork(NetworkDenoiser):
    """A network with heads (`tweed.nets.MultiHead`) as a denoiser of the aggregate; arguments as for `NetworkDenoiser`.

    Conditions: the known modalities by name, where the network was built to be told; `told` (b, n), the rows in which they
    are (all by default), but for those in `drop` (b,); `present` (b, n), which modalities are in the aggregate (all by default).

    Raises:
        InputError: the network has no `aggregate`.
        IncompatibleError: (on use) a modality is given to a network that is not told any; see `PlugIn`.
    """

    def __init__(self, network: nn.Module, process: Process, target: Target, **options: Any):
        if not isinstance(getattr(network, "aggregate", None), Aggregate):
            raise InputError(f"network: {type(network).__name__} has no aggregate; expected one such as MultiHead")
        super().__init__(network, process, target, **{"event": network.event, **options})

    @property
    def aggregate(self) -> Aggregate:
        """The encoders."""
        return self.network.aggregate  # type: ignore[attr-defined]

    def forward(self, x, t, **cond):
        dtype = working_dtype(x)
        state = x.to(dtype)
        given = self._scaled(state, t) if self.input_scale == "unit" else state
        known, context = self.aggregate.known(cond), None
        if self.network.told:  # type: ignore[attr-defined]
            context = self._told(given, known, cond)
        elif known:
            raise IncompatibleError(
                f"cond: {list(known)} were given, of which this network cannot be told; expected one built with "
                "told=True, or the published rule, tweed.modalities.PlugIn(denoiser)"
            )
        given = given if self._dtype is None else given.to(self._dtype)
        answer, read = self.network.everything(  # type: ignore[attr-defined]
            given, self.time_input(x, t), present=cond.get("present"), known=context
        )
        return ModalEstimate(state, t, answer, self.process, self.target, modalities=read)

    def _told(self, x: Tensor, known: Entries, cond: Mapping[str, Tensor | None]) -> Tensor:
        if not known:
            return torch.zeros_like(x)
        told, drop = cond.get("told"), cond.get("drop")
        if drop is not None:
            told = torch.ones_like(drop)[:, None].expand(-1, len(self.aggregate.names)) if told is None else told
            told = told & ~drop[:, None]
        # Detached: a loss of the noise must not train an encoder, through what is told as little as through the state.
        return self.aggregate.partial(known, told).detach()


class PlugIn(Wrapper):
    """Conditional sampling as published: known modalities as they are, the others as the state alone tells; see above.

    The conditions that are modalities are kept from the denoiser, and `x0` becomes
    `mix e + (1 - mix) E[e | z_t]`, where e is the aggregate of the known and the guessed (expected encodings of labels).
    With all modalities known, e is exact. Any solver runs it; it is biased, see above.

    Args:
        denoiser: one that answers with a `ModalEstimate` and has an `aggregate`.
        mix: 1 as above; 0 ignores what is known.

    Raises:
        InputError: `mix` is outside [0, 1], or the denoiser has no `aggregate`.
    """

    def __init__(self, denoiser: Denoiser, mix: float = 1.0):
        super().__init__(denoiser)
        if not 0.0 <= mix <= 1.0:
            raise InputError(f"mix: {mix} was given; expected a number in [0, 1]")
        if not isinstance(getattr(denoiser, "aggregate", None), Aggregate):
            raise InputError(f"denoiser: {type(denoiser).__name__} has no aggregate; expected one such as ModalNetwork")
        self.mix = mix

    @property
    def aggregate(self) -> Aggregate:
        """The encoders."""
        return self.denoiser.aggregate  # type: ignore[return-value]

    def forward(self, x, t, **cond):
        known = self.aggregate.known(cond)
        estimate = self.denoiser(x, t, **{name: value for name, value in cond.items() if name not in known})
        if not known:
            return estimate
        assert isinstance(estimate, ModalEstimate)
        guessed = {
            name: answer.softmax(-1) if name in self.aggregate.classes else answer
            for name, answer in estimate.modalities.items()
        }
        e = self.aggregate({**guessed, **known}).to(estimate.x)
        return estimate.replace(_DATA, e if self.mix == 1.0 else self.mix * e + (1.0 - self.mix) * estimate.x0)
