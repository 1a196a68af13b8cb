"""Every solver and every start with every process, guided: it comes to where the flow goes, or it is refused by name."""

import pytest
import torch

import tweed as tw
from tweed import processes, random
from tweed.core import grids
from tweed.core.exact import fit_class_gaussians
from tweed.core.starts import Start
from tweed.errors import IncompatibleError
from tweed.guidance import ClassifierFree
from tweed.solvers import BDIA, DDIM, EDICT, PNDM, DPMSolver, EVODiff, Heun, TimeShift, UniPC, sample
from tweed.starts import DenoisingMCMC, ExactNoiseLevel, gaussian_jump, log_levels, transport

F64 = torch.float64
GAUSSIAN = [
    processes.VP(),
    processes.Cosine(),
    processes.VE(0.01, 20.0),
    processes.EDM(0.01, 20.0),
    processes.RectifiedFlow(),
]
GIVEN = [processes.MeanReverting(), processes.OUVE(), processes.Residual()]
SOLVERS = [
    EVODiff(),
    EVODiff("official"),
    BDIA(),
    BDIA(0.7),
    BDIA(0.7, Heun()),
    EDICT(),
    TimeShift(DDIM(), window=1e-6),
    TimeShift(PNDM(2, "euler"), window=1e-6),
    TimeShift(DPMSolver(2), window=1e-6, data_variance=0.1),
]
MEANS = random.normal((6, 8), 3, dtype=F64)
LABELS = torch.arange(6) % 2


def name(value):
    return type(value).__name__


def model(process, scale=2.0):
    inner = tw.MixtureDenoiser(MEANS, 0.05, None, process, LABELS)
    return inner if scale == 1.0 else ClassifierFree(inner, scale)


def problem(process, n=12):
    """A guided model, its conditions, and the ends of a run on finite levels."""
    cond = {"label": torch.arange(n) % 2}
    if process.endpoint == "given":
        cond["y"] = random.normal((n, 8), 7, dtype=F64)
    first = 1.0 if process.level(1.0).log_snr > -8.0 else process.time(-5.0).item()
    last = max(process.time(3.5).item(), process.t_min)
    data = tw.MixtureDenoiser(MEANS, 0.05, None, processes.VP()).sample(n, 5)
    x = process.perturb(data, first, random.normal((n, 8), 1, dtype=F64), cond.get("y"))
    return model(process), cond, x, first, last


@pytest.mark.parametrize("process", [*GAUSSIAN, *GIVEN], ids=name)
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_every_solver_follows_the_guided_flow_of_every_process(solver, process):
    guided, cond, x, first, last = problem(process)
    if (
        isinstance(solver, TimeShift)
        and solver.data_variance
        and isinstance(process, processes.OUVE | processes.MeanReverting)
    ):
        # Their noise is small: with the data counted, the variance of the marginal falls in time.
        with pytest.raises(IncompatibleError, match="data_variance"):
            sample(guided, x, solver=solver, steps=4, cond=cond)
        return
    times = grids.log_snr(process, 240, start=first, end=last)
    fine = sample(guided, x, solver=DPMSolver(3), times=grids.log_snr(process, 600, start=first, end=last), cond=cond)
    made = sample(guided, x, solver=solver, times=times, cond=cond)
    # What the published last step of EVODiff adds, EDICT's coupling, and first order leave.
    bound = 0.15 if solver == EVODiff("official") or isinstance(solver, EDICT) else 0.05
    assert (made - fine).square().mean(1).sqrt().median().item() < bound


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_two_sided_interpolant_is_followed_by_its_velocity_or_refused(solver):
    denoiser = tw.FunctionDenoiser(lambda x, t, **cond: x, processes.Interpolant(), tw.targets.Velocity())
    x = random.normal((2, 8), 1, dtype=F64)
    with pytest.raises(IncompatibleError):
        sample(denoiser, x, solver=solver, steps=4)


@pytest.mark.parametrize("end", [DDIM(), DPMSolver(2), UniPC(3), Heun(), EVODiff(), BDIA(0.8)], ids=repr)
@pytest.mark.parametrize("process", [*GAUSSIAN, *GIVEN], ids=name)
def test_a_gaussian_jump_begins_any_solver_on_any_process(process, end):
    _, cond, x, first, last = problem(process)
    data = tw.MixtureDenoiser(MEANS, 0.05, None, processes.VP(), LABELS)
    label = torch.arange(2000) % 2
    each = fit_class_gaussians(data.sample(2000, 2, label=label), label, process)
    top = process.level(first).log_snr
    t = process.time(top + 0.15 * (process.level(last).log_snr - top)).item()
    start = gaussian_jump(each, x, t, start=first, label=cond["label"], y=cond.get("y"))
    assert start.t == t
    made = sample(
        model(process, 1.0), start, solver=end, times=grids.log_snr(process, 60, start=t, end=last), cond=cond
    )
    times = grids.log_snr(process, 400, start=first, end=last)
    whole = sample(model(process, 1.0), x, solver=DPMSolver(3), times=times, cond=cond)
    # Where the data's shape does not yet show, the jump and the flow agree.
    assert (made - whole).square().mean(1).sqrt().median().item() < 0.12


@pytest.mark.parametrize("end", [DDIM(), DPMSolver(2), Heun(), BDIA(0.8)], ids=repr)
@pytest.mark.parametrize("process", GAUSSIAN, ids=name)
def test_chains_begin_any_solver_that_takes_a_time_for_each_sample(process, end):
    inner = model(process, 1.0)
    kernel = DenoisingMCMC(ExactNoiseLevel(inner, log_levels(0.02, 10.0, 80)), eta=0.1, n_skip=3)
    t = process.time(-torch.tensor(0.5, dtype=F64).log()).item()
    states = process.perturb(inner.sample(16, 4), t, random.normal((16, 8), 6, dtype=F64))
    emitted = kernel.run(inner, kernel.begin(states / process.level(t).alpha), 1)
    made = sample(inner, emitted.start, solver=end, steps=12, grid=grids.log_snr)
    nearest = torch.cdist(made / 1.0, MEANS).amin(1) / 8**0.5
    assert nearest.median().item() < 0.4


def test_what_takes_one_grid_for_all_refuses_a_time_for_each():
    inner = model(processes.VP(), 1.0)
    start = Start(random.normal((3, 8), 1, dtype=F64), torch.tensor([0.3, 0.4, 0.5], dtype=F64))
    for solver in (EVODiff(), TimeShift()):
        with pytest.raises(IncompatibleError, match="each sample"):
            sample(inner, start, solver=solver, steps=4)


@pytest.mark.parametrize("process", GAUSSIAN, ids=name)
def test_a_transported_start_begins_any_solver(process):
    t = process.time(-torch.tensor(0.3, dtype=F64).log()).item()
    found = transport(process, MEANS.repeat(4, 1), t, steps=150, tolerance=1.0)
    for solver in (DDIM(), EVODiff(), BDIA(0.8)):
        made = sample(model(process, 1.0), found.start(20, dtype=F64), solver=solver, steps=12, grid=grids.log_snr)
        assert (torch.cdist(made, MEANS).amin(1) / 8**0.5).median().item() < 0.4


@pytest.mark.parametrize("process", GIVEN, ids=name)
def test_a_transport_map_does_not_serve_endpoints(process):
    with pytest.raises(IncompatibleError, match="endpoint"):
        transport(process, MEANS, 0.3)
