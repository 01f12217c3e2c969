"""A csv of the flat layout read in pieces: byte ranges that begin and end wherever they like, and the whole rows that belong to each.

A row belongs to the range in which the line break before it lies. A line break inside quotes is therefore refused, as a broken row.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

import pyarrow as pa
import pyarrow.csv as pacsv

from leapray.climsim.schema import SAMPLE_ID
from leapray.data.flat.places import PLACE
from leapray.errors import UserError
from leapray.evaluation.tables import CSV_BLOCK_BYTES, HEADER_BYTES, header_names

PIECE_BYTES = 64 << 20
"""Bytes of a csv that make one piece."""
_HEAD_BYTES = 1 << 20


@dataclass(frozen=True)
class Head:
    """The beginning of a csv: its first whole rows, whose names and types are the file's, their mean bytes (0 if there are none), and where
    the header line ends."""

    rows: pa.Table
    row_bytes: float
    first_line_end: int
    content: bytes


def read_head(path: str, file: IO[bytes]) -> Head:
    """Raises UserError for a file that is empty or has no lines; pyarrow's errors for one that is no csv."""
    file.seek(0)
    content = file.read(_HEAD_BYTES)
    if not content.strip():
        raise UserError(f"{path}: is empty, expected a line of column names and rows below it")
    header_names(path, content.split(b"\n", 1)[0])
    end = content.find(b"\n")
    whole = content if len(content) < _HEAD_BYTES else content[: content.rfind(b"\n") + 1]
    rows = _parse(path, (0, len(whole)), pa.py_buffer(whole), pacsv.ReadOptions(use_threads=False, block_size=_HEAD_BYTES))
    if not rows.num_rows and len(content) == _HEAD_BYTES:
        raise UserError(f"{path}: its header and first row have more than {_HEAD_BYTES} bytes, expected less")
    return Head(rows, (len(whole) - end - 1) / max(rows.num_rows, 1), end, content)


def spans(first_line_end: int, size: int) -> list[tuple[int, int]]:
    """Byte ranges of about ``PIECE_BYTES`` from the end of the header line to the end of the file."""
    return [(start, min(start + PIECE_BYTES, size)) for start in range(first_line_end, size, PIECE_BYTES)]


def read_span(path: str, file: IO[bytes], span: tuple[int, int], numbers: Sequence[str]) -> pa.Table:
    """Rows of one range: the columns ``numbers`` as float64, the id and place columns that are there.

    Raises UserError for a row of another width, pyarrow's errors for text in a number column.
    """
    file.seek(0)
    names = header_names(path, file.readline(HEADER_BYTES))
    types = dict.fromkeys(numbers, pa.float64()) | {
        name: type_ for name, type_ in ({SAMPLE_ID: pa.string()} | PLACE).items() if name in names
    }
    content = _lines(file, *span)
    if not content.size:
        return pa.schema(types.items()).empty_table()
    read = pacsv.ReadOptions(use_threads=False, block_size=CSV_BLOCK_BYTES, column_names=names)
    return _parse(path, span, content, read, pacsv.ConvertOptions(column_types=types, include_columns=list(types)))


def _parse(
    path: str, span: tuple[int, int], content: pa.Buffer, read: pacsv.ReadOptions, convert: pacsv.ConvertOptions | None = None
) -> pa.Table:
    try:
        return pacsv.read_csv(pa.BufferReader(content), read_options=read, convert_options=convert)
    except pa.ArrowInvalid as error:
        widths = re.search(r"Expected (\d+) columns, got (\d+)", str(error))
        if widths is None:
            raise
        where = f"between bytes {span[0]} and {span[1]}"
        raise UserError(f"{path}: a row {where} has {widths[2]} values, expected {widths[1]} as in the header line") from error


def _lines(file: IO[bytes], start: int, stop: int) -> pa.Buffer:
    """The lines whose preceding line break lies from byte ``start`` up to, not including, ``stop``."""
    if not 0 <= start <= stop <= start + PIECE_BYTES:
        raise pa.ArrowInvalid(f"bytes {start} to {stop} are no piece of at most {PIECE_BYTES} bytes")
    file.seek(start)
    content = file.read(stop - start)
    first = content.find(b"\n") + 1
    if not first:
        return pa.py_buffer(b"")
    tail = [b""]
    while b"\n" not in tail[-1] and (more := file.read(_HEAD_BYTES)):
        if len(tail) > CSV_BLOCK_BYTES // _HEAD_BYTES:
            raise pa.ArrowInvalid(f"a row at byte {stop} has no end in {CSV_BLOCK_BYTES} bytes, expected lines that end with LF or CRLF")
        tail.append(more)
    end = tail[-1].find(b"\n") + 1
    if end:
        tail[-1] = tail[-1][:end]
    return pa.py_buffer(b"".join([content, *tail])).slice(first)
