"""The network that represents and generates: hidden patches, time zero, and what it is before training."""

import pytest
import torch
from net_cases import shaken

import tweed as tw
from tweed import nets
from tweed.core.random import normal
from tweed.errors import InputError
from tweed.solvers import DDIM, DPMSolver

CONFIG = {
    "name": "masked-autoencoder", "in_channels": 2, "patch": 2, "hidden": 16, "depth": 2, "decoder_depth": 1, "heads": 2,
}  # fmt: skip
X = normal((3, 2, 8, 12), 1)
VISIBLE = torch.tensor([[5, 0, 17, 9], [3, 20, 1, 2], [23, 22, 21, 0]])


def test_shapes_and_a_plain_call():
    net = shaken(CONFIG)
    assert net.tokens(X) == 24
    heads = net.heads(X, 0.3)
    assert heads.data.shape == heads.noise.shape == X.shape
    assert heads.representation.shape == (3, 16)
    t = torch.full((3,), 0.3)
    assert torch.equal(net(X, t), heads.noise)
    other = nets.build({**CONFIG, "head": "data"})
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(X, t), heads.data)
    torch.testing.assert_close(net.represent(X, 0.3), heads.representation)
    assert net(X[:0], t[:0]).shape == (0, 2, 8, 12)
    torch.testing.assert_close(net(X[:1], t[:1]), heads.noise[:1])


def test_all_patches_seen_in_any_order_is_no_mask():
    net = shaken(CONFIG)
    everything = torch.stack([torch.randperm(24, generator=torch.Generator().manual_seed(i)) for i in range(3)])
    for a, b in zip(net.heads(X, 0.4, visible=everything), net.heads(X, 0.4), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_hidden_patches_are_not_read():
    net = shaken(CONFIG)
    seen = torch.zeros(3, 24).scatter(1, VISIBLE, 1.0).reshape(3, 1, 4, 6)
    seen = seen.repeat_interleave(2, 2).repeat_interleave(2, 3)
    before = net.heads(X, 0.4, visible=VISIBLE)
    for a, b in zip(net.heads(X + 5.0 * (1.0 - seen), 0.4, visible=VISIBLE), before, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    assert (net.heads(X + 5.0 * seen, 0.4, visible=VISIBLE).data - before.data).abs().max() > 0.1


def test_samples_do_not_feel_one_another():
    net = shaken(CONFIG)
    t = torch.tensor([0.0, 0.3, 1.0])
    whole = net.heads(X, t, visible=VISIBLE)
    for i in range(3):
        alone = net.heads(X[i : i + 1], t[i : i + 1], visible=VISIBLE[i : i + 1])
        for a, b in zip(alone, whole, strict=True):
            torch.testing.assert_close(a, b[i : i + 1], atol=1e-5, rtol=1e-4)


def test_blocks_start_as_identities_and_time_does_not_count_yet():
    net = nets.build(CONFIG)
    h, embedding = normal((2, 7, 16), 2), normal((2, 1, 16), 3)
    for block in (*net.encoder, *net.decoder):
        assert torch.equal(block(h, embedding, None, None), h)
    torch.testing.assert_close(net.represent(X, 0.0), net.represent(X, 0.5))
    tokens = net.class_tokens
    assert (tokens[0] - tokens[1]).abs().max() > 1e-3


def test_time_zero_is_not_the_limit_of_small_times():
    net = shaken(CONFIG)
    zero, small, smaller = (net.represent(X, t) for t in (0.0, 1e-6, 1e-7))
    torch.testing.assert_close(small, smaller, atol=1e-3, rtol=0)
    assert (zero - small).abs().max() > 10 * (small - smaller).abs().max() + 1e-3


def test_labels_and_their_null():
    net = shaken({**CONFIG, "num_classes": 4})
    label = torch.tensor([0, 1, 3])
    told = net.heads(X, 0.4, label=label).noise
    drop = torch.tensor([True, False, False])
    dropped = net.heads(X, 0.4, label=label, drop=drop).noise
    torch.testing.assert_close(dropped[0], net.heads(X, 0.4).noise[0])
    assert torch.equal(dropped[1:], told[1:])
    with pytest.raises(InputError, match="label"):
        shaken(CONFIG).heads(X, 0.4, label=label)


def test_solvers_and_a_folder(tmp_path):
    denoiser = tw.NetworkDenoiser(shaken(CONFIG), tw.processes.VP(), tw.targets.Noise(), event=(2, 8, 8))
    for solver in (DDIM(eta=1.0), DPMSolver()):
        assert torch.isfinite(tw.sample(denoiser, 2, solver=solver, steps=3)).all()
    tw.save(denoiser, tmp_path)
    again = tw.load(str(tmp_path))
    x = normal((2, 2, 8, 8), 5)
    torch.testing.assert_close(again(x, 0.3).eps, denoiser(x, 0.3).eps, atol=1e-6, rtol=0)


def test_options_and_shapes_out_of_range():
    for bad, message in (
        ({"head": "score"}, "head"),
        ({"hidden": 18}, "hidden"),
        ({"class_tokens": 0}, "class_tokens"),
    ):
        with pytest.raises(InputError, match=message):
            nets.build({**CONFIG, **bad})
    with pytest.raises(InputError, match="multiples of 2"):
        nets.build(CONFIG).heads(torch.zeros(1, 2, 7, 8), 0.1)
