import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leapray import storage
from leapray.data.moments import Moments

SCALES = np.array([1e-51, 1e-9, 1.0, 1e5, 300.0])


def draw(rows: int) -> np.ndarray:
    matrix = np.random.default_rng(rows).normal(size=(rows, 5)) * SCALES
    matrix[:, 4] += 1e5
    return matrix


@given(st.integers(1, 300), st.lists(st.integers(0, 300), max_size=6))
def test_moments_equal_numpy_however_the_rows_are_split(rows: int, cuts: list[int]) -> None:
    matrix = draw(rows)
    moments = Moments.merge_all((Moments.of(part) for part in np.split(matrix, sorted(min(cut, rows) for cut in cuts))), 5)
    assert moments.count == rows
    np.testing.assert_allclose(moments.mean / SCALES, matrix.mean(axis=0) / SCALES, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(moments.std / SCALES, matrix.std(axis=0) / SCALES, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(moments.minimum, matrix.min(axis=0))
    np.testing.assert_array_equal(moments.maximum, matrix.max(axis=0))


def test_memory_layout_changes_no_bit() -> None:
    # more columns than are reduced at a time
    matrix = np.random.default_rng(1).normal(size=(3000, 50))
    wide = np.empty((6000, 100))
    wide[::2, ::2] = matrix
    expected = Moments.of(matrix)
    np.testing.assert_allclose(expected.std, matrix.std(axis=0), rtol=1e-13)
    for other in (np.asfortranarray(matrix), wide[::2, ::2]):
        found = Moments.of(other)
        for name in ("mean", "m2", "minimum", "maximum"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_columns_that_lie_apart_have_the_moments_of_their_matrix() -> None:
    matrix = np.random.default_rng(1).normal(size=(3000, 50))
    expected, found = Moments.of(matrix), Moments.of_columns([column.copy() for column in matrix.T])
    for name in ("mean", "m2", "minimum", "maximum"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_first_rows_far_from_all_others_cost_no_digits() -> None:
    column = np.concatenate([np.zeros(256), np.random.default_rng(0).normal(1e5, 1.0, 9000)])
    exact = np.array([math.fsum(column) / len(column)])
    spread = math.sqrt(math.fsum((column - exact) ** 2) / len(column))
    moments = Moments.of(column[:, None])
    assert abs(moments.mean[0] / exact[0] - 1) < 1e-15
    assert abs(moments.std[0] / spread - 1) < 1e-14


def test_moments_survive_json(tmp_path: Path) -> None:
    moments = Moments.of(draw(40))
    storage.write_json(str(tmp_path / "m.json"), moments.to_dict())
    again = Moments.from_dict(storage.read_json(str(tmp_path / "m.json")), 5)
    assert again.to_dict() == moments.to_dict()
    assert Moments.from_dict(Moments.empty(5).to_dict(), 5).merge(moments) is moments


def test_a_large_mean_does_not_drown_a_small_spread() -> None:
    values = 1e9 + np.arange(1000.0)[:, None]
    exact = np.sqrt((1000**2 - 1) / 12)
    assert abs(Moments.of(values).std[0] / exact - 1) < 1e-12


def test_a_column_that_differs_in_its_last_bits_is_constant() -> None:
    column = np.full(100, 9.986e-7)
    column[::3] = np.nextafter(column[0], 1)
    tiny = np.random.default_rng(0).normal(size=100) * 1e-48
    moments = Moments.of(np.stack([column, tiny, np.zeros(100)], axis=1))
    assert moments.std[0] > 0
    assert moments.constant.tolist() == [True, False, True]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_is_not_finite_shows_in_the_extremes_of_its_column_alone(bad: float, order: str) -> None:
    matrix = np.array(draw(40), order=order)
    matrix[17, 2] = bad
    moments = Moments.of(matrix).merge(Moments.of(draw(10)))
    finite = np.isfinite(moments.minimum) & np.isfinite(moments.maximum)
    assert finite.tolist() == [True, True, False, True, True]
    assert np.isfinite(moments.std[finite]).all()


@given(st.integers(1, 200), st.integers(1, 5))
def test_pooled_columns_have_the_moments_of_all_their_values(rows: int, columns: int) -> None:
    matrix = np.random.default_rng(rows).normal(size=(rows, 5)) + np.arange(5) * 10
    pooled = Moments.of(matrix)[:columns].pooled()
    values = matrix[:, :columns]
    assert pooled.count == values.size
    for found, expected in ((pooled.mean, values.mean()), (pooled.std, values.std())):
        assert found.shape == (1,)
        np.testing.assert_allclose(found[0], expected, rtol=1e-12, atol=1e-12)
    assert (pooled.minimum[0], pooled.maximum[0]) == (values.min(), values.max())


def test_matrices_side_by_side_have_the_moments_of_each() -> None:
    matrix = draw(30)
    moments = Moments.beside([Moments.of(matrix[:, :2]), Moments.of(matrix[:, 2:])])
    np.testing.assert_array_equal(moments.std, Moments.of(matrix).std)
    np.testing.assert_array_equal(moments[1:3].mean, Moments.of(matrix[:, 1:3]).mean)
    assert moments.count == 30
