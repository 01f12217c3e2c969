import numpy as np
from hypothesis import given
from hypothesis import strategies as st

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
