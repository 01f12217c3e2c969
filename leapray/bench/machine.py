"""One core, a busy neighbour, and the anonymous memory of a process (``RssAnon``: without pages of files and of shared memory)."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

_SAMPLE_SECONDS = 0.002


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


def _bind(allowed: set[int]) -> None:
    for thread in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), allowed)


@contextmanager
def one_busy_process() -> Iterator[None]:
    """Another process that computes without a pause for the length of the block. It ends with this one at the latest."""
    code = f"import os; print(flush=True)\nwhile os.getppid() == {os.getpid()}: sum(range(100_000))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        # it has begun
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.communicate()


def memory_taken(function: Callable[[], Any]) -> float:
    """MB of anonymous memory that running ``function`` takes in a new process beyond what it holds once everything is imported.

    ``function`` is pickled. 0 where there is no ``/proc``.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_taken, function).result()


def _taken(function: Callable[[], Any]) -> float:
    before, peak, stop = _anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(_SAMPLE_SECONDS):
            peak = max(peak, _anonymous())

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    result = function()  # noqa: F841 - held until the last sample
    stop.set()
    watching.join()
    return (max(peak, _anonymous()) - before) / 1e6


def _anonymous() -> int:
    """Bytes of anonymous memory of this process."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0
