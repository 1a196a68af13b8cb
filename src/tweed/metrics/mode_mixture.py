"""Mode mixture: the share of samples that lie between modes.

Two readings: by distance, where the modes are known; by the confidence of a classifier of real samples, where they are not
(Li et al., "DPM-OT", ICCV 2023, Sec. 4.2).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.errors import InputError
from tweed.metrics.classifier import Classifier, log_probabilities


def mode_mixture_rate(samples: Float[Tensor, "n *event"], modes: Float[Tensor, "k *event"], radius: float) -> float:
    """The share of samples further than `radius` from every mode.

    Raises:
        InputError: no samples, no modes, shapes that differ, or a radius that is not positive.
    """
    if len(samples) == 0 or len(modes) == 0 or samples.shape[1:] != modes.shape[1:]:
        raise InputError(
            f"samples, modes: shapes {tuple(samples.shape)} and {tuple(modes.shape)} were given; expected (n, *event) and "
            "(k, *event), both of at least one"
        )
    if not radius > 0.0:
        raise InputError(f"radius: {radius} was given; expected a positive number")
    flat, known = samples.double().flatten(1), modes.double().flatten(1)
    nearest = torch.cat([torch.cdist(part, known).amin(1) for part in flat.split(4096)])
    return (nearest > radius).double().mean().item()


def doubtful_rate(classifier: Classifier, samples: Float[Tensor, "n *event"], confidence: float = 0.9) -> float:
    """The share of samples whose likeliest class has a probability below `confidence`.

    Raises:
        InputError: no samples, or a confidence outside (0, 1].
    """
    if not 0.0 < confidence <= 1.0:
        raise InputError(f"confidence: {confidence} was given; expected a number in (0, 1]")
    return (log_probabilities(classifier, samples).exp().amax(1) < confidence).double().mean().item()
