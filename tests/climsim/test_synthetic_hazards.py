"""What makes real rows hard, in the synthetic climate: silent columns, rare departures, heavy tails and values that float32 cannot hold.

The figures in the bands are those of 61 low-res pairs of ClimSim's year 8 (January to October, 23 424 rows).
"""

import numpy as np
import pytest

from leapray.climsim.calendar import DAYS_PER_YEAR, STEPS_PER_DAY, Moment
from leapray.climsim.schema import STEP_SECONDS
from leapray.climsim.synthetic import World
from tests.columns import LEARNED, TARGETS

WATER = ("q0002", "q0003")
YEAR = range(5, DAYS_PER_YEAR * STEPS_PER_DAY, 431)


@pytest.fixture(scope="module")
def world() -> World:
    return World("low-res")


@pytest.fixture(scope="module")
def year(world) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Liquid and ice before a step, ``(60, n)`` by name, and targets ``(n, 368)``."""
    states: dict[str, list[np.ndarray]] = {name: [] for name in WATER}
    targets = []
    for step in YEAR:
        inputs = world.inputs(step)
        for name in WATER:
            states[name].append(inputs[f"state_{name}"])
        targets.append(world.targets(step))
    return {name: np.concatenate(parts, axis=1) for name, parts in states.items()}, np.concatenate(targets)


@pytest.fixture(scope="module")
def states(year) -> dict[str, np.ndarray]:
    return year[0]


@pytest.fixture(scope="module")
def targets(year) -> np.ndarray:
    return year[1]


@pytest.fixture(scope="module")
def autumn(world, targets) -> np.ndarray:
    """Targets of the snapshots in November and December."""
    late = [Moment.of_step(step).day_of_year >= 304 for step in YEAR]
    return targets[np.repeat(late, world.columns)]


def tendency(targets: np.ndarray, name: str) -> np.ndarray:
    return targets[:, TARGETS[f"ptend_{name}"]].T


def kurtosis(values: np.ndarray) -> np.ndarray:
    """Of each row of ``(levels, n)``, in units of its largest value: squares of 1e-170 would be 0."""
    scaled = values / np.abs(values).max(axis=1, keepdims=True)
    deviation = scaled - scaled.mean(axis=1, keepdims=True)
    return (deviation**4).mean(axis=1) / deviation.var(axis=1) ** 2


@pytest.mark.parametrize(
    ("name", "real"),
    [
        (
            "q0002",
            {29: 0.9889, 30: 0.950, 32: 0.869, 34: 0.819, 38: 0.703, 42: 0.552, 46: 0.376, 50: 0.318, 54: 0.420, 57: 0.710, 59: 0.888},
        ),
        ("q0003", {17: 0.878, 20: 0.767, 25: 0.593, 30: 0.581, 36: 0.567, 42: 0.671, 46: 0.702, 50: 0.769, 54: 0.827, 59: 0.894}),
    ],
)
def test_as_many_rows_as_in_real_data_lose_all_of_a_layers_condensate(states, targets, name, real):
    lost = (tendency(targets, name) == -states[name] / STEP_SECONDS).mean(axis=1)
    found = {level: lost[level] for level in real}
    assert found == pytest.approx(real, abs=0.12)


def test_departures_from_losing_everything_are_rare_where_they_are_in_real_data(states, targets):
    """Liquid: none on levels 12 to 26, at most a few rows in 10 000 on 27 and 28, 1 % on 29. Ice: 0.1 % to 0.2 % on 12 to 14."""
    departs = {name: (tendency(targets, name) != -states[name] / STEP_SECONDS).mean(axis=1) for name in WATER}
    assert (departs["q0002"][12:27] == 0).all()
    assert departs["q0002"][27] < 1e-4
    assert 0 < departs["q0002"][28] < 1e-3 < departs["q0002"][29] < 0.03
    assert ((departs["q0003"][12:15] > 2e-4) & (departs["q0003"][12:15] < 5e-3)).all()


def test_some_columns_are_silent_for_months(targets, autumn):
    """Ice on levels 12 to 14 forms in the Antarctic winter alone (real: 4e-5, 1e-10 and 2e-8 of its spread in a median snapshot)."""
    scale = np.abs(targets).max(axis=0) + 1e-300
    share = (autumn / scale).std(axis=0) / np.maximum((targets / scale).std(axis=0), 1e-300)
    ice = share[TARGETS["ptend_q0003"]]
    assert (ice[12:15] < [1e-3, 1e-6, 1e-4]).all()
    assert (share[LEARNED] < 1e-6).any()
    assert share[TARGETS["ptend_q0002"]][27] < 0.01
    assert np.median(share[LEARNED]) > 0.8


def test_a_good_emulators_r2_breaks_in_such_months_and_its_temperature_does_not(targets, autumn):
    """Errors of a hundredth of the year's spread: R2 falls below minus a million by the mean over columns, not by temperature."""
    scale = targets.std(axis=0)
    error = 1e-2 * np.random.default_rng(0).standard_normal(autumn.shape)
    lost = (error**2).mean(axis=0)[LEARNED] / np.maximum((autumn[:, LEARNED] / scale[LEARNED]).var(axis=0), 1e-300)
    r2 = np.zeros(TARGETS.width)
    r2[LEARNED] = 1 - lost
    assert r2[LEARNED].mean() < -1e6
    assert r2[TARGETS["ptend_t"]].min() > 0.99
    assert np.median(r2[LEARNED]) > 0.99


@pytest.mark.parametrize(
    ("name", "real"),
    [
        ("q0002", {27: 22556, 28: 6685, 29: 332, 31: 248, 34: 58, 38: 54, 46: 13, 50: 10}),
        ("q0003", {12: 1585, 13: 1089, 14: 1024, 18: 4909, 20: 3210, 22: 1421, 24: 887, 30: 82, 36: 48, 42: 73, 50: 95}),
    ],
)
def test_tails_of_condensates_tendencies_are_as_heavy_as_in_real_data(targets, name, real):
    """Kurtosis within a factor of 20: it is that of a handful of rows."""
    found = kurtosis(tendency(targets, name)[list(real)])
    ratio = found / np.array(list(real.values()))
    assert ((ratio > 1 / 20) & (ratio < 20)).all(), ratio


def test_several_columns_hang_on_a_few_rows_and_most_do_not(targets):
    """Real: kurtosis 54 in the median column, above 500 in 29; rows beyond 30 standard deviations in 73, beyond 100 in 7."""
    z = (targets[:, LEARNED] - targets[:, LEARNED].mean(axis=0)) / targets[:, LEARNED].std(axis=0)
    found, extreme = (z**4).mean(axis=0), np.abs(z).max(axis=0)
    assert 20 < np.median(found) < 150
    assert 8 < (found > 500).sum() < 60
    assert 25 < (extreme > 30).sum() < 150
    assert (extreme > 100).any()


def test_float32_loses_as_much_of_the_liquid_as_of_the_real_one(states):
    """Real: 5.2 % of the values of state_q0002 become 0 in float32, and 4.6 % subnormal."""
    liquid = states["q0002"]
    short = np.abs(liquid.astype(np.float32))
    tiny = np.finfo(np.float32).tiny
    assert 0.02 < ((short == 0) & (liquid > 0)).mean() < 0.12
    assert 0.01 < ((short > 0) & (short < tiny)).mean() < 0.10
    # real: the spread of levels 13 to 18
    assert 4 <= (liquid.std(axis=1) < tiny).sum() <= 10


def test_liquid_aloft_is_a_trace_that_falls_off_by_decades_per_level_to_nothing(states):
    """Real: a largest value of 1e-11 on level 26, 1e-25 on 23 and 1e-38 on 19; 0 in 96 % of the rows on level 18, in 20 % on 26."""
    liquid = states["q0002"]
    largest = np.log10(liquid.max(axis=1))
    assert (np.diff(largest[18:28]) > 2).all()
    assert largest[[26, 23, 19]] == pytest.approx([-11.4, -24.9, -37.7], abs=6)
    assert (liquid[18] == 0).mean() > 0.8
    assert 0.05 < (liquid[26] == 0).mean() < 0.4


def test_a_step_leaves_rounding_residue_in_place_of_some_zeros(world):
    """Real: 3 % to 9 % of the values after a step, all positive; the tendency is ``-state/1200`` there too."""
    before, after = world.inputs(7000)["state_q0002"][12:27], world.outputs(7000)["state_q0002"][12:27]
    residue = after > 0
    assert 0.02 < residue.mean() < 0.10
    assert (after[residue] <= 2 * np.spacing(before[residue])).all()
    assert (after >= 0).all()
    np.testing.assert_array_equal(((after - before) / STEP_SECONDS)[residue], (-before / STEP_SECONDS)[residue])


def test_antarctic_ice_clouds_are_in_its_winter(world):
    """Real: the thickest ice on level 13 lies beyond 70 S, on days 177 to 237, below 183 K."""
    steps = range(100 * STEPS_PER_DAY, 320 * STEPS_PER_DAY, 311)
    ice = np.stack([world.inputs(step)["state_q0003"][13] for step in steps])
    thick = np.argwhere(ice > 0.1 * ice.max())
    days = np.array([Moment.of_step(step).day_of_year for step in steps])[thick[:, 0]]
    latitude = np.degrees(world.place.latitude[thick[:, 1]])
    assert latitude.max() < -60
    assert days.min() > 150
    assert days.max() < 270


def test_many_columns_are_dry_and_more_have_no_snow(targets):
    """Real: cam_out_PRECC is exactly 0 in 28 % of the rows, cam_out_PRECSC in 72 %."""
    dry, snowless = ((targets[:, TARGETS[f"cam_out_{name}"]] == 0).mean() for name in ("PRECC", "PRECSC"))
    assert 0.15 < dry < 0.4
    assert 0.6 < snowless < 0.85
