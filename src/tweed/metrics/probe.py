"""How much a representation knows of the classes: a linear classifier on it, left frozen."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tweed.errors import InputError

_STRENGTHS = [10.0**k for k in range(-3, 5)]


def linear_probe(
    train: Float[Tensor, "n d"], label: Int[Tensor, " n"], test: Float[Tensor, "m d"], truth: Int[Tensor, " m"]
) -> float:
    """The share of `test` that a linear classifier of `train` reads right.

    Features are standardised; the classifier is a least-squares one whose ridge strength is chosen by leave-one-out
    validation on `train` (scikit-learn's `RidgeClassifierCV`).

    Raises:
        InputError: shapes do not fit, or `train` has one class alone.
    """
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if train.ndim != 2 or test.ndim != 2 or train.shape[1] != test.shape[1] or len(train) != len(label):
        raise InputError(
            f"train, label, test: shapes {tuple(train.shape)}, {tuple(label.shape)}, {tuple(test.shape)} were given; expected "
            "(n, d), (n,), (m, d)"
        )
    if len(test) != len(truth) or len(test) == 0:
        raise InputError(
            f"truth: shape {tuple(truth.shape)} was given; expected ({len(test)},), and one sample at least"
        )
    if len(torch.unique(label)) < 2:
        raise InputError("label: one class was given; expected two at least")
    arrays = [x.detach().cpu().double().numpy() for x in (train, test)]
    found = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=_STRENGTHS)).fit(arrays[0], label.cpu().numpy())
    return float((found.predict(arrays[1]) == truth.cpu().numpy()).mean())
