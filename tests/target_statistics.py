"""Statistics of training rows for tests."""

import numpy as np

from leapray.evaluation.metrics import TargetStatistics
from tests.columns import TARGETS

UNIT = TargetStatistics(TARGETS, np.zeros(TARGETS.width), np.ones(TARGETS.width), "rows of mean 0 and variance 1")


def statistics_of(truth: np.ndarray) -> TargetStatistics:
    """As if these rows ``(n, 368)`` were the training rows."""
    return TargetStatistics(TARGETS, truth.mean(axis=0), truth.var(axis=0), "these rows")
