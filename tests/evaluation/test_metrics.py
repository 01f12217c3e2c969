from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import r2_score

from leapray.climsim.grid import figures
from leapray.errors import UserError
from leapray.evaluation.metrics import ByColumn, ErrorMoments, Score, TargetStatistics
from tests.columns import ABLATED, EXACT, LEARNED, SCORED, TARGETS
from tests.target_statistics import UNIT


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
    parts = [ErrorMoments.of(TARGETS, truth[a:b], prediction[a:b]) for a, b in pairwise(edges)]
    order.shuffle(parts)
    merged = ErrorMoments.empty(TARGETS)
    for part in parts:
        merged = merged + ErrorMoments.from_array(TARGETS, part.to_array())
    score = merged.score(UNIT)
    assert score.rows == 40
    np.testing.assert_allclose(score.r2, by_sklearn(truth, prediction), rtol=1e-10, atol=1e-10)


def score_of(r2: np.ndarray, skill: np.ndarray | None = None, varies: np.ndarray | None = None, rows: int = 7) -> Score:
    skill = r2 if skill is None else skill
    varies = np.ones(TARGETS.width, bool) if varies is None else varies
    return Score(ByColumn(skill, np.full(TARGETS.width, 0.8), r2, varies), rows, UNIT)


def test_means_are_over_the_columns_they_name():
    r2, skill = np.random.default_rng(0).uniform(-1, 1, (2, TARGETS.width))
    r2[ABLATED | EXACT] = 1.0
    varies = np.random.default_rng(1).random(TARGETS.width) < 0.9
    score = score_of(r2, skill, varies)
    learned = [c for c in range(368) if not ABLATED[c] and not EXACT[c]]
    assert len(learned) == 293
    assert score.skill == pytest.approx(sum(skill[learned]) / 293)
    assert score.attainable == pytest.approx(0.8)
    assert score.learned == pytest.approx(sum(r2[learned]) / 293)
    assert score.scored == pytest.approx((sum(r2[learned]) + 15) / 308)
    assert score.all == pytest.approx((60 + 308 * score.scored) / 368)
    assert score.leaderboard == pytest.approx(score.all)
    assert score.r2_varying == pytest.approx(np.mean([r2[c] for c in learned if varies[c]]))
    assert score.r2_median == pytest.approx(np.median(r2[learned]))
    assert score.below_zero == sum(r2[c] < 0 for c in learned)
    silent = sorted((c for c in learned if not varies[c]), key=lambda c: r2[c])
    assert score.silent == [TARGETS.columns[c] for c in silent]
    assert (score.chosen("skill"), score.chosen("r2")) == (score.skill, score.learned)
    assert score.summary()["r2_silent"] == len(silent)


def test_leaderboard_counts_the_columns_that_physics_gives_as_exact():
    assert score_of(np.where(LEARNED, 0.5, -3.0)).leaderboard == pytest.approx((75 + 293 * 0.5) / 368)


def test_by_variable_takes_learned_columns_only():
    r2 = np.where(LEARNED, 0.25, 9.0)
    r2[TARGETS["cam_out_PRECC"]] = 0.75
    for means in (score_of(r2).by_variable(), score_of(-r2, r2).skill_by_variable()):
        assert list(means) == [variable.name for variable in TARGETS.variables]
        assert means.pop("cam_out_PRECC") == 0.75
        assert set(means.values()) == {0.25}


def skill_by_hand(y: np.ndarray, f: np.ndarray, mean: float, variance: float) -> float:
    """(MSE of the training mean - MSE) / max(variance in these rows, variance in the training rows), not below -1."""
    of_mean, of_prediction = np.mean((y - mean) ** 2), np.mean((y - f) ** 2)
    return max((of_mean - of_prediction) / max(np.var(y), variance), -1.0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), cut=st.integers(1, 39))
def test_skill_is_its_definition_for_any_split(seed, cut):
    truth, prediction = a_set(40, seed)
    rng = np.random.default_rng(seed + 1)
    spread = truth.std(axis=0) + 1e-60
    mean = truth.mean(axis=0) + rng.normal(size=TARGETS.width) * spread
    known = TargetStatistics(TARGETS, mean, np.square(spread * 10.0 ** rng.uniform(-3, 3)), "")
    parts = [ErrorMoments.of(TARGETS, truth[rows], prediction[rows]) for rows in (slice(cut), slice(cut, None))]
    score = (parts[0] + parts[1]).score(known)
    expected = [skill_by_hand(truth[:, c], prediction[:, c], known.mean[c], known.variance[c]) for c in range(TARGETS.width)]
    perfect = [skill_by_hand(truth[:, c], truth[:, c], known.mean[c], known.variance[c]) for c in range(TARGETS.width)]
    np.testing.assert_allclose(score.skill_by_column[SCORED], np.array(expected)[SCORED], rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(score.attainable_by_column[SCORED], np.array(perfect)[SCORED], rtol=1e-8, atol=1e-8)


def test_the_training_mean_has_no_skill_and_perfection_has_what_is_attainable():
    truth, _ = a_set(50)
    known = TargetStatistics(TARGETS, truth.mean(axis=0) * 1.1, 2 * truth.var(axis=0), "")
    mean = ErrorMoments.of(TARGETS, truth, np.broadcast_to(known.mean, truth.shape)).score(known)
    np.testing.assert_allclose(mean.skill_by_column[SCORED], 0, atol=1e-7)
    perfect = ErrorMoments.of(TARGETS, truth, truth).score(known)
    assert perfect.skill == pytest.approx(perfect.attainable)


def test_a_silent_column_ruins_r2_and_hardly_touches_skill():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(200, TARGETS.width))
    truth[:, 0] *= 1e-10
    prediction = truth + 0.1 * rng.normal(size=truth.shape)
    score = ErrorMoments.of(TARGETS, truth, prediction).score(UNIT)
    assert score.silent == ["ptend_t_0"]
    assert score.learned < -1e10
    assert score.r2_varying > 0.98
    # nothing to gain, and a hundredth of a training variance lost
    assert -0.02 < score.skill_by_column[0] < 0
    assert score.skill == pytest.approx(0.99 * 292 / 293, abs=0.05)
    assert score.attainable - score.skill == pytest.approx(0.01, abs=0.002)


def test_no_column_has_a_skill_below_minus_1():
    truth, _ = a_set(20)
    assert ErrorMoments.of(TARGETS, truth, truth + 1e60).score(UNIT).skill == -1


def test_a_column_that_is_constant_in_training_and_here_offers_nothing():
    truth = np.full((4, TARGETS.width), 0.5)
    known = TargetStatistics(TARGETS, np.full(TARGETS.width, 0.5), np.zeros(TARGETS.width), "")
    prediction = truth.copy()
    prediction[:, 0] += 1e-9
    score = ErrorMoments.of(TARGETS, truth, prediction).score(known)
    assert (score.skill_by_column[0], score.attainable) == (-1, 0)
    assert (score.skill_by_column[1:] == 0).all()


def test_statistics_of_the_competition_are_those_of_its_training_set():
    known = TargetStatistics.of_competition()
    # 1 / weight of the competition's sample submission of before, a standard deviation of the training set
    std = dict(zip(figures("low_res_columns")["column"], figures("low_res_columns")["std"], strict=True))
    expected = np.array([float(std[column]) for column in TARGETS.columns])
    loud = LEARNED & (expected > 1e-14)
    np.testing.assert_allclose(np.sqrt(known.variance[loud]), expected[loud], rtol=0.01)
    assert (known.variance[LEARNED] > 0).all()
    assert TargetStatistics.from_dict(known.to_dict(), TARGETS, "x").origin == known.origin
    with pytest.raises(UserError, match=r"^here: "):
        TargetStatistics.from_dict({"mean": [1.0], "variance": [1.0], "origin": "x"}, TARGETS, "here")


def test_ablated_columns_do_not_count_whatever_is_predicted():
    truth, prediction = a_set(10)
    prediction[:, ABLATED] = np.nan
    assert (ErrorMoments.of(TARGETS, truth, prediction).score(UNIT).r2[ABLATED] == 1).all()


def test_a_constant_truth_scores_1_if_hit_exactly_and_else_0():
    truth = np.full((3, TARGETS.width), 0.1)
    prediction = truth.copy()
    prediction[1, 0] += 1e-12
    score = ErrorMoments.of(TARGETS, truth, prediction).score(UNIT)
    assert score.r2[0] == 0
    assert (score.r2[1:] == 1).all()


def test_predicting_the_mean_scores_0():
    truth, _ = a_set(50)
    moments = ErrorMoments.of(TARGETS, truth, np.broadcast_to(truth.mean(axis=0), truth.shape))
    varies = SCORED & (truth.min(axis=0) != truth.max(axis=0))
    np.testing.assert_allclose(moments.score(UNIT).r2[varies], 0, atol=1e-10)


def test_scaling_a_column_leaves_its_r2():
    truth, prediction = a_set(30)
    scale = np.random.default_rng(1).uniform(0.1, 10, TARGETS.width)
    shift = truth.mean(axis=0)
    physical = ErrorMoments.of(TARGETS, truth, prediction).score(UNIT)
    scaled = ErrorMoments.of(TARGETS, (truth - shift) * scale, (prediction - shift) * scale).score(UNIT)
    np.testing.assert_allclose(scaled.r2, physical.r2, rtol=1e-9, atol=1e-9)


def test_float32_batches_are_accumulated_in_float64():
    truth, prediction = (matrix.astype(np.float32) for matrix in np.random.default_rng(0).normal(size=(2, 100, TARGETS.width)))
    moments = ErrorMoments.empty(TARGETS)
    for start in range(0, 100, 7):
        moments.update(truth[start : start + 7], prediction[start : start + 7])
    expected = by_sklearn(truth.astype(np.float64), prediction.astype(np.float64))
    np.testing.assert_allclose(moments.score(UNIT).r2, expected, rtol=1e-10)


def test_a_nan_in_a_scored_column_shows_in_its_score():
    truth, prediction = a_set(5)
    prediction[2, 0] = np.nan
    assert np.isnan(ErrorMoments.of(TARGETS, truth, prediction).score(UNIT).r2[0])


def test_wrong_shapes_and_no_rows_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 10\)"):
        ErrorMoments.of(TARGETS, np.zeros((3, 10)), np.zeros((3, 368)))
    with pytest.raises(ValueError, match="no rows"):
        ErrorMoments.empty(TARGETS).score(UNIT)
