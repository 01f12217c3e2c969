"""Tables of ``sample_id`` and the 368 targets, parquet or csv, one file or many: read by column name, in bounded memory.

A source is the URL of a file, of a directory of them, or a list of such URLs; rows count through its files in order of name.
Predictions, submissions and truth all come in this form.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from leapray import storage
from leapray.climsim.schema import SAMPLE_ID, TARGETS
from leapray.errors import UserError

SUFFIXES = (".parquet", ".csv")
ROWS = 8192
"""Rows that are held at once beside what a function returns; larger blocks outgrow the cache while their columns are packed."""
CSV_BLOCK_BYTES = 16 << 20
"""Bytes of a csv that are parsed at once."""

Source = str | Sequence[str]


def files(source: Source) -> list[str]:
    """The parquet or csv files of a source. Raises UserError when there are none."""
    urls = [source] if isinstance(source, str) else list(source)
    found = [file for url in urls for file in storage.list_files(url) if file.endswith(SUFFIXES)]
    if not found:
        raise UserError(f"{', '.join(urls) or 'no path given'}: no {' or '.join(SUFFIXES)} file there")
    return found


def columns(url: str) -> list[str]:
    """Column names of one file, in its order. Raises UserError when it is not readable."""
    with readable(url), storage.open_input(url) as file:
        if url.endswith(".parquet"):
            return list(pq.read_schema(file).names)
        header = file.readline().decode("utf-8-sig").rstrip("\r\n")
        return next(csv.reader([header]), [])


@contextmanager
def readable(file: str) -> Iterator[None]:
    """Turn what pyarrow says about a broken or foreign file, while it is read, into a UserError that names file and column."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        what = "csv" if file.endswith(".csv") else "parquet"
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        # pyarrow counts columns of a csv from 0
        reason = re.sub(r"CSV column #(\d+)", lambda match: f"column {_nth(columns(file), int(match[1]))}", reason)
        raise UserError(f"{file}: cannot be read as {what}, it may be truncated or corrupt ({reason})") from error


def _nth(names: Sequence[str], index: int) -> str:
    return names[index] if index < len(names) else str(index)


def read_ids(source: Source) -> pa.ChunkedArray:
    """Every ``sample_id`` of a source as strings, in order. Raises UserError when one stands twice, naming it."""
    chunks: list[pa.Array] = []
    for file in files(source):
        _require(file, [SAMPLE_ID])
        for batch in _batches(file, [SAMPLE_ID]):
            with readable(file):
                chunks.append(batch.column(0).cast(pa.string()))
    ids = pa.chunked_array(chunks, pa.string())
    if pc.count_distinct(ids, mode="all").as_py() < len(ids):
        counts = pc.value_counts(ids)
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        raise UserError(f"{name(source)}: {SAMPLE_ID} must be unique, and {some(twice)} stands there more than once")
    return ids


def read_targets(source: Source) -> Iterator[np.ndarray]:
    """The targets of a source in batches ``(n, 368)``, float64, in the schema's order; n varies; an empty field is NaN.

    Raises UserError for a target column that is missing or is not numbers.
    """
    for file in files(source):
        _require(file, TARGETS.columns)
        for batch in _batches(file, TARGETS.columns):
            yield np.array([_numbers(file, name, batch.column(name)) for name in TARGETS.columns]).T


def gather(source: Source, places: np.ndarray, rows: int) -> np.ndarray:
    """The targets of a source as one matrix ``(rows, 368)``: its i-th row goes to row ``places[i]``, or nowhere if that is -1."""
    matrix = np.full((rows, TARGETS.width), np.nan)
    start = 0
    for values in read_targets(source):
        place = places[start : start + len(values)]
        matrix[place[place >= 0]] = values[place >= 0]
        start += len(values)
    return matrix


def locate(ids: pa.ChunkedArray, among: pa.ChunkedArray) -> np.ndarray:
    """Position of each id ``among`` others, int64 ``(len(ids),)``, -1 where it is not there."""
    found = pc.index_in(ids, value_set=among)
    return pc.fill_null(found, -1).to_numpy().astype(np.int64)


def some(ids: pa.ChunkedArray | pa.Array, count: int = 3) -> str:
    """The first few ids, for a message."""
    return ", ".join(map(str, ids[:count].to_pylist())) + (f" and {len(ids) - count} more" if len(ids) > count else "")


def name(source: Source) -> str:
    """A source as a message calls it."""
    return source if isinstance(source, str) else ", ".join(source)


def _require(file: str, wanted: Sequence[str]) -> None:
    missing = sorted(set(wanted).difference(columns(file)), key=list(wanted).index)
    if missing:
        raise UserError(f"{file}: column {some(pa.array(missing))} is missing; expected {SAMPLE_ID} and the {TARGETS.width} target columns")


def _batches(file: str, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with readable(file), storage.open_input(file) as opened:
        if file.endswith(".parquet"):
            yield from pq.ParquetFile(opened).iter_batches(batch_size=ROWS, columns=list(names))
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
