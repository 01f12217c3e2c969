import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from leapray.climsim.row_keys import first_twice, key_runs

keys = st.lists(st.integers(-20, 20), max_size=30)


@given(keys)
def test_runs_hold_the_keys(drawn: list[int]) -> None:
    runs = key_runs(np.array(drawn, np.int64))
    assert sorted(key for start, stop in runs for key in range(start, stop)) == sorted(drawn)


@given(keys, keys)
def test_a_key_that_is_there_twice_is_found_wherever_it_lies(one: list[int], other: list[int]) -> None:
    runs = [(run, name) for name, drawn in (("one", one), ("other", other)) for run in key_runs(np.array(drawn, np.int64))]
    twice = first_twice(runs)
    together = one + other
    if twice is None:
        assert len(set(together)) == len(together)
    else:
        key, *names = twice
        assert together.count(key) > 1
        assert all(key in {"one": one, "other": other}[name] for name in names)


def test_a_snapshot_is_one_run() -> None:
    assert key_runs(np.random.default_rng(0).permutation(384) + 5) == [(5, 389)]
