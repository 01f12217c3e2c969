"""Work done ahead of its use, in threads of this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

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
