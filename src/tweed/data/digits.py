"""Real handwritten digits, 8x8: the 1797 images that scikit-learn ships.

Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits" (UCI Machine Learning Repository, 1998), its test part:
counts of pen pixels 0 .. 16 in 4x4 blocks, here scaled to [-1, 1].
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from tweed.data.dataset import Tensors
from tweed.errors import InputError, choose

# Of the images of a class, in the order of the file, every fifth is a test image.
_TEST_EVERY = 5


def _split(label: Int[Tensor, " n"], split: str) -> Int[Tensor, " m"]:
    """The indices of one split: stratified, the same everywhere, and covering every part of the file."""
    choose("split", split, ("all", "train", "test"))
    rank = torch.zeros_like(label)
    for c in label.unique():
        members = label == c
        rank[members] = torch.arange(int(members.sum()))
    test = rank % _TEST_EVERY == _TEST_EVERY - 1
    keep = {"all": torch.ones_like(test), "train": ~test, "test": test}[split]
    return keep.nonzero().squeeze(1)


class Digits(Tensors):
    """Handwritten digits `x` in [-1, 1], white on black, with `label` 0 .. 9.

    Args:
        split: `"train"` (four fifths of each class), `"test"` (one fifth) or `"all"` (1797 images).
        size: height and width; above 8 the images are enlarged bilinearly.
        flat: give vectors (size * size,) and not images (1, size, size).

    Raises:
        InputError: an unknown split, or a size below 8.
    """

    def __init__(self, split: str = "all", size: int = 8, flat: bool = False):
        if size < 8:
            raise InputError(f"size: {size} was given; expected at least 8, the size of the images themselves")
        from sklearn.datasets import load_digits

        pixels, target = load_digits(return_X_y=True)
        label = torch.as_tensor(target, dtype=torch.int64)
        x: Float[Tensor, "n 1 h w"] = torch.as_tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8.0 - 1.0
        if size > 8:
            x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
        keep = _split(label, split)
        super().__init__(x.flatten(1)[keep] if flat else x[keep], label=label[keep])
