"""The subspace network: orthonormal columns, the split of the score, and learning of the subspace."""

import copy
import json

import pytest
import torch
from net_cases import shaken

import tweed as tw
from tweed import nets
from tweed.analysis import subspace_distance
from tweed.core.random import normal, uniform
from tweed.errors import InputError
from tweed.nets.subspace import Frame
from tweed.training import DenoisingLoss, fit
from tweed.training.times import LogSNR

CONFIG = {"name": "subspace", "dim": 6, "latent_dim": 2, "width": 16, "depth": 1, "num_classes": 3, "vector_dim": 4}


def inputs(batch=3):
    return normal((batch, 2, 3), 1), uniform((batch, 1), 4)[:, 0]


def conditions(batch):
    return {"label": torch.arange(batch) % 3, "vector": normal((batch, 4), 2)}


def test_columns_are_orthonormal_span_the_weight_and_depend_smoothly_on_it():
    frame = Frame(7, 3).double()
    with torch.no_grad():
        frame.weight.copy_(normal((7, 3), 1, dtype=torch.float64))
    torch.testing.assert_close(frame().T @ frame(), torch.eye(3, dtype=torch.float64), atol=1e-12, rtol=0)
    assert subspace_distance(frame().detach(), frame.weight.detach()) < 1e-20
    # Through 0 in the corner, where the sign of LAPACK's factor jumps.
    made = []
    for corner in (-1e-7, 1e-7):
        with torch.no_grad():
            frame.weight[0, 0] = corner
        made.append(frame().detach())
    assert (made[1] - made[0]).abs().max() < 1e-6
    assert torch.autograd.gradcheck(lambda w: torch.func.functional_call(frame, {"weight": w}, ()), (frame.weight,))


@pytest.mark.parametrize("process", [tw.processes.VP(), tw.processes.VE(0.01, 20.0), tw.processes.RectifiedFlow()])
def test_the_score_off_the_subspace_is_exact_on_any_process(process):
    net = shaken({"name": "subspace", "dim": 6, "latent_dim": 2, "width": 16, "depth": 1}).double()
    denoiser = tw.NetworkDenoiser(net, process, tw.targets.Data(), event=(6,))
    x, basis = normal((5, 6), 3, dtype=torch.float64), net.basis
    with torch.no_grad():
        for t in (0.05, 0.5, 0.9):
            level = process.level(t)
            inner = net.latent(x @ basis, torch.full((5,), t))
            score = (level.alpha * inner @ basis.T - x) / level.sigma**2
            torch.testing.assert_close(denoiser(x, t).score, score, atol=1e-5, rtol=1e-5)
            beside = x - (x @ basis) @ basis.T
            found = denoiser(x, t).score
            torch.testing.assert_close(
                found - (found @ basis) @ basis.T, -beside / level.sigma**2, rtol=1e-9, atol=1e-9
            )


@torch.no_grad()
def test_it_keeps_what_every_network_promises():
    net, (x, t) = shaken(CONFIG), inputs()
    given = conditions(3)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        out = net(x.to(dtype), t, **given)
        assert out.shape == x.shape
        assert out.dtype == dtype
    half = copy.deepcopy(net).bfloat16()(x.bfloat16(), t, **given)
    assert (half - net(x, t, **given)).norm() < 0.1 * half.norm()
    assert (nets.build(CONFIG)(x, t) == 0).all()
    plain = net(x, t)
    for name, value in given.items():
        assert ((net(x, t, **{name: value}) - plain).flatten(1).norm(dim=1) > 1e-4).all(), name
    drop = torch.tensor([True, False, True])
    torch.testing.assert_close(net(x, t, **given, drop=drop)[drop], plain[drop])
    alone = torch.cat(
        [net(x[i : i + 1], t[i : i + 1], **{k: v[i : i + 1] for k, v in given.items()}) for i in range(3)]
    )
    torch.testing.assert_close(alone, net(x, t, **given), atol=1e-5, rtol=1e-5)
    assert net(x[:0], t[:0]).shape == (0, 2, 3)
    mapped = torch.func.vmap(lambda x, t: net(x[None], t[None])[0])(x, t)
    torch.testing.assert_close(mapped, plain, atol=1e-5, rtol=1e-5)
    again = nets.build(json.loads(json.dumps(net.config)), seed=5).state_dict()
    assert all(torch.equal(again[k], v) for k, v in nets.build(CONFIG, seed=5).state_dict().items())


def test_gradients_reach_every_parameter():
    net, (x, t) = shaken(CONFIG).train(), inputs()
    net(x, t, **conditions(3), drop=torch.tensor([True, False, False])).square().sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_checkpoint_brings_it_back(tmp_path):
    denoiser = tw.NetworkDenoiser(shaken(CONFIG), tw.processes.VP(), tw.targets.Data(), event=(2, 3))
    tw.save(denoiser, tmp_path / "model")
    x, t = inputs()
    assert torch.equal(tw.load(tmp_path / "model")(x, t).answer, denoiser(x, t).answer)


def test_it_finds_the_subspace():
    basis = torch.linalg.qr(normal((24, 2), 1)).Q
    x = normal((500, 2), 2) @ basis.T
    net = nets.build({"name": "subspace", "dim": 24, "latent_dim": 2, "width": 16, "depth": 1}, 3)
    before = subspace_distance(net.basis, basis)
    denoiser = tw.NetworkDenoiser(net, tw.processes.VP(), tw.targets.Data(), event=(24,))
    made = fit(
        denoiser, x, steps=200, lr=1e-2, ema=None, schedule="cosine", progress=False, device="cpu",
        objective=DenoisingLoss(tw.targets.Noise(), times=LogSNR(least=-5.0, most=3.5)),
    )  # fmt: skip
    assert before > 2.0
    assert subspace_distance(made.denoiser.network.basis, basis) < 0.02


def test_errors_name_the_argument():
    with pytest.raises(InputError, match="latent_dim: 7"):
        nets.build({**CONFIG, "latent_dim": 7})
    with pytest.raises(InputError, match=r"^x: shape"):
        nets.build(CONFIG)(torch.zeros(2, 5), torch.zeros(2))
    with pytest.raises(InputError, match=r"^vector: "):
        nets.build(CONFIG)(torch.zeros(2, 6), torch.zeros(2), vector=torch.zeros(2, 3))
