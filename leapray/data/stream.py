"""An epoch's plan executed by Ray Data: shards in, one batch of scaled rows per worker and step out.

Chunks are read by tasks anywhere on the cluster and dealt to the workers in the plan's order. Every row carries the step that
the plan gave it, so a chunk that Ray delivered out of turn would be noticed, not trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import ray.data
import ray.train.collective

from leapray.data.epoch import Chunk, EpochPlan
from leapray.data.shards import GROUP_ROWS, Manifest, Prepared, Rows, read_shard
from leapray.errors import UserError

_CHUNK_ROWS = 32768
"""Rows of the block that one task reads (3.7 kB each): with 8 lanes four row groups of each, and on average one more at the ends."""
_PREFETCH = 2


class Stream:
    """Batches of one worker: rank ``rank`` of ``world``, which all make the same Stream and ask for the same epochs."""

    def __init__(self, prepared: Prepared, *, batch_size: int, lanes: int, seed: int, rank: int = 0, world: int = 1) -> None:
        """Raises UserError when there are fewer training rows than one batch, or no validation rows."""
        self._training = _Shards(prepared.split("train"))
        self._validation = _Shards(prepared.split("validation"))
        self._batch_size, self._lanes, self._seed = batch_size, lanes, seed
        self._rank, self._world = rank, world
        self.validation_rows = sum(self._validation.rows)
        self.steps = self._plan(0).steps
        if self.steps == 0:
            raise UserError(f"{prepared.url}: {sum(self._training.rows)} training rows do not fill one batch of {batch_size}")
        if self.validation_rows == 0:
            raise UserError(f"{prepared.url}: no validation rows; give a source validation months")

    def _plan(self, epoch: int) -> EpochPlan:
        return EpochPlan(
            self._training.rows, self._training.sources, batch_size=self._batch_size, lanes=self._lanes, seed=self._seed, epoch=epoch
        )

    def train(self, epoch: int, first_step: int = 0) -> Iterator[Rows]:
        """This worker's batches of an epoch, ``batch_size / world`` rows each, from ``first_step`` on."""
        plan, shards, world = self._plan(epoch), self._training, self._world
        chunks = plan.chunks(world, _CHUNK_ROWS, first_step)
        if not chunks:
            return
        dataset = _dataset(len(chunks), lambda index: read_chunk(plan, chunks[index], world, shards))
        batches = self._deal(dataset).iter_batches(batch_size=self._batch_size // world, batch_format="numpy", prefetch_batches=_PREFETCH)
        for step, batch in enumerate(batches, start=first_step):
            steps = batch.pop("step")
            if steps[0] != step or steps[-1] != step:
                raise RuntimeError(f"epoch {epoch}, rank {self._rank}: rows of step {steps[0]} arrived in step {step}")
            yield batch

    def validate(self) -> Iterator[Rows]:
        """This worker's part of the validation rows, whole shards; every row is in exactly one worker's part."""
        shards = self._validation
        mine = range(self._rank, len(shards.rows), self._world)
        if mine:
            dataset = _dataset(len(mine), lambda index: shards.read(mine[index]))
            yield from dataset.iter_batches(batch_size=self._batch_size // self._world, batch_format="numpy", prefetch_batches=_PREFETCH)

    def _deal(self, dataset: ray.data.Dataset) -> Any:
        """The dataset itself for one worker; otherwise this worker's share of it, which rank 0 has split for all."""
        if self._world == 1:
            return dataset
        shares = dataset.streaming_split(self._world, equal=True) if self._rank == 0 else None
        return ray.train.collective.broadcast_from_rank_zero(shares)[self._rank]


class _Shards:
    """The shards of several manifests under one numbering."""

    def __init__(self, manifests: tuple[Manifest, ...]) -> None:
        self.rows = [file.rows for manifest in manifests for file in manifest.files]
        self.sources = [source for source, manifest in enumerate(manifests) for _ in manifest.files]
        self._urls = [manifest.shard_url(index) for manifest in manifests for index in range(len(manifest.files))]

    def read(self, shard: int) -> Rows:
        rows = read_shard(self._urls[shard])
        if len(rows["row"]) != self.rows[shard]:
            raise UserError(f"{self._urls[shard]}: holds {len(rows['row'])} rows, but its manifest says {self.rows[shard]}")
        return rows

    def take(self, shard: int, order: np.ndarray) -> Rows:
        """Rows of a shard by their numbers, in the order given; only the row groups that hold them are read."""
        groups = np.unique(order // GROUP_ROWS)
        rows = read_shard(self._urls[shard], groups.tolist())
        places = np.searchsorted(groups, order // GROUP_ROWS) * GROUP_ROWS + order % GROUP_ROWS
        return {name: values[places] for name, values in rows.items()}


def read_chunk(plan: EpochPlan, chunk: Chunk, world: int, shards: _Shards) -> Rows:
    """The rows of a chunk in the order of its steps, with a column ``step``; within a step, lane after lane."""
    steps = chunk.last_step - chunk.first_step
    lanes = plan.lanes // world
    result: Rows = {}
    for lane in range(lanes):
        filled = 0
        for span in plan.spans(chunk.rank * lanes + lane, chunk.first_step, chunk.last_step):
            order = plan.shard_order(span.shard)[span.start : span.stop]
            places = _places(filled, filled + len(order), lane, lanes, plan.lane_rows)
            for name, values in shards.take(span.shard, order).items():
                if name not in result:
                    result[name] = np.empty((steps * lanes * plan.lane_rows, *values.shape[1:]), values.dtype)
                result[name][places] = values
            filled += len(order)
    return result | {"step": np.repeat(np.arange(chunk.first_step, chunk.last_step), lanes * plan.lane_rows)}


def _places(start: int, stop: int, lane: int, lanes: int, lane_rows: int) -> np.ndarray:
    """Where rows ``start`` up to ``stop`` of a lane stand in a chunk whose steps hold all lanes side by side."""
    index = np.arange(start, stop)
    return (index // lane_rows * lanes + lane) * lane_rows + index % lane_rows


def _dataset(count: int, read: Any) -> ray.data.Dataset:
    """A dataset with one block per numbered task, in order."""
    dataset = ray.data.range(count, override_num_blocks=count)
    dataset.context.execution_options.preserve_order = True
    # a chunk must stay one block: workers are dealt whole blocks
    dataset.context.target_max_block_size = None
    return dataset.map_batches(lambda batch: read(int(batch["id"].item())), batch_size=None)
