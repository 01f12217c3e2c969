from itertools import pairwise

import numpy as np
import pytest
from sklearn.metrics import r2_score

from leapray.errors import UserError
from leapray.evaluation import tables
from leapray.inference.submission import score_files
from tests.columns import SCORED, TARGETS
from tests.target_tables import write_targets

ROWS = 25
RNG = np.random.default_rng(0)
TRUTH = RNG.normal(size=(ROWS, TARGETS.width)) * 10.0 ** RNG.uniform(-51, 3, TARGETS.width)
PREDICTION = TRUTH + RNG.uniform(0, 1, TARGETS.width) * TRUTH.std(axis=0) * RNG.normal(size=TRUTH.shape)
IDS = [f"test_{row}" for row in range(ROWS)]
EXPECTED = r2_score(TRUTH * SCORED, PREDICTION * SCORED, multioutput="raw_values")


@pytest.fixture
def truth(tmp_path):
    return write_targets(tmp_path / "truth.parquet", IDS, TRUTH)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("order", [np.arange(ROWS), np.random.default_rng(1).permutation(ROWS)], ids=["same order", "shuffled"])
def test_rows_are_matched_by_id(tmp_path, monkeypatch, truth, suffix, order):
    monkeypatch.setattr(tables, "ROWS", 7)
    url = write_targets(tmp_path / f"p{suffix}", [IDS[row] for row in order], PREDICTION[order])
    score = score_files(url, truth)
    assert score.rows == ROWS
    np.testing.assert_allclose(score.r2, EXPECTED, rtol=1e-10, atol=1e-10)


def test_files_cut_elsewhere_are_streamed_in_step(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROWS", 4)
    for name, matrix, edges in (("p", PREDICTION, [0, 3, 11, 25]), ("t", TRUTH, [0, 10, 25])):
        (tmp_path / name).mkdir()
        for number, (start, stop) in enumerate(pairwise(edges)):
            write_targets(tmp_path / name / f"{number}.parquet", IDS[start:stop], matrix[start:stop])
    np.testing.assert_allclose(score_files(str(tmp_path / "p"), str(tmp_path / "t")).r2, EXPECTED, rtol=1e-10, atol=1e-10)


def test_a_weighted_submission_scores_as_its_physical_predictions(tmp_path, truth):
    weights = SCORED / np.maximum(TRUTH.std(axis=0), 1e-15)
    weights[TARGETS["ptend_q0002"].start + 12] = 0
    sample = write_targets(tmp_path / "sample.csv", IDS[::-1], np.tile(weights, (ROWS, 1)))
    submission = write_targets(tmp_path / "submission.csv", IDS, PREDICTION * weights)
    score = score_files(submission, truth, sample)
    expected = r2_score(TRUTH * weights, PREDICTION * weights, multioutput="raw_values")
    np.testing.assert_allclose(score.r2, expected, rtol=1e-10, atol=1e-10)
    assert score.r2[TARGETS["ptend_q0002"].start + 12] == 1


def test_ids_that_differ_are_counted(tmp_path, truth):
    url = write_targets(tmp_path / "p.parquet", [*IDS[:-2], "other"], PREDICTION[1:])
    with pytest.raises(UserError) as error:
        score_files(url, truth)
    assert "1 of 24 ids of" in str(error.value)
    assert "(other)" in str(error.value)
    assert "2 of 25 ids of" in str(error.value)
    assert "(test_23, test_24)" in str(error.value)


def test_a_prediction_that_is_not_finite_is_refused(tmp_path, truth):
    bad = PREDICTION.copy()
    bad[3, 1], bad[4, 2], bad[4, 3] = np.nan, np.inf, np.nan
    with pytest.raises(
        UserError, match=rf"p\.parquet: {TARGETS.columns[1]} of {IDS[3]} is nan, expected finite numbers \(and 1 more of these rows"
    ):
        score_files(write_targets(tmp_path / "p.parquet", IDS, bad), truth)


def test_no_rows_are_refused(tmp_path):
    empty = write_targets(tmp_path / "t.parquet", [], TRUTH[:0])
    with pytest.raises(UserError, match="no rows to score"):
        score_files(empty, empty)


def test_a_learned_column_without_weight_neither_gains_nor_costs_skill(tmp_path, truth):
    weights = SCORED.astype(float)
    column = TARGETS["cam_out_FLWDS"].start
    weights[column] = 0
    sample = write_targets(tmp_path / "sample.csv", IDS, np.tile(weights, (ROWS, 1)))
    score = score_files(write_targets(tmp_path / "s.csv", IDS, PREDICTION * weights), truth, sample)
    assert (score.skill_by_column[column], score.attainable_by_column[column]) == (0, 0)
