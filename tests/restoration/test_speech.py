"""The published sampler against its own recursion and exact posteriors; `enhance` against what it must leave alone."""

import pytest
import torch

import tweed as tw
from tweed.core import targets
from tweed.core.denoiser import CountingDenoiser, FunctionDenoiser, NetworkDenoiser
from tweed.core.processes import OUVE, Residual
from tweed.core.random import normal
from tweed.core.time import left
from tweed.errors import InputError, MissingPackageError
from tweed.restoration.speech import CompressedSTFT, enhance, read_audio, speech_grid, speech_sampler, write_audio
from tweed.solvers import DDIM, EulerMaruyama, ReverseDiffusion

OU = OUVE()
SMALL = CompressedSTFT(64, 16)


def posterior(prior=0.04, noise=0.02, process=OU):
    """E[x_0 | x_t, y] for x_0 ~ CN(0, prior), y = x_0 + CN(0, noise)."""
    gain0, v = prior / (prior + noise), prior * noise / (prior + noise)

    def data(x, t, y):
        alpha, beta, sigma = (left(c, x) for c in (process.alpha(t), process.beta(t), process.sigma(t)))
        gain = alpha * v / (alpha**2 * v + sigma**2)
        return gain0 * y + gain * (x - beta * y - alpha * gain0 * y)

    return FunctionDenoiser(data, process), gain0, v


def keep(process=OU):
    """The clean speech is what was recorded."""
    return FunctionDenoiser(lambda x, t, y: y, process)


def test_the_sampler_is_the_published_recursion():
    model, _, _ = posterior()
    n, steps, seed = 5, 4, 3
    y = normal((n, 2), 1, dtype=torch.complex128)
    got = tw.sample(model, n, solver=speech_sampler(0.5), steps=steps, grid=speech_grid, cond={"y": y}, seed=seed)

    ratio = OU.sigma_max / OU.sigma_min
    times = [*torch.linspace(1.0, 0.03, steps, dtype=torch.float64).tolist(), 0.0]
    x = OU.prior((n, 2), seed, y=y, dtype=torch.complex128)

    def noise(step, draw):
        return normal((n, 2), seed, draw=1 + 64 * step + draw, dtype=torch.complex128)

    for i, t in enumerate(times[:-1]):
        std, g = OU.sigma(t).item(), OU.sigma_min * ratio**t * (2 * torch.tensor(ratio).log().item()) ** 0.5
        d = t - times[i + 1]
        k = 2 * (0.5 * std) ** 2
        x = x + k * model(x, t, y=y).score + (2 * k) ** 0.5 * noise(i, 32)
        mean = x - (OU.stiffness * (y - x) - g**2 * model(x, t, y=y).score) * d
        x = mean + g * d**0.5 * noise(i, 0)
    torch.testing.assert_close(got, mean)


def test_thirty_steps_reach_the_posterior_and_three_explode():
    model, gain, v = posterior()
    y = 0.06**0.5 * normal((20000, 1), 7, dtype=torch.complex128)
    off = y - gain * y

    def moments(steps, corrector=1):
        sampler = speech_sampler(corrector_steps=corrector)
        x = tw.sample(model, len(y), solver=sampler, steps=steps, grid=speech_grid, cond={"y": y}, seed=1) - gain * y
        bias = ((x * off.conj()).real.sum() / off.abs().square().sum()).item()
        return bias, ((x - bias * off).abs().square().mean() / v).item()

    bias, variance = moments(30)
    assert abs(bias) < 0.03
    assert variance == pytest.approx(1.0, abs=0.1)
    assert moments(3)[1] > 10
    assert moments(5, 0)[1] > moments(5)[1] > 1.0  # the corrector mends what few steps leave


def test_the_grid_is_the_published_one():
    torch.testing.assert_close(speech_grid(OU, 30)[:-1], torch.linspace(1.0, 0.03, 30, dtype=torch.float64))
    assert speech_grid(OU, 30)[-1] == 0.0
    assert speech_grid(OU, 1).tolist() == [1.0, 0.0]
    counted = CountingDenoiser(keep())
    tw.sample(
        counted,
        1,
        solver=speech_sampler(),
        steps=30,
        grid=speech_grid,
        cond={"y": torch.ones(1, 2, dtype=torch.complex64)},
    )
    assert counted.evaluations == 60


def test_both_ways_to_follow_the_endpoint_converge_to_one_another():
    model, _, _ = posterior()
    y = normal((8, 3), 2, dtype=torch.complex128)

    def run(endpoint, steps):
        solver = EulerMaruyama(endpoint=endpoint, probability_flow=False)
        times = torch.linspace(1.0, 0.03, steps + 1, dtype=torch.float64)
        return tw.sample(model, 8, solver=solver, times=times, cond={"y": y}, seed=4)

    gaps = [(run("exact", n) - run("euler", n)).abs().max().item() for n in (20, 40, 80)]
    assert 1.7 < gaps[0] / gaps[1] < 2.3
    assert 1.7 < gaps[1] / gaps[2] < 2.3
    with pytest.raises(InputError, match="endpoint"):
        EulerMaruyama(endpoint="none")  # type: ignore[arg-type]


def test_the_endpoint_option_changes_nothing_without_an_endpoint_and_serves_grids_of_each_sample():
    plain = tw.GaussianDenoiser(torch.zeros(3), 0.5, tw.processes.VE(0.01, 5.0))
    a, b = (tw.sample(plain, 4, solver=EulerMaruyama(endpoint=e), steps=9, seed=2) for e in ("exact", "euler"))
    assert torch.equal(a, b)
    model, _, _ = posterior()
    y = normal((2, 3), 2, dtype=torch.complex128)
    times = torch.linspace(1.0, 0.0, 7, dtype=torch.float64)
    start = OU.prior((2, 3), 5, y=y, dtype=torch.complex128)

    def run(grid):
        return tw.sample(model, start, solver=EulerMaruyama(endpoint="euler"), times=grid, cond={"y": y}, seed=6)

    torch.testing.assert_close(run(times[:, None].expand(7, 2)), run(times))


@pytest.mark.parametrize(("length", "rate"), [(1, 16000), (700, 16000), (5000, 16000), (40000, 16000)])
def test_a_model_that_keeps_the_recording_gives_it_back(length, rate):
    # Only the front end is between: its level, its padding and the joints of its segments must not be heard.
    wave = 0.3 * normal((2, length), 5)
    out = enhance(wave, keep(Residual(noise=1e-12)), steps=2, solver=DDIM(), rate=rate, segment=0.8, stft=SMALL)
    assert out.shape == wave.shape
    torch.testing.assert_close(out, wave, atol=1e-4, rtol=0)


def test_channels_lengths_and_rates():
    model = keep(Residual(noise=1e-12))
    t = torch.arange(22050) / 44100.0
    tone = 0.2 * (2 * torch.pi * 440.0 * t).sin()
    out = enhance(tone, model, rate=44100, steps=1, solver=DDIM(), stft=SMALL)
    assert out.shape == tone.shape
    assert (out - tone)[2000:-2000].abs().max() < 2e-3
    above = enhance((2 * torch.pi * 12000.0 * t).sin(), model, rate=44100, steps=1, solver=DDIM(), stft=SMALL)
    assert above[2000:-2000].abs().max() < 0.02  # beyond half of the model's rate
    assert not enhance(torch.zeros(3000), model, steps=1, solver=DDIM(), stft=SMALL).any()
    assert enhance(torch.zeros(2, 0), model).shape == (2, 0)


def test_louder_in_is_louder_out_and_channels_do_not_meet():
    model = FunctionDenoiser(lambda x, t, y: 0.5 * y, Residual(noise=1e-12))
    wave = 0.1 * normal((2, 3000), 8)
    options = {"steps": 1, "solver": DDIM(), "stft": SMALL}
    once = enhance(wave, model, **options)
    torch.testing.assert_close(enhance(7.0 * wave, model, **options), 7.0 * once, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(enhance(wave[:1], model, **options), once[:1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(once, 0.25 * wave, atol=1e-4, rtol=0)  # half a square root


def test_draws_differ_by_seed_and_their_average_is_nearer_to_the_mean():
    model, _, _ = posterior(0.01, 0.01)
    wave = 0.2 * normal((4000,), 9)
    one, again, other = (enhance(wave, model, steps=10, stft=SMALL, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    # The sampler alone is not the grid: one that is given runs on the published times too.
    assert torch.equal(enhance(wave, model, steps=10, stft=SMALL, seed=1, solver=speech_sampler()), one)
    other_times = enhance(wave, model, steps=10, stft=SMALL, seed=1, grid=tw.grids.uniform)
    assert not torch.equal(other_times, one)
    many = enhance(wave, model, steps=10, stft=SMALL, samples=8, seed=3)
    more = enhance(wave, model, steps=10, stft=SMALL, samples=8, seed=4)
    assert (many - more).square().mean() < 0.25 * (one - other).square().mean()


def test_the_noise_target_of_a_complex_network_is_trained_by_the_ordinary_loss():
    net = tw.nets.build(
        {"name": "ncsnpp", "channels": 8, "multipliers": [1, 1], "blocks": 1, "attention_levels": []}, seed=1
    )
    model = NetworkDenoiser(net, OU, targets.Score())
    x, y = (0.1 * normal((6, 1, 16, 8), i, dtype=torch.complex64) for i in (1, 2))
    loss = tw.training.DenoisingLoss(target=targets.Noise(), times=tw.training.times.Uniform(low=0.03))
    value = loss(model, {"x": x, "y": y})
    # An untrained network answers nearly nothing: what is left is E|n|^2 = 1.
    assert value.mean().item() == pytest.approx(1.0, abs=0.15)
    result = tw.training.fit(
        model, _Pairs(x, y), steps=24, objective=loss, batch_size=6, lr=5e-3, ema=None, progress=False, device="cpu"
    )
    assert sum(result.losses[-6:]) < 0.95 * sum(result.losses[:6])
    out = enhance(0.1 * normal((1500,), 3), result.denoiser, steps=3, stft=CompressedSTFT(30, 15))
    assert torch.isfinite(out).all()


class _Pairs:
    num_classes, conditions = None, ("y",)

    def __init__(self, x, y):
        self.x, self.y, self.shape = x, y, tuple(x.shape[1:])

    def __len__(self):
        return len(self.x)

    def batch(self, indices):
        return {"x": self.x[indices], "y": self.y[indices]}


def test_input_that_cannot_be_enhanced():
    model = keep()
    for wave, options, message in (
        (torch.zeros(100, dtype=torch.int16), {}, "int16"),
        (torch.zeros(1, 2, 100), {}, "waveform"),
        (torch.full((1000,), float("nan")), {}, "finite"),
        (torch.zeros(100), {"rate": 0}, "rate"),
        (torch.zeros(100), {"samples": 0}, "samples"),
        (torch.zeros(100), {"segment": 0.1}, "segment"),
    ):
        with pytest.raises(InputError, match=message):
            enhance(wave, model, **options)


def test_sound_files(tmp_path):
    pytest.importorskip("soundfile", reason="needs tweed[audio]")
    wave = (0.3 * normal((2, 1000), 1)).clamp(-1, 1)
    for name in ("a.wav", "a.flac"):
        got, rate = read_audio(write_audio(tmp_path / name, wave, 22050))
        assert rate == 22050
        torch.testing.assert_close(got, wave, atol=1e-4, rtol=0)
    assert read_audio(write_audio(tmp_path / "b.wav", wave[0]))[0].shape == (1, 1000)
    assert {p.name for p in tmp_path.iterdir()} == {"a.wav", "a.flac", "b.wav"}
    (tmp_path / "c.wav").write_bytes(b"no sound")
    with pytest.raises(InputError, match=r"c\.wav"):
        read_audio(tmp_path / "c.wav")
    with pytest.raises(InputError, match="cannot be written"):
        write_audio(tmp_path / "d.txt", wave)


def test_without_soundfile_the_error_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(MissingPackageError, match=r"pip install tweed\[audio\]"):
        read_audio("a.wav")


def test_other_processes_and_solvers_take_the_place_of_the_published_ones():
    process = OUVE(stiffness=1e-6)  # no drift: a variance-exploding process
    ratio, t = process.sigma_max / process.sigma_min, torch.linspace(0.1, 1.0, 7, dtype=torch.float64)
    torch.testing.assert_close(process.sigma(t) ** 2, process.sigma_min**2 * (ratio ** (2 * t) - 1), rtol=1e-5, atol=0)
    x0 = normal((2, 3), 1, dtype=torch.complex64)
    torch.testing.assert_close(OU.marginal(x0, 0.7, x0)[0], x0)  # a clean recording stays where it is
    model, gain, _ = posterior()
    y = normal((400, 2), 3, dtype=torch.complex128) * 0.06**0.5
    for solver in (ReverseDiffusion(), EulerMaruyama(), DDIM()):
        x = tw.sample(model, 400, solver=solver, steps=40, cond={"y": y}, seed=5)
        assert (x.mean(0) - gain * y.mean(0)).abs().max() < 0.03
