"""DualAdam: the update written out, its limits, degrees of homogeneity, states that go on, and what is refused."""

import copy
import math

import pytest
import torch
from torch import nn

import tweed as tw
from tweed.core.random import normal
from tweed.errors import InputError
from tweed.training.optimizers import DualAdam, InvAdam, escape_exponent
from tweed.training.optimizers.dual_adam import inverse_share

F64 = torch.float64
SHAPES = ((3, 4), (5,), (2, 2, 3))


def start(dtype=F64):
    return [nn.Parameter(normal((1, *shape), 1, draw=i, dtype=dtype)[0]) for i, shape in enumerate(SHAPES)]


def gradient(p, step, dtype=F64):
    return p.detach() * 0.3 + normal((1, *p.shape), 7, draw=step, dtype=dtype)[0]


def run(make, steps, params=None, first=0):
    params = params or start()
    optimizer = make(params)
    for step in range(first, first + steps):
        for p in params:
            p.grad = gradient(p, step, p.dtype)
        optimizer.step()
    return params, optimizer


def same(a, b, tolerance=0.0):
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=tolerance)


def written_out(steps, lr=0.01, decay=0.1, rate=0.05, b1=0.9, b2=0.999, eps=1e-8):
    params = [p.detach().clone() for p in start()]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in params]
    for t in range(1, steps + 1):
        a = max(0.0, 1.0 - t * rate)
        for i, p in enumerate(params):
            g, (m, v) = gradient(p, t - 1), moments[i]
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            moments[i] = m, v
            mean, s = m / (1 - b1**t), (v / (1 - b2**t)).sqrt() + eps
            p = p - lr * decay * p
            params[i] = p - lr * ((1 - a) * mean / s + a * mean * s if a >= rate else mean / s)
    return params


@pytest.mark.parametrize("foreach", [True, False, None])
def test_the_update_is_the_published_one(foreach):
    ours, _ = run(lambda p: DualAdam(p, 0.01, weight_decay=0.1, switch_rate=0.05, foreach=foreach), 30)
    same(ours, written_out(30), 1e-13)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_without_the_inverse_it_is_adamw(decay):
    ours, _ = run(lambda p: DualAdam(p, 0.01, weight_decay=decay, mode="adam"), 50)
    theirs, _ = run(lambda p: torch.optim.AdamW(p, 0.01, weight_decay=decay), 50)
    same(ours, theirs, 1e-13)


def test_after_the_switch_it_is_adam_and_before_not():
    params, dual = run(lambda p: DualAdam(p, 0.01, switch_rate=0.125), 8)
    twin = [nn.Parameter(p.detach().clone()) for p in params]
    adam = DualAdam(twin, 0.01, mode="adam")
    adam.load_state_dict(copy.deepcopy(dual.state_dict()))
    for group in adam.param_groups:
        group["mode"] = "adam"
    for step in range(8, 20):
        for p, q in zip(params, twin, strict=True):
            p.grad, q.grad = gradient(p, step), gradient(q, step)
        dual.step()
        adam.step()
    same(params, twin)
    assert [inverse_share(t, 0.125) > 0 for t in (1, 6, 7, 8)] == [True, True, True, False]
    assert inverse_share(1, 0.125) == 0.875


@pytest.mark.parametrize(("mode", "degree"), [("adam", 0), ("inverse", 2)])
def test_degrees_of_homogeneity(mode, degree):
    moved = {}
    for factor in (1.0, 3.0):
        params = start()
        optimizer = DualAdam(params, 0.01, mode=mode, eps=0.0)
        for step in range(4):
            for i, p in enumerate(params):
                p.grad = factor * normal((1, *p.shape), 9, draw=10 * step + i, dtype=F64)[0]
            optimizer.step()
        moved[factor] = [p - q for p, q in zip(params, start(), strict=True)]
    same(moved[3.0], [3.0**degree * d for d in moved[1.0]], 1e-12)


def test_the_first_inverse_step_is_the_gradient_times_its_size():
    params = start()
    for p in params:
        p.grad = gradient(p, 0)
    InvAdam(params, 0.5).step()
    same(params, [p - 0.5 * gradient(p, 0) * (gradient(p, 0).abs() + 1e-8) for p in start()], 1e-14)


def test_a_state_goes_on_where_it_was():
    make = lambda p: DualAdam(p, 0.01, switch_rate=0.04, weight_decay=0.01)  # noqa: E731
    whole, _ = run(make, 30)
    half, optimizer = run(make, 15)

    def resumed(params):
        other = make(params)
        other.load_state_dict(optimizer.state_dict())
        return other

    same(run(resumed, 15, half, first=15)[0], whole)


def test_a_training_run_goes_on_where_it_was(tmp_path):
    model = lambda: tw.NetworkDenoiser(  # noqa: E731
        tw.nets.build({"name": "mlp", "dim": 2, "width": 16, "depth": 1}, 1),
        tw.processes.VP(),
        tw.targets.V(),
        event=(2,),
    )
    data = tw.data.Plane("moons", 200)
    options = {
        "optimizer": lambda p: DualAdam(p, 1e-3, switch_rate=0.1), "batch_size": 16, "progress": False, "device": "cpu",
        "ema": None, "schedule": "constant",
    }  # fmt: skip
    whole = tw.fit(model(), data, steps=12, **options)
    tw.fit(model(), data, steps=6, folder=tmp_path, **options)
    resumed = tw.fit(model(), data, steps=12, folder=tmp_path, **options)
    assert resumed.losses[-6:] == whole.losses[-6:]


def test_complex_parameters_are_pairs_of_real_ones():
    z = nn.Parameter(normal((4,), 1, dtype=torch.complex128))
    pair = nn.Parameter(torch.view_as_real(z.detach().clone()))
    for p in (z, pair):
        g = normal((4,), 2, dtype=torch.complex128)
        p.grad = g if p is z else torch.view_as_real(g)
        DualAdam([p], 0.1, weight_decay=0.1).step()
    torch.testing.assert_close(torch.view_as_real(z.detach()), pair.detach())


def test_maximising_is_minimising_the_opposite():
    up, _ = run(lambda p: DualAdam(p, 0.01, maximize=True), 1)
    params = start()
    for p in params:
        p.grad = -gradient(p, 0)
    DualAdam(params, 0.01).step()
    same(up, params)


def test_closures_groups_and_parameters_without_a_gradient():
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = DualAdam([{"params": [a], "lr": 0.1}, {"params": [b], "mode": "inverse"}], lr=0.2)

    def closure():
        optimizer.zero_grad()
        loss = a.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert (a < 1.0).all()
    assert torch.equal(b, torch.ones(2))
    assert b not in optimizer.state
    assert optimizer.param_groups[1]["lr"] == 0.2


def test_it_converges_where_the_inverse_alone_is_slow_and_blows_up_where_documented():
    def ended(mode, lr, curvature=(1.0, 10.0), steps=3000):
        h = torch.tensor(curvature, dtype=F64)
        x = nn.Parameter(torch.ones(2, dtype=F64))
        optimizer = DualAdam([x], lr, switch_rate=1e-3, mode=mode)
        for _ in range(steps):
            x.grad = h * x.detach()
            optimizer.step()
        return 0.5 * (h * x.detach() ** 2).sum().item()

    dual = ended("dual", 3e-3)
    assert dual < 1e-20
    assert ended("inverse", 3e-3) > 1e3 * dual
    assert not ended("inverse", 1e-2, (1.0, 100.0), 200) < 1.0


def test_escape_exponents():
    for kind, power in (("adam", -0.5), ("sgd", -1.0), ("inverse", -1.5)):
        ratio = escape_exponent(kind, 100.0, 8, 0.1, 2.0) / escape_exponent(kind, 1.0, 8, 0.1, 2.0)
        assert math.log10(ratio) / 2 == pytest.approx(power)
    assert escape_exponent("sgd", 4.0, 8, 0.1, 2.0) == pytest.approx(80.0)
    with pytest.raises(InputError, match="kind"):
        escape_exponent("lion", 1.0, 1, 1.0, 1.0)
    with pytest.raises(InputError, match="curvature"):
        escape_exponent("sgd", 0.0, 1, 1.0, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr"),
        ({"lr": torch.tensor(0.1)}, "lr"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"eps": -1.0}, "eps"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"switch_rate": 0.0}, "switch_rate"),
        ({"mode": "both"}, "mode"),
    ],
)
def test_hyperparameters_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        DualAdam(start(), **options)
    with pytest.raises(InputError, match=message):
        DualAdam([{"params": start(), **options}])


def test_sparse_gradients_are_refused():
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        DualAdam(table.parameters()).step()
