"""Our solvers on the grids of diffusers' schedulers, step for step.

Their tables and most of their states are float32, which limits the agreement to about 1e-5 on data of unit scale.
Differences that are theirs, known and not imitated: `DDIMScheduler` with "linspace" spacing steps to `t - T // n` instead
of the next time of its grid, and `DPMSolverSinglestepScheduler` of order 3 places its second stage by another formula.
"""

import pytest
import torch

from tweed import MixtureDenoiser
from tweed.core.processes import EDM
from tweed.core.random import normal
from tweed.solvers import DDIM, DEIS, DPMSolver, Problem, UniPC

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}
PROCESS = EDM(0.002, 80.0)
DENOISER = MixtureDenoiser(
    normal((3, 4), 7, dtype=torch.float64), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.3, 0.2]), PROCESS
)
START = normal((64, 4), 1, dtype=torch.float64)
SEED = 5


def sigmas_of(scheduler) -> torch.Tensor:
    if hasattr(scheduler, "sigmas"):
        return scheduler.sigmas.double()
    levels = torch.cat([scheduler.alphas_cumprod[scheduler.timesteps], scheduler.final_alpha_cumprod[None]]).double()
    return ((1 - levels) / levels).sqrt()


def ours(solver, sigmas: torch.Tensor) -> torch.Tensor:
    """Our run in `x / alpha`, whose noise level is theirs; the result in their variable."""
    problem = Problem(DENOISER, tuple((sigmas / PROCESS.sigma_max).tolist()), seed=SEED)
    x = solver.integrate(problem, START * (1 + sigmas[0] ** 2).sqrt())
    return x / (1 + sigmas[-1] ** 2).sqrt()


def theirs(scheduler, sigmas: torch.Tensor, noise: bool = False) -> torch.Tensor:
    x = START
    problem = Problem(DENOISER, tuple((sigmas / PROCESS.sigma_max).tolist()), seed=SEED)
    for i, t in enumerate(scheduler.timesteps):
        scale = (1 + sigmas[i] ** 2).sqrt()
        eps = DENOISER(x.double() * scale, problem.times[i]).eps
        extra = {"variance_noise": problem.noise(START, i)} if noise else {}
        x = scheduler.step(eps, t, x, **extra).prev_sample
    return x.double()


def difference(scheduler, n: int, solver, noise: bool = False) -> float:
    scheduler.set_timesteps(n)
    sigmas = sigmas_of(scheduler)
    return (theirs(scheduler, sigmas, noise) - ours(solver, sigmas)).abs().max().item()


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("to_one", [True, False])
def test_ddim(spacing, to_one):
    scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing=spacing, set_alpha_to_one=to_one)
    assert difference(scheduler, 10, DDIM()) < 5e-5


@pytest.mark.parametrize("n", [8, 20])
@pytest.mark.parametrize(("order", "solver_type"), [(1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint")])
@pytest.mark.parametrize(
    ("algorithm", "final"), [("dpmsolver", "sigma_min"), ("dpmsolver++", "sigma_min"), ("dpmsolver++", "zero")]
)
def test_dpm_solver_multistep(n, order, solver_type, algorithm, final):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **BETAS,
        solver_order=order,
        algorithm_type=algorithm,
        solver_type=solver_type,
        final_sigmas_type=final,
        timestep_spacing="linspace",
    )
    solver = DPMSolver(
        order,
        form="noise" if algorithm == "dpmsolver" else "data",
        solver_type="midpoint" if solver_type == "midpoint" else "taylor",
        lower_order_final=n < 15,
    )
    assert difference(scheduler, n, solver) < 5e-5


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("final", ["sigma_min", "zero"])
def test_dpm_solver_sde(order, solver_type, final):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **BETAS,
        solver_order=order,
        algorithm_type="sde-dpmsolver++",
        solver_type=solver_type,
        final_sigmas_type=final,
        timestep_spacing="trailing",
    )
    kind = "midpoint" if solver_type == "midpoint" else "taylor"
    solver = DPMSolver(order, eta=1.0, solver_type=kind, lower_order_final=False)
    assert difference(scheduler, 16, solver, noise=True) < 5e-5


@pytest.mark.parametrize("n", [7, 12])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    ("algorithm", "final"), [("dpmsolver", "sigma_min"), ("dpmsolver++", "sigma_min"), ("dpmsolver++", "zero")]
)
def test_dpm_solver_singlestep(n, order, algorithm, final):
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        **BETAS,
        solver_order=order,
        algorithm_type=algorithm,
        final_sigmas_type=final,
        lower_order_final=final == "zero",
    )
    solver = DPMSolver(order, "singlestep", "noise" if algorithm == "dpmsolver" else "data", group=True)
    scheduler.set_timesteps(n)
    if final == "sigma_min" and order == 2 and n % 2:
        # Without lower_order_final their list of orders is written for even n; ours ends with a step of order 1.
        scheduler.order_list = [1, 2] * (n // 2) + [1]
    sigmas = sigmas_of(scheduler)
    assert (theirs(scheduler, sigmas) - ours(solver, sigmas)).abs().max() < 5e-5


@pytest.mark.parametrize("n", [8, 20])
@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("form", ["data", "noise"])
def test_unipc(n, p, variant, form):
    scheduler = diffusers.UniPCMultistepScheduler(
        **BETAS,
        solver_order=p,
        solver_type=variant,
        predict_x0=form == "data",
        final_sigmas_type="sigma_min",
        timestep_spacing="trailing",
    )
    assert difference(scheduler, n, UniPC.published(p, variant, form)) < 5e-5


@pytest.mark.parametrize("p", [1, 2, 3])
def test_unipc_to_zero(p):
    scheduler = diffusers.UniPCMultistepScheduler(**BETAS, solver_order=p, final_sigmas_type="zero")
    assert difference(scheduler, 10, UniPC.published(p)) < 5e-5


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(order):
    scheduler = diffusers.DEISMultistepScheduler(**BETAS, solver_order=order, lower_order_final=False)
    assert difference(scheduler, 15, DEIS(order, variable="log_rho")) < 5e-5
