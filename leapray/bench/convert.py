"""``bench convert``: netCDF pairs to flat rows on one core, against xarray as ClimSim's official script uses it.

The official script opens each file with xarray, merges the grid's coordinates, drops columns without one, computes tendencies and stacks
the variables, and opens the inputs once more for the tendencies; at the end it saves everything as float32 npy. Ours writes parquet in
float64 with ids and places.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import numpy as np
import xarray as xr

from leapray import storage
from leapray.bench.compare import Bar, Comparison, Figures, Settings, interleave
from leapray.bench.data import COLUMNS, FILE_STEPS, KIND, STRIDE, VARIABLES, make_pairs
from leapray.bench.machine import memory_taken, one_core
from leapray.climsim.grid import low_res_grid
from leapray.climsim.pairs import PairPath
from leapray.climsim.schema import STATE, STEP_SECONDS, TENDENCIES
from leapray.climsim.synthetic.write import CONTAINERS
from leapray.data import convert

BAR = Bar(10)
_STACKED = 6
"""Pairs that the baseline takes in a round, to save time; each pair costs it the same."""


def run(settings: Settings) -> list[Comparison]:
    """Rows a second on one core, down to finished files, and peak memory, for each container."""
    steps = -(-settings.size(FILE_STEPS * COLUMNS, 2 * COLUMNS) // COLUMNS)
    found: list[Comparison] = []
    with one_core():
        for container in CONTAINERS:
            pairs = make_pairs(settings.directory / container, container, steps)
            ours = partial(convert_pairs, pairs, settings.directory / "flat" / container)
            npy = settings.directory / "npy" / container
            rates = interleave({"ours": ours, "official": partial(stack_pairs, pairs[:_STACKED], npy)}, settings)
            our, their = (rates[name]["rows/s"] for name in ("ours", "official"))
            found.append(Comparison.of("convert", f"{container}, to disk", "rows/s", our, their, BAR))
            our, their = ([memory_taken(work)] for work in (ours, partial(stack_pairs, pairs, npy)))
            found.append(Comparison.of("convert", f"{container}, memory", "MB", our, their))
    return found


def convert_pairs(pairs: list[PairPath], destination: Path) -> Figures:
    """What a task of ``convert`` does with the pairs."""
    storage.remove(str(destination))
    settings = convert.Settings(KIND, COLUMNS, STRIDE, 0, VARIABLES.name, VARIABLES.digest)
    write = convert.GroupWriter(settings, VARIABLES, kind_is_given=False)
    started = time.process_time()
    for group in convert.group_pairs(pairs, str(destination), settings):
        write(group)
    return {"rows/s": len(pairs) * COLUMNS / (time.process_time() - started)}


def stack_pairs(pairs: list[PairPath], destination: Path) -> Figures:
    """What the official script does with them."""
    started = time.process_time()
    stacked = [stack_pair(pair) for pair in pairs]
    destination.mkdir(parents=True, exist_ok=True)
    for name, parts in zip(("input", "target"), zip(*stacked, strict=True), strict=True):
        np.save(destination / f"{name}.npy", np.concatenate(parts).astype(np.float32))
    return {"rows/s": len(pairs) * COLUMNS / (time.process_time() - started)}


def stack_pair(pair: PairPath) -> tuple[np.ndarray, np.ndarray]:
    """Inputs ``(n, i)`` and targets ``(n, t)`` of a pair, by xarray."""
    inputs, before = (_open(pair.mli)[list(VARIABLES.raw.names)] for _ in range(2))
    after = _open(pair.mlo)
    for state, tendency in zip(STATE, TENDENCIES, strict=True):
        after[tendency.name] = (after[state.name] - before[state.name]) / STEP_SECONDS
    return _stack(inputs), _stack(after[list(VARIABLES.targets.names)])


def _open(path: str) -> xr.Dataset:
    grid = low_res_grid()
    coordinates = xr.Dataset({"lat": ("ncol", grid.latitude), "lon": ("ncol", grid.longitude)})
    merged = xr.open_dataset(path, engine="netcdf4").merge(coordinates)
    for name in ("lat", "lon"):
        merged = merged.where((merged[name] > -999) * (merged[name] < 999), drop=True)
    return merged


def _stack(dataset: xr.Dataset) -> np.ndarray:
    return dataset.stack({"batch": ["ncol"]}).to_stacked_array("column", sample_dims=["batch"]).to_numpy()
