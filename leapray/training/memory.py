"""The memory of a process that trains."""

from __future__ import annotations

import ctypes

import pyarrow as pa

# of glibc's malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
_KEPT, _PAD = 1 << 30, 128 << 20


def keep_freed_memory() -> None:
    """Let large tensors and Arrow's buffers that are freed stay with the process, up to 1 GiB, for the next step to take.

    By default glibc gives them back to the system, which hands them out again page by page: a third of a step's time on a CPU. Threads
    that start afterwards take from the same memory, so that what one frees another has. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((_MMAP_THRESHOLD, _KEPT), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, _PAD), (_ARENA_MAX, 1)):
            mallopt(parameter, value)
        pa.set_memory_pool(pa.system_memory_pool())
