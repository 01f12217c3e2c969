"""An epoch's plan, executed by Ray Data."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leapray.climsim.schema import KAGGLE
from leapray.data.fitting import Fitting
from leapray.data.moments import Moments
from leapray.data.reading import read_file
from leapray.data.shards import Manifest, Prepared, ShardFile, write_shard
from leapray.data.stream import Stream
from leapray.errors import UserError
from leapray.recipe import Choice
from tests.columns import INPUTS, TARGETS

pytestmark = pytest.mark.ray
ROWS = {("train", "low_res"): [30, 17, 25, 8], ("validation", "low_res"): [9, 12]}
TWO = {("train", "low_res"): [30, 20], ("train", "high_res"): [100, 100, 41], ("validation", "low_res"): [5]}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Prepared:
    return make(tmp_path_factory.mktemp("stream"), ROWS)


@pytest.fixture(scope="module")
def two_sources(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Prepared:
    return make(tmp_path_factory.mktemp("two"), TWO)


def make(root: Path, rows: dict[tuple[str, str], list[int]]) -> Prepared:
    """Splits of rows whose every input is the row's key, and every target its negative."""
    manifests, next_row = [], 0
    for (split, source), counts in rows.items():
        files, url = [], root / split / source
        for index, count in enumerate(counts):
            row = np.arange(next_row, next_row + count)
            inputs = np.repeat(row[:, None], INPUTS.width, axis=1).astype(np.float32)
            write_shard(str(url / f"{index}.parquet"), {"inputs": inputs, "targets": -inputs[:, : TARGETS.width], "row": row})
            files.append(ShardFile(f"{index}.parquet", count, 0))
            next_row += count
        manifests.append(Manifest(str(url), source, "low-res", split, "", "", 0, "", "refuse", tuple(files), None, {}, 0, {}))
    fitting = Fitting(KAGGLE, Choice(name="standard"), ())
    transform = fitting.fit(Moments.of(np.arange(2.0)[:, None] + np.zeros(fitting.width)), {})
    return Prepared(str(root), transform, tuple(manifests))


def stream(prepared: Prepared, **settings: Any) -> Stream:
    return Stream(prepared, **({"batch_size": 12, "lanes": 2, "seed": 3} | settings))


def test_an_epoch_trains_distinct_rows_in_full_batches(prepared: Prepared) -> None:
    batches = list(stream(prepared).train(0))
    assert [len(batch["row"]) for batch in batches] == [12] * 6
    rows = np.concatenate([batch["row"] for batch in batches])
    assert len(set(rows.tolist())) == 72
    assert set(rows.tolist()) <= set(range(80))
    for batch in batches:
        np.testing.assert_array_equal(batch["inputs"], np.repeat(batch["row"][:, None], INPUTS.width, axis=1))
        np.testing.assert_array_equal(batch["targets"], -batch["inputs"][:, : TARGETS.width])


def test_a_resumed_epoch_is_the_rest_of_it(prepared: Prepared) -> None:
    whole = [batch["row"].tolist() for batch in stream(prepared).train(1)]
    assert [batch["row"].tolist() for batch in stream(prepared).train(1, first_step=4)] == whole[4:]
    assert list(stream(prepared).train(1, first_step=6)) == []


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5])
def test_workers_of_any_number_share_the_rows_of_every_step(prepared: Prepared, world: int) -> None:
    whole = [sorted(batch["row"].tolist()) for batch in stream(prepared, batch_size=15, lanes=5).train(0)]
    parts = [list(stream(prepared, batch_size=15, lanes=5, rank=rank, world=world).train(0)) for rank in range(world)]
    assert {len(part) for part in parts} == {len(whole)}
    assert [sorted(row for batch in step for row in batch["row"].tolist()) for step in zip(*parts, strict=True)] == whole
    rows = {len(batch["row"]) for part in parts for batch in part}
    assert rows <= {15 // 5 * (5 // world), 15 // 5 * (5 // world + 1)}


def test_epochs_are_shuffled_anew(prepared: Prepared) -> None:
    first, second = ([batch["row"].tolist() for batch in stream(prepared).train(epoch)] for epoch in (0, 1))
    assert first != second


def test_validation_gives_every_row_once(prepared: Prepared) -> None:
    rows = np.concatenate([batch["row"] for batch in stream(prepared).validate()])
    assert sorted(rows.tolist()) == list(range(80, 101))


def test_a_batch_names_the_source_of_every_row_and_pairs_take_half_of_each(two_sources: Prepared) -> None:
    paired = stream(two_sources, shares={"low_res": 1.0, "high_res": 1.0})
    assert (paired.sources, paired.steps) == (("low_res", "high_res"), 8)
    for batch in paired.train(0):
        assert batch["source"].tolist() == [0] * 6 + [1] * 6
        assert (batch["row"] < 50).tolist() == [True] * 6 + [False] * 6
    for batch in stream(two_sources).train(0):
        np.testing.assert_array_equal(batch["source"], np.where(batch["row"] < 50, 0, 1))


def test_a_large_source_is_used_up_over_the_epochs(two_sources: Prepared) -> None:
    paired = stream(two_sources, shares={"low_res": 1.0, "high_res": 1.0})
    rows = np.concatenate([batch["row"][6:] for epoch in range(5) for batch in paired.train(epoch)])
    assert len(rows) == len(set(rows.tolist())) == 5 * 48


def test_weights_too_small_for_a_batch_are_refused(two_sources: Prepared) -> None:
    with pytest.raises(UserError, match="batch_size 12 is too small for these weights"):
        stream(two_sources, shares={"low_res": 100.0, "high_res": 1.0})


def test_too_few_rows_for_a_batch_are_refused(prepared: Prepared) -> None:
    with pytest.raises(UserError, match="80 training rows do not fill one batch of 82"):
        stream(prepared, batch_size=82)


@pytest.mark.parametrize(
    ("inputs", "targets"), [(INPUTS.width - 1, TARGETS.width), (INPUTS.width + 60, TARGETS.width), (INPUTS.width, 369)]
)
def test_a_shard_of_other_columns_is_refused_by_name(tmp_path: Path, inputs: int, targets: int) -> None:
    one = make(tmp_path, {("train", "low_res"): [3]})
    (manifest,) = one.manifests
    url = str(tmp_path / "train" / "low_res" / "0.parquet")
    values = np.zeros((3, inputs + targets), np.float32)
    write_shard(url, {"inputs": values[:, :inputs], "targets": values[:, inputs:], "row": np.arange(3)})
    with pytest.raises(
        UserError, match=f"0.parquet: holds {inputs} inputs and {targets} targets a row, expected 556 and 368; prepare anew"
    ):
        read_file(manifest, 0, one.transform)
