"""Members' predictions as files: of each piece of a source one part, whose rows are given in the order of the truth's.

What ``predict`` keeps of models lies so; predictions of older runs, in whatever files and order, are laid out alike before they are used.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leapray import storage
from leapray.climsim.schema import Targets, VariableSet
from leapray.data import flat
from leapray.data.clean import finite
from leapray.errors import UserError
from leapray.evaluation.tables import ROW, Keys, locate, read_keys, read_targets, readable
from leapray.inference.ensemble.months import Portion
from leapray.inference.parts import part, part_writer

BLOCK_ROWS = 2048
"""Rows that are taken at a time, of every member."""


class PartReader:
    """The rows of a part, taken by their keys some at a time, in the order of the part; others are passed over. Bounded in memory."""

    def __init__(self, url: str, targets: Targets) -> None:
        self.url, self._targets = url, targets
        self._batches = self._read()
        self._row = np.empty(0, np.int64)
        self._values = np.empty((targets.width, 0))

    def take(self, row: np.ndarray) -> np.ndarray:
        """Predictions ``(n, t)`` of the rows with these keys. Raises UserError for rows that the part lacks, or that are not finite."""
        while (places := _places(row, self._row)) is None:
            if (batch := next(self._batches, None)) is None:
                missing = ~np.isin(row, self._row)
                raise UserError(f"{self.url}: lacks {int(missing.sum())} rows of the input, the first with key {row[missing][0]}")
            self._row = np.concatenate([self._row, batch[0]])
            self._values = np.concatenate([self._values, batch[1]], axis=1)
        found = np.take(self._values, places, axis=1)
        if not np.isfinite(found).all():
            raise UserError(f"{self.url}: holds NaN or Inf; predictions must be finite numbers")
        used = int(places.max(initial=-1)) + 1
        self._row, self._values = self._row[used:], self._values[:, used:]
        return found.T

    def _read(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        with readable(self.url), storage.open_input(self.url) as file:
            for batch in pq.ParquetFile(file).iter_batches(BLOCK_ROWS, columns=[ROW, *self._targets.columns]):
                yield batch.column(ROW).to_numpy(), np.array([batch.column(name).to_numpy() for name in self._targets.columns])


def _places(row: np.ndarray, among: np.ndarray) -> np.ndarray | None:
    """Position of each key among others ``(n,)``; None where one of them is not there."""
    if not len(among):
        return None if len(row) else np.empty(0, np.int64)
    order = np.argsort(among, kind="stable")
    places = order[np.searchsorted(among, row, sorter=order).clip(max=len(among) - 1)]
    return places if np.array_equal(among[places], row) else None


def lay_out(predictions: str, name: str, portion: Portion, directory: str, bad_rows: str, variables: VariableSet) -> None:
    """Write an older run's predictions of a portion as parts, unless they are all there.

    Rows are known by their keys, where the files have a column ``row``, else by ``sample_id``. The files may be parquet or csv, hold
    further rows, and have any order: their values pass through a temporary file on this machine. Rows whose inputs are not finite need
    no prediction where ``bad_rows`` is ``drop``. Raises UserError for rows that are missing or stand twice.
    """
    if all(storage.exists(part(directory, number)) for number in range(len(portion.pieces))):
        return
    known = read_keys(predictions)
    find = _finder(known)
    with tempfile.TemporaryFile(prefix="leapray-") as file:
        values = np.memmap(file, np.float64, "w+", shape=(len(known.ids), variables.targets.width))
        start = 0
        for batch in read_targets(predictions, variables.targets):
            values[start : start + len(batch)] = batch
            start += len(batch)
        for number, piece in enumerate(portion.pieces):
            with part_writer(directory, number, variables.targets) as write:
                for read in flat.read_piece(piece, variables, targets=False, kind=portion.kind):
                    block = finite(read, piece.path, bad_rows, variables) if bad_rows == "drop" else read
                    places = find(block)
                    if (missing := places < 0).any():
                        first = block.sample_id[int(np.argmax(missing))].as_py()
                        raise UserError(
                            f"ensemble.members: {name} lacks predictions of {int(missing.sum())} rows of {piece.path}, the first {first}; "
                            f"expected all rows of {portion.path} in {predictions}"
                        )
                    write(block, values[places], ())


def _finder(known: Keys) -> Callable[[flat.Block], np.ndarray]:
    """A function that gives the position of each row of a block among predictions ``(n,)``, -1 where it is not there."""
    rows = known.rows
    if rows is None:
        known.require_unique()
        return lambda block: locate(pa.chunked_array([block.sample_id]), known.ids)
    order = np.argsort(rows)
    if (np.diff(rows[order]) == 0).any():
        raise UserError(f"{known.name}: column {ROW} must be unique, and a key stands there more than once")

    def find(block: flat.Block) -> np.ndarray:
        places = order[np.searchsorted(rows, block.row, sorter=order).clip(max=len(rows) - 1)]
        return np.where(rows[places] == block.row, places, -1)

    return find
