"""The errors: their kinds, and messages that say what was given and what was expected."""

import pytest

from tweed import errors


def test_every_error_is_a_tweed_error_and_of_a_builtin_kind():
    for kind in (errors.InputError, errors.IncompatibleError, errors.NumericalError, errors.CheckpointError):
        assert issubclass(kind, errors.TweedError)
    assert issubclass(errors.InputError, ValueError)
    assert issubclass(errors.IncompatibleError, errors.InputError)
    assert issubclass(errors.NumericalError, ArithmeticError)
    assert not issubclass(errors.CheckpointError, ValueError)


def test_choose_gives_the_entry_or_the_name():
    assert errors.choose("solver", "DDIM", {"DDIM": 7, "UniPC": 8}) == 7
    assert errors.choose("kind", "b", ("a", "b")) == "b"
    assert errors.choose("kind", "b", (name for name in "ab")) == "b"


@pytest.mark.parametrize(
    ("given", "near"),
    [("DDIN", "'DDIM'"), ("ddim", "'DDIM'"), ("euler", "'Euler' or 'EulerMaruyama'"), ("DPM", "'DPMSolver'")],
)
def test_choose_suggests_the_nearest_names(given, near):
    with pytest.raises(errors.InputError) as caught:
        errors.choose("solver", given, {"Euler": 1, "EulerMaruyama": 2, "DDIM": 3, "DPMSolver": 4})
    message = str(caught.value)
    assert message.startswith(f"solver: {given!r} is unknown; did you mean {near}?")
    assert message.endswith("(expected one of: DDIM, DPMSolver, Euler, EulerMaruyama)")


@pytest.mark.parametrize("given", ["zzz", "", 7, None])
def test_choose_without_a_near_name_lists_all(given):
    with pytest.raises(errors.InputError, match=r"kind: .* is unknown \(expected one of: a, b\)"):
        errors.choose("kind", given, ("b", "a"))


def test_reject_unknown_names_the_first_stranger():
    errors.reject_unknown("config", [], ["steps"])
    errors.reject_unknown("config", {"steps": 1}, iter(["seed", "steps"]))
    with pytest.raises(errors.InputError, match="config: 'step' is unknown; did you mean 'steps'"):
        errors.reject_unknown("config", ["seed", "step", "other"], iter(["seed", "steps"]))
