"""How many rows a recipe's sources give to each split, counted in the data that is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from leapray import storage
from leapray.climsim.calendar import is_file_name
from leapray.climsim.pairs import archive
from leapray.climsim.row_keys import KINDS
from leapray.data import flat
from leapray.data.flat import Selection
from leapray.data.shards import open_prepared
from leapray.errors import UserError
from leapray.evaluation.tables import is_table
from leapray.faults import shown
from leapray.recipe import SPLITS, Data, Source

_MOST_READ, _AT_ONCE = 64, 16
"""Pieces whose rows are read to count them, and how many at a time."""


@dataclass(frozen=True)
class RowCount:
    """Rows of a source by split, and how they were counted."""

    rows: Mapping[str, int]
    how: str

    @property
    def total(self) -> int:
        return sum(self.rows.values())


def count_rows(data: Data, notice: Callable[[str], None]) -> dict[str, RowCount]:
    """Rows by source: from the manifests of the prepared data, else from its flat files or netCDF pairs.

    For a source of which no file is there, the steps of its months in a complete archive. ``notice`` gets one sentence about files that
    are passed over. Raises UserError where prepare would refuse the files, as for a month without rows.
    """
    with suppress(UserError):
        manifests = open_prepared(data).manifests
        return {
            name: RowCount({one.split: one.rows for one in manifests if one.source == name}, f"prepared in {shown(data.prepared)}")
            for name in data.sources
        }
    return {name: _count(source, data.seed, notice) for name, source in data.sources.items()}


def _count(source: Source, seed: int, notice: Callable[[str], None]) -> RowCount:
    columns = KINDS[source.kind].columns
    splits = {
        split: Selection(months.start, months.stop, source.stride, source.phase, source.fraction, seed, source.month)
        for split in SPLITS
        if (months := source.months(split)) is not None
    }
    found = storage.list_data(source.path, lambda name: is_table(name) or is_file_name(name)).files
    if any(map(is_table, found)):
        survey = flat.survey(source.path, notice=notice)
        counts = {split: _count_pieces(survey.pieces(selection), source.kind) for split, selection in splits.items()}
        how = "counted in" if all(exact for _, exact in counts.values()) else "estimated from a part of"
        return RowCount({split: rows for split, (rows, _) in counts.items()}, f"{how} the flat files of {shown(source.path)}")
    if found:
        pairs = np.array([pair.step for pair in archive(found).pairs])
        taken = {split: int(selection.takes_steps(pairs).sum()) * columns for split, selection in splits.items()}
        return RowCount(taken, f"counted in the netCDF pairs of {shown(source.path)}, which are not converted yet")
    steps = {split: np.arange(selection.steps.start, selection.steps.stop) for split, selection in splits.items()}
    expected = {split: int(selection.takes_steps(steps[split]).sum()) * columns for split, selection in splits.items()}
    return RowCount(expected, f"those of a complete archive, since nothing is in {shown(source.path)} yet")


def _count_pieces(pieces: Sequence[flat.Piece], kind: str) -> tuple[int, bool]:
    """Rows of pieces, and whether they are exact. Footers tell those of whole row groups; of the others the ids are read.

    Of more than 64 such pieces, evenly spaced ones are read, and the others are taken to hold the same share.
    """
    whole = [piece for piece in pieces if piece.exact]
    parts = [piece for piece in pieces if not piece.exact]
    read = [parts[index] for index in sorted({round(place) for place in np.linspace(0, len(parts) - 1, min(_MOST_READ, len(parts)))})]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        rows = sum(pool.map(lambda piece: sum(len(chosen.row) for chosen in flat.read_chosen(piece, (), kind=kind)), read))
    if len(read) < len(parts):
        rows = round(rows * sum(piece.rows_about for piece in parts) / sum(piece.rows_about for piece in read))
    return sum(piece.rows for piece in whole) + rows, len(read) == len(parts)
