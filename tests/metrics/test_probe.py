"""The linear probe: what it reads in features that hold the classes, a part of them, or nothing."""

import pytest
import torch

from tweed.core.random import normal
from tweed.errors import InputError
from tweed.metrics import linear_probe

LABEL = torch.arange(300) % 3
CODE = torch.nn.functional.one_hot(LABEL, 3).float()


def test_what_is_there_is_read():
    features = CODE @ normal((3, 20), 1) + 0.01 * normal((300, 20), 2)
    assert linear_probe(features[:150], LABEL[:150], features[150:], LABEL[150:]) == 1.0


def test_noise_is_chance():
    found = linear_probe(normal((300, 5), 1), LABEL, normal((300, 5), 2), LABEL)
    assert abs(found - 1 / 3) < 4 * (2 / 9 / 300) ** 0.5


def test_the_scale_of_features_does_not_matter():
    features = CODE @ normal((3, 8), 1) + normal((300, 8), 2)
    scale, shift = 10.0 ** torch.arange(-4, 4), torch.arange(8.0)
    runs = [linear_probe(f[:150], LABEL[:150], f[150:], LABEL[150:]) for f in (features, features * scale + shift)]
    assert runs[0] == pytest.approx(runs[1], abs=0.02)
    assert 0.4 < runs[0] < 1.0


def test_shapes_are_checked():
    x = torch.zeros(4, 2)
    for train, label, test, truth in (
        (x, LABEL[:3], x, LABEL[:4]), (x, LABEL[:4], x[:, :1], LABEL[:4]), (x, LABEL[:4], x, LABEL[:3]),
        (x, LABEL[:4], x[:0], LABEL[:0]), (x, LABEL[:1].expand(4), x, LABEL[:4]),
    ):  # fmt: skip
        with pytest.raises(InputError):
            linear_probe(train, label, test, truth)
