import numpy as np

from leapray.climsim.grid import GRAVITY, competition_columns, figures, hybrid_levels, layer_mass, low_res_grid, pressure
from leapray.climsim.schema import STEP_SECONDS
from tests.columns import ABLATED, EXACT, EXACT_SOURCE, INPUTS, TARGETS


def test_reference_pressures_are_the_published_ones() -> None:
    published = np.array([float(value) for value in figures("levels")["lev_hPa"]])
    np.testing.assert_allclose(pressure(np.array([1e5]))[0] / 100, published, rtol=1e-12)
    assert int(np.flatnonzero(hybrid_levels().b_mid > 0)[0]) == 22


def test_layers_fill_the_column_from_the_model_top_to_the_ground() -> None:
    surface = np.array([5.2e4, 9.8e4, 1.05e5])
    mass = layer_mass(surface)
    top = hybrid_levels().a_interface[0] * 1e5
    assert (mass > 0).all()
    np.testing.assert_allclose(mass.sum(axis=1) * GRAVITY, surface - top, rtol=1e-12)


def test_the_grid_covers_the_sphere() -> None:
    grid = low_res_grid()
    assert len(grid.latitude) == 384
    np.testing.assert_allclose(grid.area.sum(), 4 * np.pi, rtol=1e-9)
    assert abs(np.average(np.sin(np.radians(grid.latitude)), weights=grid.area)) < 1e-6


def test_statistics_of_the_competition_agree_with_each_other() -> None:
    inputs, targets = competition_columns(INPUTS), competition_columns(TARGETS)
    assert (len(inputs.mean), len(targets.std)) == (INPUTS.width, TARGETS.width)
    for moments in (inputs, targets):
        rounding = 1e-15 * np.abs(moments.mean)
        assert (moments.minimum - rounding <= moments.mean).all()
        assert (moments.mean <= moments.maximum + rounding).all()
        assert ((moments.std == 0) == (moments.minimum == moments.maximum)).all()
    assert (targets.std[~ABLATED] > 0).all()
    # ptend_q0002 is -state_q0002/1200 there, in the moments too
    np.testing.assert_allclose(targets.mean[EXACT], -inputs.mean[EXACT_SOURCE] / STEP_SECONDS, rtol=1e-9)
    np.testing.assert_allclose(targets.std[EXACT], inputs.std[EXACT_SOURCE] / STEP_SECONDS, rtol=1e-6)
