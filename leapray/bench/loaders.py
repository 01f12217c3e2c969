"""The loaders that ingest is measured against, each as its own users would write it.

Shapes: b rows of a batch, i inputs, t targets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from leapray.bench.data import VARIABLES
from leapray.data.moments import Moments

FILE_ROWS, BATCH_FILES = 1000, 4
"""Rows of a file of the competition's 5th-place solution, and files of its batch."""
WIDTH = VARIABLES.raw.width

Batch = tuple[Tensor, Tensor]
"""Scaled float32 inputs ``(b, i)`` and targets ``(b, t)``."""


def save_blocks(rows: Iterable[np.ndarray], directory: Path) -> None:
    """The original's files: tensors of 1 000 consecutive rows of inputs and targets in float64; rows that are left over are dropped."""
    directory.mkdir(parents=True, exist_ok=True)
    waiting, number = np.empty((0, len(VARIABLES.columns))), 0
    for part in rows:
        waiting = np.concatenate([waiting, part])
        while len(waiting) >= FILE_ROWS:
            torch.save(torch.from_numpy(waiting[:FILE_ROWS].copy()), directory / f"{number:06d}.pt")
            waiting, number = waiting[FILE_ROWS:], number + 1


class BlockFiles(Dataset[Batch]):
    """The original's data set: an item is one file, loaded and standardised in float64 when it is asked for."""

    def __init__(self, directory: Path, inputs: Moments, targets: Moments, floor: float = 1e-6) -> None:
        self._paths = sorted(directory.glob("*.pt"))
        self._x_mean, self._x_std = inputs.mean, np.maximum(inputs.std, floor)
        self._y_weight = 1 / np.maximum(targets.std, 1e-15)
        self._y_mean, self._y_std = targets.mean * self._y_weight, np.maximum(targets.std * self._y_weight, floor)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Batch:
        rows = torch.load(self._paths[index], weights_only=True).numpy()
        x = (rows[:, :WIDTH] - self._x_mean) / self._x_std
        y = (rows[:, WIDTH:] * self._y_weight - self._y_mean) / self._y_std
        return torch.from_numpy(x).float(), torch.from_numpy(y).float()


def original_loader(files: BlockFiles, workers: int) -> Iterator[Batch]:
    """The original's batches: four files at a time in random order."""
    for inputs, targets in DataLoader(files, batch_size=BATCH_FILES, shuffle=True, num_workers=workers, drop_last=True):
        yield inputs.flatten(0, 1), targets.flatten(0, 1)


class ShardRows(IterableDataset[Batch]):
    """Batches of shards read by pyarrow: shards in random order shared among the workers, rows shuffled inside each."""

    def __init__(self, paths: Sequence[str], batch_size: int, seed: int) -> None:
        self._paths, self._batch_size, self._seed = list(paths), batch_size, seed

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        index, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        order = np.random.default_rng(self._seed).permutation(len(self._paths))[index::workers]
        generator = np.random.default_rng([self._seed, index])
        parts: list[list[np.ndarray]] = []
        rows = 0
        for path in (self._paths[shard] for shard in order):
            arrays = _read_shard(path)
            waiting = generator.permutation(len(arrays[0]))
            while len(waiting):
                chosen, waiting = np.split(waiting, [self._batch_size - rows])
                parts.append([array[chosen] for array in arrays])
                rows += len(chosen)
                if rows == self._batch_size:
                    x, y = (torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True))
                    yield x, y
                    parts, rows = [], 0


def _read_shard(path: str) -> list[np.ndarray]:
    table = pq.read_table(path, columns=["inputs", "targets"], use_threads=False)
    flat = (np.frombuffer(column.combine_chunks().buffers()[1], np.float32) for column in table.columns)
    return [values.reshape(len(table), -1) for values in flat]


def arrow_loader(rows: ShardRows, workers: int) -> Iterator[Batch]:
    """Its batches, made by ``workers`` processes ahead of their use."""
    yield from DataLoader(rows, batch_size=None, num_workers=workers, prefetch_factor=4)
