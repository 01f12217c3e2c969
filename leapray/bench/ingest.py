"""``bench ingest``: batches ready for a training step, from shards, against other loaders on the same cores.

Every batch is copied to one place in memory, as it would be copied to a device. The rate is that between a quarter and three quarters of
an epoch, when what was read ahead at its beginning no longer counts.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from leapray import storage
from leapray.bench.compare import Bar, Comparison, Figures, Settings, interleave
from leapray.bench.data import COLUMNS, FILE_STEPS, make_flat, make_recipe
from leapray.bench.loaders import WIDTH, Batch, BlockFiles, ShardRows, arrow_loader, original_loader, save_blocks
from leapray.bench.machine import cores
from leapray.cluster import session
from leapray.data.flat import list_pieces, read_piece
from leapray.data.moments import Moments
from leapray.data.prepare import prepare
from leapray.data.shards import Prepared
from leapray.data.stream import Stream
from leapray.errors import UserError
from leapray.training.memory import keep_freed_memory

ORIGINAL, ARROW = Bar(3), Bar(1)
BATCH_ROWS, LANES = 4096, 8
_LEAST_ROWS = 20_000
_ORIGINAL_SHARE = 4
"""The original's loader, which is slower, takes a quarter of the rows."""
_FEWEST_BATCHES = 3


def run(settings: Settings) -> list[Comparison]:
    """Rows a second in steady state, and seconds to the first batch."""
    rows = settings.size(42 * FILE_STEPS * COLUMNS, _LEAST_ROWS)
    recipe = make_recipe(settings.directory, rows, {"name": "mlp"}, {"batch_size": BATCH_ROWS})
    small, files = make_flat(settings.directory / "small", max(rows // _ORIGINAL_SHARE, _LEAST_ROWS)), settings.directory / "original"
    moments = _save_original(small.url, files)
    with session.connected():
        shards = prepare(recipe)
        found = interleave(
            {
                "shards": partial(stream, shards),
                "original": lambda: drain(original_loader(BlockFiles(files, *moments), cores())),
                "arrow": partial(arrow, shards),
            },
            settings,
        )
    compare = partial(Comparison.of, "ingest")
    return [
        compare("shards, original", "rows/s", found["shards"]["rows/s"], found["original"]["rows/s"], ORIGINAL),
        compare("shards, arrow", "rows/s", found["shards"]["rows/s"], found["arrow"]["rows/s"], ARROW),
        compare("first batch, original", "s", found["shards"]["first"], found["original"]["first"]),
        compare("first batch, arrow", "s", found["shards"]["first"], found["arrow"]["first"]),
    ]


def _save_original(url: str, directory: Path) -> tuple[Moments, Moments]:
    """Write the original's files, and give the moments of inputs and targets that it standardises by, here those of a part."""
    rows = (np.hstack([block.inputs, block.targets]) for piece in list_pieces(url) for block in read_piece(piece))
    head = next(rows)
    save_blocks(chain([head], rows), directory)
    return Moments.of(head[:, :WIDTH]), Moments.of(head[:, WIDTH:])


def stream(prepared: Prepared) -> Figures:
    """The batches that a training of one worker gets in its second epoch, when checksums have been compared."""
    keep_freed_memory()
    batches = Stream(prepared, batch_size=BATCH_ROWS, lanes=LANES, seed=0)
    for epoch in range(2):
        found = drain((torch.from_numpy(batch["inputs"]), torch.from_numpy(batch["targets"])) for batch in batches.train(epoch))
    return found


def arrow(prepared: Prepared) -> Figures:
    """The hand-written loader of the same shards, a process for each core."""
    (manifest,) = prepared.split("train")
    return drain(arrow_loader(ShardRows(storage.list_files(manifest.url, ".parquet"), BATCH_ROWS, seed=0), cores()))


def drain(batches: Iterable[Batch]) -> Figures:
    """Copy every batch to one place; rows a second from the first to the third quarter of them, and seconds to the first batch.

    Raises UserError for rows that are too few to tell a rate.
    """
    started = time.perf_counter()
    marks: list[tuple[int, float]] = []
    done, place = 0, torch.empty(0)
    for inputs, targets in batches:
        if len(place) < len(inputs):
            place = torch.empty(len(inputs), inputs.shape[1] + targets.shape[1])
        place[: len(inputs), : inputs.shape[1]].copy_(inputs)
        place[: len(inputs), inputs.shape[1] :].copy_(targets)
        done += len(inputs)
        marks.append((done, time.perf_counter() - started))
    if len(marks) < _FEWEST_BATCHES:
        raise UserError(f"bench ingest: {len(marks)} batches are too few for a rate; give it more --rows")
    (first, start), (last, stop) = (next(mark for mark in marks if mark[0] >= done * share) for share in (0.25, 0.75))
    return {"rows/s": (last - first) / (stop - start), "first": marks[0][1]}
