"""Rows of a recipe are counted in the data that is there; only where there is none are they those of a complete archive."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from leapray.climsim.calendar import Month, month_range
from leapray.climsim.row_keys import KINDS
from leapray.data import flat
from leapray.data.flat import read_piece
from leapray.data.parts import cut
from leapray.data.prepare import prepare
from leapray.data.row_bytes import NETCDF_ROW_BYTES
from leapray.data.row_counts import RowCount, count_rows
from leapray.errors import UserError
from leapray.recipe import Data, parse_recipe
from tests.columns import INPUTS, TARGETS
from tests.official_layout import write_pair
from tests.samples import recipe_values, sample_recipe, write_flat


def counted(data: Data) -> dict[str, RowCount]:
    return count_rows(data, lambda sentence: pytest.fail(sentence))


def of_source(root: Path, **source: Any) -> RowCount:
    """Rows of a source that is nowhere, or below ``root``."""
    values = recipe_values(root)
    values["data"]["sources"]["low_res"] = {"kind": "low-res", "path": str(root / "nowhere"), **source}
    return counted(parse_recipe(values).data)["low_res"]


@pytest.mark.parametrize(("kind", "stride", "phase"), [("low-res", 1, 0), ("low-res", 7, 3), ("aqua-planet", 6, 0), ("high-res", 7, 6)])
def test_a_complete_archive_has_the_steps_of_the_months_that_the_stride_takes(tmp_path: Path, kind: str, stride: int, phase: int) -> None:
    # 334 days up to November without 0001-01; counted day by day
    days = [month.steps // 72 for month in month_range(Month.parse("0001-11"), Month.parse("0002-03"))]
    assert days == [30, 31, 31, 28]
    first = 72 * (28 + 31 + 30 + 31 + 30 + 31 + 31 + 30 + 31)
    steps = sum(1 for step in range(first, first + 72 * sum(days)) if step % stride == phase)
    found = of_source(tmp_path, kind=kind, train={"start": "0001-11", "stop": "0002-03"}, stride=stride, phase=phase)
    assert found.rows == {"train": steps * KINDS[kind].columns}
    assert "complete archive" in found.how


def test_the_competitions_rows_and_the_whole_archives_bytes(tmp_path: Path) -> None:
    seventh = of_source(tmp_path, train={"start": "0001-02", "stop": "0008-02"}, stride=7)
    assert seventh.total == 10_091_520
    low, high = (of_source(tmp_path, kind=kind, train={"start": "0001-02", "stop": "0009-02"}).total for kind in ("low-res", "high-res"))
    assert (low, high) == (80_732_160, 4_541_184_000)
    # an input file of 1.9 MB and an output file of 1.1 MB
    assert low * NETCDF_ROW_BYTES / 210_240 == pytest.approx(1.9e6 + 1.1e6, rel=0.02)


def test_a_fraction_takes_about_that_share_of_the_snapshots_whole(tmp_path: Path) -> None:
    months = {"start": "0001-02", "stop": "0002-02"}
    every, some = (of_source(tmp_path, kind="high-res", train=months, fraction=share).total for share in (1, "1/15"))
    assert some % 21600 == 0
    assert some / every == pytest.approx(1 / 15, rel=0.1)


def counted_by_reading(data: Data) -> dict[str, int]:
    """What preparing reads of the source low_res."""
    rows: dict[str, int] = {}
    for part in cut(data, "nowhere"):
        rows[part.split] = sum(len(block.row) for piece in part.pieces for block in read_piece(piece, kind=part.kind))
    return rows


@pytest.mark.parametrize("choice", [{}, {"stride": 2, "phase": 1}, {"fraction": 0.5}, {"stride": 3, "fraction": 0.5}])
def test_flat_files_tell_the_rows_that_will_be_prepared(tmp_path: Path, choice: dict[str, Any]) -> None:
    values = recipe_values(tmp_path)
    values["data"]["sources"]["low_res"] |= choice
    # fewer steps than a month has
    write_flat(tmp_path / "flat", stop="0001-05", steps=20)
    data = parse_recipe(values).data
    found = counted(data)["low_res"]
    assert found.rows == counted_by_reading(data)
    assert found.how.startswith("counted in the flat files")


def test_rows_of_whole_months_are_counted_from_footers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat, "read_chosen", lambda *_, **__: pytest.fail("a row was read"))
    write_flat(tmp_path / "flat", stop="0001-05", steps=5)
    assert counted(sample_recipe(tmp_path).data)["low_res"].rows == {"train": 80, "validation": 40}


def test_of_many_parts_a_few_tell_about_how_many_rows_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leapray.data.row_counts._MOST_READ", 8)
    read: list[int] = []
    read_chosen = flat.read_chosen
    monkeypatch.setattr(flat, "read_chosen", lambda piece, *names, **options: read.append(1) or read_chosen(piece, *names, **options))
    write_flat(tmp_path / "flat", stop="0001-05", steps=60, columns=2)
    for path in (tmp_path / "flat").iterdir():
        pq.write_table(pq.read_table(path), path, row_group_size=6)
    values = recipe_values(tmp_path)
    values["data"]["sources"]["low_res"]["stride"] = 2
    found = counted(parse_recipe(values).data)["low_res"]
    assert len(read) == 16
    assert found.rows == {"train": pytest.approx(120, abs=20), "validation": pytest.approx(60, abs=10)}
    assert found.how.startswith("estimated")


def test_sources_are_counted_each_by_what_is_there(tmp_path: Path) -> None:
    values = recipe_values(tmp_path)
    own = values["data"]["sources"]["low_res"]
    values["data"]["sources"] |= {
        "raw": own | {"path": str(tmp_path / "raw"), "kind": "aqua-planet", "stride": 2},
        "gone": own | {"path": str(tmp_path / "gone"), "kind": "high-res"},
    }
    write_flat(tmp_path / "flat", stop="0001-05", steps=5)
    for step in (0, 1, 2, 59 * 72):
        write_pair(tmp_path / "raw", step, columns=1)
    Path(write_pair(tmp_path / "raw", 4, columns=1).mlo).unlink()
    found = counted(parse_recipe(values).data)
    assert found["low_res"].total == 120
    # step 4 has no mlo, and step 1 is not taken
    assert found["raw"].rows == {"train": 2 * 384, "validation": 384}
    assert "not converted" in found["raw"].how
    assert found["gone"].rows["validation"] == 30 * 72 * 21600
    assert "complete archive" in found["gone"].how


def test_a_month_without_rows_is_refused_as_prepare_refuses_it(tmp_path: Path) -> None:
    write_flat(tmp_path / "flat", stop="0001-04", steps=5)
    with pytest.raises(UserError, match="no rows"):
        counted(sample_recipe(tmp_path).data)


def test_a_csv_is_counted_by_its_ids(tmp_path: Path) -> None:
    ids = [f"train_{row}" for row in range(0, 700 * 384, 384)]
    table = pa.table({"sample_id": ids} | {name: np.zeros(700) for name in (*INPUTS.columns, *TARGETS.columns)})
    (tmp_path / "flat").mkdir()
    csv.write_csv(table, tmp_path / "flat" / "train.csv")
    data = sample_recipe(tmp_path).data
    found = counted(data)["low_res"]
    assert found.rows == counted_by_reading(data)
    assert found.rows["train"] == math.ceil(59 * 72 / 7)


@pytest.mark.ray
def test_prepared_data_tells_its_rows(ray_cluster: None, tmp_path: Path) -> None:
    small = sample_recipe(tmp_path)
    write_flat(tmp_path / "flat", stop="0001-05")
    prepared = prepare(small)
    found = counted(small.data)["low_res"]
    assert found.rows == {manifest.split: manifest.rows for manifest in prepared.manifests}
    assert found.how.startswith("prepared")
    # of another recipe, so the files are counted
    again = counted(small.data.model_copy(update={"rows_per_shard": 7}))["low_res"]
    assert (again.rows, again.how.split()[0]) == (found.rows, "counted")
