"""Times: how they become tensors and broadcast."""

import math

import pytest
import torch

from tweed.core.time import as_time, invert_increasing, left, times_number, working_dtype
from tweed.errors import InputError


def test_numbers_and_tensors_become_float64():
    assert as_time(0.25).dtype == torch.float64
    assert as_time(1).item() == 1.0
    assert as_time(torch.tensor([0, 1])).dtype == torch.float64
    assert as_time(torch.rand(2, 3, dtype=torch.float16)).shape == (2, 3)
    for t in (-1e-9, 1.0 + 1e-9, math.nan, -math.inf):
        with pytest.raises(InputError, match=r"t: .* expected a time in \[0, 1\]"):
            as_time(t)


@pytest.mark.parametrize("shape", [(), (4,), (1,), (4, 3), (1, 3), (4, 1), (4, 3, 2)])
def test_left_broadcasts_from_the_left(shape):
    c, x = torch.rand(shape, dtype=torch.float64), torch.randn(4, 3, 2)
    product = left(c, x) * x
    assert product.shape == x.shape
    assert product.dtype == x.dtype
    full = c.reshape(shape + (1,) * (3 - len(shape))).expand(4, 3, 2)
    torch.testing.assert_close(product, (full * x).float())


@pytest.mark.parametrize("shape", [(3,), (2,), (4, 2), (4, 3, 3), (4, 3, 2, 1)])
def test_left_refuses_what_does_not_fit(shape):
    with pytest.raises(InputError, match="t: shape"):
        left(torch.zeros(shape), torch.zeros(4, 3, 2))


def test_left_takes_the_real_type_of_the_state():
    c = torch.rand(2, dtype=torch.float64)
    assert left(c, torch.zeros(2, dtype=torch.complex64)).dtype == torch.float32
    assert left(c, torch.zeros(2, dtype=torch.complex128)).dtype == torch.float64
    assert left(c, torch.zeros(2, dtype=torch.int64)).dtype == torch.float32


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.uint8, torch.float32),
        (torch.complex64, torch.complex64),
        (torch.complex128, torch.complex128),
    ],
)
def test_states_are_kept_in_float32_or_better(given, kept):
    x = torch.zeros(2, dtype=given)
    assert working_dtype(x) == kept
    assert times_number(x.to(kept) + 3, 0.5).tolist() == [1.5, 1.5]
    assert times_number(x.to(kept), 2.0).dtype == kept


def test_inversion_is_exact_to_the_last_bits():
    value = torch.linspace(0, 1, 1001, dtype=torch.float64)
    root = invert_increasing(lambda t: t**3, value)
    torch.testing.assert_close(root**3, value, rtol=1e-14, atol=1e-300)
    ends = invert_increasing(lambda t: t.exp(), torch.tensor([-5.0, 1.0, math.e, 50.0], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64))
    assert invert_increasing(lambda t: t, torch.zeros(0, dtype=torch.float64)).shape == (0,)
