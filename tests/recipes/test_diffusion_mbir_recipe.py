"""The recipe `diffusion-mbir` at the smallest scale, and that wrong ingredients are found out."""

from dataclasses import replace

import pytest

from tweed.recipes import _mbir_exact as exact
from tweed.recipes import _mbir_heads as heads
from tweed.recipes import _mbir_worlds as worlds
from tweed.recipes import diffusion_mbir as recipe
from tweed.recipes import silent
from tweed.recipes.registry import reproduce


def wrong(rows):
    return {row.quantity for row in rows if row.holds is False}


@pytest.fixture(scope="module")
def prior():
    return worlds.prior("fibres", 1, 480)


def test_every_relation_holds_and_is_written(tmp_path):
    report = reproduce("diffusion-mbir", seed=3, scale="smoke")
    assert report.holds, [(row.quantity, row.here, row.baseline) for row in report.failed]
    assert {path.name for path in report.write(tmp_path).iterdir()} == {"report.json", "report.md", "volume.png"}


def test_coupled_slices_and_a_wrong_adjoint_are_found_out(monkeypatch, prior):
    monkeypatch.setattr(exact, "slice_wise", lambda method: method)
    monkeypatch.setattr(exact, "difference_adjoint", lambda d, axis, boundary: -d.roll(1, axis) - d)
    assert wrong(exact.rows(prior, 1)) == {
        "differences across slices: <D x, y> off <x, D* y>",
        "slice by slice: a disturbed slice moves the others by",
    }


def test_a_method_without_its_last_projection_is_found_out(monkeypatch, prior):
    monkeypatch.setattr(exact, "METHOD", replace(worlds.METHOD, project=False))
    assert wrong(exact.rows(prior, 1)) == {"everything measured: result off the truth"}


def test_no_coupling_and_too_much_are_found_out(monkeypatch):
    settings = recipe.Settings(20, 480, {("fibres", 4): 1})
    made = {"fibres": worlds.prior("fibres", 1, 480)}
    for method in (replace(worlds.METHOD, penalty=1e-9, strength=0.0), replace(worlds.METHOD, penalty=2.0)):
        monkeypatch.setattr(worlds, "METHOD", method)
        rows = recipe._short(recipe._compared(settings, made, 1, silent))
        assert wrong(rows) == {"fibres, 4 views: PSNR over slice by slice, dB", "... roughness across slices"}


def test_the_relations_of_the_larger_scales(monkeypatch):
    score = {
        recipe.COUPLED: worlds.Score(30.0, 1.0),
        recipe.ALONE: worlds.Score(27.0, 4.0),
        recipe.TV_Z: worlds.Score(26.0, 0.9),
        recipe.TV: worlds.Score(29.0, 0.9),
    }
    found = {key: worlds.Compared(score, {}) for key in recipe.SCALES["default"].volumes}
    level = worlds.Compared(score | {recipe.ALONE: worlds.Score(30.0, 1.2)}, {})
    good = found | {("blobs", 8): level, ("fibres", 16): level}
    assert wrong(recipe._relations(good)) == set()
    # A gain that does not rise as views fall, and total variation that does as well.
    assert wrong(recipe._relations(found)) == {
        "blobs: gain with 2 and with 4 views, above that with 8, dB",
        "fibres: gain with 8 views, above that with 16, dB",
    }
    plain = worlds.Compared(score | {recipe.TV: worlds.Score(30.1, 0.9)}, {})
    assert wrong(recipe._relations(good | {("fibres", 8): plain})) == {
        "... over total variation, the better of both, dB"
    }


def test_heads_with_a_trained_prior_run():
    sizes = heads.Sizes(side=16, slices=3, channels=8, heads=8, training=2, batch=2, steps=2, views=(4, 8))
    rows, shown = heads.rows(sizes, 0, silent, "cpu")
    assert sum(row.holds is not None for row in rows) == 4
    assert {name: tuple(volume.shape) for name, volume in shown.items()} == dict.fromkeys(
        ("truth", recipe.COUPLED, recipe.ALONE, recipe.TV_Z, recipe.TV), (3, 1, 16, 16)
    )
    recipe.volumes(shown)
