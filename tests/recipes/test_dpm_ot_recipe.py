"""The recipe `dpm-ot`: its relations at the smallest scale, and that a wrong ingredient is found out."""

from tweed.recipes import dpm_ot
from tweed.recipes.registry import reproduce
from tweed.starts import transport


def test_every_relation_holds_and_is_written(tmp_path):
    report = reproduce("dpm-ot", seed=3, scale="smoke")
    assert report.holds, [(row.quantity, row.here, row.baseline) for row in report.failed]
    folder = report.write(tmp_path)
    assert {path.name for path in folder.iterdir()} == {"report.json", "report.md", "samples.png", "memory.png"}


def test_a_map_to_one_mode_alone_is_found_out():
    modes = dpm_ot.grid_mixture(5, dpm_ot.SPACING, dpm_ot.STD).means
    model = dpm_ot.MixtureDenoiser(modes, dpm_ot.STD**2, None, dpm_ot.PROCESS)
    one = transport(dpm_ot.PROCESS, modes[:1].repeat(20, 1), dpm_ot._time(0.15), steps=100, tolerance=5.0)
    rows, _ = dpm_ot._mixing(model, one, modes, 200, 0)
    assert any(row.holds is False for row in rows)
