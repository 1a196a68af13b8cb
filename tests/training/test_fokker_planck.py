"""The Fokker-Planck residual: zero for true densities, of the right sign, and lowered by training on it."""

import pytest
import torch

import tweed as tw
from tweed import processes, random
from tweed.errors import IncompatibleError, InputError
from tweed.training import FokkerPlanck, fit, log_fp_residual

F64 = torch.float64
X = random.normal((16, 3), 1, dtype=F64)
T = torch.linspace(0.06, 0.94, 16, dtype=F64)
PROCESSES = [processes.VP(), processes.VE(), processes.EDM(0.01, 20.0), processes.SubVP(), processes.RectifiedFlow()]


def mixture(process):
    return tw.MixtureDenoiser(random.normal((4, 3), 2, dtype=F64), torch.tensor([0.3, 0.1, 0.2, 0.4]), None, process)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_it_is_zero_for_a_density_that_evolves_by_the_process(process):
    exact = log_fp_residual(mixture(process).log_prob, process, X, T, scaled=True)
    assert exact.abs().max().item() < 1e-8


def test_constants_do_not_matter_and_a_drift_in_time_adds_its_rate():
    process = processes.VP()
    phi = mixture(process).log_prob
    shifted = log_fp_residual(lambda x, t: phi(x, t) + 5.0, process, X, T)
    torch.testing.assert_close(shifted, torch.zeros(16, dtype=F64), rtol=0, atol=1e-8)
    drifting = log_fp_residual(lambda x, t: phi(x, t) + 2.0 * t, process, X, T)
    torch.testing.assert_close(drifting, torch.full((16,), 2.0, dtype=F64), rtol=0, atol=1e-8)


def test_a_wrong_density_has_the_residual_of_its_formula():
    # phi = - c |x|^2 / 2 under VP, f = - b / 2, g^2 = b: R = d f - c f |x|^2 - (b / 2) (c^2 |x|^2 - c d).
    process, c = processes.VP(), 1.7
    b = process.diffusion(T) ** 2
    square = X.square().sum(1)
    expected = -1.5 * b + 0.5 * b * c * square - 0.5 * b * (c**2 * square - 3 * c)
    found = log_fp_residual(lambda x, t: -0.5 * c * x.square().sum(1) + 0.0 * t, process, X, T)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_it_does_not_change_under_a_rotation():
    process = processes.VP()
    turn = torch.linalg.qr(random.normal((3, 3), 5, dtype=F64))[0]

    def phi(x, t):
        return (x**3).sum(1) + t * x[:, 0]

    turned = log_fp_residual(lambda x, t: phi(x @ turn, t), process, X @ turn.T, T)
    torch.testing.assert_close(turned, log_fp_residual(phi, process, X, T), rtol=1e-9, atol=1e-9)


def test_random_probes_estimate_the_trace_without_bias():
    process = processes.VP()

    def phi(x, t):
        return (x[:, 0] * x[:, 1] ** 2 + x[:, 2] * x[:, 0] ** 2) * (1.0 + t)

    exact = log_fp_residual(phi, process, X, T)
    probes = torch.stack([log_fp_residual(phi, process, X, T, "hutchinson", seed=s, probes=4) for s in range(200)])
    error = probes.std(0) / 200**0.5
    assert ((probes.mean(0) - exact).abs() < 4.5 * error + 1e-12).all()
    assert error.max().item() > 0


def network(seed=0):
    return tw.nets.build(
        {"name": "mlp", "dim": 1, "out_dim": 1, "width": 24, "depth": 1, "activation": "tanh", "norm": False}, seed
    )


def test_training_on_it_lowers_it_and_weight_zero_is_the_base():
    process = processes.VP()
    data = tw.MixtureDenoiser(torch.tensor([[-1.0], [1.0]]), 0.05, None, process).sample(2000, 1).float()
    t = random.uniform((500, 1), 3, dtype=F64)[:, 0] * 0.9 + 0.05
    x = process.perturb(data[:500], t, random.normal((500, 1), 4)).float()
    residuals = {}
    for weight in (0.0, 1.0):
        model = tw.PotentialDenoiser(network(), process, data_std=1.0, event=(1,))
        objective = FokkerPlanck(weight=weight)
        if weight == 0.0:
            plain = objective.base(model, {"x": data[:64]}, seed=5)
            torch.testing.assert_close(objective(model, {"x": data[:64]}, seed=5), plain)
        fit(model, data, steps=120, objective=objective, lr=3e-3, ema=None, conditions=(), progress=False)
        residuals[weight] = log_fp_residual(model.log_density, process, x, t, scaled=True).square().mean().item()
    assert residuals[1.0] < 0.3 * residuals[0.0]


def test_the_weight_rises_and_points_lie_where_they_are_said_to():
    process = processes.VP()
    model = tw.PotentialDenoiser(network(), process, data_std=1.0, event=(1,))
    batch = {"x": torch.zeros(400, 1)}
    objective = FokkerPlanck(weight=2.0, ramp=10, share=0.5, box=40.0)
    early, late = (
        objective(model, objective.prepare(process, batch, seed=1, step=0) | {}, seed=1, step=s) for s in (0, 30)
    )
    base = objective.base(
        model, {k: v for k, v in objective.prepare(process, batch, seed=1, step=0).items() if k in ("x", "t", "noise")}
    )
    torch.testing.assert_close((late - base), 10.0 * (early - base), rtol=1e-3, atol=1e-3)
    place = objective.prepare(process, batch, seed=1, step=0)["place"]
    assert 0.35 < (place.abs() > 5.0).double().mean().item() < 0.55
    assert bool((place.abs() <= 40.0).all())


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_a_slice_of_a_prepared_batch_has_its_losses_in_the_whole(trace):
    process = processes.VP()
    options = {"name": "mlp", "dim": 3, "out_dim": 1, "width": 16, "depth": 1, "activation": "tanh", "norm": False}
    model = tw.PotentialDenoiser(tw.nets.build({**options, "zero_init": False}, 1), process, data_std=1.0, event=(3,))
    objective, data = FokkerPlanck(trace=trace), random.normal((8, 3), 7)
    batch = objective.prepare(process, {"x": data}, seed=1, step=2)
    whole = objective(model, batch, seed=1, step=2)
    half = objective(model, {name: value[4:] for name, value in batch.items()}, seed=1, step=2)
    torch.testing.assert_close(half, whole[4:])
    other = objective.prepare(process, {"x": data[4:]}, seed=1, step=2, offset=4, total=8)
    torch.testing.assert_close(objective(model, other, seed=1, step=2), whole[4:])


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_empty_batches(trace):
    model = tw.PotentialDenoiser(network(), processes.VP(), data_std=1.0, event=(1,))
    assert FokkerPlanck(trace=trace)(model, {"x": torch.zeros(0, 1)}, seed=1).shape == (0,)


def test_bad_input():
    phi = mixture(processes.VP()).log_prob
    with pytest.raises(IncompatibleError, match="endpoint"):
        log_fp_residual(phi, processes.MeanReverting(), X, T)
    with pytest.raises(InputError, match="t: shape"):
        log_fp_residual(phi, processes.VP(), X, T[:3])
    with pytest.raises(InputError, match="trace"):
        log_fp_residual(phi, processes.VP(), X, T, "other")
    with pytest.raises(InputError, match="probes"):
        log_fp_residual(phi, processes.VP(), X, T, "hutchinson", probes=0)
    with pytest.raises(InputError, match="bound"):
        FokkerPlanck(bound=0.0)
    for options in ({"weight": -1.0}, {"share": 2.0}, {"box": 0.0}, {"ramp": -1}):
        with pytest.raises(InputError, match="weight, share"):
            FokkerPlanck(**options)
    vector = tw.NetworkDenoiser(lambda x, t: x, processes.VP(), tw.targets.Noise())
    with pytest.raises(IncompatibleError, match="log density"):
        FokkerPlanck()(vector, {"x": torch.zeros(2, 1)})
