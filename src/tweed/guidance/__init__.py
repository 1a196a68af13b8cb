"""Guidance: denoisers made from denoisers."""

from tweed.guidance import modalities
from tweed.guidance.classifier import ClassifierGuidance
from tweed.guidance.classifier_free import ClassifierFree
from tweed.guidance.look_ahead import LookAheadGuidance
from tweed.guidance.optimize import Optimized, optimize
from tweed.guidance.reward import pseudo_labels, ridge
from tweed.guidance.thresholding import Thresholding

__all__ = [
    "ClassifierFree",
    "ClassifierGuidance",
    "LookAheadGuidance",
    "Optimized",
    "Thresholding",
    "modalities",
    "optimize",
    "pseudo_labels",
    "ridge",
]
