"""Reading a csv in byte ranges."""

import csv
import io
from pathlib import Path

import numpy as np
import pyarrow.csv as pacsv
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leapray.data.flat import csvfile, list_pieces, read_piece
from leapray.errors import UserError
from leapray.evaluation import tables
from tests.data.flat.test_flat import NAMES, competition_table, values


def text(matrix: np.ndarray, line_end: str = "\n", last: bool = True, quote: bool = False) -> bytes:
    lines = [",".join(["sample_id", *NAMES])]
    lines += [",".join([f'"train, {r}"' if quote else f"train_{r}", *map(repr, row.tolist())]) for r, row in enumerate(matrix)]
    return (line_end.join(lines) + (line_end if last else "")).encode()


def read(source: str) -> tuple[np.ndarray, list[str], np.ndarray]:
    blocks = [block for piece in list_pieces(source) for block in read_piece(piece)]
    matrix = np.concatenate([np.hstack([block.inputs, block.targets]) for block in blocks])
    return matrix, [name for block in blocks for name in block.sample_id.to_pylist()], np.concatenate([block.row for block in blocks])


@given(
    rows=st.lists(st.integers(0, 30), max_size=12),
    piece=st.integers(1, 60),
    line_end=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
)
def test_byte_ranges_of_any_size_give_every_row_once_in_order(rows: list[int], piece: int, line_end: str, last: bool) -> None:
    lines = ["name"] + ["x" * length + str(length) for length in rows]
    content = (line_end.join(lines) + (line_end if last else "")).encode()
    file = io.BytesIO(content)
    end = content.find(b"\n")
    starts = range(end, len(content), piece) if end >= 0 else ()
    parts = [csvfile._lines(file, start, min(start + piece, len(content))).to_pybytes() for start in starts]
    assert b"".join(parts) == (content[end + 1 :] if end >= 0 else b"")
    assert all(part.endswith(b"\n") for part in parts[:-1] if part and any(parts[parts.index(part) + 1 :]))


@pytest.mark.parametrize("piece_bytes", [9000, 1 << 20])
@pytest.mark.parametrize(("line_end", "last", "quote"), [("\n", True, False), ("\r\n", False, True)])
def test_pieces_of_any_size_give_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int, line_end: str, last: bool, quote: bool
) -> None:
    monkeypatch.setattr(csvfile, "PIECE_BYTES", piece_bytes)
    matrix = values(7)
    path = tmp_path / "0001-02.csv"
    path.write_bytes(text(matrix, line_end, last, quote))
    found, ids, row = read(str(path))
    assert found.tobytes() == matrix.tobytes()
    assert ids == [f"train, {r}" if quote else f"train_{r}" for r in range(7)]
    assert len(set(row)) == 7
    assert (row < 0).all()


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    matrix = values(2)
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + text(matrix))
    np.testing.assert_array_equal(read(str(tmp_path / "a.csv"))[0], matrix)


def spoiled(how: str) -> bytes:
    content = text(values(3))
    lines = content.split(b"\n")
    if how == "short":
        lines[2] = lines[2].rpartition(b",")[0]
    elif how == "long":
        lines[2] += b",1.0"
    elif how == "cut":
        return content[:-3000]
    elif how == "quoted break":
        lines[2] = lines[2].replace(b"train_1", b'"train\n_1"')
    elif how == "word":
        lines[3] = lines[3].rpartition(b",")[0] + b",none"
    elif how == "semicolons":
        return content.replace(b",", b";")
    elif how == "utf-16":
        return content.decode().encode("utf-16")
    elif how == "header":
        return lines[0] + b"\n"
    elif how == "CR":
        return content.replace(b"\n", b"\r")
    elif how == "CR, one LF":
        return content.rstrip(b"\n").replace(b"\n", b"\r") + b"\n"
    elif how == "long name":
        lines = [line + b"," + b"1" * (140_000 if number == 0 else 1) for number, line in enumerate(lines[:-1])]
    elif how == "long header":
        lines = [line + b",1" * 4_000 for line in lines[:-1]]
    return b"\n".join(lines)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("short", "a row between bytes .* has 924 values, expected 925 as in the header line"),
        ("long", "a row between bytes .* has 926 values, expected 925 as in the header line"),
        ("cut", "has .* values, expected 925"),
        ("quoted break", "has .* values, expected 925"),
        ("word", "column cam_out_SOLLD: .*none"),
        ("semicolons", "columns are separated by ';', not by commas"),
        ("utf-16", "a.csv: "),
        ("header", "a.csv: no rows"),
        ("CR", "lines end with CR alone, expected lines that end with LF or CRLF"),
        ("CR, one LF", "lines end with CR alone, expected lines that end with LF or CRLF"),
        ("long name", "cannot be read as csv"),
        ("long header", "header and first row have more than 38000 bytes"),
    ],
)
def test_a_spoiled_csv_is_refused_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, sentence: str) -> None:
    # the first rows tell the types, and a spoiled row need not be among them
    monkeypatch.setattr(csvfile, "_HEAD_BYTES", 38_000)
    path = tmp_path / "a.csv"
    path.write_bytes(spoiled(how))
    with pytest.raises(UserError, match=sentence) as raised:
        read(str(path))
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("how", ["CR", "CR, one LF", "long name"])
def test_a_table_of_ids_has_the_same_line_ends(tmp_path: Path, how: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(spoiled(how))
    with pytest.raises(UserError, match=r"end with LF or CRLF|cannot be read as csv"):
        tables.read_ids(str(path))


def test_a_header_longer_than_one_field_may_be_is_read(tmp_path: Path) -> None:
    matrix = values(3)
    lines = text(matrix).splitlines()
    others = [b"".join(b",%s_%d" % (b"another_column" if line == lines[0] else b"", number) for number in range(8000)) for line in lines]
    (tmp_path / "a.csv").write_bytes(b"".join(line + more + b"\n" for line, more in zip(lines, others, strict=True)))
    assert read(str(tmp_path / "a.csv"))[0].tobytes() == matrix.tobytes()
    assert len(tables.read_ids(str(tmp_path / "a.csv"))) == 3


def test_what_pandas_and_arrow_write_is_read(tmp_path: Path) -> None:
    matrix = values(4)
    pacsv.write_csv(competition_table(matrix), tmp_path / "a.csv")
    with (tmp_path / "b.csv").open("w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(
            [["sample_id", *NAMES], *([f"train_{r}", *map(repr, row)] for r, row in enumerate(matrix.tolist()))]
        )
    for name in "ab":
        assert read(str(tmp_path / f"{name}.csv"))[0].tobytes() == matrix.tobytes()
