import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

import tweed as tw
from tweed.errors import InputError
from tweed.training import DenoisingLoss, Independent, MinibatchOT


def cost(x, z):
    return (x - z).square().sum().item()


def test_ot_is_the_assignment_of_squared_distances():
    x, z = tw.random.normal((40, 1, 3, 3), 0) + 1.0, tw.random.normal((40, 1, 3, 3), 1)
    permutation = MinibatchOT().pair(x, z)
    assert sorted(permutation.tolist()) == list(range(40))
    distances = cdist(x.flatten(1), z.flatten(1), "sqeuclidean")
    rows, columns = linear_sum_assignment(distances)
    assert cost(x, z[permutation]) == pytest.approx(distances[rows, columns].sum(), rel=1e-6)
    assert cost(x, z[permutation]) < 0.95 * cost(x, z)


def test_in_one_dimension_it_sorts():
    x, z = tw.random.normal((30, 1), 0), tw.random.normal((30, 1), 1)
    pairs = z[MinibatchOT().pair(x, z)]
    assert torch.equal(pairs[x[:, 0].argsort()], z.sort(0).values)


def test_labels_and_groups_are_respected():
    x, z = tw.random.normal((24, 2), 0), tw.random.normal((24, 2), 1)
    label = torch.arange(24) % 3
    permutation = MinibatchOT(by_label=True).pair(x, z, label)
    assert torch.equal(label[permutation], label)
    grouped = MinibatchOT(group=8).pair(x, z)
    assert torch.equal(grouped // 8, torch.arange(24) // 8)
    assert torch.equal(grouped[8:16] - 8, MinibatchOT().pair(x[8:16], z[8:16]))
    assert cost(x, z[MinibatchOT().pair(x, z)]) <= cost(x, z[grouped]) + 1e-6
    assert torch.equal(MinibatchOT(group=1).pair(x, z), torch.arange(24))


def test_bad_input_and_the_trivial_ones():
    x = torch.zeros(3, 2)
    assert Independent().pair(x, x) is None
    assert MinibatchOT().pair(x[:0], x[:0]).shape == (0,)
    with pytest.raises(InputError, match="by_label"):
        MinibatchOT(by_label=True).pair(x, x)
    with pytest.raises(InputError, match="shape"):
        MinibatchOT().pair(x, x[:2])
    with pytest.raises(InputError, match="group"):
        MinibatchOT(group=0)


def test_the_loss_couples_noise_or_the_other_end():
    x, y = tw.random.normal((16, 2), 0), tw.random.normal((16, 2), 5)
    plain = DenoisingLoss().prepare(tw.processes.RectifiedFlow(), {"x": x}, seed=0, step=2)
    coupled = DenoisingLoss(coupling=MinibatchOT()).prepare(tw.processes.RectifiedFlow(), {"x": x}, seed=0, step=2)
    permutation = MinibatchOT().pair(x, plain["noise"])
    assert torch.equal(coupled["noise"], plain["noise"][permutation])
    two_sided = tw.processes.Interpolant(latent="quadratic")
    ends = DenoisingLoss(coupling=MinibatchOT()).prepare(two_sided, {"x": x, "y": y}, seed=0, step=2)
    assert torch.equal(ends["y"], y[MinibatchOT().pair(x, y)])
    assert torch.equal(ends["noise"], plain["noise"])
