"""What a listing knows of its files without reading their rows."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from leapray import storage
from leapray.climsim.calendar import FIRST_MONTH
from leapray.climsim.netcdf import Snapshot
from leapray.data.flat import Selection, csvfile, survey, to_table
from leapray.data.flat.headers import read_header
from tests.data.flat.test_flat import competition_table, values


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "flat"
    (folder / "deep").mkdir(parents=True)
    pq.write_table(competition_table(values(6)), folder / "deep" / "0001-03.parquet", row_group_size=4)
    pacsv.write_csv(competition_table(values(2)), folder / "0001-05.csv")
    table = to_table(Snapshot("low-res", 0, values(3)))
    pq.write_table(pa.concat_tables([table, table]), folder / "ours.parquet")
    return folder


def test_a_moved_or_touched_folder_is_the_same_data_and_a_changed_one_is_not(folder: Path, tmp_path: Path) -> None:
    before = survey(str(folder)).fingerprint()
    moved = tmp_path / "elsewhere" / "copy"
    shutil.copytree(folder, moved)
    assert survey(str(moved)).fingerprint() == before
    changed: set[str] = set()
    pq.write_table(competition_table(values(6, seed=1)), moved / "deep" / "0001-03.parquet", row_group_size=4)
    changed.add(survey(str(moved)).fingerprint())
    (moved / "deep" / "0001-03.parquet").rename(moved / "deep" / "0001-04.parquet")
    changed.add(survey(str(moved)).fingerprint())
    content = (moved / "0001-05.csv").read_bytes()
    (moved / "0001-05.csv").write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    changed.add(survey(str(moved)).fingerprint())
    (moved / "ours.parquet").unlink()
    changed.add(survey(str(moved)).fingerprint())
    assert len(changed | {before}) == 5


def test_rows_known_by_the_number_of_their_file_are_others_when_a_file_joins_before_it(tmp_path: Path) -> None:
    prints: dict[str, list[str]] = {"placed": [], "numbered": []}
    for name, found in prints.items():
        (tmp_path / name).mkdir()
        for file, step in (("b", 2000), ("a", 0)):
            columns = to_table(Snapshot("low-res", step, values(3)))
            pq.write_table(columns if name == "placed" else columns.drop_columns(["ncol"]), tmp_path / name / f"{file}.parquet")
            listed = survey(str(tmp_path / name))
            found.append(listed.fingerprint([piece for piece in listed.pieces() if piece.path.endswith("b.parquet")]))
    assert prints["placed"][0] == prints["placed"][1]
    assert prints["numbered"][0] != prints["numbered"][1]


def test_a_change_within_shows_where_no_statistics_tell_it(tmp_path: Path) -> None:
    names = {"plain.parquet", "table.csv"}
    prints: dict[str, set[str]] = {name: set() for name in names}
    for seed in range(3):
        matrix = values(80)
        matrix[60:70] = np.random.default_rng(seed).permutation(values(80, seed=9)[60:70])
        pq.write_table(competition_table(matrix), tmp_path / "plain.parquet", write_statistics=False, compression="none")
        pacsv.write_csv(competition_table(matrix), tmp_path / "table.csv")
        for name in names:
            prints[name].add(survey(str(tmp_path / name)).fingerprint())
    assert {name: len(found) for name, found in prints.items()} == dict.fromkeys(names, 3)


@pytest.mark.parametrize("number", [lambda x: x, lambda x: np.sign(x)], ids=["17 digits", "1 digit"])
def test_the_rows_of_a_csv_are_estimated_from_its_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: Callable[[np.ndarray], np.ndarray]
) -> None:
    monkeypatch.setattr(csvfile, "PIECE_BYTES", 50_000)
    path = tmp_path / "a.csv"
    pacsv.write_csv(competition_table(number(values(90))), path)
    parts = read_header(str(path), path.stat().st_size).parts
    assert sum(part.rows_about for part in parts) == pytest.approx(90, abs=len(parts))


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_csv_whose_last_line_has_no_end_is_told(folder: Path, tmp_path: Path, end: bytes) -> None:
    pacsv.write_csv(pq.read_table(sorted(folder.glob("*.parquet"))[0]), tmp_path / "a.csv")
    (tmp_path / "a.csv").write_bytes((tmp_path / "a.csv").read_bytes().rstrip(b"\n") + end)
    notes: list[str] = []
    survey(str(tmp_path), notice=notes.append)
    assert any("a.csv: its last line has no end" in note for note in notes) == (not end)


def test_rows_and_months_are_told_where_they_are_known(folder: Path) -> None:
    found = survey(str(folder))
    assert found.rows is None
    assert found.months == [FIRST_MONTH, FIRST_MONTH + 1, FIRST_MONTH + 3]
    (folder / "0001-05.csv").unlink()
    assert survey(str(folder)).rows == 12


def test_a_folder_is_listed_once_for_all_selections(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []
    list_data = storage.list_data
    monkeypatch.setattr(storage, "list_data", lambda url, *rest: listed.append(url) or list_data(url, *rest))
    found = survey(str(folder))
    for selection in (None, Selection(start=FIRST_MONTH, stop=FIRST_MONTH + 1), Selection(fraction=0.5)):
        found.pieces(selection)
    assert listed == [str(folder)]


def test_pieces_are_numbered_through_the_listing_whatever_is_selected_and_travel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csvfile, "PIECE_BYTES", 30_000)
    found = survey(str(folder))
    pieces = found.pieces()
    assert [piece.index for piece in pieces] == list(range(len(pieces)))
    march = found.pieces(Selection(start=FIRST_MONTH + 1, stop=FIRST_MONTH + 2))
    assert march == [piece for piece in pieces if piece.path.endswith("0001-03.parquet")]
    assert pickle.loads(pickle.dumps(pieces)) == pieces
    assert len(pickle.dumps(pieces[0])) < 600
    assert all(piece.rows_about >= 1 for piece in pieces)
