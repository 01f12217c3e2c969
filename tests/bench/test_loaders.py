"""The baselines do the same work as what they are compared with."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from leapray.bench.convert import stack_pair
from leapray.bench.data import make_flat, make_pairs
from leapray.bench.loaders import BlockFiles, ShardRows, original_loader, save_blocks
from leapray.climsim.netcdf import read_pair
from leapray.climsim.row_keys import KINDS
from leapray.data.moments import Moments
from leapray.data.shards import write_shard
from tests.samples import random_rows

COLUMNS = KINDS["low-res"].columns


@pytest.mark.parametrize("container", ["cdf5", "hdf5"])
def test_xarray_stacks_the_rows_that_we_read(tmp_path: Path, container: str) -> None:
    (pair,) = make_pairs(tmp_path, container, 1)
    inputs, targets = stack_pair(pair)
    np.testing.assert_array_equal(np.hstack([inputs, targets]), read_pair(pair).rows)


def test_the_original_takes_whole_files_and_standardises_them(tmp_path: Path) -> None:
    rows = random_rows(5300)
    save_blocks([rows[:700], rows[700:]], tmp_path)
    files = BlockFiles(tmp_path, *(Moments.of(part) for part in (rows[:, :556], rows[:, 556:])))
    assert len(files) == 5
    ((x, y),) = original_loader(files, 0)
    assert x.shape == (4000, 556)
    assert y.shape == (4000, 368)
    x, y = files[2]
    block = rows[2000:3000]
    np.testing.assert_allclose(x, ((block - rows.mean(0)) / np.maximum(rows.std(0), 1e-6))[:, :556], rtol=1e-6, atol=1e-6)
    varying = rows[:, 556:].std(0) > 0
    expected = ((block - rows.mean(0))[:, 556:] / rows[:, 556:].std(0).clip(1e-300))[:, varying]
    np.testing.assert_allclose(y[:, varying], expected, rtol=1e-6, atol=1e-6)


def test_the_arrow_loader_gives_each_row_once_in_full_batches(tmp_path: Path) -> None:
    first = 0
    for index, count in enumerate((30, 17, 25, 8)):
        values = np.arange(first, first + count, dtype=np.float32)[:, None].repeat(2, axis=1)
        write_shard(str(tmp_path / f"{index}.parquet"), {"inputs": values, "targets": -values, "row": np.arange(count)})
        first += count
    batches = list(ShardRows([str(path) for path in sorted(tmp_path.iterdir())], 12, seed=1))
    assert [len(x) for x, _ in batches] == [12] * 6
    seen = torch.cat([x[:, 0] for x, _ in batches])
    assert len(seen.unique()) == 72
    assert not torch.equal(seen, seen.sort().values)
    assert all(torch.equal(x, -y) for x, y in batches)


def test_flat_data_of_any_length_has_its_own_steps(tmp_path: Path) -> None:
    flat = make_flat(tmp_path, 26 * COLUMNS - 5)
    table = pa.concat_tables([pq.read_table(path, columns=["step", "ncol"]) for path in flat.paths])
    assert table.num_rows == flat.rows == 26 * COLUMNS
    assert len(np.unique(table["step"].to_numpy())) == 26
    assert str(flat.stop) == "0001-03"
