import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leapray.climsim.netcdf import Snapshot
from leapray.data.flat import survey, to_table
from leapray.errors import UserError
from leapray.evaluation import tables
from tests.columns import TARGETS
from tests.samples import random_rows
from tests.target_tables import write_targets

IDS = ["a", "b", "c"]
VALUES = np.random.default_rng(0).normal(size=(3, TARGETS.width)) * 10.0 ** np.random.default_rng(1).uniform(-51, 3, TARGETS.width)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_columns_are_found_by_name_and_keep_every_bit(tmp_path, suffix):
    order = np.random.default_rng(2).permutation(TARGETS.width)
    columns = [*(TARGETS.columns[c] for c in order), "state_t_0"]
    values = np.column_stack([VALUES[:, order], np.zeros(3)])
    url = write_targets(tmp_path / f"t{suffix}", IDS, values, columns)
    assert tables.columns(url) == ["sample_id", *columns]
    assert tables.read_ids(url).to_pylist() == IDS
    np.testing.assert_array_equal(np.concatenate(list(tables.read_targets(url, TARGETS))), VALUES)


def test_a_source_may_be_a_directory_or_a_list(tmp_path):
    first = write_targets(tmp_path / "1.parquet", IDS[:2], VALUES[:2])
    second = write_targets(tmp_path / "2.csv", IDS[2:], VALUES[2:])
    for source in (str(tmp_path), [first, second]):
        assert tables.read_ids(source).to_pylist() == IDS
        np.testing.assert_array_equal(tables.gather(source, TARGETS, np.arange(3), 3), VALUES)


def test_rows_are_put_where_they_belong(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROWS", 2)
    url = write_targets(tmp_path / "t.parquet", IDS, VALUES)
    places = tables.locate(tables.read_ids(url), pa.chunked_array([["c"], ["a"]]))
    assert places.tolist() == [1, -1, 0]
    np.testing.assert_array_equal(tables.gather(url, TARGETS, places, 2), VALUES[[2, 0]])


def test_numbers_of_other_types_are_taken_and_nulls_are_nan(tmp_path):
    values = [pa.array([1, None, 3], pa.int64()), *(pa.array([0.5, 1.5, 2.5], pa.float32()) for _ in TARGETS.columns[1:])]
    pq.write_table(pa.table([pa.array([7, 8, 9]), *values], names=["sample_id", *TARGETS.columns]), tmp_path / "t.parquet")
    read = np.concatenate(list(tables.read_targets(str(tmp_path / "t.parquet"), TARGETS)))
    np.testing.assert_array_equal(read[:, 0], [1, np.nan, 3])
    np.testing.assert_array_equal(read[:, 367], [0.5, 1.5, 2.5])
    assert tables.read_ids(str(tmp_path / "t.parquet")).to_pylist() == ["7", "8", "9"]


def test_an_empty_csv_field_is_nan(tmp_path):
    (tmp_path / "t.csv").write_text(",".join(["sample_id", *TARGETS.columns]) + "\n" + ",".join(["a", "", *["1"] * 367]) + "\n")
    assert np.isnan(next(tables.read_targets(str(tmp_path / "t.csv"), TARGETS))[0, 0])


def test_a_table_without_rows_is_empty(tmp_path):
    (tmp_path / "t.csv").write_text(",".join(["sample_id", *TARGETS.columns]) + "\n")
    write_targets(tmp_path / "t.parquet", [], VALUES[:0])
    assert len(tables.read_ids(str(tmp_path))) == 0
    assert sum(map(len, tables.read_targets(str(tmp_path), TARGETS))) == 0


def bad_csv(path):
    row = ",".join(["a", "1", "1", "oops", *["1"] * 365])
    path.write_text(",".join(["sample_id", *TARGETS.columns]) + f"\n{row}\n")
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: d / "absent.csv", ["absent.csv", "no .parquet or .csv file there"]),
        (
            lambda d: write_targets(d / "t.csv", IDS, VALUES[:, :-2], TARGETS.columns[:-2]),
            ["t.csv", "lacks column cam_out_SOLSD, cam_out_SOLLD, expected"],
        ),
        (lambda d: write_targets(d / "t.parquet", IDS, VALUES[:, 5:], TARGETS.columns[5:]), ["ptend_t_0, ptend_t_1, ptend_t_2 and 2 more"]),
        (lambda d: bad_csv(d / "t.csv"), ["t.csv", "column ptend_t_2:", "oops"]),
        (lambda d: (d / "t.parquet").write_bytes(b"PAR1 cut") and d / "t.parquet", ["t.parquet", "cannot be read as parquet"]),
        (lambda d: (d / "t.csv").write_bytes(b"\xff\xfe\x00bad") and d / "t.csv", ["t.csv", "cannot be read as csv"]),
    ],
)
def test_a_bad_table_is_refused_by_name(tmp_path, make, words):
    with pytest.raises(UserError) as error:
        list(tables.read_targets(str(make(tmp_path)), TARGETS))
    assert all(word in str(error.value) for word in words), error.value


def test_text_where_numbers_belong_is_refused(tmp_path):
    columns = [pa.array(["x"]), *(pa.array([1.0]) for _ in TARGETS.columns[1:])]
    pq.write_table(pa.table([pa.array(["a"]), *columns], names=["sample_id", *TARGETS.columns]), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="column ptend_t_0 is of type string; expected numbers"):
        list(tables.read_targets(str(tmp_path), TARGETS))


def test_an_id_that_stands_twice_is_named(tmp_path):
    write_targets(tmp_path / "1.parquet", ["a", "b"], VALUES[:2])
    write_targets(tmp_path / "2.parquet", ["b"], VALUES[2:])
    with pytest.raises(UserError, match="sample_id must be unique, and b stands there more than once"):
        tables.read_ids(str(tmp_path))


@pytest.mark.parametrize("spelt", ["flat", "_x/../flat"])
def test_what_lies_below_an_underscore_is_no_part_of_either_listing(tmp_path, spelt):
    for folder in ("flat", "flat/_members/a", "_x"):
        (tmp_path / folder).mkdir(parents=True)
    table = to_table(Snapshot("low-res", 0, random_rows(3)))
    pq.write_table(table, tmp_path / "flat" / "a.parquet")
    pq.write_table(table, tmp_path / "flat" / "_members" / "a" / "b.parquet")
    source, expected = f"{tmp_path}/{spelt}", [str(tmp_path / "flat" / "a.parquet")]
    assert tables.files(source) == expected
    assert survey(source).paths == expected
