"""The rows of a piece as float64 matrices, in bounded memory. Shapes: n rows, i raw inputs, t targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from leapray import storage
from leapray.climsim.schema import KAGGLE, SAMPLE_ID, VariableSet
from leapray.data.flat import csvfile
from leapray.data.flat.layout import ROW_GROUP_ROWS, wanted_columns
from leapray.data.flat.listing import Piece
from leapray.data.flat.places import PLACE, Position, months_unknown, row_keys, steps_of
from leapray.data.flat.rowgroup import Batch, Columns, packed, read_row_group, vectors
from leapray.data.flat.selection import Selection
from leapray.errors import UserError
from leapray.evaluation.tables import ROWS, readable


@dataclass(frozen=True)
class Chosen:
    """Chosen columns of some rows of a piece, float64 ``(n, c)``, F-contiguous; ids and keys as in :class:`Block`."""

    values: np.ndarray
    sample_id: pa.Array
    row: np.ndarray


@dataclass(frozen=True)
class Block:
    """Some rows of a piece, in file order: float64 inputs ``(n, i)`` and targets ``(n, t)``, string ids, int64 keys.

    Inputs and targets lie in memory column by column (F-contiguous), as files hold them. ``row`` is the row key
    where the place of a row is known: from the columns kind, step and ncol, or from the ids of the competition. Elsewhere it is
    negative, and the row's own among the selected pieces. Ids are null where a file has none, and targets ``(n, 0)`` where they are
    not asked for.
    """

    inputs: np.ndarray
    targets: np.ndarray
    sample_id: pa.Array
    row: np.ndarray


def read_piece(
    piece: Piece,
    variables: VariableSet = KAGGLE,
    *,
    targets: bool = True,
    kind: str | None = None,
    max_rows: int = ROWS,
    limit: int | None = None,
) -> Iterator[Block]:
    """The rows of a piece in file order, at most ``max_rows`` at a time; an empty value becomes NaN.

    Rows beyond ``limit`` may be left out. ``kind`` is what the rows are taken for where no column says so. Ids ``train_<r>`` of
    the competition's own low-res files, without a month in their path or a column ``step``, tell column r mod 384 of
    step 7·(r div 384). Raises UserError where the file breaks off, holds text for a number, another kind, empty ids, or rows whose
    months are asked for and cannot be told.
    """
    width = variables.raw.width
    for chosen in read_chosen(piece, wanted_columns(variables, targets=targets), kind=kind, max_rows=max_rows, limit=limit):
        yield Block(chosen.values[:, :width], chosen.values[:, width:], chosen.sample_id, chosen.row)


def read_chosen(
    piece: Piece, names: Sequence[str], *, kind: str | None = None, max_rows: int = ROWS, limit: int | None = None
) -> Iterator[Chosen]:
    """The rows of a piece as :func:`read_piece` gives them, but of the columns ``names`` alone, in that order."""
    read = 0
    with readable(piece.path):
        selected = piece.selection if piece.selection is not None and piece.selection.needs_steps else None
        if names and limit is None and selected is not None and not _any_taken(piece, selected, kind):
            return
        for place, columns in _batches(piece, tuple(names), max_rows, limit):
            matrix = packed(columns) if names else np.empty((place.num_rows, 0))
            row = row_keys(place, piece.path, Position(piece.month, piece.file, piece.part, read, piece.competition), kind)
            read += len(matrix)
            ids = _ids(piece.path, place)
            if piece.selection is not None:
                taken = _taken(piece, piece.selection, place, row)
                if not taken.all():
                    matrix, row, ids = matrix.T[:, taken].T, row[taken], ids.filter(pa.array(taken))
            if len(row):
                yield Chosen(matrix, ids, row)
    if limit is None and piece.rows not in (-1, read):
        raise UserError(f"{piece.path}: row group {piece.row_group} holds {read} rows, expected {piece.rows} as when it was listed")


def _any_taken(piece: Piece, selection: Selection, kind: str | None) -> bool:
    """Whether one row of a piece belongs, by its id and place alone: the numbers of a csv take three times as long to read."""
    read = 0
    for place, _ in _batches(piece, (), ROW_GROUP_ROWS, None):
        row = row_keys(place, piece.path, Position(piece.month, piece.file, piece.part, read, piece.competition), kind)
        read += place.num_rows
        if _taken(piece, selection, place, row).any():
            return True
    return False


def read_columns(piece: Piece, variables: VariableSet = KAGGLE, *, max_rows: int = ROW_GROUP_ROWS) -> Iterator[Columns]:
    """The raw inputs and targets of a piece whose rows all belong, unpacked: what a pass that needs no rows can take as it was read.

    At most ``max_rows`` rows at a time; an empty value becomes NaN. Raises UserError where the file breaks off.
    """
    assert piece.selection is None
    with readable(piece.path):
        for _, columns in _batches(piece, variables.columns, max_rows, None, others=()):
            yield columns


def _batches(
    piece: Piece, numbers: tuple[str, ...], max_rows: int, limit: int | None, others: Sequence[str] = (SAMPLE_ID, *PLACE)
) -> Iterator[Batch]:
    with storage.open_input(piece.path) as file:
        if piece.row_group is not None:
            yield from read_row_group(file, piece.row_group, piece.rows, others, numbers, max_rows, limit)
            return
        assert piece.span is not None
        table = csvfile.read_span(piece.path, file, piece.span, numbers)
    others = [name for name in others if name in table.column_names]
    for batch in table.combine_chunks().to_batches(max_rows):
        yield batch.select(others), vectors(batch, numbers)


def _ids(path: str, place: pa.RecordBatch) -> pa.Array:
    if SAMPLE_ID not in place.schema.names:
        return pa.nulls(place.num_rows, pa.string())
    ids = place.column(SAMPLE_ID).cast(pa.string())
    if ids.null_count:
        raise UserError(f"{path}: column {SAMPLE_ID} has {ids.null_count} empty values, expected an id for every row")
    return ids


def _taken(piece: Piece, selection: Selection, place: pa.RecordBatch, row: np.ndarray) -> np.ndarray:
    """bool ``(n,)``: the rows that belong to the selection. Raises UserError where a row does not tell when it is."""
    step = steps_of(place, piece.path, row)
    if step is not None:
        return selection.takes_steps(step)
    if piece.month is None and selection.needs_steps:
        raise months_unknown(piece.path)
    return selection.takes_rows(row)
