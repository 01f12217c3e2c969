"""Flat parquet and csv in the competition's layout: what a folder holds, and its rows as float64 matrices in bounded memory.

Reads our own files and those that people already have (FACTS section 2): the competition's csv, pandas-written parquet with row
groups of a million rows, integer or float32 columns, columns in any order, further columns. Shapes: n rows, 556 inputs, 368 targets.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from leapray import storage
from leapray.climsim.calendar import Month, month_of_step, month_range
from leapray.climsim.netcdf import Snapshot
from leapray.climsim.schema import INPUTS, SAMPLE_ID, TARGETS
from leapray.data.places import PLACE, competition_rows, month_in_name, months_unknown, row_keys, steps_of
from leapray.errors import UserError
from leapray.evaluation.tables import CSV_BLOCK_BYTES, ROWS, SUFFIXES, readable

ROW_GROUP_ROWS = 16384
"""The most rows that one of our row groups holds."""

_CSV_HEAD_BYTES = 1 << 20
_COLUMN_BUFFER_BYTES = 256 << 10
_FOOTERS_AT_ONCE = 8


@dataclass(frozen=True)
class Piece:
    """A unit of work: one row group of a parquet file, or a whole csv (``row_group`` None).

    ``rows`` are those of the row group, or -1 for a csv; ``index`` is its number in the listing. Of the rows only those whose
    step lies in ``steps`` belong to the chosen months (None: all do), so that ``rows`` is then the most that reading gives.
    """

    path: str
    row_group: int | None
    rows: int
    index: int
    steps: range | None = None

    @property
    def exact(self) -> bool:
        """Whether reading gives just ``rows`` rows."""
        return self.rows >= 0 and self.steps is None


@dataclass(frozen=True)
class Block:
    """Some rows of a piece, in file order: C-contiguous float64 inputs ``(n, 556)`` and targets ``(n, 368)``, string ids, int64 keys.

    ``row`` is :func:`schema.row_key` where the place of a row is known: from the columns kind, step and ncol, or from the ids of the
    competition. Elsewhere it is negative and unique in the listing: ``-1 - (piece index << 40 | row within the piece)``.
    """

    inputs: np.ndarray
    targets: np.ndarray | None
    sample_id: pa.Array
    row: np.ndarray


@lru_cache
def flat_schema() -> pa.Schema:
    """Columns of the parquet that we write: id, place, 556 inputs, 368 targets."""
    fields = [pa.field(SAMPLE_ID, pa.string()), *(pa.field(name, type_) for name, type_ in PLACE.items())]
    return pa.schema([*fields, *(pa.field(name, pa.float64()) for name in (*INPUTS.columns, *TARGETS.columns))])


def to_table(snapshot: Snapshot) -> pa.Table:
    """One snapshot as a table of :func:`flat_schema`, without copying its values; ids are ``<kind>_<step>_<ncol>``."""
    n = len(snapshot.rows)
    ids = [f"{snapshot.kind}_{snapshot.step:07d}_{ncol:05d}" for ncol in range(n)]
    place = [pa.repeat(snapshot.kind, n), pa.repeat(snapshot.step, n), pa.array(np.arange(n, dtype=np.int32))]
    # slices of one array: 924 arrays made one by one would take as long as reading the files
    values = pa.array(snapshot.rows.T.ravel())
    columns = [values.slice(start, n) for start in range(0, len(values), n)]
    return pa.Table.from_arrays([pa.array(ids), *place, *columns], schema=flat_schema())


def list_pieces(
    source: str,
    *,
    start: Month | None = None,
    stop: Month | None = None,
    targets: bool = True,
    notice: Callable[[str], None] | None = None,
) -> list[Piece]:
    """Pieces of a file or of all parquet and csv files below a folder, in order of path, from their footers and headers alone.

    Months run from ``start`` up to, not including, ``stop``. The column ``step`` tells the month of a row; without one, all rows of
    a file have the month that its name holds (YYYY-MM), or else each has that of its id as in :func:`read_piece`. ``notice`` is called
    with one sentence when columns are ignored.
    Raises UserError for a file that cannot be read, a missing or repeated column or one of another type, months that
    cannot be told, and where there are no rows, at all or in one of the months.
    """
    paths = [path for path in storage.list_files(source) if path.endswith(SUFFIXES)]
    if not paths:
        raise UserError(f"{source}: no {' or '.join(SUFFIXES)} files")
    wanted = None
    if start or stop:
        wanted = range(start.first_step if start else -sys.maxsize, stop.first_step if stop else sys.maxsize)
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        files = list(pool.map(_read_layout, paths))

    extra: dict[str, str] = {}
    found: list[tuple[_Part, range | None]] = []
    for file in files:
        chosen = _choose(file.parts, wanted)
        if chosen or not file.parts:
            extra |= dict.fromkeys(_check_columns(file, targets), file.path)
        if "step" not in file.schema.names and any(steps is not None for _, steps in chosen):
            _check_ids(file)
        found += chosen
    _check_months(source, start, stop, [part for part, _ in found])
    if extra and notice:
        name, path = next(iter(extra.items()))
        notice(f"{path}: {len(extra)} column(s) that are not of the flat layout are ignored, such as {name}")
    return [Piece(part.path, part.row_group, part.rows, index, steps) for index, (part, steps) in enumerate(found)]


@dataclass(frozen=True)
class _Part:
    """A row group or csv before it is chosen; ``steps`` holds those of all its rows where that is known unread."""

    path: str
    row_group: int | None
    rows: int
    steps: range | None


@dataclass(frozen=True)
class _File:
    """Columns of a file, and its parts that hold rows."""

    path: str
    schema: pa.Schema
    parts: list[_Part]


def _read_layout(path: str) -> _File:
    with readable(path), storage.open_input(path) as file:
        if path.endswith(".csv"):
            head = _csv_head(file)
            parts = [_Part(path, None, -1, _month_steps(path, head.column_names))] if head.num_rows else []
            return _File(path, head.schema, parts)
        metadata = pq.read_metadata(file)
        schema, names, parts = metadata.schema.to_arrow_schema(), metadata.schema.names, []
        step_column, month = names.index("step") if "step" in names else None, _month_steps(path, names)
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            if group.num_rows:
                steps = month if step_column is None else _statistics_steps(group.column(step_column))
                parts.append(_Part(path, number, group.num_rows, steps))
        return _File(path, schema, parts)


def _month_steps(path: str, columns: Sequence[str]) -> range | None:
    """Steps of the month in a file's name, unless a column tells them better."""
    month = None if "step" in columns else month_in_name(path)
    return range(month.first_step, month.first_step + month.steps) if month else None


def _statistics_steps(column: pq.ColumnChunkMetaData) -> range | None:
    """From the first to the last step that the footer knows of a row group, if it knows them of all its rows."""
    known = column.statistics
    whole = known is not None and known.has_min_max and not known.null_count and isinstance(known.min, int)
    return range(known.min, known.max + 1) if whole else None


def _csv_head(file: IO[bytes]) -> pa.Table:
    """The first whole rows of a csv, whose names and types are the file's."""
    head = file.read(_CSV_HEAD_BYTES)
    whole = head if len(head) < _CSV_HEAD_BYTES else head[: head.rfind(b"\n") + 1]
    return pacsv.read_csv(pa.BufferReader(whole))


def _check_columns(file: _File, targets: bool) -> list[str]:
    """Names that the flat layout does not know; raises UserError where the file does not hold what it needs."""
    names = file.schema.names
    present = set(names)
    needed = (*INPUTS.columns, *(TARGETS.columns if targets else ()))
    missing = [name for name in (SAMPLE_ID, *needed) if name not in present]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"{file.path}: column {', '.join(missing[:3])}{more} missing, expected {SAMPLE_ID} and the {len(needed)} flat columns"
        )
    if len(present) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{file.path}: column {repeated} stands more than once, expected every column once")
    for name in needed:
        _check_type(file, name, _is_number, "a number")
    for name in {"step", "ncol"} & present:
        _check_type(file, name, pa.types.is_integer, "a whole number")
    return sorted(present.difference(flat_schema().names))


def _check_type(file: _File, name: str, fits: Callable[[pa.DataType], bool], expected: str) -> None:
    found = file.schema.field(name).type
    if not fits(found):
        raise UserError(f"{file.path}: column {name} has type {found}, expected {expected}")


def _is_number(type_: pa.DataType) -> bool:
    # a csv column that is empty in the first rows has type null
    return pa.types.is_floating(type_) or pa.types.is_integer(type_) or pa.types.is_null(type_)


def _choose(parts: list[_Part], wanted: range | None) -> list[tuple[_Part, range | None]]:
    """The parts that may hold rows of the wanted steps, each with the steps by which its rows must still be picked."""
    if wanted is None:
        return [(part, None) for part in parts]
    chosen: list[tuple[_Part, range | None]] = []
    for part in parts:
        if part.steps is None:
            chosen.append((part, wanted))
        elif part.steps.start < wanted.stop and wanted.start < part.steps.stop:
            inside = wanted.start <= part.steps.start and part.steps.stop <= wanted.stop
            chosen.append((part, None if inside else wanted))
    return chosen


def _check_ids(file: _File) -> None:
    """Raises UserError where the first id of a file does not tell its month."""
    part = file.parts[0]
    head = next(_read_batches(Piece(part.path, part.row_group, part.rows, 0), (), 1), None)
    if head is not None and competition_rows(head) is None:
        raise months_unknown(file.path)


def _check_months(source: str, start: Month | None, stop: Month | None, parts: list[_Part]) -> None:
    if not parts:
        months = f" from {start or 'the beginning'} up to {stop or 'the end'}" if start or stop else ""
        raise UserError(f"{source}: no rows{months}")
    known = [part.steps for part in parts if part.steps is not None]
    if start and stop and len(known) == len(parts):
        first_last = [(month_of_step(steps[0]), month_of_step(steps[-1])) for steps in known]
        empty = [str(month) for month in month_range(start, stop) if not any(a <= month <= b for a, b in first_last)]
        if empty:
            raise UserError(f"{source}: no rows in month {', '.join(empty)}, which {start} to {stop} asks for")


def read_piece(piece: Piece, *, targets: bool = True, kind: str | None = None, max_rows: int = ROWS) -> Iterator[Block]:
    """The rows of a piece in file order, at most ``max_rows`` at a time; an empty value becomes NaN.

    ``kind`` is what the rows are taken for where no column says so. Ids ``train_<r>`` of low-res files that have neither a month in
    their name nor a column ``step`` are the competition's: column r mod 384 of step 7·(r div 384). Raises UserError where
    the file breaks off, holds text for a number, another kind, or rows whose months are asked for and cannot be told.
    """
    wanted = (*INPUTS.columns, *(TARGETS.columns if targets else ()))
    read = 0
    for batch in _read_batches(piece, wanted, max_rows):
        row = row_keys(batch, piece.path, (piece.index, read), kind)
        read += batch.num_rows
        if piece.steps is not None:
            step = steps_of(batch, piece.path, row)
            chosen = (step >= piece.steps.start) & (step < piece.steps.stop)
            batch, row = batch.filter(pa.array(chosen)), row[chosen]
        if batch.num_rows:
            ids = batch.column(SAMPLE_ID).cast(pa.string())
            yield Block(_pack(batch, INPUTS.columns), _pack(batch, TARGETS.columns) if targets else None, ids, row)


def _read_batches(piece: Piece, wanted: tuple[str, ...], max_rows: int) -> Iterator[pa.RecordBatch]:
    with readable(piece.path), storage.open_input(piece.path) as file:
        if piece.row_group is None:
            names = _csv_head(file).schema.names
            file.seek(0)
            types = dict.fromkeys(wanted, pa.float64()) | {SAMPLE_ID: pa.string()} | {name: PLACE[name] for name in PLACE if name in names}
            reader = pacsv.open_csv(
                file,
                read_options=pacsv.ReadOptions(use_threads=False, block_size=CSV_BLOCK_BYTES),
                convert_options=pacsv.ConvertOptions(column_types=types, include_columns=list(types)),
            )
            for batch in reader:
                yield from (batch.slice(at, max_rows) for at in range(0, batch.num_rows, max_rows))
            return
        # the column chunks of a giant row group are read through small buffers; ours is fetched whole, in few requests
        metadata = pq.read_metadata(file)
        small = metadata.row_group(piece.row_group).num_rows <= 2 * ROW_GROUP_ROWS
        parquet = pq.ParquetFile(file, metadata=metadata, pre_buffer=small, buffer_size=0 if small else _COLUMN_BUFFER_BYTES)
        yield from parquet.iter_batches(max_rows, row_groups=[piece.row_group], columns=[SAMPLE_ID, *PLACE, *wanted], use_threads=False)


def _pack(batch: pa.RecordBatch, columns: tuple[str, ...]) -> np.ndarray:
    matrix = np.empty((batch.num_rows, len(columns)))
    for index, name in enumerate(columns):
        matrix[:, index] = batch.column(name).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return matrix
