"""The recipe `denoising-mcmc`: its relations at the smallest scale, and that a wrong ingredient is found out."""

from dataclasses import replace

from tweed.recipes import denoising_mcmc
from tweed.recipes.registry import reproduce


def test_every_relation_holds_and_is_written(tmp_path):
    report = reproduce("denoising-mcmc", seed=3, scale="smoke")
    assert report.holds, [(row.quantity, row.here, row.baseline) for row in report.failed]
    folder = report.write(tmp_path)
    assert {path.name for path in folder.iterdir()} == {"report.json", "report.md", "frechet.png"}


def test_starts_whose_time_is_not_theirs_are_found_out():
    world = denoising_mcmc._World(0, 60, 4)
    for n_skip in (3, 4, 5, 7):
        start, report = world.starts(n_skip)
        world.kept[n_skip] = (start._replace(t=(8.0 * start.t).clamp_max(1.0)), replace(report))
    name, budgets = "KAR1 (Heun)", denoising_mcmc.FEW
    plain = [world.plain(name, n)[0] for n in budgets]
    wrong = [world.started(name, n)[0] for n in budgets]
    assert any(row.holds is False for row in denoising_mcmc._compared(name, budgets, plain, wrong))
