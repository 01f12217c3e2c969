"""``bench statistics``: the statistics pass of ``prepare`` on one core, against reading the same columns and doing nothing with them.

Memory is compared between passes over some rows and over eight times as many, each in a process of its own.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from leapray.bench.compare import Bar, Comparison, Figures, Progress, Settings, interleave
from leapray.bench.data import COLUMNS, FILE_STEPS, KIND, Flat, make_flat
from leapray.bench.machine import memory_taken, one_core
from leapray.climsim.schema import INPUTS, TARGETS
from leapray.data.fit import piece_moments
from leapray.data.fitting import Fitting
from leapray.data.flat import list_pieces
from leapray.data.moments import Moments
from leapray.evaluation.tables import ROWS
from leapray.recipe import Choice

TIME = Bar(1.3, at_most=True)
MEMORY = Bar(1.1, at_most=True)
_GROWTH = 8
"""How many times as many rows the second measure of memory takes."""
_SETTLED = 4
"""Times that the files are gone through for the first, since the allocator's pools take that long to find their size."""


def run(settings: Settings, progress: Progress | None = None) -> list[Comparison]:
    """Time over files as ``convert`` and as pandas writes them, and memory over 8 times as many rows."""
    data = make_flat(settings.directory / "flat", settings.size(8 * FILE_STEPS * COLUMNS, 2 * COLUMNS))
    found: list[Comparison] = []
    with one_core():
        for written, files in (("ours", data), ("pandas", _as_pandas(data, settings.directory / "pandas"))):
            figures = interleave({"ours": partial(fit, files), "bare": partial(read, files)}, settings, progress)
            ours, bare = figures["ours"], figures["bare"]
            found.append(Comparison.of("statistics", f"time, files of {written}", "s", ours["s"], bare["s"], TIME))
            found.append(Comparison.of("statistics", f"rate, files of {written}", "rows/s", ours["rows/s"], bare["rows/s"]))
        memory = [memory_taken(partial(fit, data, times)) for times in (_GROWTH * _SETTLED, _SETTLED)]
    return [*found, Comparison.of("statistics", f"memory, {_GROWTH}x rows against 1x", "MB", memory[:1], memory[1:], MEMORY)]


def _as_pandas(flat: Flat, directory: Path) -> Flat:
    """The same files as pandas writes parquet by default: snappy, dictionaries, statistics of every column."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in flat.paths:
        pq.write_table(pq.read_table(path), directory / Path(path).name)
    return replace(flat, url=str(directory))


def fit(data: Flat, times: int = 1) -> Figures:
    """The pass as ``prepare`` does it, piece by piece: read, check, moments, merge; over the same files as often as is said."""
    fitting, pieces = Fitting(Choice(name="standard"), ()), list_pieces(data.url)
    started = time.process_time()
    parts = (piece_moments(piece, KIND, fitting, "refuse") for _ in range(times) for piece in pieces)
    total = Moments.merge_all(parts, fitting.width)
    return _figures(total.count, started)


def read(data: Flat) -> Figures:
    """The 924 columns of the same row groups in batches of the same size, one thread."""
    columns = [*INPUTS.columns, *TARGETS.columns]
    rows, started = 0, time.process_time()
    for path in data.paths:
        for batch in pq.ParquetFile(path).iter_batches(ROWS, columns=columns, use_threads=False):
            rows += batch.num_rows
    return _figures(rows, started)


def _figures(rows: int, started: float) -> Figures:
    seconds = time.process_time() - started
    return {"s": seconds, "rows/s": rows / seconds}
