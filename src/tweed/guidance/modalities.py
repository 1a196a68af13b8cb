"""From a denoiser of an aggregate of modalities to the modalities: joint and conditional samples, predictions.

See `tweed.core.modalities` for what the aggregate is, and for which conditional rule is exact.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import grids, random
from tweed.core.aggregate import Aggregate
from tweed.core.denoiser import Denoiser
from tweed.core.modalities import ModalEstimate
from tweed.core.time import as_time
from tweed.errors import InputError, choose
from tweed.solvers import sampling
from tweed.solvers.base import Solver


def sample(
    denoiser: Denoiser,
    n: int | Tensor,
    known: Mapping[str, Tensor] | None = None,
    *,
    solver: Solver | None = None,
    steps: int = 50,
    grid: Callable[..., Tensor] | None = None,
    inverted: str | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """All modalities at once, jointly or given some: any solver down to the smallest time, where the heads are read.

    Args:
        denoiser: answers with a `ModalEstimate`; guided, or wrapped in `PlugIn` for the plug-in rule.
        n: how many, or the states to start from.
        known: name -> values, n rows or one for all.
        solver, steps, grid: as for `tweed.sample`; the last time is `process.t_min`.
        inverted: a modality that is not read by its head but from the aggregate, without the others; see `Aggregate.invert`.
        options: of `tweed.sample` (`seed`, `index`, `dtype`, ...).

    Returns:
        name -> samples: means for continuous modalities, labels for categorical ones, those that are known as they were
        given; and under "aggregate" the state that they were read from. What the aggregate does not determine is
        returned as its mean, not drawn.

    Raises:
        InputError: `known` names no modality, or anything that `tweed.sample` raises.
    """
    holder, known = _holder(denoiser), dict(known or {})
    aggregate: Aggregate = holder.aggregate
    for name in known:
        choose("known", name, aggregate.names)
    process = denoiser.process
    times = (grid or grids.default)(process, steps, start=denoiser.t_max, end=process.t_min)
    state = sampling.sample(denoiser, n, solver=solver, times=times, cond=known or None, **options)
    assert isinstance(state, Tensor)
    given = {k: v.to(state.device).expand(len(state), *v.shape[1:]) for k, v in known.items()}
    with torch.no_grad():
        estimate = denoiser(state, process.t_min, **given)
        # A wrapper that mixes estimates has no modalities; what it wraps reads them.
        estimate = estimate if isinstance(estimate, ModalEstimate) else holder(state, process.t_min, **given)
    read = _read(estimate)
    found = {name: answer.argmax(1) if name in aggregate.classes else answer for name, answer in read.items()}
    if inverted is not None and inverted not in given:
        found[inverted] = aggregate.invert(inverted, estimate.x0, {**found, **given})
    return {**found, **given, "aggregate": state}


def predict(
    denoiser: Denoiser,
    known: Mapping[str, Tensor],
    target: str,
    *,
    times: Sequence[float] = (0.02, 0.05, 0.1, 0.2),
    seed: int = 0,
) -> Float[Tensor, "b *out"]:
    """One modality from others, by its head: the mean, or the log probabilities of a label.

    The aggregate holds the known modalities only, renormalised, so that it cannot give the answer away; a network that was
    trained with dropout has seen such ones. The head's answers at several small noise levels are averaged.

    Raises:
        InputError: an unknown modality, or nothing is known.
    """
    aggregate: Aggregate = _holder(denoiser).aggregate
    for name in (*known, target):
        choose("target" if name == target else "known", name, aggregate.names)
    if not known or target in known:
        raise InputError(f"known: {list(known)} were given for {target!r}; expected at least one other modality")
    with torch.no_grad():
        e = aggregate(known)
        present = torch.tensor([[name in known for name in aggregate.names]], device=e.device).expand(len(e), -1)
        total = torch.zeros(())
        for draw, t in enumerate(times):
            noise = random.normal(e.shape, seed, draw=draw, dtype=e.dtype, device=e.device)
            answer = _read(denoiser(denoiser.process.perturb(e, t, noise), t, present=present))[target]
            total = total + (answer.log_softmax(-1) if target in aggregate.classes else answer)
    return total / len(times)


def log_probability(denoiser: Denoiser, name: str) -> Callable[..., Tensor]:
    """`log p(x_name | z_t)` of a categorical modality by its head, for `ClassifierGuidance(denoiser, ..., given=(name,))`.

    By Bayes' rule this makes conditional samples of a network that was never told a label, with no new training and without
    the bias of `PlugIn`, as far as the head is right about noisy states.

    Raises:
        InputError: `name` is no categorical modality.
    """
    choose("name", name, list(_holder(denoiser).aggregate.classes))

    def function(x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        told = {key: value for key, value in cond.items() if key != name}
        logits = _read(denoiser(x, as_time(t), **told))[name]
        return logits.log_softmax(-1).gather(1, cond[name].long()[:, None])[:, 0]

    return function


def _holder(denoiser: Denoiser) -> Any:
    """The outermost of nested denoisers that has an aggregate."""
    inner: Any = denoiser
    while not isinstance(getattr(inner, "aggregate", None), Aggregate):
        inner = getattr(inner, "denoiser", None)
        if inner is None:
            raise InputError(
                f"denoiser: {type(denoiser).__name__} has no modalities; expected one such as ModalNetwork"
            )
    return inner


def _read(estimate: Any) -> dict[str, Tensor]:
    if not isinstance(estimate, ModalEstimate):
        raise InputError(f"denoiser: it answered {type(estimate).__name__}; expected a ModalEstimate")
    return estimate.modalities
