"""Plots as PNG and SVG files: of a training, of variants, of a sweep, of an ensemble, and of what predictions are as fields."""

from leapray.evaluation.plots.ensemble import ensemble_overview
from leapray.evaluation.plots.learning import learning_curve
from leapray.evaluation.plots.parallel import parallel_coordinates
from leapray.evaluation.plots.progress import best_so_far
from leapray.evaluation.plots.ranked import Ranked, ranking
from leapray.evaluation.plots.trials import Tried

__all__ = ["Ranked", "Tried", "best_so_far", "ensemble_overview", "learning_curve", "parallel_coordinates", "ranking"]
