import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leapray.data.flat import list_pieces, read_piece
from leapray.errors import UserError
from leapray.evaluation import tables
from leapray.evaluation.matching import Matched, match
from leapray.evaluation.tables import Keys, files, read_keys
from tests.columns import TARGETS
from tests.samples import write_flat
from tests.target_tables import write_targets

VALUES = np.random.default_rng(0).normal(size=(6, TARGETS.width))


def keys(ids: list[str], rows: list[int] | None = None, name: str = "truth") -> Keys:
    return Keys(name, pa.chunked_array([ids], pa.string()), None if rows is None else np.array(rows, np.int64))


def test_unique_ids_match_whatever_the_row_keys():
    assert match(keys(["b", "a"], [5, 6]), keys(["a", "b"], [1, 2])).tolist() == [1, 0]


def test_ids_that_begin_anew_are_told_apart_by_row_keys():
    truth = keys(["t_0", "t_1", "t_0"], [-3, -2, -1])
    assert match(keys(["t_0", "t_0", "t_1"], [-1, -3, -2]), truth).tolist() == [2, 0, 1]


def test_ids_of_rows_matched_by_key_must_agree():
    with pytest.raises(UserError, match="predictions: sample_id t_1 has the row key of t_0 in truth"):
        match(keys(["t_0", "t_1"], [1, 2], "predictions"), keys(["t_0", "t_0"], [1, 2]))


def test_a_row_that_stands_twice_is_refused():
    with pytest.raises(UserError, match=r"predictions: a row stands there more than once \(sample_id t_0, t_0\)"):
        match(keys(["t_0", "t_0"], [1, 1], "predictions"), keys(["t_0", "t_0"], [1, 2]))
    with pytest.raises(UserError, match="predictions: sample_id must be unique, and t_0 stands"):
        match(keys(["t_0", "t_0"], None, "predictions"), keys(["t_0", "t_0"], [1, 2]))


@pytest.mark.parametrize("keyed", [False, True])
def test_predictions_of_rows_that_were_not_selected_are_left_out(keyed):
    names = ["t_0", "t_0", "t_1"] if keyed else ["a", "b", "c"]
    truth = keys(names[1:], [2, 3] if keyed else None)
    predicted = keys([names[2], names[0], names[1]], [3, 1, 2] if keyed else None, "p")
    assert match(predicted, truth, lambda: keys(names, [1, 2, 3] if keyed else None)).tolist() == [1, -1, 0]
    with pytest.raises(UserError, match="1 of 3 ids of p are not in truth"):
        match(predicted, truth, lambda: truth)
    with pytest.raises(UserError, match="1 of 2 ids of truth are not in p"):
        match(keys(names[:2], [1, 2] if keyed else None, "p"), truth, lambda: keys(names, [1, 2, 3] if keyed else None))


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 0, 3, 1, 4, 2]])
def test_only_what_was_selected_is_taken_streamed_or_not(tmp_path, order):
    names = list("abcdef")
    write_targets(tmp_path / "p.parquet", [names[row] for row in order], VALUES[order])
    matched = Matched(str(tmp_path), keys(["b", "c", "f"]), TARGETS, lambda: keys(names))
    np.testing.assert_array_equal(np.concatenate([matched.take(2), matched.take(1)]), VALUES[[1, 2, 5]])


def test_rows_that_are_missing_or_unknown_are_counted():
    with pytest.raises(UserError, match=r"row must be .*1 of 2 ids of p are not in truth \(t_0\); 2 of 3 ids of truth are not in p"):
        match(keys(["t_0", "t_0"], [1, 9], "p"), keys(["t_0", "t_0", "t_1"], [1, 2, 3]))


@settings(max_examples=8, deadline=None)
@given(order=st.permutations(range(6)), takes=st.lists(st.integers(0, 3), max_size=5), keyed=st.booleans(), cut=st.integers(0, 6))
def test_predictions_come_in_the_truth_s_order_in_pieces_of_any_size(tmp_path_factory, order, takes, keyed, cut):
    folder = tmp_path_factory.mktemp("p")
    ids = ["a", "b", "a", "b", "a", "b"] if keyed else list("abcdef")
    for number, rows in enumerate((order[:cut], order[cut:])):
        table = pa.table({"sample_id": [ids[row] for row in rows]} | dict(zip(TARGETS.columns, VALUES[rows].T, strict=True)))
        if keyed:
            table = table.append_column("row", pa.array(rows, pa.int64()))
        pq.write_table(table, folder / f"{number}.parquet")
    matched = Matched(str(folder), keys(ids, list(range(6)) if keyed else None), TARGETS)
    left = [*takes, 6 - sum(takes)] if sum(takes) <= 6 else [6]
    np.testing.assert_array_equal(np.concatenate([matched.take(rows) for rows in left]), VALUES)


def test_keys_are_those_of_the_column_row_where_every_file_has_it(tmp_path):
    for name, row in (("1", [3, 1]), ("2", [2, 7])):
        pq.write_table(pa.table({"sample_id": ["a", "b"], "row": pa.array(row, pa.int64())}), tmp_path / f"{name}.parquet")
    found = read_keys(str(tmp_path))
    assert found.ids.to_pylist() == ["a", "b", "a", "b"]
    assert found.rows.tolist() == [3, 1, 2, 7]
    assert not found.unique
    write_targets(tmp_path / "3.csv", ["c"], VALUES[:1])
    assert read_keys(str(tmp_path)).rows is None


def test_what_begins_with_an_underscore_below_a_source_is_no_part_of_it(tmp_path):
    inner = tmp_path / "_members" / "a"
    inner.mkdir(parents=True)
    own = write_targets(tmp_path / "part-0.parquet", ["a"], VALUES[:1])
    write_targets(tmp_path / "_hidden.parquet", ["a"], VALUES[:1])
    members = write_targets(inner / "part-0.parquet", ["a"], VALUES[:1])
    assert files(str(tmp_path)) == [own]
    assert files(str(inner)) == [members]
    assert files(f"{inner}/") == [members]
    assert files(members) == [members]
    assert tables.read_ids(str(tmp_path)).to_pylist() == ["a"]


def test_the_same_ids_of_other_months_are_other_rows(tmp_path):
    """Months that pandas wrote one by one all begin with train_0."""
    write_flat(tmp_path / "flat", start="0001-02", stop="0001-04")
    for path in (tmp_path / "flat").glob("*.parquet"):
        table = pq.read_table(path).drop_columns(["kind", "step", "ncol"])
        ids = pa.array([f"train_{row}" for row in range(len(table))])
        pq.write_table(table.set_column(table.schema.get_field_index("sample_id"), "sample_id", ids), path)

    def month(number: int, name: str) -> Keys:
        (path,) = (tmp_path / "flat").glob(f"*0001-{number:02d}*.parquet")
        (piece,) = list_pieces(str(path))
        return keys([f"train_{row}" for row in range(piece.rows)], next(read_piece(piece)).row.tolist(), name)

    february, march = month(2, "predictions"), month(3, "truth")
    assert match(february, month(2, "truth")).tolist() == list(range(len(february.ids)))
    with pytest.raises(UserError, match="predictions: train_0 is a row of 0001-02, but of 0001-03 in truth; these are other rows"):
        match(february, march)
    # where one side tells no month nothing is known against it
    unknown = keys(march.ids.to_pylist(), (-1 - np.arange(len(march.ids))).tolist())
    assert match(february, unknown).tolist() == list(range(len(february.ids)))
