"""A longer context without training: rotary positions whose base is raised, so that slow pairs turn no further than they did.

"LongLLaDA: Unlocking Long Context Capabilities in Diffusion LLMs" (2025, arXiv 2506.14429); after Liu et al., "Scaling Laws of
RoPE-based Extrapolation" (2024), and the "NTK-aware" change of the base. Pair j of a head of d features turns by
`m b^(-2 j / d)` at position m. Training on T positions shows a whole turn of the pairs `j < d_crit / 2` alone:

    d_crit = 2 ceil(d / 2 log_b(T / (2 pi))).

At the base `lambda b` with `lambda = (t / (2 pi))^(d / d_crit) / b` the last of them takes t positions for a turn; the slower
ones, whose angles beyond T were never seen, turn at t about as far as they did at T.
"""

import copy
import math
from typing import Any

from torch import nn

from tweed.core.denoiser import Denoiser
from tweed.errors import IncompatibleError, InputError

_HAIR = 1e-9  # a factor that is a whole number but for rounding is not rounded up


def critical_dimension(base: float, head_dim: int, train_len: int, bidirectional: bool = False) -> int:
    """`d_crit`: how many features of a head make a whole turn within the training length; even.

    More than `head_dim` means that all do.

    Args:
        base: of the rotary positions.
        head_dim: features of a head, d.
        train_len: the longest sequence of training, T.
        bidirectional: count relative positions of both signs, 2 T of them, as later work proposes; the paper does not.

    Raises:
        InputError: a base of at most 1, an odd number of features, or a training length below a turn of the fastest pair, 2 pi.
    """
    _check(base, head_dim)
    if not train_len > 2.0 * math.pi:
        raise InputError(f"train_len: {train_len} was given; expected at least 7 positions, a turn of the fastest pair")
    return 2 * math.ceil(head_dim / 2 * math.log(_span(train_len, bidirectional)) / math.log(base) - _HAIR)


def ntk_factor(base: float, head_dim: int, train_len: int, target_len: int, bidirectional: bool = False) -> float:
    """`lambda`, before it is rounded up: below 1 where the target is no longer than training; arguments as for `ntk_rope_base`.

    Raises:
        InputError: an argument is out of its range.
    """
    critical = critical_dimension(base, head_dim, train_len, bidirectional)
    if not target_len >= 1:
        raise InputError(f"target_len: {target_len} was given; expected at least 1")
    return math.exp(head_dim / critical * math.log(_span(target_len, bidirectional)) - math.log(base))


def ntk_rope_base(base: float, head_dim: int, train_len: int, target_len: int, bidirectional: bool = False) -> float:
    """The base for sequences of `target_len`: `base` times the factor, rounded up to a whole number, and never below `base`.

    For LLaDA (500000, 128, 4096) the factors are 4, 14, 31 and 55 at 8k, 16k, 24k and 32k.

    Args:
        base, head_dim, train_len, bidirectional: as for `critical_dimension`.
        target_len: the longest sequence to be read, t.

    Raises:
        InputError: an argument is out of its range.
    """
    factor = ntk_factor(base, head_dim, train_len, target_len, bidirectional)
    return float(base) * max(1, math.ceil(factor * (1.0 - _HAIR)))


def extended(denoiser: Denoiser, target_length: int, *, bidirectional: bool = False) -> Denoiser:
    """A denoiser with the weights of `denoiser`, the very same ones, that reads sequences of `target_length`.

    Each network in it with rotary positions gets a raised base, and `target_length` as its `context`, in its config too: so it
    is saved as it is, and extending it again goes on from there, with both roundings in its base. Nothing else changes,
    attention's scale included. What is trained in one is trained in the other. Keys and values that were kept under
    the old base are of no use to it; it makes caches of its own.

    Args:
        denoiser: of tokens; its network's `context` is what it was trained on.
        target_length: the longest sequence to be read, prompt and answer together.
        bidirectional: as for `critical_dimension`.

    Raises:
        InputError: `target_length` is shorter than the context.
        IncompatibleError: there is no network with a rotary base.
    """
    shared = {id(tensor): tensor for tensor in (*denoiser.parameters(), *denoiser.buffers())}
    tokenizer = getattr(denoiser, "tokenizer", None)
    if tokenizer is not None:
        shared[id(tokenizer)] = tokenizer
    result = copy.deepcopy(denoiser, shared)
    networks: list[Any] = [module for module in result.modules() if _is_rotary(module)]
    if not networks:
        inner = type(getattr(denoiser, "network", denoiser)).__name__
        raise IncompatibleError(
            f"denoiser: {inner} was given, with no base of rotary positions; expected a network such as TextTransformer"
        )
    for network in networks:
        if target_length < network.context:
            raise InputError(
                f"target_length: {target_length} was given; expected at least the network's context, {network.context}"
            )
        base = ntk_rope_base(network.rope_base, network.head_dim, network.context, target_length, bidirectional)
        changed = {"rope_base": base, "context": int(target_length)}
        for name, value in changed.items():
            setattr(network, name, value)
        if isinstance(getattr(network, "config", None), dict):
            network.config = {**network.config, **changed}
    return result


def _is_rotary(module: nn.Module) -> bool:
    return all(hasattr(module, name) for name in ("rope_base", "head_dim", "context"))


def _span(length: int, bidirectional: bool) -> float:
    return (2.0 if bidirectional else 1.0) * length / (2.0 * math.pi)


def _check(base: float, head_dim: int) -> None:
    if not (base > 1.0 and math.isfinite(base)):
        raise InputError(f"base: {base} was given; expected a number above 1")
    if head_dim < 2 or head_dim % 2:
        raise InputError(f"head_dim: {head_dim} was given; expected an even number of features")
