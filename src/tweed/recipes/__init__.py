"""Recipes: each reproduces the claim of one published system at small scale, and reports which relations hold."""

from tweed.recipes.report import (
    Progress,
    Report,
    Row,
    at_least,
    at_most,
    check,
    greater_than,
    info,
    less_than,
    silent,
    span,
    within,
)
from tweed.recipes.systems import System, catalogue

__all__ = [
    "Progress",
    "Report",
    "Row",
    "System",
    "at_least",
    "at_most",
    "catalogue",
    "check",
    "greater_than",
    "info",
    "less_than",
    "silent",
    "span",
    "within",
]
