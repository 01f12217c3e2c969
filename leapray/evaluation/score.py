"""Scoring files: predictions against truth, row by row of the same ``sample_id``, whatever their order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from leapray.climsim.schema import SAMPLE_ID
from leapray.errors import UserError
from leapray.evaluation.metrics import ErrorMoments, Score
from leapray.evaluation.sample import read_sample
from leapray.evaluation.tables import Source, gather, locate, name, read_ids, read_targets, some


def score_files(predictions: Source, truth: Source, sample_submission: str | None = None) -> Score:
    """R2 of predictions against truth, each a parquet or csv source with ``sample_id`` and the 368 targets.

    Truth is in physical units; so are predictions, unless they are a submission: then ``sample_submission`` gives the weights
    that truth is multiplied by. Predictions in truth's order are streamed, others are held in memory once. Raises UserError
    when ids differ, stand twice or are none, and when a number is not finite.
    """
    weights = read_sample(sample_submission).weights if sample_submission else 1.0
    predicted_ids, ids = read_ids(predictions), read_ids(truth)
    places = _match(predicted_ids, ids, name(predictions), name(truth))
    if np.array_equal(places, np.arange(len(places))):
        blocks = _in_step(read_targets(predictions), read_targets(truth))
    else:
        blocks = _against(gather(predictions, places, len(ids)), read_targets(truth))
    moments = ErrorMoments()
    for prediction, expected in blocks:
        _require_finite(prediction, name(predictions))
        _require_finite(expected, name(truth))
        moments.update(expected * weights, prediction)
    return moments.score()


def _match(predicted: pa.ChunkedArray, ids: pa.ChunkedArray, predictions: str, truth: str) -> np.ndarray:
    """Row of truth that each prediction belongs to."""
    if not len(ids):
        raise UserError(f"{truth}: has no rows to score against")
    places = locate(predicted, ids)
    clauses = []
    if unknown := int((places < 0).sum()):
        clauses.append(
            f"{unknown} of {len(predicted)} ids of {predictions} are not in {truth} ({some(predicted.filter(pa.array(places < 0)))})"
        )
    unpredicted = np.ones(len(ids), dtype=bool)
    unpredicted[places[places >= 0]] = False
    if missing := int(unpredicted.sum()):
        clauses.append(f"{missing} of {len(ids)} ids of {truth} are not in {predictions} ({some(ids.filter(pa.array(unpredicted)))})")
    if clauses:
        raise UserError(f"{SAMPLE_ID} must be the same in predictions and truth: {'; '.join(clauses)}")
    return places


def _in_step(left: Iterator[np.ndarray], right: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Two streams of the same rows, cut into blocks of equal length."""
    a, b = next(left, None), next(right, None)
    while a is not None and b is not None:
        rows = min(len(a), len(b))
        if rows:
            yield a[:rows], b[:rows]
        a = a[rows:] if len(a) > rows else next(left, None)
        b = b[rows:] if len(b) > rows else next(right, None)


def _against(matrix: np.ndarray, stream: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    start = 0
    for block in stream:
        yield matrix[start : start + len(block)], block
        start += len(block)


def _require_finite(values: np.ndarray, label: str) -> None:
    if bad := int((~np.isfinite(values)).any(axis=1).sum()):
        raise UserError(f"{label}: {bad} rows hold NaN or Inf; targets must be finite numbers")
