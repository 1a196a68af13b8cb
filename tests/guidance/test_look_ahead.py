"""Look-ahead guidance: the exact posterior of a Gaussian, subspaces kept, and which way it pulls."""

import pytest
import torch

import tweed as tw
from tweed.core import random
from tweed.core.exact import MixturePosterior, SubspaceDenoiser
from tweed.errors import IncompatibleError, InputError
from tweed.guidance import ClassifierGuidance, LookAheadGuidance

F64 = torch.float64
G = random.normal((1, 5), 1, dtype=F64)[0]
ROOT = random.normal((5, 5), 2, dtype=F64)
PROCESSES = [tw.processes.VP(), tw.processes.SubVP(), tw.processes.VE(0.01, 20.0), tw.processes.RectifiedFlow()]


def gaussian(process=None):
    return tw.GaussianDenoiser(torch.arange(5.0), ROOT @ ROOT.T, process)


def states(n=4):
    return 2.0 * random.normal((n, 5), 3, dtype=F64)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("t", [0.02, 0.5, 0.95, torch.linspace(0.1, 0.9, 4, dtype=F64)])
def test_a_gaussian_becomes_its_posterior(process, t):
    prior, x, value = gaussian(process), states(), torch.tensor([0.0, 1.0, -2.0, 7.0], dtype=F64)
    exact = MixturePosterior(prior, G[None], 0.3)(x, t, measurement=value[:, None])
    guided = LookAheadGuidance(prior, G, value, noise=0.3)(x, t)
    for name in ("x0", "score", "eps", "velocity"):
        torch.testing.assert_close(getattr(guided, name), getattr(exact, name), rtol=1e-7, atol=1e-7)


def test_the_score_moves_by_the_gradient_of_the_squared_residual():
    # Of any denoiser, here a mixture, whatever beta is; and through another target.
    prior = tw.MixtureDenoiser(random.normal((3, 5), 5, dtype=F64), 0.2)
    x, t = states(), torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=F64)

    def beta(time):
        return 0.3 + time

    state = x.clone().requires_grad_()
    residual = 1.5 - prior(state, t).x0 @ G
    (slope,) = torch.autograd.grad((-beta(t) * residual.square()).sum(), state)
    noise = tw.FunctionDenoiser(lambda x, t: prior(x, t).eps, prior.process, tw.targets.Noise())
    for denoiser in (prior, noise):
        guided = LookAheadGuidance(denoiser, G, 1.5, beta=beta)(x, t)
        torch.testing.assert_close(guided.score - prior(x, t).score, slope, rtol=1e-7, atol=1e-9)
    none = LookAheadGuidance(prior, G, 1.5, beta=0.0)(x, t)
    torch.testing.assert_close(none.x0, prior(x, t).x0)


def test_it_stays_on_the_subspace_that_naive_guidance_leaves():
    basis = torch.linalg.qr(random.normal((5, 2), 7, dtype=F64)).Q
    data = SubspaceDenoiser(tw.MixtureDenoiser(random.normal((3, 2), 8, dtype=F64), 0.1), basis)
    x = states()
    kept = LookAheadGuidance(data, G, 5.0, noise=0.1)(x, 0.3).x0
    left = ClassifierGuidance(data, lambda x, t: x @ G, 1.0, given=())(x, 0.3).x0
    projector = basis @ basis.T
    torch.testing.assert_close(kept @ projector, kept, atol=1e-10, rtol=0)
    assert (left - left @ projector).norm(dim=1).min() > 0.1
    network = tw.nets.build({"name": "subspace", "dim": 5, "latent_dim": 2, "zero_init": False, "width": 16}, 1)
    learned = tw.NetworkDenoiser(network, tw.processes.VP(), tw.targets.Data(), event=(5,))
    made = LookAheadGuidance(learned, G, 5.0, noise=0.1)(x.float(), 0.3).x0
    torch.testing.assert_close(made @ network.basis @ network.basis.T, made, atol=1e-5, rtol=0)
    assert (made - learned(x.float(), 0.3).x0).abs().max() > 1e-4


def test_it_pulls_towards_the_value_from_both_sides():
    prior, x = gaussian(), states()
    along = prior(x, 0.5).x0 @ G
    for shift in (-2.0, 0.0, 2.0):
        moved = LookAheadGuidance(prior, G, along + shift, noise=0.5)(x, 0.5).x0 @ G - along
        assert (moved * shift >= 0.0).all()
        assert (moved.abs() <= abs(shift) + 1e-12).all()  # never beyond the value
        assert (moved.abs() > 0.5 * abs(shift) - 1e-12).all()


def test_a_batch_of_one_an_empty_one_and_a_direction_each():
    prior, x = gaussian(), states()
    directions = torch.stack((G, -G, 2.0 * G, G.flip(0)))
    together = LookAheadGuidance(prior, directions, 1.0, noise=0.5)(x, 0.5).x0
    for i in range(4):
        alone = LookAheadGuidance(prior, directions[i], 1.0, noise=0.5)(x[i : i + 1], 0.5).x0
        torch.testing.assert_close(alone, together[i : i + 1])
    assert LookAheadGuidance(prior, G, 1.0, noise=0.5)(x[:0], 0.5).x0.shape == (0, 5)


def test_no_graph_under_no_grad_and_a_graph_where_asked_for():
    guided, x = LookAheadGuidance(gaussian(), G, 1.0, noise=0.5), states()
    with torch.no_grad():
        made = guided(x.float(), 0.5)
    assert made.x0.dtype is torch.float32
    assert not made.x0.requires_grad
    assert torch.autograd.gradcheck(lambda s: guided(s, 0.5).x0, (x[:2].clone().requires_grad_(),))


def test_where_alpha_vanishes_nothing_is_guided():
    prior, x = gaussian(tw.processes.RectifiedFlow()), states()
    torch.testing.assert_close(LookAheadGuidance(prior, G, 9.0, noise=0.5)(x, 1.0).x0, prior(x, 1.0).x0)


def test_errors_name_the_argument():
    prior = gaussian()
    with pytest.raises(InputError, match=r"^noise"):
        LookAheadGuidance(prior, G, 1.0)
    with pytest.raises(InputError, match=r"^direction"):
        LookAheadGuidance(prior, G[:4], 1.0, noise=0.1)
    with pytest.raises(InputError, match=r"^value"):
        LookAheadGuidance(prior, G, torch.zeros(3), noise=0.1)(states(), 0.5)
    with pytest.raises(IncompatibleError, match=r"^t: "):
        LookAheadGuidance(prior, G, 1.0, noise=0.1)(states(), torch.full((4, 5), 0.5))
    two_sided = tw.FunctionDenoiser(lambda x, t: x, tw.processes.Interpolant())
    with pytest.raises(IncompatibleError, match="two-sided"):
        LookAheadGuidance(two_sided, G, 1.0, noise=0.1)
