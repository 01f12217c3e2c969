import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leapray.evaluation.distributions import fair_crps


def brute(truth: float, members: list[float]) -> float:
    """``E |X - y| - E |X - X'| / 2`` over pairs of different members."""
    pairs = [abs(a - b) for i, a in enumerate(members) for j, b in enumerate(members) if i != j]
    return float(np.mean([abs(member - truth) for member in members]) - np.mean(pairs) / 2)


@settings(max_examples=60, deadline=None)
@given(truth=st.floats(-1e3, 1e3), members=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9), order=st.randoms(use_true_random=False))
def test_it_is_its_definition_whatever_the_members_order(truth, members, order):
    expected = brute(truth, members)
    order.shuffle(members)
    assert fair_crps(np.array(truth), np.array(members)) == pytest.approx(expected, abs=1e-9)


def test_it_is_taken_number_by_number():
    rng = np.random.default_rng(0)
    truth, members = rng.normal(size=(4, 3)), rng.normal(size=(5, 4, 3))
    expected = [[brute(truth[i, j], members[:, i, j].tolist()) for j in range(3)] for i in range(4)]
    before = members.copy()
    np.testing.assert_allclose(fair_crps(truth, members), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(members, before)


def test_equal_members_score_their_absolute_error():
    assert fair_crps(np.array([1.0]), np.array([[3.5], [3.5], [3.5]])) == 2.5


def test_the_expected_score_does_not_depend_on_how_many_members_there_are():
    rng = np.random.default_rng(1)
    truth = rng.normal(size=20000)
    few, many = (fair_crps(truth, rng.normal(size=(count, 20000))).mean() for count in (2, 20))
    # of a forecast with the truth's own standard normal distribution
    assert few == pytest.approx(1 / np.sqrt(np.pi), abs=0.02)
    assert many == pytest.approx(1 / np.sqrt(np.pi), abs=0.02)


def test_one_member_has_none():
    with pytest.raises(ValueError, match="two members or more, not 1"):
        fair_crps(np.zeros(3), np.zeros((1, 3)))
