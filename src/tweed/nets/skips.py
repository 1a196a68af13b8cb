"""Scaled long skip connections.

Huang et al., "ScaleLong: Towards More Stable Training of Diffusion Model via Scaling Network Long Skip Connection"
(NeurIPS 2023, arXiv 2310.13545). The innermost skip goes through the most blocks, and is damped the most.
"""

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from tweed.errors import InputError, choose

SkipKind = Literal["none", "inv-sqrt2", "constant", "learned"]


def constant_skip_coefficients(n: int, kappa: float) -> list[float]:
    """`kappa^(i - 1)` for the skips i = 1 (outermost) to n (innermost): the paper's constant scaling (CS).

    Raises:
        InputError: `kappa` is outside (0, 1].
    """
    if not 0.0 < kappa <= 1.0:
        raise InputError(f"kappa: {kappa} was given; expected a number in (0, 1]")
    return [kappa**i for i in range(n)]


class _Calibration(nn.Module):
    """A squeeze and excitation: from the means of a skip's channels, a factor in (0, 1) for each."""

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        self.squeeze = nn.Linear(channels, max(1, channels // reduction))
        self.excite = nn.Linear(max(1, channels // reduction), channels)

    def forward(self, pooled: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        return self.excite(self.squeeze(pooled).relu()).sigmoid()


class SkipScale(nn.Module):
    """What multiplies each long skip on its way to the decoder.

    "inv-sqrt2" is the older practice, 1/sqrt(2) everywhere. "learned" (LS) is a small network of the skip itself, shared by
    all skips of one width: a factor for each channel, which at the start is about 1/2. (The official code for transformers
    calibrates tokens instead of channels, which ties it to one length.)

    Args:
        kind: "none", "inv-sqrt2", "constant" or "learned".
        widths: channels of the skips, outermost first.
        kappa: of the constant scaling; 0.5 to 0.95 is recommended, less for deeper networks.
        reduction: of the learned scaling.
        dim: where the channels are: 1 for maps, -1 for tokens.

    Raises:
        InputError: an unknown kind, or a number out of its range.
    """

    def __init__(self, kind: SkipKind, widths: Sequence[int], kappa: float = 0.7, reduction: int = 16, dim: int = 1):
        super().__init__()
        choose("kind", kind, ("none", "inv-sqrt2", "constant", "learned"))
        if reduction < 1:
            raise InputError(f"reduction: {reduction} was given; expected at least 1")
        self.kind, self.dim = kind, dim
        same = {"none": 1.0, "inv-sqrt2": 0.5**0.5, "learned": 1.0}
        self.factors = (
            constant_skip_coefficients(len(widths), kappa) if kind == "constant" else [same[kind]] * len(widths)
        )
        learned = sorted(set(widths)) if kind == "learned" else []
        self.calibrations = nn.ModuleDict({str(width): _Calibration(width, reduction) for width in learned})

    def forward(self, skip: Float[Tensor, "b *c"], number: int) -> Float[Tensor, "b *c"]:
        """Skip `number` (0 is the outermost), scaled."""
        if self.kind == "learned":
            dim = self.dim % skip.ndim
            pooled = skip.float().mean([d for d in range(1, skip.ndim) if d != dim])
            calibration = self.calibrations[str(skip.shape[dim])]
            shape = [skip.shape[d] if d in (0, dim) else 1 for d in range(skip.ndim)]
            # Pooled in float32; the factors take the network's own precision.
            weight = next(calibration.parameters()).dtype
            return skip * calibration(pooled.to(weight)).reshape(shape).to(skip.dtype)
        factor = self.factors[number]
        return skip if factor == 1.0 else skip * factor
