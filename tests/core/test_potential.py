"""Denoisers by a potential: the exact score from an exact log density, in training and in sampling."""

import pytest
import torch
from torch import nn

import tweed as tw
from tweed import processes, random, targets
from tweed.errors import IncompatibleError, InputError
from tweed.training import DenoisingLoss, fit

F64 = torch.float64
VP = processes.VP()
MIXTURE = tw.MixtureDenoiser(random.normal((3, 2), 1, dtype=F64), 0.2, None, VP)
X = random.normal((5, 2), 2, dtype=F64)


def exact():
    return tw.PotentialDenoiser(lambda x, t: MIXTURE.log_prob(x, t.double()), VP, event=(2,))


@pytest.mark.parametrize("t", [0.3, torch.linspace(0.1, 0.9, 5, dtype=F64)])
def test_the_gradient_of_an_exact_log_density_is_the_exact_score(t):
    torch.testing.assert_close(exact()(X, t).score, MIXTURE(X, t).score, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(exact()(X, t).x0, MIXTURE(X, t).x0, rtol=1e-5, atol=1e-5)


def test_sampling_follows_it():
    x = VP.prior((5, 2), 3, dtype=F64)
    options = {"solver": tw.solvers.DPMSolver(2), "steps": 20}
    torch.testing.assert_close(tw.sample(exact(), x, **options), tw.sample(MIXTURE, x, **options), rtol=1e-4, atol=1e-4)


def network(out, seed=0):
    options = {
        "name": "mlp",
        "dim": 2,
        "out_dim": out,
        "width": 16,
        "depth": 1,
        "activation": "tanh",
        "norm": False,
        "zero_init": False,
    }
    return tw.nets.build(options, seed)


@pytest.mark.parametrize(("kind", "out"), [("log_density", 1), ("distance", 2)])
def test_its_jacobian_is_symmetric(kind, out):
    model = tw.PotentialDenoiser(network(out), VP, kind=kind, event=(2,))
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x[None], 0.4).score[0], X[0].float())
    torch.testing.assert_close(jacobian, jacobian.T, rtol=1e-4, atol=1e-5)
    assert jacobian.abs().max().item() > 1e-3


def test_the_distance_form_is_the_energy_that_it_states():
    inner = network(2)
    model = tw.PotentialDenoiser(inner, VP, kind="distance", event=(2,))
    t = torch.full((5,), 0.4)
    level, x = VP.level(0.4), X.float()
    energy = -0.5 * ((x - level.alpha * inner(x, t)) / level.sigma).square().sum(1)
    torch.testing.assert_close(model.log_density(x, t), energy, rtol=1e-4, atol=1e-5)


def test_the_base_is_a_normalised_gaussian():
    model = tw.PotentialDenoiser(lambda x, t: torch.zeros(len(x)), VP, data_std=0.7, event=(2,))
    gaussian = tw.GaussianDenoiser(torch.zeros(2), 0.49, VP)
    torch.testing.assert_close(model.log_density(X, 0.5), gaussian.log_prob(X, 0.5), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model(X, 0.5).score, gaussian(X, 0.5).score, rtol=1e-6, atol=1e-6)


def test_it_trains_with_any_objective_and_keeps_the_graph():
    model = tw.PotentialDenoiser(network(1), VP, data_std=1.0, event=(2,))
    data = MIXTURE.sample(512, 1).float()
    objective = DenoisingLoss(target=targets.Noise())

    def loss():
        return objective(model, {"x": data}, seed=9).mean().item()

    before = loss()
    fit(model, data, steps=80, objective=objective, batch_size=128, lr=5e-3, ema=None, conditions=(), progress=False)
    assert loss() < 0.97 * before


def test_gradients_reach_the_state_where_they_are_wanted():
    model = tw.PotentialDenoiser(lambda x, t: -(x**4).sum(1), VP, event=(2,))
    x = X.clone().requires_grad_()
    (second,) = torch.autograd.grad(model(x, 0.3).score.sum(), x)
    torch.testing.assert_close(second, -12.0 * X**2)


def test_empty_batches_and_bad_input():
    assert exact()(X[:0], 0.3).score.shape == (0, 2)
    with pytest.raises(IncompatibleError, match="two-sided"):
        tw.PotentialDenoiser(nn.Identity(), processes.Interpolant())
    with pytest.raises(InputError, match="kind"):
        tw.PotentialDenoiser(nn.Identity(), VP, kind="other")
    with pytest.raises(InputError, match="data_std"):
        tw.PotentialDenoiser(nn.Identity(), VP, data_std=-1.0)
    with pytest.raises(InputError, match="one number a sample"):
        tw.PotentialDenoiser(lambda x, t: x, VP)(X, 0.3)
    with pytest.raises(InputError, match="shape"):
        tw.PotentialDenoiser(lambda x, t: x[:, :1], VP, kind="distance")(X, 0.3)
