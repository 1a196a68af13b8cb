import pytest
import torch

from tweed.data import Digits
from tweed.errors import InputError


def test_the_splits_partition_the_data_and_keep_the_class_balance():
    whole, train, test = (Digits(split) for split in ("all", "train", "test"))
    assert (len(whole), len(train) + len(test)) == (1797, 1797)

    def keys(data):
        return {(tuple(row.tolist()), int(c)) for row, c in zip(data.x.flatten(1), _labels(data), strict=True)}

    assert keys(train) | keys(test) == keys(whole)
    assert keys(train).isdisjoint(keys(test))
    share = torch.bincount(_labels(test)) / torch.bincount(_labels(whole))
    assert ((share - 0.2).abs() < 0.006).all()


def _labels(data):
    return data.batch(torch.arange(len(data)))["label"]


def test_values_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    pixels, target = load_digits(return_X_y=True)
    data = Digits(flat=True)
    assert torch.equal((data.x + 1.0) * 8.0, torch.as_tensor(pixels, dtype=torch.float32))
    assert torch.equal(_labels(data), torch.as_tensor(target))
    assert data.num_classes == 10
    assert (float(data.x.min()), float(data.x.max())) == (-1.0, 1.0)


def test_size_enlarges_and_flat_flattens():
    small, large = Digits("test"), Digits("test", size=16)
    assert large.shape == (1, 16, 16)
    assert Digits("test", size=16, flat=True).shape == (256,)
    # Bilinear enlargement by two keeps the mean but for the clamped border.
    pooled = torch.nn.functional.avg_pool2d(large.x, 2)
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    correlation = torch.corrcoef(torch.stack((pooled[inner].flatten(), small.x[inner].flatten())))[0, 1]
    assert correlation > 0.97
    with pytest.raises(InputError, match="size"):
        Digits(size=4)
    with pytest.raises(InputError, match="split"):
        Digits("tset")
