"""Solvers: how a denoiser's field is followed from noise to data, or back."""

from tweed.solvers.base import Problem, Solver, State, Transition
from tweed.solvers.ddim import DDIM, DDPM
from tweed.solvers.sampling import invert, sample
from tweed.solvers.table import Row, Table, TableSolver

__all__ = [
    "DDIM",
    "DDPM",
    "Problem",
    "Row",
    "Solver",
    "State",
    "Table",
    "TableSolver",
    "Transition",
    "invert",
    "sample",
]
