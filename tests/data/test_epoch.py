import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from leapray.data.epoch import EpochPlan
from leapray.data.shards import GROUP_ROWS

shards = st.lists(st.integers(1, 60), min_size=1, max_size=12)


def step_rows(plan: EpochPlan, lanes: int, step: int) -> list[tuple[int, int]]:
    """(shard, row) of every row that a step uses."""
    return [
        (span.shard, int(row))
        for lane in range(lanes)
        for span in plan.spans(lane, step, step + 1)
        for row in plan.shard_order(span.shard)[span.start : span.stop]
    ]


def make(rows: list[int], lanes: int, lane_rows: int, epoch: int = 0) -> EpochPlan:
    sources = [index % 2 for index in range(len(rows))]
    return EpochPlan(rows, sources, batch_size=lanes * lane_rows, lanes=lanes, seed=5, epoch=epoch)


@given(shards, st.integers(1, 4), st.integers(1, 7))
def test_an_epoch_uses_every_row_at_most_once_and_drops_less_than_a_batch(rows: list[int], lanes: int, lane_rows: int) -> None:
    plan = make(rows, lanes, lane_rows)
    used = [row for step in range(plan.steps) for row in step_rows(plan, lanes, step)]
    assert len(used) == len(set(used)) == plan.steps * lanes * lane_rows
    assert sum(rows) - len(used) < lanes * lane_rows
    assert all(row < rows[shard] for shard, row in used)


@given(shards, st.integers(1, 7), st.integers(1, 40))
def test_chunks_of_any_world_cover_the_same_steps(rows: list[int], lane_rows: int, chunk_rows: int) -> None:
    plan = make(rows, 4, lane_rows)
    for world in (1, 2, 4):
        chunks = plan.chunks(world, chunk_rows)
        for rank in range(world):
            mine = [step for chunk in chunks if chunk.rank == rank for step in range(chunk.first_step, chunk.last_step)]
            assert mine == list(range(plan.steps))
        assert [chunk.rank for chunk in chunks] == list(range(world)) * (len(chunks) // world)
        turns = [chunks[turn : turn + world] for turn in range(0, len(chunks), world)]
        assert all(len({(chunk.first_step, chunk.last_step) for chunk in turn}) == 1 for turn in turns)


@given(shards, st.integers(1, 7), st.data())
def test_a_resumed_plan_is_the_rest_of_the_plan(rows: list[int], lane_rows: int, data: st.DataObject) -> None:
    plan = make(rows, 2, lane_rows)
    first = data.draw(st.integers(0, plan.steps))
    resumed = [step for chunk in plan.chunks(1, 10, first) for step in range(chunk.first_step, chunk.last_step)]
    assert resumed == list(range(first, plan.steps))


def test_epochs_differ_and_repeat_by_seed() -> None:
    rows = [40, 50, 60]
    first, again, other = make(rows, 2, 5), make(rows, 2, 5), make(rows, 2, 5, epoch=1)
    assert step_rows(first, 2, 0) == step_rows(again, 2, 0) != step_rows(other, 2, 0)


def test_sources_are_mixed_in_every_step() -> None:
    rows, sources = [100] * 90, [0] * 60 + [1] * 30
    plan = EpochPlan(rows, sources, batch_size=80, lanes=8, seed=0, epoch=0)
    share = [np.mean([sources[shard] for shard, _ in step_rows(plan, 8, step)]) for step in range(plan.steps)]
    assert abs(np.mean(share) - 1 / 3) < 0.02
    assert np.mean([0 < value < 1 for value in share]) > 0.9


def test_a_step_holds_the_same_rows_for_any_number_of_workers() -> None:
    plan = make([40, 50, 60, 33], 8, 3)
    whole = [sorted(step_rows(plan, 8, step)) for step in range(plan.steps)]
    for world in (2, 4, 8):
        lanes = 8 // world
        for step in range(plan.steps):
            of_ranks = [
                (span.shard, int(row))
                for rank in range(world)
                for lane in range(rank * lanes, (rank + 1) * lanes)
                for span in plan.spans(lane, step, step + 1)
                for row in plan.shard_order(span.shard)[span.start : span.stop]
            ]
            assert sorted(of_ranks) == whole[step]


def test_rows_of_a_row_group_stay_together_and_in_a_new_order() -> None:
    plan = EpochPlan([2 * GROUP_ROWS + 5], [0], batch_size=1, lanes=1, seed=0, epoch=0)
    order = plan.shard_order(0)
    assert sorted(order.tolist()) == list(range(2 * GROUP_ROWS + 5))
    assert (np.diff(order // GROUP_ROWS) != 0).sum() == 2
    assert (np.diff(order) == 1).mean() < 0.01
