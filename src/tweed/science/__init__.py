"""Science: models of processes in time, and what is found in them."""

from tweed.science.controls import Control, fill_missing, hermite, linear, rectilinear, with_time
from tweed.science.latent_sde import LatentSDE, posterior_path
from tweed.science.neural_cde import MatrixField, NeuralCDE, cdeint
from tweed.science.neural_ode import NeuralODE
from tweed.science.sde_gan import CDECritic, SDEGANSettings, SDEGenerator, fit_sde_gan, sde_gan
from tweed.science.symbolic_regression import (
    Expression,
    Front,
    MissingPackageError,
    recover_field,
    symbolic_regression,
)

__all__ = [
    "CDECritic",
    "Control",
    "Expression",
    "Front",
    "LatentSDE",
    "MatrixField",
    "MissingPackageError",
    "NeuralCDE",
    "NeuralODE",
    "SDEGANSettings",
    "SDEGenerator",
    "cdeint",
    "fill_missing",
    "fit_sde_gan",
    "hermite",
    "linear",
    "posterior_path",
    "recover_field",
    "rectilinear",
    "sde_gan",
    "symbolic_regression",
    "with_time",
]
