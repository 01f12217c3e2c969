"""An epoch's plan, executed by Ray Data."""

from pathlib import Path

import numpy as np
import pytest

from leapray.data.moments import Moments
from leapray.data.shards import GROUP_ROWS, Manifest, Prepared, ShardFile, write_shard
from leapray.data.stream import Stream
from leapray.data.transform import fit_transform
from leapray.errors import UserError
from leapray.recipe import Choice

pytestmark = pytest.mark.ray
ROWS = {"train": [30, 17, 25, 8], "validation": [9, 12]}
LARGE = {"train": [GROUP_ROWS + 300, 2 * GROUP_ROWS + 1], "validation": [5]}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Prepared:
    return make(tmp_path_factory.mktemp("stream"), ROWS)


def make(root: Path, rows: dict[str, list[int]]) -> Prepared:
    """Two splits of narrow rows whose every value is the row's key."""
    manifests, next_row = [], 0
    for split, counts in rows.items():
        files = []
        for index, count in enumerate(counts):
            row = np.arange(next_row, next_row + count)
            values = np.repeat(row[:, None], 3, axis=1).astype(np.float32)
            write_shard(str(root / split / f"{index}.parquet"), {"inputs": values, "targets": -values, "row": row})
            files.append(ShardFile(f"{index}.parquet", count))
            next_row += count
        manifests.append(Manifest(str(root / split), "low_res", "low-res", split, "", "", 0, tuple(files), {}, 0, {}))
    moments = [Moments.of(np.arange(2.0)[:, None] + np.zeros(width)) for width in (556, 368)]
    return Prepared(str(root), fit_transform(Choice(name="standard"), *moments, {}), tuple(manifests))


def stream(prepared: Prepared, **settings: int) -> Stream:
    return Stream(prepared, **({"batch_size": 12, "lanes": 2, "seed": 3} | settings))


def test_an_epoch_trains_distinct_rows_in_full_batches(prepared: Prepared) -> None:
    batches = list(stream(prepared).train(0))
    assert [len(batch["row"]) for batch in batches] == [12] * 6
    rows = np.concatenate([batch["row"] for batch in batches])
    assert len(set(rows.tolist())) == 72
    assert set(rows.tolist()) <= set(range(80))
    for batch in batches:
        np.testing.assert_array_equal(batch["inputs"], np.repeat(batch["row"][:, None], 3, axis=1))
        np.testing.assert_array_equal(batch["targets"], -batch["inputs"])


def test_a_resumed_epoch_is_the_rest_of_it(prepared: Prepared) -> None:
    whole = [batch["row"].tolist() for batch in stream(prepared).train(1)]
    assert [batch["row"].tolist() for batch in stream(prepared).train(1, first_step=4)] == whole[4:]
    assert list(stream(prepared).train(1, first_step=6)) == []


def test_epochs_are_shuffled_anew(prepared: Prepared) -> None:
    first, second = ([batch["row"].tolist() for batch in stream(prepared).train(epoch)] for epoch in (0, 1))
    assert first != second


def test_validation_gives_every_row_once(prepared: Prepared) -> None:
    rows = np.concatenate([batch["row"] for batch in stream(prepared).validate()])
    assert sorted(rows.tolist()) == list(range(80, 101))


def test_shards_of_several_row_groups_give_every_row_once(tmp_path: Path, ray_cluster: None) -> None:
    batches = list(stream(make(tmp_path, LARGE), batch_size=100, lanes=4).train(0))
    rows = np.concatenate([batch["row"] for batch in batches])
    assert len(rows) == len(set(rows.tolist())) == sum(LARGE["train"]) // 100 * 100
    for batch in batches:
        np.testing.assert_array_equal(batch["inputs"], np.repeat(batch["row"][:, None], 3, axis=1))


def test_too_few_rows_for_a_batch_are_refused(prepared: Prepared) -> None:
    with pytest.raises(UserError, match="80 training rows do not fill one batch of 82"):
        stream(prepared, batch_size=82)
