"""The bundled model: what its card promises, measured."""

import pytest
import torch

import tweed as tw
from tweed.metrics import accuracy, train_classifier


@pytest.fixture(scope="module")
def model():
    return tw.load("glyphs").eval()


def test_it_is_small_and_described(model):
    assert "glyphs" in tw.training.bundled()
    stored = sum(p.numel() for p in model.parameters()) * 2  # float16 on disk
    assert stored < 12e6
    assert model.event == (1, 32, 32)
    assert len(model.meta["classes"]) == 36


@pytest.mark.slow
def test_a_classifier_of_real_glyphs_reads_its_guided_samples(model):
    # 95 % is the promise; 144 samples of a model at 98 % stay above 93 % but for one time in a thousand.
    classifier = train_classifier(tw.data.Glyphs(), steps=120, seed=0)
    label = torch.arange(144) % 36
    guided = tw.guidance.ClassifierFree(model, 2.0)
    x = tw.sample(guided, 144, solver=tw.solvers.DPMSolver(order=2), steps=10, cond={"label": label}, seed=1)
    assert accuracy(classifier, x, label) >= 0.93


@pytest.mark.slow
def test_it_knows_held_out_glyphs_from_noise_at_every_level(model):
    # Its error stays well below that of the best linear answer (a Gaussian of the data's mean and variances).
    data = tw.data.Glyphs(split="test")
    batch = data.batch(torch.arange(64) * 7 % len(data))
    train = tw.data.Glyphs().batch(torch.arange(2048) * 23 % 48384)["x"]
    linear = tw.GaussianDenoiser(train.mean(0), train.var(0).clamp_min(1e-4), model.process)
    for t in (0.05, 0.2, 0.4):
        x = model.process.perturb(batch["x"], t, tw.random.normal(batch["x"].shape, 9))
        with torch.no_grad():
            ours = (model(x, t, label=batch["label"]).x0 - batch["x"]).square().mean()
            plain = (linear(x, t).x0 - batch["x"]).square().mean()
        assert ours < 0.5 * plain, t


def test_speech_comes_out_of_noise():
    pytest.importorskip("espeakng_loader", reason="needs tweed[audio]")
    from tweed.data.speech import NoisySpeech
    from tweed.metrics.audio import si_sdr
    from tweed.restoration import enhance

    # Held-out voices in coloured noise. On average a draw gains 5.5 dB, and the network that answers at once 7.5.
    clean, noisy = NoisySpeech(("coloured",), (-5.0, 5.0), 192, 4, split="test", seed=5).waveforms(torch.arange(4))
    before = si_sdr(noisy, clean)
    draw, direct = (enhance(noisy, tw.load(name), seed=1) for name in ("speech", "speech-direct"))
    assert (si_sdr(draw, clean) - before).mean() > 2.5
    assert (si_sdr(direct, clean) - before).mean() > 4.0
