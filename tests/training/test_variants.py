"""The grid of `--vary`: how paths and values are read, and which mistakes are named."""

import pytest

import tweed as tw
from tweed.errors import InputError
from tweed.training import weightings
from tweed.training.learned import LearnedK
from tweed.training.optimizers import choices
from tweed.training.variants import grid, read_axis, shown

TABLE = {
    "data": {"name": "moons", "length": 500},
    "network": {"name": "mlp", "dim": 2, "depth": 1},
    "process": "RectifiedFlow",
    "target": {"name": "EDM", "data_std": 0.3},
    "optimisation": {"steps": 6, "lr": 1e-3},
}


@pytest.mark.parametrize(
    ("text", "path", "values"),
    [
        ("target=noise,v", "target", ["noise", "v"]),
        ("optimisation.lr=1e-3, 3e-3", "optimisation.lr", [1e-3, 3e-3]),
        ("network.depth=2,4", "network.depth", [2, 4]),
        ("a=true,1.0,'x,y'", "a", [True, 1.0, "x,y"]),
        ("a=[1,2],[1,[2,3]]", "a", [[1, 2], [1, [2, 3]]]),
        ('a=AdamW,{name="DualAdam",switch_rate=1e-3}', "a", ["AdamW", {"name": "DualAdam", "switch_rate": 1e-3}]),
    ],
)
def test_values_are_those_of_toml(text, path, values):
    found = read_axis(text)
    assert found == (path, values)
    assert [type(value) for value in found[1]] == [type(value) for value in values]


def test_the_grid_is_every_combination_the_last_fastest():
    made = grid(TABLE, ["target=noise,v,velocity,x0,k,K", "network.depth=2,4"])
    assert [v.name for v in made[:3]] == [
        "target=Noise, network.depth=2",
        "target=Noise, network.depth=4",
        "target=V, network.depth=2",
    ]
    wanted = [tw.targets.Noise(), tw.targets.V(), tw.targets.Velocity(), tw.targets.Data(), LearnedK(), tw.targets.K()]
    assert [v.config.target for v in made[::2]] == wanted
    assert [v.config.network["depth"] for v in made] == [2, 4] * 6
    assert made[0].config.optimisation.lr == 1e-3
    assert TABLE["target"] == {"name": "EDM", "data_std": 0.3}
    (alone,) = grid(TABLE, [])
    assert (alone.name, alone.changes) == ("as given", {})


def test_paths_go_through_names_and_defaults():
    made = grid(TABLE, ["objective.weighting=minsnr,P2", "objective.times.low=0.1"])
    assert [v.config.objective.weighting for v in made] == [weightings.MinSNR(), weightings.P2()]
    assert made[0].config.objective.times.low == 0.1
    assert grid({**TABLE, "target": "EDM"}, ["target.data_std=0.7"])[0].config.target == tw.targets.EDM(0.7)
    # One path may stand on what another one chose.
    made = grid(TABLE, ["optimisation.optimizer=dualadam", "optimisation.optimizer.switch_rate=0.1,0.2"])
    assert [v.config.optimisation.optimizer for v in made] == [choices.DualAdam(0.1), choices.DualAdam(0.2)]


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        (["target=nois,v"], "vary: target=nois: .*did you mean 'Noise'"),
        (["taget=noise"], "vary: 'taget'.*'target'"),
        (["lr=1e-3"], r"did you mean 'optimisation\.lr'"),
        (["depth=1"], r"did you mean 'network\.depth'"),
        (["optimisation.lrr=1"], "'lrr'.*'lr'"),
        (["optimisation.lr=fast"], r"optimisation\.lr: 'fast'"),
        (["objective.weighting.gama=1"], "'gama'"),
        (["optimisation.optimizer.switch_rate=0.1"], "a table with a 'name'"),
        (["optimisation.lr.x=0.1"], "which has no 'x'"),
        (["seed=0,1"], "seed was given.*seeds"),
        (["optimisation.steps=1,2"], "same steps"),
        (["data.length=1,2"], "same data"),
        (["logging.save_every=1,2"], "changes no result"),
        (["target=v", "target=noise"], "twice"),
        (["target=noise,eps"], "target=Noise was given twice"),
        (["target"], "expected a path and its values"),
        (["target="], "expected a path and its values"),
        (["=v"], "expected a path and its values"),
        (["network.depth=1,,2"], "expected a path and its values"),
        (["network.widths=[1,2"], "as TOML has it"),
    ],
)
def test_mistakes_are_named(vary, message):
    with pytest.raises(InputError, match=message):
        grid(TABLE, vary)


def test_values_in_words():
    assert shown({"name": "DualAdam", "switch_rate": 0.001}) == "DualAdam(switch_rate=0.001)"
    assert shown([1, [2, True]]) == "[1, [2, true]]"
    assert shown({"name": "P2"}) == "P2"
