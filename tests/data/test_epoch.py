"""The plan of an epoch, as a pure function: which (shard, row) each step takes."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leapray.data.epoch import EpochPlan, Segment

shards = st.lists(st.integers(1, 60), min_size=1, max_size=12)
Row = tuple[int, int]


def make(rows: list[int], lanes: int, lane_rows: int, epoch: int = 0, shares: list[float] | None = None) -> EpochPlan:
    sources = [index % 2 for index in range(len(rows))]
    return EpochPlan(rows, sources, batch_size=lanes * lane_rows, lanes=lanes, seed=5, epoch=epoch, shares=shares)


def executed(plan: EpochPlan, lanes: range, first_step: int = 0) -> list[list[Row]]:
    """Rows of every step from ``first_step`` on, in order, as a worker with these lanes takes them from its segments."""
    held: dict[tuple[int, int], list[Row]] = {}
    segments = plan.segments(lanes, first_step)
    steps = []
    for step in range(first_step, plan.steps):
        while segments and segments[0].first_step <= step:
            segment: Segment = segments.pop(0)
            order = plan.shard_order(segment.shard)[segment.start : segment.stop]
            held.setdefault((segment.track, segment.lane), []).extend((segment.shard, int(row)) for row in order)
        taken: list[Row] = []
        for track, rows in enumerate(plan.takes(step).tolist()):
            for lane in lanes:
                # nothing is held for longer than it is needed, and nothing is missing when it is
                mine = held.get((track, lane), [])
                assert len(mine) >= rows
                taken += [mine.pop(0) for _ in range(rows)]
        steps.append(taken)
    assert not segments
    assert not any(held.values())
    return steps


@given(shards, st.integers(1, 4), st.integers(1, 7))
def test_an_epoch_uses_every_row_at_most_once_and_drops_less_than_a_batch(rows: list[int], lanes: int, lane_rows: int) -> None:
    plan = make(rows, lanes, lane_rows)
    used = [row for step in executed(plan, range(lanes)) for row in step]
    assert len(used) == len(set(used)) == plan.steps * lanes * lane_rows
    assert sum(rows) - len(used) < lanes * lane_rows
    assert all(row < rows[shard] for shard, row in used)


@given(shards, st.integers(1, 7), st.data())
def test_a_resumed_plan_is_the_rest_of_the_plan(rows: list[int], lane_rows: int, data: st.DataObject) -> None:
    plan = make(rows, 2, lane_rows)
    first = data.draw(st.integers(0, plan.steps))
    assert executed(plan, range(2), first) == executed(plan, range(2))[first:]


@given(st.lists(st.integers(20, 90), min_size=4, max_size=9), st.floats(0.2, 5), st.integers(0, 5), st.data())
def test_weights_are_exact_in_every_step_and_a_resumed_plan_is_the_rest(
    rows: list[int], weight: float, epoch: int, data: st.DataObject
) -> None:
    lanes, lane_rows = 2, 9
    plan = make(rows, lanes, lane_rows, epoch, [1.0, weight])
    steps = executed(plan, range(lanes))
    used = [row for step in steps for row in step]
    assert len(used) == len(set(used))
    share = weight / (1 + weight)
    for count, step in enumerate(steps, start=1):
        assert len(step) == lanes * lane_rows
        second = sum(shard % 2 for taken in steps[:count] for shard, _ in taken)
        assert abs(second - share * count * lanes * lane_rows) <= lanes
    first = data.draw(st.integers(0, plan.steps))
    assert executed(plan, range(lanes), first) == steps[first:]


@pytest.mark.parametrize(
    ("rows", "words"), [([1000, 536], "536 of 1,536 training rows (35 %) fill no batch of 1,000"), ([1200, 800], None)]
)
def test_rows_that_fill_no_batch_are_counted_and_left_out(rows: list[int], words: str | None) -> None:
    plans = [EpochPlan(rows, [0, 1], batch_size=1000, lanes=8, seed=0, epoch=epoch) for epoch in range(2)]
    used = [{row for step in executed(plan, range(8)) for row in step} for plan in plans]
    assert [len(rows) for rows in used] == [plan.steps * 1000 for plan in plans]
    assert all((words in plan.remainder) if words and plan.remainder else plan.remainder is words for plan in plans)
    # other rows every time
    assert (used[0] != used[1]) == bool(words)


def test_an_epoch_with_weights_ends_with_the_source_that_is_used_up_first() -> None:
    plan = EpochPlan([100, 1000], [0, 1], batch_size=30, lanes=2, seed=0, epoch=0, shares=[2, 1])
    assert plan.steps == 5
    assert plan.taken[-1].tolist() == [50, 25]


def test_pairs_take_equally_many_rows_of_each_source_in_every_step() -> None:
    plan = EpochPlan([40, 70, 90], [0, 1, 1], batch_size=16, lanes=4, seed=0, epoch=0, shares=[1, 1])
    assert plan.steps == 5
    for step in executed(plan, range(4)):
        # the rows of a source stand together
        assert [min(shard, 1) for shard, _ in step] == [0] * 8 + [1] * 8


def test_a_large_source_goes_on_where_the_last_epoch_stopped_until_all_its_rows_were_used() -> None:
    rows, seen = [30, 50, 50], Counter[Row]()
    for epoch in range(3):
        plan = EpochPlan(rows, [0, 1, 1], batch_size=10, lanes=1, seed=0, epoch=epoch, shares=[1, 1])
        seen.update(row for step in executed(plan, range(1)) for row in step)
    large = {row: count for row, count in seen.items() if row[0] > 0}
    assert sorted(large) == [(shard, row) for shard in (1, 2) for row in range(50) if (shard, row) in large]
    assert len(large) == 90
    assert set(large.values()) == {1}
    assert {count for row, count in seen.items() if row[0] == 0} == {3}


def test_epochs_differ_and_repeat_by_seed() -> None:
    rows = [40, 50, 60]
    first, again, other = (executed(make(rows, 2, 5, epoch), range(2)) for epoch in (0, 0, 1))
    assert first == again != other


def test_sources_are_mixed_in_every_step() -> None:
    rows, sources = [100] * 90, [0] * 60 + [1] * 30
    plan = EpochPlan(rows, sources, batch_size=80, lanes=8, seed=0, epoch=0)
    share = [np.mean([sources[shard] for shard, _ in step]) for step in executed(plan, range(8))]
    assert abs(np.mean(share) - 1 / 3) < 0.02
    assert np.mean([0 < value < 1 for value in share]) > 0.9


@pytest.mark.parametrize("shares", [None, [3.0, 1.0]])
def test_a_step_holds_the_same_rows_for_any_number_of_workers(shares: list[float] | None) -> None:
    plan = make([40, 50, 60, 33], 8, 4, shares=shares)
    whole = [sorted(step) for step in executed(plan, range(8))]
    for world in (2, 4, 8):
        lanes = 8 // world
        ranks = [executed(plan, range(rank * lanes, (rank + 1) * lanes)) for rank in range(world)]
        assert {len(rank) for rank in ranks} == {plan.steps}
        assert [sorted(row for rank in ranks for row in rank[step]) for step in range(plan.steps)] == whole
        assert {len(step) for rank in ranks for step in rank} == {lanes * 4}


def test_rows_of_a_shard_are_put_in_a_new_order() -> None:
    order = make([3000], 1, 1).shard_order(0)
    assert sorted(order.tolist()) == list(range(3000))
    assert (np.diff(order) == 1).mean() < 0.01


def test_a_share_of_less_than_a_row_of_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="is not one row of a lane's 4"):
        make([40, 40], 2, 4, shares=[100.0, 1.0])
