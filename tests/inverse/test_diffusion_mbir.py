"""DiffusionMBIR: total variation as its limit, independent slices without coupling, exact data at the end, and invariances."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tweed.core import random
from tweed.core.denoiser import Denoiser, Wrapper
from tweed.core.estimate import Estimate
from tweed.core.exact import GaussianDenoiser
from tweed.core.processes import EDM, VE, VP, MeanReverting
from tweed.core.targets import Data
from tweed.data.phantoms import moving_blobs
from tweed.errors import IncompatibleError, InputError
from tweed.inverse.diffusion_mbir import DiffusionMBIR, _Sweep, slice_wise, total_variation
from tweed.inverse.linear_algebra import difference, difference_adjoint
from tweed.inverse.measurement import Measurement
from tweed.inverse.operators import Inpainting, Matrix, PhaseRetrieval
from tweed.inverse.operators.radon import Radon, parallel_angles

F64 = torch.float64
EVENT = (1, 8, 8)
PROCESS = VE(0.01, 5.0)
TRUTH = moving_blobs(6, 8, 3)[0]
RADON = Radon(EVENT, parallel_angles(3))
SEEN = Measurement(RADON, RADON(TRUTH))
METHOD = DiffusionMBIR(steps=25, slice_batch=4)


def prior(process=PROCESS):
    return GaussianDenoiser(torch.full(EVENT, 0.3, dtype=F64), 0.1, process)


def solve(method=METHOD, measurement=SEEN, n=1, seed=0, process=PROCESS):
    return method.solve(prior(process), measurement, n, seed, dtype=F64).samples


def optimality(x, dual, y, operator, strength, boundary):
    """How far the gradient of the fit is off `-D^T dual`, and `dual` off `strength` times a subgradient of `|D x|_1`."""
    d = difference(x, 0, boundary)
    slope = operator.adjoint(operator(x) - y) + difference_adjoint(dual, 0, boundary)
    slack = strength * d.abs().sum() - (dual * d).sum()
    return float(slope.abs().max()), float(slack), float(dual.abs().max())


@pytest.mark.parametrize("boundary", ["neumann", "periodic"])
def test_the_difference_has_its_adjoint(boundary):
    x, v = (random.normal((5, 2, 3), seed, dtype=F64) for seed in (1, 2))
    for axis in range(3):
        left = (difference(x, axis, boundary) * v).sum()
        assert abs(float(left - (x * difference_adjoint(v, axis, boundary)).sum())) < 1e-12
        assert float(difference(torch.ones(5, 2, 3), axis, boundary).abs().max()) == 0.0


@pytest.mark.parametrize("boundary", ["neumann", "periodic"])
def test_sweeps_alone_find_the_minimum_of_total_variation(boundary):
    operator = Matrix((1, 2, 4), random.normal((6, 8), 1, dtype=F64))
    norm = operator.norm()
    y = random.normal((5, 6), 2, dtype=F64)
    method = DiffusionMBIR(strength=0.03, penalty=0.3, boundary=boundary)
    run = SimpleNamespace(measurement=Measurement(operator, y), dtype=F64, device="cpu")
    sweep = _Sweep(method, run, operator, norm, (1, 5, 1, 2, 4))
    x = torch.zeros(5, 1, 2, 4, dtype=F64)
    for _ in range(2000):
        x = sweep(x)
    strength, penalty = method.strength * norm**2, method.penalty * norm**2
    # The dual variable is penalty u: these are the conditions of the minimum, whatever found it.
    slope, slack, largest = optimality(x, penalty * sweep.u[0], y, operator, strength, boundary)
    assert slope < 1e-5 * float(operator.adjoint(y).abs().max())
    assert abs(slack) < 1e-5 * strength
    assert largest <= strength * (1.0 + 1e-9)
    # Some differences are shrunk to nothing: the strength was felt.
    assert float((difference(x, 0, boundary).abs() < 1e-6).double().mean()) > 0.2
    classical = total_variation(
        run.measurement, strength=0.03, penalty=0.3, boundary=boundary, sweeps=1500, iterations=8
    )
    torch.testing.assert_close(classical, x, atol=1e-4, rtol=0)


def test_total_variation_along_all_axes_is_a_minimum():
    identity = Matrix((1, 4, 4), torch.eye(16, dtype=F64))
    y = random.normal((5, 16), 2, dtype=F64)
    x = total_variation(Measurement(identity, y), strength=0.3, penalty=1.0, axes="all", sweeps=200, iterations=12)
    flat = x.reshape(5, 1, 4, 4)

    def objective(x):
        rough = sum(difference(x, axis).abs().sum() for axis in (0, 2, 3))
        return 0.5 * (x.reshape(5, 16) - y).square().sum() + 0.3 * rough

    best = objective(flat)
    for seed in range(20):
        step = 1e-3 * random.normal(tuple(flat.shape), seed, draw=1, dtype=F64)
        assert objective(flat + step) > best
    assert objective(flat + 1e-3 * (identity.adjoint(y) - flat)) > best
    # Alone, total variation keeps the sum.
    torch.testing.assert_close(flat.sum(), y.sum())


def test_without_coupling_slices_do_not_know_of_each_other():
    alone = slice_wise(METHOD)
    disturbed = SEEN.y.clone()
    disturbed[2] += 1.0
    moved = (solve(alone, Measurement(RADON, disturbed)) - solve(alone))[0].abs().flatten(1).amax(1)
    assert float(moved[[0, 1, 3, 4, 5]].max()) == 0.0
    assert float(moved[2]) > 1e-2
    coupled = (solve(METHOD, Measurement(RADON, disturbed)) - solve())[0].abs().flatten(1).amax(1)
    assert float(coupled.min()) > 1e-4


def test_a_volume_without_change_is_left_alone():
    # Differences of a constant volume are none: the coupling adds nothing to the equations.
    flat = TRUTH[:1].expand(6, *EVENT).contiguous()
    run = SimpleNamespace(measurement=Measurement(RADON, RADON(flat)), dtype=F64, device="cpu")
    start = 0.5 * flat
    for boundary in ("neumann", "periodic"):
        with_it = _Sweep(replace(METHOD, boundary=boundary), run, RADON, RADON.norm(), (1, 6, *EVENT))
        without = _Sweep(slice_wise(METHOD), run, RADON, RADON.norm(), (1, 6, *EVENT))
        torch.testing.assert_close(with_it(start), without(start), atol=1e-12, rtol=0)
        assert float(with_it.w.abs().max()) == 0.0


def test_full_data_are_reproduced():
    everything = Inpainting(EVENT, torch.ones(EVENT, dtype=torch.bool))
    x = solve(METHOD, Measurement(everything, TRUTH))
    assert float((x[0] - TRUTH).abs().max()) < 1e-12
    before = solve(replace(METHOD, project=False), Measurement(everything, TRUTH))
    assert float((before[0] - TRUTH).abs().max()) > 1e-3


def test_the_projection_brings_the_measurement_nearer():
    rough = solve(replace(METHOD, project=False))
    projected = solve()
    off = [float((RADON(x[0]) - SEEN.y).square().sum()) for x in (rough, projected)]
    assert off[1] < 0.7 * off[0]
    # It is one step of SIRT with the sensitivities of the pixels.
    step = RADON.adjoint(SEEN.y - RADON(rough[0])) / RADON.normal(torch.ones(1, *EVENT, dtype=F64))
    torch.testing.assert_close(projected[0], rough[0] + step, atol=1e-9, rtol=0)


@pytest.mark.parametrize("method", [METHOD, slice_wise(METHOD)], ids=["coupled", "alone"])
def test_slices_at_a_time_and_volumes_beside_do_not_matter(method):
    once = solve(replace(method, slice_batch=100))
    for size in (1, 4):
        torch.testing.assert_close(solve(replace(method, slice_batch=size)), once, atol=1e-10, rtol=0)
    three = solve(method, n=3)
    torch.testing.assert_close(three[:1], once, atol=1e-9, rtol=0)
    assert float((three[1] - three[0]).abs().max()) > 1e-2
    assert torch.equal(solve(method), solve(method))


def test_the_denoiser_sees_no_more_slices_than_asked():
    seen = []

    class Counting(Wrapper):
        def forward(self, x, t, **cond):
            seen.append(len(x))
            return self.denoiser(x, t, **cond)

    solution = METHOD.solve(Counting(prior()), SEEN, dtype=F64)
    assert seen == [4, 2] * 50
    assert solution.evaluations == 50
    assert solution.misfit.shape == (26, 1, 6)
    assert replace(METHOD, snr=0.0).solve(prior(), SEEN, dtype=F64).evaluations == 25


def test_a_process_is_only_a_scale():
    # On the same levels of sigma / alpha, VE, EDM and VP are one method.
    def grid(process, steps, start=None, end=None):
        return process.time(torch.linspace(-2.9, 6.0, steps + 1, dtype=F64))

    found = [solve(replace(METHOD, grid=grid), process=each) for each in (VE(1e-3, 20.0), EDM(1e-3, 20.0), VP())]
    scale = float(found[0].abs().max())
    torch.testing.assert_close(found[1], found[0], atol=1e-6 * scale, rtol=0)
    # All three start from the same noise here.
    torch.testing.assert_close(found[2], found[0], atol=1e-6 * scale, rtol=0)


def test_what_is_not_measured_is_drawn_from_the_prior():
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 0, 0] = True
    operator = Inpainting((1, 4, 4), mask)
    measurement = Measurement(operator, operator(torch.full((500, 1, 4, 4), 0.3, dtype=F64)))
    denoiser = GaussianDenoiser(torch.full((1, 4, 4), 0.3, dtype=F64), 0.1, PROCESS)
    off = []
    for steps in (40, 160):
        method = slice_wise(DiffusionMBIR(steps=steps, snr=0.0, slice_batch=500))
        x = method.solve(denoiser, measurement, dtype=F64).samples[0][:, ~mask]
        assert float(x.mean()) == pytest.approx(0.3, abs=0.02)
        off.append(float(x.var()) / 0.1 - 1.0)
    # Reverse diffusion adds too much noise, by the first order of the step.
    assert off[0] > 2.5 * off[1] > 0.0
    assert off[1] < 0.06
    # A Langevin step leads back from there, with the norms of a whole volume (of 16 elements they would say too little).
    method = DiffusionMBIR(steps=40, strength=0.0, penalty=1e-9, slice_batch=500)
    x = method.solve(denoiser, measurement, dtype=F64).samples[0][:, ~mask]
    assert abs(float(x.var()) / 0.1 - 1.0) < 0.5 * off[0]


class Nothing(Denoiser):
    """Says that the state is the data: no score."""

    def __init__(self):
        super().__init__()
        self.process, self.event = PROCESS, EVENT

    def forward(self, x, t, **cond):
        return Estimate(x, torch.as_tensor(t), x, self.process, Data())


def test_a_method_that_is_coupled_keeps_w_and_u():
    method = replace(METHOD, steps=40, snr=0.0)
    kept = method.solve(Nothing(), SEEN, dtype=F64).samples

    class Forgetting(_Sweep):
        def __call__(self, x):
            self.w = self.u = torch.zeros_like(self.w)
            return super().__call__(x)

    from tweed.inverse import diffusion_mbir as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_Sweep", Forgetting)
        forgot = method.solve(Nothing(), SEEN, dtype=F64).samples
    assert float((kept - forgot).abs().max()) > 1e-2


def test_one_slice_and_none():
    one = Measurement(RADON, SEEN.y[:1])
    for boundary in ("neumann", "periodic"):
        assert solve(replace(METHOD, boundary=boundary), one).shape == (1, 1, *EVENT)
    with pytest.raises(InputError, match="no slices"):
        solve(METHOD, Measurement(RADON, SEEN.y[:0]))


@pytest.mark.parametrize(
    "options", [{"boundary": "other"}, {"strength": -1.0}, {"penalty": -0.1}, {"snr": -1.0}, {"slice_batch": 0}]
)
def test_bad_input(options):
    with pytest.raises(InputError):
        DiffusionMBIR(**options)


def test_what_does_not_fit():
    squares = PhaseRetrieval(EVENT)
    with pytest.raises(IncompatibleError, match="not linear"):
        solve(METHOD, Measurement(squares, squares(TRUTH)))
    blind = Inpainting(EVENT, torch.zeros(EVENT, dtype=torch.bool))
    with pytest.raises(IncompatibleError, match="measures nothing"):
        solve(METHOD, Measurement(blind, TRUTH))
    with pytest.raises(InputError, match=r"event|shape"):
        METHOD.solve(GaussianDenoiser(torch.zeros(1, 4, 4), 1.0, PROCESS), SEEN)
    process = MeanReverting()
    with pytest.raises(IncompatibleError, match="endpoint"):
        METHOD.solve(GaussianDenoiser(torch.zeros(EVENT), 1.0, process), SEEN)
