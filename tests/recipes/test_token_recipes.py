"""The recipes of tokens, at their smallest: every relation holds, and the report is whole."""

import pytest

from tweed.recipes.registry import reproduce

FIGURES = {
    "first-hitting": {"laws.png", "float32.png"},
    "free-cache": {"guided.png", "caches.png"},
    "masked-policy": {"remasking.png", "training.png"},
    "non-simultaneous": {"levels.png", "accuracy.png"},
}


@pytest.mark.slow
@pytest.mark.parametrize("slug", FIGURES)
def test_every_relation_holds_and_is_written(slug, tmp_path):
    report = reproduce(slug, seed=3, scale="smoke")
    assert report.holds, [(row.quantity, row.here, row.baseline) for row in report.failed]
    assert sum(row.holds is True for row in report.rows) >= 5
    assert {path.name for path in report.write(tmp_path).iterdir()} == FIGURES[slug] | {"report.json", "report.md"}
