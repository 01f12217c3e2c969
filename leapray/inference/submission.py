"""The competition's file: physical predictions times the weights of a sample submission, in its order of rows and columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from leapray import storage
from leapray.climsim.schema import KAGGLE, SAMPLE_ID
from leapray.errors import UserError
from leapray.evaluation.matching import Matched, match
from leapray.evaluation.metrics import ErrorMoments, Score, TargetStatistics
from leapray.evaluation.sample import SampleSubmission, read_sample
from leapray.evaluation.tables import ROWS, Source, gather, locate, name, read_ids, read_keys, read_targets, require_finite, some

Notice = Callable[[str], None]
_TARGETS = KAGGLE.targets
"""Of the competition."""


def submit(
    predictions: Source, sample_submission: str, destination: str, truth: Source | None = None, notice: Notice = lambda _: None
) -> tuple[int, Score | None]:
    """:func:`write_submission`, and what the file that was written scores against ``truth``, in physical units, where it is given.

    ``notice`` is called with one sentence for each of the three sources that is a folder of which files are passed over.
    Raises UserError too for a truth of other rows, before anything is written.
    """
    if truth is None:
        return write_submission(predictions, sample_submission, destination, notice), None
    for source in _urls(truth):
        storage.require_outside(destination, source)
    match(read_keys(sample_submission), read_keys(truth, notice))
    rows = write_submission(predictions, sample_submission, destination, notice)
    try:
        return rows, score_files(destination, truth, sample_submission)
    except UserError as error:
        raise UserError(f"{destination} was written, but cannot be scored: {error}") from error


def write_submission(predictions: Source, sample_submission: str, destination: str, notice: Notice = lambda _: None) -> int:
    """Write a submission, ``.csv`` or ``.parquet``, that appears whole or not at all; returns its rows.

    ``predictions`` are in physical units, with at least the sample's ids; others are left out. Numbers keep every bit of a
    float64. Predictions in the sample's order are streamed, others are held in memory once (3 kB a row). Raises UserError for ids
    that are missing or stand twice, predictions that are not finite, and a sample that is not one (see ``read_sample``).
    """
    if not destination.endswith((".csv", ".parquet")):
        raise UserError(f"{destination}: a submission's name must end with .csv or .parquet")
    for source in (*_urls(predictions), sample_submission):
        storage.require_outside(destination, source)
    sample = read_sample(sample_submission, _TARGETS, notice)
    places = locate(read_ids(predictions, notice), sample.ids)
    missing = np.ones(len(sample.ids), dtype=bool)
    missing[places[places >= 0]] = False
    if missing.any():
        raise UserError(
            f"{name(predictions)}: {missing.sum()} of {len(sample.ids)} ids of {sample_submission} are missing: "
            f"{some(sample.ids.filter(pa.array(missing)))}"
        )
    start = 0
    with storage.atomic_file(destination) as file, _writer(file, destination, sample.columns) as writer:
        for physical in _in_order(predictions, places, len(sample.ids)):
            ids = sample.ids[start : start + len(physical)]
            require_finite(physical, ids, _TARGETS.columns, name(predictions))
            writer.write_table(_table(sample, ids, physical))
            start += len(physical)
    return start


def _urls(source: Source) -> list[str]:
    return [source] if isinstance(source, str) else list(source)


def _in_order(predictions: Source, places: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    """Predictions ``(n, t)``, some at a time; the i-th is to stand in row ``places[i]`` of ``rows``, or nowhere if that is -1."""
    if np.array_equal(places, np.arange(rows)):
        yield from read_targets(predictions, _TARGETS)
        return
    physical = gather(predictions, _TARGETS, places, rows)
    for start in range(0, rows, ROWS):
        yield physical[start : start + ROWS]


def _table(sample: SampleSubmission, ids: pa.ChunkedArray, physical: np.ndarray) -> pa.Table:
    weighted = np.asfortranarray(physical * sample.weights)
    arrays = [pa.array(weighted[:, place]) for place in _TARGETS.places(sample.columns)]
    return pa.table([ids, *arrays], schema=_schema(sample.columns))


def _schema(columns: tuple[str, ...]) -> pa.Schema:
    return pa.schema([(SAMPLE_ID, pa.string()), *((name, pa.float64()) for name in columns)])


@contextmanager
def _writer(file: IO[bytes], destination: str, columns: tuple[str, ...]) -> Iterator[Any]:
    if destination.endswith(".parquet"):
        with pq.ParquetWriter(file, _schema(columns), use_dictionary=False) as writer:
            yield writer
        return
    # pyarrow would quote every name of the header
    file.write((",".join([SAMPLE_ID, *columns]) + "\n").encode())
    options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="needed")
    with pyarrow.csv.CSVWriter(file, _schema(columns), write_options=options) as writer:
        yield writer


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
