import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

import tweed as tw
from tweed.data import Tensors
from tweed.errors import CheckpointError, InputError, NumericalError
from tweed.training import EMA, DenoisingLoss, MinibatchOT, flow_matching, posthoc_ema, times
from tweed.training.order import indices


def small(seed=1, classes=0, width=32, dropout=0.0, **options):
    config = {"name": "mlp", "dim": 2, "width": width, "depth": 2, "num_classes": classes, "dropout": dropout}
    return tw.NetworkDenoiser(
        tw.nets.build(config, seed), tw.processes.RectifiedFlow(), tw.targets.Velocity(), **options
    )


X = tw.random.normal((100, 2), 11)
LABELLED = Tensors(X, label=torch.arange(100) % 3)


def train(denoiser=None, data=LABELLED, **options):
    denoiser = denoiser or small(classes=3)
    return tw.fit(denoiser, data, **{"steps": 20, "batch_size": 16, "progress": False, "drop": 0.3, **options})


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_every_epoch_is_a_permutation_and_any_slice_agrees():
    order = indices(10, 5, 0, 40)
    for epoch in range(4):
        assert sorted(order[10 * epoch : 10 * epoch + 10].tolist()) == list(range(10))
    assert order[:10].tolist() != order[10:20].tolist()
    assert torch.equal(indices(10, 5, 7, 16), order[7:23])
    assert indices(10, 5, 3, 0).shape == (0,)
    with pytest.raises(InputError, match="data"):
        indices(0, 0, 0, 1)


def test_loss_comes_near_the_known_optimum():
    # Data N(0, 1/4): the least loss is the mean posterior variance of the velocity, known in closed form.
    data = 0.5 * tw.random.normal((4000, 2), 3)
    result = tw.fit(small(), data, steps=600, batch_size=256, lr=3e-3, schedule="cosine", progress=False)
    t = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    a, s, v = 1.0 - t, t, 0.25
    least = (v / (a**2 * v + s**2)).mean()  # Var[eps - x_0 | x_t]
    first, last = sum(result.losses[:10]) / 10, sum(result.losses[-100:]) / 100
    assert first > 1.12 * least
    assert abs(last / least - 1.0) < 0.04
    x, at = tw.random.normal((500, 2), 9), torch.full((500,), 0.5)
    exact = tw.GaussianDenoiser(torch.zeros(2), 0.25, tw.processes.RectifiedFlow())
    assert (result.denoiser(x * 0.56, at).x0 - exact(x * 0.56, at).x0).square().mean() < 0.005


class Interrupting(Tensors):
    """Raises when a certain batch is asked for."""

    def __init__(self, at, error=KeyboardInterrupt):
        super().__init__(LABELLED.x, label=LABELLED.batch(torch.arange(100))["label"])
        self.at, self.calls, self.error = at, 0, error

    def batch(self, indices):
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return super().batch(indices)


def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path):
    options = {"power_ema": (0.1,)}
    objective = DenoisingLoss(coupling=MinibatchOT(), times=times.LogitNormal())
    whole = train(objective=objective, **options)
    with pytest.raises(KeyboardInterrupt):
        train(data=Interrupting(14), objective=objective, folder=tmp_path, save_every=5, log_every=3, **options)
    assert json.loads((tmp_path / "state/state.json").read_text())["step"] == 10
    assert tw.load(tmp_path).meta["steps"] == 10
    rest = train(small(seed=8, classes=3), objective=objective, folder=tmp_path, save_every=5, log_every=3, **options)
    assert rest.losses == whole.losses
    assert len(rest.losses) == 20
    assert same(rest.denoiser, whole.denoiser)
    assert same(tw.load(tmp_path), whole.denoiser)
    lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert tuple(line["loss"] for line in lines) == whole.losses


Interrupting.__name__ = "Tensors"  # a run remembers which data it was made from


SCRIPT = """
import os, signal, sys, torch, tweed as tw
from tweed.data import Tensors
class Killing(Tensors):
    calls = 0
    def batch(self, indices):
        self.calls += 1
        if self.calls == 14: os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(indices)
Killing.__name__ = "Tensors"
net = tw.nets.build({"name": "mlp", "dim": 2, "width": 16, "depth": 1}, 1)
denoiser = tw.NetworkDenoiser(net, tw.processes.VP(), tw.targets.V())
tw.fit(denoiser, Killing(tw.random.normal((50, 2), 0)), steps=20, batch_size=8, folder=sys.argv[1], save_every=5)
"""


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment, capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    data = Tensors(tw.random.normal((50, 2), 0))

    def denoiser():
        net = tw.nets.build({"name": "mlp", "dim": 2, "width": 16, "depth": 1}, 1)
        return tw.NetworkDenoiser(net, tw.processes.VP(), tw.targets.V())

    options = {"steps": 20, "batch_size": 8, "progress": False}
    rest = tw.fit(denoiser(), data, folder=tmp_path, save_every=5, **options)
    assert rest.losses == tw.fit(denoiser(), data, **options).losses


DISTRIBUTED = """
import json, os, sys, torch, tweed as tw
from tweed.data import Tensors
data = Tensors(tw.random.normal((100, 2), 11), label=torch.arange(100) % 3)
net = tw.nets.build({"name": "mlp", "dim": 2, "width": 32, "depth": 2, "num_classes": 3}, 1)
denoiser = tw.NetworkDenoiser(net, tw.processes.RectifiedFlow(), tw.targets.Velocity())
options = dict(steps=20, batch_size=16, drop=0.3, micro_batch=3, progress=False, device="cpu")
tw.fit(denoiser, data, folder=sys.argv[1], save_every=8, **options)
"""


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path):
    script, folder = tmp_path / "run.py", tmp_path / "run"
    script.write_text(DISTRIBUTED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run([*command, str(script), str(folder)], env=environment, capture_output=True, timeout=300)
    assert process.returncode == 0, process.stderr.decode()[-2000:]
    lines = [json.loads(line)["loss"] for line in (folder / "losses.jsonl").read_text().splitlines()]
    assert lines == pytest.approx(train(small(classes=3), micro_batch=3).losses, rel=1e-5)


def test_micro_batches_change_nothing_beyond_rounding():
    whole, cut = train(steps=10), train(steps=10, micro_batch=5)
    for a, b in zip(whole.losses, cut.losses, strict=True):
        assert b == pytest.approx(a, rel=1e-5)
    for a, b in zip(whole.denoiser.parameters(), cut.denoiser.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_gradients_of_micro_batches_add_up():
    gradients = []
    for micro in (None, 3, 7):
        denoiser = small(classes=3)
        train(denoiser, steps=1, micro_batch=micro, lr=1.0, clip=None, optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
        gradients.append(torch.cat([p.detach().flatten() for p in denoiser.parameters()]))
    assert (gradients[1] - gradients[0]).abs().max() < 1e-5
    assert (gradients[2] - gradients[0]).abs().max() < 1e-5
    start = torch.cat([p.detach().flatten() for p in small(classes=3).parameters()])
    assert (gradients[0] - start).abs().max() > 1e-2


def test_learning_rate_rises_and_falls_and_clip_holds(tmp_path):
    train(steps=20, warmup=5, schedule="cosine", lr=0.01, folder=tmp_path, log_every=1)
    rates = [json.loads(line)["lr"] for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert rates[:5] == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.01])
    assert rates[5] == pytest.approx(0.01)
    assert rates[-1] < 0.0003
    moved = small(classes=3)
    train(moved, steps=1, clip=0.01, lr=1.0, optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    change = sum((a - b).square().sum() for a, b in zip(moved.parameters(), small(classes=3).parameters(), strict=True))
    assert change.sqrt().item() == pytest.approx(0.01, rel=1e-3)


def test_dropped_conditions_are_a_share_and_a_function_of_the_seed():
    seen = []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

        def forward(self, x, t, label=None, drop=None):
            seen.append((label.clone(), drop.clone()))
            return x * self.weight

    for _ in range(2):
        denoiser = tw.NetworkDenoiser(Watching(), tw.processes.VP(), tw.targets.V())
        train(denoiser, steps=60, drop=0.25)
    drops = torch.cat([drop for _, drop in seen[:60]]).float()
    assert abs(drops.mean() - 0.25) < 0.06
    assert all(torch.equal(a[1], b[1]) and torch.equal(a[0], b[0]) for a, b in zip(seen[:60], seen[60:], strict=True))
    assert len({str(drop.tolist()) for _, drop in seen[:60]}) > 50


def test_average_is_the_recurrence_and_none_keeps_the_last(tmp_path):
    kept = train(steps=8, ema=None, drop=0.0)
    last = small(classes=3)
    train(last, steps=8, drop=0.0)
    assert same(kept.denoiser, last)
    held = [p.detach().clone() for p in small(classes=3).parameters()]
    for steps in range(1, 9):
        denoiser = small(classes=3)
        train(denoiser, steps=steps, drop=0.0)
        decay = EMA(0.7).at(steps)
        held = [decay * a + (1 - decay) * p.detach() for a, p in zip(held, denoiser.parameters(), strict=True)]
    averaged = train(steps=8, ema=0.7, drop=0.0).denoiser
    for a, b in zip(averaged.parameters(), held, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_snapshots_give_a_stored_profile_back(tmp_path):
    result = train(steps=40, power_ema=(0.05, 0.1), snapshot_every=10, folder=tmp_path)
    state = posthoc_ema(tmp_path, 0.1)
    result.denoiser.load_state_dict(state)
    stored = sorted((tmp_path / "snapshots").glob("00000040-0.1-*.safetensors"))
    from safetensors.torch import load_file

    for name, value in load_file(stored[0]).items():
        torch.testing.assert_close(state[name], value.float(), rtol=2e-3, atol=2e-3)
    with pytest.raises(CheckpointError, match="no snapshots"):
        posthoc_ema(tmp_path / "state", 0.1)


def test_bf16_learns_too_and_half_precision_needs_a_gpu():
    exact, rough = train(steps=30, lr=3e-3), train(steps=30, lr=3e-3, precision="bf16")
    assert all(p.dtype == torch.float32 for p in rough.denoiser.parameters())
    assert rough.losses != exact.losses
    assert sum(rough.losses[-10:]) == pytest.approx(sum(exact.losses[-10:]), rel=0.02)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="fp16"):
            train(precision="fp16")


def test_dropout_layers_are_seeded_and_leave_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    runs = [train(small(classes=3, dropout=0.2), steps=3).losses for _ in range(2)]
    assert runs[0] == runs[1]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert runs[0] != train(small(classes=3, dropout=0.2), steps=3, seed=1).losses


def test_a_loss_that_is_not_finite_leaves_the_last_checkpoint(tmp_path):
    data = Tensors(X)
    train(small(), data, steps=10, folder=tmp_path, save_every=5, drop=0.0)
    data.x = torch.full_like(X, float("nan"))
    with pytest.raises(NumericalError, match="step 11"):
        train(small(), data, steps=20, folder=tmp_path, save_every=5, drop=0.0)
    assert tw.load(tmp_path).meta["steps"] == 10
    data.x = X
    assert len(train(small(), data, steps=20, folder=tmp_path, save_every=5, drop=0.0).losses) == 20


def test_another_run_in_the_folder_is_refused_or_replaced(tmp_path):
    train(steps=4, folder=tmp_path)
    with pytest.raises(InputError, match="batch_size = 16, and 8"):
        train(steps=8, folder=tmp_path, batch_size=8)
    with pytest.raises(KeyboardInterrupt):
        train(data=Interrupting(2), steps=8, folder=tmp_path, batch_size=8, resume=False)
    assert tw.load(tmp_path).meta["steps"] == 4  # the old checkpoint, until there is a new one
    fresh = train(steps=8, folder=tmp_path, batch_size=8)
    assert len(fresh.losses) == 8
    assert len((tmp_path / "losses.jsonl").read_text().splitlines()) == 8
    done = train(steps=8, folder=tmp_path, batch_size=8)
    assert done.losses == fresh.losses
    (tmp_path / "state" / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"state\.json"):
        train(steps=9, folder=tmp_path, batch_size=8)


def test_weighted_samples_conditions_and_endpoints():
    silent = Tensors(X, weight=torch.zeros(100))
    denoiser = small()
    result = train(denoiser, silent, steps=3, drop=0.0)
    assert result.losses == (0.0, 0.0, 0.0)
    assert same(denoiser, small(event=(2,)))
    untold = train(small(), LABELLED, steps=2, conditions=(), drop=0.0)
    assert untold.losses == train(small(), Tensors(X), steps=2, drop=0.0).losses
    y = Tensors(X, y=-X)
    net = tw.nets.build({"name": "mlp", "dim": 2, "width": 8, "depth": 1}, 1)
    two_sided = tw.NetworkDenoiser(net, tw.processes.Interpolant(), tw.targets.Velocity())
    assert len(train(two_sided, y, steps=2, drop=0.0, objective=flow_matching(MinibatchOT())).losses) == 2


def test_sheets_and_events_and_a_hook_appear(tmp_path):
    calls = []

    def sampler(denoiser):
        calls.append(denoiser.training)
        return torch.zeros(4, 1, 8, 8)

    train(steps=10, folder=tmp_path, sample_every=4, sampler=sampler, tensorboard=True)
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == [f"{n:07d}.png" for n in (4, 8, 10)]
    assert calls == [False] * 3
    assert (tmp_path / "samples" / "0000004.png").read_bytes()[:4] == b"\x89PNG"
    assert list((tmp_path / "tensorboard").iterdir())


def test_default_sheet_of_points(tmp_path):
    train(steps=2, folder=tmp_path, sample_every=2)
    assert (tmp_path / "samples" / "0000002.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"batch_size": -1},
        {"lr": 0.0},
        {"drop": 1.5},
        {"clip": 0.0},
        {"schedule": "linear"},
        {"precision": "bf61"},
        {"tensorboard": True},
        {"micro_batch": 0},
        {"ema": 1.0},
    ],
    ids=str,
)
def test_bad_arguments(options):
    with pytest.raises(InputError, match=next(iter(options)).replace("ema", "decay").replace("tensorboard", "folder")):
        train(**options)


def test_the_loop_adds_less_than_three_milliseconds_a_step():
    data, denoiser, objective, n = Tensors(X.repeat(10, 1)), small(), flow_matching(), 200
    batch = objective.prepare(denoiser.process, {"x": X[:64]}, seed=0, step=0)
    optimizer = torch.optim.AdamW(denoiser.parameters(), fused=True)

    def bare():
        for _ in range(n):
            objective(denoiser, batch).mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    def spent(run) -> float:
        # This thread's own time: the machine may be busy with other things.
        began = time.thread_time()
        run()
        return time.thread_time() - began

    def looped(steps):
        return lambda: tw.fit(denoiser, data, steps=steps, batch_size=64, progress=False, device="cpu")

    spent(looped(20))
    added = min(spent(looped(n + 20)) - spent(looped(20)) - spent(bare) for _ in range(3))
    assert added / n < 3e-3
