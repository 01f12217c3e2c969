"""The columns that are predicted worst, and what the numbers say of why."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leapray.climsim.grid import competition_columns
from leapray.climsim.schema import LEARNED, TARGETS
from leapray.evaluation.metrics import ErrorMoments
from leapray.evaluation.results import Evaluation

_MOST = 0.5
"""Share of the squared error from which one cause is named alone."""
_LITTLE = 0.1
"""Spread, as a share of that in the competition's training set, below which a column hardly varies."""


@dataclass(frozen=True)
class WorstColumn:
    """A learned column: its R2, the truth's standard deviation in ``units``, the shares of its squared error that are the square of the
    mean error and that lie in the worst day (NaN where rows tell no day), and the ``reason`` that these give."""

    column: str
    units: str
    r2: float
    std: float
    bias_share: float
    worst_day_share: float
    reason: str


def worst_columns(evaluation: Evaluation, count: int = 10) -> list[WorstColumn]:
    """The ``count`` learned columns of the lowest R2, the worst first."""
    moments = evaluation.moments.total()
    r2 = evaluation.moments.score().r2
    order = [index for index in np.argsort(r2, kind="stable").tolist() if LEARNED[index]][:count]
    worst = np.max([block.error for block in evaluation.moments.blocks.values()], axis=0)
    days = len(evaluation.moments.blocks) if evaluation.timed else 0
    return [_describe(evaluation, moments, index, float(r2[index]), float(worst[index]), days) for index in order]


def _describe(evaluation: Evaluation, moments: ErrorMoments, index: int, r2: float, worst_day: float, days: int) -> WorstColumn:
    error = float(moments.error[index])
    bias_share = float(moments.count * np.square(evaluation.bias[index]) / error) if error else 0.0
    day_share = worst_day / error if days > 1 and error else float("nan")
    std = float(np.sqrt(moments.deviation[index] / moments.count))
    return WorstColumn(
        TARGETS.columns[index], TARGETS.units[index], r2, std, bias_share, day_share, _reason(index, r2, std, bias_share, day_share, days)
    )


def _reason(index: int, r2: float, std: float, bias_share: float, day_share: float, days: int) -> str:
    if std == 0:
        return "the truth is constant"
    if bias_share > _MOST:
        return f"bias: {bias_share:.0%} of the squared error is that of the mean"
    # of few days one holds much by chance
    if day_share > _MOST and day_share > 2 / days:
        return f"one day holds {day_share:.0%} of the squared error"
    if (share := std / competition_columns(TARGETS).std[index]) < _LITTLE:
        return f"hardly varies: the spread is {share:.2g} of that in the competition's training set"
    return "scatter: errors exceed the spread" if r2 < 0 else "scatter: errors vary about no bias and over many days"
