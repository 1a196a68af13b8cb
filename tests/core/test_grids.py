"""Time grids: lengths, ends, spacing."""

import math
from functools import partial

import pytest
import torch
from process_cases import LINEAR, TWO_SIDED

from tweed import grids, processes
from tweed.errors import IncompatibleError, InputError

GRIDS = {**grids.BY_NAME, "shifted": partial(grids.uniform, shift=3.0), "rho-1": partial(grids.karras, rho=1.0)}


def over(cases):
    return pytest.mark.parametrize("process", cases.values(), ids=cases.keys())


@over(LINEAR)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
@pytest.mark.parametrize(
    ("start", "end"), [(1.0, 0.0), (0.8, 0.0), (1.0, 0.05), (0.6, 0.2), (1.0, 0.9995), (0.0005, 0.0)]
)
def test_every_grid_has_its_length_its_ends_and_falls(process, grid, start, end):
    for steps in (1, 2, 3, 7, 50):
        t = grid(process, steps, start=start, end=end)
        assert t.shape == (steps + 1,)
        assert t.dtype == torch.float64
        assert t[0].item() == start
        assert t[-1].item() == end
        assert (t.diff() < 0).all()


@over(TWO_SIDED)
def test_two_sided_interpolants_have_grids_in_time_only(process):
    assert grids.uniform(process, 4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert grids.quadratic(process, 2).tolist() == [1.0, 0.25, 0.0]
    for grid in (grids.log_snr, grids.karras):
        with pytest.raises(IncompatibleError, match="grid: Interpolant has no log-SNR"):
            grid(process, 4)


@over(LINEAR)
def test_log_snr_is_uniform_in_log_snr(process):
    t = grids.log_snr(process, 40)
    value = process.log_snr(t)
    value = value[value.isfinite()]
    assert len(value) >= 39
    gaps = value.diff()
    torch.testing.assert_close(gaps, gaps.mean().expand_as(gaps), rtol=1e-6, atol=1e-6)


@over(LINEAR)
@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_karras_is_uniform_in_a_root_of_the_noise_level(process, rho):
    t = grids.karras(process, 40, rho=rho)
    root = (-process.log_snr(t) / rho).exp()
    root = root[(root > 0) & root.isfinite()]
    gaps = root.diff()
    torch.testing.assert_close(gaps, gaps.mean().expand_as(gaps), rtol=1e-5, atol=1e-9)


def test_infinite_ends_are_one_step_away():
    flow = processes.RectifiedFlow()
    for grid in (grids.log_snr, grids.karras):
        t = grid(flow, 10)
        assert t[:2].tolist() == [1.0, flow.t_max]
        assert t[-2:].tolist() == [flow.t_min, 0.0]
        assert grid(flow, 1).tolist() == [1.0, 0.0]
        assert grid(flow, 2).tolist() == [1.0, flow.t_max, 0.0]
        assert grid(flow, 3).tolist() == [1.0, flow.t_max, flow.t_min, 0.0]
        vp = grid(processes.VP(), 2)
        assert vp.tolist() == [1.0, processes.VP().t_min, 0.0]
    # VE is nowhere infinite: it ends at its smallest noise.
    torch.testing.assert_close(grids.log_snr(processes.VE(), 10), grids.uniform(processes.VE(), 10))


@pytest.mark.parametrize("steps", [2, 5, 18])
def test_karras_on_edm_is_equation_5(steps):
    process, rho = processes.EDM(0.002, 80.0), 7
    i = torch.arange(steps, dtype=torch.float64)
    root = 80.0 ** (1 / rho) + i / (steps - 1) * (0.002 ** (1 / rho) - 80.0 ** (1 / rho))
    sigma = torch.cat([root**rho, torch.zeros(1, dtype=torch.float64)])
    torch.testing.assert_close(process.sigma(grids.karras(process, steps)), sigma, rtol=1e-12, atol=1e-15)
    # A last level of one's own: no step to zero.
    last = grids.karras(process, steps - 1, end=process.t_min)
    torch.testing.assert_close(process.sigma(last), sigma[:-1], rtol=1e-12, atol=1e-15)


def test_uniform_quadratic_and_shift():
    process = processes.RectifiedFlow()
    torch.testing.assert_close(grids.uniform(process, 5), torch.arange(5, -1, -1, dtype=torch.float64) / 5)
    root = grids.quadratic(process, 5, start=0.9, end=0.1).sqrt()
    torch.testing.assert_close(root.diff(), root.diff().mean().expand(5))
    t = grids.uniform(process, 10)
    shifted = grids.uniform(process, 10, shift=3.0)
    torch.testing.assert_close(shifted, 3 * t / (1 + 2 * t))
    # The shift moves log-SNR by -log(shift), as a resolution change does.
    inside = slice(1, -1)
    torch.testing.assert_close(process.log_snr(shifted[inside]), process.log_snr(t[inside]) - math.log(3.0))


def test_default_is_karras_for_edm_and_uniform_otherwise():
    for process in (processes.VP(), processes.RectifiedFlow(), processes.Interpolant()):
        assert torch.equal(grids.default(process, 7), grids.uniform(process, 7))
    assert torch.equal(grids.default(processes.EDM(), 7), grids.karras(processes.EDM(), 7))


@pytest.mark.parametrize("grid", [grids.uniform, grids.quadratic, grids.log_snr, grids.karras, grids.default])
def test_bad_input_is_named(grid):
    process = processes.VP()
    for steps in (0, -1, 2.5, "3", None):
        with pytest.raises(InputError, match=r"steps: .* expected a whole number of at least 1"):
            grid(process, steps)
    for start, end in ((0.5, 0.5), (0.2, 0.5), (1.1, 0.0), (1.0, -0.1), (math.nan, 0.0)):
        with pytest.raises(InputError, match="start, end"):
            grid(process, 3, start=start, end=end)
    for option in ({"shift": 0.0}, {"shift": math.nan}):
        with pytest.raises(InputError, match="shift"):
            grids.uniform(process, 3, **option)
    with pytest.raises(InputError, match="rho: -1"):
        grids.karras(process, 3, rho=-1)
