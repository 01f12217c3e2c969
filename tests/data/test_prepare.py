"""Prepare, end to end on small flat files."""

import shutil
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from leapray.climsim.row_keys import row_place
from leapray.data import tasks
from leapray.data.flat import list_pieces, read_piece
from leapray.data.prepare import prepare
from leapray.data.shards import Prepared, load_prepared
from leapray.data.shuffle import checksum
from leapray.data.stream import Stream
from leapray.errors import UserError
from leapray.recipe import parse_recipe
from tests.columns import EXACT, INPUTS, LEARNED, TARGETS
from tests.official_layout import write_pair
from tests.samples import read_split, recipe_values, write_flat

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepare")
    write_flat(root / "flat", stop="0001-05")
    return root


@pytest.fixture(scope="module")
def prepared(root: Path, ray_cluster: None) -> Prepared:
    return prepare(parse_recipe(recipe_values(root)))


def shards(prepared: Prepared, split: str) -> dict[str, np.ndarray]:
    parts = list(read_split(prepared, split))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def flat_rows(root: Path, months: str) -> tuple[np.ndarray, np.ndarray]:
    """Row keys and the raw 924 columns of the files whose name holds one of the months, read with pyarrow alone."""
    tables = [pq.read_table(path) for path in sorted((root / "flat").glob("*.parquet")) if any(m in path.name for m in months.split())]
    table = pa.concat_tables(tables)
    key = np.array(table["step"].to_pylist()) * 2**24 + np.array(table["ncol"].to_pylist())
    return key, np.stack([table[name].to_numpy() for name in (*INPUTS.columns, *TARGETS.columns)], axis=1)


def test_every_row_is_in_exactly_one_shard_with_its_own_scaled_values(root: Path, prepared: Prepared) -> None:
    key, raw = flat_rows(root, "0001-02 0001-03")
    rows, departures = shards(prepared, "train"), []
    assert sorted(rows["row"].tolist()) == sorted(key.tolist())
    place = {row: index for index, row in enumerate(key.tolist())}
    raw = raw[[place[row] for row in rows["row"].tolist()]]
    # water that is lost in one step is learned as the departure from that, where it varies less
    columns = [*INPUTS.columns, *TARGETS.columns]
    for column in np.array(TARGETS.columns)[LEARNED]:
        if column.startswith("ptend_q"):
            there, lost = columns.index(column), raw[:, columns.index(column.replace("ptend", "state"))] / 1200
            if np.var(raw[:, there] + lost) < 0.5 * np.var(raw[:, there]):
                raw[:, there] += lost
                departures.append(column)
    assert prepared.transform.departures == departures
    mean, std = raw.mean(axis=0), raw.std(axis=0)
    constant = raw.min(axis=0) == raw.max(axis=0)
    z = np.where(constant, 0, (raw - mean) / np.where(constant, 1, std))
    np.testing.assert_allclose(np.hstack([rows["inputs"], rows["targets"]]), z, rtol=2e-6, atol=2e-6)


def test_rows_are_shuffled_across_months_and_columns(prepared: Prepared) -> None:
    rows = shards(prepared, "train")["row"]
    _, step, ncol = row_place(rows)
    months_apart = np.diff((step > 2000).astype(int)) != 0
    assert 0.3 < months_apart.mean() < 0.7
    assert (np.diff(rows) == 1).mean() < 0.2
    assert set(ncol.tolist()) == set(range(8))


def test_data_plane_and_emulator_scale_alike(root: Path, prepared: Prepared) -> None:
    rows = shards(prepared, "validation")
    place = {row: index for index, row in enumerate(rows["row"].tolist())}
    for piece in list_pieces(str(root / "flat" / "low-res.0001-04.parquet")):
        for block in read_piece(piece):
            scaled = prepared.transform.scale_inputs(torch.from_numpy(block.inputs)).numpy()
            np.testing.assert_array_equal(scaled, rows["inputs"][[place[row] for row in block.row.tolist()]])


def test_shuffle_memory_and_shard_size_do_not_change_the_set_of_rows_nor_the_transform(root: Path, prepared: Prepared) -> None:
    values = recipe_values(root)
    values["data"] |= {"prepared": str(root / "other"), "shuffle_rows": 1000, "rows_per_shard": 7}
    other = prepare(parse_recipe(values))
    assert sorted(shards(other, "train")["row"].tolist()) == sorted(shards(prepared, "train")["row"].tolist())
    assert other.transform.digest() == prepared.transform.digest()
    assert max(file.rows for file in other.split("train")[0].files) <= 7


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_same_recipe_gives_the_same_bytes_for_any_number_of_workers(
    root: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(tasks, "parallelism", lambda: workers)
    values = recipe_values(root)
    values["data"]["prepared"] = str(root / f"again-{workers}")
    prepare(parse_recipe(values))
    files = [path.relative_to(prepared.url) for path in sorted(Path(prepared.url).rglob("*")) if path.is_file()]
    assert len(files) > 10
    for file in files:
        assert (root / f"again-{workers}" / file).read_bytes() == (Path(prepared.url) / file).read_bytes()


def test_a_finished_directory_is_kept_and_a_missing_split_made_again(root: Path, prepared: Prepared) -> None:
    copy = root / "copy"
    shutil.copytree(prepared.url, copy)
    untouched = {path: path.stat().st_mtime_ns for path in copy.rglob("*.parquet") if "train" in path.parts}
    (copy / "validation" / "low_res" / "manifest.json").unlink()
    (copy / "validation" / "low_res" / "shard-00000-000.parquet").unlink()
    values = recipe_values(root)
    values["data"]["prepared"] = str(copy)
    again = prepare(parse_recipe(values))
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched
    np.testing.assert_array_equal(shards(again, "validation")["row"], shards(prepared, "validation")["row"])
    assert not list(copy.rglob("*.arrow"))


def with_bad_value(root: Path, target: Path) -> dict[str, Any]:
    shutil.copytree(root / "flat", target / "flat")
    path = target / "flat" / "low-res.0001-02.parquet"
    table = pq.read_table(path)
    column = table["state_u_3"].to_numpy().copy()
    column[[4, 9]] = np.nan, np.inf
    index = table.schema.get_field_index("state_u_3")
    table = table.set_column(index, "state_u_3", pa.array(column))
    column, index = table["ptend_t_0"].to_numpy().copy(), table.schema.get_field_index("ptend_t_0")
    # what netCDF leaves where nothing was written
    column[20] = netCDF4.default_fillvals["f8"]
    pq.write_table(table.set_column(index, "ptend_t_0", pa.array(column)), path)
    return recipe_values(target)


def test_nan_and_inf_are_refused_by_file_and_column_and_nothing_is_left(root: Path, tmp_path: Path, ray_cluster: None) -> None:
    values = with_bad_value(root, tmp_path)
    with pytest.raises(
        UserError,
        match=r"low-res\.0001-02\.parquet: NaN or Inf or fill value in 2 column\(s\), state_u_3, ptend_t_0, first in row .*_00004",
    ):
        prepare(parse_recipe(values))
    assert not (tmp_path / "prepared" / "transform.json").exists()
    with pytest.raises(UserError, match="holds no prepared data"):
        load_prepared(values["data"]["prepared"])
    values["data"]["bad_rows"] = "drop"
    assert prepare(parse_recipe(values)).split("train")[0].dropped_rows == 3


def test_bad_rows_are_dropped_and_counted_when_the_recipe_says_so(root: Path, tmp_path: Path, ray_cluster: None) -> None:
    values = with_bad_value(root, tmp_path)
    values["data"]["bad_rows"] = "drop"
    done = prepare(parse_recipe(values))
    (manifest,) = done.split("train")
    assert (manifest.rows, manifest.dropped_rows, manifest.dropped) == (
        93,
        3,
        {"state_u_3": {"NaN": 1, "Inf": 1}, "ptend_t_0": {"fill value": 1}},
    )
    assert np.isfinite(shards(done, "train")["inputs"]).all()


def test_rows_in_which_the_exact_identity_fails_are_counted(root: Path, tmp_path: Path, ray_cluster: None) -> None:
    shutil.copytree(root / "flat", tmp_path / "flat")
    path = tmp_path / "flat" / "low-res.0001-04.parquet"
    table = pq.read_table(path)
    name = np.array(TARGETS.columns)[EXACT][-1]
    column = table[name].to_numpy().copy()
    column[:3] *= 0.9
    pq.write_table(table.set_column(table.schema.get_field_index(name), name, pa.array(column)), path)
    done = prepare(parse_recipe(recipe_values(tmp_path)))
    assert [manifest.inexact for manifest in (*done.split("train"), *done.split("validation"))] == [{}, {"ptend_q0002_26": 3}]


def test_another_recipes_directory_is_refused_with_the_difference(root: Path, prepared: Prepared) -> None:
    values = recipe_values(root)
    values["data"]["seed"] = 8
    with pytest.raises(UserError, match="was prepared otherwise \\(seed: 0, now 8\\)"):
        prepare(parse_recipe(values))


def test_a_source_of_netcdf_pairs_must_be_converted_first(tmp_path: Path) -> None:
    write_pair(tmp_path / "flat", 0, columns=1)
    with pytest.raises(UserError, match=rf"^{tmp_path}/flat: holds netCDF files; run `leapray convert {tmp_path}/flat DEST` first"):
        prepare(parse_recipe(recipe_values(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["flat"]


def test_a_file_given_twice_is_refused(root: Path, tmp_path: Path, ray_cluster: None) -> None:
    shutil.copytree(root / "flat", tmp_path / "flat")
    shutil.copy(tmp_path / "flat" / "low-res.0001-02.parquet", tmp_path / "flat" / "copy.0001-02.parquet")
    with pytest.raises(UserError, match=r"copy\.0001-02\.parquet.*: step \d, column \d is in sources\.low_res\.train twice"):
        prepare(parse_recipe(recipe_values(tmp_path)))


def test_a_training_that_streams_flat_files_sees_the_same_numbers(root: Path, prepared: Prepared) -> None:
    values = recipe_values(root)
    values["data"] |= {"prepared": str(root / "unprepared"), "stream_from": "flat", "shuffle_rows": 100}
    flat = prepare(parse_recipe(values))
    assert flat.transform.digest() == prepared.transform.digest()
    assert not list((root / "unprepared").rglob("*.parquet"))
    rows = {}
    for form in (prepared, flat):
        stream = Stream(form, batch_size=8, lanes=2, seed=0)
        batches = [*stream.train(0), *stream.train(1), *stream.validate()]
        rows[form.url] = {
            row: (inputs.tobytes(), targets.tobytes())
            for batch in batches
            for row, inputs, targets in zip(batch["row"].tolist(), batch["inputs"], batch["targets"], strict=True)
        }
    assert rows[flat.url] == rows[prepared.url]
    assert len(rows[flat.url]) == sum(manifest.rows for manifest in prepared.manifests)


def test_steps_and_shares_of_a_source_are_chosen_alike_for_shards_and_flat_files(root: Path, ray_cluster: None) -> None:
    chosen = {}
    for form in ("shards", "flat"):
        values = recipe_values(root)
        values["data"] |= {"prepared": str(root / f"some-{form}"), "stream_from": form, "shuffle_rows": 100}
        values["data"]["sources"]["low_res"] |= {"stride": 2, "phase": 1, "fraction": "2/3"}
        chosen[form] = sorted(shards(prepare(parse_recipe(values)), "train")["row"].tolist())
    assert chosen["flat"] == chosen["shards"]
    steps = row_place(np.array(chosen["flat"]))[1]
    assert set((steps % 2).tolist()) == {1}
    assert 0 < len(set(steps.tolist())) < 6


def test_engineered_features_follow_the_inputs_of_every_shard(root: Path, prepared: Prepared) -> None:
    values = recipe_values(root)
    values["data"] |= {"prepared": str(root / "features"), "features": ["air_total", "temperature_difference"]}
    rows, plain = shards(prepare(parse_recipe(values)), "train"), shards(prepared, "train")
    assert rows["inputs"].shape == (96, INPUTS.width + 2 * 60)
    np.testing.assert_array_equal(rows["inputs"][:, : INPUTS.width], plain["inputs"])
    key, raw = flat_rows(root, "0001-02 0001-03")
    t = raw[:, INPUTS["state_t"]]
    difference = np.hstack([t[:, :-1] - t[:, 1:], np.zeros((len(t), 1))])
    spread = np.where(difference.std(axis=0) > 0, difference.std(axis=0), 1)
    place = {row: index for index, row in enumerate(key.tolist())}
    expected = ((difference - difference.mean(axis=0)) / spread)[[place[row] for row in rows["row"].tolist()]]
    np.testing.assert_allclose(rows["inputs"][:, -60:], expected, rtol=2e-6, atol=2e-6)


def test_the_manifest_counts_rows_and_carries_a_checksum_of_them(prepared: Prepared) -> None:
    (manifest,) = prepared.split("train")
    rows = shards(prepared, "train")
    assert manifest.rows == len(rows["row"]) == 96
    assert manifest.checksum == f"{checksum(rows):016x}"


def test_statistics_made_elsewhere_are_taken_instead_of_fitting(root: Path, prepared: Prepared) -> None:
    values = recipe_values(root)
    values["data"] |= {"prepared": str(root / "carried"), "statistics": str(Path(prepared.url) / "transform.json")}
    values["data"]["sources"]["low_res"] |= {"train": {"start": "0001-03", "stop": "0001-04"}}
    carried = prepare(parse_recipe(values))
    assert carried.transform.digest() == prepared.transform.digest()
    assert carried.split("train")[0].rows == 48
