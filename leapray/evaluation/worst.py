"""The columns that cost the most skill, and what the numbers say of why."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leapray.evaluation.metrics import ErrorMoments, Score
from leapray.evaluation.results import Evaluation

_MOST = 0.5
"""Share of the squared error from which one cause is named alone."""
_LITTLE = 0.1
"""Spread, as a share of that in training, below which a column hardly varies."""


@dataclass(frozen=True)
class WorstColumn:
    """A learned column: its skill, the attainable skill and R2, the truth's standard deviation in ``units``, shares of its squared error
    (that of the mean error, that of the worst day, NaN where rows tell no day), and the ``reason`` that these give."""

    column: str
    units: str
    skill: float
    attainable: float
    r2: float
    std: float
    bias_share: float
    worst_day_share: float
    reason: str


def worst_columns(evaluation: Evaluation, count: int = 10) -> list[WorstColumn]:
    """The ``count`` learned columns whose skill is the furthest below the attainable, the furthest first."""
    moments, score = evaluation.moments.total(), evaluation.moments.score()
    lost = score.attainable_by_column - score.skill_by_column
    order = [index for index in np.argsort(-lost, kind="stable").tolist() if score.targets.learned[index]][:count]
    worst = np.max([block.error for block in evaluation.moments.blocks.values()], axis=0)
    days = len(evaluation.moments.blocks) if evaluation.timed else 0
    return [_describe(evaluation, moments, score, index, float(worst[index]), days) for index in order]


def _describe(evaluation: Evaluation, moments: ErrorMoments, score: Score, index: int, worst_day: float, days: int) -> WorstColumn:
    error = float(moments.error[index])
    bias_share = float(moments.count * np.square(evaluation.bias[index]) / error) if error else 0.0
    day_share = worst_day / error if days > 1 and error else float("nan")
    std = float(np.sqrt(moments.deviation[index] / moments.count))
    usual = float(np.sqrt(score.statistics.variance[index]))
    skill, attainable, r2 = (float(values[index]) for values in (score.skill_by_column, score.attainable_by_column, score.r2))
    reason = _reason(r2, std, std / usual if usual else 1.0, bias_share, day_share, days)
    columns, units = score.targets.columns, score.targets.units
    return WorstColumn(columns[index], units[index], skill, attainable, r2, std, bias_share, day_share, reason)


def _reason(r2: float, std: float, share: float, bias_share: float, day_share: float, days: int) -> str:
    if std == 0:
        return "the truth is constant"
    if bias_share > _MOST:
        return f"bias: {bias_share:.0%} of the squared error is that of the mean"
    # of few days one holds much by chance
    if day_share > _MOST and day_share > 2 / days:
        return f"one day holds {day_share:.0%} of the squared error"
    if share < _LITTLE:
        return f"hardly varies: the spread is {share:.2g} of that in training"
    if r2 < 0:
        return "scatter: errors exceed the spread"
    return "scatter: there is no bias" + (", and no day has most of the error" if days > 1 else "")
