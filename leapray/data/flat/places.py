"""Where and when the rows of a flat file belong: keys from the columns kind, step and ncol, or from the competition's ids.

Shapes: n rows of a record batch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leapray.climsim.calendar import Month
from leapray.climsim.row_keys import COLUMN_BITS, KINDS, MONTH_SHIFT, STEP_BITS, row_key, row_place
from leapray.climsim.schema import SAMPLE_ID
from leapray.errors import UserError
from leapray.faults import told

PLACE = {"kind": pa.string(), "step": pa.int64(), "ncol": pa.int32()}
"""Columns that tell the place of a row, in our own files."""

_COMPETITION_KIND, _COMPETITION_STRIDE = KINDS["low-res"], 7
_PART_BITS, _ROW_BITS = 12, 22
"""Of a negative key, below its month, its file, and a bit that says whether its number is an id's, which takes those of part and row."""
_FILE_BITS = MONTH_SHIFT - 1 - _PART_BITS - _ROW_BITS
_MONTH = re.compile(r"(?<!\d)(?!0000)\d{4}-(?:0[1-9]|1[0-2])(?!\d|-\d\d(?!\d))")
"""YYYY-MM that is not the beginning of a date."""
_YEAR_PART, _MONTH_PART = re.compile(r"year=0*([1-9]\d{0,3})"), re.compile(r"month=0?([1-9]|1[0-2])")
"""Folders of a partitioned data set, as Arrow, Spark and Hive write them."""
COMPETITION_ROWS = 10_091_520
"""Rows of the competition's train.csv: 26 280 steps of 384 columns, every seventh from 0001-02 up to, not including, 0008-02."""
COMPETITION_ID = re.compile(r"train_(?P<row>\d{1,10})")
"""Ids of the competition's rows, which other people's files have too."""
_COMPETITION = "leap-atmospheric-physics-ai-climsim"
"""The competition's name at Kaggle, which its archive and its folder bear."""


def month_in_name(path: str) -> Month | None:
    """The month, YYYY-MM, that the last name of a path holds; None if it holds none, several, or a date YYYY-MM-DD."""
    found = set(_MONTH.findall(path.rsplit("/", 1)[-1]))
    return Month.parse(found.pop()) if len(found) == 1 else None


def month_of_path(path: str, source: str = "") -> Month | None:
    """The month that the path of a file tells: the name of the file, or else the nearest of its folders that holds a month.

    A folder holds one if its name has one YYYY-MM, as ``0008-01``, or if it is ``month=1`` below ``year=8``. Folders above ``source``, the
    folder or file that the user gave, are not looked at, for what they hold may be any date.
    """
    if (month := month_in_name(path)) is not None:
        return month
    names = path.split("/")
    given = source.rstrip("/")
    # the folder that was given counts, and that of a file that was given
    first = len(given.split("/")) - 1 - (path == given) if given and path.startswith(given) else 0
    for place in range(len(names) - 1, max(first, 0) - 1, -1):
        if month := _month_of_folder(names[: place + 1]):
            return month
    return None


def _month_of_folder(names: Sequence[str]) -> Month | None:
    if (part := _MONTH_PART.fullmatch(names[-1])) is None:
        return month_in_name(names[-1])
    years = (_YEAR_PART.fullmatch(name) for name in reversed(names[:-1]))
    year = next((found for found in years if found), None)
    return Month(int(year[1]), int(part[1])) if year else None


def named_as_competition(path: str) -> bool:
    """Whether a file is one of the competition's by its name: train.csv, the same as parquet, or a file in a folder of its name."""
    *folders, name = path.split("/")
    return name in ("train.csv", "train.parquet") or any(_COMPETITION in folder for folder in folders)


@dataclass(frozen=True)
class Position:
    """Where a batch lies: the month of all its rows, where it is not told row by row, the number of its file in that month, of the part
    of the file, and of the batch's first row in the part; and whether its file is the competition's, whose ids tell steps."""

    month: Month | None
    file: int
    part: int
    row: int
    competition: bool = False

    def key(self, number: np.ndarray, *, of_id: bool) -> np.ndarray:
        """Negative keys ``(n,)`` of rows by the numbers in their ids, or else by their numbers in the part."""
        row = number if of_id else number + (self.part << _ROW_BITS)
        within = _PART_BITS + _ROW_BITS
        if self.file >> _FILE_BITS or row.max(initial=0) >> within or (not of_id and number.max(initial=0) >> _ROW_BITS):
            raise UserError(
                f"file {self.file + 1} of month {self.month or 'unknown'}, part {self.part + 1} of it: too many files, parts or rows "
                "to tell rows without a place apart; give columns step and ncol, or split the source"
            )
        month = 0 if self.month is None else self.month.index
        return -1 - ((np.int64((month << _FILE_BITS | self.file) << 1 | of_id) << within) | row)


def row_keys(batch: pa.RecordBatch, path: str, position: Position, kind: str | None) -> np.ndarray:
    """int64 ``(n,)``: the key of each row where kind, step and ncol are known, else a negative number that is the row's own.

    That is made of its file and the number in its id ``train_<r>``, by which a row that stands twice is found, or without such an id
    of its place in the file. ``kind`` is what rows without a column kind are taken for. Ids tell steps only in the competition's
    files, low-res and with neither a month nor a step: other files reuse such ids, beginning with ``train_0``. Raises UserError for
    another kind, a place that is none, and an id beyond the competition's rows.
    """
    names = set(batch.schema.names)
    if "kind" in names:
        kind = _single_kind(path, batch.column("kind"), kind)
    if kind is not None and {"step", "ncol"} <= names:
        return row_key(kind, _whole_numbers(path, batch, "step", STEP_BITS), _whole_numbers(path, batch, "ncol", COLUMN_BITS))
    number = competition_rows(batch)
    if number is None:
        return position.key(np.arange(position.row, position.row + batch.num_rows), of_id=False)
    if position.competition and kind in (None, _COMPETITION_KIND.name) and "step" not in names and position.month is None:
        if number.max(initial=0) >= COMPETITION_ROWS:
            raise UserError(
                f"{path}: holds {SAMPLE_ID} train_{number.max()}, and the competition has {COMPETITION_ROWS} rows, so that its ids do not "
                "tell months; give the file another name, with its month YYYY-MM or with a column step"
            )
        step, ncol = np.divmod(number, _COMPETITION_KIND.columns)
        return row_key(_COMPETITION_KIND.name, step * _COMPETITION_STRIDE, ncol)
    return position.key(number, of_id=True)


def steps_of(batch: pa.RecordBatch, path: str, row: np.ndarray) -> np.ndarray | None:
    """Absolute steps ``(n,)`` of rows with the keys ``row``, or None where neither a column nor every key tells them."""
    if "step" in batch.schema.names:
        return _whole_numbers(path, batch, "step", STEP_BITS)
    return None if (row < 0).any() else row_place(row)[1]


def steps_unknown(path: str) -> UserError:
    """The error for a file of which a stride is asked for and whose months alone can be told."""
    return UserError(f"{path}: a stride needs the step of every row, expected a column step (of 1 200 s since 0001-02-01)")


def months_unknown(path: str) -> UserError:
    """The error for a file whose months are asked for and cannot be told."""
    expected = "a column step, one YYYY-MM in the name of the file or its folder, a month in the recipe, or the competition's train.csv"
    return UserError(f"{path}: its months cannot be told, expected {expected}")


def competition_rows(batch: pa.RecordBatch) -> np.ndarray | None:
    """Row numbers ``(n,)`` that the ids ``train_<r>`` tell, or None if one of them is no such id."""
    if SAMPLE_ID not in batch.schema.names:
        return None
    ids = batch.column(SAMPLE_ID).cast(pa.string())
    numbers = pc.struct_field(pc.extract_regex(ids, f"^{COMPETITION_ID.pattern}$"), "row")
    return None if numbers.null_count else np.asarray(numbers.cast(pa.int64()))


def _single_kind(path: str, column: pa.Array, expected: str | None) -> str | None:
    found = column.cast(pa.string()).unique().to_pylist()
    allowed = [expected] if expected else list(KINDS)
    if len(found) > 1 or any(kind not in allowed for kind in found):
        held = ", ".join(told(kind) for kind in found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        raise UserError(f"{path}: column kind holds {held}, expected {' or '.join(allowed)} alone")
    return found[0] if found else expected


def _whole_numbers(path: str, batch: pa.RecordBatch, name: str, bits: int) -> np.ndarray:
    column = batch.column(name)
    most = (1 << bits) - 1
    if column.null_count or (len(column) and not 0 <= pc.min(column).as_py() <= pc.max(column).as_py() <= most):
        raise UserError(f"{path}: column {name} has empty, negative or very large values, expected whole numbers from 0 to {most}")
    return np.asarray(column.cast(pa.int64()))
