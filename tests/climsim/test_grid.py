import numpy as np

from leapray.climsim.grid import GRAVITY, figures, hybrid_levels, layer_mass, low_res_grid, pressure


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
