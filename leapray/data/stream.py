"""An epoch's plan executed: shards or flat files in, one batch of scaled rows per worker and step out.

Files are read whole, in the order in which a worker's steps need them; the worker keeps what it has of each lane and copies every
step's rows from there. Flat files are scaled by Ray Data's tasks, wherever on the cluster there are CPUs; a shard only has to be read,
and the worker's own threads do that at twice the rate, without a task to start or a copy through the object store.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import ray.data

from leapray.cluster.nodes import autoscaled, parallelism
from leapray.data.epoch import EpochPlan
from leapray.data.reading import map_ahead, read_file
from leapray.data.shards import FlatFile, Manifest, Prepared, Rows, ShardFile, rows_to_table, table_to_rows
from leapray.data.transform import Transform
from leapray.errors import UserError
from leapray.recipe import Recipe

_PREFETCH = 2
_THREADS, _BATCHES = 3, 2
"""Shards that a worker reads, and batches that it puts together, ahead of their use."""
_NUMBER = "number"


class Stream:
    """Batches of one worker: rank ``rank`` of ``world``, which all make the same Stream and ask for the same epochs.

    A batch holds ``inputs`` (n, s) and ``targets`` (n, t), float32, ``row`` int64 (n,) and ``source`` int16 (n,), the number
    of the row's source among ``Stream.sources``, whose ``kinds`` are told too. Training takes the rows of ``sources``, by default all;
    with ``shares``, by source, those of one stand together, in that order.
    """

    def __init__(
        self,
        prepared: Prepared,
        *,
        batch_size: int,
        lanes: int,
        seed: int,
        sources: Sequence[str] | None = None,
        shares: Mapping[str, float] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Raises UserError when there are fewer training rows than one batch, a share is too small, or there are no validation rows."""
        manifests = tuple(manifest for manifest in prepared.split("train") if sources is None or manifest.source in sources)
        if shares is not None:
            manifests = tuple(next(manifest for manifest in manifests if manifest.source == name) for name in shares)
        validation = prepared.split("validation")
        kinds = {manifest.source: manifest.kind for manifest in (*manifests, *validation)}
        self.sources, self.kinds = tuple(kinds), tuple(kinds.values())
        self.transform = prepared.transform
        self._training = _Shards(manifests, prepared.transform)
        self._validation = _Shards(validation, prepared.transform)
        self._validation_sources = [self.sources.index(manifest.source) for manifest in validation]
        self._batch_size, self._lanes, self._seed = batch_size, lanes, seed
        self._shares = None if shares is None else list(shares.values())
        self._rank, self._world = rank, world
        self.validation_rows = sum(self._validation.rows)
        try:
            first = self._plan(0)
        except ValueError as error:
            raise UserError(f"training.batch_size {batch_size} is too small for these weights: {error}") from error
        self.steps, self.remainder = first.steps, first.remainder
        if self.steps == 0:
            raise UserError(f"{prepared.url}: {sum(self._training.rows)} training rows do not fill one batch of {batch_size}")
        if self.validation_rows == 0:
            raise UserError(f"{prepared.url}: no validation rows; give a source validation months")

    @classmethod
    def of(cls, recipe: Recipe, prepared: Prepared, rank: int = 0, world: int = 1) -> Stream:
        """What a recipe trains on, as its worker ``rank`` of ``world`` gets it."""
        return cls(
            prepared,
            batch_size=recipe.training.batch_size,
            lanes=recipe.lanes,
            seed=recipe.training.seed,
            sources=recipe.trained,
            shares=recipe.shares,
            rank=rank,
            world=world,
        )

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
        """This worker's batches of an epoch, ``batch_size / world`` rows each, or a lane's more or less, from ``first_step`` on."""
        yield from map_ahead(_batch, self._parts(self._plan(epoch), first_step), _BATCHES)

    def _parts(self, plan: EpochPlan, first_step: int) -> Iterator[list[_Part]]:
        """The rows of every step's batch, not yet copied together."""
        first, last = (rank * self._lanes // self._world for rank in (self._rank, self._rank + 1))
        lanes = range(first, last)
        segments = plan.segments(lanes, first_step)
        blocks = self._training.blocks([segment.shard for segment in segments], self._world)
        waiting = iter(segments)
        held: dict[tuple[int, int], _Held] = defaultdict(_Held)
        ahead = next(waiting, None)
        for step in range(first_step, plan.steps):
            while ahead is not None and ahead.first_step <= step:
                order = plan.shard_order(ahead.shard)[ahead.start : ahead.stop]
                held[ahead.track, ahead.lane].add(next(blocks), order, self._training.sources[ahead.shard])
                ahead = next(waiting, None)
            takes = [(held[track, lane], rows) for track, rows in enumerate(plan.takes(step).tolist()) for lane in lanes]
            yield [part for lane, rows in takes for part in lane.take(rows)]

    def validate(self) -> Iterator[Rows]:
        """This worker's part of the validation rows, whole shards; every row is in exactly one worker's part."""
        size = self._batch_size // self._world
        shards = range(self._rank, len(self._validation.rows), self._world)
        for shard, block in zip(shards, self._validation.blocks(shards, self._world), strict=True):
            source = self._validation_sources[self._validation.sources[shard]]
            block = {**block, "source": np.full(len(block["row"]), source, np.int16)}
            for start in range(0, len(block["row"]), size):
                yield {name: values[start : start + size] for name, values in block.items()}


class _Held:
    """Rows of one lane and track that have arrived and were not yet taken, in the order in which they will be."""

    def __init__(self) -> None:
        self._blocks: list[_Part] = []
        self._start = 0

    def add(self, block: Rows, order: np.ndarray, source: int) -> None:
        self._blocks.append(_Part(block, order, source))

    def take(self, rows: int) -> Iterator[_Part]:
        """The next rows, in as many parts as they lie in."""
        while rows:
            block = self._blocks[0]
            stop = min(self._start + rows, len(block.order))
            yield _Part(block.rows, block.order[self._start : stop], block.source)
            rows -= stop - self._start
            self._start = stop
            if stop == len(block.order):
                self._blocks.pop(0)
                self._start = 0


class _Part(NamedTuple):
    """Rows of a block by their numbers, and their source."""

    rows: Rows
    order: np.ndarray
    source: int


def _batch(parts: Sequence[_Part]) -> Rows:
    """The parts one after another, each row copied once."""
    counts = [len(part.order) for part in parts]
    edges = np.cumsum([0, *counts]).tolist()
    batch = {name: np.empty((edges[-1], *values.shape[1:]), values.dtype) for name, values in parts[0].rows.items()}
    for part, start, stop in zip(parts, edges, edges[1:], strict=False):
        for name, values in part.rows.items():
            # clip: numbers are those of a permutation, and to check them numpy would copy
            values.take(part.order, axis=0, out=batch[name][start:stop], mode="clip")
    return batch | {"source": np.repeat(np.array([part.source for part in parts], np.int16), counts)}


class _Shards:
    """The files of several manifests under one numbering."""

    def __init__(self, manifests: tuple[Manifest, ...], transform: Transform) -> None:
        self._files = [(manifest, index) for manifest in manifests for index in range(len(manifest.files))]
        self._transform = transform
        # to checksum a shard takes as long as to read it, so that is done once in a process
        self._verified: set[int] = set()
        self.rows = [manifest.files[index].rows for manifest, index in self._files]
        self.sources = [source for source, manifest in enumerate(manifests) for _ in manifest.files]

    def blocks(self, shards: Sequence[int], world: int) -> Iterator[Rows]:
        """The scaled rows of each of the shards, in that order, read ahead for one worker of ``world``."""
        if not len(shards):
            return
        plain = all(isinstance(self._file(shard), ShardFile) for shard in shards)
        blocks = map_ahead(self._read, shards, _THREADS) if plain else self._blocks_of_tasks(shards, world)
        for shard, block in zip(shards, blocks, strict=True):
            if len(block["row"]) != self.rows[shard]:
                raise RuntimeError(f"{self._file(shard)} did not arrive whole: {len(block['row'])} rows, expected {self.rows[shard]}")
            yield block

    def _file(self, shard: int) -> ShardFile | FlatFile:
        manifest, index = self._files[shard]
        return manifest.files[index]

    def _read(self, shard: int) -> Rows:
        manifest, index = self._files[shard]
        rows = read_file(manifest, index, self._transform, verify=shard not in self._verified)
        self._verified.add(shard)
        return rows

    def _blocks_of_tasks(self, shards: Sequence[int], world: int) -> Iterator[Rows]:
        """The same read and scaled by Ray Data's tasks, wherever there are CPUs."""
        files, transform = self._files, self._transform

        def read(batch: pa.Table) -> pa.Table:
            number = batch.column("id")[0].as_py()
            manifest, index = files[shards[number]]
            table = rows_to_table(read_file(manifest, index, transform))
            return table.append_column(_NUMBER, pa.repeat(number, len(table)))

        dataset = ray.data.range(len(shards), override_num_blocks=len(shards))
        dataset.context.execution_options.preserve_order = True
        # a file must stay one block
        dataset.context.target_max_block_size = None
        # a cluster that grows only does so for tasks that wait
        tasks = len(shards) if autoscaled() else min(len(shards), max(parallelism() // world, 1))
        dataset = dataset.map_batches(read, batch_size=None, batch_format="pyarrow", concurrency=tasks)
        tables = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=_PREFETCH)
        for number, table in enumerate(tables):
            if table.column(_NUMBER)[0].as_py() != number:
                raise RuntimeError(f"file {shards[number]} did not arrive in its turn, as number {number}")
            yield table_to_rows(table)
