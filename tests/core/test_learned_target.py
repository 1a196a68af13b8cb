"""The target with a learned k: conversions, agreement with the fixed one, gradients, and where k goes."""

import pytest
import torch

import tweed as tw
from tweed.core import random, targets
from tweed.core.learned_target import LearnedK
from tweed.core.targets import K, convert, k_star
from tweed.errors import IncompatibleError, InputError
from tweed.training import DenoisingLoss, fit, times

PROCESSES = [tw.processes.VP(), tw.processes.RectifiedFlow(), tw.processes.EDM(), tw.processes.MeanReverting()]
F64 = torch.float64


def denoiser(process, init=0.7, dim=3):
    endpoint = dim if process.endpoint == "given" else 0
    network = tw.nets.build({"name": "mlp", "dim": dim, "width": 16, "depth": 1, "endpoint_channels": endpoint}, 1)
    with torch.no_grad():
        for i, p in enumerate(network.parameters()):
            p += 0.2 * random.normal((1, *p.shape), 4, draw=i)[0]
    return LearnedK(network, process, init, event=(dim,))


def given(process, n=5, dim=3):
    return {"y": random.normal((n, dim), 9)} if process.endpoint == "given" else {}


@pytest.mark.parametrize("k", [0.0, 0.3, 0.5, 1.0])
def test_a_straight_path_has_the_published_conversions(k):
    t = torch.linspace(0.02, 0.98, 9, dtype=F64)
    clean = 1.0 - t  # the paper's time
    weight = k * (1.0 - clean) + (1.0 - k) * clean
    process = tw.processes.RectifiedFlow()
    for wanted, of_state, of_answer in (
        (targets.Data(), (1.0 - k) / weight, (1.0 - clean) / weight),
        (targets.Noise(), k / weight, -clean / weight),
        (targets.Velocity(), -(1.0 - 2.0 * k) / weight, -1.0 / weight),
    ):
        state, answer, _ = convert(process, K(k), wanted, t)
        torch.testing.assert_close(state, of_state)
        torch.testing.assert_close(answer, of_answer)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_the_learned_one_is_the_fixed_one_at_its_k(process):
    learned = denoiser(process)
    fixed, cond = learned.fixed(), given(process)
    assert fixed.target.k == pytest.approx(0.7)
    x = random.normal((5, 3), 2)
    for t in (0.3, torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])):
        for name in ("x0", "eps", "velocity", "score"):
            torch.testing.assert_close(
                getattr(learned(x, t, **cond), name), getattr(fixed(x, t, **cond), name), rtol=2e-4, atol=2e-4
            )


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_the_loss_teaches_k(process):
    learned = denoiser(process)
    batch = {"x": random.normal((64, 3), 5), **given(process, 64)}
    loss = DenoisingLoss(target=targets.Velocity(), times=times.Uniform(low=0.05, high=0.95))
    loss(learned, batch, seed=1).mean().backward()
    slope = learned.weight.grad.item()

    def at(change):
        with torch.no_grad():
            learned.weight += change
            value = loss(learned, batch, seed=1).double().mean().item()
            learned.weight -= change
        return value

    assert slope == pytest.approx((at(1e-3) - at(-1e-3)) / 2e-3, rel=0.02)


def test_k_rises_where_data_lie_on_few_of_many_dimensions():
    assert k_star(64, 2) == pytest.approx(64 / 66)
    assert k_star(8, 8) == 0.5
    assert k_star(8, 8, 0.25) == 0.8
    basis = torch.linalg.qr(random.normal((32, 2), 3))[0]

    def learned(data):
        dim = data.shape[1]
        network = tw.nets.build({"name": "mlp", "dim": dim, "width": 16, "depth": 1}, 1)
        model = LearnedK(network, tw.processes.RectifiedFlow(), event=(dim,))
        loss = DenoisingLoss(target=targets.Velocity(), times=times.Uniform(low=0.05, high=0.95))
        options = {"batch_size": 64, "lr": 3e-3, "ema": None, "progress": False, "device": "cpu", "clip": None}
        return fit(model, tw.data.Tensors(data), steps=300, objective=loss, **options).denoiser.k.item()

    points = random.normal((2000, 2), 7)
    few = learned(points @ basis.T)
    assert few > 0.65
    assert few > learned(points) + 0.1


def test_it_is_saved_with_its_k(tmp_path):
    learned = denoiser(tw.processes.VP())
    back = tw.load(tw.training.save(learned, tmp_path / "model", meta={"note": "x"}))
    x = random.normal((5, 3), 2)
    assert back.target == K(learned.k.item())
    assert back.meta == {"note": "x"}
    torch.testing.assert_close(back(x, 0.4).x0, learned(x, 0.4).x0, rtol=1e-4, atol=1e-5)


def test_what_cannot_be():
    with pytest.raises(InputError, match="k"):
        K(1.5)
    with pytest.raises(InputError, match="init"):
        denoiser(tw.processes.VP(), init=1.0)
    with pytest.raises(InputError, match="ambient"):
        k_star(0, 1)
    with pytest.raises(IncompatibleError, match="process"):
        denoiser(tw.processes.Interpolant())
