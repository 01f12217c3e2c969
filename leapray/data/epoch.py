"""The plan of an epoch: which rows of which shards each step takes, as a pure function of row counts, shares, seed and epoch.

Sources are mixed in one of two ways. Without shares, the shards of all of them make one track, in a random order that spreads
every source evenly. With shares, each source is a track of its own, and every step takes its share of rows from each.
A track is cut into ``lanes`` equal runs, and a step takes the next rows of every lane. A worker serves whole lanes, so a step holds
the same rows whatever the number of workers, no row is used twice in an epoch, and the plan from step k on is what a resumed run
executes. An epoch ends with the track that is used up first; the others go on in the next epoch where they stopped, until
what they have left fills no epoch and they are shuffled anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Segment:
    """Rows ``start`` up to ``stop`` of a shard, counted in the epoch's order of that shard, which one lane takes from one track.

    ``first_step`` is the step that needs the first of them.
    """

    first_step: int
    lane: int
    track: int
    shard: int
    start: int
    stop: int


class EpochPlan:
    """The plan over shards numbered as in ``shard_rows``; ``sources[i]`` says which source shard i belongs to.

    ``shares`` gives each source, by number, its part of every step's rows, in proportion; None mixes them by their rows. Raises
    ValueError when lanes do not divide the batch, or a share is less than one row of a lane's step.
    """

    def __init__(
        self,
        shard_rows: Sequence[int],
        sources: Sequence[int],
        *,
        batch_size: int,
        lanes: int,
        seed: int,
        epoch: int,
        shares: Sequence[float] | None = None,
    ) -> None:
        if batch_size % lanes:
            raise ValueError(f"batch size {batch_size} is not a multiple of {lanes} lanes")
        self.seed, self.lanes, self.lane_rows = seed, lanes, batch_size // lanes
        self._rows = np.asarray(shard_rows, dtype=np.int64)
        members = np.asarray(sources)
        tracks = [np.arange(len(members))] if shares is None else [np.flatnonzero(members == source) for source in range(len(shares))]
        self._shares = np.cumsum([1.0] if shares is None else np.asarray(shares) / np.sum(shares))
        if np.diff(self._shares, prepend=0.0).min() * self.lane_rows < 1:
            raise ValueError(f"a share of {np.diff(self._shares, prepend=0.0).min():.3g} is not one row of a lane's {self.lane_rows}")
        # rounding must not lose a row of the last share
        self._shares[-1] = 1.0
        held = np.array([self._rows[track].sum() for track in tracks])
        self.steps = self._count_steps(held)
        self.taken = self._taken(np.arange(self.steps + 1))
        """Rows of every track ``(steps + 1, tracks)`` that a lane has taken before each step."""
        used = lanes * self.taken[-1]
        self._passes = [epoch // max(int(rows // max(use, 1)), 1) for rows, use in zip(held, used, strict=True)]
        self._offsets = [epoch % max(int(rows // max(use, 1)), 1) * int(use) for rows, use in zip(held, used, strict=True)]
        self._pass_of = np.zeros(len(self._rows), dtype=np.int64)
        self._order, self._edges = [], []
        for number, (track, passed) in enumerate(zip(tracks, self._passes, strict=True)):
            self._pass_of[track] = passed
            order = track[_spread(members[track], np.random.default_rng([seed, passed, 0, number]))]
            self._order.append(order)
            self._edges.append(np.concatenate([[0], np.cumsum(self._rows[order])]))

    def _taken(self, steps: np.ndarray) -> np.ndarray:
        """Rows of each track after a number of steps: the cumulative shares rounded, so that they always sum to the step's rows."""
        bounds = np.floor(np.multiply.outer(steps * self.lane_rows, self._shares) + 0.5).astype(np.int64)
        return np.diff(bounds, axis=-1, prepend=0)

    def _count_steps(self, held: np.ndarray) -> int:
        """The most steps that no track is too short for."""
        shares = np.diff(self._shares, prepend=0.0)
        steps = int((held / (shares * self.lane_rows * self.lanes)).min()) + 1
        while steps and (self.lanes * self._taken(np.array([steps]))[0] > held).any():
            steps -= 1
        return steps

    @property
    def remainder(self) -> str | None:
        """One sentence on the rows that fill no batch, which every epoch leaves out; None where there are none, or sources have shares."""
        rows = int(self._rows.sum())
        left = rows - self.lanes * int(self.taken[-1].sum())
        if len(self._order) > 1 or not left:
            return None
        counted = f"{left:,} of {rows:,} training rows ({100 * left / rows:.2g} %)"
        return f"{counted} fill no batch of {self.lanes * self.lane_rows:,}: each epoch leaves out so many, drawn anew"

    def shard_order(self, shard: int) -> np.ndarray:
        """The epoch's order of the rows inside a shard: a permutation of ``range(rows)``."""
        return np.random.default_rng([self.seed, int(self._pass_of[shard]), 1, shard]).permutation(int(self._rows[shard]))

    def takes(self, step: int) -> np.ndarray:
        """Rows ``(tracks,)`` that each lane takes in a step."""
        return self.taken[step + 1] - self.taken[step]

    def segments(self, lanes: Iterable[int], first_step: int = 0) -> list[Segment]:
        """What these lanes take from ``first_step`` on, in the order in which it is needed."""
        tracks = range(len(self._order))
        return sorted(
            (segment for lane in lanes for track in tracks for segment in self._segments(lane, track, first_step)),
            key=lambda segment: (segment.first_step, segment.track, segment.lane),
        )

    def _segments(self, lane: int, track: int, first_step: int) -> Iterator[Segment]:
        taken, edges = self.taken[:, track], self._edges[track]
        begin = self._offsets[track] + lane * int(taken[-1])
        start, stop = begin + int(taken[first_step]), begin + int(taken[-1])
        position = int(np.searchsorted(edges, start, side="right")) - 1
        while start < stop:
            base, end = int(edges[position]), min(stop, int(edges[position + 1]))
            if end > start:
                needed = int(np.searchsorted(taken, start - begin, side="right")) - 1
                yield Segment(needed, lane, track, int(self._order[track][position]), start - base, end - base)
            start, position = max(start, end), position + 1


def _spread(sources: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Random order of shards in which every source's shards are spread evenly from beginning to end."""
    position = np.empty(len(sources))
    for source in np.unique(sources):
        members = np.flatnonzero(sources == source)
        position[members] = (generator.permutation(len(members)) + generator.random(len(members))) / len(members)
    return np.argsort(position, kind="stable")
