"""``bench statistics``: the statistics pass of ``prepare`` on one core, against reading the same columns and doing nothing with them.

Memory is compared between passes over some rows and over eight times as many, each in a process of its own.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from leapray.bench.compare import Bar, Comparison, Figures, Settings, interleave
from leapray.bench.data import COLUMNS, FILE_STEPS, KIND, VARIABLES, Flat, make_flat
from leapray.bench.machine import memory_taken, one_core
from leapray.data.fitting import Fitting
from leapray.data.flat import list_pieces
from leapray.data.moments import Moments
from leapray.data.statistics import piece_moments
from leapray.evaluation.tables import ROWS
from leapray.recipe import Choice

TIME, MEMORY = Bar(1.3, at_most=True), Bar(1.1, at_most=True)
_GROWTH = 8
"""How many times as many rows the second measure of memory takes."""
_SETTLED = 4
"""Passes over the files for the first, since the allocator's pools take that long to find their size."""


def run(settings: Settings) -> list[Comparison]:
    """Time over files as ``convert`` and as pandas writes them, and memory over 8 times as many rows."""
    data = make_flat(settings.directory / "flat", settings.size(8 * FILE_STEPS * COLUMNS, 2 * COLUMNS))
    found: list[Comparison] = []
    with one_core():
        for written, files in (("ours", data), ("pandas", _as_pandas(data, settings.directory / "pandas"))):
            seconds = interleave({"ours": partial(fit, files), "bare": partial(read, files)}, settings)
            found.append(Comparison.of("statistics", f"time, files of {written}", "s", seconds["ours"]["s"], seconds["bare"]["s"], TIME))
        memory = [memory_taken(partial(fit, data, times)) for times in (_GROWTH * _SETTLED, _SETTLED)]
    return [*found, Comparison.of("statistics", f"memory, {_GROWTH}x rows against 1x", "MB", memory[:1], memory[1:], MEMORY)]


def _as_pandas(flat: Flat, directory: Path) -> Flat:
    """The same files as pandas writes parquet by default: snappy, dictionaries, statistics of every column."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in flat.paths:
        pq.write_table(pq.read_table(path), directory / Path(path).name)
    return replace(flat, url=str(directory))


def fit(data: Flat, times: int = 1) -> Figures:
    """The pass as ``prepare`` does it, piece by piece: read, check, moments, merge; several times over the same files."""
    fitting, pieces = Fitting(VARIABLES, Choice(name="standard"), ()), list_pieces(data.url)
    started = time.process_time()
    Moments.merge_all((piece_moments(piece, KIND, fitting, "refuse") for _ in range(times) for piece in pieces), fitting.width)
    return {"s": time.process_time() - started}


def read(data: Flat) -> Figures:
    """The columns of the same row groups in batches of the same size, in one thread."""
    started = time.process_time()
    for path in data.paths:
        for _ in pq.ParquetFile(path).iter_batches(ROWS, columns=list(VARIABLES.columns), use_threads=False):
            pass
    return {"s": time.process_time() - started}
