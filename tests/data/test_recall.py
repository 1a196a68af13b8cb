"""Key-value recall: what is asked can be answered, and by the needle alone."""

import pytest
import torch

from tweed.data.recall import KeyValueRecall
from tweed.errors import InputError

TASK = KeyValueRecall(keys=6, values=5, pairs=3)


def test_answers_are_what_follows_the_same_key_before():
    drawn = TASK.sample(200, 40, seed=1)
    rows = torch.arange(200)[:, None]
    assert (drawn.x[rows, drawn.needles] == drawn.x[rows, drawn.answers]).all()
    assert (drawn.x[rows, drawn.needles - 1] == drawn.x[rows, drawn.answers - 1]).all()
    assert (drawn.distance > 0).all()
    # Each key of a row stands there twice: in the haystack, and in its question.
    keys = drawn.x < TASK.keys
    assert (keys.sum(1) == 2 * TASK.pairs).all()
    assert (keys[:, :-6].sum(1) == TASK.pairs).all()
    asked = drawn.x[rows, drawn.answers - 1]
    assert all(len(row.unique()) == TASK.pairs for row in asked)


def test_tokens_are_of_their_sorts_and_evenly_drawn():
    drawn = TASK.sample(4000, 40, seed=2)
    assert drawn.x.min() == 0
    assert drawn.x.max() == TASK.size - 1
    values = drawn.x.gather(1, drawn.answers[:, :1]) - TASK.keys
    shares = torch.bincount(values.flatten(), minlength=TASK.values) / len(values)
    assert (shares - 0.2).abs().max() < 0.03
    # The needle stands anywhere, at either parity.
    assert (drawn.needles[:, 0] % 2).double().mean().sub(0.5).abs() < 0.04
    assert drawn.needles[:, 0].double().mean().sub(33 / 2).abs() < 0.7


def test_masks_and_fixed_tokens_are_the_answers_and_the_rest():
    drawn = TASK.sample(5, 30, seed=3)
    asked = drawn.asked(TASK.size)
    assert ((asked == TASK.size) == ~drawn.fixed).all()
    assert torch.equal(asked[drawn.fixed], drawn.x[drawn.fixed])
    assert (~drawn.fixed).sum() == 15
    batch = drawn.data().batch(torch.tensor([4, 1]))
    assert torch.equal(batch["x"], drawn.x[[4, 1]])
    assert torch.equal(batch["fixed"], drawn.fixed[[4, 1]])


def test_decoys_are_values_that_follow_no_key():
    task = KeyValueRecall(keys=2, values=5, noise=7, pairs=2, decoys=4)
    drawn = task.sample(100, 50, seed=8)
    value = (drawn.x >= 2) & (drawn.x < 7)
    assert (value.sum(1) == 2 * 2 + 4).all()
    after_key = torch.cat((torch.zeros(100, 1, dtype=torch.bool), drawn.x[:, :-1] < 2), 1)
    assert ((value & ~after_key).sum(1) == 4).all()
    assert (value & after_key).gather(1, torch.cat((drawn.needles, drawn.answers), 1)).all()


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_depth_places_the_first_questions_needle(depth):
    drawn = TASK.sample(300, 60, seed=4, depth=depth)
    room = (60 - 7) // 2
    place = round(depth * (room - 1))
    assert set(drawn.needles[:, 0].tolist()) == {2 * place + 1, 2 * place + 2}
    # The others are still places of their own.
    assert all(len(row.unique()) == 3 for row in drawn.needles)
    rows = torch.arange(300)[:, None]
    assert (drawn.x[rows, drawn.needles] == drawn.x[rows, drawn.answers]).all()


def test_a_sequence_is_the_same_in_any_batch():
    many, few = TASK.sample(50, 40, seed=5), TASK.sample(7, 40, seed=5)
    assert torch.equal(many.x[:7], few.x)
    assert torch.equal(many.needles[:7], few.needles)
    assert not torch.equal(TASK.sample(7, 40, seed=6).x, few.x)
    assert TASK.sample(0, 40).x.shape == (0, 40)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: KeyValueRecall(keys=0), "keys: 0"),
        (lambda: KeyValueRecall(values=0), "values: 0"),
        (lambda: KeyValueRecall(noise=0), "noise: 0"),
        (lambda: KeyValueRecall(decoys=-1), "decoys: -1"),
        (lambda: KeyValueRecall(keys=2, pairs=3), "pairs: 3"),
        (lambda: TASK.sample(2, 12), "length: 12"),
        (lambda: TASK.sample(2, 40, depth=1.5), "depth: 1.5"),
    ],
)
def test_errors_name_the_argument(make, text):
    with pytest.raises(InputError, match=text):
        make()


def test_the_shortest_length_holds_all_pairs():
    drawn = TASK.sample(20, 13, seed=7)
    assert all(sorted(row.tolist()) in ([1, 3, 5], [2, 4, 6]) for row in drawn.needles)
