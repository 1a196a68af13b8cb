"""Data on a subspace: the split denoiser against the same distribution in the whole space."""

import pytest
import torch

import tweed as tw
from tweed.core import random
from tweed.core.exact import EmpiricalDenoiser, SubspaceDenoiser
from tweed.errors import IncompatibleError, InputError

F64 = torch.float64
BASIS = torch.linalg.qr(random.normal((6, 2), 1, dtype=F64)).Q
MEANS = random.normal((3, 2), 2, dtype=F64)
ROOT = random.normal((3, 2, 2), 3, dtype=F64)
COVARIANCES = ROOT @ ROOT.mT + 0.1 * torch.eye(2, dtype=F64)
LABELS = torch.tensor([0, 1, 1])


def pair(process):
    latent = tw.MixtureDenoiser(MEANS, COVARIANCES, None, process, LABELS)
    whole = tw.MixtureDenoiser(MEANS @ BASIS.T, BASIS @ COVARIANCES @ BASIS.T, None, process, LABELS)
    return SubspaceDenoiser(latent, BASIS), whole


@pytest.mark.parametrize("process", [tw.processes.VP(), tw.processes.VE(0.01, 20.0), tw.processes.RectifiedFlow()])
@pytest.mark.parametrize("t", [0.1, 0.7, torch.tensor([0.1, 0.4, 0.6, 0.9])])
def test_it_is_the_mixture_in_the_whole_space(process, t):
    split, whole = pair(process)
    x = random.normal((4, 6), 4, dtype=F64)
    torch.testing.assert_close(split(x, t).score, whole(x, t).score, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(split.log_prob(x, t), whole.log_prob(x, t), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(split.posterior_covariance(x, t), whole.posterior_covariance(x, t), rtol=1e-7, atol=1e-9)
    label = torch.tensor([0, 1, 0, 1])
    torch.testing.assert_close(split(x, t, label=label).x0, whole(x, t, label=label).x0, rtol=1e-8, atol=1e-8)


def test_the_score_is_the_gradient_of_the_log_density():
    split, _ = pair(tw.processes.VP())
    x = random.normal((4, 6), 4, dtype=F64).requires_grad_()
    (slope,) = torch.autograd.grad(split.log_prob(x, 0.2).sum(), x)
    torch.testing.assert_close(slope, split(x, 0.2).score, rtol=1e-6, atol=1e-8)


def test_samples_and_estimates_lie_in_the_span_and_any_latent_does():
    split, _ = pair(tw.processes.VP())
    projector = BASIS @ BASIS.T
    made = tw.sample(split, 32, steps=10)
    assert made.dtype is torch.float32
    torch.testing.assert_close(made.double() @ projector, made.double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(split.sample(8, 1) @ projector, split.sample(8, 1))
    points = random.normal((20, 2), 5, dtype=F64)
    by_points = SubspaceDenoiser(EmpiricalDenoiser(points, 0.1), BASIS)
    x = random.normal((1, 6), 4, dtype=F64)  # a batch of one
    # Points smoothed on the subspace are a mixture of equal spheres in it.
    spheres = tw.MixtureDenoiser(points @ BASIS.T, (0.01 * projector).expand(20, 6, 6).clone())
    torch.testing.assert_close(by_points(x, 0.3).x0, spheres(x, 0.3).x0, rtol=1e-7, atol=1e-9)
    assert split(x[:0], 0.3).x0.shape == (0, 6)


def test_errors_name_the_argument():
    latent = tw.MixtureDenoiser(MEANS, COVARIANCES)
    with pytest.raises(InputError, match="basis: shape"):
        SubspaceDenoiser(latent, BASIS[:, :1])
    with pytest.raises(InputError, match="orthonormal"):
        SubspaceDenoiser(latent, 2.0 * BASIS)
    with pytest.raises(InputError, match=r"^x: shape"):
        SubspaceDenoiser(latent, BASIS)(torch.zeros(2, 5), 0.5)
    with pytest.raises(IncompatibleError, match="endpoint"):
        SubspaceDenoiser(tw.GaussianDenoiser(torch.zeros(2), 1.0, tw.processes.MeanReverting()), BASIS)
