"""What one flat parquet or csv file says of itself before its rows are read: columns, parts, and when they are."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from leapray import storage
from leapray.climsim.calendar import Month
from leapray.climsim.row_keys import STEP_BITS
from leapray.climsim.schema import SAMPLE_ID
from leapray.data.flat import csvfile
from leapray.data.flat.layout import CONTENT_KEY
from leapray.data.flat.places import month_of_path
from leapray.evaluation.tables import FOOTER_BYTES, readable, require_short_texts

_TAIL_BYTES = 1 << 18
_GROUP_ROWS = 1 << 26
"""The most rows of a row group, of which a whole month of high-res has 46 million."""


@dataclass(frozen=True)
class Part:
    """A row group of a parquet file, or the bytes ``span`` of a csv (``row_group`` None, ``rows`` -1).

    ``rows_about`` is how many rows it holds, for a csv by the mean length of its first rows. ``steps`` are the first and last of all its
    rows, where the footer knows them.
    """

    row_group: int | None
    rows: int
    rows_about: int
    span: tuple[int, int] | None = None
    steps: tuple[int, int] | None = None


@dataclass(frozen=True)
class Header:
    """Columns of a file, its parts that hold rows, a digest of its content, and the month in its path if no column tells better.

    The digest is of a parquet's footer, which in our own files holds one of the values and in most others their statistics; of a footer
    without these, and of a csv's head, together with :func:`storage.fingerprint`.
    """

    path: str
    schema: pa.Schema
    parts: tuple[Part, ...]
    digest: str
    month: Month | None
    ended: bool = True
    """Whether the last line of a csv is ended, which that of a download that broke off mostly is not."""


def read_header(path: str, size: int, source: str = "") -> Header:
    """Look at the footer of a parquet file or the head of a csv of ``size`` bytes, found at or below ``source``.

    Raises UserError where it cannot be read.
    """
    with readable(path), storage.open_input(path) as file:
        schema, parts, mark = _csv(path, file, size) if path.endswith(".csv") else _parquet(path, file, size)
        month = None if "step" in schema.names else month_of_path(path, source or path)
        ended = not path.endswith(".csv") or _last_byte(file, size) == b"\n"
    return Header(path, schema, tuple(parts), hashlib.sha256(mark).hexdigest(), month, ended)


def _last_byte(file: IO[bytes], size: int) -> bytes:
    file.seek(size - 1)
    return file.read(1)


def first_id(header: Header) -> pa.RecordBatch | None:
    """The first row of a file's ids, if it has any. Raises UserError where it cannot be read."""
    if not header.parts or SAMPLE_ID not in header.schema.names:
        return None
    with readable(header.path), storage.open_input(header.path) as file:
        if header.path.endswith(".csv"):
            return csvfile.read_head(header.path, file).rows.select([SAMPLE_ID]).slice(0, 1).to_batches()[0]
        groups = [part.row_group for part in header.parts[:1]]
        return next(pq.ParquetFile(file).iter_batches(1, row_groups=groups, columns=[SAMPLE_ID]), None)


def _csv(path: str, file: IO[bytes], size: int) -> tuple[pa.Schema, list[Part], bytes]:
    head = csvfile.read_head(path, file)
    spans = csvfile.spans(head.first_line_end, size) if head.rows.num_rows else []
    parts = [Part(None, -1, max(round((stop - start) / head.row_bytes), 1), (start, stop)) for start, stop in spans]
    return head.rows.schema, parts, head.content + storage.fingerprint(path).encode()


def _parquet(path: str, file: IO[bytes], size: int) -> tuple[pa.Schema, list[Part], bytes]:
    footer = _footer(file, size)
    metadata = pq.read_metadata(pa.BufferReader(footer))
    schema = metadata.schema.to_arrow_schema()
    step = metadata.schema.names.index("step") if "step" in schema.names else None
    require_short_texts(metadata, (SAMPLE_ID, "kind"))
    parts = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if not 0 <= group.num_rows <= _GROUP_ROWS:
            raise pa.ArrowInvalid(f"row group {number} says that it holds {group.num_rows} rows, expected {_GROUP_ROWS} at the most")
        if group.num_rows:
            parts.append(Part(number, group.num_rows, group.num_rows, steps=None if step is None else _steps(group.column(step))))
    return schema, parts, footer if _tells_content(metadata) else footer + storage.fingerprint(path).encode()


def _tells_content(metadata: pq.FileMetaData) -> bool:
    """Whether a footer changes with the values: it has our digest of them, or statistics of every column."""
    if CONTENT_KEY in (metadata.metadata or {}) or not metadata.num_row_groups:
        return True
    first = metadata.row_group(0)
    return all(first.column(index).is_stats_set for index in range(first.num_columns))


def _footer(file: IO[bytes], size: int) -> bytes:
    """The end of a parquet file from its footer on, in one read as a rule; whatever is there if it has none."""
    file.seek(max(size - _TAIL_BYTES, 0))
    tail = file.read()
    # a footer ends with its own length and the magic number PAR1
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if length > FOOTER_BYTES:
        raise pa.ArrowInvalid(f"its footer has {length} bytes, expected {FOOTER_BYTES} at the most")
    if len(tail) < length <= size:
        file.seek(size - length)
        tail = file.read()
    return tail[-length:]


def _steps(column: pq.ColumnChunkMetaData) -> tuple[int, int] | None:
    """The first and last step that the footer knows of a row group, if it knows them of all its rows."""
    known = column.statistics
    if known is None or not known.has_min_max or known.null_count or not isinstance(known.min, int):
        return None
    return (known.min, known.max) if 0 <= known.min <= known.max < 1 << STEP_BITS else None
