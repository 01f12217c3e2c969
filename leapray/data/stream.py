"""An epoch's plan executed by Ray Data: shards or flat files in, one batch of scaled rows per worker and step out.

A worker's segments are read whole, by tasks anywhere on the cluster, in the order in which its steps need them; the worker keeps
what it has of each lane and takes every step's rows from there. Each block carries the number of its segment, so that one that
Ray delivered out of turn would be noticed, not trained.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import ray.data

from leapray.cluster import parallelism
from leapray.data.epoch import EpochPlan
from leapray.data.reading import read_file
from leapray.data.shards import Manifest, Prepared, Rows
from leapray.data.transform import Transform
from leapray.errors import UserError

_PREFETCH = 2


class Stream:
    """Batches of one worker: rank ``rank`` of ``world``, which all make the same Stream and ask for the same epochs.

    A batch holds ``inputs`` (n, 556 + 60 F) and ``targets`` (n, 368), float32, ``row`` int64 (n,) and ``source`` int8 (n,), the number
    of the row's source among those that train. With ``shares``, by source, rows of one source stand together, in that order.
    """

    def __init__(
        self,
        prepared: Prepared,
        *,
        batch_size: int,
        lanes: int,
        seed: int,
        shares: Mapping[str, float] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Raises UserError when there are fewer training rows than one batch, a share is too small, or there are no validation rows."""
        manifests = prepared.split("train")
        if shares is not None:
            manifests = tuple(next(manifest for manifest in manifests if manifest.source == name) for name in shares)
        self.sources = tuple(manifest.source for manifest in manifests)
        self._training = _Shards(manifests, prepared.transform)
        self._validation = _Shards(prepared.split("validation"), prepared.transform)
        self._batch_size, self._lanes, self._seed = batch_size, lanes, seed
        self._shares = None if shares is None else list(shares.values())
        self._rank, self._world = rank, world
        self.validation_rows = sum(self._validation.rows)
        try:
            self.steps = self._plan(0).steps
        except ValueError as error:
            raise UserError(f"training.batch_size {batch_size} is too small for these weights: {error}") from error
        if self.steps == 0:
            raise UserError(f"{prepared.url}: {sum(self._training.rows)} training rows do not fill one batch of {batch_size}")
        if self.validation_rows == 0:
            raise UserError(f"{prepared.url}: no validation rows; give a source validation months")

    def _plan(self, epoch: int) -> EpochPlan:
        return EpochPlan(
            self._training.rows,
            self._training.sources,
            batch_size=self._batch_size,
            lanes=self._lanes,
            seed=self._seed,
            epoch=epoch,
            shares=self._shares,
        )

    def train(self, epoch: int, first_step: int = 0) -> Iterator[Rows]:
        """This worker's batches of an epoch, ``batch_size / world`` rows each, from ``first_step`` on."""
        plan, shards = self._plan(epoch), self._training
        share = self._lanes // self._world
        lanes = range(self._rank * share, (self._rank + 1) * share)
        segments = plan.segments(lanes, first_step)

        def read(index: int) -> Rows:
            segment = segments[index]
            rows = shards.take(segment.shard, plan.shard_order(segment.shard)[segment.start : segment.stop])
            source = np.full(len(rows["row"]), shards.sources[segment.shard], np.int8)
            return rows | {"source": source, "segment": np.full(len(source), index, np.int32)}

        blocks, waiting = self._blocks(len(segments), read), iter(enumerate(segments))
        held: dict[tuple[int, int], _Held] = defaultdict(_Held)
        number, ahead = next(waiting, (0, None))
        for step in range(first_step, plan.steps):
            while ahead is not None and ahead.first_step <= step:
                block = next(blocks)
                if (block.pop("segment") != number).any():
                    raise RuntimeError(f"epoch {epoch}, rank {self._rank}: segment {number} did not arrive in its turn")
                held[ahead.track, ahead.lane].add(block)
                number, ahead = next(waiting, (0, None))
            parts = [
                part for track, rows in enumerate(plan.takes(step).tolist()) for lane in lanes for part in held[track, lane].take(rows)
            ]
            yield {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def validate(self) -> Iterator[Rows]:
        """This worker's part of the validation rows, whole shards; every row is in exactly one worker's part."""
        shards, size = self._validation, self._batch_size // self._world
        mine = range(self._rank, len(shards.rows), self._world)
        for block in self._blocks(len(mine), lambda index: shards.read(mine[index])):
            for start in range(0, len(block["row"]), size):
                yield {name: values[start : start + size] for name, values in block.items()}

    def _blocks(self, count: int, read: Callable[[int], Rows]) -> Iterator[Rows]:
        """What ``read(0) … read(count - 1)`` give, in that order, read ahead by Ray Data's tasks."""
        if not count:
            return
        dataset = ray.data.range(count, override_num_blocks=count)
        dataset.context.execution_options.preserve_order = True
        # a segment must stay one block
        dataset.context.target_max_block_size = None
        dataset = dataset.map_batches(
            lambda batch: read(int(batch["id"].item())), batch_size=None, concurrency=min(count, max(parallelism() // self._world, 1))
        )
        yield from dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=_PREFETCH)


class _Held:
    """Rows of one lane and track that have arrived and were not yet taken."""

    def __init__(self) -> None:
        self._blocks: list[Rows] = []
        self._start = 0

    def add(self, block: Rows) -> None:
        self._blocks.append(block)

    def take(self, rows: int) -> Iterator[Rows]:
        """Views of the next rows, in as many parts as they lie in."""
        while rows:
            block = self._blocks[0]
            stop = min(self._start + rows, len(block["row"]))
            yield {name: values[self._start : stop] for name, values in block.items()}
            rows -= stop - self._start
            self._start = stop
            if stop == len(block["row"]):
                self._blocks.pop(0)
                self._start = 0


class _Shards:
    """The parts of several manifests under one numbering, read as scaled rows."""

    def __init__(self, manifests: tuple[Manifest, ...], transform: Transform) -> None:
        self._parts = [(manifest, index) for manifest in manifests for index in range(len(manifest.files))]
        self._transform = transform
        self.rows = [manifest.files[index].rows for manifest, index in self._parts]
        self.sources = [source for source, manifest in enumerate(manifests) for _ in manifest.files]

    def read(self, shard: int) -> Rows:
        manifest, index = self._parts[shard]
        return read_file(manifest, index, self._transform)

    def take(self, shard: int, order: np.ndarray) -> Rows:
        """Rows of a shard by their numbers, in the order given."""
        return {name: values[order] for name, values in self.read(shard).items()}
