"""Tables of ``sample_id`` and targets, parquet or csv, one file or many: read by column name, in bounded memory.

A source is the URL of a file, of a directory of them, or a list of such URLs; rows count through its files in order of name. Directories
are listed by :func:`storage.list_data`. Predictions, submissions and truth all come in this form.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from leapray import storage
from leapray.climsim.schema import SAMPLE_ID, Targets
from leapray.errors import UserError
from leapray.faults import placed, told

SUFFIXES = (".parquet", ".csv")
ROWS = 8192
"""Rows that are held at once beside what a function returns; larger blocks outgrow the cache while their columns are packed."""
CSV_BLOCK_BYTES = 16 << 20
"""Bytes of a csv that are parsed at once."""

FOOTER_BYTES = 1 << 28
"""The longest footer that is parsed; one of 928 columns and 1 000 row groups has about 100 MB."""
HEADER_BYTES = 1 << 20
"""The longest header line of a csv."""
_TEXT_BYTES, _MAGIC_BYTES = 1 << 10, 8
"""The longest mean text, and what a parquet file ends with after its footer."""

ROW = "row"
"""Column of predictions that tells rows apart where their ids begin anew in every file."""

Source = str | Sequence[str]


def files(source: Source, notice: Callable[[str], None] | None = None) -> list[str]:
    """The parquet or csv files of a source. ``notice`` is called with one sentence when other files are passed over.

    Raises UserError when there are none.
    """
    urls = [source] if isinstance(source, str) else list(source)
    listed = [storage.list_data(url, is_table) for url in map(storage.absolute, urls)]
    found = [file for one in listed for file in one.files]
    if not found:
        remarks = "".join(one.remark for one in listed)
        raise UserError(f"{', '.join(map(placed, urls)) or 'no path given'}: no {' or '.join(SUFFIXES)} file there{remarks}")
    for one in listed:
        if notice is not None and one.notice:
            notice(one.notice)
    return found


def is_table(file: str) -> bool:
    """Whether a file has the suffix of a table."""
    return file.endswith(SUFFIXES)


def columns(url: str) -> list[str]:
    """Column names of one file, in its order. Raises UserError when it is not readable."""
    with readable(url), storage.open_input(url) as file:
        if url.endswith(".parquet"):
            require_footer(file)
            return list(pq.read_schema(file).names)
        return header_names(url, file.readline(HEADER_BYTES))


def header_names(url: str, line: bytes) -> list[str]:
    """Column names in the first line of a csv, which is read up to ``HEADER_BYTES``.

    Raises UserError for line ends that are CR alone and for a line that is cut off, and csv.Error for one that is no csv.
    """
    if b"\r" in line.rstrip(b"\r\n"):
        raise UserError(f"{url}: its lines end with CR alone, expected lines that end with LF or CRLF")
    if len(line) == HEADER_BYTES:
        raise UserError(f"{url}: its first line does not end in {HEADER_BYTES} bytes")
    return next(csv.reader([line.decode("utf-8-sig").rstrip("\r\n")]), [])


def is_unnamed_index(name: str) -> bool:
    """Whether a column is what pandas writes of an index without a name, in csv or parquet, or makes of such a column on reading."""
    return name in ("", "__index_level_0__") or name.startswith("Unnamed: ")


@contextmanager
def readable(file: str) -> Iterator[None]:
    """Turn what pyarrow says about a broken or foreign file, while it is read, into a UserError that names file and column."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
        what = "csv" if file.endswith(".csv") else "parquet"
        reason = told((str(error) or type(error).__name__).splitlines()[0].rstrip("."), 300)
        # pyarrow counts columns of a csv from 0
        reason = re.sub(r"CSV column #(\d+)", lambda match: f"column {_nth(columns(file), int(match[1]))}", reason)
        raise UserError(f"{file}: cannot be read as {what}, it may be truncated or corrupt ({reason})") from error


def require_footer(file: IO[bytes]) -> None:
    """Raises ArrowInvalid for a parquet file whose footer says that it is longer than any is; the file is at its beginning again."""
    length = 0
    if file.seek(0, os.SEEK_END) >= _MAGIC_BYTES:
        file.seek(-_MAGIC_BYTES, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
    file.seek(0)
    if length > FOOTER_BYTES:
        raise pa.ArrowInvalid(f"its footer has {length} bytes, expected {FOOTER_BYTES} at the most")


def require_short_texts(metadata: pq.FileMetaData, names: Sequence[str]) -> None:
    """Raises ArrowInvalid where texts, in those of the columns that are there, would take all memory to be decoded."""
    texts = [index for index in range(metadata.num_columns) if metadata.schema.column(index).path in names]
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for column in map(group.column, texts):
            if column.total_uncompressed_size > _TEXT_BYTES * (group.num_rows + _TEXT_BYTES):
                raise pa.ArrowInvalid(
                    f"column {column.path_in_schema} of row group {number} takes {column.total_uncompressed_size} bytes for "
                    f"{group.num_rows} rows, expected {_TEXT_BYTES} a row at the most"
                )


def _nth(names: Sequence[str], index: int) -> str:
    return names[index] if index < len(names) else str(index)


@dataclass(frozen=True)
class Keys:
    """What tells the rows of a source apart, in order: ids, and the int64 keys of the column ``row`` where every file has one."""

    name: str
    ids: pa.ChunkedArray
    rows: np.ndarray | None = None

    @property
    def unique(self) -> bool:
        """Whether every id stands there once."""
        return int(pc.count_distinct(self.ids, mode="all").as_py()) == len(self.ids)

    def require_unique(self) -> None:
        """Raises UserError when an id stands twice, naming it."""
        if not self.unique:
            counts = pc.value_counts(self.ids)
            twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
            raise UserError(f"{self.name}: {SAMPLE_ID} must be unique, and {some(twice)} stands there more than once")


def read_keys(source: Source, notice: Callable[[str], None] | None = None) -> Keys:
    """Every ``sample_id`` of a source as strings, and its row keys, in order; ``notice`` as for :func:`files`."""
    ids: list[pa.Array] = []
    rows: list[np.ndarray] | None = []
    for file in files(source, notice):
        _require(file, [SAMPLE_ID])
        keyed = _is_keyed(file)
        for batch in _batches(file, [SAMPLE_ID, ROW] if keyed else [SAMPLE_ID]):
            with readable(file):
                ids.append(batch.column(SAMPLE_ID).cast(pa.string()))
            if keyed and rows is not None:
                rows.append(batch.column(ROW).to_numpy(zero_copy_only=False))
        if not keyed:
            rows = None
    return Keys(
        name(source), pa.chunked_array(ids, pa.string()), np.concatenate([np.zeros(0, np.int64), *rows]) if rows is not None else None
    )


def _is_keyed(file: str) -> bool:
    """Whether a file has our column ``row``, which a csv never has."""
    if not file.endswith(".parquet") or ROW not in columns(file):
        return False
    with readable(file), storage.open_input(file) as opened:
        return bool(pa.types.is_int64(pq.read_schema(opened).field(ROW).type))


def read_ids(source: Source, notice: Callable[[str], None] | None = None) -> pa.ChunkedArray:
    """Every ``sample_id`` of a source as strings, in order; ``notice`` as for :func:`files`. Raises UserError when one stands twice."""
    keys = read_keys(source, notice)
    keys.require_unique()
    return keys.ids


def read_targets(source: Source, targets: Targets) -> Iterator[np.ndarray]:
    """The targets of a source in batches ``(n, t)``, float64, in the order of their layout; n varies; an empty field is NaN.

    Raises UserError for a target column that is missing or is not numbers.
    """
    for file in files(source):
        _require(file, targets.columns)
        for batch in _batches(file, targets.columns):
            yield np.array([_numbers(file, name, batch.column(name)) for name in targets.columns]).T


def gather(source: Source, targets: Targets, places: np.ndarray, rows: int) -> np.ndarray:
    """The targets of a source as one matrix ``(rows, t)``: its i-th row goes to row ``places[i]``, or nowhere if that is -1."""
    matrix = np.full((rows, targets.width), np.nan)
    start = 0
    for values in read_targets(source, targets):
        place = places[start : start + len(values)]
        matrix[place[place >= 0]] = values[place >= 0]
        start += len(values)
    return matrix


def require_finite(values: np.ndarray, ids: pa.ChunkedArray | pa.Array, columns: Sequence[str], label: str) -> None:
    """Raises UserError when values ``(n, c)`` hold NaN or Inf, naming the first of them by its id and its column."""
    finite = np.isfinite(values)
    if not finite.all():
        row, column = np.unravel_index(np.argmin(finite), finite.shape)
        others = int((~finite).any(axis=1).sum()) - 1
        more = f" (and {others} more of these rows hold NaN or Inf)" if others else ""
        raise UserError(
            f"{label}: {columns[int(column)]} of {ids[int(row)].as_py()} is {values[row, column]}, expected finite numbers{more}"
        )


def locate(ids: pa.ChunkedArray, among: pa.ChunkedArray) -> np.ndarray:
    """Position of each id ``among`` others, int64 ``(len(ids),)``, -1 where it is not there."""
    found = pc.index_in(ids, value_set=among)
    return pc.fill_null(found, -1).to_numpy().astype(np.int64)


def some(ids: pa.ChunkedArray | pa.Array, count: int = 3) -> str:
    """The first few ids, for a message."""
    return ", ".join(told(id_) for id_ in ids[:count].to_pylist()) + (f" and {len(ids) - count} more" if len(ids) > count else "")


def name(source: Source) -> str:
    """A source as a message calls it."""
    return source if isinstance(source, str) else ", ".join(source)


def _require(file: str, wanted: Sequence[str]) -> None:
    missing = sorted(set(wanted).difference(columns(file)), key=list(wanted).index)
    if missing:
        raise UserError(f"{file}: lacks column {some(pa.array(missing))}, expected {some(pa.array(list(wanted)))}")


def _batches(file: str, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with readable(file), storage.open_input(file) as opened:
        if file.endswith(".parquet"):
            parquet = pq.ParquetFile(opened, page_checksum_verification=True)
            if SAMPLE_ID in names:
                require_short_texts(parquet.metadata, [SAMPLE_ID])
            yield from parquet.iter_batches(batch_size=ROWS, columns=list(names))
            return
        types = {name: pa.string() if name == SAMPLE_ID else pa.float64() for name in names}
        yield from pyarrow.csv.open_csv(
            opened,
            read_options=pyarrow.csv.ReadOptions(block_size=CSV_BLOCK_BYTES),
            convert_options=pyarrow.csv.ConvertOptions(column_types=types, include_columns=list(names)),
        )


def _numbers(file: str, name: str, column: pa.Array) -> np.ndarray:
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise UserError(f"{file}: column {name} is of type {column.type}; expected numbers")
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False)
