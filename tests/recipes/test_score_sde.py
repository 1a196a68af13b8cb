"""The recipe `score-sde` at its smallest, and the unit properties that its system must have."""

import math

import pytest
import torch

import tweed as tw
from tweed.core import random
from tweed.recipes import _score_sde_exact as exact
from tweed.recipes._digits import LEVELS, OFFSET, Dequantised, colour, hue_of, hues
from tweed.recipes._imputation import Known, grey_basis, impute
from tweed.recipes._noisy_classifier import train_noisy_classifier
from tweed.recipes.registry import reproduce
from tweed.solvers import PredictorCorrector, ReverseDiffusion, bits_per_dim

F64 = torch.float64
SDES = list(exact.SDES.items())


def test_smoke(tmp_path):
    told: list[float] = []
    report = reproduce(
        "score-sde",
        seed=1,
        scale="smoke",
        progress=lambda _, share=None: told.append(told[-1] if share is None else share),
    )
    assert not report.failed, [(row.quantity, row.baseline, row.here) for row in report.failed]
    assert sum(row.holds is True for row in report.rows) > 20
    assert told == sorted(told)
    assert told[-1] <= 1.0
    folder = report.write(tmp_path)
    for name in ("samplers", "samples", "inpainting", "colorization"):
        assert (folder / f"{name}.png").stat().st_size > 3000


@pytest.mark.parametrize(("name", "process"), SDES)
def test_euler_maruyama_forward_has_the_marginals(name, process):
    # dx = f dt + g dw from two points, 2000 steps: the means are alpha x_0, the standard deviation sigma.
    n, steps = 4000, 2000
    generator = random.generator(3)
    start = torch.tensor([-1.0, 2.0], dtype=F64).repeat_interleave(n)
    # VE's data at t = 0 already carries sigma(0).
    x = start + process.level(0.0).sigma * torch.randn(2 * n, generator=generator, dtype=F64)
    for i in range(steps):
        t = i / steps
        noise = torch.randn(2 * n, generator=generator, dtype=F64)
        x = x + process.drift(x[:, None], t)[:, 0] / steps + process.diffusion(t) * steps**-0.5 * noise
        if i + 1 in (1000, 2000):
            level = process.level((i + 1) / steps)
            low, high = x[:n], x[n:]
            assert low.std().item() == pytest.approx(level.sigma, rel=0.03)
            assert high.std().item() == pytest.approx(level.sigma, rel=0.03)
            apart = (high.mean() - low.mean()).item()
            assert apart == pytest.approx(3.0 * level.alpha, abs=5.0 * level.sigma * (2.0 / n) ** 0.5 + 0.02)


def test_sub_vp_has_no_more_variance_than_vp_and_the_same_in_the_end():
    t = torch.linspace(0.0, 1.0, 1001, dtype=F64)
    vp, sub = tw.processes.VP(), tw.processes.SubVP()
    assert (sub.sigma(t) <= vp.sigma(t)).all()
    torch.testing.assert_close(sub.alpha(t), vp.alpha(t))
    assert abs(sub.level(1.0).sigma - vp.level(1.0).sigma) < 1e-4
    torch.testing.assert_close(sub.sigma(t), vp.sigma(t) ** 2)


def test_the_vp_flow_of_a_standard_normal_is_the_identity():
    model = tw.GaussianDenoiser(torch.zeros(3), 1.0, tw.processes.VP())
    x = random.normal((5, 3), 2, dtype=F64)
    for t in (0.01, 0.5, 1.0):
        assert model(x, t).velocity.abs().max() < 1e-12
    torch.testing.assert_close(tw.invert(model, x, solver=tw.solvers.AdaptiveRungeKutta()), x)


@pytest.mark.parametrize(("name", "process"), SDES)
def test_encode_and_decode_on_the_exact_mixture(name, process):
    model, solver = exact.mixture(process, 4), tw.solvers.AdaptiveRungeKutta(rtol=1e-5, atol=1e-5)
    x = model.sample(32, 5)
    latent = tw.invert(model, x, solver=solver)
    back = tw.sample(model, latent, solver=solver, times=(1.0, process.t_min))
    assert (back - x).abs().max() < 1e-3
    assert (latent - x).abs().max() > 0.5


def test_the_closed_form_of_a_gaussian_holds_at_both_ends():
    # Without mismatch at the prior the flow's density is the Gaussian's own.
    model = tw.GaussianDenoiser(torch.zeros(3), torch.eye(3, dtype=F64), tw.processes.VP())
    x = random.normal((4, 3), 1, dtype=F64)
    torch.testing.assert_close(exact._flow_log_prob(model, x), model.log_prob(x), rtol=1e-4, atol=1e-4)


def test_bits_of_dequantised_digits():
    data = Dequantised("test", seed=3, repeats=4)
    some = torch.tensor([0, 5, len(data) // 4, len(data) // 4 + 5, len(data) - 1])
    batch = data.batch(some)
    levels = ((batch["x"] + 1.0) * LEVELS / 2.0).floor()
    # The integers are the images', whatever the noise, which is another for each repeat.
    torch.testing.assert_close(levels[0], levels[2])
    assert (batch["x"][0] - batch["x"][2]).abs().max() > 0.01
    torch.testing.assert_close(data.batch(some[3:4])["x"][0], batch["x"][3])
    whole = tw.data.Digits("test").batch(torch.tensor([0, 5]))
    torch.testing.assert_close(levels[:2], 8.0 * (whole["x"] + 1.0))
    assert batch["x"].abs().max() <= 1.0
    # A uniform density on [-1, 1]^d spends log2(17) bits on each of 17 equally likely levels.
    flat = bits_per_dim(torch.tensor([-64.0 * math.log(2.0)], dtype=F64), 64, OFFSET)
    assert flat.item() == pytest.approx(math.log2(17.0))


def test_colour_keeps_grey_and_tells_its_hue():
    digits = tw.data.Digits("test").batch(torch.arange(20))
    hue = hues(digits["label"], 1)
    x = colour(digits["x"].double(), hue)
    torch.testing.assert_close(hue_of(x), hue)
    assert ((hue * 10).floor().long() == digits["label"]).all()
    other = colour(digits["x"].double(), (hue + 0.37) % 1.0)
    torch.testing.assert_close(x.sum(1), other.sum(1))
    assert x.min() >= -1.0
    assert x.max() <= 1.0


def test_the_grey_basis_is_orthogonal_and_its_first_direction_is_grey():
    basis = grey_basis()
    torch.testing.assert_close(basis @ basis.T, torch.eye(3, dtype=F64), rtol=0.0, atol=1e-12)
    torch.testing.assert_close(basis[:, 0], torch.full((3,), 3.0**-0.5, dtype=F64))
    x = random.normal((4, 3, 2, 2), 1, dtype=F64)
    known = Known(x, torch.tensor(True), basis)
    torch.testing.assert_close(known.back(known.rotate(x)), x)
    torch.testing.assert_close(known.rotate(x)[:, 0], x.sum(1) / 3.0**0.5)


def test_what_is_known_stays_and_is_noised_to_the_level_on_the_way():
    process = tw.processes.VP()
    y = torch.full((4000, 2), 3.0, dtype=F64)
    known = Known(y, torch.tensor([True, False]))
    overwrite = known.observer(process, steps=4, seed=1)
    x = torch.zeros(4000, 2, dtype=F64)
    changed = overwrite(x, 0.4, 1)
    level = process.level(0.4)
    assert changed[:, 0].mean().item() == pytest.approx(3.0 * level.alpha, abs=0.05)
    assert changed[:, 0].std().item() == pytest.approx(level.sigma, rel=0.05)
    assert (changed[:, 1] == 0.0).all()
    assert (overwrite(x, 0.2, 2)[:, 0] - changed[:, 0]).abs().max() > 0.1  # fresh noise
    torch.testing.assert_close(overwrite(x, 0.0, 3)[:, 0], y[:, 0])  # none at the end


def test_imputing_independent_coordinates_leaves_their_law():
    model = tw.GaussianDenoiser(
        torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.3], dtype=F64), tw.processes.VE(0.01, 20.0)
    )
    known = Known(torch.tensor([[5.0, 0.0]], dtype=F64), torch.tensor([True, False]))
    x = impute(model, known, 3000, solver=PredictorCorrector(ReverseDiffusion()), steps=100, seed=2)
    assert x.shape == (3000, 1, 2)
    assert (x[..., 0] == 5.0).all()
    assert x[..., 1].mean().item() == pytest.approx(-2.0, abs=0.05)
    assert x[..., 1].var().item() == pytest.approx(0.3, rel=0.15)


def test_the_noisy_classifier_knows_clean_digits_and_nothing_of_noise():
    data = Dequantised("train", 1, repeats=8)
    model = train_noisy_classifier(tw.processes.SubVP(), data, steps=80, seed=2, width=64)
    batch = Dequantised("test", 2).batch(torch.arange(200))
    x, label = batch["x"], batch["label"]
    every = torch.stack([model(x, torch.full((200,), 0.02, dtype=F64), torch.full_like(label, k)) for k in range(10)])
    torch.testing.assert_close(every.logsumexp(0), torch.zeros(200, dtype=F64))
    assert (every.argmax(0) == label).double().mean() > 0.7
    noise = random.normal(x.shape, 4)
    blind = model(noise, torch.ones(200, dtype=F64), label).exp()
    assert blind.mean().item() == pytest.approx(0.1, abs=0.04)
