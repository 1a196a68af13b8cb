"""Measurement operators: what a sample is seen through."""

from tweed.inverse.operators.base import (
    LinearOperator,
    Operator,
    Physics,
    Spectrum,
    adjoint_error,
    as_operator,
    check_adjoint,
)
from tweed.inverse.operators.blur import Blur, gaussian_kernel, motion_kernel
from tweed.inverse.operators.dense import ChannelProjection, Matrix
from tweed.inverse.operators.fourier import MaskedFourier, cartesian_mask, poisson_disc_mask, radial_mask
from tweed.inverse.operators.masking import Inpainting, box_mask, random_mask
from tweed.inverse.operators.nonlinear import JPEG, HighDynamicRange, PhaseRetrieval
from tweed.inverse.operators.radon import Radon, parallel_angles
from tweed.inverse.operators.separable import Separable, SuperResolution, gaussian_matrix

__all__ = [
    "JPEG",
    "Blur",
    "ChannelProjection",
    "HighDynamicRange",
    "Inpainting",
    "LinearOperator",
    "MaskedFourier",
    "Matrix",
    "Operator",
    "PhaseRetrieval",
    "Physics",
    "Radon",
    "Separable",
    "Spectrum",
    "SuperResolution",
    "adjoint_error",
    "as_operator",
    "box_mask",
    "cartesian_mask",
    "check_adjoint",
    "gaussian_kernel",
    "gaussian_matrix",
    "motion_kernel",
    "parallel_angles",
    "poisson_disc_mask",
    "radial_mask",
    "random_mask",
]
