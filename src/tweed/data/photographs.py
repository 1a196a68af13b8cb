"""Crops of the photographs that come with scikit-image: colour pictures without a download."""

import functools
from pathlib import Path

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from tweed.core import random
from tweed.data.dataset import check_indices, one
from tweed.errors import InputError, MissingPackageError, choose

PHOTOGRAPHS = {
    "train": ("astronaut.png", "chelsea.png", "motorcycle_left.png", "hubble_deep_field.jpg"),
    "test": ("coffee.png", "rocket.jpg"),
}
"""The photographs of each split, by the names of their files."""

_FACTORS = (1, 2, 3)  # by which a photograph is reduced before it is cropped


@functools.lru_cache(maxsize=32)
def _photograph(name: str, factor: int) -> UInt8[Tensor, "3 h w"]:
    try:
        import skimage
    except ImportError:
        raise MissingPackageError(
            "photographs: the package scikit-image is needed; expected `pip install tweed[data]`"
        ) from None
    import numpy as np
    from PIL import Image

    path = Path(skimage.__file__).with_name("data") / name
    if not path.is_file():
        raise MissingPackageError(f"photographs: this scikit-image comes without {name}")
    with Image.open(path) as picture:
        pixels = np.array(picture.convert("RGB").reduce(factor))
    return torch.from_numpy(pixels).movedim(-1, 0).contiguous()


class Photographs:
    """Square crops (3, size, size) in [-1, 1] of photographs, at a third, half or full resolution, some mirrored.

    The two splits share no photograph. Needs the extra `data`.

    Args:
        size: of a side, in pixels; at most 96.
        length: how many crops.
        split: "train" or "test".
        seed: crop `i` under a seed is the same whatever `length`.

    Raises:
        InputError: an argument is out of its range.
        MissingPackageError: scikit-image is not installed.
    """

    num_classes = None
    conditions = ()

    def __init__(self, size: int = 64, length: int = 10000, split: str = "train", seed: int = 0):
        choose("split", split, PHOTOGRAPHS)
        if not 4 <= size <= 96 or length < 0:
            raise InputError(f"size, length: {size}, {length} were given; expected 4 .. 96 pixels, and at least 0")
        self._photographs = [_photograph(name, factor) for name in PHOTOGRAPHS[split] for factor in _FACTORS]
        self._length, self._stream = length, random.fold(seed, list(PHOTOGRAPHS).index(split))
        self.shape = (3, size, size)

    def __len__(self) -> int:
        return self._length

    def batch(self, indices: Int[Tensor, " n"]) -> dict[str, Tensor]:
        indices = check_indices(indices, self._length)
        size = self.shape[-1]
        u = random.uniform((len(indices), 4), self._stream, index=indices, dtype=torch.float64)
        crops = [torch.zeros(0, *self.shape, dtype=torch.uint8)]
        for which, top, left, mirror in u.tolist():
            photograph = self._photographs[int(which * len(self._photographs))]
            y, x = int(top * (photograph.shape[1] - size + 1)), int(left * (photograph.shape[2] - size + 1))
            crop = photograph[None, :, y : y + size, x : x + size]
            crops.append(crop.flip(-1) if mirror < 0.5 else crop)
        return {"x": torch.cat(crops).float() * (2.0 / 255.0) - 1.0}

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return one(self, i)
