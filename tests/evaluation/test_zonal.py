import numpy as np
from sklearn.metrics import r2_score

from leapray.climsim.calendar import STEPS_PER_DAY
from leapray.climsim.grid import Grid
from leapray.evaluation.accumulate import Batch, Prediction, Truth
from leapray.evaluation.zonal import DAYS, EDGES, bands
from tests.columns import TARGETS
from tests.target_statistics import UNIT

GRID = Grid(np.array([-85.0, 5.0, 8.0, 45.0]), np.zeros(4), np.array([1.0, 1.0, 3.0, 2.0]))


def evaluated(truth: np.ndarray, prediction: np.ndarray, steps: np.ndarray):
    """Bands of ``(time, 4, 368)``."""
    accumulated = Truth(TARGETS, timed=True, weighed=False, grid=GRID)
    one = Prediction("p", accumulated, UNIT)
    batch = Batch(truth.reshape(-1, 368), np.repeat(steps, 4), np.tile(np.arange(4), len(steps)), grid=GRID)
    accumulated.take(batch)
    one.take(batch, prediction.reshape(-1, 368))
    return one.result().zonal


def test_bands_are_of_ten_degrees_from_south_to_north():
    assert EDGES.tolist() == list(range(-90, 91, 10))
    assert bands(np.array([-90.0, -80.1, -80.0, 0.0, 89.9, 90.0])).tolist() == [0, 0, 1, 9, 17, 17]


def test_skill_is_of_daily_means_weighted_by_area():
    rng = np.random.default_rng(0)
    days, per_day = 12, 3
    steps = np.concatenate([day * STEPS_PER_DAY + np.arange(per_day) * 20 for day in range(days)])
    truth = rng.normal(2.0, 1.0, (days * per_day, 4, TARGETS.width))
    prediction = truth + rng.normal(0.3, 0.4, truth.shape)
    found = evaluated(truth, prediction, steps)
    daily = [array.reshape(days, per_day, 4, TARGETS.width).mean(axis=1) for array in (truth, prediction)]
    equator, arctic = ([(array[:, 1] + 3 * array[:, 2]) / 4 for array in daily], [array[:, 3] for array in daily])
    for band, (y, f) in ((9, equator), (13, arctic)):
        np.testing.assert_allclose(found.r2[band], r2_score(y, f, multioutput="raw_values"), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found.truth[band], y.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(found.bias[band], (f - y).mean(axis=0), rtol=1e-9, atol=1e-12)
    empty = [band for band in range(18) if band not in (0, 9, 13)]
    for part in (found.r2, found.truth, found.bias):
        assert np.isnan(part[empty]).all()


def test_what_does_not_vary_from_day_to_day_and_few_days_have_no_skill():
    rng = np.random.default_rng(1)
    steps = np.arange(DAYS) * STEPS_PER_DAY
    truth = rng.normal(size=(DAYS, 4, TARGETS.width))
    truth[:, :, 3] = 0.1
    silent = TARGETS["cam_out_NETSW"].start
    truth[:, :, silent] *= 1e-4
    found = evaluated(truth, truth + 0.1, steps)
    assert np.isnan(found.r2[9, [3, silent]]).all()
    assert np.isfinite(found.r2[9, 4])
    np.testing.assert_allclose(found.bias[9], 0.1)
    few = evaluated(truth[1:], truth[1:] + 0.1, steps[1:])
    assert np.isnan(few.r2).all()
    np.testing.assert_allclose(few.bias[9], 0.1)
