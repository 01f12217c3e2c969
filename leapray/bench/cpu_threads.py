"""Part of ``bench train-step``: threads that divide a step's rows beside threads that divide each of its operators, on a CPU.

Both take the same steps of a recurrent network with all cores, on an idle machine and beside one busy process, in turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch

from leapray.bench.compare import Bar, Comparison, Contestant, Figures, Progress, Settings, interleave
from leapray.bench.machine import cores, one_busy_process
from leapray.bench.steps import Ours, Setup, random_batches
from leapray.recipe import CpuThreading
from leapray.training.feed import Batch

IDLE, BUSY = Bar(0.95), Bar(8)
_BUSY_SHARE = 4
"""Beside a busy process a round has this part of the steps: operators that are divided take about ten times as long there."""


def compare_threads(setup: Setup, settings: Settings, progress: Progress | None = None) -> list[Comparison]:
    """Rows a second of a step whose rows are divided, beside the ordinary step; nothing on a GPU and on one core.

    Idle, the best ordinary step is the faster of those with all threads and with one.
    """
    if setup.device.type != "cpu" or cores() < 2:
        return []
    held, several = random_batches(setup.batch_size), cores()
    found = interleave(
        {
            "rows": _contestant(setup, held, "rows", several),
            "operators": _contestant(setup, held, "operators", several),
            "one": _contestant(setup, held, "operators", 1),
            "rows, busy": _contestant(setup, held, "rows", several, busy=True),
            "operators, busy": _contestant(setup, held, "operators", several, busy=True),
            "one, busy": _contestant(setup, held, "operators", 1, busy=True),
        },
        settings,
        progress,
    )
    rates = {name: figures["rows/s"] for name, figures in found.items()}
    best = [max(pair) for pair in zip(rates["operators"], rates["one"], strict=True)]
    return [
        _compare("idle, best ordinary step", rates["rows"], best, IDLE),
        _compare("idle, operators in threads", rates["rows"], rates["operators"], None),
        _compare("busy process, operators in threads", rates["rows, busy"], rates["operators, busy"], BUSY),
        _compare("busy process, one thread", rates["rows, busy"], rates["one, busy"], None),
    ]


def _contestant(setup: Setup, held: Sequence[Batch], threading: CpuThreading, threads: int, *, busy: bool = False) -> Contestant:
    """Our loop with so many threads."""
    steps = max(setup.steps // _BUSY_SHARE, 3) if busy else setup.steps
    loop = Ours(replace(setup, steps=steps, cpu_threading=threading), held)

    def run() -> Figures:
        own = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with one_busy_process() if busy else nullcontext():
                return loop()
        finally:
            torch.set_num_threads(own)

    return run


def _compare(case: str, ours: Sequence[float], baseline: Sequence[float], bar: Bar | None) -> Comparison:
    return Comparison.of("train-step", case, "rows/s", ours, baseline, bar)
