"""The scaled rows of prepared data, whichever form they lie in: shards as they are, flat files through the same transform."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from leapray import storage
from leapray.data import flat
from leapray.data.clean import Tally, clean, scale, stack
from leapray.data.shards import Manifest, Rows, ShardFile, read_shard
from leapray.data.transform import Transform
from leapray.errors import UserError


def read_file(manifest: Manifest, index: int, transform: Transform, *, verify: bool = True) -> Rows:
    """Scaled rows of one file of a manifest, in its order; a shard's checksums are compared when ``verify`` says so.

    Raises UserError when it is damaged, or holds other rows than the manifest says.
    """
    file = manifest.files[index]
    if isinstance(file, ShardFile):
        url = storage.join(manifest.url, file.name)
        rows = read_shard(url, verify=verify)
        _require_widths(url, rows, transform)
    else:
        url = file.piece.path
        blocks = clean(
            flat.read_piece(file.piece, transform.variables, kind=manifest.kind),
            url,
            manifest.bad_rows,
            Tally.empty(transform.variables),
        )
        parts = [scale(block, transform) for block in blocks]
        if not parts:
            raise UserError(f"{url}: holds no rows now, but had {file.rows} when it was prepared; prepare anew")
        rows = stack(parts)
    if len(rows["row"]) != file.rows:
        raise UserError(f"{url}: holds {len(rows['row'])} rows, but its manifest says {file.rows}; prepare anew")
    return rows


def _require_widths(url: str, rows: Rows, transform: Transform) -> None:
    """Raise UserError for a shard of other columns than the transform of its directory gives."""
    found = tuple(rows[name].shape[1] for name in ("inputs", "targets"))
    expected = (transform.inputs.mean.numel(), transform.targets.mean.numel())
    if found != expected:
        raise UserError(
            f"{url}: holds {found[0]} inputs and {found[1]} targets a row, expected {expected[0]} and {expected[1]}; prepare anew"
        )


T = TypeVar("T")
S = TypeVar("S")


def map_ahead(function: Callable[[S], T], items: Iterable[S], threads: int) -> Iterator[T]:
    """Results of ``function`` in the order of ``items``, each begun at most ``threads`` before it is asked for.

    What raises in a thread is raised when its turn comes. An iterator that is closed early begins no more.
    """
    waiting = iter(items)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
    begun: deque[Future[T]] = deque()
    try:
        begun.extend(pool.submit(function, item) for item in islice(waiting, threads))
        while begun:
            result = begun.popleft().result()
            begun.extend(pool.submit(function, item) for item in islice(waiting, 1))
            yield result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
