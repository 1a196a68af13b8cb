"""Inverse problems: samples of a posterior, or a likely sample, from a denoiser and a measurement.

solution = tw.inverse.PiGDM().solve(model, tw.inverse.Measurement(operator, y, noise=0.05), n=4)
"""

from tweed.inverse import operators
from tweed.inverse.calibration import Calibration, calibrate
from tweed.inverse.ddrm import DDRM
from tweed.inverse.diffpir import DiffPIR
from tweed.inverse.diffusion_mbir import DiffusionMBIR, slice_wise, total_variation
from tweed.inverse.dps import DPS
from tweed.inverse.ensemble import EnsemblePosterior
from tweed.inverse.flow_chef import FlowChef, classifier_cost, masked_reference
from tweed.inverse.measurement import Measurement, Solution
from tweed.inverse.method import Method
from tweed.inverse.optimal_boundary import BoundaryCondition, search_boundary, squared_error
from tweed.inverse.pigdm import PiGDM
from tweed.inverse.red_diff import REDDiff, red_diff_gradient

__all__ = [
    "DDRM",
    "DPS",
    "BoundaryCondition",
    "Calibration",
    "DiffPIR",
    "DiffusionMBIR",
    "EnsemblePosterior",
    "FlowChef",
    "Measurement",
    "Method",
    "PiGDM",
    "REDDiff",
    "Solution",
    "calibrate",
    "classifier_cost",
    "masked_reference",
    "operators",
    "red_diff_gradient",
    "search_boundary",
    "slice_wise",
    "squared_error",
    "total_variation",
]
