import json
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import product
from math import log10
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from leapray.errors import UserError
from leapray.training.space import OptunaSampler, draw, grid_size


@dataclass(frozen=True)
class Dimension:
    """One searched key, as a recipe has it."""

    choice: tuple[Any, ...] | None = None
    grid: tuple[Any, ...] | None = None
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    integer: tuple[int, int] | None = None

    def holds(self, value):
        """Whether a value is one of this dimension, and of its type."""
        options = self.choice if self.choice is not None else self.grid
        if options is not None:
            return value in options
        low, high = self.uniform or self.loguniform or self.integer
        return type(value) is (int if self.integer else float) and low <= value <= high


PLAIN = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
OPTIONS = st.lists(PLAIN, min_size=1, max_size=4).map(tuple)


def ends(values):
    return st.tuples(values, values).map(lambda pair: tuple(sorted(pair)))


DIMENSIONS = st.one_of(
    st.builds(Dimension, choice=OPTIONS),
    st.builds(Dimension, grid=OPTIONS),
    st.builds(Dimension, uniform=ends(st.floats(-1e9, 1e9))),
    st.builds(Dimension, loguniform=ends(st.floats(1e-9, 1e9))),
    st.builds(Dimension, integer=ends(st.integers(-(10**9), 10**9))),
)
SPACES = st.dictionaries(st.text(min_size=1, max_size=5), DIMENSIONS, max_size=5)
SEEDS = st.integers(0, 2**32 - 1)


@given(space=SPACES, number=st.integers(0, 99), more=st.integers(1, 99), seed=SEEDS)
def test_a_trial_has_the_same_values_whenever_it_is_drawn(space, number, more, seed):
    values = draw(space, number, number + 1, seed)
    assert list(values) == list(space)
    assert all(space[key].holds(value) for key, value in values.items())
    reordered = dict(reversed(space.items()))
    assert draw(reordered, number, number + more, seed) == values
    assert json.loads(json.dumps(values)) == yaml.safe_load(yaml.safe_dump(values)) == values


@given(grids=st.lists(st.integers(1, 4), max_size=3), cycles=st.integers(1, 3), seed=SEEDS)
def test_every_grid_point_comes_once_in_each_cycle(grids, cycles, seed):
    space = {f"key{index}": Dimension(grid=tuple(range(size))) for index, size in enumerate(grids)} | {"x": Dimension(uniform=(0, 1))}
    trials = cycles * grid_size(space)
    drawn = [draw(space, number, trials, seed) for number in range(trials)]
    points = Counter(tuple(values[f"key{index}"] for index in range(len(grids))) for values in drawn)
    assert points == dict.fromkeys(product(*map(range, grids)), cycles)
    # values have six digits, of which two may be alike
    assert len({values["x"] for values in drawn}) >= trials - 1


def test_a_space_without_a_grid_has_one_point():
    assert grid_size({}) == grid_size({"x": Dimension(choice=(1, 2))}) == 1


def test_trials_and_seeds_differ():
    space = {"x": Dimension(uniform=(0, 1))}
    assert len({draw(space, number, 50, seed)["x"] for number in range(50) for seed in range(20)}) > 990


def values_of(dimension, trials=3000):
    return [draw({"x": dimension}, number, trials, seed=1)["x"] for number in range(trials)]


def test_loguniform_gives_every_decade_its_share():
    decades = Counter(int(log10(value) // 1) for value in values_of(Dimension(loguniform=(1e-6, 1e-1))))
    assert sorted(decades) == [-6, -5, -4, -3, -2]
    # 600 of 3000 expected, standard deviation 22
    assert all(abs(count - 600) < 110 for count in decades.values())


def test_uniform_fills_its_range_evenly():
    counts, _ = np.histogram(values_of(Dimension(uniform=(-2.0, 3.0))), bins=5, range=(-2, 3))
    assert all(abs(count - 600) < 110 for count in counts)


def test_integers_and_choices_are_drawn_with_both_ends_and_alike():
    for dimension in (Dimension(integer=(3, 7)), Dimension(choice=(3, 4, 5, 6, 7))):
        counts = Counter(values_of(dimension))
        assert sorted(counts) == [3, 4, 5, 6, 7]
        assert all(abs(count - 600) < 110 for count in counts.values())


def test_floats_read_well():
    assert all(value == float(f"{value:.6g}") for value in values_of(Dimension(loguniform=(1e-6, 1e-1)), 50))


def test_what_is_drawn_may_be_changed_without_changing_the_space():
    space = {"x": Dimension(choice=({"lr": [1]},)), "y": Dimension(grid=({"lr": [1]},))}
    values = draw(space, 0, 1, seed=0)
    values["x"]["lr"].append(2)
    values["y"]["lr"].append(2)
    assert draw(space, 0, 1, seed=0) == {"x": {"lr": [1]}, "y": {"lr": [1]}}


@pytest.mark.parametrize("number", [-1, 3])
def test_a_number_that_is_no_trial_is_refused(number):
    with pytest.raises(ValueError, match=f"trial {number} is not one of 3"):
        draw({}, number, 3, seed=0)


WIDE = {
    "lr": Dimension(loguniform=(1e-6, 1.0)),
    "network": Dimension(choice=({"name": "wide", "options": {"sizes": [4, 4]}}, {"name": "deep"})),
    "depth": Dimension(integer=(1, 6)),
    "dropout": Dimension(uniform=(0.0, 0.5)),
    "batch": Dimension(grid=(64, 128)),
}


def score(values):
    """Best, 1, at a learning rate of 1e-3 and a depth of 4 of the deep network."""
    return 1 - abs(log10(values["lr"]) + 3) - abs(values["depth"] - 4) - (values["network"]["name"] == "wide")


def searched(sampler, numbers):
    """Trials one after the other: their values and scores."""
    found = []
    for number in numbers:
        values = sampler.suggest(number)
        sampler.tell(number, score(values))
        found.append((values, score(values)))
    return found


@given(space=SPACES, seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_optuna_suggests_values_of_the_space(space, seed):
    sampler = OptunaSampler(space, seed)
    for number in range(3):
        values = sampler.suggest(number)
        assert list(values) == list(space)
        assert all(space[key].holds(value) for key, value in values.items())
        assert json.loads(json.dumps(values)) == values
        sampler.tell(number, 0.5)


def test_optuna_searches_where_the_score_is_high():
    found = [score for _, score in searched(OptunaSampler(WIDE, seed=3), range(40))]
    assert np.mean(found[-10:]) > np.mean(found[:10]) + 1


def test_a_search_that_goes_on_suggests_what_it_would_have_without_a_break():
    undisturbed = searched(OptunaSampler(WIDE, seed=3), range(20))
    sampler = OptunaSampler(WIDE, seed=3)
    sampler.restore((json.loads(json.dumps(values)), score) for values, score in undisturbed[:15])
    assert searched(sampler, range(15, 20)) == undisturbed[15:]


def test_an_interrupted_trial_goes_on_with_its_values():
    sampler = OptunaSampler(WIDE, seed=3)
    values = sampler.suggest(0)
    sampler.tell(0, score(values))
    interrupted, later = sampler.suggest(1), sampler.suggest(2)
    restored = OptunaSampler(WIDE, seed=3)
    restored.restore([(values, score(values))])
    assert restored.suggest(1, interrupted) == interrupted
    assert restored.suggest(2) == later


def test_a_search_that_goes_on_does_not_begin_with_the_same_trials_again():
    first = searched(OptunaSampler(WIDE, seed=3), range(4))
    sampler = OptunaSampler(WIDE, seed=3)
    sampler.restore(first)
    again = searched(sampler, range(4, 8))
    assert not {values["lr"] for values, _ in first} & {values["lr"] for values, _ in again}


def test_optuna_has_trials_in_parallel_told_in_any_order_and_those_without_a_score_leave_no_trace():
    sampler = OptunaSampler(WIDE, seed=3)
    drawn = {number: sampler.suggest(number) for number in range(20)}
    assert len({values["lr"] for values in drawn.values()}) == 20
    finished = []
    for number in reversed(range(20)):
        if number % 4:
            sampler.tell(number, score(drawn[number]))
            finished.append((drawn[number], score(drawn[number])))
        else:
            sampler.forget(number)
    restored = OptunaSampler(WIDE, seed=3)
    restored.restore(finished)
    assert restored.suggest(20) == sampler.suggest(20)


def test_an_earlier_trial_of_another_space_is_refused():
    earlier = draw(WIDE, 0, 1, seed=0)
    for wrong in ({"lr": 5.0}, {"network": {"name": "other"}}, {"depth": None}):
        with pytest.raises(UserError, match="not of this search space"):
            OptunaSampler(WIDE, seed=3).restore([(earlier | wrong, 0.5)])
        with pytest.raises(UserError, match="not of this search space"):
            OptunaSampler(WIDE, seed=3).suggest(0, earlier | wrong)
    del earlier["lr"]
    with pytest.raises(UserError, match="'lr'"):
        OptunaSampler(WIDE, seed=3).restore([(earlier, 0.5)])


def test_without_optuna_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'leapray\[optuna\]'"):
        OptunaSampler(WIDE, seed=3)
