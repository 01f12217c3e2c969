from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import linear_model

from leapray.evaluation.baselines import Ridge


def a_problem(rows: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    inputs = rng.normal(2.0, 1.0, (rows, 8))
    inputs[:, 3] = 0.0
    targets = inputs @ rng.normal(size=(8, 5)) + 3.0 + rng.normal(size=(rows, 5))
    return inputs, targets


@settings(max_examples=25, deadline=None)
@given(alpha=st.floats(1e-3, 1e3), cuts=st.lists(st.integers(0, 60), max_size=5))
def test_ridge_equals_scikit_learn_for_any_batches(alpha, cuts):
    inputs, targets = a_problem()
    ridge = Ridge()
    edges = [0, *sorted(cuts), 60]
    for start, stop in pairwise(edges):
        ridge.update(inputs[start:stop], targets[start:stop])
    expected = linear_model.Ridge(alpha=alpha, fit_intercept=True).fit(inputs, targets)
    model = ridge.solve(alpha)
    np.testing.assert_allclose(model.coefficients, expected.coef_.T, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(model.predict(inputs), expected.predict(inputs), rtol=1e-9, atol=1e-10)


def test_ridge_is_float64_from_float32_batches_that_it_leaves_as_they_are():
    inputs, targets = (matrix.astype(np.float32) for matrix in a_problem())
    before = inputs.copy(), targets.copy()
    ridge = Ridge()
    ridge.update(inputs, targets)
    assert ridge.solve(1.0).predict(inputs).dtype == np.float64
    np.testing.assert_array_equal(inputs, before[0])
    np.testing.assert_array_equal(targets, before[1])


def test_ridge_refuses_what_cannot_be_solved():
    ridge = Ridge()
    for fit in (lambda: ridge.solve(1.0), ridge.climatology):
        with pytest.raises(ValueError, match="no rows"):
            fit()
    with pytest.raises(ValueError, match="alpha is 0"):
        ridge.solve(0)


def test_climatology_predicts_the_mean_of_all_batches():
    inputs, targets = a_problem()
    ridge = Ridge()
    for batch in zip(np.split(inputs, [7, 7, 50]), np.split(targets, [7, 7, 50]), strict=True):
        ridge.update(*batch)
    prediction = ridge.climatology().predict(inputs[:4])
    np.testing.assert_allclose(prediction, np.tile(targets.mean(axis=0), (4, 1)), rtol=1e-13)
