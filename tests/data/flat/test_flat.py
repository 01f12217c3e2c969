"""Reading flat parquet and csv, ours and other people's."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from leapray.climsim.calendar import FIRST_MONTH, Month
from leapray.climsim.grid import figures
from leapray.climsim.netcdf import Snapshot
from leapray.climsim.row_keys import row_key, row_place
from leapray.climsim.schema import KAGGLE
from leapray.data.flat import Piece, Selection, flat_schema, list_pieces, read_piece, survey, to_table
from leapray.data.flat.headers import first_id
from leapray.data.flat.places import month_of_path
from leapray.errors import UserError

NAMES = figures("low_res_columns")["column"]
MARCH = FIRST_MONTH + 1


def values(n: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.standard_normal((n, 924)) * 10.0 ** random.integers(-51, 6, (n, 924))


def competition_table(matrix: np.ndarray, first: int = 0) -> pa.Table:
    """The competition's layout: ids ``train_<r>`` and the 924 columns."""
    ids = pa.array([f"train_{first + r}" for r in range(len(matrix))])
    return pa.table({"sample_id": ids, **{name: matrix[:, c] for c, name in enumerate(NAMES)}})


def replaced(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, column)


def read_all(pieces: list[Piece], **options: Any) -> tuple[np.ndarray, list[str], np.ndarray]:
    blocks = [block for piece in pieces for block in read_piece(piece, **options)]
    matrix = np.concatenate([np.hstack([block.inputs, block.targets]) for block in blocks])
    return matrix, [name for block in blocks for name in block.sample_id.to_pylist()], np.concatenate([block.row for block in blocks])


def write(path: Path, table: pa.Table, **options: Any) -> str:
    if path.suffix == ".csv":
        pacsv.write_csv(table, path)
    else:
        pq.write_table(table, path, **options)
    return str(path)


def test_a_snapshot_is_read_back_bit_for_bit_with_its_place(tmp_path: Path) -> None:
    snapshots = [Snapshot("aqua-planet", step, values(5, step)) for step in (70, 77)]
    table = pa.concat_tables([to_table(snapshot) for snapshot in snapshots])
    assert table.schema.equals(flat_schema(KAGGLE))
    source = write(tmp_path / "any.parquet", table, row_group_size=4)
    pieces = list_pieces(source)
    assert [(piece.row_group, piece.rows, piece.index, piece.exact) for piece in pieces] == [
        (0, 4, 0, True),
        (1, 4, 1, True),
        (2, 2, 2, True),
    ]
    matrix, ids, row = read_all(pieces, kind="aqua-planet")
    assert matrix.tobytes() == np.concatenate([snapshot.rows for snapshot in snapshots]).tobytes()
    assert (ids[0], ids[-1]) == ("aqua-planet_0000070_00000", "aqua-planet_0000077_00004")
    np.testing.assert_array_equal(row, [row_key("aqua-planet", step, ncol) for step in (70, 77) for ncol in range(5)])


@pytest.mark.parametrize("max_rows", [1, 3, 7, 100])
def test_blocks_are_bounded_and_packed(tmp_path: Path, max_rows: int) -> None:
    matrix = values(10)
    (piece,) = list_pieces(write(tmp_path / "train.parquet", competition_table(matrix)))
    blocks = list(read_piece(piece, max_rows=max_rows))
    assert [len(block.inputs) for block in blocks] == [min(max_rows, 10 - at) for at in range(0, 10, max_rows)]
    assert all(block.inputs.flags.f_contiguous and block.targets.flags.f_contiguous for block in blocks)
    assert np.concatenate([block.inputs for block in blocks]).tobytes() == matrix[:, :556].tobytes()
    assert np.concatenate([block.targets for block in blocks]).tobytes() == matrix[:, 556:].tobytes()


@pytest.mark.parametrize("name", ["train.csv", "train.parquet"])
def test_competition_rows_lie_at_stride_7(tmp_path: Path, name: str) -> None:
    matrix = values(4)
    pieces = list_pieces(write(tmp_path / name, competition_table(matrix, first=384 * 5 - 2)))
    found, ids, row = read_all(pieces, kind="low-res")
    np.testing.assert_array_equal(found, matrix)
    assert ids == ["train_1918", "train_1919", "train_1920", "train_1921"]
    np.testing.assert_array_equal(row_place(row), [[0] * 4, [28, 28, 35, 35], [382, 383, 0, 1]])


def test_rows_of_competition_months_are_picked_by_id(tmp_path: Path) -> None:
    first_of_march = -(-MARCH.first_step // 7) * 384
    matrix = values(6)
    source = write(tmp_path / "train.csv", competition_table(matrix, first=first_of_march - 2))
    february, march = (list_pieces(source, Selection(start=month, stop=month + 1)) for month in (FIRST_MONTH, MARCH))
    assert [(piece.rows, piece.exact) for piece in february] == [(-1, False)]
    assert read_all(february)[1] == [f"train_{first_of_march - 2}", f"train_{first_of_march - 1}"]
    np.testing.assert_array_equal(read_all(march)[0], matrix[2:])


def test_monthly_files_with_restarting_ids_get_unique_negative_keys(tmp_path: Path) -> None:
    for month in ("0001-02", "0001-03"):
        write(tmp_path / f"{month}.parquet", competition_table(values(5)), row_group_size=3)
    _, ids, row = read_all(list_pieces(str(tmp_path)), kind="low-res", max_rows=2)
    assert ids[5] == "train_0"
    assert len(set(row)) == 10
    assert (row < 0).all()


def test_months_come_from_the_name_where_there_is_no_step(tmp_path: Path) -> None:
    for month in ("0001-02", "0001-03", "0001-04"):
        write(tmp_path / f"low-res.{month}.0000.parquet", competition_table(values(2)))
    names = [Path(piece.path).name for piece in list_pieces(str(tmp_path), Selection(start=MARCH))]
    assert names == ["low-res.0001-03.0000.parquet", "low-res.0001-04.0000.parquet"]
    assert len(list_pieces(str(tmp_path), Selection(stop=MARCH))) == 1
    with pytest.raises(UserError, match="no rows in month 0001-05, which 0001-04 to 0001-06 asks for"):
        list_pieces(str(tmp_path), Selection(start=Month(1, 4), stop=Month(1, 6)))
    with pytest.raises(UserError, match="no rows from 0002-01 up to the end"):
        list_pieces(str(tmp_path), Selection(start=Month(2, 1)))


@pytest.mark.parametrize("write_statistics", [True, False])
@pytest.mark.parametrize("name", ["all.parquet", "low-res.0001-02.parquet", "low-res.0009-09.parquet"])
def test_months_come_from_the_step_whatever_the_name_says(tmp_path: Path, name: str, write_statistics: bool) -> None:
    steps = [MARCH.first_step + offset for offset in (-2, -1, 0, 1)]
    table = pa.concat_tables([to_table(Snapshot("low-res", step, values(2, step))) for step in steps])
    source = write(tmp_path / name, table, row_group_size=3, write_statistics=write_statistics)
    pieces = list_pieces(source, Selection(start=MARCH, stop=MARCH + 1))
    assert [piece.rows for piece in pieces] == ([3, 2] if write_statistics else [3, 3, 2])
    assert [piece.exact for piece in pieces] == ([False, True] if write_statistics else [False] * 3)
    _, _, row = read_all(pieces)
    np.testing.assert_array_equal(row_place(row)[1], np.repeat(steps[2:], 2))


def test_months_of_a_csv_come_from_its_step_whatever_the_name_says(tmp_path: Path) -> None:
    steps = [MARCH.first_step - 1, MARCH.first_step]
    table = pa.concat_tables([to_table(Snapshot("low-res", step, values(2, step))) for step in steps])
    (piece,) = list_pieces(write(tmp_path / "0001-02.csv", table), Selection(start=MARCH))
    assert (piece.rows, piece.exact) == (-1, False)
    np.testing.assert_array_equal(row_place(read_all([piece])[2])[1], [MARCH.first_step] * 2)


def test_a_step_that_is_no_whole_number_or_empty_is_refused_where_months_are_asked_for(tmp_path: Path) -> None:
    table = competition_table(values(2))
    source = write(tmp_path / "0001-03.parquet", table.append_column("step", pa.array(["soon", "late"])))
    with pytest.raises(UserError, match="column step has type string, expected a whole number"):
        list_pieces(source, Selection(start=MARCH))
    write(Path(source), table.append_column("step", pa.array([MARCH.first_step, None])))
    with pytest.raises(UserError, match="column step has empty, negative or very large values"):
        read_all(list_pieces(source, Selection(start=MARCH)))


@pytest.mark.parametrize(
    ("name", "month"),
    [
        ("0001-02.parquet", "0001-02"),
        ("low-res.0001-02.0000.parquet", "0001-02"),
        ("train_0007-12_rows_0001-99.csv", "0007-12"),
        ("0001-02/part.0.parquet", "0001-02"),
        ("0001-02/deep/part.0.parquet", "0001-02"),
        ("0001-02/0001-03.parquet", "0001-03"),
        ("0001-02/0001-03/part.0.parquet", "0001-03"),
        ("0001-02_to_0009-01/0001-03/part.0.parquet", "0001-03"),
        ("0001-02_to_0009-01/part.0.parquet", None),
        ("month=0001-02/part.0.parquet", "0001-02"),
        ("year=8/month=1/part.0.parquet", "0008-01"),
        ("year=0008/month=01/part.0.parquet", "0008-01"),
        ("year=8/kind=low-res/month=12/part.0.parquet", "0008-12"),
        ("year=8/month=13/part.0.parquet", None),
        ("month=1/part.0.parquet", None),
        ("year=8/part.0.parquet", None),
        ("2024-07-15/part.0.parquet", None),
        ("train_2024-07-15.parquet", None),
        ("E3SM-MMF.mli.0001-02-01-00000.parquet", None),
        ("0001-02-0001-05.parquet", None),
        ("0001-02_to_0001-05.parquet", None),
        ("part-0000-05.parquet", None),
        ("10001-02.parquet", None),
        ("0001-13.parquet", None),
    ],
)
def test_only_a_lone_month_in_a_name_is_one(name: str, month: str | None) -> None:
    found = Month.parse(month) if month else None
    assert month_of_path(f"s3://bucket/{name}", "s3://bucket") == found
    # what the folders above are called is the user's own affair
    assert month_of_path(f"/0003-03/2024-07/x/{name}", "/0003-03/2024-07/x") == found


def test_a_folder_or_a_file_that_is_given_tells_its_own_month() -> None:
    january = Month(8, 1)
    assert month_of_path("/x/0008-01/a.parquet", "/x/0008-01") == january
    assert month_of_path("/x/0008-01/a.parquet", "/x/0008-01/a.parquet") == january
    assert month_of_path("/x/year=8/month=1/a.parquet", "/x/year=8/month=1/a.parquet") == january
    assert month_of_path("/0008-01/x/a.parquet", "/0008-01/x/a.parquet") is None


def test_ids_are_looked_at_once_for_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    monkeypatch.setattr("leapray.data.flat.listing.first_id", lambda header: looked.append(header.path) or first_id(header))
    for name in "ab":
        (tmp_path / name).mkdir()
    paths = [write(tmp_path / name / "train.parquet", competition_table(values(6)), row_group_size=2) for name in "ab"]
    found = survey(str(tmp_path))
    for _ in range(2):
        assert len(found.pieces(Selection(start=FIRST_MONTH))) == 6
    assert looked == paths


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_tables_without_rows_are_left_out_and_refused_if_there_are_no_others(tmp_path: Path, suffix: str) -> None:
    table = competition_table(values(2))
    write(tmp_path / f"a{suffix}", table.slice(0, 0))
    for selection in (None, Selection(start=FIRST_MONTH)):
        with pytest.raises(UserError, match=f"{tmp_path.name}: no rows"):
            list_pieces(str(tmp_path), selection)
    full = write(tmp_path / f"b{suffix}", table)
    assert [(piece.path, piece.index) for piece in list_pieces(str(tmp_path))] == [(full, 0)]


def test_row_groups_without_rows_are_left_out(tmp_path: Path) -> None:
    table = competition_table(values(2))
    with pq.ParquetWriter(tmp_path / "a.parquet", table.schema) as writer:
        for part in (table.slice(0, 0), table, table.slice(0, 0)):
            writer.write_table(part)
    assert pq.read_metadata(tmp_path / "a.parquet").num_row_groups > 1
    assert [(piece.row_group, piece.rows, piece.index) for piece in list_pieces(str(tmp_path))] == [(1, 2, 0)]


def test_months_that_cannot_be_told_are_refused(tmp_path: Path) -> None:
    table = replaced(competition_table(values(2)), "sample_id", pa.array(["test_4", "test_5"]))
    for name in ("test.csv", "test.parquet"):
        source = write(tmp_path / name, table)
        assert len(read_all(list_pieces(source))[0]) == 2
        with pytest.raises(UserError, match=rf"{name}: its months cannot be told, expected a column step"):
            list_pieces(source, Selection(start=FIRST_MONTH))


def test_column_order_and_number_types_do_not_matter(tmp_path: Path) -> None:
    matrix = np.round(values(3) % 100)
    table = competition_table(matrix)
    for name, type_ in (("state_t_0", pa.float32()), ("state_ps", pa.int64()), ("cam_out_PRECC", pa.int16()), ("ptend_v_59", pa.float16())):
        table = replaced(table, name, table[name].cast(type_, safe=False))
    order = np.random.default_rng(1).permutation(table.column_names).tolist()
    for name in ("a.parquet", "a.csv"):
        source = write(tmp_path / name, table.select(order) if name == "a.parquet" else competition_table(matrix).select(order))
        np.testing.assert_array_equal(read_all(list_pieces(source))[0], matrix)


def test_empty_values_become_nan(tmp_path: Path) -> None:
    matrix = values(3)
    matrix[1, 360] = matrix[2, 0] = np.nan
    table = competition_table(matrix)
    for column in (0, 360):
        name = NAMES[column]
        table = replaced(table, name, pc.if_else(pc.is_nan(table[name]), None, table[name]))
    table = replaced(table, "state_v_3", pa.nulls(3, pa.int64()))
    matrix[:, 303] = np.nan
    for name in ("a.parquet", "a.csv"):
        np.testing.assert_array_equal(read_all(list_pieces(write(tmp_path / name, table)))[0], matrix)


def test_inputs_alone_are_enough_without_targets(tmp_path: Path) -> None:
    matrix = values(3)
    source = write(tmp_path / "test.csv", competition_table(matrix).select(["sample_id", *NAMES[:556]]))
    (block,) = read_piece(*list_pieces(source, targets=False), targets=False)
    assert block.targets.shape == (len(block.row), 0)
    np.testing.assert_array_equal(block.inputs, matrix[:, :556])
    with pytest.raises(UserError, match=r"test\.csv: column ptend_t_0, ptend_t_1, ptend_t_2 and 365 more missing"):
        list_pieces(source)


def test_further_columns_are_ignored_with_one_notice(tmp_path: Path) -> None:
    table = competition_table(values(2)).append_column("cam_in_SNOWHICE", pa.array([1e30, 0.0]))
    for name in ("a.parquet", "b.parquet"):
        write(tmp_path / name, table)
    notices: list[str] = []
    pieces = list_pieces(str(tmp_path), notice=notices.append)
    assert len(pieces) == 2
    assert len(notices) == 1
    assert "1 further column(s) are ignored, such as cam_in_SNOWHICE" in notices[0]


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_missing_or_mistyped_column_is_named(tmp_path: Path, suffix: str) -> None:
    good = competition_table(values(2))
    write(tmp_path / f"a{suffix}", good)
    bad = write(tmp_path / f"b{suffix}", good.drop_columns(["state_q0002_17"]))
    with pytest.raises(
        UserError, match=rf"b\{suffix}: column state_q0002_17 missing, expected sample_id and the 924 columns of variables v2_kaggle"
    ):
        list_pieces(str(tmp_path))
    write(Path(bad), good.drop_columns(["sample_id"]))
    with pytest.raises(UserError, match="column sample_id missing"):
        list_pieces(bad)
    write(Path(bad), replaced(good, "state_u_5", pa.array(["calm", "windy"])))
    with pytest.raises(UserError, match="column state_u_5 has type string, expected a number"):
        list_pieces(bad)
    write(Path(bad), good.append_column("state_t_0", good["state_t_0"]))
    with pytest.raises(UserError, match="column state_t_0 stands more than once"):
        list_pieces(bad)


def test_text_deep_in_a_csv_is_refused(tmp_path: Path) -> None:
    table = competition_table(values(120))
    words = [*map(str, range(119)), "calm"]
    source = write(tmp_path / "a.csv", replaced(table, "state_u_5", pa.array(words)))
    pieces = list_pieces(source)
    with pytest.raises(UserError, match=r"a\.csv: cannot be read as csv.*column state_u_5:.*calm"):
        read_all(pieces)


def test_a_truncated_or_corrupt_parquet_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "a.parquet", competition_table(values(50)), use_dictionary=False)
    content = Path(source).read_bytes()
    for broken in (b"", content[:3], content[:-1], content[: len(content) // 2]):
        Path(source).write_bytes(broken)
        with pytest.raises(UserError, match=r"a\.parquet: cannot be read as parquet"):
            list_pieces(source)
    Path(source).write_bytes(content[:4] + bytes(200_000) + content[200_004:])
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read as parquet"):
        read_all(list_pieces(source))


@pytest.mark.parametrize("content", [b"", b"sample_id,state_t_0\n", b"\xff\xfe\x00", "sample_id,température\na,1\n".encode("latin-1")])
def test_an_empty_or_foreign_csv_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.csv: "):
        list_pieces(str(tmp_path))


def test_a_folder_without_tables_is_refused(tmp_path: Path) -> None:
    (tmp_path / "conversion.json").write_text("{}")
    with pytest.raises(UserError, match=r"no \.parquet or \.csv files"):
        list_pieces(str(tmp_path))


def test_another_kind_or_an_impossible_place_is_refused(tmp_path: Path) -> None:
    table = to_table(Snapshot("aqua-planet", 3, values(2)))
    source = write(tmp_path / "a.parquet", table)
    with pytest.raises(UserError, match="column kind holds aqua-planet, expected low-res alone"):
        read_all(list_pieces(source), kind="low-res")
    write(Path(source), replaced(table, "kind", pa.array(["ocean", "low-res"])))
    with pytest.raises(UserError, match="column kind holds ocean, low-res, expected low-res or aqua-planet or high-res alone"):
        read_all(list_pieces(source))
    write(Path(source), replaced(table, "step", pa.array([-1, 3])))
    with pytest.raises(UserError, match="column step has empty, negative or very large values"):
        read_all(list_pieces(source))
    write(Path(source), replaced(table, "ncol", pa.array([None, 3], pa.int32())))
    with pytest.raises(UserError, match="column ncol has empty, negative or very large values"):
        read_all(list_pieces(source))


def test_folders_named_like_months_tell_them(tmp_path: Path) -> None:
    """Rows of each file are found by the month of its folder, as by that of its name."""
    for number, folder in enumerate(("0001-02", "year=1/month=3", "year=1/month=4")):
        (tmp_path / folder).mkdir(parents=True)
        write(tmp_path / folder / "part-0.parquet", competition_table(values(2 + number, number)))
    for number, month in enumerate((FIRST_MONTH, MARCH, MARCH + 1)):
        matrix, _, row = read_all(list_pieces(str(tmp_path), Selection(start=month, stop=month + 1)), kind="low-res")
        np.testing.assert_array_equal(matrix, values(2 + number, number))
        assert (row < 0).all()
    assert survey(str(tmp_path)).months == [FIRST_MONTH, MARCH, MARCH + 1]
    with pytest.raises(UserError, match=r"part-0\.parquet: a stride needs the step"):
        list_pieces(str(tmp_path), Selection(stride=7))


def test_another_name_of_the_folder_that_tells_the_month_is_another_source(tmp_path: Path) -> None:
    prints = set()
    for name in ("0001-02", "0001-03"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "part-0.parquet", competition_table(values(2)))
        prints.add(survey(str(tmp_path / name)).fingerprint())
    assert len(prints) == 2


@pytest.mark.parametrize("name", ["part-0.parquet", "rows.csv", "train_0.parquet", "my_train.csv"])
def test_other_peoples_ids_tell_no_month(tmp_path: Path, name: str) -> None:
    source = write(tmp_path / name, competition_table(values(3)))
    _, ids, row = read_all(list_pieces(source), kind="low-res")
    assert ids == ["train_0", "train_1", "train_2"]
    assert (row < 0).all()
    assert len(set(row)) == 3
    for selection in (Selection(start=FIRST_MONTH), Selection(stride=7)):
        with pytest.raises(UserError, match=rf"{name}: its months cannot be told"):
            list_pieces(source, selection)


@pytest.mark.parametrize("name", ["train.csv", "train.parquet", "leap-atmospheric-physics-ai-climsim/part-3.parquet"])
def test_the_competitions_own_names_make_its_ids_tell_steps(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    write(tmp_path / name, competition_table(values(2), first=384))
    for source in (tmp_path, tmp_path / name):
        np.testing.assert_array_equal(row_place(read_all(list_pieces(str(source), Selection(stride=7)))[2])[1], [7, 7])


def test_as_many_rows_as_the_competition_has_make_its_ids_tell_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leapray.data.flat.listing.COMPETITION_ROWS", 5)
    for name, first, rows in (("a", 0, 3), ("b", 3, 2)):
        write(tmp_path / f"{name}.parquet", competition_table(values(rows), first))
    np.testing.assert_array_equal(row_place(read_all(list_pieces(str(tmp_path), Selection(start=FIRST_MONTH)))[2])[1], [0] * 5)
    with pytest.raises(UserError, match="its months cannot be told"):
        list_pieces(str(tmp_path / "a.parquet"), Selection(start=FIRST_MONTH))


def test_an_id_beyond_the_competitions_rows_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "train.parquet", competition_table(values(2), first=10_091_519))
    with pytest.raises(UserError, match=r"train\.parquet: holds sample_id train_10091520, and the competition has 10091520 rows"):
        read_all(list_pieces(source))
