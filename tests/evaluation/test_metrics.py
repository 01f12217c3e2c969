from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import r2_score

from leapray.climsim.schema import ABLATED, EXACT, LEARNED, SCORED, TARGETS
from leapray.evaluation.metrics import ErrorMoments, Score


def a_set(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction whose columns span 1e-51 to 1e3, some with a mean far above their spread, some constant."""
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(-51, 3, TARGETS.width)
    offset = rng.choice([0.0, 5.0, 1e4], TARGETS.width)
    truth = (offset + rng.normal(size=(rows, TARGETS.width))) * scale
    prediction = truth + rng.uniform(0, 2, TARGETS.width) * scale * rng.normal(size=truth.shape)
    constant = rng.choice(TARGETS.width, 20, replace=False)
    truth[:, constant] = rng.integers(-3, 4, 20)
    prediction[:, constant[:10]] = truth[:, constant[:10]]
    return truth, prediction


def by_sklearn(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    return r2_score(truth * SCORED, prediction * SCORED, multioutput="raw_values", force_finite=True)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), cuts=st.lists(st.integers(0, 40), max_size=6), order=st.randoms(use_true_random=False))
def test_r2_equals_scikit_learn_for_any_split_and_merge_order(seed, cuts, order):
    truth, prediction = a_set(40, seed)
    edges = [0, *sorted(cuts), 40]
    parts = [ErrorMoments.of(truth[a:b], prediction[a:b]) for a, b in pairwise(edges)]
    order.shuffle(parts)
    merged = ErrorMoments()
    for part in parts:
        merged = merged + ErrorMoments.from_array(part.to_array())
    score = merged.score()
    assert score.rows == 40
    np.testing.assert_allclose(score.r2, by_sklearn(truth, prediction), rtol=1e-10, atol=1e-10)


def test_means_are_over_the_columns_they_name():
    r2 = np.random.default_rng(0).uniform(-1, 1, TARGETS.width)
    r2[ABLATED | EXACT] = 1.0
    score = Score(r2, rows=7)
    learned = [c for c in range(368) if not ABLATED[c] and not EXACT[c]]
    assert len(learned) == 293
    assert score.learned == pytest.approx(sum(r2[learned]) / 293)
    assert score.scored == pytest.approx((sum(r2[learned]) + 15) / 308)
    assert score.all == pytest.approx((60 + 308 * score.scored) / 368)
    assert score.leaderboard == pytest.approx(score.all)
    assert score.summary() == {"learned": score.learned, "scored": score.scored, "all": score.all}


def test_leaderboard_counts_the_columns_that_physics_gives_as_exact():
    score = Score(np.where(LEARNED, 0.5, -3.0), rows=1)
    assert score.leaderboard == pytest.approx((75 + 293 * 0.5) / 368)


def test_by_variable_takes_learned_columns_only():
    r2 = np.where(LEARNED, 0.25, 9.0)
    r2[TARGETS["cam_out_PRECC"]] = 0.75
    means = Score(r2, rows=1).by_variable()
    assert list(means) == [variable.name for variable in TARGETS.variables]
    assert means.pop("cam_out_PRECC") == 0.75
    assert set(means.values()) == {0.25}


def test_ablated_columns_do_not_count_whatever_is_predicted():
    truth, prediction = a_set(10)
    prediction[:, ABLATED] = np.nan
    assert (ErrorMoments.of(truth, prediction).score().r2[ABLATED] == 1).all()


def test_a_constant_truth_scores_1_if_hit_exactly_and_else_0():
    truth = np.full((3, TARGETS.width), 0.1)
    prediction = truth.copy()
    prediction[1, 0] += 1e-12
    score = ErrorMoments.of(truth, prediction).score()
    assert score.r2[0] == 0
    assert (score.r2[1:] == 1).all()


def test_predicting_the_mean_scores_0():
    truth, _ = a_set(50)
    moments = ErrorMoments.of(truth, np.broadcast_to(truth.mean(axis=0), truth.shape))
    varies = SCORED & (truth.min(axis=0) != truth.max(axis=0))
    np.testing.assert_allclose(moments.score().r2[varies], 0, atol=1e-10)


def test_scaling_a_column_leaves_its_r2():
    truth, prediction = a_set(30)
    scale = np.random.default_rng(1).uniform(0.1, 10, TARGETS.width)
    shift = truth.mean(axis=0)
    physical = ErrorMoments.of(truth, prediction).score()
    scaled = ErrorMoments.of((truth - shift) * scale, (prediction - shift) * scale).score()
    np.testing.assert_allclose(scaled.r2, physical.r2, rtol=1e-9, atol=1e-9)


def test_float32_batches_are_accumulated_in_float64():
    truth, prediction = (matrix.astype(np.float32) for matrix in np.random.default_rng(0).normal(size=(2, 100, TARGETS.width)))
    moments = ErrorMoments()
    for start in range(0, 100, 7):
        moments.update(truth[start : start + 7], prediction[start : start + 7])
    expected = by_sklearn(truth.astype(np.float64), prediction.astype(np.float64))
    np.testing.assert_allclose(moments.score().r2, expected, rtol=1e-10)


def test_a_nan_in_a_scored_column_shows_in_its_score():
    truth, prediction = a_set(5)
    prediction[2, 0] = np.nan
    assert np.isnan(ErrorMoments.of(truth, prediction).score().r2[0])


def test_wrong_shapes_and_no_rows_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 10\)"):
        ErrorMoments.of(np.zeros((3, 10)), np.zeros((3, 368)))
    with pytest.raises(ValueError, match="no rows"):
        ErrorMoments().score()
