"""The synthetic climate's inputs: a pure function of the step, moments like the published ones, and the real data's hazards."""

import numpy as np
import pytest

from leapray.climsim.calendar import DAYS_PER_YEAR, STEPS_PER_DAY
from leapray.climsim.grid import figures
from leapray.climsim.schema import LEVELS, MISSING, MLI_VARIABLES
from leapray.climsim.synthetic import World
from leapray.climsim.synthetic.weather import WaveField, vertical_loadings
from leapray.errors import UserError
from tests.columns import INPUTS

YEAR = range(5, DAYS_PER_YEAR * STEPS_PER_DAY, 1501)
KINDS = ("low-res", "aqua-planet", "high-res")


def over_a_year(kind: str, columns: int = 192) -> dict[str, np.ndarray]:
    world = World(kind, columns)
    states = [world.inputs(step) for step in YEAR]
    return {name: np.concatenate([state[name] for state in states], axis=-1) for name in states[0]}


@pytest.fixture(scope="module")
def year() -> dict[str, dict[str, np.ndarray]]:
    return {kind: over_a_year(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_every_mli_variable_is_there_finite_and_float64(year, kind):
    assert sorted(year[kind]) == sorted(variable.name for variable in MLI_VARIABLES)
    for variable in MLI_VARIABLES:
        value = year[kind][variable.name]
        assert value.dtype == np.float64
        assert value.shape[:-1] == ((LEVELS,) if variable.levels == LEVELS else ())
        assert np.isfinite(value).all()


def test_a_step_depends_on_nothing_but_kind_columns_seed_and_step():
    one, other = World("low-res", 24, seed=3), World("low-res", 24, seed=3)
    one.inputs(10)
    other.inputs(99)
    for name, value in one.inputs(50).items():
        np.testing.assert_array_equal(value, other.inputs(50)[name])
    for name, value in one.outputs(50).items():
        np.testing.assert_array_equal(value, other.outputs(50)[name])


def test_what_a_caller_does_to_the_arrays_does_not_reach_the_world():
    world = World("low-res", 8)
    before = world.outputs(4)
    world.inputs(4)["state_t"][:] = 0.0
    np.testing.assert_array_equal(world.outputs(4)["state_t"], before["state_t"])


def test_another_seed_is_other_weather_over_the_same_land():
    one, other = World("low-res", 96, seed=0), World("low-res", 96, seed=1)
    np.testing.assert_array_equal(one.inputs(7)["cam_in_LANDFRAC"], other.inputs(7)["cam_in_LANDFRAC"])
    assert np.abs(one.inputs(7)["state_v"] - other.inputs(7)["state_v"]).mean() > 3.0


def test_weather_is_nearly_the_same_a_step_later_another_after_days_and_does_not_return_next_year():
    world = World("low-res", 192)
    winds = {step: world.inputs(step)["state_v"][40] for step in (0, 1, 10 * STEPS_PER_DAY, DAYS_PER_YEAR * STEPS_PER_DAY)}
    now, soon, later, next_year = winds.values()
    assert np.corrcoef(now, soon)[0, 1] > 0.999
    assert abs(np.corrcoef(now, later)[0, 1]) < 0.6
    assert abs(np.corrcoef(now, next_year)[0, 1]) < 0.6


def test_wave_patterns_have_mean_0_variance_1_and_are_independent():
    points = np.eye(3)
    field = WaveField(points, 3, (1,), length=0.3, days=0.5)
    draws = np.array([field.at(step) for step in range(0, 400000, 400)])
    np.testing.assert_allclose(draws.mean(axis=0), 0.0, atol=0.15)
    np.testing.assert_allclose(draws.var(axis=0), 1.0, atol=0.25)
    assert np.abs(np.corrcoef(draws[:, :, 0].T) - np.eye(3)).max() < 0.2
    np.testing.assert_allclose(np.linalg.norm(vertical_loadings(10, 4.0), axis=1), 1.0)


@pytest.mark.parametrize("kind", ["low-res", "high-res"])
def test_moments_follow_the_published_ones(year, kind):
    """Within an order of magnitude for every column that varies, but for those whose published std exceeds 10 means.

    That spread (cloud at levels 8 to 29) is carried by a few samples in millions, which a small sample cannot show.
    """
    table = figures("high_res_columns" if kind == "high-res" else "low_res_columns")
    mean, std = (np.array(table[key][: INPUTS.width], dtype=np.float64) for key in ("mean", "std"))
    for variable in INPUTS.variables:
        columns = INPUTS[variable.name]
        value = np.atleast_2d(year[kind][variable.name])
        ours, wanted = value.std(axis=-1), std[columns]
        levels = np.flatnonzero(wanted > 1e-9 * np.abs(mean[columns]))
        if variable.name in ("state_q0002", "state_q0003"):
            levels = levels[wanted[levels] < 10 * mean[columns][levels]]
            assert set(range(LEVELS)) - set(levels) <= set(range(8, 30))
        ratio = ours[levels] / wanted[levels]
        assert ((ratio > 0.1) & (ratio < 10)).all(), (variable.name, ratio)
        distance = np.abs(value.mean(axis=-1) - mean[columns])[levels] / wanted[levels]
        assert (distance < 1.0).all(), (variable.name, distance)


def test_solar_geometry_is_astronomy(year):
    """A quarter of the solar constant on average over the globe and the year, nothing where the sun is down."""
    state = year["low-res"]
    assert abs(state["pbuf_SOLIN"].mean() - 1361 / 4) < 10
    np.testing.assert_array_equal(state["pbuf_SOLIN"] > 0, state["pbuf_COSZRS"] > 0)


def test_albedos_are_1_at_night_and_below_by_day(year):
    for state in year.values():
        night = state["pbuf_COSZRS"] == 0
        for name in ("ALDIF", "ALDIR", "ASDIF", "ASDIR"):
            albedo = state[f"cam_in_{name}"]
            assert (albedo[night] == 1).all()
            assert ((albedo[~night] > 0) & (albedo[~night] <= 1)).all()
            assert albedo[~night].min() < 0.2


def constant_levels(value: np.ndarray) -> list[int]:
    return np.flatnonzero(value.min(axis=1) == value.max(axis=1)).tolist()


@pytest.mark.parametrize(("kind", "first"), [("low-res", 27), ("aqua-planet", 27), ("high-res", 29)])
def test_methane_and_nitrous_oxide_are_exactly_constant_below_a_level_and_nothing_else_is(year, kind, first):
    for variable in INPUTS.profiles:
        expected = list(range(first, LEVELS)) if variable.name in ("pbuf_CH4", "pbuf_N2O") else []
        assert constant_levels(year[kind][variable.name]) == expected, variable.name


def test_cloud_liquid_aloft_lies_below_the_range_of_float32(year):
    liquid = year["low-res"]["state_q0002"]
    positive = liquid[12:19][liquid[12:19] > 0]
    assert positive.min() < 1e-45
    assert (liquid[13:] == 0).any()
    assert (liquid >= 0).all()


def test_sea_ice_snow_carries_the_fill_value_exactly_where_there_is_no_ice(year):
    for state in year.values():
        np.testing.assert_array_equal(state["cam_in_SNOWHICE"] == MISSING, state["cam_in_ICEFRAC"] == 0)
    assert 0.5 < (year["low-res"]["cam_in_SNOWHICE"] == MISSING).mean() < 0.97


def test_surface_fractions_make_up_the_surface(year):
    for state in year.values():
        total = state["cam_in_LANDFRAC"] + state["cam_in_OCNFRAC"] + state["cam_in_ICEFRAC"]
        np.testing.assert_allclose(total, 1.0, atol=1e-12)


def test_only_the_aqua_planet_has_no_land_ice_or_snow(year):
    for name, value in (("LANDFRAC", 0), ("ICEFRAC", 0), ("SNOWHLAND", 0), ("OCNFRAC", 1)):
        assert (year["aqua-planet"][f"cam_in_{name}"] == value).all()
        for kind in ("low-res", "high-res"):
            assert year[kind][f"cam_in_{name}"].std() > 0.05


def test_the_aqua_planets_ground_is_almost_a_function_of_latitude():
    world = World("aqua-planet")
    states = [world.inputs(step)["cam_in_LWUP"] for step in YEAR]
    assert np.std(states, axis=0).max() < 1.0
    assert np.mean(states, axis=0).std() > 40.0


def test_high_res_is_wider_where_the_real_one_is(year):
    for name, level in (("state_u", 40), ("state_v", 40)):
        low, high = (year[kind][name][level].std() for kind in ("low-res", "high-res"))
        assert high > 1.25 * low


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("mid-res",), "mid-res"),
        (("low-res", 0), "0"),
        (("low-res", 385), "385"),
        (("high-res", 21601), "21601"),
        (("low-res", 4, -1), "-1"),
    ],
)
def test_a_world_that_cannot_be_is_refused_by_name(arguments, named):
    with pytest.raises(UserError, match=named):
        World(*arguments)


@pytest.mark.parametrize(("kind", "columns"), [("low-res", 384), ("aqua-planet", 384)])
def test_the_default_number_of_columns_is_the_kinds(kind, columns):
    assert World(kind).columns == columns
