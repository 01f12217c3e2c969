from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mean_absolute_error, r2_score

from leapray.climsim.calendar import STEPS_PER_DAY
from leapray.climsim.grid import Grid
from leapray.evaluation.accumulate import Batch, Prediction, Truth
from leapray.evaluation.results import Evaluation, read_evaluations, write_evaluations
from tests.columns import SCORED, TARGETS
from tests.target_statistics import UNIT

GRID = Grid(np.array([-50.0, 4.0, 7.0, 60.0]), np.zeros(4), np.array([1.0, 2.0, 1.5, 0.5]))
STEPS = np.repeat([0, 10, STEPS_PER_DAY, 3 * STEPS_PER_DAY], 4)
NCOL = np.tile(np.arange(4), 4)
RNG = np.random.default_rng(0)
PRESSURE = RNG.normal(98000, 2000, 16)
TRUTH = RNG.normal(1, 1, (16, TARGETS.width)) * 10.0 ** RNG.uniform(-8, 2, TARGETS.width)
PREDICTION = TRUTH + RNG.normal(0.1, 0.5, TRUTH.shape) * TRUTH.std(axis=0)
CRPS = np.abs(PREDICTION - TRUTH)


def evaluated(parts: list[np.ndarray], scored: np.ndarray | None = None) -> Evaluation:
    """What is found of rows taken in part by part."""
    truth = Truth(TARGETS, timed=True, weighed=True, grid=GRID)
    one = Prediction("p", truth, UNIT, scored=scored)
    for rows in parts:
        batch = Batch(TRUTH[rows], STEPS[rows], NCOL[rows], PRESSURE[rows], GRID)
        truth.take(batch)
        one.take(batch, PREDICTION[rows])
        one.take_crps(batch, CRPS[rows])
    return one.result(("a sentence",))


def parts_of(evaluation: Evaluation) -> dict[str, np.ndarray]:
    found = {name: getattr(evaluation, name) for name in ("mean", "bias", "mae", "crps")}
    for name in ("climsim", "zonal", "joint", "precipitation"):
        found |= {f"{name}.{key}": value for key, value in vars(getattr(evaluation, name)).items()}
    return found | {f"moments.{key}": value for key, value in evaluation.moments.to_arrays().items() if key not in ("origin", "targets")}


WHOLE = parts_of(evaluated([np.arange(16)]))


@settings(max_examples=40, deadline=None)
@given(order=st.permutations(range(16)), cuts=st.lists(st.integers(0, 16), max_size=5))
def test_neither_the_order_of_rows_nor_how_they_are_cut_matters(order, cuts):
    edges = [0, *sorted(cuts), 16]
    found = parts_of(evaluated([np.array(order[a:b], np.int64) for a, b in pairwise(edges)]))
    assert found.keys() == WHOLE.keys()
    for name, expected in WHOLE.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-8, atol=1e-14 * np.nanmax(np.abs(expected)), err_msg=name)


def test_figures_over_all_rows_are_those_of_scikit_learn():
    found = evaluated([np.arange(16)])
    assert (found.rows, found.timed, found.lacking) == (16, True, ("a sentence",))
    np.testing.assert_allclose(found.mean, TRUTH.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.mae, mean_absolute_error(TRUTH, PREDICTION, multioutput="raw_values"), rtol=1e-12)
    np.testing.assert_allclose(found.bias, (PREDICTION - TRUTH).mean(axis=0), rtol=1e-9, atol=1e-12 * np.abs(TRUTH).max())
    expected = r2_score(TRUTH * SCORED, PREDICTION * SCORED, multioutput="raw_values")
    np.testing.assert_allclose(found.moments.score().r2, expected, rtol=1e-9, atol=1e-9)
    assert sorted(found.moments.blocks) == [0, 1, 3]
    np.testing.assert_allclose(found.crps, CRPS.mean(axis=0), rtol=1e-12)


def test_columns_without_weight_are_constant_to_the_competition_alone():
    scored = np.ones(TARGETS.width, dtype=bool)
    scored[3] = False
    found = evaluated([np.arange(16)], scored)
    assert found.moments.score().r2[3] == 0
    assert found.mean[3] == pytest.approx(TRUTH[:, 3].mean())


def test_without_time_all_rows_are_of_one_block_and_the_rest_is_left_out():
    truth = Truth(TARGETS, timed=False, weighed=False, grid=None)
    one = Prediction("p", truth, UNIT)
    for rows in (slice(0, 5), slice(5, 5), slice(5, 16)):
        batch = Batch(TRUTH[rows])
        truth.take(batch)
        one.take(batch, PREDICTION[rows])
    found = one.result()
    assert (list(found.moments.blocks), found.timed, found.rows) == ([0], False, 16)
    assert found.climsim is found.zonal is found.crps is None
    assert np.isnan(found.precipitation.moistening).all()


def test_evaluations_are_read_as_they_were_written(tmp_path):
    bare = Truth(TARGETS, timed=False, weighed=False, grid=None)
    other = Prediction("other", bare, UNIT, whole=False)
    batch = Batch(TRUTH)
    bare.take(batch)
    other.take(batch, PREDICTION)
    write_evaluations(str(tmp_path), [evaluated([np.arange(16)]), other.result()])
    whole, light = read_evaluations(str(tmp_path))
    assert (whole.name, light.name, whole.lacking, light.lacking) == ("p", "other", ("a sentence",), ())
    for name, expected in WHOLE.items():
        np.testing.assert_array_equal(parts_of(whole)[name], expected, err_msg=name)
    assert light.joint is light.climsim is light.zonal is light.precipitation is light.crps is None
    np.testing.assert_array_equal(light.mae, other.result().mae)


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="no rows"):
        Prediction("p", Truth(TARGETS, timed=False, weighed=False, grid=None), UNIT).result()
