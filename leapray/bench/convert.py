"""``bench convert``: netCDF pairs to flat rows on one core, against xarray as ClimSim's official script uses it.

The official script opens each file with xarray, merges the grid's coordinates, drops columns without one, takes tendencies and
stacks the variables, opening the inputs once more for the tendencies; at the end everything is concatenated and saved as float32
npy. The lean baseline opens each file once and leaves the grid out. Both are read with the engine that opens the container.
The bar stands on the way to disk, which is what either is run for: ours writes parquet in float64 with ids and places.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import numpy as np
import xarray as xr

from leapray import storage
from leapray.bench.compare import Bar, Comparison, Figures, Progress, Settings, interleave
from leapray.bench.data import COLUMNS, FILE_STEPS, KIND, STRIDE, make_pairs
from leapray.bench.machine import memory_taken, one_core
from leapray.climsim.grid import low_res_grid
from leapray.climsim.netcdf import read_pair
from leapray.climsim.pairs import PairPath
from leapray.climsim.schema import INPUTS, STATE, STEP_SECONDS, TARGETS, TENDENCIES
from leapray.climsim.synthetic.write import CONTAINERS
from leapray.data.convert import GroupWriter, group_pairs
from leapray.data.convert import Settings as ConversionSettings

BAR = Bar(10)
_STACKED = 6
"""Pairs that the baselines take in a round, for the sake of time; each pair costs them the same."""


def run(settings: Settings, progress: Progress | None = None) -> list[Comparison]:
    """Rows a second on one core, to disk and in memory, and peak memory, for each container."""
    steps = -(-settings.size(FILE_STEPS * COLUMNS, 2 * COLUMNS) // COLUMNS)
    found: list[Comparison] = []
    with one_core():
        for container in CONTAINERS:
            pairs = tuple(make_pairs(settings.directory / container, container, steps))
            ours = partial(convert_pairs, pairs, settings.directory / "flat" / container)
            npy = settings.directory / "npy" / container
            official, lean = (partial(stack_pairs, pairs[:_STACKED], npy, as_published=published) for published in (True, False))
            figures = interleave({"ours": ours, "official": official, "lean": lean}, settings, progress)
            for case, baseline, figure, bar in (
                ("to disk", "official", "to disk", BAR),
                ("in memory", "official", "in memory", None),
                ("to disk, lean", "lean", "to disk", None),
            ):
                our, their = (figures[name][figure] for name in ("ours", baseline))
                found.append(Comparison.of("convert", f"{container}, {case}", "rows/s", our, their, bar))
            our, their = ([memory_taken(work)] for work in (ours, partial(stack_pairs, pairs, npy, as_published=True)))
            found.append(Comparison.of("convert", f"{container}, memory", "MB", our, their))
    return found


def convert_pairs(pairs: tuple[PairPath, ...], destination: Path) -> Figures:
    """Rows a second of reading the pairs, and of what a task of ``convert`` does with them, down to the finished files."""
    started = time.process_time()
    for pair in pairs:
        read_pair(pair)
    read_s = time.process_time() - started

    storage.remove(str(destination))
    settings = ConversionSettings(KIND, COLUMNS, STRIDE, phase=0)
    write = GroupWriter(settings, kind_is_given=False)
    started = time.process_time()
    for group in group_pairs(list(pairs), str(destination), settings):
        write(group)
    rows = len(pairs) * COLUMNS
    return {"in memory": rows / read_s, "to disk": rows / (time.process_time() - started)}


def stack_pairs(pairs: tuple[PairPath, ...], destination: Path, *, as_published: bool) -> Figures:
    """The same rates for xarray, with float32 npy files at the end."""
    started = time.process_time()
    stacked = [stack_pair(pair, as_published=as_published) for pair in pairs]
    read_s = time.process_time() - started
    destination.mkdir(parents=True, exist_ok=True)
    for name, parts in zip(("input", "target"), zip(*stacked, strict=True), strict=True):
        np.save(destination / f"{name}.npy", np.concatenate(parts).astype(np.float32))
    rows = len(pairs) * COLUMNS
    return {"in memory": rows / read_s, "to disk": rows / (time.process_time() - started)}


def stack_pair(pair: PairPath, *, as_published: bool) -> tuple[np.ndarray, np.ndarray]:
    """Inputs ``(n, 556)`` and targets ``(n, 368)`` of a pair, by xarray."""
    names = [variable.name for variable in INPUTS.variables]
    inputs = _open(pair.mli, with_grid=as_published)[names]
    before = _open(pair.mli, with_grid=True)[names] if as_published else inputs
    after = _open(pair.mlo, with_grid=as_published)
    for state, tendency in zip(STATE, TENDENCIES, strict=True):
        after[tendency.name] = (after[state.name] - before[state.name]) / STEP_SECONDS
    targets = after[[variable.name for variable in TARGETS.variables]]
    return _stack(inputs), _stack(targets)


def _open(path: str, *, with_grid: bool) -> xr.Dataset:
    opened = xr.open_dataset(path, engine="netcdf4")
    if not with_grid:
        return opened
    grid = low_res_grid()
    merged = opened.merge(xr.Dataset({"lat": ("ncol", grid.latitude), "lon": ("ncol", grid.longitude)}))
    for name in ("lat", "lon"):
        merged = merged.where((merged[name] > -999) * (merged[name] < 999), drop=True)
    return merged


def _stack(dataset: xr.Dataset) -> np.ndarray:
    return dataset.stack({"batch": ["ncol"]}).to_stacked_array("column", sample_dims=["batch"]).to_numpy()
