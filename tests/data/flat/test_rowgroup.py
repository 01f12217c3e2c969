"""Reading row groups whole, streamed and through a spool."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leapray.data.flat import list_pieces, read_columns, read_piece, rowgroup, survey
from leapray.data.flat.spool import Spool
from leapray.errors import UserError
from tests.data.flat.test_flat import competition_table, values


@pytest.mark.parametrize("way", ["whole", "streamed", "spooled"])
@pytest.mark.parametrize("max_rows", [7, 64, 8192])
def test_every_way_of_reading_gives_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, max_rows: int) -> None:
    matrix = np.tile(values(10), (15, 1))
    matrix[3, 5] = np.nan
    pq.write_table(competition_table(matrix), tmp_path / "0001-02.parquet")
    (piece,) = list_pieces(str(tmp_path))
    stored = pq.read_metadata(tmp_path / "0001-02.parquet").row_group(0).total_byte_size
    decoded = 8 * matrix.size
    assert stored < decoded
    monkeypatch.setattr(rowgroup, "WHOLE_BYTES", {"whole": decoded, "streamed": stored, "spooled": 0}[way])
    used: list[Spool] = []
    monkeypatch.setattr(rowgroup, "Spool", lambda *shape: used.append(Spool(*shape)) or used[-1])
    blocks = list(read_piece(piece, max_rows=max_rows))
    assert len(used) == (way == "spooled")
    assert np.concatenate([np.hstack([block.inputs, block.targets]) for block in blocks]).tobytes() == matrix.tobytes()
    assert [name for block in blocks for name in block.sample_id.to_pylist()] == [f"train_{r}" for r in range(150)]
    assert all(len(block.row) <= max_rows and block.inputs.flags.f_contiguous for block in blocks)
    unpacked = [np.stack(columns).T for columns in read_columns(piece, max_rows=max_rows)]
    assert np.concatenate(unpacked).tobytes() == matrix.tobytes()


def test_a_file_without_ids_is_read_where_they_are_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = values(9)
    pq.write_table(competition_table(matrix).drop_columns(["sample_id"]), tmp_path / "0001-02.parquet")
    (piece,) = survey(str(tmp_path), sample_id=False).pieces()
    for limit in (1 << 30, 0):
        monkeypatch.setattr(rowgroup, "WHOLE_BYTES", limit)
        blocks = list(read_piece(piece, max_rows=4))
        assert [block.sample_id.null_count for block in blocks] == [4, 4, 1]
        np.testing.assert_array_equal(np.concatenate([block.inputs for block in blocks]), matrix[:, :556])


def test_a_spool_gives_back_what_was_written_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    matrix = values(10)
    with Spool(10, 4, 924) as spool:
        assert list(tmp_path.iterdir()) == []
        for first in (308, 0, 616):
            for batch, start in enumerate((0, 4, 8)):
                spool.write(batch, first, np.ascontiguousarray(matrix[start : start + 4, first : first + 308].T))
        found = np.concatenate([spool.read(batch).T for batch in range(3)])
    assert found.tobytes() == matrix.tobytes()
    assert list(tmp_path.iterdir()) == []


def test_rows_beyond_a_limit_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = values(40)
    pq.write_table(competition_table(matrix), tmp_path / "0001-02.parquet")
    (piece,) = list_pieces(str(tmp_path))
    monkeypatch.setattr(rowgroup, "WHOLE_BYTES", 0)
    found = np.concatenate([block.inputs for block in read_piece(piece, max_rows=8, limit=15)])
    np.testing.assert_array_equal(found, matrix[:16, :556])


def test_no_room_for_a_spool_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"no room for 7\.4 GB, which reading a large row group takes .* free some or set TMPDIR"):
        Spool(1_000_000, 8192, 924)
    monkeypatch.undo()
    with pytest.raises(UserError, match="no room for"):
        Spool(1 << 60, 8192, 924)


def test_a_file_that_has_changed_since_it_was_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = competition_table(values(40))
    path = tmp_path / "0001-02.parquet"
    pq.write_table(table, path)
    (piece,) = list_pieces(str(path))
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), path)
    for limit in (1 << 30, 0):
        monkeypatch.setattr(rowgroup, "WHOLE_BYTES", limit)
        with pytest.raises(UserError, match=r"0001-02\.parquet: row group 0 holds 41 rows, expected 40 as when it was listed"):
            list(read_piece(piece))
