"""Small random data in the layouts that leapray reads, for tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leapray.climsim.calendar import Month, month_range
from leapray.climsim.netcdf import Snapshot
from leapray.climsim.schema import STEP_SECONDS
from leapray.data.flat import to_table
from leapray.data.reading import read_file
from leapray.data.shards import Prepared, Rows
from leapray.recipe import Recipe, parse_recipe
from tests.columns import ABLATED, EXACT, EXACT_SOURCE, INPUTS, TARGETS


def random_rows(n: int, seed: int = 0) -> np.ndarray:
    """Flat rows ``(n, 924)`` with a learnable part, constants, ablated zeros and exact columns."""
    generator = np.random.default_rng(seed)
    weights = np.random.default_rng(99).normal(size=(INPUTS.width, TARGETS.width)) / np.sqrt(INPUTS.width)
    x = generator.normal(size=(n, INPUTS.width))
    y = x @ weights + 0.3 * generator.normal(size=(n, TARGETS.width))
    x[:, INPUTS["state_q0001"].start : INPUTS["state_q0003"].stop] = np.abs(x[:, INPUTS["state_q0001"].start : INPUTS["state_q0003"].stop])
    x[:, -1] = 4.9e-7
    y[:, ABLATED] = 0.0
    y[:, EXACT] = -x[:, EXACT_SOURCE] / STEP_SECONDS
    return np.hstack([x, y])


def write_flat(
    directory: Path,
    kind: str = "low-res",
    start: str = "0001-02",
    stop: str = "0001-04",
    *,
    steps: int = 6,
    columns: int = 8,
    seed: int = 0,
    stride: int = 1,
) -> Path:
    """One flat parquet file a month, of ``steps`` snapshots each, every ``stride``-th step."""
    directory.mkdir(parents=True, exist_ok=True)
    for month in month_range(Month.parse(start), Month.parse(stop)):
        snapshots = [
            Snapshot(kind, month.first_step + step, random_rows(columns, seed + 1000 * month.first_step + step))
            for step in range(0, steps * stride, stride)
        ]
        pq.write_table(pa.concat_tables(to_table(snapshot) for snapshot in snapshots), directory / f"{kind}.{month}.parquet")
    return directory


def spoil(file: Path, column: str, rows: list[int]) -> list[str]:
    """Make a column of a flat parquet file NaN in these rows; their ids."""
    table = pq.read_table(file)
    values = table[column].to_numpy().copy()
    values[rows] = np.nan
    pq.write_table(table.set_column(table.schema.get_field_index(column), column, pa.array(values)), file)
    return table["sample_id"].take(rows).to_pylist()


def recipe_values(root: Path, **training: Any) -> dict[str, Any]:
    """Plain values of a recipe over ``write_flat(root / 'flat', stop='0001-05')``."""
    months = {
        "train": {"start": "0001-02", "stop": "0001-04"},
        "validation": {"start": "0001-04", "stop": "0001-05"},
    }
    return {
        "name": "sample",
        "data": {
            "prepared": str(root / "prepared"),
            "sources": {"low_res": {"kind": "low-res", "path": str(root / "flat"), **months}},
            "rows_per_shard": 16,
            "shuffle_rows": 40,
        },
        "network": {"name": "mlp", "options": {"hidden": [16]}},
        "training": {"run": str(root / "run"), "epochs": 1, "batch_size": 8, **training},
    }


def sample_recipe(root: Path, **training: Any) -> Recipe:
    return parse_recipe(recipe_values(root, **training))


def read_split(prepared: Prepared, split: str) -> Iterator[Rows]:
    """Every file of a split, one after another."""
    for manifest in prepared.split(split):
        for index in range(len(manifest.files)):
            yield read_file(manifest, index, prepared.transform)
