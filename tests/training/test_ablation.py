"""Ablations: one budget for all, runs that go on, and the numbers of the table."""

import json
import math
import statistics

import pytest
import torch
from scipy import stats

import tweed as tw
from tweed.errors import CheckpointError, IncompatibleError, InputError
from tweed.training import held_out
from tweed.training.ablation import ablate
from tweed.training.ablation_table import Outcome, Table, figure, half_width, write
from tweed.training.config import TrainConfig
from tweed.training.held_out import HeldOutLoss
from tweed.training.variants import grid

TABLE = {
    "data": {"name": "moons", "length": 400},
    "network": {"name": "mlp", "dim": 2, "width": 16, "depth": 1},
    "process": {"name": "RectifiedFlow"},
    "target": {"name": "Velocity"},
    "objective": {"name": "DenoisingLoss", "times": {"name": "Uniform", "low": 0.05, "high": 0.95}},
    "optimisation": {"steps": 10, "batch_size": 16, "precision": "no", "lr": 3e-3},
    "logging": {"save_every": 4},
}
VARY = ["target=velocity,k"]


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(held_out, "_EVALUATIONS", 64)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """An ablation of two targets and two seeds that nothing interrupted: its folder and its table."""
    folder = tmp_path_factory.mktemp("ablation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held_out, "_EVALUATIONS", 64)
        return folder, ablate(TABLE, VARY, folder, seeds=2)


def measured(table):
    """The table without the times, which no two runs share."""
    plain = table.to_dict()
    return [{key: value for key, value in line.items() if key != "seconds_per_step"} for line in plain["lines"]]


def test_half_width_is_students():
    values = [0.3, 0.5, 0.1, 0.35]
    low, high = stats.t.interval(0.95, 3, statistics.fmean(values), stats.sem(values))
    assert half_width(values) == pytest.approx((high - low) / 2)
    bounds = stats.ttest_1samp(values, 0.0).confidence_interval(0.9)
    assert half_width(values, 0.9) == pytest.approx((bounds.high - bounds.low) / 2)
    assert half_width([1.0]) is None
    assert half_width([1.0, 1.0]) == 0.0


def made_up(losses, first=None):
    """A table of variants with these losses by seed (None has failed)."""
    variants = grid(TABLE, [f"optimisation.lr={','.join(str(i + 1) for i in range(len(losses)))}"])
    outcomes = {
        variant.name: {
            seed: Outcome(loss, "" if loss else "no number", {5: loss and 2 * loss, 10: loss}, 0.001 * (seed + 1))
            for seed, loss in enumerate(each)
        }
        for variant, each in zip(variants, losses, strict=True)
    }
    return Table.of(
        "made.toml", variants, outcomes, [7] * len(losses), 10, {"straight": True, "held out": 3, "evaluations": 6}
    )


def test_means_intervals_and_paired_differences():
    table = made_up([[1.0, 2.0, 4.0], [0.9, 1.9, 3.5]])
    first, second = table.lines
    assert (first.mean, first.relative, first.relative_interval) == (pytest.approx(7 / 3), 0.0, 0.0)
    ratios = [-0.1, -0.05, -0.125]
    assert second.relative == pytest.approx(statistics.fmean(ratios))
    bounds = stats.ttest_rel([0.9, 0.95, 0.875], [1.0, 1.0, 1.0]).confidence_interval()
    assert second.relative_interval == pytest.approx((bounds.high - bounds.low) / 2)
    # Seeds differ far more than variants: only the paired difference sees it.
    assert second.interval > 1.0 > 0.1 > second.relative_interval
    assert second.seconds == pytest.approx(0.002)
    assert second.curve == {5: pytest.approx((4.2, 1.8, 7.0)), 10: pytest.approx((2.1, 0.9, 3.5))}
    assert table.cells()[0][2] == ""
    assert table.cells()[1][2] == "-9.2 +- 9.5 %"


def test_failed_runs_are_said_and_not_counted(tmp_path):
    table = made_up([[1.0, 2.0, 4.0], [None, 1.0, 1.0], [None, None, None]])
    _, second, third = table.lines
    assert (second.mean, second.relative) == (1.0, pytest.approx(-0.625))
    assert (second.failed, list(second.losses)) == ({0: "no number"}, [1, 2])
    assert (third.mean, third.interval, third.relative) == (None, None, None)
    assert table.cells()[2][1] == "failed"
    write(table, tmp_path)
    assert "optimisation.lr=2, seed 0: no number" in (tmp_path / "table.md").read_text()
    # Nothing to compare with where the first failed.
    assert made_up([[None, 2.0], [1.0, 1.0]]).lines[1].relative == pytest.approx(-0.5)
    assert made_up([[None], [1.0]]).lines[1].relative is None


def test_one_seed_says_so():
    table = made_up([[1.0], [0.5]])
    assert table.cells()[1] == ("optimisation.lr=2", "0.5", "-50.0 %", "1", "7")
    assert any("One seed" in note for note in table.notes)
    assert "+-" not in "".join("".join(cells) for cells in table.cells())


def test_the_table_holds_what_the_runs_measured(done):
    folder, table = done
    told = json.loads((folder / "table.json").read_text())
    assert told == table.to_dict()
    assert (told["steps"], told["seeds"]) == (10, [0, 1])
    assert [line["variant"] for line in told["lines"]] == ["target=Velocity", "target=LearnedK"]
    parameters = [line["parameters"] for line in told["lines"]]
    assert parameters[1] == parameters[0] + 1
    data, held = held_out.split(TABLE["data"])
    loss = HeldOutLoss.of(held, [tw.processes.RectifiedFlow()])
    for line in told["lines"]:
        place = folder / "runs" / line["variant"]
        for seed in (0, 1):
            model = tw.load(place / f"seed-{seed}")
            assert loss(model) == pytest.approx(line["losses"][str(seed)], rel=1e-6)
            assert model.meta["variant"] == line["variant"]
            curve = json.loads((place / f"seed-{seed}" / "curve.json").read_text())
            assert list(curve) == [str(step) for step in range(1, 11)]
            assert curve["10"]["loss"] == line["losses"][str(seed)]
        assert line["losses"]["0"] != line["losses"]["1"]
        assert line["seconds_per_step"] > 0.0
    # A run is what `train` does with the same configuration, on the data that are not held out.
    config = TrainConfig.from_dict({**TABLE, "seed": 1})
    again = tw.training.train(config, data=data, progress=False)
    assert loss(again.denoiser) == told["lines"][0]["losses"]["1"]
    text = (folder / "table.md").read_text()
    assert text.count("\n| target=") == 2
    assert "degrees of freedom: 1" in text
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize("at", [0.3, 0.62])
def test_an_interrupted_ablation_gives_the_same_table(tmp_path, done, at):
    def stop(text, fraction):
        if fraction > at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ablate(TABLE, VARY, tmp_path, seeds=2, tell=stop)
    assert not (tmp_path / "table.json").exists()
    told = []
    table = ablate(TABLE, VARY, tmp_path, seeds=2, tell=lambda text, fraction: told.append(fraction))
    assert measured(table) == measured(done[1])
    # Runs that were done were not trained again; the one in the middle went on from its last checkpoint.
    finished = math.floor(4 * at)
    first = next(fraction for fraction in told if fraction > finished / 4)
    interrupted_at = 10 * (4 * at - finished)
    assert first == pytest.approx((finished + (4 * (interrupted_at // 4) + 1) / 10) / 4)
    curves = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("curve.json"))]
    whole = [json.loads(path.read_text()) for path in sorted(done[0].rglob("curve.json"))]
    assert [{s: p["loss"] for s, p in c.items()} for c in curves] == [
        {s: p["loss"] for s, p in c.items()} for c in whole
    ]


def test_done_runs_are_kept_and_variants_added(done, monkeypatch):
    folder, table = done
    monkeypatch.setattr("tweed.training.ablation.train", None)
    assert measured(ablate(TABLE, VARY, folder, seeds=2)) == measured(table)
    assert measured(ablate(TABLE, ["target=k"], folder, seeds=1))[0]["losses"] == {"0": table.lines[1].losses[0]}
    with pytest.raises(TypeError):  # one more is trained
        ablate(TABLE, ["target=velocity,k,data"], folder, seeds=2)


def test_a_lost_checkpoint_is_trained_again(tmp_path):
    before = ablate(TABLE, [], tmp_path, seeds=1, steps=2)
    (config,) = (tmp_path / "runs").glob("as-given*/seed-0/config.json")
    config.unlink()
    assert measured(ablate(TABLE, [], tmp_path, seeds=1, steps=2)) == measured(before)
    assert config.is_file()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (
            {"optimisation": {**TABLE["optimisation"], "lr": 1e-3}},
            {},
            r"optimisation\.lr = 0\.003, and 0\.001 was given",
        ),
        ({}, {"steps": 11}, r"optimisation\.steps = 10, and 11"),
        ({}, {"share": 0.2}, r"held_out\.evaluations|held_out\.held out"),
    ],
)
def test_another_configuration_in_the_folder_is_refused(done, changes, options, message):
    files = {path: path.read_bytes() for path in done[0].rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=message):
        ablate({**TABLE, **changes}, VARY, done[0], seeds=2, **options)
    assert {path: path.read_bytes() for path in done[0].rglob("*") if path.is_file()} == files


@pytest.mark.parametrize(
    ("vary", "error", "message"),
    [
        (["network.depht=1"], InputError, "network.depht=1: .*'depth'"),
        (["target=velocity,MeanRevertingV"], IncompatibleError, "target=MeanRevertingV: .*MeanReverting process"),
        (["network.dim=2,3"], InputError, "network.dim=3: "),
        (["start=glyphs"], IncompatibleError, "start=glyphs: start: name of the network"),
        (["start=glyhps"], CheckpointError, "start=glyhps: start: .*'glyphs'"),
        (['process=RectifiedFlow,{name="VP",beta_max=1}'], InputError, "VP was given among others"),
        (['optimisation.conditions=[],["label"]'], InputError, "all are told the same"),
    ],
)
def test_variants_that_do_not_work_are_named_before_anything_runs(tmp_path, vary, error, message):
    with pytest.raises(error, match=message):
        ablate(TABLE, vary, tmp_path / "out", seeds=1)
    assert not (tmp_path / "out").exists()
    for options, named in (({"seeds": 0}, "seeds"), ({"steps": 0}, "steps")):
        with pytest.raises(InputError, match=named):
            ablate(TABLE, [], tmp_path / "out", **options)


def test_a_run_that_diverges_does_not_stop_the_others(tmp_path):
    vary = ["optimisation.optimizer=SGD", "optimisation.lr=1e-3,1e30"]
    table = ablate({**TABLE, "optimisation": {**TABLE["optimisation"], "clip": 0.0}}, vary, tmp_path, seeds=1)
    good, bad = table.lines
    assert math.isfinite(good.mean)
    assert bad.mean is None
    assert "not" in bad.failed[0] or "nan" in bad.failed[0] or "inf" in bad.failed[0]
    assert "failed" in (tmp_path / "table.md").read_text()
    assert measured(ablate({**TABLE, "optimisation": {**TABLE["optimisation"], "clip": 0.0}}, vary, tmp_path, seeds=1))[
        1
    ]["failed"] == {"0": bad.failed[0]}


def test_processes_are_compared_at_the_same_noise_levels(tmp_path):
    table = ablate(TABLE, ["process=RectifiedFlow,VP"], tmp_path, seeds=1, steps=2)
    assert table.told["straight"]
    # An untrained network answers zero, which is the same guess of the velocity nowhere but on a path of one's own.
    assert all(0.1 < line.mean < 10.0 for line in table.lines)


def test_the_figure_has_a_line_and_a_band_a_variant():
    axes = figure(made_up([[1.0, 2.0], [0.5, 1.0]])).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["optimisation.lr=1", "optimisation.lr=2"]
    torch.testing.assert_close(
        torch.tensor(axes.lines[1].get_xydata()), torch.tensor([[5.0, 1.5], [10.0, 0.75]]).double()
    )
    assert len(axes.collections) == 2
    assert "least to greatest" in axes.get_title()
