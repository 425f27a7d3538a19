"""Optimising splats to pictures."""

from scenetx.fit.evaluate import ViewScores, evaluate_views
from scenetx.fit.optimize import FitUpdate, fit_splats
from scenetx.fit.settings import FitSettings, Quality, Strategy, settings_for

__all__ = [
    "FitSettings",
    "FitUpdate",
    "Quality",
    "Strategy",
    "ViewScores",
    "evaluate_views",
    "fit_splats",
    "settings_for",
]
