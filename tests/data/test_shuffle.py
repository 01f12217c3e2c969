import contextlib
from pathlib import Path

import numpy as np
import pytest

from leapray.climsim.row_keys import row_hash, row_key
from leapray.data.shards import Rows, read_shard, write_shard
from leapray.data.shuffle import DuplicateRowError, checksum, gather, scatter
from leapray.errors import UserError
from tests.columns import INPUTS, TARGETS


def rows(start: int, stop: int) -> Rows:
    index = np.arange(start, stop)
    generator = np.random.default_rng(start)
    return {
        "inputs": generator.normal(size=(len(index), INPUTS.width)).astype(np.float32),
        "targets": generator.normal(size=(len(index), TARGETS.width)).astype(np.float32),
        "row": row_key("low-res", index // 384, index % 384),
    }


def test_every_row_is_gathered_once_with_its_own_values(tmp_path: Path) -> None:
    parts = [rows(0, 700), rows(700, 701), rows(701, 1000)]
    urls = [str(tmp_path / f"{index}.arrow") for index in range(3)]
    for part, url in zip(parts, urls, strict=True):
        scatter(part, 4, 7, url)
    gathered = [gather(urls, bucket, 7) for bucket in range(4)]
    together = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = {row: index for index, row in enumerate(together["row"].tolist())}
    places = [order[row] for bucket in gathered for row in bucket["row"].tolist()]
    assert sorted(places) == list(range(1000))
    for name in ("inputs", "targets"):
        np.testing.assert_array_equal(np.concatenate([bucket[name] for bucket in gathered]), together[name][places])


def test_the_order_depends_on_the_seed_and_not_on_how_rows_were_grouped(tmp_path: Path) -> None:
    whole, first, second = (str(tmp_path / name) for name in ("whole", "first", "second"))
    together = rows(0, 500)
    scatter(together, 2, 3, whole)
    scatter({name: values[:123] for name, values in together.items()}, 2, 3, first)
    scatter({name: values[123:] for name, values in together.items()}, 2, 3, second)
    np.testing.assert_array_equal(gather([whole], 1, 3)["row"], gather([second, first], 1, 3)["row"])
    scatter(together, 2, 4, first)
    assert gather([first], 1, 4)["row"].tolist() != gather([whole], 1, 3)["row"].tolist()


def test_neighbouring_rows_are_spread_evenly() -> None:
    hashes = row_hash(row_key("high-res", np.zeros(21600, int), np.arange(21600)), 0)
    counts = np.bincount((hashes >> np.uint64(60)).astype(int), minlength=16)
    assert (np.abs(counts - 1350) < 5 * np.sqrt(1350)).all()
    assert abs(np.corrcoef(hashes[:-1].astype(float), hashes[1:].astype(float))[0, 1]) < 0.03


def test_a_row_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    url = str(tmp_path / "part.arrow")
    scatter(rows(0, 10), 1, 0, url)
    scatter(rows(10, 20), 1, 0, str(tmp_path / "other.arrow"))
    with pytest.raises(DuplicateRowError) as twice:
        gather([url, str(tmp_path / "other.arrow"), url], 0, 0)
    assert (twice.value.row in rows(0, 10)["row"], twice.value.files) == (True, [0, 2])


def test_the_checksum_is_the_same_in_any_order_and_changes_with_any_bit_and_any_key() -> None:
    one = rows(0, 3000)
    order = np.random.default_rng(0).permutation(3000)
    assert checksum({name: values[order] for name, values in one.items()}) == checksum(one)
    halves = [{name: values[part] for name, values in one.items()} for part in (slice(0, 1234), slice(1234, None))]
    assert sum(map(checksum, halves)) % (1 << 64) == checksum(one)
    for name, place in (("inputs", (17, 555)), ("targets", (2999, 0)), ("row", 5)):
        changed = one | {name: one[name].copy()}
        changed[name][place] = np.nextafter(changed[name][place], 9) if name != "row" else 10**9
        assert checksum(changed) != checksum(one)
    swapped = one | {"row": one["row"][::-1].copy()}
    assert checksum(swapped) != checksum(one)


def test_a_shard_reads_back_as_it_was_written(tmp_path: Path) -> None:
    written = rows(5, 50)
    write_shard(str(tmp_path / "shard.parquet"), written)
    read = read_shard(str(tmp_path / "shard.parquet"))
    assert read["inputs"].dtype == np.float32
    assert all(np.array_equal(read[name], written[name]) for name in written)
    assert [path.name for path in tmp_path.iterdir()] == ["shard.parquet"]


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    path = tmp_path / "shard.parquet"
    write_shard(str(path), rows(0, 20))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"shard\.parquet: not a readable shard"):
        read_shard(str(path))


def test_any_flipped_byte_of_a_shard_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "shard.parquet"
    write_shard(str(path), rows(0, 20))
    content = path.read_bytes()
    for at in np.random.default_rng(0).integers(0, len(content), 60).tolist():
        path.write_bytes(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
        # the flip of a byte that no value depends on may pass
        with contextlib.suppress(UserError):
            read = read_shard(str(path))
            assert all(np.array_equal(read[name], values) for name, values in rows(0, 20).items())
