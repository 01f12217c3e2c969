"""The flat layout of a table: its columns and their types, ours to write and other people's to check."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pyarrow as pa

from leapray.climsim.netcdf import Snapshot
from leapray.climsim.schema import KAGGLE, SAMPLE_ID, VariableSet
from leapray.data.flat.places import PLACE
from leapray.errors import UserError

ROW_GROUP_ROWS = 16384
"""The most rows that one of our row groups holds."""
CONTENT_KEY = b"leapray.content"
"""Under it our files hold, in their footers, a digest of their values."""
SNAPSHOT_KEY = b"leapray.snapshot"
"""Under it the table of one snapshot holds, in its metadata, a digest of its values."""
_ODD = np.uint64(0x9E3779B97F4A7C15)


@lru_cache
def flat_schema(variables: VariableSet) -> pa.Schema:
    """Columns of the parquet that we write: id, place, raw inputs, targets."""
    fields = [pa.field(SAMPLE_ID, pa.string()), *(pa.field(name, type_) for name, type_ in PLACE.items())]
    return pa.schema([*fields, *(pa.field(name, pa.float64()) for name in variables.columns)])


def wanted_columns(variables: VariableSet, *, targets: bool) -> tuple[str, ...]:
    """Names of the raw inputs, and of the targets behind them if they are wanted."""
    return variables.columns if targets else variables.raw.columns


def to_table(snapshot: Snapshot) -> pa.Table:
    """One snapshot as a table of :func:`flat_schema`, without copying its values; ids are ``<kind>_<step>_<ncol>``.

    A digest of the values stands in the table's metadata: of the table it would take longer, since that no longer holds one array.
    """
    n = len(snapshot.rows)
    ids = [f"{snapshot.kind}_{snapshot.step:07d}_{ncol:05d}" for ncol in range(n)]
    place = [pa.repeat(snapshot.kind, n), pa.repeat(snapshot.step, n), pa.array(np.arange(n, dtype=np.int32))]
    # slices of one array: hundreds of arrays made one by one would take as long as reading the files
    values = pa.array(snapshot.rows.T.ravel())
    columns = [values.slice(start, n) for start in range(0, len(values), n)]
    table = pa.Table.from_arrays([pa.array(ids), *place, *columns], schema=flat_schema(snapshot.variables))
    return table.replace_schema_metadata({SNAPSHOT_KEY: hashlib.sha256(content_sums(snapshot.rows).tobytes()).hexdigest()})


def content_sums(rows: np.ndarray) -> np.ndarray:
    """uint64 ``(c,)`` of rows ``(n, c)``: the bits of each column's values, weighted by row and summed modulo 2**64.

    The weights are odd, so that another value anywhere always gives another sum.
    """
    weights = np.arange(1, 2 * len(rows), 2, dtype=np.uint64) * _ODD
    return np.einsum("cn,n->c", rows.T.view(np.uint64), weights)


def check_columns(path: str, schema: pa.Schema, variables: VariableSet, *, targets: bool, sample_id: bool) -> list[str]:
    """Names of columns of neither the variables nor the competition.

    Raises UserError where a file lacks a column, has it twice, or of another type.
    """
    names = schema.names
    present = set(names)
    needed = wanted_columns(variables, targets=targets)
    missing = [name for name in ((SAMPLE_ID, *needed) if sample_id else needed) if name not in present]
    if missing:
        other_set = SAMPLE_ID in present and set(missing).isdisjoint(KAGGLE.columns)
        hint = f"; `leapray convert --variables {variables.name}` writes them from netCDF pairs" if other_set else ""
        raise UserError(
            f"{path}: {_missing(names, missing)}, expected {SAMPLE_ID} and the {len(needed)} columns of variables {variables.name}{hint}"
        )
    if len(present) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}: column {repeated} stands more than once, expected every column once")
    for name in needed:
        _check_type(path, schema, name, _is_number, "a number, floating point or whole")
    for name in {"step", "ncol"} & present:
        _check_type(path, schema, name, pa.types.is_integer, "a whole number")
    for name in {SAMPLE_ID, "kind"} & present:
        _check_type(path, schema, name, _is_text, "text")
    return sorted(present.difference(flat_schema(variables).names, KAGGLE.columns))


def narrow_columns(schema: pa.Schema, variables: VariableSet) -> list[str]:
    """Flat columns in single or half precision, in which the smallest raw values vanish."""
    return [name for name in variables.columns if name in schema.names and _is_narrow(schema.field(name).type)]


def _is_narrow(type_: pa.DataType) -> bool:
    return pa.types.is_float32(type_) or pa.types.is_float16(type_)


def _missing(names: list[str], missing: list[str]) -> str:
    if len(names) == 1 and (separator := next((mark for mark in ";\t|" if mark in names[0]), None)):
        return f"columns are separated by {separator!r}, not by commas"
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    alike = next((name for name in names if name.strip().lower() == missing[0].lower()), None)
    return f"column {', '.join(missing[:3])}{more} missing" + (f" (there is {alike!r}, which is spelt otherwise)" if alike else "")


def _check_type(path: str, schema: pa.Schema, name: str, fits: Callable[[pa.DataType], bool], expected: str) -> None:
    found = schema.field(name).type
    if not fits(found):
        raise UserError(f"{path}: column {name} has type {found}, expected {expected}")


def _is_number(type_: pa.DataType) -> bool:
    # a csv column that is empty in the first rows has type null
    return pa.types.is_floating(type_) or pa.types.is_integer(type_) or pa.types.is_null(type_)


def _is_text(type_: pa.DataType) -> bool:
    """Text, or what names a row as well: whole numbers, and either of them as pandas writes categories."""
    plain = type_.value_type if pa.types.is_dictionary(type_) else type_
    strings = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_integer, pa.types.is_null)
    return any(fits(plain) for fits in strings)
