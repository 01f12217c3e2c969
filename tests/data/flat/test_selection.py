"""Which rows a selection takes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leapray.climsim.calendar import FIRST_MONTH, Month
from leapray.climsim.netcdf import Snapshot
from leapray.climsim.row_keys import row_hash, row_key, row_place
from leapray.data.flat import Piece, Selection, list_pieces, read_piece, survey, to_table
from leapray.data.flat.selection import Share
from leapray.errors import UserError
from tests.data.flat.test_flat import competition_table, values

MARCH = FIRST_MONTH + 1


def keys(pieces: list[Piece]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *(block.row for piece in pieces for block in read_piece(piece, kind="low-res"))])


def steps(pieces: list[Piece]) -> list[int]:
    return row_place(keys(pieces))[1].tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps around the end of February, two columns each, three steps to a row group."""
    folder = tmp_path_factory.mktemp("flat")
    table = pa.concat_tables([to_table(Snapshot("low-res", MARCH.first_step + at, values(2, at + 6))) for at in range(-6, 6)])
    for name, part in (("a", table.slice(0, 14)), ("b", table.slice(14))):
        pq.write_table(part, folder / f"{name}.parquet", row_group_size=6)
    return folder


@given(
    start=st.none() | st.integers(0, 3),
    stop=st.none() | st.integers(0, 3),
    stride=st.integers(1, 9),
    phase=st.integers(0, 8),
    fraction=st.floats(0.01, 1.0),
    first=st.integers(0, 6000),
    length=st.integers(0, 6000),
)
def test_what_is_told_of_a_range_agrees_with_its_steps(
    start: int | None, stop: int | None, stride: int, phase: int, fraction: float, first: int, length: int
) -> None:
    months = [None if at is None else FIRST_MONTH + at for at in (start, stop)]
    selection = Selection(months[0], months[1], stride=stride, phase=phase % stride, fraction=fraction, seed=3)
    taken = selection.takes_steps(np.arange(first, first + length + 1))
    share = selection.share(first, first + length)
    assert not (share is Share.NONE and taken.any())
    assert not (share is Share.ALL and not taken.all())
    if length < 4096:
        assert share is (Share.ALL if taken.all() else Share.SOME if taken.any() else Share.NONE)


@pytest.mark.parametrize("stride", [1, 2, 5, 7])
def test_steps_are_chosen_by_their_absolute_number(folder: Path, stride: int) -> None:
    everything = np.repeat(np.arange(MARCH.first_step - 6, MARCH.first_step + 6), 2)
    for phase in range(stride):
        wanted = everything[everything % stride == phase]
        assert steps(list_pieces(str(folder), Selection(stride=stride, phase=phase))) == wanted.tolist()
    march = everything[(everything % stride == 0) & (everything >= MARCH.first_step)]
    if len(march):
        assert steps(list_pieces(str(folder), Selection(start=MARCH, stop=MARCH + 1, stride=stride))) == march.tolist()


def test_row_groups_of_which_nothing_is_chosen_are_not_read(folder: Path) -> None:
    found = survey(str(folder))
    assert [piece.index for piece in found.pieces()] == [0, 1, 2, 3, 4]
    chosen = found.pieces(Selection(stride=6, phase=MARCH.first_step % 6))
    assert [piece.index for piece in chosen] == [0, 2]
    assert [piece.exact for piece in chosen] == [False, True]
    assert [(piece.index, piece.exact) for piece in found.pieces(Selection(start=MARCH))] == [(2, True), (3, True), (4, True)]


@pytest.mark.parametrize("fraction", [0.25, 1 / 15, 0.9])
def test_a_fraction_takes_whole_snapshots_as_often_as_it_says(fraction: float) -> None:
    many = np.arange(100_000)
    taken = Selection(fraction=fraction, seed=1).takes_steps(many)
    assert abs(taken.mean() - fraction) < 4 * np.sqrt(fraction * (1 - fraction) / len(many))
    again, other = (Selection(fraction=fraction, seed=seed).takes_steps(many) for seed in (1, 2))
    np.testing.assert_array_equal(taken, again)
    assert abs((taken & other).mean() - fraction**2) < 0.01


def test_the_draw_is_independent_of_the_shuffle() -> None:
    row = row_key("low-res", np.zeros(20_000, int), np.arange(20_000))
    taken = Selection(fraction=0.5, seed=4).takes_rows(row)
    hashes = row_hash(row, 4).astype(float)
    assert abs(np.corrcoef(taken, hashes)[0, 1]) < 0.03


def test_splits_of_one_survey_share_the_draw_and_the_keys(tmp_path: Path) -> None:
    for month in ("0001-02", "0001-03"):
        pq.write_table(competition_table(values(40)), tmp_path / f"{month}.parquet", row_group_size=16)
    found = survey(str(tmp_path))
    whole = keys(found.pieces(Selection(fraction=0.5, seed=2)))
    parts = [keys(found.pieces(Selection(start=month, stop=month + 1, fraction=0.5, seed=2))) for month in (FIRST_MONTH, MARCH)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert 0 < len(whole) < 80
    assert set(whole) <= set(keys(found.pieces()))


def test_a_stride_needs_steps(tmp_path: Path) -> None:
    pq.write_table(competition_table(values(4)), tmp_path / "0001-02.parquet")
    with pytest.raises(UserError, match=r"0001-02\.parquet: a stride needs the step of every row, expected a column step"):
        list_pieces(str(tmp_path), Selection(stride=7))
    (tmp_path / "0001-02.parquet").rename(tmp_path / "train.parquet")
    assert steps(list_pieces(str(tmp_path), Selection(stride=7))) == [0, 0, 0, 0]
    assert steps(list_pieces(str(tmp_path), Selection(stride=14, phase=7))) == []


def test_a_month_from_the_recipe_serves_files_that_tell_none(tmp_path: Path) -> None:
    pq.write_table(competition_table(values(4)), tmp_path / "part.parquet")
    given = Selection(start=MARCH, stop=MARCH + 1, month=MARCH)
    assert (keys(list_pieces(str(tmp_path), given)) < 0).all()
    with pytest.raises(UserError, match="no rows from 0002-01"):
        list_pieces(str(tmp_path), Selection(start=Month(2, 1), month=MARCH))
    (tmp_path / "part.parquet").rename(tmp_path / "0001-02.parquet")
    with pytest.raises(UserError, match="no rows from 0001-03"):
        list_pieces(str(tmp_path), given)


@pytest.mark.parametrize(
    ("wrong", "sentence"), [({"stride": 0}, "stride 0"), ({"stride": 3, "phase": 3}, "phase 3"), ({"fraction": 0}, "fraction 0")]
)
def test_a_selection_that_is_none_is_refused(wrong: dict[str, int], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Selection(**wrong)
