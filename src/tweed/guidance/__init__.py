"""Guidance: denoisers made from denoisers."""

from tweed.guidance.classifier_free import ClassifierFree

__all__ = ["ClassifierFree"]
