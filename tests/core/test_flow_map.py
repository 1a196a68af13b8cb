"""Flow maps: their identities on closed forms, the two ways a network stands for one, what they refuse."""

import pytest
import torch
from process_cases import ENDPOINT, GAUSSIAN

import tweed as tw
from tweed import processes
from tweed.core import random
from tweed.core.flow_map import (
    ConsistencyModel,
    GaussianFlow,
    MeanFlow,
    TwoTimes,
    batch_time,
    eulerian_residual,
    lagrangian_residual,
    mean_flow_residual,
    semigroup_residual,
)
from tweed.core.time import left
from tweed.errors import IncompatibleError, InputError
from tweed.nets import build

F64 = torch.float64
FEW = {name: GAUSSIAN[name] for name in ("VP", "SubVP", "Cosine", "VE", "EDM", "RectifiedFlow", "one-sided-vp")}


def over(cases):
    return pytest.mark.parametrize("process", cases.values(), ids=cases.keys())


def close(actual, expected, atol=1e-10, rtol=1e-10):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)


def gaussian(process, kind="full"):
    factor = random.normal((3, 3), 5, dtype=F64)
    covariance = {
        "full": factor @ factor.T + 0.1 * torch.eye(3),
        "diagonal": torch.tensor([0.3, 1.0, 2.0]),
        "ball": 0.4,
    }
    return tw.GaussianDenoiser(torch.tensor([1.0, -1.0, 0.5]), covariance[kind], process)


def setting(process, kind="full", n=9):
    model = gaussian(process, kind)
    t = torch.linspace(0.25, 0.97, n, dtype=F64) + 1e-3
    x = process.perturb(model.sample(n, 1), t, random.normal((n, 3), 3, dtype=F64))
    return model, x, t, 0.6 * t, 0.2 * t


@pytest.mark.parametrize("kind", ["full", "diagonal", "ball"])
@over(FEW)
def test_gaussian_flow_satisfies_every_identity(process, kind):
    model, x, t, s, r = setting(process, kind)
    flow = GaussianFlow(model)

    def velocity(x, t):
        return model(x, t).velocity

    scale = velocity(x, t).abs().max().item()
    close(flow(x, t, t), x)
    close(flow(x, 0.7, 0.2), model.flow(x, 0.7, 0.2))
    residuals = (
        semigroup_residual(flow, x, t, s, r),
        eulerian_residual(flow, velocity, x, t, s),
        lagrangian_residual(flow, velocity, x, t, s),
        mean_flow_residual(lambda x, t, s: (x - flow(x, t, s)) / left(t - s, x), velocity, x, t, s),
    )
    for residual in residuals:
        assert residual.shape == x.shape
        assert residual.abs().max().item() < 1e-12 * max(scale, 1.0)
    close(flow.velocity(x, t), velocity(x, t), atol=1e-12 * scale)


def test_residuals_are_not_zero_for_another_field():
    # Each identity is broken by the flow of a Gaussian with another variance.
    model, x, t, s, r = setting(processes.VP())
    wrong = GaussianFlow(gaussian(processes.VP(), "ball"))

    def velocity(x, t):
        return model(x, t).velocity

    assert eulerian_residual(wrong, velocity, x, t, s).abs().max() > 0.1
    assert lagrangian_residual(wrong, velocity, x, t, s).abs().max() > 0.1
    average = MeanFlow(lambda x, t, s: (x - wrong(x, t, s)) / left(t - s, x)).average_velocity
    assert mean_flow_residual(average, velocity, x, t, s).abs().max() > 0.1
    halved = MeanFlow(lambda x, t, s: 0.5 * velocity(x, t))
    assert semigroup_residual(halved, x, t, s, r).abs().max() > 1e-3


@over({name: ENDPOINT[name] for name in ("MeanReverting", "OUVE", "Residual")})
def test_gaussian_flow_around_an_endpoint(process):
    model = gaussian(process)
    y = random.normal((5, 3), 8, dtype=F64)
    x = process.perturb(model.sample(5, 1), 0.8, random.normal((5, 3), 3, dtype=F64), y)
    flow = GaussianFlow(model)
    close(flow(x, 0.8, 0.3, y=y), model.flow(x, 0.8, 0.3, y))
    close(flow.velocity(x, 0.8, y=y), model(x, 0.8, y=y).velocity, atol=1e-8)


@over({name: FEW[name] for name in ("VP", "EDM", "RectifiedFlow")})
def test_a_solver_arrives_where_the_flow_map_does(process):
    model, x, *_ = setting(process)
    times = torch.linspace(0.6, 0.3, 101, dtype=F64)
    ends = tw.sample(model, x, solver=tw.solvers.RungeKutta("rk4"), times=times)
    close(ends, GaussianFlow(model)(x, 0.6, 0.3), atol=1e-7, rtol=1e-7)


# The average velocity


def exact_mean_flow(model):
    flow = GaussianFlow(model)

    def average(x, t, s):
        span = left(t - s, x)
        inside = (x - flow(x, t, s)) / torch.where(span == 0.0, 1.0, span)
        return torch.where(span == 0.0, model(x, t).velocity, inside)

    return MeanFlow(average, model.process, event=(3,))


@over(FEW)
def test_mean_flow_with_the_exact_average_velocity_is_the_flow(process):
    model, x, t, s, _ = setting(process)
    flow = exact_mean_flow(model)
    close(flow(x, t, s), GaussianFlow(model)(x, t, s), atol=1e-9, rtol=1e-9)
    close(flow(x, t, t), x)
    close(flow.velocity(x, t), model(x, t).velocity)
    estimate = flow.denoiser()(x, t)
    close(estimate.x0, model(x, t).x0, atol=1e-8, rtol=1e-8)


def test_a_mean_flow_is_a_denoiser_for_any_solver():
    model, x, *_ = setting(processes.VP())
    flow = exact_mean_flow(model)
    times = torch.linspace(0.9, 0.1, 21, dtype=F64)
    for solver in (tw.solvers.DPMSolver(), tw.solvers.Heun()):
        close(
            tw.sample(flow.denoiser(), x, solver=solver, times=times), tw.sample(model, x, solver=solver, times=times)
        )


def test_mean_flow_on_a_two_sided_interpolant_has_a_velocity():
    flow = MeanFlow(lambda x, t, s: x, processes.Interpolant())
    x = random.normal((4, 2), 0)
    close(flow.denoiser()(x, 0.5).velocity, x)
    with pytest.raises(IncompatibleError):
        flow.denoiser()(x, 0.5).x0


def two_times(harmonics=2, vector=0):
    net = {"name": "mlp", "dim": 2, "width": 16, "depth": 1, "time_scale": 10.0, "zero_init": False}
    return TwoTimes(build({**net, "vector_dim": TwoTimes.width(harmonics) + vector}, 1), harmonics)


def test_two_times_tells_the_network_of_both():
    network = two_times()
    x = random.normal((6, 2), 0)
    t, s = torch.full((6,), 0.8), torch.linspace(0.0, 0.8, 6)
    out = network(x, t, s)
    assert (out[1:] - network(x, t, torch.zeros(6))[1:]).abs().amax(1).min() > 1e-4
    alone = torch.stack([network(x[i : i + 1], t[:1], s[i : i + 1])[0] for i in range(6)])
    close(out, alone, atol=1e-6, rtol=1e-5)


def test_two_times_keeps_the_callers_vector_and_refuses_drop():
    network = two_times(1, vector=3)
    x, t = random.normal((4, 2), 0), torch.full((4,), 0.5)
    first = network(x, t, 0.5 * t, vector=torch.zeros(4, 3))
    assert (network(x, t, 0.5 * t, vector=torch.ones(4, 3)) - first).abs().max() > 1e-4
    with pytest.raises(InputError, match="drop"):
        network(x, t, t, vector=torch.zeros(4, 3), drop=torch.ones(4, dtype=torch.bool))


def test_mean_flow_keeps_states_in_their_type_and_runs_the_network_in_its_own():
    flow = MeanFlow(two_times().double(), event=(2,))
    x = random.normal((3, 2), 0)
    assert flow(x, 1.0, 0.0).dtype == torch.float32
    assert flow(x.double(), 1.0, 0.0).dtype == F64
    assert flow(x.bfloat16(), 1.0, 0.0).dtype == torch.float32
    assert flow(x[:0], 1.0, 0.0).shape == (0, 2)
    close(flow(x, torch.ones(3), torch.zeros(3)), flow(x, 1.0, 0.0))


def test_a_network_of_the_wrong_shape_is_named():
    with pytest.raises(InputError, match="network"):
        MeanFlow(lambda x, t, s: x[:, :1])(torch.zeros(2, 3), 1.0, 0.0)


# Consistency models


def fixed(x, t, **cond):
    return torch.tanh(x + t.to(x)[:, None] + 0.3)


@over(FEW)
def test_the_boundary_condition_holds_whatever_the_network(process):
    if process.level(0.01).log_snr > 20.0:
        pytest.skip("no noise there")
    model = ConsistencyModel(fixed, process, data_std=0.7, t_min=0.01)
    x = random.normal((5, 3), 1, dtype=F64)
    close(model(x, 0.01, 0.01), x)
    close(model(x, 0.01, 0.0), x / process.alpha(0.01))


def test_the_preconditioning_is_that_of_the_paper():
    process, d = processes.EDM(), 0.5
    model = ConsistencyModel(fixed, process)
    sigma = torch.tensor([0.002, 0.1, 1.0, 80.0], dtype=F64)
    x = sigma[:, None] * random.normal((4, 2), 2, dtype=F64)
    skip = d**2 / ((sigma - 0.002) ** 2 + d**2)
    out = d * (sigma - 0.002) / (sigma**2 + d**2).sqrt()
    inner = fixed(x / (sigma**2 + d**2).sqrt()[:, None], (sigma.log() / 4))
    close(model(x, sigma / 80.0), skip[:, None] * x + out[:, None] * inner)


def test_one_model_on_two_processes_at_the_same_noise_level():
    edm, vp = processes.EDM(), processes.VP()
    time = 0.4
    same = edm.time(vp.log_snr(time)).item()
    low = edm.time(vp.log_snr(0.01)).item()
    x = random.normal((5, 2), 3, dtype=F64)
    there = ConsistencyModel(fixed, edm, t_min=low)(x, same)
    close(ConsistencyModel(fixed, vp, t_min=0.01)(x * vp.alpha(time), time), there)


@over({name: GAUSSIAN[name] for name in ("Cosine", "RectifiedFlow", "FromBetas-terminal")})
def test_pure_noise_is_no_exception(process):
    model = ConsistencyModel(fixed, process, data_std=0.5)
    assert model.time == "time"
    x = random.normal((5, 2), 3)
    close(model(x, 1.0), 0.5 * fixed(x, torch.ones(5)), atol=1e-6, rtol=1e-6)
    with pytest.raises(IncompatibleError, match="c_noise"):
        ConsistencyModel(fixed, process, time="c_noise")


def test_an_endpoint_only_shifts():
    process = processes.MeanReverting()
    model = ConsistencyModel(lambda x, t, y: fixed(x, t), process, t_min=0.05)
    x, y = random.normal((4, 2), 3, dtype=F64), random.normal((4, 2), 4, dtype=F64)
    zero = torch.zeros_like(y)
    moved = x + process.beta(0.5) * y
    close(model(moved, 0.5, y=y), model(x, 0.5, y=zero))
    close(model(moved, 0.5, 0.05, y=y), model(x, 0.5, 0.05, y=zero) + process.beta(0.05) * y)
    with pytest.raises(InputError, match="y"):
        ConsistencyModel(fixed, process)(x, 0.5)


def test_what_a_consistency_model_refuses():
    model = ConsistencyModel(fixed, processes.EDM())
    x = torch.zeros(2, 2)
    for s in (0.5, torch.tensor(0.0)):
        with pytest.raises(IncompatibleError, match="t_min"):
            model(x, 1.0, s)
    with pytest.raises(IncompatibleError, match="velocity"):
        model.velocity(x, 0.5)
    with pytest.raises(IncompatibleError, match="two-sided"):
        ConsistencyModel(fixed, processes.Interpolant())
    for options in ({"data_std": 0.0}, {"t_min": 0.0}, {"t_min": 1.0}, {"time": "log"}):
        with pytest.raises(InputError):
            ConsistencyModel(fixed, processes.EDM(), **options)


def test_times_of_a_wrong_shape_are_named():
    with pytest.raises(InputError, match=r"s: shape \(3,\)"):
        batch_time(torch.zeros(3), torch.zeros(2, 2), "s")
    with pytest.raises(InputError, match="expected a time in"):
        batch_time(1.5, torch.zeros(2, 2))
