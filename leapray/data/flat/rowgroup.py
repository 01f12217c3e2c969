"""One row group of a parquet file as float64 columns in bounded memory, however large it is.

Three ways, chosen by what the footer says: a small row group is read whole; a large one of few bytes is streamed; of any other the
columns are decoded a few at a time into a temporary file, because streaming hundreds of columns holds a page and a dictionary of each.
Shapes: n rows of a batch, c columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leapray.data.flat.spool import Spool

Columns = Sequence[np.ndarray] | np.ndarray
"""c vectors of n float64: each where it was read to, or as rows of one array ``(c, n)``."""
Batch = tuple[pa.RecordBatch, Columns]
"""Columns as the file has them, and the columns that are numbers."""

WHOLE_BYTES = 256 << 20
_COLUMNS_AT_ONCE = 32
_COLUMN_BUFFER_BYTES = 256 << 10


def read_row_group(
    file: IO[bytes], row_group: int, rows: int, others: Sequence[str], numbers: Sequence[str], max_rows: int, limit: int | None
) -> Iterator[Batch]:
    """Batches of at most ``max_rows`` rows of a row group that should hold ``rows``: the columns ``others`` that are there, as they
    are, and the columns ``numbers`` as float64. Rows beyond ``limit`` need not be read.

    Raises UserError where a temporary file finds no room, and pyarrow's errors for damage.
    """
    whole = rows * len(numbers) * 8 <= WHOLE_BYTES
    # columns of a large row group are read through small buffers; a small one is fetched in few requests
    parquet = pq.ParquetFile(file, pre_buffer=whole, buffer_size=0 if whole else _COLUMN_BUFFER_BYTES)
    if not 0 <= row_group < parquet.num_row_groups:
        return
    others = [name for name in others if name in parquet.schema_arrow.names]
    group = parquet.metadata.row_group(row_group)
    if whole or sum(group.column(index).total_uncompressed_size for index in range(group.num_columns)) <= WHOLE_BYTES:
        yield from _direct(parquet, row_group, others, numbers, max_rows, whole=whole)
    else:
        yield from _spooled(parquet, row_group, others, numbers, max_rows, limit or group.num_rows)


def vectors(batch: pa.RecordBatch, numbers: Sequence[str]) -> list[np.ndarray]:
    """Columns as float64, not copied where they are that already; an empty value is NaN."""
    columns = batch.select(numbers).columns
    plain = (column if pa.types.is_float64(column.type) else column.cast(pa.float64(), safe=False) for column in columns)
    return [column.to_numpy(zero_copy_only=False) for column in plain]


def packed(columns: Columns) -> np.ndarray:
    """Columns side by side, ``(n, c)``, which lies in memory column by column."""
    return (columns if isinstance(columns, np.ndarray) else np.stack(columns)).T


def _direct(
    parquet: pq.ParquetFile, row_group: int, others: Sequence[str], numbers: Sequence[str], max_rows: int, *, whole: bool
) -> Iterator[Batch]:
    columns = [*others, *numbers]
    if whole:
        batches = iter(parquet.read_row_group(row_group, columns=columns, use_threads=False).to_batches(max_rows))
    else:
        batches = parquet.iter_batches(max_rows, row_groups=[row_group], columns=columns, use_threads=False)
    for batch in batches:
        yield batch.select(others), vectors(batch, numbers)


def _spooled(
    parquet: pq.ParquetFile, row_group: int, others: Sequence[str], numbers: Sequence[str], max_rows: int, limit: int
) -> Iterator[Batch]:
    all_rows = parquet.metadata.row_group(row_group).num_rows
    with Spool(min(-(-limit // max_rows) * max_rows, all_rows), max_rows, len(numbers)) as spool:
        for first in range(0, len(numbers), _COLUMNS_AT_ONCE):
            some = numbers[first : first + _COLUMNS_AT_ONCE]
            batches = parquet.iter_batches(max_rows, row_groups=[row_group], columns=some, use_threads=False)
            for index in range(len(spool)):
                batch = next(batches, None)
                if batch is None or batch.num_rows != spool.batch_rows(index):
                    raise pa.ArrowInvalid(f"columns {some[0]} to {some[-1]} do not hold the {all_rows} rows of the footer")
                spool.write(index, first, np.stack(vectors(batch, some)))
        table = parquet.read_row_group(row_group, columns=others, use_threads=False)
        for index in range(len(spool)):
            (batch,) = table.slice(index * max_rows, spool.batch_rows(index)).combine_chunks().to_batches()
            yield batch, spool.read(index)
