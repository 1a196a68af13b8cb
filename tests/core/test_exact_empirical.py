"""The denoiser of a data set is that of the mixture with one component a point; and it streams."""

import math
import subprocess
import sys

import pytest
import torch
from process_cases import LINEAR

import tweed as tw
from tweed import processes
from tweed.errors import IncompatibleError, InputError


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=tw.random.generator(seed, 5), dtype=torch.float64)


DATA = 1.5 * draw(40, 3, 2)


@pytest.mark.parametrize("sigma0", [0.0, 0.3])
@pytest.mark.parametrize("process", LINEAR.values(), ids=LINEAR.keys())
def test_it_is_the_mixture_of_its_points(process, sigma0):
    empirical = tw.EmpiricalDenoiser(DATA, sigma0, process, chunk=7)
    mixture = tw.MixtureDenoiser(DATA, sigma0**2, process=process)
    x, y = draw(5, 3, 2, seed=1), draw(5, 3, 2, seed=2)
    cond = {} if process.endpoint == "none" else {"y": y}
    generator = tw.random.generator(4)
    for shape in (None, (5,), (1,), (5, 3), (1, 3), (5, 3, 2)):
        t = 0.4 if shape is None else 0.2 + 0.7 * torch.rand(shape, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(empirical(x, t, **cond).x0, mixture(x, t, **cond).x0, rtol=1e-7, atol=1e-7)
        expected = mixture.log_prob(x, t, **cond)
        torch.testing.assert_close(empirical.log_prob(x, t, **cond), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("sigma0", [0.0, 0.3])
def test_the_score_is_the_gradient(sigma0):
    denoiser = tw.EmpiricalDenoiser(DATA, sigma0)
    x, t = draw(5, 3, 2, seed=1).requires_grad_(), torch.linspace(0.2, 0.9, 5, dtype=torch.float64)
    gradient = torch.autograd.grad(denoiser.log_prob(x, t).sum(), x)[0]
    torch.testing.assert_close(denoiser(x.detach(), t).score, gradient, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("chunk", [1, 3, 39, 40, 41, 10000])
def test_the_chunk_does_not_matter(chunk):
    labels, x = torch.arange(40) % 3, draw(6, 3, 2, seed=1)
    label = torch.tensor([0, 1, 2, 0, 1, 2])
    whole, part = (tw.EmpiricalDenoiser(DATA, 0.1, labels=labels, chunk=c) for c in (4096, chunk))
    for cond in ({}, {"label": label}, {"label": label, "drop": label == 1}):
        torch.testing.assert_close(part(x, 0.3, **cond).x0, whole(x, 0.3, **cond).x0, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(
            part.log_prob(x, 0.3, **cond), whole.log_prob(x, 0.3, **cond), rtol=1e-11, atol=1e-11
        )


def test_labels_restrict_and_drop_releases():
    # Sorted labels: whole chunks are excluded.
    labels = torch.arange(40) // 20
    denoiser = tw.EmpiricalDenoiser(DATA, 0.2, labels=labels, chunk=5)
    parts = [tw.EmpiricalDenoiser(DATA[labels == c], 0.2) for c in (0, 1)]
    everything = tw.EmpiricalDenoiser(DATA, 0.2)
    x, label = draw(4, 3, 2, seed=1), torch.tensor([0, 1, 0, 1])
    drop = torch.tensor([False, False, True, True])
    by_label = torch.stack([parts[c](x[i : i + 1], 0.4).x0[0] for i, c in enumerate(label)])
    torch.testing.assert_close(denoiser(x, 0.4, label=label).x0, by_label, rtol=1e-9, atol=1e-9)
    expected = torch.where(drop[:, None, None], everything(x, 0.4).x0, by_label)
    torch.testing.assert_close(denoiser(x, 0.4, label=label, drop=drop).x0, expected, rtol=1e-9, atol=1e-9)
    density = torch.stack([parts[c].log_prob(x[i : i + 1], 0.4)[0] for i, c in enumerate(label)])
    torch.testing.assert_close(denoiser.log_prob(x, 0.4, label=label), density, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sigma0", [0.0, 1e-6, 0.1])
@pytest.mark.parametrize("t", [0.0, 1e-12, 1e-9, 1e-6, 1e-3, 1.0])
def test_small_noise_is_finite_and_gives_the_nearest_point(sigma0, t):
    for process in (processes.VP(), processes.RectifiedFlow(), processes.EDM(), processes.VE()):
        denoiser = tw.EmpiricalDenoiser(DATA, sigma0, process)
        estimate = denoiser(DATA[:8] + 1e-9, t)
        assert estimate.x0.isfinite().all()
        if process.level(t).sigma < 1e-2 and sigma0 < 1e-2:
            torch.testing.assert_close(estimate.x0, DATA[:8], rtol=0, atol=1e-5)
        if process.level(t).sigma > 0:
            assert denoiser.log_prob(DATA[:8], t).isfinite().all()


def test_the_density_is_right_at_small_noise():
    # A data point's own spike, where the expanded square cancels.
    denoiser, level = tw.EmpiricalDenoiser(DATA, process=processes.EDM()), 1e-3
    d = 6
    x = DATA[:4] + level * draw(4, 3, 2, seed=3)
    expected = -((x - DATA[:4]) ** 2).flatten(1).sum(1) / (2 * level**2) - d / 2 * math.log(2 * math.pi * level**2)
    torch.testing.assert_close(denoiser.log_prob(x, level / 80.0), expected - math.log(40), rtol=0, atol=1e-6)


def test_far_from_all_points_nothing_underflows():
    denoiser = tw.EmpiricalDenoiser(DATA, 0.0, processes.EDM())
    x = torch.full((2, 3, 2), 1e3, dtype=torch.float64)
    # Far out the point that matters is the one farthest in that direction.
    best = DATA[DATA.sum((1, 2)).argmax()]
    torch.testing.assert_close(denoiser(x, 0.1 / 80).x0[0], best, rtol=0, atol=1e-9)
    assert denoiser.log_prob(x, 0.1 / 80).isfinite().all()


def test_samples_are_points_with_noise():
    denoiser = tw.EmpiricalDenoiser(DATA, 0.1)
    x = denoiser.sample(4000, 7)
    assert torch.equal(denoiser.sample(5, 7, index=100), x[100:105])
    distance = torch.cdist(x.flatten(1), DATA.flatten(1)).amin(1)
    assert distance.square().mean().item() == pytest.approx(6 * 0.01, rel=0.1)
    bare = tw.EmpiricalDenoiser(DATA).sample(4000, 7).flatten(1)
    which = torch.cdist(bare, DATA.flatten(1))
    assert which.amin(1).max() < 1e-6
    counts = which.argmin(1).bincount(minlength=40)
    assert counts.min() > 100 - 5 * 10
    assert counts.max() < 100 + 5 * 10


def test_empty_batches_types_and_devices():
    denoiser = tw.EmpiricalDenoiser(DATA.float(), 0.1)
    for t in (0.4, torch.zeros(0), torch.zeros(0, 3)):
        assert denoiser(torch.zeros(0, 3, 2), t).x0.shape == (0, 3, 2)
    assert denoiser.sample(0).shape == (0, 3, 2)
    assert denoiser(torch.zeros(2, 3, 2), 0.4).x0.dtype == torch.float32
    meta, x = tw.EmpiricalDenoiser(DATA, 0.1).to("meta"), torch.zeros(2, 3, 2, device="meta")
    for t in (0.4, torch.full((2,), 0.4)):
        assert meta(x, t).x0.device.type == "meta"
        assert meta.log_prob(x, t).device.type == "meta"


def test_fifty_thousand_points_fit():
    code = """
import resource, time, torch, tweed as tw
torch.set_num_threads(1)
data = torch.randn(50000, 64)
denoiser = tw.EmpiricalDenoiser(data, 0.01)
x = torch.randn(64, 64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
x0 = denoiser(x, 0.5).x0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, before, time.process_time() - start, bool(x0.isfinite().all()))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    peak, before, seconds = float(out[0]) / 2**20, float(out[1]) / 2**20, float(out[2])
    print(f"peak {peak:.2f} GiB, of which the call {peak - before:.3f} GiB, {seconds:.2f} s")
    assert peak < 1.0
    assert peak - before < 0.1
    assert seconds < 3.0
    assert out[3] == "True"


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: tw.EmpiricalDenoiser(torch.zeros(3)), "data: shape"),
        (lambda: tw.EmpiricalDenoiser(torch.zeros(0, 3)), "data: shape"),
        (lambda: tw.EmpiricalDenoiser(DATA, -0.1), "sigma0: -0.1"),
        (lambda: tw.EmpiricalDenoiser(DATA, math.nan), "sigma0: nan"),
        (lambda: tw.EmpiricalDenoiser(DATA, labels=torch.zeros(3)), "labels: shape"),
        (lambda: tw.EmpiricalDenoiser(DATA, chunk=0), "chunk: 0"),
        (lambda: tw.EmpiricalDenoiser(DATA)(torch.zeros(4, 3), 0.5), r"x: shape \(4, 3\)"),
        (lambda: tw.EmpiricalDenoiser(DATA)(torch.zeros(4, 3, 2), torch.rand(3)), "t: shape"),
        (lambda: tw.EmpiricalDenoiser(DATA)(torch.zeros(4, 3, 2), -0.5), "t: -0.5"),
        (lambda: tw.EmpiricalDenoiser(DATA)(torch.zeros(1, 3, 2), 0.5, label=torch.zeros(1)), "label: this data"),
        (lambda: tw.EmpiricalDenoiser(DATA, process=processes.OUVE())(torch.zeros(1, 3, 2), 0.5), "y: OUVE"),
    ],
)
def test_bad_input_is_named(build, named):
    with pytest.raises(InputError, match=named):
        build()


def test_a_two_sided_interpolant_is_refused():
    with pytest.raises(IncompatibleError, match="process"):
        tw.EmpiricalDenoiser(DATA, process=processes.Interpolant())
