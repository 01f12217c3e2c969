"""``bench ingest``: batches ready for a training step, from shards and from flat parquet, against other loaders on the same cores.

Every batch is copied to one place in memory, as it would be copied to a device. The rate is that between a quarter and three
quarters of an epoch, when what was read ahead at its beginning no longer counts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from leapray import storage
from leapray.bench.compare import Bar, Comparison, Figures, Progress, Settings, interleave
from leapray.bench.data import COLUMNS, FILE_STEPS, KIND, Flat, make_flat
from leapray.bench.loaders import Batch, BlockFiles, ShardRows, arrow_loader, flat_batches, original_loader, save_blocks
from leapray.bench.machine import cores, largest_memory, one_core
from leapray.climsim.schema import INPUTS
from leapray.cluster import session
from leapray.data.flat import list_pieces, read_piece
from leapray.data.moments import Moments
from leapray.data.prepare import prepare
from leapray.data.shards import load_prepared
from leapray.data.stream import Stream
from leapray.errors import UserError
from leapray.recipe import parse_recipe
from leapray.training.memory import keep_freed_memory

ORIGINAL, ARROW, FLAT = Bar(3), Bar(1), Bar(0.8)
BATCH_ROWS, LANES = 4096, 8
_LEAST_ROWS = 20_000
_FLAT_SHARE = 4
"""The slower ways, from flat parquet and from the original's files, take a quarter of the rows."""
_FEWEST_BATCHES = 3


def run(settings: Settings, progress: Progress | None = None) -> list[Comparison]:
    """Rows a second in steady state, time to the first batch, and the memory of a worker."""
    if os.environ.get("RAY_ADDRESS"):
        raise UserError("bench ingest measures this machine alone; unset RAY_ADDRESS")
    work, rows = settings.directory, settings.size(42 * FILE_STEPS * COLUMNS, _LEAST_ROWS)
    large, small = make_flat(work / "large", rows), make_flat(work / "small", max(rows // _FLAT_SHARE, _LEAST_ROWS))
    held_out = make_flat(work / "held-out", COLUMNS, start=large.stop)
    shards, flat = (work / "prepared" / form for form in ("shards", "flat"))
    with session.connected():
        _prepare(large, held_out, shards, "shards")
        _prepare(small, held_out, flat, "flat")
    moments = _save_original(small, work / "original")
    contestants: dict[str, Callable[[], Figures]] = {
        "shards": partial(stream, str(shards)),
        "original": partial(original, work / "original", moments),
        "arrow": partial(arrow, str(shards)),
        "flat": partial(stream, str(flat)),
        "flat, one core": partial(pack, small, str(flat)),
    }
    memory = {name: [largest_memory(contestants[name])] for name in ("shards", "original", "arrow")}
    with session.connected():
        found = interleave(contestants, settings, progress)
    per_core = [rate / cores() for rate in found["flat"]["rows/s"]]
    return [
        *(
            Comparison.of("ingest", f"shards, {name}", "rows/s", found["shards"]["rows/s"], found[name]["rows/s"], bar)
            for name, bar in (("original", ORIGINAL), ("arrow", ARROW))
        ),
        Comparison.of("ingest", "shards, first epoch, arrow", "rows/s", found["shards"]["first epoch"], found["arrow"]["rows/s"]),
        Comparison.of("ingest", "flat parquet, a core", "rows/s", per_core, found["flat, one core"]["rows/s"], FLAT),
        *(
            Comparison.of("ingest", f"first batch, {name}", "s", found["shards"]["first"], found[name]["first"])
            for name in ("original", "arrow")
        ),
        Comparison.of("ingest", "first batch, flat parquet", "s", found["flat"]["first"], found["flat, one core"]["first"]),
        *(Comparison.of("ingest", f"largest process, {name}", "MB", memory["shards"], memory[name]) for name in ("original", "arrow")),
    ]


def _prepare(train: Flat, held_out: Flat, prepared: Path, form: str) -> None:
    train_on = {"kind": KIND, "path": train.url, "train": {"start": str(train.start), "stop": str(train.stop)}}
    validate_on = {"kind": KIND, "path": held_out.url, "validation": {"start": str(held_out.start), "stop": str(held_out.stop)}}
    data = {"prepared": str(prepared), "sources": {"train": train_on, "held_out": validate_on}, "stream_from": form}
    training = {"run": str(prepared / "run"), "epochs": 1, "batch_size": BATCH_ROWS}
    prepare(parse_recipe({"name": "bench", "data": data, "network": {"name": "mlp"}, "training": training}))


def _save_original(flat: Flat, directory: Path) -> tuple[Moments, Moments]:
    """Write the original's files, and give the moments of inputs and targets that it standardises by, here those of a part."""
    blocks = (block for piece in list_pieces(flat.url) for block in read_piece(piece))
    rows = (np.hstack([block.inputs, block.targets]) for block in blocks)
    head = next(rows)
    save_blocks(chain([head], rows), directory)
    return Moments.of(head[:, : INPUTS.width]), Moments.of(head[:, INPUTS.width :])


def stream(prepared: str) -> Figures:
    """Ours: the batches that a training of one worker gets, in its first epoch and in its second, when checksums were compared."""
    keep_freed_memory()
    with session.connected():
        batches = Stream(load_prepared(prepared), batch_size=BATCH_ROWS, lanes=LANES, seed=0)
        first, second = (
            drain((torch.from_numpy(batch["inputs"]), torch.from_numpy(batch["targets"])) for batch in batches.train(epoch))
            for epoch in range(2)
        )
        return {"rows/s": second["rows/s"], "first epoch": first["rows/s"], "first": first["first"]}


def original(directory: Path, moments: tuple[Moments, Moments]) -> Figures:
    """The original's loader, a process for each core."""
    files = BlockFiles(directory, *moments)
    return drain(original_loader(files, cores()))


def arrow(prepared: str) -> Figures:
    """The hand-written loader of the same shards, a process for each core."""
    (manifest,) = load_prepared(prepared).split("train")
    paths = storage.list_files(manifest.url, ".parquet")
    return drain(arrow_loader(ShardRows(paths, BATCH_ROWS, seed=0), cores()))


def pack(flat: Flat, prepared: str) -> Figures:
    """The plain way through flat parquet, on one core."""
    with one_core():
        return drain(flat_batches(flat.paths, load_prepared(prepared).transform))


def drain(batches: Iterable[Batch]) -> Figures:
    """Copy every batch to one place; rows a second from the first to the third quarter of them, and seconds to the first batch.

    Raises UserError for rows that are too few to tell a rate.
    """
    started = time.perf_counter()
    marks: list[tuple[int, float]] = []
    done, place = 0, torch.empty(0)
    for inputs, targets in batches:
        both = inputs.shape[1] + targets.shape[1]
        if len(place) < len(inputs):
            place = torch.empty(len(inputs), both)
        place[: len(inputs), : inputs.shape[1]].copy_(inputs)
        place[: len(inputs), inputs.shape[1] :].copy_(targets)
        done += len(inputs)
        marks.append((done, time.perf_counter() - started))
    if len(marks) < _FEWEST_BATCHES:
        raise UserError(f"bench ingest: {len(marks)} batches do not tell a rate; give it more --rows")
    (first, start), (last, stop) = (next(mark for mark in marks if mark[0] >= done * share) for share in (0.25, 0.75))
    return {"rows/s": (last - first) / (stop - start), "first": marks[0][1]}
