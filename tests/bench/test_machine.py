"""One core, and the memory of a process."""

import os
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from leapray.bench.machine import cores, memory_taken, one_busy_process, one_core

linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


def stat(process: str) -> list[str]:
    """State, parent and more of a process."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def children() -> set[str]:
    found = set()
    for process in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            found |= {process} if stat(process)[1] == str(os.getpid()) else set()
    return found


@linux
def test_every_thread_is_kept_on_one_core_for_the_block() -> None:
    before = os.sched_getaffinity(0)
    with one_core():
        threads = [os.sched_getaffinity(int(name)) for name in os.listdir("/proc/self/task")]
        assert {len(allowed) for allowed in threads} == {1}
        assert cores() == 1
    assert os.sched_getaffinity(0) == before


@linux
def test_the_busy_process_lasts_for_the_block() -> None:
    before = children()
    with one_busy_process():
        (busy,) = children() - before
        assert stat(busy)[0] == "R"
    assert not Path(f"/proc/{busy}").exists()


@linux
def test_memory_taken_is_what_the_function_allocates() -> None:
    assert memory_taken(partial(np.ones, 10_000_000)) == pytest.approx(80, rel=0.1)
