"""Optimizers, starting weights and a learned target in a configuration."""

import json

import pytest
import torch

import tweed as tw
from tweed.errors import CheckpointError, IncompatibleError, InputError
from tweed.training import TrainConfig, to_config, train
from tweed.training.config import build
from tweed.training.learned import LearnedK
from tweed.training.optimizers import choices
from tweed.training.optimizers.dual_adam import DualAdam

BASE = {
    "data": {"name": "moons", "length": 500},
    "network": {"name": "mlp", "dim": 2, "width": 16, "depth": 1},
    "process": {"name": "RectifiedFlow"},
    "target": {"name": "Velocity"},
    "objective": {"name": "DenoisingLoss", "times": {"name": "Uniform", "low": 0.05, "high": 0.95}},
    "optimisation": {"steps": 6, "batch_size": 8, "weight_decay": 0.1, "betas": [0.8, 0.99], "precision": "no"},
    "logging": {"save_every": 3},
}


def config(**changes):
    """The base with other tables; those of `optimisation` and `network` are merged."""
    table = {**BASE, **changes}
    for part in ("optimisation", "network"):
        table[part] = {**BASE[part], **changes.get(part, {})}
    return TrainConfig.from_dict(table)


def optimizer(choice):
    return config(optimisation={"optimizer": choice})


def losses(made, **options):
    return train(made, progress=False, **options).losses


def by_hand(make):
    """The losses with an optimizer that is made from the parameters, past the configuration."""
    denoiser, data = build(config())
    return tw.fit(
        denoiser, data, objective=config().objective, steps=6, batch_size=8, ema=0.999, optimizer=make, progress=False
    ).losses


def test_the_default_is_torchs_adamw_bit_for_bit_named_or_not(tmp_path):
    expected = by_hand(lambda p: torch.optim.AdamW(p, 1e-3, (0.8, 0.99), weight_decay=0.1, fused=True))
    assert losses(config()) == expected
    assert losses(optimizer("AdamW")) == expected
    # Runs that were begun without a name go on with it.
    train(config(optimisation={"steps": 3}), tmp_path, progress=False)
    assert "optimizer" not in json.loads((tmp_path / "state" / "state.json").read_text())["settings"]
    assert losses(optimizer("AdamW"), folder=tmp_path) == expected


@pytest.mark.parametrize(
    ("choice", "make"),
    [
        ("Adam", lambda p: torch.optim.Adam(p, 1e-3, (0.8, 0.99), weight_decay=0.1, fused=True)),
        ({"name": "AdamW", "eps": 1e-2}, lambda p: torch.optim.AdamW(p, 1e-3, (0.8, 0.99), 1e-2, 0.1, fused=True)),
        (
            {"name": "SGD", "momentum": 0.9, "nesterov": True},
            lambda p: torch.optim.SGD(p, 1e-3, 0.9, weight_decay=0.1, nesterov=True),
        ),
        (
            {"name": "DualAdam", "switch_rate": 0.25},
            lambda p: DualAdam(p, 1e-3, (0.8, 0.99), weight_decay=0.1, switch_rate=0.25),
        ),
        ("InvAdam", lambda p: DualAdam(p, 1e-3, (0.8, 0.99), weight_decay=0.1, mode="inverse")),
    ],
)
def test_optimizers_take_rate_decay_and_betas_from_the_settings(choice, make):
    found = losses(optimizer(choice))
    assert found == by_hand(make)
    assert found != losses(config())


def test_optimizers_survive_plain_values_and_runs_with_another_are_refused(tmp_path):
    for kind in choices.BY_NAME.values():
        assert optimizer(to_config(kind())).optimisation.optimizer == kind()
    made = optimizer("DualAdam")
    assert losses(made, folder=tmp_path) == losses(made)
    with pytest.raises(InputError, match=r"optimizer = \{'name': 'DualAdam'"):
        losses(config(), folder=tmp_path)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("Adma", r"optimisation\.optimizer\.name: 'Adma'.*'Adam'"),
        ({"name": "DualAdam", "switchrate": 1e-3}, "'switchrate'.*'switch_rate'"),
        ({"name": "DualAdam", "switch_rate": 0.0}, r"switch_rate: 0\.0"),
        ({"name": "SGD", "nesterov": True}, "momentum, nesterov"),
        ({"name": "AdamW", "eps": 0}, r"eps: 0\.0"),
        ({"name": "AdamW", "lr": 1e-3}, "'lr'"),
        ({"switch_rate": 1e-3}, "a table with a 'name'"),
    ],
)
def test_mistakes_of_optimizers_are_named(choice, message):
    with pytest.raises(InputError, match=message):
        optimizer(choice)


def test_bad_betas_are_named():
    with pytest.raises(InputError, match="betas"):
        losses(config(optimisation={"betas": [0.9]}))


def weights(denoiser):
    network = denoiser.inner.network if isinstance(denoiser, tw.LearnedK) else denoiser.network
    return network.state_dict()


@pytest.fixture
def trained(tmp_path):
    train(config(), tmp_path / "first", progress=False)
    return str(tmp_path / "first")


def test_training_starts_from_the_weights_of_a_checkpoint(tmp_path, trained):
    # A rate of nearly nothing and no average: what comes out is what went in.
    still = {"lr": 1e-30, "weight_decay": 0.0, "ema": 0.0}
    made = config(start=trained, network={"dropout": 0.1}, target="Noise", optimisation=still, seed=5)
    train(made, tmp_path / "second", progress=False)
    model, source = tw.load(tmp_path / "second"), tw.load(trained)
    for name, value in weights(source).items():
        torch.testing.assert_close(weights(model)[name], value, rtol=0, atol=1e-12)
    assert isinstance(model.target, tw.targets.Noise)
    digest = json.loads((tmp_path / "first" / "config.json").read_text())["weights"]["sha256"]
    assert model.meta["start"] == {"name": trained, "sha256": digest}
    learned = train(config(start=trained, target="LearnedK", optimisation={**still, "steps": 1}), progress=False)
    torch.testing.assert_close(weights(learned.denoiser), weights(source), rtol=0, atol=1e-12)
    assert losses(config(start=trained)) != losses(config())


def test_a_resumed_run_does_not_start_again(tmp_path, trained):
    whole = train(config(start=trained), tmp_path / "whole", progress=False)
    part = tmp_path / "part"
    train(config(start=trained, optimisation={"steps": 3}), part, progress=False)
    told = tw.load(part).meta["start"]
    # The weights it started from are gone, and are not needed.
    for file in (tmp_path / "first").glob("*.*"):
        file.unlink()
    again = train(config(start=trained), part, progress=False)
    assert again.losses == whole.losses
    assert tw.load(part).meta["start"] == told
    for other in (None, "glyphs"):
        with pytest.raises(InputError, match=f"start: {other!r} was given.*started from"):
            train(config(start=other), part, progress=False)
    assert len(train(config(), part, resume=False, progress=False).losses) == 6
    with pytest.raises(InputError, match=r"start.*started from None"):
        train(config(start="glyphs"), part, progress=False)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"network": {"width": 8}}, IncompatibleError, "width of the network is 16 in .* and 8 here"),
        ({"network": {"num_classes": 3}}, IncompatibleError, "num_classes of the network is 0"),
        ({"start": "glyphs"}, IncompatibleError, "name of the network is 'unet' in glyphs and 'mlp' here"),
        ({"start": "glyhps"}, CheckpointError, "start: glyhps.*did you mean 'glyphs'"),
    ],
)
def test_networks_that_differ_are_named(trained, changes, error, message):
    with pytest.raises(error, match=message):
        losses(config(**{"start": trained, **changes}))


def test_a_learned_target_is_a_target_of_a_configuration(tmp_path):
    made = config(target={"name": "LearnedK", "init": 0.4}, optimisation={"lr": 1e-2})
    assert made.target == LearnedK(init=0.4)
    denoiser, data = build(made)
    assert isinstance(denoiser, tw.LearnedK)
    assert denoiser.k.item() == pytest.approx(0.4)
    result = tw.fit(denoiser, data, objective=made.objective, steps=6, batch_size=8, lr=1e-2, ema=0.999,
                    weight_decay=0.1, betas=(0.8, 0.99), progress=False)  # fmt: skip
    part = made.replace(steps=3)
    train(part, tmp_path, progress=False)
    resumed = train(made, tmp_path, progress=False)
    assert resumed.losses == result.losses
    assert abs(resumed.denoiser.k.item() - 0.4) > 1e-3
    model = tw.load(tmp_path)
    assert isinstance(model.target, tw.targets.K)
    assert model.target.k == resumed.denoiser.k.item()
    x, t = tw.random.normal((3, 2), 1), torch.tensor([0.1, 0.5, 0.9])
    with torch.no_grad():
        torch.testing.assert_close(model(x, t).velocity, resumed.denoiser(x, t).velocity)
    with pytest.raises(InputError, match="denoiser"):
        train(config(target="Velocity", optimisation={"lr": 1e-2}), tmp_path, progress=False)
    for wrong, message in (({"init": 1.0}, "init, rate"), ({"rat": 3.0}, "'rate'")):
        with pytest.raises(InputError, match=message):
            config(target={"name": "LearnedK", **wrong})


def test_routing_needs_the_time_itself():
    network = {"name": "dit", "in_channels": 1, "hidden": 16, "depth": 1, "heads": 2, "routing": 0.5}
    table = {**BASE, "data": {"name": "Digits"}, "network": network}
    build(TrainConfig.from_dict(table))
    for change in ({"target": "EDM"}, {"denoiser": {"time": "log_snr"}}):
        with pytest.raises(IncompatibleError, match=r"network\.routing, denoiser\.time"):
            build(TrainConfig.from_dict({**table, **change}))
    build(TrainConfig.from_dict({**table, "target": "EDM", "denoiser": {"time": "time"}}))


def test_a_run_is_watched(tmp_path):
    seen = []
    train(config(), tmp_path, progress=False, watch=lambda done, d: seen.append((done, d.training)), watch_every=4)
    assert seen == [(4, False), (6, False)]
