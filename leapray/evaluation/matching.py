"""Which row of the truth each prediction belongs to, and predictions in the truth's order, whatever theirs is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leapray.climsim.schema import SAMPLE_ID, TARGETS
from leapray.errors import UserError
from leapray.evaluation.tables import Keys, Source, gather, locate, name, read_keys, read_targets, some


def match(predicted: Keys, truth: Keys) -> np.ndarray:
    """Row of truth that each prediction belongs to, int64 ``(n,)``: by ids where they tell rows apart in both, else by row keys.

    Raises UserError where neither does, for rows that are missing or unknown, and for ids that differ in a row matched by its key.
    """
    if not len(truth.ids):
        raise UserError(f"{truth.name}: has no rows to score against")
    keyed = predicted.rows is not None and truth.rows is not None
    if keyed and not (predicted.unique and truth.unique):
        return _match_rows(predicted, truth)
    predicted.require_unique()
    truth.require_unique()
    places = locate(predicted.ids, truth.ids)
    _require_same(places, predicted, truth, SAMPLE_ID)
    return places


def _match_rows(predicted: Keys, truth: Keys) -> np.ndarray:
    assert predicted.rows is not None
    assert truth.rows is not None
    for keys in (predicted, truth):
        assert keys.rows is not None
        values, counts = np.unique(keys.rows, return_counts=True)
        if (counts > 1).any():
            where = np.isin(keys.rows, values[counts > 1])
            raise UserError(f"{keys.name}: a row stands there more than once ({SAMPLE_ID} {some(keys.ids.filter(pa.array(where)))})")
    places = locate(pa.chunked_array([predicted.rows]), pa.chunked_array([truth.rows]))
    _require_same(places, predicted, truth, "row")
    expected = truth.ids.take(pa.array(places))
    differs = np.array(pc.not_equal(predicted.ids, expected).fill_null(False))
    if differs.any():
        first = int(np.argmax(differs))
        raise UserError(
            f"{predicted.name}: {SAMPLE_ID} {predicted.ids[first].as_py()} has the row key of {expected[first].as_py()} in {truth.name}; "
            "ids and rows must be the same in both"
        )
    return places


def _require_same(places: np.ndarray, predicted: Keys, truth: Keys, key: str) -> None:
    """Raises UserError unless predictions and truth are of the same rows."""
    clauses = []
    if unknown := int((places < 0).sum()):
        strange = some(predicted.ids.filter(pa.array(places < 0)))
        clauses.append(f"{unknown} of {len(places)} ids of {predicted.name} are not in {truth.name} ({strange})")
    unpredicted = np.ones(len(truth.ids), dtype=bool)
    unpredicted[places[places >= 0]] = False
    if missing := int(unpredicted.sum()):
        left = some(truth.ids.filter(pa.array(unpredicted)))
        clauses.append(f"{missing} of {len(truth.ids)} ids of {truth.name} are not in {predicted.name} ({left})")
    if clauses:
        raise UserError(f"{key} must be the same in predictions and truth: {'; '.join(clauses)}")


class Matched:
    """Predictions in the order of the truth: streamed where they are in it already, else held in memory once (3 kB a row).

    Raises UserError as :func:`match` does, and from :meth:`take` when a number is not finite.
    """

    def __init__(self, source: Source, truth: Keys) -> None:
        self.name = name(source)
        places = match(read_keys(source), truth)
        in_order = np.array_equal(places, np.arange(len(places)))
        self._blocks: Iterator[np.ndarray] = read_targets(source) if in_order else iter([gather(source, places, len(places))])
        self._left = np.zeros((0, TARGETS.width))

    def take(self, rows: int) -> np.ndarray:
        """The next predictions ``(rows, 368)``, column by column in memory."""
        parts: list[np.ndarray] = []
        while rows or not parts:
            if rows and not len(self._left):
                self._left = next(self._blocks)
            parts.append(self._left[:rows])
            self._left = self._left[rows:]
            rows -= len(parts[-1])
        values = parts[0] if len(parts) == 1 else np.concatenate([part.T for part in parts], axis=1).T
        require_finite(values, self.name)
        return values


def require_finite(values: np.ndarray, label: str) -> None:
    """Raises UserError when rows ``(n, c)`` hold NaN or Inf."""
    if bad := int((~np.isfinite(values)).any(axis=1).sum()):
        raise UserError(f"{label}: {bad} rows hold NaN or Inf; targets must be finite numbers")
