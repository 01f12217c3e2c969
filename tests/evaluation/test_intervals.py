from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import r2_score

from leapray.climsim.calendar import Month
from leapray.evaluation import intervals
from leapray.evaluation.intervals import TimedMoments, difference, interval, time_blocks
from leapray.evaluation.metrics import ErrorMoments, TargetStatistics
from tests.columns import LEARNED, SCORED, TARGETS
from tests.target_statistics import UNIT, statistics_of

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


def rows_of_days(days: int, seed: int = 0, each: int = 6) -> Rows:
    """Blocks, truth and prediction of days whose weather and errors differ, in columns that span 1e-40 to 1e3, some constant by day."""
    rng = np.random.default_rng(seed)
    blocks = np.repeat(np.arange(days) * 3 - 5, each)
    scale, offset = 10.0 ** rng.uniform(-40, 3, TARGETS.width), rng.choice([0.0, 5.0, 1e4], TARGETS.width)
    weather = np.repeat(rng.normal(size=(days, TARGETS.width)), each, axis=0)
    truth = (offset + weather + rng.normal(size=weather.shape)) * scale
    error = np.repeat(rng.uniform(0.2, 1.5, (days, 1)), each, axis=0) * scale * rng.normal(size=truth.shape)
    constant, by_day = np.flatnonzero(LEARNED)[:4], np.flatnonzero(LEARNED)[4:8]
    truth[:, constant] = 0.5
    truth[: 2 * each, by_day] = 0.5
    prediction = truth + error
    prediction[:, constant[:2]] = truth[:, constant[:2]]
    return blocks, truth, prediction


def timed(rows: Rows, statistics: TargetStatistics | None = None) -> TimedMoments:
    moments = TimedMoments(statistics or statistics_of(rows[1]))
    moments.update(*rows)
    return moments


def by_sklearn(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    return r2_score(truth * SCORED, prediction * SCORED, multioutput="raw_values", force_finite=True)


def test_rows_of_one_model_day_are_one_block() -> None:
    start = Month(3, 7).first_step
    days = time_blocks(np.arange(start, start + Month(3, 7).steps))
    assert days.dtype == np.int64
    assert np.unique(days, return_counts=True)[1].tolist() == [72] * 31
    assert days[0] * 72 == start


def test_the_score_over_all_blocks_is_that_of_the_rows() -> None:
    blocks, truth, prediction = rows_of_days(7)
    score = timed((blocks, truth, prediction)).score()
    assert score.rows == len(truth)
    np.testing.assert_allclose(score.r2, ErrorMoments.of(TARGETS, truth, prediction).score(UNIT).r2, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(score.r2, by_sklearn(truth, prediction), rtol=1e-9, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), cuts=st.lists(st.integers(0, 24), max_size=5), order=st.randoms(use_true_random=False))
def test_parts_merge_in_any_order_and_through_arrays(seed, cuts, order) -> None:
    rows = rows_of_days(6, seed, each=4)
    shuffled = np.random.default_rng(seed).permutation(24)
    edges = [0, *sorted(cuts), 24]
    parts = [timed(tuple(array[shuffled[a:b]] for array in rows), statistics_of(rows[1])) for a, b in pairwise(edges)]
    order.shuffle(parts)
    merged = sum((TimedMoments.from_arrays(part.to_arrays()) for part in parts), TimedMoments(timed(rows).statistics))
    whole = timed(rows)
    assert merged.blocks.keys() == whole.blocks.keys()
    np.testing.assert_allclose(merged.score().r2, whole.score().r2, rtol=1e-9, atol=1e-9)
    for block, moments in merged.blocks.items():
        np.testing.assert_allclose(moments.to_array(), whole.blocks[block].to_array(), rtol=1e-9, atol=1e-300)


def test_adding_changes_neither_part() -> None:
    first, second = timed(rows_of_days(3)), timed(rows_of_days(4))
    before = first.to_arrays(), second.to_arrays()
    assert len((first + second).blocks) == 4
    for moments, kept in zip((first, second), before, strict=True):
        assert all((moments.to_arrays()[name] == array).all() for name, array in kept.items())


def test_arrays_are_blocks_in_order_and_their_moments() -> None:
    arrays = timed(rows_of_days(5)).to_arrays()
    assert arrays["blocks"].tolist() == [-5, -2, 1, 4, 7]
    assert arrays["moments"].shape == (5, 6, TARGETS.width)
    assert TimedMoments.from_arrays(TimedMoments(UNIT).to_arrays()).blocks == {}


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), draws=st.lists(st.integers(0, 4), min_size=5, max_size=5).filter(any))
def test_a_resample_scores_as_its_repeated_rows(seed, draws) -> None:
    blocks, truth, prediction = rows_of_days(5, seed)
    drawn = np.concatenate([np.tile(np.flatnonzero(blocks == block), times) for block, times in zip(np.unique(blocks), draws, strict=True)])
    (resampled,) = intervals._resampled(intervals._parts(timed((blocks, truth, prediction))), np.array([draws]))
    score = ErrorMoments.from_array(TARGETS, resampled).score(UNIT)
    assert score.rows == len(drawn)
    np.testing.assert_allclose(score.r2, by_sklearn(truth[drawn], prediction[drawn]), rtol=1e-8, atol=1e-8)


def test_a_column_is_constant_in_a_resample_if_it_is_so_in_the_days_drawn() -> None:
    blocks, truth, prediction = rows_of_days(4)
    # a mean of these is not 0.1 to the last bit, so that only the extremes tell
    truth[:12, 20], truth[12:18, 20] = 0.1, 0.3
    prediction[:, 20] = truth[:, 20]
    prediction[6, 20] += 1e-6
    parts = intervals._parts(timed((blocks, truth, prediction)))
    draws = np.array([[3, 0, 0, 0], [1, 1, 0, 0], [2, 0, 1, 0], [0, 1, 0, 1]])
    r2 = [ErrorMoments.from_array(TARGETS, part).score(UNIT).r2[20] for part in intervals._resampled(parts, draws)]
    assert r2[:3] == [1.0, 0.0, 1.0]
    assert 0.999 < r2[3] < 1.0


def skill_by_hand(truth: np.ndarray, prediction: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """As its definition has it, column by column."""
    found = []
    for c in range(TARGETS.width):
        y, f = truth[:, c], prediction[:, c]
        unit = max(np.var(y), variance[c])
        gained = np.mean((y - mean[c]) ** 2) - np.mean((y - f) ** 2)
        found.append(max(gained / unit, -1.0) if unit > 0 else -float(np.any(y != f)))
    return np.array(found)


def test_resamples_draw_as_many_blocks_as_there_are() -> None:
    blocks, truth, prediction = rows_of_days(5)
    moments = timed((blocks, truth, prediction))
    found = intervals._resampled_scores(moments, resamples=20, seed=3)
    draws = np.random.default_rng(3).multinomial(5, np.full(5, 0.2), size=20)
    assert (draws.sum(axis=1) == 5).all()
    days = [np.flatnonzero(blocks == block) for block in np.unique(blocks)]
    for number, times in enumerate(draws):
        rows = np.concatenate([np.tile(day, repeats) for day, repeats in zip(days, times, strict=True)])
        r2, skill = by_sklearn(truth[rows], prediction[rows]), skill_by_hand(truth[rows], prediction[rows], truth.mean(0), truth.var(0))
        np.testing.assert_allclose(found.r2[number][LEARNED], r2[LEARNED], rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(found.skill[number][LEARNED], skill[LEARNED], rtol=1e-8, atol=1e-8)


def test_chunks_make_no_difference(monkeypatch) -> None:
    moments = timed(rows_of_days(5))
    whole = interval(moments, resamples=50)
    monkeypatch.setattr(intervals, "_CHUNK_NUMBERS", 1)
    alone = interval(moments, resamples=50)
    assert (alone.low, alone.high) == pytest.approx((whole.low, whole.high), rel=1e-12)


def test_an_interval_holds_its_score_and_repeats_with_its_seed() -> None:
    moments = timed(rows_of_days(12))
    found = interval(moments, resamples=100)
    assert found.low < moments.score().skill < found.high
    r2 = interval(moments, "r2", resamples=100)
    assert r2.low < moments.score().learned < r2.high
    assert found == interval(moments, resamples=100)
    assert found != interval(moments, resamples=100, seed=1)
    wider = interval(moments, level=0.99, resamples=100)
    assert wider.low < found.low
    assert wider.high > found.high


def test_an_interval_holds_its_score_where_every_resample_scores_less() -> None:
    # few days of strong weather: a resample has fewer of them, so less variance to explain
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(40, TARGETS.width)) + 3 * np.repeat(rng.normal(size=(5, TARGETS.width)), 8, axis=0)
    moments = timed((np.repeat(np.arange(5), 8), truth, truth + 0.5 * rng.normal(size=truth.shape)))
    score = moments.score().learned
    found = interval(moments, "r2", resamples=100)
    resampled = intervals._resampled_scores(moments, 100, seed=0).r2[:, LEARNED].mean(axis=1)
    assert np.quantile(resampled, 0.975) < score
    assert found.low < score < found.high


@pytest.mark.parametrize("select", ["skill", "r2"])
def test_95_of_100_intervals_hold_what_so_many_days_score_on_average(select) -> None:
    def of(seed: int) -> TimedMoments:
        rng = np.random.default_rng(seed)
        truth = rng.normal(size=(20, 4, TARGETS.width)) + rng.normal(size=(20, 1, TARGETS.width))
        error = rng.uniform(0.3, 0.7, size=(20, 1, 1)) * rng.normal(size=truth.shape)
        moments = TimedMoments(TargetStatistics(TARGETS, np.zeros(TARGETS.width), np.full(TARGETS.width, 2.0), "what they are drawn from"))
        moments.update(np.repeat(np.arange(20), 4), *(array.reshape(80, -1) for array in (truth, truth + error)))
        return moments

    expected = np.mean([of(seed).score().chosen(select) for seed in range(1000, 1100)])
    found = [interval(of(seed), select, resamples=100) for seed in range(50)]
    assert 42 <= sum(each.low <= expected <= each.high for each in found) <= 50
    shorter = [interval(of(seed), select, level=0.5, resamples=100) for seed in range(50)]
    assert 15 <= sum(each.low <= expected <= each.high for each in shorter) <= 35


def test_identical_predictions_differ_by_exactly_nothing() -> None:
    found = difference(timed(rows_of_days(6)), timed(rows_of_days(6)), resamples=50)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_what_all_days_share_cancels_in_a_paired_difference() -> None:
    blocks, truth, prediction = rows_of_days(12)
    better = truth + 0.95 * (prediction - truth)
    base, variant = timed((blocks, truth, prediction)), timed((blocks, truth, better))
    found = difference(base, variant, resamples=200)
    alone = interval(base, resamples=200)
    assert found.value == pytest.approx(variant.score().skill - base.score().skill)
    assert 0 < found.low < found.value < found.high
    assert found.high - found.low < 0.3 * (alone.high - alone.low)
    back = difference(variant, base, resamples=200)
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))


def test_a_difference_needs_the_same_rows() -> None:
    blocks, truth, prediction = rows_of_days(4)
    base = timed((blocks, truth, prediction))
    with pytest.raises(ValueError, match="2 are in one only, the first is -5"):
        difference(base, timed((np.where(blocks == -5, 100, blocks), truth, prediction)))
    with pytest.raises(ValueError, match="block 4 has 6 and 5"):
        difference(base, timed((blocks[:-1], truth[:-1], prediction[:-1])))
    with pytest.raises(ValueError, match=r"in block -\d+ their truth has other extremes"):
        difference(base, timed((blocks, truth[::-1], prediction)))


def test_the_last_digits_of_the_truth_do_not_make_other_rows_of_them() -> None:
    blocks, truth, prediction = rows_of_days(4)
    other = timed((blocks, truth * (1 + 1e-9), prediction))
    assert difference(timed((blocks, truth, prediction)), other) is not None


def test_one_day_or_a_score_that_is_no_number_has_no_interval() -> None:
    one = timed(rows_of_days(1))
    assert interval(one) is None
    assert difference(one, one) is None
    blocks, truth, prediction = rows_of_days(3)
    prediction[0, 20] = np.nan
    broken = timed((blocks, truth, prediction))
    assert interval(broken) is None
    assert difference(timed(rows_of_days(3)), broken) is None


def test_many_days_are_drawn_with_their_neighbours() -> None:
    moments = timed(rows_of_days(1001, each=2))
    parts = intervals._parts(moments)
    counts = parts[:, 0, 0].astype(int).tolist()
    assert counts == [6] * 333 + [4]
    assert sum((ErrorMoments.from_array(TARGETS, part) for part in parts), ErrorMoments.empty(TARGETS)).count == 2002
    np.testing.assert_allclose(parts[0], sum((moments.blocks[b] for b in (-5, -2, 1)), ErrorMoments.empty(TARGETS)).to_array(), rtol=1e-12)


def test_an_outlying_day_costs_the_others_no_digits() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(30, TARGETS.width))
    truth[:10] += 1e12
    prediction = truth + 0.5
    parts = intervals._parts(timed((np.repeat(np.arange(3), 10), truth, prediction)))
    (without,) = intervals._resampled(parts, np.array([[0, 2, 1]]))
    rows = [*range(10, 20), *range(10, 20), *range(20, 30)]
    expected = by_sklearn(truth[rows], prediction[rows])
    np.testing.assert_allclose(ErrorMoments.from_array(TARGETS, without).score(UNIT).r2, expected, rtol=1e-10)


def test_no_rows_and_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        interval(TimedMoments(UNIT))
    with pytest.raises(ValueError, match=r"blocks \(2,\) must be one to each of the 3 rows"):
        TimedMoments(UNIT).update(np.zeros(2, np.int64), *np.zeros((2, 3, TARGETS.width)))
    empty = TimedMoments(UNIT)
    empty.update(np.zeros(0, np.int64), *np.zeros((2, 0, TARGETS.width)))
    assert empty.blocks == {}
