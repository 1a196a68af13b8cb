import math

import pytest
import torch

from tweed.core.random import normal, uniform
from tweed.errors import InputError
from tweed.nets.embeddings import (
    Conditioning,
    GaussianFeatures,
    SinusoidalFeatures,
    TimeEmbedding,
    grid_positions,
    rotary,
    rotate,
    sincos_positions,
    sinusoidal,
)
from tweed.nets.registry import initialise


def test_sinusoidal_is_the_formula():
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    features = sinusoidal(t, 8, scale=1000.0)
    for k in range(4):
        phase = 1000.0 * t * 10000.0 ** (-k / 4)
        torch.testing.assert_close(features[:, k], phase.cos(), atol=1e-4, rtol=0)  # the frequencies are float32
        torch.testing.assert_close(features[:, 4 + k], phase.sin(), atol=1e-4, rtol=0)
    torch.testing.assert_close(features.square().sum(-1), torch.full((3,), 4.0, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["sinusoidal", "gaussian"])
def test_features_are_exact_in_half_precision(kind):
    embedding = TimeEmbedding(32, 16, kind)
    initialise(embedding, 0)
    t = torch.tensor([0.5, 0.5005])  # one and the same number in bfloat16
    assert t.bfloat16()[0] == t.bfloat16()[1]
    exact = embedding.features(t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = embedding.features(t)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, exact)
    assert (inside[0] - inside[1]).abs().max() > 0.02
    assert torch.equal(embedding.bfloat16().features(t), exact)
    assert embedding(t).dtype == torch.bfloat16
    assert not torch.equal(*embedding(t))


def test_gaussian_features_have_a_gaussian_kernel():
    features = GaussianFeatures(100_000, scale=0.5)
    initialise(features, 3)
    s = torch.linspace(0, 1, 5)
    kernel = features(torch.zeros(1)) @ features(s).T / 50_000  # E cos(2 pi f s) = exp(-2 (pi scale s)^2)
    expected = torch.exp(-2 * (math.pi * 0.5 * s) ** 2)
    torch.testing.assert_close(kernel[0], expected, atol=5 / 50_000**0.5, rtol=0)
    assert "frequencies" in features.state_dict()


@pytest.mark.parametrize("features", [SinusoidalFeatures, GaussianFeatures])
def test_an_odd_number_of_features_is_refused(features):
    with pytest.raises(InputError, match="dim: 7"):
        features(7)


def test_grid_is_row_major():
    assert grid_positions((2, 3)).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_sincos_inner_products_are_relative():
    embedded = sincos_positions(grid_positions((5, 7)), 32).reshape(5, 7, 32)
    inner = torch.einsum("ijd,kld->ijkl", embedded, embedded)
    torch.testing.assert_close(inner[0, 0, 2, 3], inner[2, 3, 4, 6], atol=1e-4, rtol=0)
    assert (inner[0, 0, 2, 3] - inner[0, 0, 3, 2]).abs() > 0.1 or (inner[0, 0, 1, 3] - inner[0, 0, 0, 3]).abs() > 0.1
    with pytest.raises(InputError, match="multiple of 4"):
        sincos_positions(grid_positions((2, 2)), 6)


@pytest.mark.parametrize("size", [(9,), (3, 4)])
def test_rotary_is_a_rotation_and_relative(size):
    positions = grid_positions(size)
    count, axes = positions.shape
    q, k = normal((count, 16), 1), normal((count, 16), 2)
    shift = torch.arange(5.0, 5.0 + axes)

    def scores(offset):
        angles = rotary(positions + offset, 16)
        return rotate(q, *angles) @ rotate(k, *angles).T

    torch.testing.assert_close(scores(shift), scores(torch.zeros(axes)), atol=2e-5, rtol=1e-5)
    angles = rotary(positions, 16)
    torch.testing.assert_close(rotate(q, *angles).norm(dim=-1), q.norm(dim=-1))
    torch.testing.assert_close((rotate(q, *angles) * rotate(k, *angles)).sum(-1), (q * k).sum(-1), atol=1e-5, rtol=1e-5)
    assert (scores(torch.zeros(axes)) - q @ k.T).abs().max() > 0.1
    with pytest.raises(InputError, match="rotary positions"):
        rotary(positions, 16 + axes)


def test_conditions_add_up_and_nulls_are_learned():
    module = Conditioning(8, num_classes=3, vector_dim=2, token_dim=4)
    initialise(module, 0)
    x, label, vector = torch.zeros(2, 1), torch.tensor([0, 2]), uniform((2, 2), 1)
    both, context = module(x, label=label, vector=vector)
    torch.testing.assert_close(both, module.label.weight[label] + module.vector(vector))
    assert context.shape == (2, 1, 4)
    assert torch.equal(context[0, 0], module.null_token)
    none, _ = module(x)
    torch.testing.assert_close(none, (module.label.weight[3] + module.null_vector).expand(2, -1))
    _, tokens = module(x, tokens=normal((2, 5, 4), 3), drop=torch.tensor([True, False]))
    assert torch.equal(tokens[0], module.null_token.expand(5, -1))
    torch.testing.assert_close(tokens[1].mean(-1), torch.zeros(5), atol=1e-6, rtol=0)  # normalised
    assert Conditioning(8)(x) == (None, None)
