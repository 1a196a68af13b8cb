"""A grid from a start of each sample's own: each column is the grid of that start alone."""

from functools import partial

import pytest
import torch

import tweed as tw
from tweed import grids, processes
from tweed.errors import IncompatibleError, InputError

GRIDS = {
    "uniform": partial(grids.uniform, shift=3.0),
    "quadratic": grids.quadratic,
    "log_snr": grids.log_snr,
    "karras": partial(grids.karras, rho=5.0),
    "default": grids.default,
}
STARTS = torch.tensor([0.9, 0.2, 0.9, 1.0, 0.05], dtype=torch.float64)


@pytest.mark.parametrize("end", [0.0, 0.01])
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize(
    "process", [processes.EDM(), processes.VE(), processes.VP(), processes.Cosine(), processes.RectifiedFlow()], ids=str
)
def test_each_column_is_the_grid_of_its_start(process, name, steps, end):
    made = GRIDS[name](process, steps, start=STARTS, end=end)
    alone = torch.stack([GRIDS[name](process, steps, start=t, end=end) for t in STARTS.tolist()], 1)
    torch.testing.assert_close(made, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", [tw.solvers.DDIM(), tw.solvers.Heun(), tw.solvers.DPMSolver(2)], ids=str)
def test_a_sample_goes_the_way_that_it_goes_alone(solver):
    process = processes.EDM(0.01, 50.0)
    model = tw.GaussianDenoiser(torch.zeros(3), torch.tensor([1.0, 0.3, 0.1]), process)
    t = torch.tensor([0.4, 0.02, 0.004], dtype=torch.float64)
    x = tw.random.normal((3, 3), 1, dtype=torch.float64) * process.sigma(t)[:, None]
    together = tw.sample(model, tw.Start(x, t), solver=solver, steps=5)
    for i in range(3):
        alone = tw.sample(model, tw.Start(x[i : i + 1], t[i].item()), solver=solver, steps=5)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-9, atol=1e-9)


def test_a_function_of_numbers_alone_is_shrunk_in_time():
    def own(process, steps, *, start, end):
        assert isinstance(start, float)
        return torch.linspace(start, end, steps + 1, dtype=torch.float64)

    made = grids.each(own, processes.VP(), 4, STARTS, 0.0, 1.0)
    torch.testing.assert_close(made, torch.linspace(1.0, 0.0, 5, dtype=torch.float64)[:, None] * STARTS)


def test_no_sample_and_bad_starts():
    assert grids.karras(processes.EDM(), 3, start=STARTS[:0]).shape == (4, 0)
    for bad in (torch.tensor([0.5, 0.0]), torch.tensor([1.5]), torch.full((2, 2), 0.5)):
        with pytest.raises(InputError, match="start"):
            grids.karras(processes.EDM(), 3, start=bad)
    with pytest.raises(IncompatibleError, match="log-SNR"):
        grids.log_snr(processes.Interpolant(), 3, start=STARTS)


def test_a_step_into_silence_costs_heun_one_evaluation_with_times_of_each_sample_too():
    model = tw.CountingDenoiser(tw.GaussianDenoiser(torch.zeros(3), 0.5, processes.EDM()))
    tw.sample(model, tw.Start(torch.ones(2, 3), torch.tensor([0.4, 0.1])), solver=tw.solvers.Heun(), steps=4)
    assert model.evaluations == 7
