"""The loss of several modalities."""

import pytest
import torch

from tweed import nets
from tweed.core import random
from tweed.core.denoiser import CountingDenoiser, NetworkDenoiser
from tweed.core.modalities import ModalNetwork
from tweed.core.processes import VP, RectifiedFlow
from tweed.core.targets import Noise, Velocity
from tweed.data.dataset import Tensors
from tweed.errors import IncompatibleError, InputError
from tweed.guidance import modalities
from tweed.training import DenoisingLoss, fit
from tweed.training.modalities import MultiModalLoss

IMAGE, LABEL = {"shape": [6]}, {"classes": 3, "seed": 1}


def model(modalities=None, process=None, target=None, seed=3, **options):
    settings = {
        "name": "multi_head",
        "backbone": {"name": "mlp", "width": 16, "depth": 1, "time_dim": 8},
        "modalities": modalities or {"image": IMAGE, "label": LABEL},
        "event": [6],
        "features": 8,
        **options,
    }
    net = nets.build(settings, seed)
    with torch.no_grad():
        net.noise.weight += 0.1 * random.normal(net.noise.weight.shape, 7)
    return ModalNetwork(net, process or VP(), target or Noise())


def batch(n=8):
    return {"x": random.normal((n, 6), 1), "label": torch.arange(n) % 3}


@pytest.mark.parametrize(("process", "target"), [(VP(), Noise()), (RectifiedFlow(), Velocity())])
def test_one_modality_is_plain_denoising(process, target):
    one = model({"image": {"shape": [6]}}, process, target)
    loss = MultiModalLoss({"image": 0.0}, dropout=0.5)
    data = {"x": batch()["x"]}
    for step in (0, 3):
        assert torch.equal(loss(one, data, seed=5, step=step), DenoisingLoss()(one, data, seed=5, step=step))
    plain = NetworkDenoiser(one.network, process, target)
    assert torch.equal(loss(one, data, seed=5), DenoisingLoss()(plain, data, seed=5))


def test_the_loss_is_the_sum_of_its_parts_by_hand():
    net, data = model(), batch()
    present = torch.tensor([[1, 1], [1, 0], [0, 1], [1, 1]] * 2).bool()
    t, noise = torch.linspace(0.1, 0.9, 8).double(), random.normal((8, 6), 4)
    loss = MultiModalLoss({"image": 2.0, "label": 0.3}, rho="signal")
    parts = loss.parts(net, {**data, "present": present, "t": t, "noise": noise})
    code = net.aggregate.encode("label", data["label"])
    share = present.float() / present.sum(1, keepdim=True)
    e = share[:, :1] * data["x"] + share[:, 1:] * code
    alpha, sigma = VP().alpha(t).float()[:, None], VP().sigma(t).float()[:, None]
    answer, read = net.network.everything(alpha * e + sigma * noise, t.float(), present)
    rho = (alpha**2)[:, 0]
    torch.testing.assert_close(parts["noise"], (answer - noise).square().mean(1))
    torch.testing.assert_close(parts["image"], 2.0 * rho * (read["image"] - data["x"]).square().mean(1))
    picked = read["label"].log_softmax(1)[torch.arange(8), data["label"]]
    torch.testing.assert_close(parts["label"], -0.3 * rho * picked)
    torch.testing.assert_close(loss(net, {**data, "present": present, "t": t, "noise": noise}), sum(parts.values()))


def test_one_evaluation_serves_the_noise_and_the_heads():
    class Counting(CountingDenoiser):
        @property
        def aggregate(self):
            return self.denoiser.aggregate

    counted = Counting(model())
    MultiModalLoss()(counted, batch())
    assert counted.evaluations == 1


def test_dropout_leaves_at_least_one_and_drops_its_share():
    place = torch.arange(20000)
    for dropout in (0.0, 0.2, 0.9):
        present = MultiModalLoss(dropout=dropout)._present(place, 3, 5)
        assert present.any(1).all()
        # Each is dropped with its probability, but for rows that would be empty, where one of three stays.
        expected = 1 - dropout + dropout**3 / 3
        assert (present.float().mean(0) - expected).abs().max() < 0.015
    assert MultiModalLoss(dropout=0.9)._present(place[:50], 1, 5).all()


def test_micro_batches_see_what_the_whole_batch_sees():
    net, data = model(told=True), batch()
    loss = MultiModalLoss(tell=0.5)
    whole = loss(net, data, seed=3, step=2)
    prepared = loss.prepare(net.process, data, seed=3, step=2)
    pieces = [loss(net, {k: v[i : i + 2] for k, v in prepared.items()}, seed=3, step=2) for i in range(0, 8, 2)]
    torch.testing.assert_close(torch.cat(pieces), whole)
    half = {k: v[4:] for k, v in data.items()}
    half = loss.prepare(net.process, half, seed=3, step=2, offset=4, total=8)
    torch.testing.assert_close(loss(net, half, seed=3, step=2), whole[4:])
    assert not torch.allclose(loss(net, data, seed=3, step=3), whole)


def test_learned_encoders_hear_the_heads_alone():
    def gradient(weights, **options):
        net = model({"image": IMAGE, "code": {"shape": [2], "encoder": "learned"}}, told=True)
        data = {"x": batch()["x"], "code": random.normal((8, 2), 2)}
        MultiModalLoss(weights, tell=0.7, **options)(net, data, seed=1).mean().backward()
        return net.aggregate.encoders["code"].matrix.grad, net.network.noise.weight.grad

    silent, trained = gradient({"image": 0.0, "code": 0.0})
    assert silent is None or silent.abs().max() == 0.0
    assert trained.abs().max() > 0.0
    assert gradient({"image": 1.0})[0].abs().max() > 1e-6


def test_dropped_modalities_are_inferred():
    # A label that the sign of the image decides, read where it is not in the aggregate.
    x = random.normal((512, 6), 1)
    label = (x[:, 0] > 0).long()
    net = model({"image": IMAGE, "label": {"classes": 2}}, seed=0)
    trained = fit(net, Tensors(x, label=label), steps=250, objective=MultiModalLoss(dropout=0.4, rho="signal"), lr=1e-2,
                  ema=0.9, device="cpu", progress=False).denoiser  # fmt: skip
    found = modalities.predict(trained, {"image": x}, "label", times=(0.02, 0.05)).argmax(1)
    assert (found == label).float().mean() > 0.9


def test_batch_of_one_and_refusals():
    net = model()
    assert MultiModalLoss()(net, batch(1)).shape == (1,)
    with pytest.raises(InputError, match="batch"):
        MultiModalLoss()(net, {"x": batch()["x"]})
    plain = NetworkDenoiser(nets.build({"name": "mlp", "dim": 6}), VP(), Noise())
    with pytest.raises(IncompatibleError, match="no modalities"):
        MultiModalLoss()(plain, batch())
    with pytest.raises(IncompatibleError, match="PlugIn"):
        MultiModalLoss(tell=1.0)(net, batch())
    for options in ({"dropout": 1.0}, {"tell": -0.1}, {"weights": {"image": -1.0}}, {"rho": "two"}):
        with pytest.raises(InputError):
            MultiModalLoss(**options)
