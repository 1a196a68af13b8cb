"""What a categorical draw in float32 really draws.

Zheng et al. (ICLR 2025, arXiv 2409.02908), Section 5. A uniform number in float32 is a multiple of 2^-24, so the Gumbel noise
`-log(-log u)` is at most `M = 24 log 2` (53 log 2 in float64). The largest of `log p + g`, with g cut off at M, favours likely
tokens: a lower temperature that nobody asked for. In masked sampling tokens compete with staying masked, so all of them are
unlikely, and the more so the more steps there are. That noise is cut off is the paper's model of it; that it also lies on a grid
matters as much, see `masked_step_on_grid`.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.errors import InputError

LARGEST_FLOAT32, LARGEST_FLOAT64 = 24 * math.log(2.0), 53 * math.log(2.0)
"""The largest Gumbel noise from uniform numbers of these types."""


def truncated_gumbel_probs(p: Float[Tensor, " size"], largest: float = LARGEST_FLOAT32) -> Float[Tensor, " size"]:
    """The law of the largest of `log p_i + g_i`, where g is standard Gumbel noise given that it is below `largest`, float64.

    With p sorted, smallest first, K of them, `S_i = p_i + ... + p_K` and `p_0 = 0` (Prop. 5.1): `p'_n = p_n (b_1 + ... + b_n)`,
    `b_i = e^((K + 1 - i) e^-M) [e^(-S_i e^-M / p_i) - e^(-S_i e^-M / p_(i-1))] / S_i`.

    Raises:
        InputError: `p` is no law.
    """
    if p.ndim != 1 or bool((p < 0).any()) or not math.isclose(float(p.double().sum()), 1.0, rel_tol=1e-6):
        raise InputError(
            f"p: shape {tuple(p.shape)} with the sum {float(p.sum()):g} was given; expected probabilities (size,)"
        )
    ordered, order = p.double().sort()
    tail = ordered.flip(0).cumsum(0).flip(0)
    cut = math.exp(-largest)
    own = tail * cut / ordered
    before = torch.cat((ordered.new_full((1,), math.inf), (tail * cut)[1:] / ordered[:-1]))
    count = torch.arange(len(p), 0, -1, dtype=torch.float64, device=p.device)
    # The difference of two exponentials, without cancellation. Tokens of no probability are never drawn.
    share = (count * cut - own).exp() * -torch.expm1((own - before).nan_to_num(-math.inf)) / tail
    result = ordered * share.nan_to_num(0.0).cumsum(0)
    return torch.zeros_like(result).scatter(0, order, result)


def masked_step(tokens: Float[Tensor, " size"], jump: float, largest: float) -> tuple[float, Float[Tensor, " size"]]:
    """One step of masked sampling under truncated noise: the probability that the mask is lifted, and the law of the token then.

    Args:
        tokens: the network's law.
        jump: the probability that the mask is to be lifted.
    """
    wide = tokens.double()
    drawn = truncated_gumbel_probs(torch.cat((jump * wide, wide.new_full((1,), 1.0 - jump))), largest)
    lifted = drawn[:-1].sum()
    return lifted.item(), drawn[:-1] / lifted


def masked_step_on_grid(tokens: Float[Tensor, " size"], jump: float, bits: int) -> tuple[float, Float[Tensor, " size"]]:
    """What `masked_step` tells, for uniform numbers that are multiples of `2^-bits`: 24 of them in float32.

    Such numbers are not merely cut off: near its largest value the noise has `-log u = k d`, `d = 2^-bits`, for k = 1, 2, ...
    alone. Beside the mask, whose probability is near 1, token i is drawn with probability
    `sum_k d e^(-k d / p_i) = d / (e^(d / p_i) - 1)`, up to a relative error of order `jump`. Noise that is only cut off gives
    `p_i e^(-d / p_i)`: the published formula overstates the fault, twice where it is small.

    Args:
        tokens, jump: as for `masked_step`.
        bits: of a uniform number.

    Raises:
        InputError: `bits` is not positive, or `jump` not in (0, 1].
    """
    if bits < 1:
        raise InputError(f"bits: {bits} was given; expected at least 1")
    if not 0.0 < jump <= 1.0:
        raise InputError(f"jump: {jump} was given; expected a probability above 0")
    d = 2.0**-bits
    drawn = d / torch.expm1(d / (jump * tokens.double()))
    lifted = drawn.sum()
    return lifted.item(), drawn / lifted


def entropy(p: Float[Tensor, " size"]) -> float:
    """The entropy of a law, nats."""
    return -torch.special.xlogy(p, p).sum().item()
