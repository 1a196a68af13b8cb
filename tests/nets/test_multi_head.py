"""A backbone with a head for each modality."""

import zlib

import pytest
import torch

import tweed as tw
from tweed import nets
from tweed.core import random
from tweed.core.modalities import ModalNetwork
from tweed.core.processes import VP
from tweed.core.targets import Noise
from tweed.errors import IncompatibleError, InputError
from tweed.guidance import ClassifierFree, ClassifierGuidance, modalities

IMAGE, LABEL, CODE = {"shape": [2, 4, 4], "scale": 1.3}, {"classes": 3, "seed": 1}, {"shape": [5], "encoder": "learned"}
MLP = {"name": "mlp", "width": 16, "depth": 1, "time_dim": 8}
UNET = {"name": "unet", "channels": 8, "multipliers": [1, 2], "blocks": 1, "heads": 2, "groups": 4}
DIT = {"name": "dit", "hidden": 16, "depth": 1, "heads": 2, "time_dim": 16, "patch": 2}


def config(backbone, modalities=None, **options):
    modalities = modalities or {"image": IMAGE, "label": LABEL, "code": CODE}
    return {
        "name": "multi_head",
        "backbone": backbone,
        "modalities": modalities,
        "event": [2, 4, 4],
        "features": 12,
        **options,
    }


def shaken(settings, seed=0):
    net = nets.build(settings, seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter += 0.1 * random.normal((1, *parameter.shape), zlib.crc32(name.encode()))[0]
    return net.eval()


def entries(n=3):
    label = torch.arange(n) % 3
    return {"image": random.normal((n, 2, 4, 4), 1), "label": label, "code": random.normal((n, 5), 2)}


@pytest.mark.parametrize("backbone", [MLP, UNET, DIT], ids=lambda b: b["name"])
@pytest.mark.parametrize("told", [False, True])
def test_every_backbone_answers_the_noise_and_every_modality(backbone, told):
    net = shaken(config(backbone, told=told))
    x, t = random.normal((3, 2, 4, 4), 3), torch.tensor([0.2, 0.5, 0.8])
    answer, read = net.everything(x, t)
    assert answer.shape == x.shape
    assert torch.equal(net(x, t), answer)
    assert {name: value.shape[1:] for name, value in read.items()} == {"image": (2, 4, 4), "label": (3,), "code": (5,)}
    some = torch.tensor([[True, False, True]]).expand(3, 3)
    assert not torch.allclose(net(x, t, present=some), answer)
    assert torch.equal(net(x, t, present=torch.ones_like(some)), answer)
    code = net.aggregate.partial({"label": entries()["label"]})
    assert torch.equal(net(x, t, known=code), answer) != told
    assert nets.build(config(backbone, told=told))(x, t).abs().max() == 0.0


def test_order_of_modalities_permutes_heads_only():
    given = {"image": IMAGE, "label": LABEL, "code": CODE}
    turned = {name: given[name] for name in ("code", "image", "label")}
    first, second = (shaken(config(MLP, m), 5) for m in (given, turned))
    x, t = random.normal((3, 2, 4, 4), 3), torch.tensor([0.2, 0.5, 0.8])
    torch.testing.assert_close(first.aggregate(entries()), second.aggregate(entries()))
    (answer, read), (other, again) = first.everything(x, t), second.everything(x, t)
    torch.testing.assert_close(answer, other)
    assert list(again) == list(turned)
    for name in read:
        torch.testing.assert_close(read[name], again[name])


def test_the_configuration_is_the_whole_model(tmp_path):
    net = shaken(config(MLP, told=True), 4)
    model = ModalNetwork(net, VP(), Noise())
    assert model.event == (2, 4, 4)
    tw.save(model, tmp_path)
    loaded = tw.load(tmp_path)
    again = ModalNetwork(loaded.network, loaded.process, loaded.target)
    x = random.normal((3, 2, 4, 4), 3)
    torch.testing.assert_close(loaded(x, 0.3).eps, model(x, 0.3).eps)
    torch.testing.assert_close(again(x, 0.3, label=torch.tensor([0, 1, 2])).x0, model(x, 0.3, label=torch.arange(3)).x0)
    # Fixed directions belong to the configuration, not to the seed of the weights.
    assert torch.equal(
        nets.build(config(MLP), 9).aggregate.encoders["label"].matrix, net.aggregate.encoders["label"].matrix
    )


class TestDenoiser:
    """The network as a denoiser."""

    def test_what_is_told_to_a_row_is_that_row_s(self):
        model = ModalNetwork(shaken(config(MLP, told=True)), VP(), Noise())
        x, label = random.normal((3, 2, 4, 4), 3), torch.tensor([0, 1, 2])
        told, plain = model(x, 0.3, label=label), model(x, 0.3)
        mask = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 1]]).bool()
        some = model(x, 0.3, label=label, told=mask).eps
        torch.testing.assert_close(some[0], told.eps[0])
        torch.testing.assert_close(some[1:], plain.eps[1:])
        dropped = model(x, 0.3, label=label, drop=torch.tensor([False, True, True])).eps
        torch.testing.assert_close(dropped, some)
        assert not torch.allclose(told.eps, plain.eps)

    def test_classifier_free_guidance_drops_what_is_told(self):
        model = ModalNetwork(shaken(config(MLP, told=True)), VP(), Noise())
        x, label = random.normal((3, 2, 4, 4), 3), torch.tensor([0, 1, 2])
        told, plain = model(x, 0.3, label=label).eps, model(x, 0.3).eps
        torch.testing.assert_close(ClassifierFree(model, 3.0)(x, 0.3, label=label).eps, plain + 3.0 * (told - plain))
        found = modalities.sample(ClassifierFree(model, 3.0), 3, {"label": label}, steps=2)
        assert found["image"].shape == (3, 2, 4, 4)

    def test_a_label_head_guides(self):
        model = ModalNetwork(shaken(config(MLP)), VP(), Noise())
        guided = ClassifierGuidance(model, modalities.log_probability(model, "label"), given=("label",))
        x, label = random.normal((3, 2, 4, 4), 3), torch.tensor([0, 1, 2])
        state = x.clone().requires_grad_()
        logits = model(state, 0.3).modalities["label"].log_softmax(1)
        (gradient,) = torch.autograd.grad(logits[torch.arange(3), label].sum(), state)
        torch.testing.assert_close(guided(x, 0.3, label=label).score, model(x, 0.3).score + gradient)
        assert modalities.sample(guided, 3, {"label": label}, steps=2)["code"].shape == (3, 5)

    def test_refusals(self):
        model = ModalNetwork(shaken(config(MLP)), VP(), Noise())
        with pytest.raises(IncompatibleError, match="PlugIn"):
            model(torch.zeros(1, 2, 4, 4), 0.3, label=torch.zeros(1).long())
        with pytest.raises(InputError, match="aggregate"):
            ModalNetwork(nets.build({**MLP, "dim": 4}), VP(), Noise())
        for wrong in (
            {"image": {"shape": [3]}},
            {"label": {"classes": 3, "encoder": "scaled"}},
            {"label": {}},
            {"label": {"classes": 3, "shape": [1]}},
            {"label": {"classes": 3, "encoder": "other"}},
            {"label": {"classes": 3, "sed": 1}},
        ):
            with pytest.raises(InputError):
                nets.build(config(MLP, wrong))
