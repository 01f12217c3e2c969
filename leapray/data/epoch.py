"""The plan of an epoch: which rows of which shards each step takes, as a pure function of row counts, seed and epoch.

The shards of all sources are put in a random order that spreads every source evenly; inside a shard its row groups are put in
random order, and the rows inside each group, so that a part of a shard can be read alone. The resulting sequence is cut into
``lanes`` equal runs, and every step takes the next ``batch_size / lanes`` rows of each lane. A worker serves whole lanes, so a step
holds the same rows whatever the number of workers, every row is used at most once, fewer than ``batch_size`` are left out (others
in each epoch), and the plan from step k on is what a resumed run executes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from leapray.data.shards import GROUP_ROWS


@dataclass(frozen=True)
class Span:
    """Rows ``start`` up to ``stop`` of a shard, counted in the epoch's order of that shard."""

    shard: int
    start: int
    stop: int


@dataclass(frozen=True)
class Chunk:
    """What one worker takes in steps ``first_step`` up to ``last_step``, not included."""

    rank: int
    first_step: int
    last_step: int


class EpochPlan:
    """The plan over shards numbered as in ``shard_rows``; ``sources[i]`` says which source shard i belongs to."""

    def __init__(self, shard_rows: Sequence[int], sources: Sequence[int], *, batch_size: int, lanes: int, seed: int, epoch: int) -> None:
        if batch_size % lanes:
            raise ValueError(f"batch size {batch_size} is not a multiple of {lanes} lanes")
        self.seed = seed
        self.epoch = epoch
        self.lanes = lanes
        self.lane_rows = batch_size // lanes
        self._rows = np.asarray(shard_rows, dtype=np.int64)
        self.steps = int(self._rows.sum()) // batch_size
        self._order = _spread(np.asarray(sources), self._generator())
        self._edges = np.concatenate([[0], np.cumsum(self._rows[self._order])])

    def _generator(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.epoch, *key])

    def shard_order(self, shard: int) -> np.ndarray:
        """The epoch's order of the rows inside a shard: a permutation of ``range(rows)`` that keeps row groups together."""
        generator, rows = self._generator(shard), int(self._rows[shard])
        groups = generator.permutation(-(-rows // GROUP_ROWS))
        return np.concatenate([start + generator.permutation(min(GROUP_ROWS, rows - start)) for start in groups * GROUP_ROWS])

    def spans(self, lane: int, first_step: int, last_step: int) -> Iterator[Span]:
        """Where the rows of one lane in steps ``first_step`` up to ``last_step`` lie, in the order in which they are used."""
        start = (lane * self.steps + first_step) * self.lane_rows
        stop = (lane * self.steps + last_step) * self.lane_rows
        position = int(np.searchsorted(self._edges, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(self._edges[position + 1]))
            if end > start:
                base = int(self._edges[position])
                yield Span(int(self._order[position]), start - base, end - base)
            start, position = max(start, end), position + 1

    def chunks(self, world: int, rows: int, first_step: int = 0) -> list[Chunk]:
        """Work from ``first_step`` on for ``world`` workers, dealt in turn: each of about ``rows`` rows, equal within a turn."""
        if self.lanes % world:
            raise ValueError(f"{self.lanes} lanes cannot be shared equally by {world} workers")
        steps = max(rows // (self.lane_rows * self.lanes // world), 1)
        return [
            Chunk(rank, first, min(first + steps, self.steps)) for first in range(first_step, self.steps, steps) for rank in range(world)
        ]


def _spread(sources: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Random order of shards in which every source's shards are spread evenly from beginning to end."""
    position = np.empty(len(sources))
    for source in np.unique(sources):
        members = np.flatnonzero(sources == source)
        position[members] = (generator.permutation(len(members)) + generator.random(len(members))) / len(members)
    return np.argsort(position, kind="stable")
