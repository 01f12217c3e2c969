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
from leapray.climsim.schema import row_place
from leapray.data.shards import Rows, rows_to_table, table_to_rows
from leapray.errors import UserError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def row_hash(row: np.ndarray, seed: int) -> np.ndarray:
    """Uniform uint64 of each row key and the seed: SplitMix64's finaliser (Steele, Lea and Flood, 2014)."""
    with np.errstate(over="ignore"):
        z = row.astype(np.uint64) + _GOLDEN * np.uint64(2 * seed + 1)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


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
    """All rows of one bucket, ordered by hash. Raises UserError if a row is there twice."""
    batches = []
    for url in urls:
        with storage.open_input(url) as file:
            batches.append(pa.ipc.open_file(file).get_batch(bucket))
    table = pa.Table.from_batches(batches).combine_chunks()
    batches.clear()
    rows = table_to_rows(table)
    order = np.lexsort((rows["row"], row_hash(rows["row"], seed)))
    ordered = {name: values[order] for name, values in rows.items()}
    twice = np.flatnonzero(np.diff(ordered["row"]) == 0)
    if len(twice):
        _, step, ncol = row_place(ordered["row"][twice[:1]])
        raise UserError(f"step {step[0]}, column {ncol[0]} is in the data twice, expected every row once")
    return ordered
