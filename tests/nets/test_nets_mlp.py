import pytest
import torch

from tweed import nets
from tweed.core.random import normal, uniform
from tweed.errors import InputError


def test_it_learns_the_score_of_a_gaussian_at_every_time():
    # E[eps | x_t] = sin(a t) x for x_0, eps ~ N(0, 1) on the circle alpha = cos(a t), sigma = sin(a t), a = pi / 2.
    net = nets.build({"name": "mlp", "dim": 2, "width": 32, "depth": 2}, seed=0)
    optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 400)
    for step in range(400):
        x0, eps = normal((512, 2), 1, draw=2 * step), normal((512, 2), 1, draw=2 * step + 1)
        t = uniform((512, 1), 2, draw=step)[:, 0]
        angle = (torch.pi / 2 * t)[:, None]
        loss = (net(angle.cos() * x0 + angle.sin() * eps, t) - eps).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        scheduler.step()
    x, t = normal((2000, 2), 9), uniform((2000, 1), 8)[:, 0]
    exact = (torch.pi / 2 * t).sin()[:, None] * x
    with torch.no_grad():
        error = (net(x, t) - exact).square().mean()
    assert error < 0.03 * exact.square().mean()


@pytest.mark.parametrize("activation", ["silu", "gelu", "relu", "tanh", "softplus"])
@pytest.mark.parametrize("norm", [True, False])
def test_options(activation, norm):
    config = {"name": "mlp", "dim": 4, "out_dim": 3, "activation": activation, "norm": norm, "zero_init": False}
    net = nets.build({**config, "width": 16, "depth": 1, "dropout": 0.5, "time_features": "gaussian"})
    x, t = normal((5, 2, 2), 0), uniform((5, 1), 1)[:, 0]
    assert net(x, t).shape == (5, 3)
    assert torch.equal(net.eval()(x, t), net(x, t))
    assert torch.equal(net(x, t), net(x.flatten(1), t))


def test_tokens_are_refused():
    with pytest.raises(InputError, match="token"):
        nets.build({"name": "mlp", "dim": 2})(torch.zeros(1, 2), torch.zeros(1), tokens=torch.zeros(1, 2, 3))
