"""Synthetic low-res pairs in ClimSim's layout, flat parquet of any length made of them, and recipes over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leapray import storage
from leapray.climsim.calendar import FIRST_MONTH, Month, month_of_step
from leapray.climsim.netcdf import read_pair
from leapray.climsim.pairs import PairPath, find_pairs
from leapray.climsim.row_keys import KINDS
from leapray.climsim.schema import KAGGLE
from leapray.climsim.synthetic import chosen_steps, synthesize
from leapray.data.convert import flat_writer
from leapray.data.flat.layout import to_table
from leapray.recipe import Recipe, parse_recipe

KIND, VARIABLES = "low-res", KAGGLE
COLUMNS = KINDS[KIND].columns
STRIDE = 7
"""Of the steps, as the competition takes them."""
FILE_STEPS = 24
"""Snapshots of a flat file, as ``convert`` writes them."""


def make_pairs(directory: Path, container: str, steps: int) -> list[PairPath]:
    """The pairs of ``steps`` steps in a netCDF container, cdf5 or hdf5."""
    synthesize(str(directory), KIND, steps=steps, stride=STRIDE, container=container)
    return find_pairs(str(directory))


@dataclass(frozen=True)
class Flat:
    """A folder of flat parquet, its rows, and its months up to, not including, ``stop``."""

    url: str
    rows: int
    start: Month
    stop: Month

    @property
    def paths(self) -> list[str]:
        return storage.list_files(self.url, ".parquet")


def make_flat(directory: Path, rows: int, start: Month = FIRST_MONTH) -> Flat:
    """Flat parquet as ``convert`` writes it, of at least ``rows`` rows from month ``start`` on.

    The values of at most 24 snapshots come again under other steps; a bench reads them from other files all the same.
    """
    count = -(-rows // COLUMNS)
    steps = chosen_steps(str(start), count, STRIDE)
    snapshots = [read_pair(pair, KIND) for pair in make_pairs(directory / "pairs", "cdf5", min(count, FILE_STEPS))]
    flat = directory / "flat"
    for first in range(0, count, FILE_STEPS):
        part = steps[first : first + FILE_STEPS]
        with flat_writer(str(flat / f"{KIND}.{first:06d}.parquet"), b"") as write:
            for step, snapshot in zip(part, snapshots, strict=False):
                write(to_table(replace(snapshot, step=step)))
    return Flat(str(flat), count * COLUMNS, start, month_of_step(steps[-1]) + 1)


def make_recipe(directory: Path, rows: int, network: Mapping[str, Any], training: Mapping[str, Any], **more: Any) -> Recipe:
    """A recipe that trains on new flat files of ``rows`` rows and validates on a snapshot after them, all in ``directory``.

    ``more`` are values of its section data, and a section ``resources``.
    """
    flat = make_flat(directory / "training", rows)
    held_out = make_flat(directory / "held-out", COLUMNS, start=flat.stop)
    sources = {
        name: {"kind": KIND, "path": one.url, split: {"start": str(one.start), "stop": str(one.stop)}}
        for name, one, split in (("train", flat, "train"), ("held_out", held_out, "validation"))
    }
    resources = more.pop("resources", {})
    data = {"prepared": str(directory / "prepared"), "sources": sources} | more
    training = {"run": str(directory / "run"), "epochs": 1} | dict(training)
    return parse_recipe({"name": "bench", "data": data, "network": dict(network), "training": training, "resources": resources})
