"""The number that tells which rows were trained in which steps."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from leapray.training.tally import Tally

KEYS = st.lists(st.integers(0, 2**62), min_size=1, max_size=20, unique=True)


def total(steps: list[list[int]]) -> Tally:
    return sum((Tally.of(np.array(keys), step) for step, keys in enumerate(steps)), Tally())


@given(st.lists(KEYS, min_size=1, max_size=5), st.randoms(), st.integers(1, 4))
def test_neither_order_nor_ranks_matter(steps: list[list[int]], random: np.random.Generator, ranks: int) -> None:
    whole = total(steps)
    assert whole.rows == sum(map(len, steps))
    shuffled = [random.sample(keys, len(keys)) for keys in steps]  # type: ignore[attr-defined]
    assert total(shuffled) == whole
    parts = [[keys[rank::ranks] for keys in steps] for rank in range(ranks)]
    arrays = [total(own).to_array() for own in parts]
    assert Tally.of_ranks(arrays) == whole


@given(st.lists(KEYS, min_size=2, max_size=5), st.data())
def test_another_row_or_another_step_does(steps: list[list[int]], data: st.DataObject) -> None:
    step = data.draw(st.integers(0, len(steps) - 1))
    keys = steps[step]
    assert total([*steps[:step], [*keys[:-1], max(keys) + 1], *steps[step + 1 :]]) != total(steps)
    assert total([*steps[:step], keys + keys[:1], *steps[step + 1 :]]) != total(steps)
    assert total([[], *steps]) != total(steps)
