"""Methods for inverse problems: closed forms on Gaussians, limits, costs, and what does not fit."""

import math
from dataclasses import replace

import pytest
import torch

from tweed import processes, random
from tweed.core import grids, targets
from tweed.core.denoiser import CountingDenoiser, FunctionDenoiser, Wrapper
from tweed.core.exact import GaussianDenoiser, MixtureDenoiser, MixturePosterior
from tweed.core.particles import effective_size, systematic
from tweed.errors import IncompatibleError, InputError, NumericalError
from tweed.inverse import (
    DDRM,
    DPS,
    DiffPIR,
    EnsemblePosterior,
    FlowChef,
    Measurement,
    PiGDM,
    REDDiff,
    classifier_cost,
    masked_reference,
    red_diff_gradient,
    search_boundary,
    squared_error,
)
from tweed.inverse.calibration import calibrate
from tweed.inverse.operators import HighDynamicRange, Inpainting, Matrix, SuperResolution
from tweed.solvers import DDIM, DDPM, Euler, Heun, sample

F64 = torch.float64
VP = processes.VP()
MATRIX = torch.tensor([[1.0, 0.5, -0.3], [0.0, 1.0, 0.4]], dtype=F64)


def gaussian(process=VP):
    covariance = torch.tensor([[1.0, 0.6, 0.0], [0.6, 0.8, 0.2], [0.0, 0.2, 0.5]], dtype=F64)
    return GaussianDenoiser(torch.tensor([0.3, -0.2, 0.1]), covariance, process)


def measured(noise=0.3, b=2, seed=1):
    operator = Matrix((3,), MATRIX)
    x = gaussian().sample(b, seed)
    y = operator(x) + noise * random.normal((b, 2), seed + 1, dtype=F64)
    return Measurement(operator, y, noise)


METHODS = {
    "DPS": DPS(steps=30, step=0.3),
    "DPS, likelihood": DPS(steps=60, weight="likelihood"),
    "PiGDM": PiGDM(steps=30),
    "DDRM": DDRM(steps=20),
    "DiffPIR": DiffPIR(steps=20),
    "REDDiff": REDDiff(steps=60),
    "FlowChef": FlowChef(steps=20),
    "ensemble": EnsemblePosterior(steps=40, noise=0.1),
    "filter": EnsemblePosterior(steps=40, mode="discrete"),
}


@pytest.fixture(params=METHODS, ids=lambda name: name.replace(", ", "-"))
def method(request):
    return METHODS[request.param]


@pytest.mark.parametrize(
    "process", [VP, processes.EDM(0.002, 20.0), processes.RectifiedFlow()], ids=lambda p: type(p).__name__
)
def test_all_on_all_processes(method, process):
    told = []
    solution = method.solve(
        gaussian(process), measured(), 3, seed=4, dtype=F64, watch=lambda text, share: told.append(share)
    )
    assert solution.samples.shape == (3, 2, 3)
    assert solution.samples.dtype == F64
    assert solution.misfit.shape[1:] == (3, 2)
    assert told == sorted(told)
    assert told[-1] == 1.0
    torch.testing.assert_close(solution.weights.sum(0), torch.ones(2, dtype=F64))
    again = method.solve(gaussian(process), measured(), 3, seed=4, dtype=F64)
    assert torch.equal(again.samples, solution.samples)
    assert not torch.equal(method.solve(gaussian(process), measured(), 3, seed=5, dtype=F64).samples, solution.samples)


def test_it_pulls_towards_the_measurement(method):
    # Without noise in the measurement's own scale, the misfit of all falls well below that of prior samples.
    measurement = measured(noise=0.3 if method == METHODS["DPS, likelihood"] else 0.05, b=4)
    solution = method.solve(gaussian(), measurement, 8, seed=1, dtype=F64)
    free = measurement.repeat(8).misfit(gaussian().sample(32, 9)).mean()
    assert solution.misfit[-1].mean() < 0.5 * free


@pytest.mark.parametrize("name", ["DPS", "PiGDM", "DDRM", "DiffPIR", "REDDiff"])
def test_samples_do_not_see_one_another(name):
    measurement = measured(b=3)
    whole = METHODS[name].solve(gaussian(), measurement, 1, seed=2, dtype=F64)
    first = Measurement(measurement.operator, measurement.y[:1], measurement.noise)
    one = METHODS[name].solve(gaussian(), first, 1, seed=2, dtype=F64)
    torch.testing.assert_close(one.samples[:, 0], whole.samples[:, 0], rtol=1e-9, atol=1e-9)


class Backward(Wrapper):
    """Counts gradients that pass through a denoiser."""

    count = 0

    def start(self):
        return self

    def forward(self, x, t, **cond):
        estimate = self.denoiser(x, t, **cond)
        if estimate.answer.requires_grad:
            estimate.answer.register_hook(self._seen)
        return estimate

    def _seen(self, gradient):
        Backward.count += 1


@pytest.mark.parametrize(
    ("name", "evaluations", "backward"),
    [("DPS", 30, 30), ("PiGDM", 30, 30), ("DDRM", 20, 0), ("DiffPIR", 20, 0), ("REDDiff", 60, 0), ("FlowChef", 20, 0)],
)
def test_what_it_costs(name, evaluations, backward):
    Backward.count = 0
    counter = CountingDenoiser(gaussian())
    solution = METHODS[name].solve(Backward(counter), measured(), 1, dtype=F64)
    # RED-diff leaves out the first levels, where hardly any data is left.
    low = 0.9 * evaluations if name == "REDDiff" else evaluations
    assert low <= counter.evaluations <= evaluations
    assert counter.evaluations == solution.evaluations
    assert Backward.count == (0 if backward == 0 else counter.evaluations)


def test_pigdm_is_exact_for_standard_normal_data():
    prior = GaussianDenoiser(torch.zeros(3), 1.0, VP)
    found = calibrate(PiGDM(steps=100), prior, MATRIX, 0.5, n=300, repeats=8, draws=0, seed=3)
    assert found.deviation < 5.0
    assert found.variance_ratio == pytest.approx(1.0, abs=0.1)


def test_the_guidance_of_pigdm_is_the_likelihoods_score():
    # One step of it on standard normal data, against the exact posterior's denoiser.
    prior = GaussianDenoiser(torch.zeros(3), 1.0, VP)
    measurement = measured(noise=0.5)
    exact = MixturePosterior(prior, MATRIX, 0.5)
    x, t = random.normal((2, 3), 5, dtype=F64), 0.4
    seen = {}

    class Look(PiGDM):
        def guide(self, run, x, estimate, t, u):
            guided, _ = super().guide(run, x, estimate, t, u)
            seen.setdefault("x0", guided.x0.detach())
            seen.setdefault("x", x.detach())
            seen.setdefault("t", t)
            return guided, None

    Look(steps=3).solve(prior, measurement, 1, dtype=F64)
    expected = exact(seen["x"], seen["t"], measurement=measurement.y).x0
    torch.testing.assert_close(seen["x0"], expected, rtol=1e-9, atol=1e-9)
    del x, t


@pytest.mark.parametrize("name", ["PiGDM", "DiffPIR"])
def test_conjugate_gradients_do_what_the_spectrum_does(name):
    class Plain(Matrix):
        spectrum = None

    measurement = measured()
    plain = Measurement(Plain((3,), MATRIX), measurement.y, measurement.noise)
    first = METHODS[name].solve(gaussian(), measurement, 2, seed=1, dtype=F64)
    second = METHODS[name].solve(gaussian(), plain, 2, seed=1, dtype=F64)
    torch.testing.assert_close(first.samples, second.samples, rtol=1e-6, atol=1e-6)


def test_an_exact_mask_is_kept_by_ddrm_and_diffpir():
    operator = Inpainting((3,), torch.tensor([True, False, True]))
    y = operator(gaussian().sample(4, 1))
    for each in (DDRM(steps=10), DiffPIR(steps=10)):
        x = each.solve(gaussian(), Measurement(operator, y, 0.0), 2, dtype=F64).samples
        torch.testing.assert_close(x[:, :, [0, 2]], y[:, [0, 2]].expand(2, 4, 2), rtol=0, atol=2e-2)
    nothing = Inpainting((3,), torch.zeros(3, dtype=torch.bool))
    for each in (DDRM(steps=10), DiffPIR(steps=10), PiGDM(steps=10), FlowChef(steps=10), REDDiff(steps=10)):
        assert each.solve(gaussian(), Measurement(nothing, 0.0 * y, 0.0), 1, dtype=F64).samples.isfinite().all()


@pytest.mark.parametrize("name", ["PiGDM", "DDRM", "DiffPIR"])
def test_what_rounding_hides_is_not_measured(name):
    # An exact measurement in float32, through singular values far below its precision: those directions are the prior's.
    values = torch.logspace(0, -12, 13, dtype=F64)
    operator = Matrix((13,), torch.diag(values))
    prior = GaussianDenoiser(torch.zeros(13, dtype=F64), torch.ones(13, dtype=F64), VP)
    x = prior.sample(4, 1)
    measurement = Measurement(operator, operator(x).float(), 0.0)
    assert measurement.deviation == pytest.approx(torch.finfo(torch.float32).eps * operator(x).abs().max().item())
    made = METHODS[name].solve(prior, measurement, 50, seed=2).samples
    assert made.abs().max() < 6.0
    assert (made[..., :4] - x[:, :4]).abs().max() < 0.05
    assert Measurement(operator, operator(x).float(), 0.2).deviation == 0.2
    assert Measurement(operator, operator(x[:0]), 0.0).deviation == 0.0


def test_ddrm_without_a_measurement_is_ddim():
    operator = Inpainting((3,), torch.zeros(3, dtype=torch.bool))
    measurement = Measurement(operator, torch.zeros(5, 3, dtype=F64), 0.1)
    free = DDRM(steps=12, eta=0.0).solve(gaussian(processes.EDM(0.002, 20.0)), measurement, 1, seed=3, dtype=F64)
    process = processes.EDM(0.002, 20.0)
    times = grids.default(process, 12).tolist()
    x = 20.0 * random.normal((5, 3), 3, dtype=F64)
    torch.testing.assert_close(free.samples[0], sample(gaussian(process), x, solver=DDIM(), times=times))


def test_red_diffs_gradient_on_a_gaussian():
    model, t = gaussian(), 0.5
    level = VP.level(t)
    mu = random.normal((1, 3), 1, dtype=F64)
    noise = random.normal((40000, 3), 2, dtype=F64)
    drawn = red_diff_gradient(model, mu.expand(40000, 3), t, noise, "constant").mean(0)
    factor = model.vectors[0] * model.values[0] @ model.vectors[0].T
    total = level.alpha**2 * factor + level.sigma**2 * torch.eye(3, dtype=F64)
    expected = level.sigma * level.alpha * torch.linalg.solve(total, (mu[0] - model.mean))
    torch.testing.assert_close(drawn, expected, rtol=0.03, atol=0.01)
    linear = red_diff_gradient(model, mu, t, noise[:1])
    torch.testing.assert_close(linear, mu - model(level.alpha * mu + level.sigma * noise[:1], t).x0)


def test_red_diff_without_regulariser_is_least_squares():
    measurement = measured()
    zero = torch.zeros(2, 3)
    found = REDDiff(steps=400, strength=0.0, rate=0.1).solve(gaussian(), measurement, 1, dtype=F64, init=zero)
    torch.testing.assert_close(measurement.operator(found.x), measurement.y, rtol=0, atol=1e-3)
    with pytest.raises(InputError, match="init"):
        REDDiff(steps=5).solve(gaussian(), measurement, 1, init=torch.zeros(2, 4))


def test_flow_chefs_inner_steps_are_a_power():
    # K steps of descent on a quadratic: I - (I - s A^T A)^K of the way to the least-squares point.
    operator = Matrix((3,), MATRIX)
    y = random.normal((2, 2), 1, dtype=F64)
    x0 = random.normal((2, 3), 2, dtype=F64)
    measurement = Measurement(operator, y, 0.0)
    s = 0.3 / operator.norm() ** 2
    from tweed.inverse.flow_chef import misfit_cost

    moved = FlowChef(inner=4)._descent(misfit_cost(measurement), x0, s)
    gram = MATRIX.T @ MATRIX
    power = torch.linalg.matrix_power(torch.eye(3, dtype=F64) - s * gram, 4)
    target = torch.linalg.pinv(MATRIX) @ (y - x0 @ MATRIX.T).T
    torch.testing.assert_close(moved, ((torch.eye(3, dtype=F64) - power) @ target).T)


def test_flow_chef_steers_a_class_and_keeps_a_mask():
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    model = MixtureDenoiser(means, 0.02, None, processes.RectifiedFlow())
    x = random.normal((200, 2), 1, dtype=F64)
    label = torch.ones(200, dtype=torch.int64)
    cost = classifier_cost(lambda x0: torch.stack((-4.0 * x0[:, 0], 4.0 * x0[:, 0]), 1), label)
    steered = FlowChef(steps=50, step=0.05).steer(model, cost, x)
    assert (steered[:, 0] > 0).double().mean() > 0.9
    plain = FlowChef(steps=50, step=0.0).steer(model, cost, x)
    torch.testing.assert_close(plain, sample(model, x, solver=Euler("velocity"), steps=50))
    reference = model.sample(200, 7)
    mask = torch.tensor([0.0, 1.0], dtype=F64)
    kept = FlowChef(steps=50, step=1.0).steer(model, masked_reference(reference, mask), x)
    assert (kept - reference)[:, 1].abs().mean() < 0.1 * (plain - reference)[:, 1].abs().mean()


class TestEnsemble:
    def test_no_noise_weighs_by_the_likelihood(self):
        gaps = []
        for steps in (100, 400):
            method = EnsemblePosterior(steps=steps, noise=0.0, threshold=0.0, start="prior")
            measurement = measured(noise=0.5)
            found = method.solve(gaussian(), measurement, 50, dtype=F64)
            log = -measurement.repeat(50).squared(found.samples.flatten(0, 1)).reshape(50, 2) / (2 * 0.25)
            gaps.append((found.log_weights - log.log_softmax(0)).abs().max().item())
        assert gaps[1] < 0.4 * gaps[0] < 0.4

    @pytest.mark.parametrize("mode", ["continuous", "discrete"])
    def test_it_finds_the_kalman_mean_and_the_evidence(self, mode):
        measurement = measured(noise=0.7, b=1)
        exact = MixturePosterior(gaussian(), MATRIX, 0.7)
        process = processes.VP(beta_min=0.1, beta_max=8.0)
        wide = Measurement(measurement.operator, measurement.y.expand(12, 2).clone(), 0.7)
        method = EnsemblePosterior(steps=100, noise=0.02, start="prior", threshold=0.25)
        method = replace(method, mode=mode, start="tilted") if mode == "discrete" else method
        found = method.solve(gaussian(process), wide, 600, seed=2, dtype=F64)
        mean, covariance = exact.moments(measurement.y)
        error = found.mean.mean(0) - mean[0]
        own = found.mean.std(0) / math.sqrt(12)
        assert (error.abs() / own.clamp_min(0.01)).max() < 5.0
        ratio = found.variance.mean(0).sum() / covariance[0].diagonal().sum()
        assert ratio.item() == pytest.approx(1.0, abs=0.15)
        assert found.log_evidence.mean().item() == pytest.approx(exact.log_evidence(measurement.y).item(), abs=0.4)

    def test_more_particles_find_the_mean_better(self):
        measurement = measured(noise=0.5, b=1)
        mean = MixturePosterior(gaussian(), MATRIX, 0.5).moments(measurement.y)[0]
        wide = Measurement(measurement.operator, measurement.y.expand(16, 2).clone(), 0.5)
        method = EnsemblePosterior(steps=60, noise=0.0, threshold=0.0, start="prior")
        few, many = (
            (method.solve(gaussian(), wide, n, seed=1, dtype=F64).mean - mean).norm(dim=1).mean().item()
            for n in (50, 800)
        )
        assert many < 0.45 * few

    def test_a_constant_in_the_likelihood_and_orders_do_not_matter(self):
        weights = random.normal((20, 3), 1, dtype=F64)
        assert torch.equal(
            systematic(weights, torch.full((3,), 0.3)), systematic(weights + 100.0, torch.full((3,), 0.3))
        )
        torch.testing.assert_close(effective_size(weights), effective_size(weights - 7.0))
        assert effective_size(torch.zeros(9, 1, dtype=F64)).item() == pytest.approx(9.0)
        for u in (1e-9, 0.5, 1.0 - 1e-9):
            children = torch.nn.functional.one_hot(systematic(weights, torch.full((3,), u, dtype=F64)), 20).sum(0)
            assert ((children - 20 * weights.softmax(0).T).abs() < 1.0).all()

    def test_what_it_refuses(self):
        with pytest.raises(InputError, match="noise is 0"):
            EnsemblePosterior(steps=5).solve(gaussian(), measured(noise=0.0), 4)
        with pytest.raises(InputError, match="stiffness"):
            EnsemblePosterior(steps=100, drift="euler").solve(gaussian(processes.EDM(0.002, 10.0)), measured(0.5), 4)

        class Plain(Matrix):
            spectrum = None

        plain = Measurement(Plain((3,), MATRIX), measured().y, 0.3)
        with pytest.raises(IncompatibleError, match="discrete"):
            EnsemblePosterior(steps=5, mode="discrete").solve(gaussian(), plain, 4)
        with pytest.raises(IncompatibleError, match="drift"):
            EnsemblePosterior(steps=5, drift="exact").solve(gaussian(), plain, 4)

    def test_a_nonlinear_likelihood(self):
        class Square(HighDynamicRange):
            def forward(self, x):
                return x[:, :1] ** 2

        operator = Square((3,))
        operator.measured = (1,)
        measurement = Measurement(operator, torch.full((2, 1), 1.5, dtype=F64), 0.3)
        prior = GaussianDenoiser(torch.zeros(3), 1.0, VP)
        method = EnsemblePosterior(steps=120, noise=0.02, start="prior", threshold=0.25)
        found = method.solve(prior, measurement, 1500, seed=1, dtype=F64)
        x = random.normal((400000, 3), 9, dtype=F64)
        weight = (-((x[:, 0] ** 2 - 1.5) ** 2) / (2 * 0.09)).softmax(0)
        expected = (weight * x[:, 0] ** 2).sum()
        mean = (found.weights * found.samples[..., 0] ** 2).sum(0).mean()
        assert mean.item() == pytest.approx(expected.item(), rel=0.1)


class TestBoundary:
    def test_the_best_of_nested_candidates(self):
        exact = MixturePosterior(gaussian(), MATRIX, 0.3)
        y = measured(b=5).y
        cond = {"measurement": y}
        wanted = exact.moments(y)[0]
        few = search_boundary(exact, cond, wanted, steps=8, candidates=5, seed=1)
        more = search_boundary(exact, cond, wanted, steps=8, candidates=20, seed=1)
        assert more.score <= few.score
        torch.testing.assert_close(more.scores[:5], few.scores)
        split = search_boundary(exact, cond, wanted, steps=8, candidates=20, seed=1, batch_size=7)
        torch.testing.assert_close(split.scores, more.scores)
        made = more.sample(exact, cond)
        assert squared_error(made, wanted).mean().item() == pytest.approx(more.score, rel=1e-5)
        assert torch.equal(made, more.sample(exact, cond))

    def test_an_endpoint_is_where_it_starts(self):
        process = processes.Residual()
        exact = MixturePosterior(gaussian(), MATRIX, 0.3, process)
        y = measured(b=3).y
        cond = {"measurement": y, "y": y @ torch.linalg.pinv(MATRIX).T}
        found = search_boundary(exact, cond, exact.moments(y)[0], steps=6, candidates=4)
        made = found.sample(exact, cond)
        assert made.shape == (3, 3)
        with pytest.raises(InputError, match="'y'"):
            found.sample(exact, {"measurement": y})

    def test_what_it_refuses(self):
        exact = MixturePosterior(gaussian(), MATRIX, 0.3)
        y = measured(b=3).y
        cond, wanted = {"measurement": y}, torch.zeros(3, 3)
        with pytest.raises(InputError, match="draws noise"):
            search_boundary(exact, cond, wanted, solver=DDPM())
        with pytest.raises(InputError, match="candidates"):
            search_boundary(exact, cond, wanted, candidates=0)
        with pytest.raises(InputError, match="cond"):
            search_boundary(exact, cond, wanted[:2])
        found = search_boundary(exact, cond, wanted, steps=4, candidates=2)
        with pytest.raises(IncompatibleError, match="Search again"):
            found.sample(exact, cond, solver=Heun())


def test_calibration_finds_out_who_samples():
    prior = GaussianDenoiser(torch.zeros(3), 1.0, VP)
    point = calibrate(REDDiff(steps=60), prior, MATRIX, 0.5, n=40, repeats=8, draws=60, seed=1)
    assert point.variance_ratio < 0.5
    assert point.uniformity < 1e-3

    class Exact(PiGDM):
        def solve(self, denoiser, measurement, n=1, seed=0, **options):
            posterior = MixturePosterior(denoiser, measurement.operator.matrix(), measurement.noise)
            solution = super().solve(denoiser, measurement, n, seed, **options)
            return replace(solution, samples=posterior.draw(measurement.y, n, seed))

    true = calibrate(Exact(steps=2), prior, MATRIX, 0.5, n=40, repeats=30, draws=300, seed=1)
    assert true.deviation < 4.5
    assert true.variance_ratio == pytest.approx(1.0, abs=0.1)
    assert true.uniformity > 1e-3
    with pytest.raises(InputError, match="repeats"):
        calibrate(PiGDM(), prior, MATRIX, 0.5, repeats=1)


class TestMeasurement:
    def test_the_parts(self):
        measurement = measured(noise=0.2)
        x = gaussian().sample(2, 1)
        expected = (measurement.y - x @ MATRIX.T).square().sum(1)
        torch.testing.assert_close(measurement.squared(x), expected)
        torch.testing.assert_close(measurement.misfit(x), (expected / 2).sqrt())
        assert torch.equal(measurement.repeat(3).y[2:4], measurement.y)

    def test_what_is_refused(self):
        operator = Matrix((3,), MATRIX)
        y = torch.zeros(2, 2)
        with pytest.raises(InputError, match="y:"):
            Measurement(operator, torch.zeros(2, 3))
        with pytest.raises(InputError, match="noise"):
            Measurement(operator, y, -1.0)
        with pytest.raises(InputError, match="finite"):
            Measurement(operator, y + math.nan)
        with pytest.raises(InputError, match="gives real"):
            Measurement(operator, y + 0j)

        class Wrong(Matrix):
            def adjoint(self, y):
                return 2.0 * super().adjoint(y)

        with pytest.raises(IncompatibleError, match="adjoint of Wrong"):
            Measurement(Wrong((3,), MATRIX), y)
        with pytest.raises(IncompatibleError, match="not linear"):
            PiGDM(steps=2).solve(gaussian(), Measurement(HighDynamicRange((3,)), torch.zeros(1, 3)), 1)

    def test_what_does_not_fit_a_run(self):
        measurement = measured()
        with pytest.raises(InputError, match="n:"):
            PiGDM(steps=2).solve(gaussian(), measurement, 0)
        other = GaussianDenoiser(torch.zeros(4), 1.0, VP)
        with pytest.raises(InputError, match="samples of shape"):
            PiGDM(steps=2).solve(other, measurement, 1)
        with pytest.raises(InputError, match="cond"):
            PiGDM(steps=2).solve(gaussian(), measurement, 1, cond={"label": torch.zeros(3)})
        with pytest.raises(InputError, match="steps"):
            PiGDM(steps=0).solve(gaussian(), measurement, 1)
        with pytest.raises(IncompatibleError, match="one evaluation"):
            PiGDM(steps=2, solver=Heun()).solve(gaussian(), measurement, 1)
        with pytest.raises(IncompatibleError, match="endpoint"):
            PiGDM(steps=2).solve(gaussian(processes.MeanReverting()), measurement, 1)
        broken = FunctionDenoiser(lambda x, t: x / 0.0, VP, targets.Data(), event=(3,))
        with pytest.raises(NumericalError, match="DiffPIR"):
            DiffPIR(steps=3).solve(broken, measurement, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPS(step=0.0), "step"),
        (lambda: DPS(weight="other"), "weight"),
        (lambda: PiGDM(strength=0.0), "strength"),
        (lambda: DDRM(eta=2.0), "eta"),
        (lambda: DiffPIR(zeta=-0.1), "zeta"),
        (lambda: REDDiff(weight="other"), "weight"),
        (lambda: REDDiff(steps=0), "steps"),
        (lambda: REDDiff(rate=0.0), "rate"),
        (lambda: FlowChef(optimiser="other"), "optimiser"),
        (lambda: FlowChef(step=-1.0), "step"),
        (lambda: EnsemblePosterior(noise=-1.0), "noise"),
        (lambda: EnsemblePosterior(mode="other"), "mode"),
        (lambda: EnsemblePosterior(start="other"), "start"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_batch_of_none_and_a_class_condition():
    operator = SuperResolution((1, 4, 4), 2)
    prior = GaussianDenoiser(torch.zeros(1, 4, 4), 1.0, VP)
    empty = Measurement(operator, torch.zeros(0, 1, 2, 2), 0.1)
    for each in (PiGDM(steps=3), DDRM(steps=3), DiffPIR(steps=3)):
        assert each.solve(prior, empty, 2).samples.shape == (2, 0, 1, 4, 4)
    classes = MixtureDenoiser(torch.tensor([[-2.0], [2.0]]), 0.01, None, VP, torch.tensor([0, 1]))
    nothing = Measurement(Inpainting((1,), torch.tensor([False])), torch.zeros(2, 1), 0.1)
    made = DiffPIR(steps=20).solve(classes, nothing, 5, cond={"label": torch.tensor([0, 1])}).samples[..., 0]
    assert (made[:, 0] < 0).all()
    assert (made[:, 1] > 0).all()
