"""Which row of the truth each prediction belongs to, and predictions in the truth's order, whatever theirs is."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leapray.climsim.calendar import Month, month_of_step
from leapray.climsim.row_keys import month_of_key, row_place
from leapray.climsim.schema import SAMPLE_ID, Targets
from leapray.errors import UserError
from leapray.evaluation.tables import Keys, Source, gather, locate, name, read_keys, read_targets, require_finite, some


def match(predicted: Keys, truth: Keys, whole: Callable[[], Keys] | None = None) -> np.ndarray:
    """Row of truth that each prediction belongs to, int64 ``(n,)``: by ids where they tell rows apart in both, else by row keys.

    Where ``truth`` are the selected rows of more, which ``whole`` reads, predictions of rows that were not selected are left out: -1.
    Raises UserError where neither ids nor keys tell rows apart, for rows that are missing or unknown, and for ids that differ in a row
    matched by its key.
    """
    if not len(truth.ids):
        raise UserError(f"{truth.name}: has no rows to score against")
    keyed = predicted.rows is not None and truth.rows is not None
    if keyed and not (predicted.unique and truth.unique):
        return _match_rows(predicted, truth, whole)
    predicted.require_unique()
    truth.require_unique()
    places = locate(predicted.ids, truth.ids)
    strange = places < 0
    if whole is not None and strange.any():
        strange[strange] = locate(predicted.ids.filter(pa.array(strange)), whole().ids) < 0
    _require_same(places, strange, predicted, truth, SAMPLE_ID)
    if keyed:
        _require_months(places, predicted, truth)
    return places


def _require_months(places: np.ndarray, predicted: Keys, truth: Keys) -> None:
    """Raises UserError where rows of the same id lie in months apart: files that are written month by month begin anew with train_0."""
    assert predicted.rows is not None
    assert truth.rows is not None
    held = places >= 0
    ours, theirs = month_of_key(predicted.rows[held]), month_of_key(truth.rows[places[held]])
    apart = np.flatnonzero((ours != theirs) & (ours > 0) & (theirs > 0))
    if len(apart):
        first = apart[0]
        found, expected = (Month(0, 1) + int(month[first]) for month in (ours, theirs))
        identifier = predicted.ids.filter(pa.array(held))[first].as_py()
        raise UserError(f"{predicted.name}: {identifier} is a row of {found}, but of {expected} in {truth.name}; these are other rows")


def _match_rows(predicted: Keys, truth: Keys, whole: Callable[[], Keys] | None) -> np.ndarray:
    assert predicted.rows is not None
    assert truth.rows is not None
    for keys in (predicted, truth):
        assert keys.rows is not None
        values, counts = np.unique(keys.rows, return_counts=True)
        if (counts > 1).any():
            where = np.isin(keys.rows, values[counts > 1])
            raise UserError(f"{keys.name}: a row stands there more than once ({SAMPLE_ID} {some(keys.ids.filter(pa.array(where)))})")
    places = locate(pa.chunked_array([predicted.rows]), pa.chunked_array([truth.rows]))
    strange = places < 0
    if whole is not None and strange.any():
        known = whole().rows
        assert known is not None
        strange[strange] = ~np.isin(predicted.rows[strange], known)
    _require_same(places, strange, predicted, truth, "row")
    held = places >= 0
    expected, found = truth.ids.take(pa.array(places[held])), predicted.ids.filter(pa.array(held))
    differs = np.array(pc.not_equal(found, expected).fill_null(False))
    if differs.any():
        first = int(np.argmax(differs))
        raise UserError(
            f"{predicted.name}: {SAMPLE_ID} {found[first].as_py()} has the row key of {expected[first].as_py()} in {truth.name}; "
            "ids and rows must be the same in both"
        )
    return places


def _require_same(places: np.ndarray, strange: np.ndarray, predicted: Keys, truth: Keys, key: str) -> None:
    """Raises UserError where predictions are ``strange`` to the truth, or rows of it were not predicted."""
    clauses = []
    if unknown := int(strange.sum()):
        named = some(predicted.ids.filter(pa.array(strange)))
        clauses.append(f"{unknown} of {len(places)} ids of {predicted.name} are not in {truth.name} ({named})")
    unpredicted = np.ones(len(truth.ids), dtype=bool)
    unpredicted[places[places >= 0]] = False
    if missing := int(unpredicted.sum()):
        left = some(truth.ids.filter(pa.array(unpredicted)))
        clauses.append(f"{missing} of {len(truth.ids)} ids of {truth.name} are not in {predicted.name} ({left})")
    if clauses:
        hint = _months(predicted, truth) if not strange.any() else ""
        raise UserError(f"{key} must be the same in predictions and truth: {'; '.join(clauses)}{hint}")


def _months(predicted: Keys, truth: Keys) -> str:
    """The months that were predicted, as options that select them from a truth of more months; empty where rows do not tell them."""
    if predicted.rows is None or truth.rows is None or not len(predicted.rows) or min(predicted.rows.min(), truth.rows.min()) < 0:
        return ""
    step, of_truth = row_place(predicted.rows)[1], row_place(truth.rows)[1]
    first, last = month_of_step(int(step.min())), month_of_step(int(step.max()))
    if (first, last) == (month_of_step(int(of_truth.min())), month_of_step(int(of_truth.max()))):
        return ""
    return f"; the predictions are of {first} to {last}: give --start {first} --stop {last + 1}"


class Matched:
    """Predictions in the order of the truth: streamed where they are in it already, else held in memory once (3 kB a row).

    ``notice`` is called with one sentence when files of the source are passed over.
    Raises UserError as :func:`match` does, and from :meth:`take` when a number is not finite.
    """

    def __init__(
        self,
        source: Source,
        truth: Keys,
        targets: Targets,
        whole: Callable[[], Keys] | None = None,
        notice: Callable[[str], None] | None = None,
    ) -> None:
        self.name, self._targets = name(source), targets
        self._ids, self._taken = truth.ids, 0
        places = match(read_keys(source, notice), truth, whole)
        in_order = np.array_equal(places[places >= 0], np.arange(len(truth.ids)))
        self._blocks = _held(source, targets, places >= 0) if in_order else iter([gather(source, targets, places, len(truth.ids))])
        self._left = np.zeros((0, targets.width))

    def take(self, rows: int) -> np.ndarray:
        """The next predictions ``(rows, t)``, column by column in memory."""
        ids = self._ids[self._taken : self._taken + rows]
        self._taken += rows
        parts: list[np.ndarray] = []
        while rows or not parts:
            if rows and not len(self._left):
                self._left = next(self._blocks)
            parts.append(self._left[:rows])
            self._left = self._left[rows:]
            rows -= len(parts[-1])
        values = parts[0] if len(parts) == 1 else np.concatenate([part.T for part in parts], axis=1).T
        require_finite(values, ids, self._targets.columns, self.name)
        return values


def _held(source: Source, targets: Targets, held: np.ndarray) -> Iterator[np.ndarray]:
    """The targets of some rows of a source, in its order."""
    start = 0
    for values in read_targets(source, targets):
        here = held[start : start + len(values)]
        start += len(values)
        yield values if here.all() else values.T[:, here].T
