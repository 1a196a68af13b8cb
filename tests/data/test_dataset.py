import pytest
import torch

from tweed.data import CHARACTERS, Dataset, Digits, Glyphs, Plane, Tensors
from tweed.errors import InputError


def _tensors():
    x = torch.arange(60, dtype=torch.float64).reshape(10, 2, 3)
    return Tensors(x, label=torch.arange(10) % 4, vector=torch.randn(10, 5, generator=torch.Generator().manual_seed(0)))


MAKERS = {
    "tensors": _tensors,
    "digits": lambda: Digits("test"),
    "glyphs": lambda: Glyphs(size=16, characters="AB3", length=50),
    "plane": lambda: Plane("pinwheel", length=50),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_sample_is_the_same_in_every_batch_and_alone(name):
    data = MAKERS[name]()
    assert isinstance(data, Dataset)
    n = min(len(data), 50)
    whole = data.batch(torch.arange(n))
    assert whole["x"].dtype == torch.float32
    assert tuple(whole["x"].shape) == (n, *data.shape)
    assert set(whole) == {"x", *data.conditions}
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    for part in order.split(7):
        batch = data.batch(part)
        for key, value in batch.items():
            assert torch.equal(value, whole[key][part])
    single = data[3]
    for key, value in whole.items():
        assert torch.equal(single[key], value[3])
    assert torch.equal(data[-1]["x"], data[len(data) - 1]["x"])


@pytest.mark.parametrize("name", MAKERS)
def test_an_empty_batch_keeps_its_shape(name):
    data = MAKERS[name]()
    batch = data.batch(torch.empty(0, dtype=torch.int64))
    assert tuple(batch["x"].shape) == (0, *data.shape)
    assert all(batch[key].shape[0] == 0 for key in data.conditions)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("indices", [torch.tensor([0, 10**9]), torch.tensor([-1]), torch.zeros(2), torch.tensor(0)])
def test_bad_indices_are_refused_by_name(name, indices):
    with pytest.raises(InputError, match="indices"):
        MAKERS[name]().batch(indices)


def test_an_index_beyond_the_end_ends_a_loop():
    with pytest.raises(IndexError):
        _tensors()[10]
    assert len(list(_tensors())) == 10


def test_tensors_refuses_what_does_not_fit():
    with pytest.raises(InputError, match="label"):
        Tensors(torch.zeros(3, 2), label=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(InputError, match="label"):
        Tensors(torch.zeros(3, 2), label=torch.tensor([0, -1, 2]))
    assert _tensors().num_classes == 4
    assert Tensors(torch.zeros(3, 2)).num_classes is None


def test_data_sets_leave_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for make in MAKERS.values():
        make().batch(torch.arange(8))
    assert torch.equal(before, torch.get_rng_state())
    assert len(CHARACTERS) == 36
