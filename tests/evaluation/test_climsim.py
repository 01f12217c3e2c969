import numpy as np
import pytest
import xarray as xr

from leapray.climsim.grid import competition_columns, layer_mass, low_res_grid
from leapray.climsim.schema import LEVELS
from leapray.evaluation.accumulate import Batch, Prediction, Truth
from leapray.evaluation.climsim import column_moistening, energy_factors, horizontal_weights, unit
from leapray.evaluation.results import ClimSim
from tests.columns import ABLATED, TARGETS
from tests.target_statistics import UNIT

CP, LV, GRAVITY = 1004.64, 2.501e6, 9.80616


def a_set(times: int, columns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth and prediction ``(time, ncol, 368)`` and surface pressure ``(time, ncol)``."""
    rng = np.random.default_rng(seed)
    spread = np.where(ABLATED, 1e-12, competition_columns(TARGETS).std)
    truth = rng.normal(rng.normal(size=TARGETS.width), size=(times, columns, TARGETS.width)) * spread
    prediction = truth + rng.normal(0.1, 0.5, truth.shape) * truth.std(axis=(0, 1))
    return truth, prediction, rng.normal(98000, 3000, (times, columns))


def evaluated(
    truth: np.ndarray, prediction: np.ndarray, pressure: np.ndarray, steps: np.ndarray, crps: np.ndarray | None = None
) -> ClimSim:
    """What is found of the whole low-res grid at some steps."""
    times, columns, _ = truth.shape
    grid = low_res_grid()
    accumulated = Truth(TARGETS, timed=True, weighed=True, grid=grid)
    one = Prediction("p", accumulated, UNIT)
    batch = Batch(truth.reshape(-1, TARGETS.width), np.repeat(steps, columns), np.tile(np.arange(columns), times), pressure.ravel(), grid)
    accumulated.take(batch)
    one.take(batch, prediction.reshape(-1, TARGETS.width))
    if crps is not None:
        one.take_crps(batch, crps.reshape(-1, TARGETS.width))
    found = one.result().climsim
    assert found is not None
    return found


def test_metrics_are_those_of_climsim_as_xarray_writes_them():
    truth, prediction, pressure = a_set(5, 384)
    found = evaluated(truth, prediction, pressure, np.array([0, 30, 70, 80, 400]))
    area = xr.DataArray(low_res_grid().area, dims="ncol")
    for name, levels in (("ptend_t", LEVELS), ("ptend_q0002", LEVELS), ("cam_out_PRECC", 1), ("cam_out_NETSW", 1), ("ptend_u", LEVELS)):
        y, f = (xr.DataArray(array[:, :, TARGETS[name]], dims=("time", "ncol", "lev")) for array in (truth, prediction))
        weight = xr.ones_like(y)
        if name != "ptend_u":
            weight = weight * area / area.mean("ncol")
            weight = weight * {"ptend_t": CP, "ptend_q0002": LV, "cam_out_PRECC": LV * 1000}.get(name, 1.0)
        if levels > 1 and name != "ptend_u":
            mass = layer_mass(pressure.ravel()).reshape(*pressure.shape, LEVELS)
            weight = weight * xr.DataArray(mass, dims=("time", "ncol", "lev"))
        y, f = y * weight, f * weight
        error = f - y
        expected = {
            "mae": np.abs(error).mean("time").mean("ncol"),
            "rmse": np.sqrt(np.square(error).mean("time")).mean("ncol"),
            "r2": (1 - np.square(error).sum("time") / np.square(y - y.mean("time")).sum("time")).mean("ncol"),
            "bias": (f.mean("time") - y.mean("time")).mean("ncol"),
        }
        for metric, values in expected.items():
            np.testing.assert_allclose(getattr(found, metric)[TARGETS[name]], values, rtol=1e-9, atol=1e-12, err_msg=f"{name} {metric}")
            assert found.by_variable(TARGETS)[name][metric] == pytest.approx(float(values.mean()), rel=1e-9)


def test_two_columns_by_hand():
    truth, prediction = np.zeros((2, 384, TARGETS.width)), np.zeros((2, 384, TARGETS.width))
    level = TARGETS["ptend_t"].start + 59
    rain = TARGETS["cam_out_PRECC"].start
    truth[:, 0, level], prediction[:, 0, level] = [1e-4, 3e-4], [2e-4, 1e-4]
    truth[:, 1, rain], prediction[:, 1, rain] = [1e-8, 3e-8], [2e-8, 2e-8]
    found = evaluated(truth, prediction, np.full((2, 384), 1e5), np.array([0, 1]))
    area = low_res_grid().area / low_res_grid().area.mean()
    mass = layer_mass(np.array([1e5]))[0, 59]
    heat = CP * mass * area[0] / 384
    assert found.mae[level] == pytest.approx(heat * 1.5e-4)
    assert found.rmse[level] == pytest.approx(heat * np.sqrt(2.5) * 1e-4)
    assert found.bias[level] == pytest.approx(-heat * 0.5e-4)
    assert found.mae[rain] == pytest.approx(LV * 1000 * 1e-8 * area[1] / 384)
    assert found.bias[rain] == pytest.approx(0, abs=1e-12)
    assert np.isnan(found.r2[level])


def test_layer_mass_weighs_the_column_by_gravity():
    mass = layer_mass(np.array([1e5]))
    # the model's top lies at 5.588 Pa
    assert mass.sum() * GRAVITY == pytest.approx(1e5 - 5.5881070509375237, rel=1e-9)


def test_each_variable_has_its_factor_and_unit():
    factors = energy_factors(TARGETS)
    assert set(factors[TARGETS["ptend_t"]]) == {CP}
    for name in ("ptend_q0001", "ptend_q0002", "ptend_q0003"):
        assert set(factors[TARGETS[name]]) == {LV}
    assert factors[TARGETS["cam_out_PRECSC"]] == LV * 1000
    assert set(factors[TARGETS["ptend_u"]]) == set(factors[TARGETS["cam_out_SOLLD"]]) == {1.0}
    units = {variable.name: unit(variable) for variable in TARGETS.variables}
    assert units["ptend_t"] == units["cam_out_PRECC"] == units["cam_out_NETSW"] == "W/m2"
    assert units["ptend_v"] == "m/s/s"


def test_areas_weigh_about_their_mean_and_winds_not_at_all():
    weights = horizontal_weights(TARGETS, np.array([1.0, 3.0]))
    assert weights[0].tolist() == weights[-1].tolist() == [0.5, 1.5]
    assert weights[TARGETS["ptend_v"]].tolist() == [[1.0, 1.0]] * LEVELS


def test_r2_is_over_the_columns_that_vary_where_half_of_them_do():
    truth, prediction, pressure = a_set(12, 384)
    snow, sun, ice = TARGETS["cam_out_PRECSC"].start, TARGETS["cam_out_SOLS"].start, TARGETS["ptend_q0003"].start + 13
    truth[:, :100, snow] = 0.0
    truth[:, :200, sun] = 0.1
    truth[..., ice] *= 1e-6
    found = evaluated(truth, prediction, pressure, np.arange(12))
    y, f = truth[:, 100:, snow], prediction[:, 100:, snow]
    r2 = 1 - np.square(y - f).sum(axis=0) / np.square(y - y.mean(axis=0)).sum(axis=0)
    assert found.r2[snow] == pytest.approx(r2.mean())
    assert np.isnan(found.r2[[sun, ice]]).all()
    assert np.isnan(found.by_variable(TARGETS)["cam_out_SOLS"]["r2"])
    # a level that hardly varies is left out of the mean of its variable
    assert found.by_variable(TARGETS)["ptend_q0003"]["r2"] > -10
    assert np.isfinite(found.mae).all()


def test_crps_is_weighted_as_errors_are():
    truth, prediction, pressure = a_set(3, 384)
    found = evaluated(truth, prediction, pressure, np.arange(3), crps=np.abs(prediction - truth))
    np.testing.assert_allclose(found.crps, found.mae, rtol=1e-12)


def test_all_phases_of_water_moisten_a_column():
    targets, mass = np.zeros((TARGETS.width, 1)), np.arange(60.0)[:, None]
    for name, value in (("ptend_q0001", 1.0), ("ptend_q0002", 10.0), ("ptend_q0003", 100.0), ("ptend_t", 1e6)):
        targets[TARGETS[name].start + 2] = value
    assert column_moistening(TARGETS, targets, mass).tolist() == [222.0]
