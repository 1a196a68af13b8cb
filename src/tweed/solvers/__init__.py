"""Solvers: how a denoiser's field is followed from noise to data, or back."""

from tweed.solvers import differential
from tweed.solvers.adams import LMS, PNDM, AdamsBashforth
from tweed.solvers.adaptive_dpm import AdaptiveDPM
from tweed.solvers.adaptive_runge_kutta import AdaptiveRungeKutta
from tweed.solvers.ancestral import EulerAncestral
from tweed.solvers.base import Problem, Solver, State, Transition
from tweed.solvers.bdia import BDIA
from tweed.solvers.ddim import DDIM, DDPM
from tweed.solvers.deis import DEIS
from tweed.solvers.dpm_solver import DPMSolver
from tweed.solvers.edict import EDICT
from tweed.solvers.euler import Euler
from tweed.solvers.euler_maruyama import EulerMaruyama
from tweed.solvers.evodiff import EVODiff
from tweed.solvers.fit_grid import FittedGrid, fit_grid, keep_grid, kept_grids
from tweed.solvers.heun import Heun
from tweed.solvers.interpolant_sde import InterpolantSDE
from tweed.solvers.langevin import AnnealedLangevin, Langevin
from tweed.solvers.likelihood import Likelihood, bits_per_dim, log_likelihood
from tweed.solvers.predictor_corrector import PredictorCorrector
from tweed.solvers.recommend import Recommendation, recommend
from tweed.solvers.reverse_diffusion import Ancestral, ReverseDiffusion
from tweed.solvers.reversible import Pair, Reversible
from tweed.solvers.rotation import rotate, rotating
from tweed.solvers.runge_kutta import DPM2, RungeKutta
from tweed.solvers.sampling import invert, sample
from tweed.solvers.table import Row, Table, TableSolver
from tweed.solvers.time_shift import EpsilonScaling, TimeShift
from tweed.solvers.unipc import UniPC

__all__ = [
    "BDIA",
    "DDIM",
    "DDPM",
    "DEIS",
    "DPM2",
    "EDICT",
    "LMS",
    "PNDM",
    "AdamsBashforth",
    "AdaptiveDPM",
    "AdaptiveRungeKutta",
    "Ancestral",
    "AnnealedLangevin",
    "DPMSolver",
    "EVODiff",
    "EpsilonScaling",
    "Euler",
    "EulerAncestral",
    "EulerMaruyama",
    "FittedGrid",
    "Heun",
    "InterpolantSDE",
    "Langevin",
    "Likelihood",
    "Pair",
    "PredictorCorrector",
    "Problem",
    "Recommendation",
    "ReverseDiffusion",
    "Reversible",
    "Row",
    "RungeKutta",
    "Solver",
    "State",
    "Table",
    "TableSolver",
    "TimeShift",
    "Transition",
    "UniPC",
    "bits_per_dim",
    "differential",
    "fit_grid",
    "invert",
    "keep_grid",
    "kept_grids",
    "log_likelihood",
    "recommend",
    "rotate",
    "rotating",
    "sample",
]
