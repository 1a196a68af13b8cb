"""Solvers by name."""

import pytest

from tweed import solvers
from tweed.errors import InputError
from tweed.solvers.registry import describe, names, parse


def test_every_solver_is_made_from_its_own_description():
    for name in names():
        solver = parse(name)
        assert parse(describe(solver)) == solver


def test_options_case_and_words():
    assert parse("dpmsolver( order=3, kind=singlestep )") == solvers.DPMSolver(order=3, kind="singlestep")
    nested = parse("PredictorCorrector(corrector=Langevin(snr=0.2, steps=3), first=corrector)")
    assert nested.corrector == solvers.Langevin(snr=0.2, steps=3)
    assert parse("DDPM") == solvers.DDIM(eta=1.0)
    assert parse("heun(churn=40, churn_max=inf)") == solvers.Heun(churn=40)
    assert describe(solvers.DPMSolver(order=3, kind="singlestep")) == "DPMSolver(order=3, kind=singlestep)"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("DPMSolvr", "DPMSolver"),
        ("UniPC(ordr=2)", "order"),
        ("UniPC(2)", "name=value"),
        ("", "expected a name"),
        ("DDIM(eta=3)", "eta"),
        ("os.system('x')", "expected a name"),
    ],
)
def test_bad_texts_are_named(text, says):
    with pytest.raises(InputError, match=says):
        parse(text)
