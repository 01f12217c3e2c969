"""Plots as PNG files: of a training, of variants beside their base, of a sweep's trials."""

from leapray.evaluation.plots.learning import learning_curve
from leapray.evaluation.plots.parallel import parallel_coordinates
from leapray.evaluation.plots.progress import best_so_far
from leapray.evaluation.plots.ranked import Ranked, ranking
from leapray.evaluation.plots.trials import Tried

__all__ = ["Ranked", "Tried", "best_so_far", "learning_curve", "parallel_coordinates", "ranking"]
