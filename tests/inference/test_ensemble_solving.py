from functools import cache
from itertools import pairwise, product
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize

from leapray.evaluation.metrics import TargetStatistics
from leapray.inference.ensemble.products import ErrorProducts
from leapray.inference.ensemble.solving import all_as_one, by_column, held_out, solve, weigh
from tests.columns import GROUPS, LEARNED, TARGETS, group_mask
from tests.target_statistics import UNIT

ROOTS = arrays(np.float64, st.tuples(st.integers(1, 8), st.integers(1, 6)), elements=st.floats(-10, 10, width=32))


def made(rows: int, noise: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Truth of unit variance ``(n, 368)``, and predictions with independent errors of these spreads ``(M,)`` or ``(M, 368)``."""
    generator = np.random.default_rng(seed)
    truth = generator.normal(size=(rows, TARGETS.width))
    spread = np.broadcast_to(noise.reshape(len(noise), 1, -1), (len(noise), 1, TARGETS.width))
    return truth, truth + spread * generator.normal(size=(len(noise), rows, TARGETS.width))


def products_of(truth: np.ndarray, predictions: np.ndarray, statistics: TargetStatistics = UNIT) -> ErrorProducts:
    return ErrorProducts.of(truth, predictions, statistics)


@cache
def simplex(members: int, steps: int) -> np.ndarray:
    """All weights in steps of ``1 / steps`` that sum to 1."""
    return np.array([counts for counts in product(range(steps + 1), repeat=members) if sum(counts) == steps]) / steps


@settings(deadline=None)
@given(ROOTS)
def test_the_solution_meets_the_conditions_of_karush_kuhn_and_tucker(root: np.ndarray) -> None:
    A = root.T @ root
    w = solve(A)
    assert (w >= 0).all()
    assert w.sum() == pytest.approx(1, abs=1e-12)
    gradient, value, size = A @ w, w @ A @ w, max(np.trace(A) / len(A), 1e-300)
    # no member's error goes less together with the ensemble's than the ensemble's own, and that of those who count as much
    assert (gradient >= value - 1e-8 * size).all()
    assert np.abs((gradient - value) * w).max() <= 1e-8 * size


@settings(deadline=None)
@given(ROOTS)
def test_no_weights_on_a_grid_do_better(root: np.ndarray) -> None:
    A = root.T @ root
    grid = simplex(len(A), 4)
    assert solve(A) @ A @ solve(A) <= np.einsum("gm,mk,gk->g", grid, A, grid).min() + 1e-9 * np.trace(A)


@settings(deadline=None)
@given(ROOTS, st.floats(1e-30, 1e30), st.randoms(use_true_random=False))
def test_weights_know_neither_the_unit_of_the_errors_nor_the_order_of_the_members(root: np.ndarray, factor: float, random: Random) -> None:
    A = root.T @ root + np.diag(np.arange(1, root.shape[1] + 1))
    order = random.sample(range(len(A)), len(A))
    np.testing.assert_allclose(solve(A * factor), solve(A), atol=1e-9)
    np.testing.assert_allclose(solve(A[np.ix_(order, order)]), solve(A)[order], atol=1e-9)


def test_correlated_errors_give_what_a_general_solver_finds() -> None:
    root = np.random.default_rng(3).normal(size=(40, 7)) + 2.0
    A = root.T @ root
    found = minimize(
        lambda w: w @ A @ w / np.trace(A),
        np.full(7, 1 / 7),
        jac=lambda w: 2 * A @ w / np.trace(A),
        method="SLSQP",
        bounds=[(0, 1)] * 7,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-15, "maxiter": 500},
    )
    np.testing.assert_allclose(solve(A), found.x, atol=1e-5)


def test_a_member_that_is_there_twice_counts_as_much_as_once() -> None:
    A = np.array([[1.0, 0.2], [0.2, 2.0]])
    twice = A[np.ix_([0, 0, 1], [0, 0, 1])]
    once, w = solve(A), solve(twice)
    np.testing.assert_allclose(w, [once[0] / 2, once[0] / 2, once[1]], atol=1e-6)


@pytest.mark.parametrize("members", [1, 3])
def test_members_without_errors_count_alike(members: int) -> None:
    np.testing.assert_array_equal(solve(np.zeros((members, members))), np.full(members, 1 / members))


def test_independent_errors_are_weighed_by_the_inverse_of_their_variance() -> None:
    noise = np.array([0.3, 0.5, 1.0])
    weights = weigh(products_of(*made(2_000, noise)), all_as_one(TARGETS))["all"]
    np.testing.assert_allclose(weights, noise**-2 / (noise**-2).sum(), atol=5e-3)


@pytest.mark.parametrize("worst", [1e3, 1e10, 1e30])
def test_a_member_that_is_very_bad_leaves_the_weights_of_the_others_as_they_are(worst: float) -> None:
    np.testing.assert_allclose(solve(np.diag([0.2, 0.5, worst])), [5 / 7, 2 / 7, 0], atol=1e-3)
    pair = np.array([[0.2, 0.15], [0.15, 0.5]])
    both = np.zeros((3, 3))
    both[:2, :2], both[2, 2] = pair, worst
    expected = np.linalg.solve(pair, np.ones(2))
    np.testing.assert_allclose(solve(both), [*(expected / expected.sum()), 0], atol=1e-3)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_a_member_without_error_takes_all(size: float) -> None:
    np.testing.assert_allclose(solve(size * np.diag([2.0, 0.0, 1.0])), [0, 1, 0], atol=1e-8)


def test_each_group_has_the_weights_that_are_best_in_it() -> None:
    noise = np.full((2, TARGETS.width), 0.4)
    noise[0, group_mask("wind")] = 0.8
    weights = weigh(products_of(*made(4_000, noise)), GROUPS)
    np.testing.assert_allclose(weights["wind"], [0.2, 0.8], atol=0.01)
    for group in GROUPS.keys() - {"wind"}:
        np.testing.assert_allclose(weights[group], [0.5, 0.5], atol=0.02)


def test_a_group_that_offers_nothing_takes_the_weights_of_all() -> None:
    truth, predictions = made(50, np.array([0.3, 0.6]))
    truth[:, TARGETS["ptend_t"]] = 2.5
    variance = np.ones(TARGETS.width)
    variance[TARGETS["ptend_t"]] = 0
    products = products_of(truth, predictions, TargetStatistics(TARGETS, np.full(TARGETS.width, 0.0), variance, ""))
    np.testing.assert_array_equal(weigh(products, GROUPS)["temperature"], solve(products.unexplained()))


def test_skill_is_its_definition() -> None:
    truth, predictions = made(60, np.array([0.3, 0.6, 0.9]))
    truth[:, 7] = truth[:, 7] * 1e-6
    statistics = TargetStatistics(TARGETS, np.full(TARGETS.width, 0.2), np.linspace(0.5, 3, TARGETS.width), "")
    products = products_of(truth, predictions, statistics)
    weights = by_column(TARGETS, weigh(products, GROUPS), GROUPS)
    mean = np.einsum("mc,mnc->nc", weights, predictions)
    gained = np.square(truth - statistics.mean).mean(axis=0) - np.square(truth - mean).mean(axis=0)
    skill = np.maximum(gained / np.maximum(truth.var(axis=0), statistics.variance), -1)
    assert products.skill(weights) == pytest.approx(skill[LEARNED].mean(), abs=1e-12)
    fallback = np.zeros(int(LEARNED.sum()), bool)
    fallback[3:9] = True
    assert products.skill(weights, fallback) == pytest.approx(np.where(fallback, 0, skill[LEARNED]).mean(), abs=1e-12)


def test_error_correlations_are_those_of_numpy_about_zero() -> None:
    truth, predictions = made(60, np.array([0.3, 0.6, 0.9]))
    predictions[1] += predictions[0] - truth
    errors = (predictions - truth)[:, :, LEARNED]
    size = np.sqrt(np.square(errors).sum(axis=1))
    expected = np.einsum("mnc,knc->mkc", errors, errors) / (size[:, None] * size[None])
    np.testing.assert_allclose(products_of(truth, predictions).correlation(), expected.mean(axis=2), atol=1e-12)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 30), max_size=5))
def test_products_of_parts_add_up_to_those_of_the_whole(cuts: list[int]) -> None:
    truth, predictions = made(30, np.array([0.3, 0.6]))
    scale = 10.0 ** np.random.default_rng(0).integers(-40, 10, TARGETS.width)
    truth, predictions = truth * scale, predictions * scale
    total, edges = ErrorProducts.empty(2, UNIT), [0, *sorted(cuts), 30]
    for start, stop in pairwise(edges):
        total += products_of(truth[start:stop], predictions[:, start:stop])
    whole = products_of(truth, predictions)
    np.testing.assert_allclose(total.products, whole.products, rtol=1e-9)
    np.testing.assert_allclose(total.unexplained(), whole.unexplained(), rtol=1e-9)


def test_groups_are_chosen_where_they_help_on_days_held_out_and_not_where_nothing_tells_them_apart() -> None:
    noise = np.full((2, TARGETS.width), 0.4)
    noise[0, group_mask("wind")] = 0.8
    helped = held_out((products_of(*made(400, noise, 1)), products_of(*made(400, noise, 2))))
    alike = np.full((4, TARGETS.width), 0.6)
    vain = held_out((products_of(*made(40, alike, 1)), products_of(*made(40, alike, 2))))
    assert helped is not None
    assert vain is not None
    assert helped.by_variable > helped.one
    assert helped.by_variable > helped.one + 0.01
    assert vain.by_variable <= vain.one


def test_nothing_is_held_out_where_all_rows_are_in_one_half() -> None:
    assert held_out((ErrorProducts.empty(2, UNIT), products_of(*made(40, np.array([0.3, 0.6]))))) is None
