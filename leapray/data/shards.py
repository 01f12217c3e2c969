"""Prepared data on disk: tensor parquet shards, the manifest of each split of each source, and the transform they share.

    PREPARED/prepare.json  transform.json  <split>/<source>/manifest.json  <split>/<source>/shard-….parquet

A shard holds ``inputs`` float32 [556], ``targets`` float32 [368], both scaled, and ``row``, the int64 key that leads back to
kind, step and column. A manifest is written last: without one, a split is not there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leapray import storage
from leapray.data.transform import Transform
from leapray.errors import UserError
from leapray.recipe import SPLITS, Data, validate
from leapray.settings import difference

MANIFEST = "manifest.json"
TRANSFORM = "transform.json"
SETTINGS = "prepare.json"
GROUP_ROWS = 1024
"""Rows of a shard's row groups, but for its last one."""

Rows = dict[str, np.ndarray]
"""Columns ``inputs`` (n, i), ``targets`` (n, t) and ``row`` (n,) of the same n rows."""


@dataclass(frozen=True)
class ShardFile:
    """One shard by its name beside the manifest, and its row count."""

    name: str
    rows: int


@dataclass(frozen=True)
class Manifest:
    """What one split of one source holds and where it came from."""

    url: str
    source: str
    kind: str
    split: str
    months: str
    transform: str
    """Digest of the transform that scaled the rows."""
    seed: int
    files: tuple[ShardFile, ...]
    dropped: dict[str, int]
    """Non-finite values by column, in the rows that were dropped."""
    dropped_rows: int
    inexact: dict[str, int]
    """By exact column, the rows in which it is not ``-state_q0002/1200``."""

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    def shard_url(self, index: int) -> str:
        return storage.join(self.url, self.files[index].name)

    def save(self) -> None:
        values = asdict(self)
        values["rows"] = self.rows
        storage.write_json(storage.join(values.pop("url"), MANIFEST), values)

    @classmethod
    def load(cls, url: str) -> Manifest:
        """Read the manifest of a split's directory. Raises UserError when it is missing or of another form."""
        name = storage.join(url, MANIFEST)
        values = storage.read_json(name)
        try:
            rows = values.pop("rows")
            files = tuple(ShardFile(**file) for file in values.pop("files"))
            manifest = cls(url=url, files=files, **values)
        except (TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{name}: not a manifest of prepared shards ({error})") from error
        if manifest.rows != rows:
            raise UserError(f"{name}: says {rows} rows, but its files hold {manifest.rows}")
        return manifest


@dataclass(frozen=True)
class Prepared:
    """A prepared directory: the transform and every manifest below it."""

    url: str
    transform: Transform
    manifests: tuple[Manifest, ...]

    def split(self, name: str) -> tuple[Manifest, ...]:
        """Manifests of one split, by source name."""
        return tuple(manifest for manifest in self.manifests if manifest.split == name)

    def shards(self, split: str) -> Iterator[Rows]:
        """Every shard of a split, one after another."""
        for manifest in self.split(split):
            for index in range(len(manifest.files)):
                yield read_shard(manifest.shard_url(index))


def load_prepared(url: str) -> Prepared:
    """Open a prepared directory. Raises UserError when it is missing, unfinished, or mixes transforms."""
    if not storage.exists(storage.join(url, TRANSFORM)):
        raise UserError(f"{url}: holds no prepared data ({TRANSFORM} is missing); run `leapray prepare` first")
    transform = load_transform(url)
    found = [name for name in storage.list_files(url, MANIFEST) if name.endswith(f"/{MANIFEST}")]
    manifests = tuple(Manifest.load(name.removesuffix(f"/{MANIFEST}")) for name in found)
    if not manifests:
        raise UserError(f"{url}: prepared data is unfinished (no {MANIFEST} below it); run `leapray prepare` again")
    for manifest in manifests:
        if manifest.transform != transform.digest():
            raise UserError(f"{manifest.url}: scaled by transform {manifest.transform}, but {TRANSFORM} is {transform.digest()}")
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
    return prepared


def prepare_settings(data: Data) -> dict[str, Any]:
    """What decides the content of a prepared directory, as ``prepare.json`` holds it."""
    return data.model_dump(mode="json", exclude={"prepared"})


def changed_settings(url: str, data: Data) -> str:
    """What the recipe's settings and those of a prepared directory disagree on; keys that the directory is too old for have defaults."""
    name = storage.join(url, SETTINGS)
    theirs = validate(Data, {**storage.read_json(name), "prepared": url}, name)
    return difference(prepare_settings(data), prepare_settings(theirs))


def load_transform(url: str) -> Transform:
    name = storage.join(url, TRANSFORM)
    return Transform.from_dict(storage.read_json(name), name)


def rows_to_table(rows: Rows) -> pa.Table:
    """Rows as an Arrow table of tensor columns that any pyarrow reads."""
    columns: dict[str, Any] = {
        name: pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(rows[name])) for name in ("inputs", "targets")
    }
    return pa.table(columns | {"row": pa.array(rows["row"], pa.int64())})


def table_to_rows(table: pa.Table) -> Rows:
    """Inverse of :func:`rows_to_table`; the arrays are views of the table's memory where it is in one piece."""
    tensors = {name: table.column(name).combine_chunks() for name in ("inputs", "targets")}
    rows = {name: _one_chunk(column).to_numpy_ndarray() for name, column in tensors.items()}
    return rows | {"row": table.column("row").to_numpy()}


def _one_chunk(column: Any) -> Any:
    return column if isinstance(column, pa.Array) else pa.concat_arrays(column.chunks)


def write_shard(url: str, rows: Rows) -> None:
    """Write one shard under a temporary name, then rename it."""
    table = rows_to_table(rows)
    with storage.atomic_file(url) as file:
        # scaled float32 hardly compresses, and plain pages are the fastest to read
        pq.write_table(table, file, row_group_size=GROUP_ROWS, compression="none", use_dictionary=False, write_statistics=False)


def read_shard(url: str, groups: Sequence[int] | None = None) -> Rows:
    """Read one shard, or the given row groups of it. Raises UserError when it is missing or damaged."""
    try:
        with storage.open_input(url) as file:
            parquet = pq.ParquetFile(file)
            return table_to_rows(parquet.read() if groups is None else parquet.read_row_groups(groups))
    except (pa.ArrowException, OSError, KeyError, AttributeError) as error:
        raise UserError(f"{url}: not a readable shard of prepared data ({error}); remove it and run `leapray prepare` again") from error
