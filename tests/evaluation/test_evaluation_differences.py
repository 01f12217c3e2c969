"""Two evaluations side by side, the worst columns of one, and the figures of ``scores.json``."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from leapray.errors import UserError
from leapray.evaluation.comparison import compare_evaluations
from leapray.evaluation.intervals import TimedMoments, difference, interval
from leapray.evaluation.results import Evaluation
from leapray.evaluation.summary import scores
from leapray.evaluation.worst import worst_columns
from tests.columns import EXACT, LEARNED, TARGETS, group_mask
from tests.target_statistics import UNIT

DAYS = np.repeat(np.arange(6), 5)
RNG = np.random.default_rng(0)
TRUTH = RNG.normal(size=(30, TARGETS.width))


def evaluation(name: str, prediction: np.ndarray, truth: np.ndarray = TRUTH, days: np.ndarray = DAYS) -> Evaluation:
    moments = TimedMoments(UNIT)
    moments.update(days, truth, prediction)
    error = prediction - truth
    return Evaluation(name, len(truth), True, moments, truth.mean(axis=0), error.mean(axis=0), np.abs(error).mean(axis=0))


GOOD = evaluation("good", TRUTH + 0.1 * RNG.normal(size=TRUTH.shape))
WORSE = evaluation("worse", TRUTH + 0.6 * RNG.normal(size=TRUTH.shape))


def test_a_comparison_tells_headlines_groups_variables_and_columns():
    found = compare_evaluations(WORSE, GOOD)
    better, worse = GOOD.moments.score(), WORSE.moments.score()
    assert (found.base, found.other, found.rows) == ("worse", "good", 30)
    by = difference(WORSE.moments, GOOD.moments)
    assert asdict(found.headlines["skill"]) == pytest.approx(asdict(by), abs=1e-9)
    assert found.headlines["R² (learned)"].value == pytest.approx(better.learned - worse.learned)
    assert found.headlines["R² (all)"].value == pytest.approx(better.all - worse.all)
    assert found.groups["wind"].value == pytest.approx((better.skill_by_column - worse.skill_by_column)[group_mask("wind")].mean())
    for name, one in found.variables.items():
        assert one.value == pytest.approx(better.skill_by_variable()[name] - worse.skill_by_variable()[name])
        assert one.low <= one.value <= one.high
    np.testing.assert_allclose(found.columns.value, better.skill_by_column - worse.skill_by_column, rtol=1e-12, atol=1e-15)
    assert (found.columns.low[LEARNED] <= found.columns.high[LEARNED]).all()
    back = compare_evaluations(GOOD, WORSE)
    assert back.headlines["skill"].low == pytest.approx(-found.headlines["skill"].high)


def test_one_day_has_differences_and_no_intervals():
    one, other = (evaluation(name, prediction, days=DAYS * 0) for name, prediction in (("a", TRUTH), ("b", TRUTH + 0.5)))
    found = compare_evaluations(one, other)
    assert found.headlines["skill"].value < 0
    assert np.isnan([found.headlines["skill"].low, found.variables["ptend_t"].high]).all()
    assert np.isnan(found.columns.low).all()


def test_other_rows_are_no_comparison():
    with pytest.raises(UserError) as caught:
        compare_evaluations(GOOD, evaluation("part", TRUTH[:10], TRUTH[:10], DAYS[:10]))
    days = "good (of 6 days from 0001-02-01 to 0001-02-06) and part (of 2 days from 0001-02-01 to 0001-02-02)"
    assert str(caught.value) == f"{days} are not evaluations of the same rows"
    with pytest.raises(UserError, match="good and elsewhere are not evaluations of the same rows"):
        compare_evaluations(GOOD, evaluation("elsewhere", TRUTH, TRUTH + 1))


def test_the_worst_learned_columns_come_with_what_their_errors_are():
    noise = 0.1 * RNG.normal(size=TRUTH.shape)
    truth, prediction = TRUTH.copy(), TRUTH + noise
    constant, biased, stormy, noisy, quiet = (TARGETS["ptend_t"].start + level for level in (3, 4, 5, 6, 7))
    # of ClimSim's own size, so that a spread is judged by what it is
    truth[:, constant] = 2.0
    prediction[:, biased] += 5
    prediction[DAYS == 2, stormy] += np.array([-9, 9, -9, 9, 0])
    prediction[:, noisy] += 3 * RNG.normal(size=30)
    prediction[:, EXACT] = 99.0
    found = worst_columns(evaluation("p", prediction, truth), 4)
    by_name = {column.column: column for column in found}
    lost = [column.attainable - column.skill for column in found]
    assert lost == sorted(lost, reverse=True)
    assert {f"ptend_t_{level}" for level in (4, 5, 6)} <= set(by_name)
    assert by_name["ptend_t_4"].bias_share > 0.9
    assert by_name["ptend_t_4"].reason.startswith("bias: ")
    assert by_name["ptend_t_5"].worst_day_share > 0.9
    assert by_name["ptend_t_5"].reason.startswith("one day holds")
    assert by_name["ptend_t_6"].reason == "scatter: errors exceed the spread"
    assert by_name["ptend_t_6"].std == pytest.approx(truth[:, noisy].std())
    assert by_name["ptend_t_6"].units == "K/s"
    every = {column.column: column for column in worst_columns(evaluation("p", prediction, truth), 293)}
    assert len(every) == 293
    assert every["ptend_t_3"].reason == "the truth is constant"
    small = evaluation("small", prediction[:, :] * 1e-9, truth * 1e-9)
    assert {column.column: column for column in worst_columns(small, 293)}[f"ptend_t_{quiet}"].reason.startswith("hardly varies")


def test_scores_are_plain_values_that_json_knows():
    crps = np.ones(TARGETS.width)
    found = scores([replace(GOOD, crps=crps, lacking=("no grid",)), WORSE], {"truth": "flat"})
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    score = GOOD.moments.score()
    assert (found["name"], found["rows"], found["days"], found["lacking"]) == ("good", 30, 6, ["no grid"])
    assert (found["skill"], found["attainable"], found["r2"], found["r2_all"]) == (score.skill, score.attainable, score.learned, score.all)
    place = TARGETS["cam_out_PRECC"].start
    precipitation = {"skill": score.skill_by_column[place], "attainable": score.attainable_by_column[place], "r2": score.r2[place]}
    assert found["by_column"]["cam_out_PRECC"] == precipitation
    assert found["statistics"] == UNIT.origin
    assert found["interval"]["low"] == interval(GOOD.moments).low
    assert found["beside"]["worse"]["difference"]["value"] == pytest.approx(WORSE.moments.score().skill - score.skill)
    assert found["crps"]["ptend_t"] == {"value": 1.0, "units": "K/s"}
    assert found["climsim"] is None
    assert len(found["worst"]) == 10
    assert found["sources"] == {"truth": "flat"}


def test_what_is_no_number_is_none():
    found = scores([evaluation("one day", TRUTH + 0.1, days=DAYS * 0)], {})
    assert found["interval"] is None
    assert {column["worst_day_share"] for column in found["worst"]} == {None}
