import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import r2_score

from leapray.errors import UserError
from leapray.evaluation.sample import read_sample
from leapray.evaluation.tables import read_ids, read_targets
from leapray.inference import submission
from leapray.inference.submission import score_files, submit, write_submission
from tests.columns import SCORED, TARGETS
from tests.target_tables import write_targets

ROWS = 9
RNG = np.random.default_rng(0)
PHYSICAL = RNG.normal(size=(ROWS, TARGETS.width)) * 10.0 ** RNG.uniform(-51, 3, TARGETS.width)
IDS = [f"test_{row}" for row in range(ROWS)]
ASKED = [IDS[row] for row in RNG.permutation(ROWS)]
COLUMNS = [TARGETS.columns[c] for c in RNG.permutation(TARGETS.width)]
ZERO_OR_ONE = SCORED.astype(np.int64)
INVERSE_STD = np.where(SCORED, 10.0 ** RNG.uniform(-3, 15, TARGETS.width), 0)


def write_sample(path, weights: np.ndarray = ZERO_OR_ONE, columns=COLUMNS, ids=ASKED) -> str:
    by_name = dict(zip(TARGETS.columns, weights, strict=True))
    return write_targets(path, ids, np.tile([by_name.get(name, 1) for name in columns], (len(ids), 1)), columns)


@pytest.fixture
def predictions(tmp_path):
    """Two files, of which the second also holds an id that no sample asks for."""
    (tmp_path / "predictions").mkdir()
    write_targets(tmp_path / "predictions" / "0.parquet", IDS[:4], PHYSICAL[:4])
    write_targets(tmp_path / "predictions" / "1.parquet", [*IDS[4:], "more"], np.vstack([PHYSICAL[4:], PHYSICAL[:1]]))
    return str(tmp_path / "predictions")


@pytest.mark.parametrize("weights", [ZERO_OR_ONE, INVERSE_STD], ids=["0 or 1", "1/std"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_submission_has_the_samples_order_and_weights_to_the_last_bit(tmp_path, monkeypatch, predictions, weights, suffix):
    monkeypatch.setattr(submission, "ROWS", 4)
    destination = str(tmp_path / f"submission{suffix}")
    assert write_submission(predictions, write_sample(tmp_path / "sample.csv", weights), destination) == ROWS
    ids, values = read_ids(destination).to_pylist(), np.concatenate(list(read_targets(destination, TARGETS)))
    assert ids == ASKED
    np.testing.assert_array_equal(values, PHYSICAL[[IDS.index(i) for i in ASKED]] * weights)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_predictions_in_the_samples_order_are_streamed_to_the_same_file(tmp_path, monkeypatch, predictions, suffix):
    write_targets(tmp_path / "predictions" / "1.parquet", IDS[4:], PHYSICAL[4:])
    sample = write_sample(tmp_path / "sample.csv", INVERSE_STD, ids=IDS)
    held = str(tmp_path / f"held{suffix}")
    write_submission([f"{predictions}/1.parquet", f"{predictions}/0.parquet"], sample, held)
    monkeypatch.setattr(submission, "gather", lambda *_: pytest.fail("held in memory"))
    streamed = str(tmp_path / f"streamed{suffix}")
    assert write_submission(predictions, sample, streamed) == ROWS
    assert read_ids(streamed).to_pylist() == read_ids(held).to_pylist() == IDS
    values = [np.concatenate(list(read_targets(url, TARGETS))) for url in (streamed, held)]
    np.testing.assert_array_equal(values[0], PHYSICAL * INVERSE_STD)
    np.testing.assert_array_equal(values[0], values[1])


def test_the_csv_is_plain_to_any_reader(tmp_path, predictions):
    write_submission(predictions, write_sample(tmp_path / "sample.parquet", INVERSE_STD), str(tmp_path / "s.csv"))
    with open(tmp_path / "s.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["sample_id", *COLUMNS]
    weights = dict(zip(TARGETS.columns, INVERSE_STD, strict=True))
    for row in rows:
        expected = PHYSICAL[IDS.index(row[0])]
        assert [float(text) for text in row[1:]] == [expected[TARGETS.columns.index(name)] * weights[name] for name in COLUMNS]
    assert (tmp_path / "s.csv").read_text().startswith(f"sample_id,{COLUMNS[0]},")


def test_a_submission_scores_as_its_predictions(tmp_path, predictions):
    truth = write_targets(tmp_path / "truth.parquet", IDS, PHYSICAL * RNG.uniform(0.5, 1.5, PHYSICAL.shape))
    sample = write_sample(tmp_path / "sample.csv")
    write_submission(predictions, sample, str(tmp_path / "s.csv"))
    plain = write_targets(tmp_path / "plain.parquet", IDS, PHYSICAL)
    np.testing.assert_allclose(score_files(str(tmp_path / "s.csv"), truth, sample).r2, score_files(plain, truth).r2, rtol=1e-12, atol=1e-12)


def test_a_submission_is_scored_where_the_truth_is_known(tmp_path, predictions):
    truth_values = PHYSICAL * RNG.uniform(0.5, 1.5, PHYSICAL.shape)
    truth, sample = write_targets(tmp_path / "truth.parquet", IDS, truth_values), write_sample(tmp_path / "sample.csv")
    assert submit(predictions, sample, str(tmp_path / "s.csv")) == (ROWS, None)
    rows, score = submit(predictions, sample, str(tmp_path / "s.csv"), truth)
    assert (rows, score.rows) == (ROWS, ROWS)
    np.testing.assert_allclose(score.r2[SCORED], r2_score(truth_values, PHYSICAL, multioutput="raw_values")[SCORED], rtol=1e-9, atol=1e-9)
    assert (score.r2[~SCORED] == 1).all()


def test_files_that_are_passed_over_are_named_and_others_are_not(tmp_path, predictions):
    notices: list[str] = []
    sample = write_sample(tmp_path / "sample.csv")
    submit(predictions, sample, str(tmp_path / "s.csv"), notice=notices.append)
    assert notices == []
    for name in ("1.parquet.bak", ".hidden"):
        Path(predictions, name).touch()
    assert submit(predictions, sample, str(tmp_path / "s.csv"), notice=notices.append)[0] == ROWS
    assert [predictions in notice and "1 file: 1.parquet.bak" in notice for notice in notices] == [True]


@pytest.mark.parametrize("kind", ["csv", "csv read again", "parquet"])
def test_an_index_without_a_name_is_no_column_of_a_sample(tmp_path, predictions, kind):
    sample, destination = Path(write_sample(tmp_path / "sample.csv")), tmp_path / "submission.csv"
    frame = pd.read_csv(sample)
    frame.index += 5
    if kind == "parquet":
        sample = sample.with_suffix(".parquet")
        frame.to_parquet(sample)
    else:
        frame.to_csv(sample)
    if kind == "csv read again":
        pd.read_csv(sample).to_csv(sample, index=False)
    write_submission(predictions, write_sample(tmp_path / "plain.csv"), str(tmp_path / "expected.csv"))
    assert write_submission(predictions, str(sample), str(destination)) == ROWS
    assert destination.read_bytes() == (tmp_path / "expected.csv").read_bytes()


def refused(tmp_path, predictions, sample, destination="s.csv") -> str:
    with pytest.raises(UserError) as error:
        write_submission(predictions, sample, str(tmp_path / destination))
    assert not list(tmp_path.glob("*s.csv"))
    return str(error.value)


def test_missing_ids_are_counted_and_named(tmp_path, predictions):
    message = refused(tmp_path, predictions, write_sample(tmp_path / "sample.csv", ids=[*"vwxyz", *IDS]))
    assert "5 of 14 ids of" in message
    assert "v, w, x and 2 more" in message


def test_duplicate_ids_are_refused(tmp_path, predictions):
    assert "test_0 stands there more than once" in refused(tmp_path, predictions, write_sample(tmp_path / "a.csv", ids=[*IDS, IDS[0]]))
    write_targets(tmp_path / "predictions" / "2.parquet", IDS[3:4], PHYSICAL[3:4])
    assert "test_3 stands there more than once" in refused(tmp_path, predictions, write_sample(tmp_path / "b.csv"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_predictions_that_are_not_finite_are_refused(tmp_path, value):
    bad = PHYSICAL.copy()
    bad[5, 7] = bad[5, 9] = value
    message = refused(tmp_path, write_targets(tmp_path / "bad.parquet", IDS, bad), write_sample(tmp_path / "sample.csv"))
    assert f"bad.parquet: ptend_t_7 of test_5 is {value}, expected finite numbers" in message


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ([*COLUMNS, "ptend_w_0"], "holds column ptend_w_0, expected only sample_id"),
        (COLUMNS[:-1], f"lacks column {COLUMNS[-1]}, expected"),
    ],
)
def test_a_sample_of_other_columns_is_refused(tmp_path, predictions, columns, words):
    assert words in refused(tmp_path, predictions, write_sample(tmp_path / "sample.csv", columns=columns))


def test_weights_must_be_one_per_column(tmp_path, predictions):
    values = np.ones((ROWS, TARGETS.width))
    values[6, 2] = 0.5
    assert "weights of column ptend_t_2 differ between rows" in refused(
        tmp_path, predictions, write_targets(tmp_path / "sample.csv", IDS, values)
    )
    negative = write_sample(tmp_path / "negative.csv", -SCORED.astype(float))
    assert "weights are negative" in refused(tmp_path, predictions, negative)
    nothing = write_sample(tmp_path / "nothing.csv", np.zeros(TARGETS.width))
    assert "weights are all 0" in refused(tmp_path, predictions, nothing)
    unknown = write_sample(tmp_path / "unknown.csv", np.where(np.arange(TARGETS.width) == 4, np.nan, 1.0))
    assert f"unknown.csv: {TARGETS.columns[4]} of {ASKED[0]} is nan" in refused(tmp_path, predictions, unknown)


def test_a_truth_of_other_rows_is_told_before_anything_is_written(tmp_path, predictions):
    sample, place = write_sample(tmp_path / "sample.csv"), tmp_path / "submission.csv"
    other = write_targets(tmp_path / "other.parquet", [*IDS[1:], "foreign"], PHYSICAL)
    with pytest.raises(UserError, match=r"1 of 9 ids of .*sample\.csv are not in .*other\.parquet"):
        submit(predictions, sample, str(place), other)
    assert not place.exists()


def test_a_truth_that_cannot_be_scored_against_leaves_the_submission_and_says_so(tmp_path, predictions):
    sample, place = write_sample(tmp_path / "sample.csv"), tmp_path / "submission.csv"
    bad = PHYSICAL.copy()
    bad[2, 3] = np.inf
    with pytest.raises(UserError, match=rf"submission.csv was written, but cannot be scored: .*{TARGETS.columns[3]} of {IDS[2]} is inf"):
        submit(predictions, sample, str(place), write_targets(tmp_path / "truth.parquet", IDS, bad))
    assert len(read_ids(str(place))) == ROWS


def test_a_submission_among_the_predictions_is_refused(tmp_path, predictions):
    message = refused(tmp_path, predictions, write_sample(tmp_path / "sample.csv"), "predictions/submission.csv")
    assert "lies in" in message
    assert "choose a place outside" in message


def test_a_submission_in_the_place_of_its_sample_or_truth_is_refused(tmp_path, predictions):
    sample, truth = write_sample(tmp_path / "sample.csv"), write_targets(tmp_path / "truth.parquet", IDS, PHYSICAL)
    before = [Path(place).read_bytes() for place in (sample, truth)]
    for place in (sample, truth):
        with pytest.raises(UserError, match="is read for it, and would be replaced; choose another place"):
            submit(predictions, sample, place, truth)
    assert [Path(place).read_bytes() for place in (sample, truth)] == before


def test_other_suffixes_and_an_empty_sample_are_refused(tmp_path, predictions):
    sample = write_sample(tmp_path / "sample.csv")
    assert "must end with .csv or .parquet" in refused(tmp_path, predictions, sample, "submission.txt")
    assert "has no rows" in refused(tmp_path, predictions, write_targets(tmp_path / "empty.parquet", [], PHYSICAL[:0]))


def test_a_sample_gives_columns_in_its_order_and_weights_in_the_schemas(tmp_path):
    sample = read_sample(write_sample(tmp_path / "sample.csv", INVERSE_STD), TARGETS)
    assert sample.columns == tuple(COLUMNS)
    assert sample.ids.to_pylist() == ASKED
    np.testing.assert_array_equal(sample.weights, INVERSE_STD)
