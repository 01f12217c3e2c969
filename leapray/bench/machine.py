"""What a contestant may use and what it used: one core, a process of its own, a busy neighbour, and its anonymous memory.

Anonymous memory (``RssAnon``) is what a process holds for itself; pages of files and of Ray's shared object store are not in it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_PROC = Path("/proc")
_OWN_INTERVAL_S, _WORKERS_INTERVAL_S = 0.002, 0.05
"""Between samples: reading one's own status is cheap, looking for workers among all processes is not."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def one_core() -> Iterator[None]:
    """Keep every thread of this process, also those that libraries have started, on one core for the length of the block."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    _bind({min(allowed)})
    try:
        yield
    finally:
        _bind(allowed)


@contextmanager
def one_busy_process() -> Iterator[None]:
    """Another process that computes without a pause for the length of the block. It ends with this one at the latest."""
    parent = os.getpid()
    code = f"import os; print(flush=True)\nwhile os.getppid() == {parent}: sum(range(100_000))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        # it has begun
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.communicate()


def _bind(allowed: set[int]) -> None:
    for thread in (_PROC / "self" / "task").iterdir():
        try:
            os.sched_setaffinity(int(thread.name), allowed)
        except ProcessLookupError:
            continue


def memory_taken(function: Callable[[], Any]) -> float:
    """MB of anonymous memory that running ``function`` takes in a fresh process beyond what it holds once everything is imported.

    ``function`` is pickled. 0 where the system does not tell (no ``/proc``).
    """
    return _in_child(_taken, function)


def largest_memory(function: Callable[[], Any]) -> float:
    """MB of anonymous memory, at any time, of the largest of a fresh process that runs ``function`` and the workers that it has."""
    return _in_child(_largest, function)


def _in_child(measure: Callable[[Callable[[], Any]], float], function: Callable[[], Any]) -> float:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, function).result()


def _taken(function: Callable[[], Any]) -> float:
    own = os.getpid()
    before = _anonymous(own)
    with MemoryWatch(lambda: [own], _OWN_INTERVAL_S) as watch:
        result = function()  # noqa: F841 - held until the last sample
    return (watch.peaks[own] - before) / 1e6


def _largest(function: Callable[[], Any]) -> float:
    with MemoryWatch(lambda: _family(os.getpid()), _WORKERS_INTERVAL_S) as watch:
        function()
    return max(watch.peaks.values(), default=0) / 1e6


class MemoryWatch:
    """Samples the anonymous memory of processes while the block runs, and once more at its end."""

    def __init__(self, processes: Callable[[], list[int]], interval_s: float) -> None:
        self._processes, self._interval_s = processes, interval_s
        self.peaks: dict[int, int] = {}
        """Bytes, by process."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._sample()

    def _sample(self) -> None:
        for process in self._processes():
            self.peaks[process] = max(_anonymous(process), self.peaks.get(process, 0))


def _family(root: int) -> list[int]:
    """A process and its descendants, without the services of Ray."""
    parents = {int(path.name): _status(int(path.name), "PPid:") for path in _PROC.glob("[0-9]*")}
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return [process for process in found if not _is_service(process)]


def _is_service(process: int) -> bool:
    try:
        title = (_PROC / str(process) / "cmdline").read_bytes()
    except OSError:
        return True
    return not title.startswith(b"ray::") and (b"/ray/" in title or title.startswith(b"ray-"))


def _anonymous(process: int) -> int:
    """Bytes of anonymous memory; 0 for a process that is gone."""
    return _status(process, "RssAnon:") * 1024


def _status(process: int, key: str) -> int:
    """A number of ``/proc/<pid>/status``; 0 for a process that is gone."""
    try:
        lines = (_PROC / str(process) / "status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(key)), 0)
