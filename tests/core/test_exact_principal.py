"""A Gaussian by its principal directions: the full one's answers, flow and density, and its fit to data."""

import math

import pytest
import torch

from tweed import processes, random
from tweed.core.exact import (
    GaussianDenoiser,
    MixtureDenoiser,
    PrincipalGaussian,
    fit_class_gaussians,
    fit_gaussian,
    fit_mixture,
    psi,
)
from tweed.errors import IncompatibleError, InputError

D = 6
F64 = torch.float64
MEAN = random.normal((D,), 1, dtype=F64)
BASIS = torch.linalg.qr(random.normal((D, D), 2, dtype=F64))[0]
VARIANCES = torch.tensor([3.0, 1.0, 0.4, 0.1, 0.02, 0.0], dtype=F64)
PROCESSES = [processes.VP(), processes.EDM(), processes.RectifiedFlow(), processes.MeanReverting()]
X = random.normal((5, D), 3, dtype=F64)
Y = random.normal((5, D), 4, dtype=F64)


def pair(process, rank=D, rest=0.0):
    """The principal Gaussian and the full one."""
    kept = VARIANCES.clone()
    kept[rank:] = rest
    low = PrincipalGaussian(MEAN, VARIANCES[:rank], BASIS[:, :rank], rest, process)
    return low, GaussianDenoiser(MEAN, BASIS @ torch.diag(kept) @ BASIS.T, process)


@pytest.mark.parametrize(("rank", "rest"), [(D, 0.0), (3, 0.05), (2, 0.0)])
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_it_is_the_full_gaussian(process, rank, rest):
    low, full = pair(process, rank, rest)
    cond = {"y": Y} if process.endpoint == "given" else {}
    for t in (0.15, 0.6, torch.linspace(0.1, 0.9, 5, dtype=F64)):
        torch.testing.assert_close(low(X, t, **cond).x0, full(X, t, **cond).x0, rtol=1e-9, atol=1e-9)
    for t in (0.15, 0.6):
        torch.testing.assert_close(low.log_prob(X, t, **cond), full.log_prob(X, t, **cond), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(low.flow(X, 0.9, t, **cond), full.flow(X, 0.9, t, **cond), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_the_flow_composes_and_returns(process):
    low, _ = pair(process, 3, 0.05)
    y = Y if process.endpoint == "given" else None
    half = low.flow(low.flow(X, 0.9, 0.5, y), 0.5, 0.2, y)
    torch.testing.assert_close(half, low.flow(X, 0.9, 0.2, y), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(low.flow(half, 0.2, 0.9, y), X, rtol=1e-10, atol=1e-10)


def test_its_velocity_is_the_flows_derivative():
    low, h = pair(processes.VP(), 3, 0.05)[0], 1e-5
    slope = (low.flow(X, 0.5, 0.5 + h) - low.flow(X, 0.5, 0.5 - h)) / (2 * h)
    torch.testing.assert_close(slope, low(X, 0.5).velocity, rtol=1e-6, atol=1e-6)


def test_psi_of_the_published_special_cases():
    v = torch.tensor([0.0, 0.5, 1.0, 3.0], dtype=F64)
    edm = processes.EDM(0.002, 80.0)
    torch.testing.assert_close(psi(edm, v, 1.0, 0.25), ((400.0 + v) / (6400.0 + v)).sqrt())
    vp = processes.VP()
    a, b = (vp.level(t).alpha ** 2 for t in (0.8, 0.3))
    torch.testing.assert_close(psi(vp, v, 0.8, 0.3), ((1 + b * (v - 1)) / (1 + a * (v - 1))).sqrt())
    assert psi(vp, v, 0.8, 0.3)[2].item() == pytest.approx(1.0)


def test_the_fit_has_the_moments_of_the_data():
    data = random.normal((40, 2, 3), 5, dtype=F64) * torch.linspace(0.2, 2.0, 6, dtype=F64).reshape(2, 3)
    found = fit_gaussian(data)
    flat = data.flatten(1)
    made = found.directions @ torch.diag(found.variances) @ found.directions.T
    torch.testing.assert_close(made, torch.cov(flat.T), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.mean, flat.mean(0))
    assert found.event == (2, 3)


def test_a_rank_keeps_the_trace_and_noise_adds_to_every_direction():
    data = random.normal((40, 6), 5, dtype=F64)
    whole, part, noisy = fit_gaussian(data), fit_gaussian(data, rank=2), fit_gaussian(data, noise=0.3)
    assert part.variances.sum().item() + 4 * part.remainder == pytest.approx(whole.variances.sum().item())
    torch.testing.assert_close(noisy.variances, whole.variances + 0.09)
    # Fewer samples than dimensions: what they do not span has no variance.
    few = fit_gaussian(random.normal((3, 10), 1))
    assert few.directions.shape == (10, 2)
    assert few.remainder == 0.0


def covariance(gaussian):
    beside = torch.eye(len(gaussian.mean), dtype=F64) - gaussian.directions @ gaussian.directions.T
    along = gaussian.directions @ torch.diag(gaussian.variances) @ gaussian.directions.T
    return along + gaussian.remainder * beside


@pytest.mark.parametrize("pooled", [0.0, 0.3, 1.0])
def test_classes_have_their_own_means_and_a_share_of_the_common_covariance(pooled):
    data, label = random.normal((60, 2, 2), 6, dtype=F64), torch.arange(60) % 3
    data = data * torch.tensor([0.5, 1.0, 2.0], dtype=F64)[label, None, None] + 3.0 * label[:, None, None]
    found = fit_class_gaussians(data, label, pooled=pooled, noise=0.1)
    flat = data.flatten(1)
    own = [torch.cov(flat[label == k].T) for k in range(3)]
    common = sum(19 * c for c in own) / 57
    for k, gaussian in enumerate(found):
        torch.testing.assert_close(gaussian.mean, flat[label == k].mean(0))
        expected = (1 - pooled) * own[k] + pooled * common + 0.01 * torch.eye(4, dtype=F64)
        torch.testing.assert_close(covariance(gaussian), expected, rtol=1e-9, atol=1e-9)
        assert gaussian.event == (2, 2)
    if pooled == 0.0:
        alone = fit_gaussian(data[label == 1], noise=0.1)
        torch.testing.assert_close(covariance(found[1]), covariance(alone), rtol=1e-12, atol=1e-12)
    low = fit_class_gaussians(data, label, pooled=pooled, rank=2)
    assert low[0].directions.shape == (4, 2)


def test_a_class_of_one_sample_needs_the_others():
    data, label = random.normal((9, 3), 7), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2])
    assert len(fit_class_gaussians(data, label, pooled=0.5)) == 3
    for bad in (
        {"pooled": 0.0},
        {"pooled": 1.5},
        {"label": label[:3], "pooled": 0.5},
        {"label": label.double(), "pooled": 0.5},
        {"label": label + 1, "pooled": 0.5},
        {"rank": 0, "pooled": 0.5},
    ):
        with pytest.raises(InputError):
            fit_class_gaussians(**{"data": data, "label": label} | bad)


def test_clusters_become_components():
    centres = torch.tensor([[5.0, 0.0], [-5.0, 0.0], [0.0, 5.0]], dtype=F64)
    data = MixtureDenoiser(centres, 0.1, torch.tensor([2.0, 1.0, 1.0])).sample(4000, 1)
    found = fit_mixture(data, 3, floor=0.0)
    order = torch.cdist(centres, found.means).argmin(1)
    torch.testing.assert_close(found.means[order], centres, rtol=0, atol=0.05)
    torch.testing.assert_close(
        found.log_weights.exp()[order], torch.tensor([0.5, 0.25, 0.25], dtype=F64), rtol=0, atol=0.03
    )
    torch.testing.assert_close(found.values.mean().item(), 0.1, rtol=0.05, atol=0)


def test_what_does_not_fit_is_refused():
    for given in (
        {"variances": torch.tensor([-1.0])},
        {"directions": 2.0 * BASIS[:, :1]},
        {"directions": BASIS[:, :2]},
        {"remainder": -0.1},
    ):
        with pytest.raises(InputError):
            PrincipalGaussian(**{"mean": MEAN, "variances": torch.ones(1), "directions": BASIS[:, :1]} | given)
    with pytest.raises(IncompatibleError, match="two-sided"):
        PrincipalGaussian(MEAN, torch.ones(1), BASIS[:, :1], process=processes.Interpolant())
    with pytest.raises(InputError, match="data"):
        fit_gaussian(torch.zeros(1, 3))
    with pytest.raises(InputError, match="rank"):
        fit_gaussian(torch.zeros(4, 3), rank=0)
    with pytest.raises(InputError, match="finite"):
        fit_gaussian(torch.full((4, 3), math.nan))
    with pytest.raises(InputError, match="components"):
        fit_mixture(torch.zeros(4, 3), 5)


def test_there_is_no_flow_from_where_nothing_is_left():
    flat = PrincipalGaussian(MEAN, VARIANCES[:2], BASIS[:, :2], 0.0, processes.VP())
    with pytest.raises(IncompatibleError, match="neither variance nor noise"):
        flat.flow(X, 0.0, 0.5)
    with pytest.raises(IncompatibleError, match="neither variance nor noise"):
        GaussianDenoiser(MEAN, VARIANCES, processes.VP()).flow(X, 0.0, 0.5)
    # Towards the data it collapses, as it must.
    ended = flat.flow(X, 0.9, 0.0) - MEAN
    torch.testing.assert_close(ended @ BASIS[:, 2:], torch.zeros(5, 4, dtype=F64), rtol=0, atol=1e-12)
