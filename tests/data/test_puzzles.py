"""Puzzles: answers that are right are verified, others are not, and nothing of them is run."""

import pytest
import torch

from tweed.data.puzzles import Countdown, RunningSums, value_of
from tweed.errors import InputError


def test_running_sums_are_right_and_masked_where_asked():
    puzzle = RunningSums(6)
    x = puzzle.draw(200, 1)
    assert x.shape == (200, 14)
    assert bool(puzzle.right(x).all())
    assert torch.equal(x[:, 6:12], x[:, :6].cumsum(1) % 10)
    assert bool((x[:, 12] == 10).all())
    asked = puzzle.asked(x)
    assert torch.equal(asked[:, :6], x[:, :6])
    assert bool((asked[:, 6:] == puzzle.mask).all())
    wrong = x.clone()
    wrong[:, -1] = (wrong[:, -1] + 1) % 10
    assert not puzzle.right(wrong).any()
    assert puzzle.right(x[None]).shape == (1, 200)


def test_so_many_answers_are_corrupted():
    puzzle = RunningSums(6)
    x = puzzle.draw(20000, 2, corrupted=0.3)
    # A corrupted answer's last digit is replaced half of the time, by the right one in a tenth of these.
    assert (~puzzle.right(x)).double().mean().item() == pytest.approx(0.3 * 0.5 * 0.9, abs=0.012)
    data = puzzle.data(50, 3)
    assert torch.equal(data.batch(torch.arange(2))["fixed"][0], torch.arange(14) < 6)


def test_countdown_s_own_answers_are_right():
    puzzle = Countdown()
    x = puzzle.draw(60, 4)
    assert bool(puzzle.right(x).all())
    assert puzzle.text(x[0])[3] == ":"
    assert puzzle.text(puzzle.asked(x)[0]).endswith("=_____")
    assert torch.equal(puzzle.draw(60, 4), x)
    assert torch.tensor(puzzle.encode(puzzle.text(x[0]))).equal(x[0])


@pytest.mark.parametrize(
    ("text", "right"),
    [("352:13=3+5*2", True), ("352:13=5*2+3", True), ("352:13=3*5-2", True), ("352:13=3+5+5", False),
     ("352:13=2+5*3", False), ("352:13=3++52", False), ("352:13=_____", False), ("352:04=5-3+2", True)],
)  # fmt: skip
def test_answers_are_verified(text, right):
    puzzle = Countdown()
    tokens = torch.tensor([puzzle.mask if sign == "_" else puzzle.encode(sign)[0] for sign in text])
    assert bool(puzzle.right(tokens)) is right


def test_only_sums_differences_and_products_have_a_value():
    assert value_of("2+3*4") == 14
    assert value_of("2-3-4") == -5
    for text in ("2**3", "__import__('os')", "2/3", "2+", "True+1", "1.5+2", "a+b", "-3"):
        assert value_of(text) is None


def test_mistakes_are_named():
    with pytest.raises(InputError, match="digits: 0"):
        RunningSums(0)
    with pytest.raises(InputError, match="'x' is no token"):
        Countdown().encode("1x2")
