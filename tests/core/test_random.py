"""Counter-based randomness: statistics, and the same numbers whatever the batch."""

import itertools
import math

import pytest
import torch
from scipy import stats

from tweed.core import random
from tweed.errors import InputError

KINDS = (random.normal, random.uniform, random.rademacher)
SHAPES = [(1,), (5,), (3, 1), (4, 2), (3, 7), (2, 33), (5, 3, 3), (9, 1, 8, 8), (2, 1025)]


@pytest.fixture(scope="module")
def gauss():
    return random.normal((2000, 500), 12, dtype=torch.float64)


def test_normal_moments(gauss):
    n = gauss.numel()
    for power, (mean, variance) in {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96)}.items():
        assert abs((gauss**power).mean().item() - mean) < 4.5 * math.sqrt(variance / n)
    assert stats.kstest(gauss.flatten()[:200000].numpy(), "norm").pvalue > 1e-4
    # The tails, by binomial counts.
    for bound in (2.0, 3.0, 4.0):
        p = math.erfc(bound / math.sqrt(2))
        count = (gauss.abs() > bound).sum().item()
        assert abs(count - n * p) < 5 * math.sqrt(n * p)


def test_uniform_statistics():
    u = random.uniform((2000, 500), 3, dtype=torch.float64)
    n = u.numel()
    assert stats.kstest(u.flatten()[:200000].numpy(), "uniform").pvalue > 1e-4
    assert abs(u.mean().item() - 0.5) < 4.5 / math.sqrt(12 * n)
    assert abs(u.var().item() - 1 / 12) < 4.5 * math.sqrt(1 / 180 / n)
    counts = torch.histc(u, 256, 0, 1).numpy()
    assert stats.chisquare(counts).pvalue > 1e-4
    # The lowest bits of the words are as good as the highest.
    low = torch.histc((u * 2.0**20) % 1.0, 256, 0, 1).numpy()
    assert stats.chisquare(low).pvalue > 1e-4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_uniform_is_open_at_both_ends(dtype):
    u = random.uniform((1000, 1000), 5, dtype=dtype)
    assert u.min().item() > 0.0
    assert u.max().item() < 1.0


def test_the_largest_word_stays_below_one(monkeypatch):
    for word in (-1, 0):
        monkeypatch.setattr(random, "_words", lambda batch, count, *_, w=word: torch.full((batch, count), w))
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            value = random.uniform((1, 1), 0, dtype=dtype).item()
            assert 0.0 < value < 1.0
        assert random.normal((1, 2), 0, dtype=torch.float64).isfinite().all()


def test_rademacher_is_fair():
    signs = random.rademacher((1000, 1000), 4)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(signs.sum().item()) < 4.5 * 1000


def test_complex_normals_are_circular():
    z = random.normal((1000, 200), 6, dtype=torch.complex128)
    n = z.numel()
    assert z.shape == (1000, 200)
    assert abs(z.abs().square().mean().item() - 1) < 4.5 / math.sqrt(n)
    assert abs((z**2).mean().item()) < 4.5 * math.sqrt(2 / n)
    assert abs(z.real.var().item() - 0.5) < 4.5 * math.sqrt(0.5 / n)
    assert random.normal((3,), 6, dtype=torch.complex64).dtype == torch.complex64
    assert torch.equal(random.normal((2, 3), 6, index=998, dtype=torch.complex128), z[998:, :3])


def test_numbers_at_other_addresses_are_unrelated(gauss):
    n = 100000
    bound = 4.7 / math.sqrt(n)
    base = random.normal((1, n), 12, dtype=torch.float64)[0]
    others = {
        "draw": random.normal((1, n), 12, draw=1, dtype=torch.float64),
        "far draw": random.normal((1, n), 12, draw=10**6, dtype=torch.float64),
        "seed": random.normal((1, n), 13, dtype=torch.float64),
        "index": random.normal((1, n), 12, index=1, dtype=torch.float64),
        "swapped": random.normal((1, n), 0, draw=12, dtype=torch.float64),
    }
    for name, other in others.items():
        assert abs((base * other[0]).mean().item()) < bound, name
        assert abs((base**2 * other[0] ** 2).mean().item() - 1) < bound * math.sqrt(8) * 1.2, name
    # Neighbouring elements, elements of one pair, neighbouring samples.
    for a, b in ((gauss[:, :-1], gauss[:, 1:]), (gauss[:, ::2], gauss[:, 1::2]), (gauss[:-1], gauss[1:])):
        assert abs((a * b).mean().item()) < 4.7 / math.sqrt(a.numel())
        assert abs(((a**2 - 1) * (b**2 - 1)).mean().item()) < 4.7 * 2 / math.sqrt(a.numel())


def test_elements_at_one_place_are_normal_across_seeds_indices_and_draws():
    seeds = torch.cat([random.normal((1, 1), seed, dtype=torch.float64)[0] for seed in range(2000)])
    draws = torch.cat([random.normal((1, 1), 0, draw=draw, dtype=torch.float64)[0] for draw in range(2000)])
    indices = random.normal((20000, 1), 0, dtype=torch.float64)[:, 0]
    for values in (seeds, draws, indices):
        assert stats.kstest(values.numpy(), "norm").pvalue > 1e-4
        assert abs((values[1:] * values[:-1]).mean().item()) < 4.7 / math.sqrt(len(values))


def test_no_number_comes_twice():
    words = [
        random.uniform((300, 100), seed, draw=draw, dtype=torch.float64).flatten()
        for seed, draw in itertools.product((0, 1, 2, -1, 1 << 40), (0, 1, 2, 3))
    ]
    values = torch.cat(words)
    assert len(values.unique()) == len(values)


@pytest.mark.parametrize("function", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_sample_is_the_same_in_every_batch(function, dtype, shape):
    event = shape[1:]
    whole = function((64, *event), 77, index=10, draw=3, dtype=dtype)
    assert whole.shape == (64, *event)
    assert whole.dtype == dtype
    for first, size in ((0, 1), (0, 7), (5, 1), (13, 51), (63, 1)):
        part = function((size, *event), 77, index=10 + first, draw=3, dtype=dtype)
        assert torch.equal(part, whole[first : first + size])
    order = torch.tensor([7, 0, 63, 7, 20])
    assert torch.equal(function((5, *event), 77, index=10 + order, draw=3, dtype=dtype), whole[order])


@pytest.mark.parametrize("function", KINDS)
def test_the_number_of_threads_does_not_matter(function):
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(function((64, 4099), 1))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert torch.equal(function((1, 4099), 1, index=63)[0], results[0][63])


@pytest.mark.parametrize("function", KINDS)
def test_seeds_of_every_size(function):
    values = [function((1, 50), seed) for seed in (0, 1, -1, -(1 << 62), 1 << 62, 1 << 63, (1 << 100) + 5)]
    for a, b in itertools.combinations(values, 2):
        assert not torch.equal(a, b)
    assert torch.equal(function((1, 50), -1), values[2])
    assert function((2, 3), 0, index=-5).shape == (2, 3)
    assert function((1, 3), 0, index=(1 << 62)).isfinite().all()
    assert torch.equal(function((2, 3), 0, index=-1)[1], function((1, 3), 0)[0])


@pytest.mark.parametrize("function", KINDS)
def test_nothing_global_is_touched(function):
    torch.manual_seed(0)
    first = function((3, 3), 1)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(function((3, 3), 1), first)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("function", KINDS)
def test_empty_batches_and_events(function):
    assert function((0,), 1).shape == (0,)
    assert function((0, 3), 1).shape == (0, 3)
    assert function((3, 0), 1).shape == (3, 0)
    assert function(torch.Size((2, 2)), 1).shape == (2, 2)
    assert function((0, 3), 1, index=torch.zeros(0, dtype=torch.int64)).shape == (0, 3)


@pytest.mark.parametrize("function", KINDS)
def test_bad_input_is_named(function):
    with pytest.raises(InputError, match=r"shape: \(\) was given"):
        function((), 1)
    with pytest.raises(InputError, match=r"index: shape \(2,\) was given; expected one index a sample, \(3,\)"):
        function((3, 2), 1, index=torch.tensor([0, 1]))


def test_the_numbers_are_those_of_splitmix64():
    # The same words, in Python's integers.
    mask = (1 << 64) - 1

    def mix(z):
        z &= mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    # SplitMix64 seeded with 0 starts with this published word.
    assert mix(golden) == 0xE220A8397B1DCDAF
    seed, draw, index = 42, 3, 17
    base = mix(random.fold(seed, draw) + golden)
    start = mix(mix(index + golden) ^ base)
    words = [mix(start + k * golden) for k in range(1, 9)]
    u = random.uniform((1, 8), seed, index=index, draw=draw, dtype=torch.float64)[0]
    assert u.tolist() == [((w >> 12) + 0.5) / 2**52 for w in words]
    z = random.normal((1, 8), seed, index=index, draw=draw, dtype=torch.float64)[0].tolist()
    for k, w in enumerate(words[:4]):
        radius = math.sqrt(-2 * math.log(((w >> 32) + 0.5) / 2**32))
        angle = 2 * math.pi * ((w & 0xFFFFFFFF) + 0.5) / 2**32
        assert z[2 * k] == pytest.approx(radius * math.cos(angle), abs=1e-13)
        assert z[2 * k + 1] == pytest.approx(radius * math.sin(angle), abs=1e-13)
    signs = random.rademacher((1, 8), seed, index=index, draw=draw)[0]
    assert signs.tolist() == [1.0 - 2.0 * (w >> 63) for w in words]


def test_fold_and_generator():
    seeds = {
        random.fold(seed, *words) for seed in range(30) for words in ((), (0,), (1,), (0, 0), (0, 1), (1, 0), (-1,))
    }
    assert len(seeds) == 30 * 7
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    assert random.fold(3, 4) == random.fold(3, 4)
    # Neither order nor equal words may cancel: (seed, draw) pairs are all different.
    assert len({random.fold(seed, draw) for seed in range(-100, 100) for draw in range(200)}) == 40000
    draws = [torch.rand(4, generator=random.generator(*words)) for words in ((1, 2), (1, 2), (1, 3), (2, 2))]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[3])
