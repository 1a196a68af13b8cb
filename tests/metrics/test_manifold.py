import math

import pytest
import torch

from tweed.core.random import normal
from tweed.errors import InputError
from tweed.metrics import coverage, density, manifold, precision, recall


def _z(n, d, seed):
    return normal((n, d), seed, dtype=torch.float64)


def _peer(real, fake, k):
    """The four definitions written out with scikit-learn's neighbours."""
    from sklearn.neighbors import NearestNeighbors

    radius = {}
    for name, x in (("real", real), ("fake", fake)):
        found = NearestNeighbors(n_neighbors=k + 1).fit(x.numpy()).kneighbors(x.numpy())[0]
        radius[name] = torch.as_tensor(found[:, k])
    d = torch.cdist(real, fake)
    inside = d <= radius["real"][:, None]
    return (
        float(inside.any(0).double().mean()),
        float((d <= radius["fake"][None]).any(1).double().mean()),
        float(inside.sum()) / (k * len(fake)),
        float(inside.any(1).double().mean()),
    )


@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_four_numbers_are_their_definitions(k):
    real, fake = _z(80, 3, 0), _z(60, 3, 1) * 0.8 + 0.3
    m = manifold(real, fake, k)
    assert (m.precision, m.recall, m.density, m.coverage) == pytest.approx(_peer(real, fake, k), abs=1e-12)
    for function, value in ((precision, m.precision), (recall, m.recall), (density, m.density), (coverage, m.coverage)):
        assert function(real, fake, k) == value


def test_precision_and_recall_change_places():
    real, fake = _z(80, 3, 0), _z(60, 3, 1) * 0.5
    a, b = manifold(real, fake, 3), manifold(fake, real, 3)
    assert (a.precision, a.recall) == (b.recall, b.precision)
    assert a.recall < a.precision


def test_limits():
    x = _z(50, 2, 0)
    same, apart = manifold(x, x), manifold(x, x + 1e3)
    assert (same.precision, same.recall, same.coverage) == (1.0, 1.0, 1.0)
    # Each ball of the k-th neighbour holds its centre and k others.
    assert same.density == pytest.approx(6 / 5)
    assert (apart.precision, apart.recall, apart.density, apart.coverage) == (0.0, 0.0, 0.0, 0.0)
    # Repeated points have radius 0 and still hold each other.
    assert manifold(torch.zeros(6, 2), torch.zeros(6, 2)).precision == 1.0
    # A generator stuck on one real sample is precise and covers little.
    stuck = manifold(x, x[:1].repeat(50, 1) + 1e-6 * _z(50, 2, 3))
    assert stuck.precision == 1.0
    assert stuck.recall < 0.05
    assert stuck.coverage < 0.4


def test_coverage_and_density_of_equal_distributions():
    n, m, k = 40, 30, 3
    found = [manifold(_z(n, 4, 2 * s), _z(m, 4, 2 * s + 1), k) for s in range(200)]
    cover = torch.tensor([f.coverage for f in found])
    expected = 1.0 - math.prod((n - j) / (n + m - j) for j in range(1, k + 1))
    assert abs(float(cover.mean()) - expected) < 4.0 * float(cover.std()) / math.sqrt(200)
    dense = torch.tensor([f.density for f in found])
    # A fake sample falls in a real ball with probability k / n.
    assert abs(float(dense.mean()) - 1.0) < 4.0 * float(dense.std()) / math.sqrt(200)


def test_the_chunk_and_the_order_do_not_matter():
    real, fake = _z(70, 3, 0), _z(50, 3, 1)
    whole = manifold(real, fake)
    for chunk in (1, 13, 70):
        assert manifold(real, fake, chunk=chunk) == whole
    assert manifold(real.flip(0), fake.flip(0)) == whole
    assert manifold(real.reshape(70, 1, 3), fake.reshape(50, 1, 3)) == whole


def test_bad_input_is_named():
    x = torch.zeros(6, 2)
    for call, argument in [
        (lambda: manifold(x[:5], x), "real"),
        (lambda: manifold(x, x[:5]), "fake"),
        (lambda: manifold(x, x[:0]), "fake"),
        (lambda: manifold(x, x[:, :1]), "fake"),
        (lambda: manifold(x, x, k=0), "k"),
        (lambda: manifold(x, x, chunk=0), "chunk"),
    ]:
        with pytest.raises(InputError, match=f"^{argument}: "):
            call()
