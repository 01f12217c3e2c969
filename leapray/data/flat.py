"""Flat parquet and csv in the competition's layout: what a folder holds, and its rows as float64 matrices in bounded memory.

Reads our own files and those that people already have (FACTS section 2): the competition's csv, pandas-written parquet with row
groups of a million rows, integer or float32 columns, columns in any order, further columns. Shapes: n rows, 556 inputs, 368 targets.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
from leapray.climsim.schema import INPUTS, TARGETS
from leapray.data.places import PLACE, SAMPLE_ID, competition_rows, month_in_name, months_unknown, row_keys, steps_of
from leapray.errors import UserError

ROW_GROUP_ROWS = 16384
"""The most rows that one of our row groups holds."""
BLOCK_ROWS = 8192
"""Rows of a block that is read: larger ones outgrow the cache while they are packed."""

_SUFFIXES = (".parquet", ".csv")
_CSV_HEAD_BYTES = 1 << 20
_CSV_BLOCK_BYTES = 32 << 20
_COLUMN_BUFFER_BYTES = 256 << 10
_FOOTERS_AT_ONCE = 8


@dataclass(frozen=True)
class Piece:
    """A unit of work: one row group of a parquet file, or a whole csv (``row_group`` None).

    ``rows`` is -1 where only reading tells; ``index`` is its number in the listing. Of the rows only those whose step lies
    in ``steps`` belong to the chosen months (None: all do).
    """

    path: str
    row_group: int | None
    rows: int
    index: int
    steps: range | None = None


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

    def take(self, keep: np.ndarray) -> Block:
        """The rows where the boolean ``keep`` ``(n,)`` is True."""
        targets = None if self.targets is None else self.targets[keep]
        return Block(self.inputs[keep], targets, self.sample_id.filter(pa.array(keep)), self.row[keep])


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

    Months run from ``start`` up to, not including, ``stop``. A file has the month that its name holds (YYYY-MM); without one, the
    column ``step`` tells the month of a row, or its id as in :func:`read_piece`. ``notice`` is called with one sentence when
    columns are ignored.
    Raises UserError for a file that cannot be read, a missing or repeated column or one of another type, months that
    cannot be told, and months without rows.
    """
    paths = [path for path in storage.list_files(source) if path.endswith(_SUFFIXES)]
    if not paths:
        raise UserError(f"{source}: no {' or '.join(_SUFFIXES)} files")
    wanted = None
    if start or stop:
        wanted = range(start.first_step if start else -sys.maxsize, stop.first_step if stop else sys.maxsize)
        paths = [path for path in paths if (month := month_in_name(path)) is None or month.first_step in wanted]
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        files = list(pool.map(_read_layout, paths))

    extra: dict[str, str] = {}
    found: list[tuple[_Part, range | None]] = []
    for file in files:
        extra |= dict.fromkeys(_check_columns(file, targets), file.path)
        for part in file.parts:
            chosen, steps = _choose(file, part, wanted)
            if chosen:
                found.append((part, steps))
    if wanted is not None:
        _check_months(source, start, stop, [part for part, _ in found])
    if extra and notice:
        name, path = next(iter(extra.items()))
        notice(f"{path}: {len(extra)} column(s) that are not of the flat layout are ignored, such as {name}")
    return [Piece(part.path, part.row_group, part.rows if steps is None else -1, index, steps) for index, (part, steps) in enumerate(found)]


@dataclass(frozen=True)
class _Part:
    """A row group or csv before it is chosen; ``extent`` is its first and last step where they are known unread."""

    path: str
    row_group: int | None
    rows: int
    extent: tuple[int, int] | None


@dataclass(frozen=True)
class _File:
    path: str
    schema: pa.Schema
    parts: list[_Part]


def _read_layout(path: str) -> _File:
    named = month_in_name(path)
    extent = (named.first_step, named.first_step + named.steps - 1) if named else None
    with storage.open_input(path) as file, _refusing(path):
        if path.endswith(".csv"):
            return _File(path, _csv_schema(file), [_Part(path, None, -1, extent)])
        metadata = pq.read_metadata(file)
        columns, parts = metadata.schema.names, []
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            statistics = group.column(columns.index("step")).statistics if "step" in columns and not extent else None
            if statistics is not None and statistics.has_min_max:
                parts.append(_Part(path, number, group.num_rows, (int(statistics.min), int(statistics.max))))
            else:
                parts.append(_Part(path, number, group.num_rows, extent))
        return _File(path, metadata.schema.to_arrow_schema(), parts)


def _csv_schema(file: IO[bytes]) -> pa.Schema:
    """Names and types as the header and the first whole rows show them."""
    head = file.read(_CSV_HEAD_BYTES)
    whole = head if len(head) < _CSV_HEAD_BYTES else head[: head.rfind(b"\n") + 1]
    return pacsv.read_csv(pa.BufferReader(whole)).schema


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


def _choose(file: _File, part: _Part, wanted: range | None) -> tuple[bool, range | None]:
    """Whether a part has rows of the wanted steps, and the steps by which its rows must still be picked."""
    if wanted is None:
        return True, None
    if part.extent is not None:
        first, last = part.extent
        overlaps = last >= wanted.start and first < wanted.stop
        return overlaps, None if first in wanted and last in wanted else wanted
    if "step" not in file.schema.names:
        head = next(_read_batches(Piece(part.path, part.row_group, -1, 0), (), 1), None)
        if head is not None and competition_rows(head) is None:
            raise months_unknown(part.path)
    return True, wanted


def _check_months(source: str, start: Month | None, stop: Month | None, parts: list[_Part]) -> None:
    if not parts:
        raise UserError(f"{source}: no rows from {start or 'the beginning'} up to {stop or 'the end'}")
    extents = [part.extent for part in parts if part.extent is not None]
    if start and stop and len(extents) == len(parts):
        first_last = [(month_of_step(first), month_of_step(last)) for first, last in extents]
        empty = [str(month) for month in month_range(start, stop) if not any(a <= month <= b for a, b in first_last)]
        if empty:
            raise UserError(f"{source}: no rows in month {', '.join(empty)}, which {start} to {stop} asks for")


def read_piece(piece: Piece, *, targets: bool = True, kind: str | None = None, max_rows: int = BLOCK_ROWS) -> Iterator[Block]:
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
    with storage.open_input(piece.path) as file, _refusing(piece.path):
        if piece.row_group is None:
            names = _csv_schema(file).names
            file.seek(0)
            types = dict.fromkeys(wanted, pa.float64()) | {SAMPLE_ID: pa.string()} | {name: PLACE[name] for name in PLACE if name in names}
            reader = pacsv.open_csv(
                file,
                read_options=pacsv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK_BYTES),
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


@contextmanager
def _refusing(path: str) -> Iterator[None]:
    """Turn what pyarrow says about a broken file into the user's sentence."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        what = "csv" if path.endswith(".csv") else "parquet"
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be read as {what}, it may be truncated or corrupt ({reason})") from error
