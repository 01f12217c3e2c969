"""Part files appear together, the one that seals the piece last."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leapray.climsim.schema import SAMPLE_ID
from leapray.data.flat import Block
from leapray.errors import UserError
from leapray.evaluation.tables import ROW, files, read_targets
from leapray.inference import parts
from leapray.inference.parts import member_directory, part, part_writer, sealed_rows
from tests.columns import INPUTS, TARGETS

VALUES = np.random.default_rng(0).normal(size=(3, 5, TARGETS.width))


def block(first: int, rows: int) -> Block:
    numbers = np.arange(first, first + rows)
    return Block(np.zeros((rows, INPUTS.width)), np.zeros((rows, 0)), pa.array([f"s{number}" for number in numbers]), -1 - numbers)


def write(destination: str, members: tuple[str, ...] = ("a", "b")) -> None:
    with part_writer(destination, 3, TARGETS, members) as writer:
        for start, stop in ((0, 2), (2, 5)):
            ensemble, *own = VALUES[: 1 + len(members), start:stop]
            writer(block(start, stop - start), ensemble, own)


def test_a_piece_has_its_rows_in_order_in_a_file_of_the_ensemble_and_of_each_member(tmp_path: Path) -> None:
    destination = str(tmp_path)
    write(destination)
    assert sealed_rows(destination, 3) == 5
    for values, directory in zip(
        VALUES, [destination, member_directory(destination, "a"), member_directory(destination, "b")], strict=True
    ):
        table = pq.read_table(part(directory, 3))
        assert table.schema.names == [SAMPLE_ID, ROW, *TARGETS.columns]
        assert table[SAMPLE_ID].to_pylist() == [f"s{row}" for row in range(5)]
        assert table[ROW].to_pylist() == [-1, -2, -3, -4, -5]
        np.testing.assert_array_equal(np.concatenate(list(read_targets(part(directory, 3), TARGETS))), values)


def test_members_are_no_part_of_the_predictions(tmp_path: Path) -> None:
    write(str(tmp_path))
    assert files(str(tmp_path)) == [part(str(tmp_path), 3)]
    assert files(member_directory(str(tmp_path), "a")) == [part(member_directory(str(tmp_path), "a"), 3)]


def test_the_seal_is_the_last_file_to_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    appeared: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: appeared.append(str(target)) or replace(self, target))
    write(str(tmp_path))
    assert len(appeared) == 3
    assert appeared[-1] == part(str(tmp_path), 3)


def test_an_error_leaves_no_file_and_no_seal(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shorter"), part_writer(str(tmp_path), 0, TARGETS, ["a"]) as writer:
        writer(block(0, 5), VALUES[0], [])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert sealed_rows(str(tmp_path), 0) is None


def test_a_damaged_part_is_told(tmp_path: Path) -> None:
    write(str(tmp_path), ())
    path = Path(part(str(tmp_path), 3))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"part-000003\.parquet: cannot be read as parquet.*; remove it, and it is made again"):
        sealed_rows(str(tmp_path), 3)


def test_a_piece_without_a_members_file_is_not_complete(tmp_path: Path) -> None:
    write(str(tmp_path))
    assert sealed_rows(str(tmp_path), 3, ("a", "b")) == 5
    Path(part(member_directory(str(tmp_path), "b"), 3)).unlink()
    assert sealed_rows(str(tmp_path), 3, ("a", "b")) is None
    assert sealed_rows(str(tmp_path), 3) == 5


def test_a_number_that_changed_on_the_disk_is_found(tmp_path: Path) -> None:
    """In the middle of the file, where it is one of a prediction's doubles."""
    write(str(tmp_path), ())
    path = Path(part(str(tmp_path), 3))
    content = bytearray(path.read_bytes())
    at = content.index(VALUES[0, 3, 100].tobytes())
    content[at + 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"part-000003\.parquet: cannot be read as parquet.*checksum"):
        list(read_targets(str(path), TARGETS))


def test_names_of_parts_are_those_of_the_pieces() -> None:
    assert part("s3://bucket/predictions", 12) == "s3://bucket/predictions/part-000012.parquet"
    assert member_directory("out/", "swa") == f"out/{parts.MEMBERS}/swa"
