"""The Gaussian jump: exact for a Gaussian, nothing at its own start, and each sample by itself."""

import pytest
import torch

import tweed as tw
from tweed import processes, random
from tweed.core import grids
from tweed.core.exact import GaussianDenoiser, fit_gaussian
from tweed.errors import InputError
from tweed.starts import Start, gaussian_jump, skip

EDM = processes.EDM(0.002, 80.0)
F64 = torch.float64
MODEL = GaussianDenoiser(torch.tensor([1.0, -1.0, 0.5]), torch.tensor([2.0, 0.5, 0.01]), EDM)


@pytest.mark.parametrize("process", [EDM, processes.VP(), processes.RectifiedFlow()], ids=lambda p: type(p).__name__)
def test_a_jump_and_the_rest_are_the_whole_flow(process):
    model = GaussianDenoiser(MODEL.means[0], MODEL.values[0], process)
    start = gaussian_jump(model, 6, 0.3, dtype=F64)
    assert start.t == 0.3
    x = process.prior((6, 3), 0, dtype=F64)
    ended = tw.sample(
        model,
        start,
        solver=tw.solvers.DPMSolver(3),
        steps=400,
        grid=lambda *a, **k: grids.log_snr(*a, **k | {"end": 0.05}),
    )
    torch.testing.assert_close(ended, model.flow(x, 1.0, 0.05), rtol=0, atol=2e-5)


def test_a_jump_to_its_own_start_is_the_base_sampler_bit_for_bit():
    t, times = skip(EDM, grids.karras, 8, 0)
    assert t == 1.0
    jumped = tw.sample(MODEL, gaussian_jump(MODEL, 5, t, seed=3), solver=tw.solvers.Heun(), times=times)
    plain = tw.sample(MODEL, 5, solver=tw.solvers.Heun(), steps=8, grid=grids.karras, seed=3)
    assert torch.equal(jumped, plain)


def test_the_tail_of_the_grid_is_kept():
    t, times = skip(EDM, grids.karras, 8, 3, end=EDM.t_min)
    torch.testing.assert_close(times, grids.karras(EDM, 8, end=EDM.t_min)[3:])
    assert times[0].item() == t


def test_sample_i_is_the_same_in_any_batch():
    gaussian = fit_gaussian(random.normal((50, 2, 2), 1), EDM)
    many = gaussian_jump(gaussian, 7, 0.2, seed=5)
    one = gaussian_jump(gaussian, 1, 0.2, seed=5, index=4)
    torch.testing.assert_close(many.x[4:5], one.x, rtol=1e-6, atol=1e-6)
    assert gaussian_jump(gaussian, 0, 0.2).x.shape == (0, 2, 2)
    assert many.x.dtype == torch.float32


def test_each_class_goes_along_its_own_gaussian():
    each = [GaussianDenoiser(torch.full((2,), c), 0.5, EDM) for c in (-3.0, 0.0, 3.0)]
    x, label = EDM.prior((6, 2), 1, dtype=F64), torch.tensor([2, 0, 1, 1, 2, 0])
    made = gaussian_jump(each, x, 0.01, label=label)
    for i, k in enumerate(label.tolist()):
        torch.testing.assert_close(made.x[i : i + 1], each[k].flow(x[i : i + 1], 1.0, 0.01))


def test_an_endpoint_is_carried_along():
    process = processes.MeanReverting()
    gaussian = GaussianDenoiser(torch.zeros(3), torch.tensor([1.0, 0.5, 0.2]), process)
    y = random.normal((4, 3), 2, dtype=F64)
    start = gaussian_jump(gaussian, 4, 0.4, y=y, dtype=F64)
    x = process.prior((4, 3), 0, y=y, dtype=F64)
    torch.testing.assert_close(start.x, gaussian.flow(x, 1.0, 0.4, y))
    assert isinstance(start, Start)


def test_bad_input():
    with pytest.raises(InputError, match="t, start"):
        gaussian_jump(MODEL, 2, 0.9, start=0.5)
    with pytest.raises(InputError, match="label"):
        gaussian_jump([MODEL, MODEL], 2, 0.5)
    with pytest.raises(InputError, match="label"):
        gaussian_jump([MODEL, MODEL], 2, 0.5, label=torch.tensor([0, 2]))
    with pytest.raises(InputError, match="label"):
        gaussian_jump([MODEL, MODEL], 2, 0.5, label=torch.tensor([0]))
    with pytest.raises(InputError, match="skipped"):
        skip(EDM, grids.karras, 4, 4)
