from pathlib import Path

import pytest
import torch

import tweed as tw
from tweed.errors import InputError
from tweed.training import TrainConfig, build_data, couplings, objectives, train, weightings
from tweed.training.config import build

CONFIGS = Path(tw.__file__).parent / "configs"
SMALL = """
seed = 3
[data]
name = "moons"
length = 500
[network]
name = "mlp"
dim = 2
width = 16
depth = 1
[process]
name = "VP"
beta_max = 10
[target]
name = "V"
[denoiser]
time = "log_snr"
[objective]
name = "DenoisingLoss"
weighting = { name = "MinSNR", gamma = 4 }
times = { name = "Uniform", low = 1e-3 }
coupling = "MinibatchOT"
[optimisation]
steps = 6
batch_size = 8
clip = 0
power_ema = [0.1]
precision = "no"
[logging]
save_every = 3
[meta]
note = "two moons"
"""


def read(tmp_path, text):
    (tmp_path / "run.toml").write_text(text)
    return TrainConfig.read(tmp_path / "run.toml")


def test_a_file_becomes_the_run_it_describes(tmp_path):
    config = read(tmp_path, SMALL)
    assert config.process == tw.processes.VP(beta_max=10.0)
    assert config.target == tw.targets.V()
    assert config.objective == objectives.DenoisingLoss(
        weighting=weightings.MinSNR(4.0),
        times=tw.training.times.Uniform(low=1e-3),
        coupling=couplings.MinibatchOT(),
    )
    assert config.optimisation.power_ema == (0.1,)
    result = train(config, tmp_path / "run", progress=False)
    assert len(result.losses) == 6
    model = tw.load(tmp_path / "run")
    assert (model.time, model.event, model.process) == ("log_snr", (2,), config.process)
    assert model.meta["note"] == "two moons"
    assert model.meta["data"] == {"name": "moons", "length": 500}
    again = train(tmp_path / "run.toml", progress=False)
    assert again.losses == result.losses
    assert train(config.replace(seed=4), progress=False).losses != result.losses


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('[target]\nname = "V"', "", r"run\.toml: target: nothing was given"),
        ("[logging]", "[loging]", "'logging'"),
        ("batch_size", "bach_size", "key of run.toml.optimisation.*'batch_size'"),
        ("batch_size = 8", 'batch_size = "8"', r"optimisation\.batch_size: '8'.*int"),
        ("batch_size = 8", "batch_size = 8.5", r"batch_size: 8\.5"),
        ("steps = 6\n", "", "steps: nothing was given"),
        ("gamma = 4", "gama = 4", "'gamma'"),
        ("gamma = 4", "gamma = -4", "expected a positive number"),
        ("MinSNR", "MinSNRR", "'MinSNR'"),
        ('name = "VP"', 'name = "VPP"', "'VP'"),
        ('name = "DenoisingLoss"', 'name = "Denoising"', "'DenoisingLoss'"),
        ('precision = "no"', 'precision = "bf61"', "'bf16'"),
        ("power_ema = [0.1]", "power_ema = 0.1", "power_ema: 0.1"),
        ("seed = 3", "seed = true", "seed: True"),
        ("seed = 3", "seed = ", "not TOML"),
    ],
)
def test_mistakes_are_named(tmp_path, before, after, message):
    assert before in SMALL
    with pytest.raises(InputError, match=message):
        read(tmp_path, SMALL.replace(before, after))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('name = "moons"', 'name = "mons"', "'moons'"),
        ("length = 500", "lenght = 500", "'length'"),
        ("length = 500", 'length = "many"', "length: 'many'"),
        ("depth = 1", "deph = 1", "'depth'"),
        ('name = "mlp"', 'name = "mpl"', "'mlp'"),
        ('time = "log_snr"', 'time = "logsnr"', "'log_snr'"),
    ],
)
def test_mistakes_in_data_and_network_are_named_when_built(tmp_path, before, after, message):
    with pytest.raises(InputError, match=message):
        build(read(tmp_path, SMALL.replace(before, after)))


def test_files_that_are_not_there():
    with pytest.raises(InputError, match="cannot be read"):
        TrainConfig.read("no/such.toml")


def test_values_are_replaced_by_their_own_names(tmp_path):
    config = read(tmp_path, SMALL)
    changed = config.replace(steps=9, sample_every=2, seed=1)
    assert (changed.optimisation.steps, changed.logging.sample_every, changed.seed) == (9, 2, 1)
    assert changed.optimisation.batch_size == 8
    with pytest.raises(InputError, match="name"):
        config.replace(stepz=1)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda p: p.stem)
def test_committed_configurations_build_and_step(path):
    config = TrainConfig.read(path)
    denoiser, data = build(config)
    batch = data.batch(torch.arange(4))
    dropped = {"drop": torch.tensor([True, False, True, False])} if config.process.states == "numbers" else {}
    loss = config.objective(denoiser, {**batch, **dropped})
    assert loss.shape == (4,)
    assert torch.isfinite(loss).all()


def test_data_by_name():
    data = build_data({"name": "Digits", "split": "test", "flat": True})
    assert data.shape == (64,)
    assert data.num_classes == 10
    assert build_data({"name": "Glyphs", "size": 16, "characters": "ab", "held_out": []}).shape == (1, 16, 16)
    with pytest.raises(InputError, match="name"):
        build_data({"split": "test"})
