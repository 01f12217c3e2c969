"""Real ClimSim files: what a researcher's first conversion gives, beside netCDF4 and numpy on their own."""

import json
from pathlib import Path

import netCDF4
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from leapray.climsim.calendar import file_name, parse_file_name
from leapray.climsim.row_keys import KINDS
from leapray.data.check import check
from leapray.data.convert import INCOMPLETE, convert
from leapray.data.findings import Verdict
from leapray.data.row_counts import count_rows
from leapray.errors import UserError
from leapray.recipe import parse_recipe
from tests.samples import recipe_values

pytestmark = pytest.mark.real

COLUMNS = KINDS["low-res"].columns
STATE = ("t", "q0001", "q0002", "q0003", "u", "v")
SCALARS = (
    *("state_ps", "pbuf_SOLIN", "pbuf_LHFLX", "pbuf_SHFLX", "pbuf_TAUX", "pbuf_TAUY", "pbuf_COSZRS", "cam_in_ALDIF", "cam_in_ALDIR"),
    *("cam_in_ASDIF", "cam_in_ASDIR", "cam_in_LWUP", "cam_in_ICEFRAC", "cam_in_LANDFRAC", "cam_in_OCNFRAC", "cam_in_SNOWHLAND"),
)
GASES = ("pbuf_ozone", "pbuf_CH4", "pbuf_N2O")
FLUXES = ("NETSW", "FLWDS", "PRECSC", "PRECC", "SOLS", "SOLL", "SOLSD", "SOLLD")


def steps(folder: Path, stream: str) -> set[int]:
    return {step for path in folder.rglob(f"*.{stream}.*.nc") if (step := (parse_file_name(path.name) or ("", -1))[1]) >= 0}


def rows_by_hand(folder: Path, step: int) -> np.ndarray:
    """Rows ``(384, 924)`` of a pair in the competition's order of columns."""
    variables: dict[str, dict[str, np.ndarray]] = {}
    for stream in ("mli", "mlo"):
        (path,) = folder.rglob(file_name(stream, step))
        with netCDF4.Dataset(path) as dataset:
            dataset.set_auto_mask(False)
            variables[stream] = {name: np.atleast_2d(dataset[name][:]) for name in dataset.variables}
    before, after = variables["mli"], variables["mlo"]
    inputs = [before[name] for name in (*(f"state_{name}" for name in STATE), *SCALARS, *GASES)]
    tendencies = [(after[f"state_{name}"] - before[f"state_{name}"]) / 1200 for name in STATE]
    return np.concatenate([*inputs, *tendencies, *(after[f"cam_out_{name}"] for name in FLUXES)]).T


def matrix(table: pa.Table) -> np.ndarray:
    """The 924 columns ``(n, 924)`` that are numbers of the layout."""
    names = [name for name in table.column_names if name not in ("sample_id", "kind", "step", "ncol")]
    return np.stack([table[name].to_numpy() for name in names], axis=1)


@pytest.mark.ray
def test_every_complete_pair_is_converted_and_the_others_are_listed(climsim: Path, flat: Path) -> None:
    mli, mlo = (steps(climsim / "train", stream) for stream in ("mli", "mlo"))
    assert mli ^ mlo, "the folder has no incomplete pair, which is what this test is about"
    table = pq.read_table(flat, columns=["step", "ncol"], partitioning=None)
    assert table.num_rows == len(mli & mlo) * COLUMNS
    assert set(table["step"].to_pylist()) == mli & mlo
    listed = [parse_file_name(name) for name in json.loads((flat / INCOMPLETE).read_text())]
    assert [step for _, step in filter(None, listed)] == sorted(mli ^ mlo)


@pytest.mark.ray
def test_rows_are_those_of_netcdf4_bit_for_bit(climsim: Path, flat: Path) -> None:
    for path in sorted(flat.glob("low-res.*.parquet")):
        table = pq.read_table(path)
        for step in sorted(set(table["step"].to_pylist())):
            rows = table.filter(pc.equal(table["step"], step))
            assert rows["ncol"].to_pylist() == list(range(COLUMNS))
            assert matrix(rows).tobytes() == rows_by_hand(climsim / "train", step).tobytes()


@pytest.mark.ray
def test_cloud_liquid_of_levels_12_to_26_is_removed_within_a_step(flat: Path) -> None:
    table = pq.read_table(flat, partitioning=None)
    for level in range(12, 27):
        state, tendency = (table[f"{name}_q0002_{level}"].to_numpy() for name in ("state", "ptend"))
        np.testing.assert_array_equal(tendency, -state / 1200)


def test_without_skip_the_folder_is_refused_by_the_name_of_its_hole(climsim: Path, tmp_path: Path) -> None:
    lonely = min(steps(climsim / "train", "mli") ^ steps(climsim / "train", "mlo"))
    with pytest.raises(UserError, match=rf"{file_name('mlo', lonely)} is missing.*--incomplete skip"):
        convert(str(climsim / "train"), str(tmp_path / "flat"))
    assert not (tmp_path / "flat").exists()


def test_check_finds_nothing_wrong_and_counts_the_incomplete_pair(climsim: Path) -> None:
    findings = check(str(climsim / "train"))
    assert [finding.text for finding in findings if finding.verdict is Verdict.WRONG] == []
    mli, mlo = (steps(climsim / "train", stream) for stream in ("mli", "mlo"))
    (told,) = [finding for finding in findings if "--incomplete skip" in finding.text]
    assert told.verdict is Verdict.NOTE
    assert told.text.startswith(f"{len(mli ^ mlo)} step")
    assert file_name("mli", min(mli - mlo)) in told.text
    assert any(f"{len(mli & mlo)} steps have both files" in finding.text for finding in findings)


@pytest.mark.ray
def test_a_plan_counts_the_rows_of_scattered_steps(flat: Path, tmp_path: Path) -> None:
    values = recipe_values(tmp_path)
    months = {"train": {"start": "0008-01", "stop": "0008-08"}, "validation": {"start": "0008-08", "stop": "0008-09"}}
    values["data"]["sources"] = {"low_res": {"kind": "low-res", "path": str(flat), **months}}
    table = pq.read_table(flat, columns=["sample_id"], partitioning=None)
    every = {path.name.split(".")[1] for path in flat.glob("*.parquet")}
    rows = {month: sum(pq.read_metadata(path).num_rows for path in flat.glob(f"*.{month}.*.parquet")) for month in every}
    assert sum(rows.values()) == table.num_rows
    found = count_rows(parse_recipe(values).data, pytest.fail)["low_res"]
    assert found.rows == {"train": sum(rows[f"0008-0{month}"] for month in range(1, 8)), "validation": rows["0008-08"]}
