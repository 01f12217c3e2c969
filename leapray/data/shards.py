"""Prepared data on disk: parquet shards, the manifest of each split of each source, and the transform they share.

    PREPARED/prepare.json  transform.json  <split>/<source>/manifest.json  <split>/<source>/shard-….parquet

A shard holds ``inputs`` float32 [s], ``targets`` float32 [t], both scaled, as the bytes of each row, and ``row``, the int64
key that leads back to kind, step and column. A manifest is written last: without one, a split is not there.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, TypeAdapter, ValidationError

from leapray import storage
from leapray.data.flat import Piece
from leapray.data.transform import Transform
from leapray.errors import UserError
from leapray.faults import placed, told
from leapray.recipe import SPLITS, Data, validate
from leapray.settings import difference

MANIFEST = "manifest.json"
TRANSFORM = "transform.json"
SETTINGS = "prepare.json"
INPUTS_KEY = "inputs"
"""Fingerprints of the sources, beside the settings."""

_REPORTED = 10
_MANIFEST_BYTES = 1 << 30
"""The largest manifest that is read; one of high-res flat files, of every step, has 170 MB."""

FileRows = Annotated[int, Field(ge=0, le=1 << 26)]
"""Rows of one file, of which a month of high-res has 46 million."""

Rows = dict[str, np.ndarray]
"""Columns ``inputs`` (n, i), ``targets`` (n, t) and ``row`` (n,) of the same n rows."""


@dataclass(frozen=True)
class ShardFile:
    """One shard by its name beside the manifest, its rows and its bytes."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=200)]
    rows: FileRows
    bytes: int


@dataclass(frozen=True)
class FlatFile:
    """A piece of flat parquet or csv that is read and scaled as it is needed, and the rows of it that can be used."""

    piece: Piece
    rows: FileRows


Files = tuple[ShardFile, ...] | tuple[FlatFile, ...]


@dataclass(frozen=True)
class Manifest:
    """What one split of one source holds and where it came from: shards, or the pieces of flat files that stand for them."""

    url: str
    source: str
    kind: str
    split: str
    months: str
    transform: str
    """Digest of the transform that scales the rows."""
    seed: int
    input: str
    """Fingerprint of the files that the rows came from."""
    bad_rows: Literal["refuse", "drop"]
    files: Files
    checksum: str | None
    """Of the keys and scaled values of all rows of the shards, in whatever order (:func:`shuffle.checksum`)."""
    dropped: dict[str, dict[str, int]]
    """Values that cannot be used, in the rows that were dropped, by column and reason."""
    dropped_rows: int
    inexact: dict[str, int]
    """By exact column, the rows in which it is not ``-state_q0002/1200``; known of shards."""

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    def report(self) -> Iterator[str]:
        """What it holds, and what was dropped and why, in lines for people; the columns with the most values that cannot be used."""
        yield f"{self.split:<10} {self.source:<12} {self.rows} rows in {len(self.files)} files"
        if self.dropped_rows:
            yield f"  {self.dropped_rows} rows dropped for values that cannot be used, in {len(self.dropped)} columns:"
            worst = sorted(self.dropped.items(), key=lambda item: -sum(item[1].values()))
            for column, reasons in worst[:_REPORTED]:
                yield f"  {column:<20} {', '.join(f'{reason} in {count} rows' for reason, count in reasons.items())}"
            if len(worst) > _REPORTED:
                yield f"  and {len(worst) - _REPORTED} more columns, all in {MANIFEST}"
        for column, count in self.inexact.items():
            yield f"  {column:<20} is not exactly -state_q0002/1200 in {count} rows"

    def save(self) -> None:
        values = _MANIFEST.dump_python(self, mode="json")
        values["rows"] = self.rows
        storage.write_json(storage.join(values.pop("url"), MANIFEST), values)

    @classmethod
    def load(cls, url: str) -> Manifest:
        """Read the manifest of a split's directory. Raises UserError when it is missing or of another form."""
        name = storage.join(url, MANIFEST)
        values = storage.read_json(name, _MANIFEST_BYTES)
        try:
            rows = values.pop("rows")
            manifest = _MANIFEST.validate_python(values | {"url": url})
        except (ValidationError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{name}: not a manifest of prepared data, or one of another leapray; prepare anew") from error
        if manifest.rows != rows:
            raise UserError(f"{name}: says {told(rows)} rows, but its files hold {manifest.rows}")
        places = Counter(file.name if isinstance(file, ShardFile) else (file.piece.path, file.piece.index) for file in manifest.files)
        if twice := next((place for place, count in places.items() if count > 1), None):
            raise UserError(f"{name}: lists {told(twice, 200)} more than once, so that its rows would be trained twice; prepare anew")
        return manifest


_MANIFEST = TypeAdapter(Manifest)
_PAGE_BYTES = 1 << 20
_FLOAT_BYTES = np.dtype(np.float32).itemsize


@dataclass(frozen=True)
class Prepared:
    """A prepared directory: the transform and every manifest below it."""

    url: str
    transform: Transform
    manifests: tuple[Manifest, ...]

    def split(self, name: str) -> tuple[Manifest, ...]:
        """Manifests of one split, by source name."""
        return tuple(manifest for manifest in self.manifests if manifest.split == name)


def load_prepared(url: str) -> Prepared:
    """Open a prepared directory. Raises UserError when it is missing, unfinished, or mixes transforms."""
    if not storage.exists(storage.join(url, TRANSFORM)):
        raise UserError(f"{placed(url)}: holds no prepared data ({TRANSFORM} is missing); run `leapray prepare` first")
    transform = load_transform(url)
    found = [name for name in storage.list_files(url, MANIFEST) if name.endswith(f"/{MANIFEST}")]
    manifests = tuple(Manifest.load(name.removesuffix(f"/{MANIFEST}")) for name in found)
    if not manifests:
        raise UserError(f"{url}: prepared data is unfinished (no {MANIFEST} below it); run `leapray prepare` again")
    for manifest in manifests:
        if manifest.transform != transform.digest():
            raise UserError(f"{manifest.url}: scaled by transform {told(manifest.transform)}, but {TRANSFORM} is {transform.digest()}")
    return Prepared(url, transform, manifests)


def open_prepared(data: Data) -> Prepared:
    """Open the prepared directory that a recipe names. Raises UserError when it is missing, unfinished, or another recipe's."""
    url = storage.absolute(data.prepared)
    prepared = load_prepared(url)
    if changed := changed_settings(url, data):
        raise UserError(f"{url}: was prepared by another recipe ({changed}); run `leapray prepare` with another data.prepared")
    made = {(manifest.split, manifest.source) for manifest in prepared.manifests}
    for name, source in data.sources.items():
        for split in SPLITS:
            if source.months(split) is not None and (split, name) not in made:
                raise UserError(f"{url}: prepared data is unfinished ({split} of {name} is missing); run `leapray prepare` again")
    for manifest in prepared.manifests:
        for file in manifest.files:
            named = data.sources.get(manifest.source)
            if isinstance(file, FlatFile) and (named is None or not storage.lies_below(file.piece.path, named.path)):
                raise UserError(
                    f"{storage.join(manifest.url, MANIFEST)}: names {told(file.piece.path, 200)}, which is not below the path of source "
                    f"{told(manifest.source)} in the recipe; prepare anew"
                )
    return prepared


def prepare_settings(data: Data) -> dict[str, Any]:
    """What decides the content of a prepared directory, as ``prepare.json`` holds it.

    Where a source lies does not, since its files have a fingerprint; but manifests that name flat files hold their place.
    """
    passed_over = {"weight", "path"} if data.stream_from == "shards" else {"weight"}
    return data.model_dump(mode="json", exclude={"prepared": True, "sources": {"__all__": passed_over}})


def trained_files(data: Data) -> dict[str, Any] | None:
    """What tells the files that a recipe trains and validates on: their fingerprints, as they were prepared; None where nothing is."""
    name = storage.join(data.prepared, SETTINGS)
    content = storage.read_json(name) if storage.exists(name) else None
    if not (isinstance(content, dict) and isinstance(found := content.get(INPUTS_KEY), dict)):
        return None
    return {key: mark for key, mark in found.items() if key.rpartition(".")[2] not in ("blend", "test")}


def changed_settings(url: str, data: Data) -> str:
    """What the recipe's settings and those of a prepared directory disagree on; keys that the directory is too old for have defaults."""
    name = storage.join(url, SETTINGS)
    content = storage.read_json(name)
    sources = content.get("sources") if isinstance(content, dict) else None
    if not isinstance(sources, dict) or not all(isinstance(values, dict) for values in sources.values()):
        raise UserError(f"{name}: does not hold the settings of prepared data; remove {url} and run `leapray prepare` again")
    noted = {key: value for key, value in content.items() if key != INPUTS_KEY}
    sources = {source: {"path": ""} | values for source, values in noted["sources"].items()}
    theirs = validate(Data, {**noted, "sources": sources, "prepared": url}, name)
    return difference(prepare_settings(data), prepare_settings(theirs))


def load_transform(url: str) -> Transform:
    name = storage.join(url, TRANSFORM)
    return Transform.from_dict(storage.read_json(name), name)


def rows_to_table(rows: Rows) -> pa.Table:
    """Rows as an Arrow table; every row's float32 values are one ``fixed_size_binary``, which parquet reads ten times as fast as lists."""
    columns = {name: _binary(np.ascontiguousarray(rows[name], np.float32)) for name in ("inputs", "targets")}
    return pa.table(columns | {"row": pa.array(rows["row"], pa.int64())})


def table_to_rows(table: pa.Table) -> Rows:
    """Inverse of :func:`rows_to_table`; the arrays are read-only views of the table's memory where that is in one piece."""
    rows = {name: _floats(_one_chunk(table.column(name))) for name in ("inputs", "targets")}
    if empty := table.column("row").null_count:
        raise pa.ArrowInvalid(f"column row has {empty} empty values")
    return rows | {"row": table.column("row").to_numpy()}


def _binary(values: np.ndarray) -> pa.Array:
    return pa.Array.from_buffers(pa.binary(values.shape[1] * values.itemsize), len(values), [None, pa.py_buffer(values)])


def _floats(column: Any) -> np.ndarray:
    if not pa.types.is_fixed_size_binary(column.type) or column.null_count:
        raise pa.ArrowInvalid(f"a column has type {column.type}, expected float32 values as fixed_size_binary")
    width = column.type.byte_width // np.dtype(np.float32).itemsize
    values = np.frombuffer(column.buffers()[1], np.float32, len(column) * width, column.offset * column.type.byte_width)
    return values.reshape(len(column), width)


def _one_chunk(column: pa.ChunkedArray) -> Any:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def write_shard(url: str, rows: Rows) -> None:
    """Write one shard under a temporary name, then rename it."""
    table = rows_to_table(rows)
    with storage.atomic_file(url) as file:
        # scaled float32 hardly compresses, and plain pages are the fastest to read
        pq.write_table(table, file, compression="none", use_dictionary=False, write_statistics=False, write_page_checksum=True)


def read_shard(url: str, *, verify: bool = True) -> Rows:
    """Read one shard, and compare its checksums when ``verify`` says so. Raises UserError when it is missing or damaged."""
    try:
        with storage.open_input(url) as file:
            # local pages are small enough to be checked and copied while they are in the processor's cache
            buffer = _PAGE_BYTES if storage.is_local(url) else 0
            shard = pq.ParquetFile(file, page_checksum_verification=verify, buffer_size=buffer, pre_buffer=not buffer)
            # the open file knows, whereas a store would have to be asked
            _require_plain(shard, file.seek(0, os.SEEK_END))
            return table_to_rows(shard.read(use_threads=False))
    except (pa.ArrowException, OSError, KeyError, AttributeError, UnicodeDecodeError) as error:
        reason = told(error, 300)
        raise UserError(f"{url}: not a readable shard of prepared data ({reason}); remove it and run `leapray prepare` again") from error


def _require_plain(shard: pq.ParquetFile, size: int) -> None:
    """Raises ArrowInvalid, before anything is decoded, for columns that are not a shard's, and for more rows than ``size`` bytes can hold.

    Nothing in a shard is compressed, so that it never takes more memory than its file has bytes.
    """
    schema, rows = shard.schema_arrow, shard.metadata.num_rows
    found = {field.name: field.type for field in schema}
    vectors = [found.get("inputs"), found.get("targets")]
    plain = all(type_ is not None and pa.types.is_fixed_size_binary(type_) and not type_.byte_width % _FLOAT_BYTES for type_ in vectors)
    if sorted(schema.names) != ["inputs", "row", "targets"] or not plain or found["row"] != pa.int64():
        kinds = ", ".join(f"{name} {type_}" for name, type_ in found.items())
        raise pa.ArrowInvalid(f"columns {kinds}, expected inputs and targets of float32 values as fixed_size_binary and row int64")
    width = sum(type_.byte_width for type_ in found.values())
    if rows * width > size:
        raise pa.ArrowInvalid(f"{rows} rows do not fit into {size} bytes")
