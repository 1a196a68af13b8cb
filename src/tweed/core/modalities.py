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
any conditional sampling, exact up to the solver. The plug-in rule (`PlugIn`) takes `E[E_u(x_u) | z_t]` in its place, as a
network does that is told of nothing but the state. That is biased: it knows x_K only through the noise in z_t, and the known
part of the state carries the same eps all along the run, which the guess of x_u takes for a signal. For two standard
normals of correlation r (orthogonal encoders, any process and aggregate) its samples of x_2 given x_1 have the mean `m x_1`,

    m = r (1 - r^2)^{1/4} / 2 int_1^inf (v^2 - r^2)^{-5/4} dv,

instead of `r x_1`: a third of it where the two depend on each other weakly, all of it only where one determines the other.
(In s = sigma / alpha the guess has the gain `r s^2 / D` on x_1, `D = (1 + s^2)^2 - r^2`, hence `m' = s ((1 + s^2) m - r) / D`,
with m = o(s) at the noise.) Tell the network what is known.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tweed.core import targets
from tweed.core.aggregate import Aggregate, Entries
from tweed.core.denoiser import Denoiser, NetworkDenoiser, Wrapper
from tweed.core.estimate import Estimate
from tweed.core.processes import Process
from tweed.core.targets import Target
from tweed.core.time import working_dtype
from tweed.errors import IncompatibleError, InputError

_DATA = targets.Data()


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
                "told=True, or the plug-in rule, tweed.core.modalities.PlugIn(denoiser)"
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
    """The plug-in rule of conditional sampling: known modalities as they are, the others as the state alone tells; see above.

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
