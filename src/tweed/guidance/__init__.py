"""Guidance: denoisers made from denoisers."""

from tweed.guidance.classifier import ClassifierGuidance
from tweed.guidance.classifier_free import ClassifierFree

__all__ = ["ClassifierFree", "ClassifierGuidance"]
