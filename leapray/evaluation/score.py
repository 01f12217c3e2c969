"""Scoring files: predictions against truth, row by row of the same ``sample_id``, whatever their order."""

from __future__ import annotations

import numpy as np

from leapray.climsim.schema import KAGGLE
from leapray.evaluation.matching import Matched
from leapray.evaluation.metrics import ErrorMoments, Score, TargetStatistics
from leapray.evaluation.sample import read_sample
from leapray.evaluation.tables import Source, name, read_keys, read_targets, require_finite


def score_files(predictions: Source, truth: Source, sample_submission: str | None = None) -> Score:
    """Scores of predictions against truth, each a parquet or csv source with ``sample_id`` and the targets of the LEAP competition.

    Truth is in physical units; so are predictions, unless they are a submission: then ``sample_submission`` gives the weights that they are
    divided by. Skill is measured against the competition's training rows. Predictions in truth's order are streamed, others are held in
    memory once. Raises UserError when ids differ, stand twice or are none, and when a number is not finite.
    """
    targets = KAGGLE.targets
    weights = read_sample(sample_submission, targets).weights if sample_submission else np.ones(targets.width)
    keys = read_keys(truth)
    matched = Matched(predictions, keys, targets)
    moments, done = ErrorMoments.empty(targets), 0
    for expected in read_targets(truth, targets):
        require_finite(expected, keys.ids[done : done + len(expected)], targets.columns, name(truth))
        done += len(expected)
        # a column without weight is 0 in truth and prediction
        given = matched.take(len(expected)) / np.where(weights > 0, weights, 1.0)
        moments.update(np.where(weights > 0, expected, 0.0), np.where(weights > 0, given, 0.0))
    return moments.score(TargetStatistics.of_competition().of(weights > 0))
