"""The loss of masked and noised images: its parts, its limits, and what its gradients do not touch."""

import pytest
import torch

import tweed as tw
from tweed import nets
from tweed.core.processes import VP, RectifiedFlow
from tweed.core.random import normal
from tweed.errors import IncompatibleError, InputError
from tweed.training import DenoisingLoss, fit
from tweed.training.config import TrainConfig
from tweed.training.masked_diffusion import MaskedDiffusionLoss, visible_patches
from tweed.training.times import Uniform

CONFIG = {
    "name": "masked-autoencoder", "in_channels": 1, "patch": 2, "hidden": 16, "depth": 1, "decoder_depth": 1, "heads": 2,
    "class_tokens": 2,
}  # fmt: skip
X = normal((12, 1, 8, 8), 1)


def model(process=None, seed=0):
    net = nets.build(CONFIG, seed)
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p += 0.1 * normal((1, *p.shape), 7, draw=i)[0]
    return tw.NetworkDenoiser(net, process or VP(), tw.targets.Noise(), event=(1, 8, 8))


def seen_pixels(loss, made, denoiser, hidden):
    from tweed.core import random
    from tweed.training.masked_diffusion import _MASKS

    chosen = visible_patches(made["row"], 16, hidden, random.fold(5, _MASKS))
    mask = torch.zeros(len(X), 16).scatter(1, chosen, 1.0).reshape(-1, 1, 4, 4)
    return chosen, mask.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_the_published_sum():
    denoiser, loss = model(), MaskedDiffusionLoss(clean=0.5)
    made = loss.prepare(denoiser.process, {"x": X}, seed=5, step=3)
    n0, n = 6, 12
    assert (made["t"][:n0] > 0).all()
    assert (made["t"][n0:] == 0).all()
    t = made["t"]
    chosen, seen = seen_pixels(loss, made, denoiser, 0.75)
    clean = denoiser.network.heads(X[n0:], 0.0, visible=chosen[n0:])
    hidden = 1 - seen[n0:]
    l_clean = (hidden * (clean.data - X[n0:]) ** 2).sum() / hidden.sum()
    chosen, seen = seen_pixels(loss, made, denoiser, 0.375)
    xt = denoiser.process.perturb(X[:n0], t[:n0], made["noise"][:n0])
    heads = denoiser.network.heads(xt, t[:n0].float(), visible=chosen[:n0])
    s = seen[:n0]
    l_noise = (s * (heads.noise - made["noise"][:n0]) ** 2).sum() / s.sum()
    l_data = ((1 - s) * (heads.data - X[:n0]) ** 2).sum() / (1 - s).sum()
    expected = (1 - n0 / n) * 0.5 * (l_noise + l_data) + n0 / n * l_clean
    torch.testing.assert_close(loss(denoiser, {"x": X}, seed=5, step=3).mean(), expected.float(), atol=1e-5, rtol=1e-5)


def test_diffusion_is_a_limit():
    denoiser = model()
    loss = MaskedDiffusionLoss(clean=0.0, noised_mask=0.0)
    made = loss.prepare(denoiser.process, {"x": X}, seed=5, step=0)
    heads = denoiser.network.heads(denoiser.process.perturb(X, made["t"], made["noise"]), made["t"].float())
    noise = DenoisingLoss()(denoiser, {"x": X}, seed=5, t=made["t"], noise=made["noise"])
    data = (heads.data - X).square().flatten(1).mean(1)
    torch.testing.assert_close(loss(denoiser, {"x": X}, seed=5), 0.5 * (noise + data), atol=1e-5, rtol=1e-5)


def test_the_autoencoder_sees_no_noise():
    denoiser, loss = model(), MaskedDiffusionLoss(clean=1.0)
    first = loss(denoiser, {"x": X, "noise": normal(X.shape, 8)}, seed=5)
    assert torch.equal(first, loss(denoiser, {"x": X, "noise": normal(X.shape, 9)}, seed=5))


@pytest.mark.parametrize("process", [VP(), RectifiedFlow()], ids=repr)
def test_gradients_of_hidden_noise_and_seen_data_are_zero(process):
    denoiser, loss = model(process), MaskedDiffusionLoss(clean=0.0)
    made = loss.prepare(process, {"x": X}, seed=5, step=0)
    _, seen = seen_pixels(loss, made, denoiser, 0.375)
    held = {}
    right = denoiser.network.heads

    def heads(*args, **options):
        held["heads"] = right(*args, **options)
        held["heads"].noise.retain_grad()
        held["heads"].data.retain_grad()
        return held["heads"]

    denoiser.network.heads = heads
    loss(denoiser, {"x": X}, seed=5).sum().backward()
    noise, data = held["heads"].noise.grad, held["heads"].data.grad
    assert not (noise * (1 - seen)).any()
    assert not (data * seen).any()
    assert (noise * seen).abs().sum() > 0
    assert (data * (1 - seen)).abs().sum() > 0


def test_masks_have_their_share_and_are_addressed_by_row():
    chosen = visible_patches(torch.arange(50), 16, 0.375, 3)
    assert chosen.shape == (50, 10)
    assert all(len(set(row)) == 10 for row in chosen.tolist())
    assert torch.equal(visible_patches(torch.tensor([7, 3]), 16, 0.375, 3), chosen[[7, 3]])
    share = torch.zeros(50, 16).scatter(1, chosen, 1.0).mean(0)
    assert (share - 0.625).abs().max() < 5 * (0.625 * 0.375 / 50) ** 0.5


def test_micro_batches_see_what_the_whole_batch_does():
    denoiser, loss = model(), MaskedDiffusionLoss()
    whole = loss(denoiser, {"x": X}, seed=5, step=2)
    parts = []
    for offset in (0, 4, 8):
        x = X[offset : offset + 4]
        made = loss.prepare(denoiser.process, {"x": x}, seed=5, step=2, offset=offset, total=12)
        parts.append(loss(denoiser, made, seed=5, step=2))
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("spread", ["low-discrepancy", "stratified"])
def test_noised_times_are_spread_over_all_times(spread):
    loss = MaskedDiffusionLoss(clean=0.5, times=Uniform(spread=spread))
    for step in range(5):
        made = loss.prepare(VP(), {"x": X}, seed=5, step=step)
        t = made["t"][:6].sort().values
        # One sixth of all times each.
        assert (t - (torch.arange(6) + 0.5) / 6).abs().max() <= 1 / 6


def test_given_times_say_which_samples_are_clean():
    denoiser, loss = model(), MaskedDiffusionLoss()
    t = torch.tensor([0.5, 0.0, 0.3, 0.0, 0.9], dtype=torch.float64)
    made = loss.prepare(VP(), {"x": X[:5], "t": t}, seed=5, step=0)
    order = torch.tensor([0, 2, 4, 1, 3])
    moved = {name: value[order] for name, value in made.items()}
    torch.testing.assert_close(loss(denoiser, made, seed=5)[order], loss(denoiser, moved, seed=5), atol=1e-6, rtol=1e-5)


def test_a_denoiser_that_reads_the_network_otherwise_is_refused():
    net = model().network
    for options in (
        {"target": tw.targets.V()}, {"target": tw.targets.Data()}, {"target": tw.targets.Noise(), "time": "log_snr"},
        {"target": tw.targets.Noise(), "input_scale": "unit"},
    ):  # fmt: skip
        with pytest.raises(IncompatibleError, match=r"expected .Noise.*'time', 'none'"):
            MaskedDiffusionLoss()(tw.NetworkDenoiser(net, VP(), **options), {"x": X})
    with pytest.raises(InputError, match="vector"):
        MaskedDiffusionLoss()(model(), {"x": X, "vector": torch.zeros(12, 3)})


def test_it_trains_and_is_named_in_configurations():
    denoiser = model()
    result = fit(
        denoiser,
        X,
        steps=60,
        batch_size=12,
        lr=3e-3,
        objective=MaskedDiffusionLoss(),
        ema=None,
        progress=False,
        device="cpu",
    )
    assert sum(result.losses[-10:]) < 0.9 * sum(result.losses[:10])
    config = TrainConfig.from_dict({
        "data": {"name": "Digits"}, "network": CONFIG, "process": {"name": "VP"}, "target": {"name": "Noise"},
        "optimisation": {"steps": 1}, "objective": {"name": "MaskedDiffusionLoss", "clean": 0.25},
    })  # fmt: skip
    assert config.objective == MaskedDiffusionLoss(clean=0.25)


def test_mistakes_are_named():
    for bad, message in (
        ({"clean": 1.5}, "clean"),
        ({"clean_mask": 1.0}, "clean_mask"),
        ({"noised_mask": -0.1}, "noised"),
    ):
        with pytest.raises(InputError, match=message):
            MaskedDiffusionLoss(**bad)
    with pytest.raises(InputError, match="leaves none"):
        visible_patches(torch.arange(2), 16, 0.99, 0)
    with pytest.raises(InputError, match="hides none"):
        visible_patches(torch.arange(2), 16, 1e-12, 0)
    plain = tw.NetworkDenoiser(lambda x, t: x, VP(), tw.targets.Noise())
    with pytest.raises(IncompatibleError, match="two heads"):
        MaskedDiffusionLoss()(plain, {"x": X})
    assert MaskedDiffusionLoss()(model(), {"x": X[:0]}).shape == (0,)
