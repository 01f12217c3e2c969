"""A shuffle of rows across time and place in bounded memory: scatter by hash, then gather each hash bucket in order.

Every input group writes one Arrow file whose n-th record batch holds its rows of bucket n; a bucket is the same batch of every
such file, ordered by hash. The order depends on the seed and the row keys alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa

from leapray import storage
from leapray.climsim.row_keys import row_hash
from leapray.data.shards import Rows, rows_to_table, table_to_rows
from leapray.errors import UserError

_WEIGHTS = np.random.default_rng(0).integers(0, 1 << 64, (1 << 12,), dtype=np.uint64) | np.uint64(1)
_CHECKSUM_ROWS = 1024


class DuplicateRowError(Exception):
    """A row key that is there more than once, and the numbers of the scattered files that hold it."""

    def __init__(self, row: int, files: Sequence[int]) -> None:
        super().__init__(f"row {row} is in scattered files {files}")
        self.row, self.files = row, files


def scatter(rows: Rows, buckets: int, seed: int, url: str) -> None:
    """Write rows, at least one, grouped by hash bucket: record batch n of the Arrow file is bucket n, empty ones too."""
    hashes = row_hash(rows["row"], seed)
    order = np.argsort(hashes, kind="stable")
    # equal ranges of the hash: bucket n begins at n * 2**64 / buckets
    starts = np.array([(n << 64) // buckets for n in range(buckets)], dtype=np.uint64)
    edges = np.append(np.searchsorted(hashes[order], starts), len(order))
    (batch,) = rows_to_table({name: values[order] for name, values in rows.items()}).to_batches()
    with storage.atomic_file(url) as file, pa.ipc.new_file(file, batch.schema) as writer:
        for start, stop in pairwise(edges.tolist()):
            writer.write_batch(batch.slice(start, stop - start))


def gather(urls: Sequence[str], bucket: int, seed: int) -> Rows:
    """All rows of one bucket, ordered by hash. Raises :class:`DuplicateRowError` if a row is there twice."""
    batches = []
    for url in urls:
        try:
            with storage.open_input(url) as file:
                batches.append(pa.ipc.open_file(file).get_batch(bucket))
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{url}: is damaged ({error}); remove it and run `leapray prepare` again") from error
    table = pa.Table.from_batches(batches).combine_chunks()
    edges = np.cumsum([0, *(len(batch) for batch in batches)])
    batches.clear()
    rows = table_to_rows(table)
    order = np.lexsort((rows["row"], row_hash(rows["row"], seed)))
    ordered = {name: values[order] for name, values in rows.items()}
    twice = np.flatnonzero(np.diff(ordered["row"]) == 0)
    if len(twice):
        row = int(ordered["row"][twice[0]])
        raise DuplicateRowError(row, [int(np.searchsorted(edges, place, side="right")) - 1 for place in np.flatnonzero(rows["row"] == row)])
    return ordered


def checksum(rows: Rows) -> int:
    """Sum modulo 2**64 of a hash of each row's key and every bit of its values: the same in whatever order the rows come."""
    total = np.uint64(0)
    with np.errstate(over="ignore"):
        for start in range(0, len(rows["row"]), _CHECKSUM_ROWS):
            part = slice(start, start + _CHECKSUM_ROWS)
            words = np.hstack([_words(rows[name][part]) for name in ("inputs", "targets")])
            mixed = (words * _WEIGHTS[: words.shape[1]]).sum(axis=1, dtype=np.uint64)
            total += row_hash(mixed ^ row_hash(rows["row"][part], 0), 0).sum(dtype=np.uint64)
    return int(total)


def _words(values: np.ndarray) -> np.ndarray:
    """The bits of float32 ``(n, c)`` as uint64 ``(n, ceil(c / 2))``."""
    if values.shape[1] % 2:
        values = np.pad(values, ((0, 0), (0, 1)))
    return np.ascontiguousarray(values).view(np.uint64)
