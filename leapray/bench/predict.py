"""``bench predict``: from flat parquet to a submission, against the original's notebook loop and against the network alone.

All have the same network, rows and machine: on a GPU the base network, on a CPU a small one. Ours is the verb ``predict`` on Ray, then
``submit``; the start of Ray and of its actors is not counted: the rate is that from when as many pieces are done as there are actors.
Several models that are each an actor are compared with the same in one actor.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from leapray import storage
from leapray.bench.compare import Bar, Comparison, Figures, Progress, Settings, interleave
from leapray.bench.data import COLUMNS, FILE_STEPS, Flat, make_flat
from leapray.bench.notebook import Notebook, write_csv
from leapray.bench.steps import setup_here
from leapray.climsim.schema import INPUTS, SAMPLE_ID, SCORED, TARGETS
from leapray.cluster import nodes, session
from leapray.data.fitting import Fitting
from leapray.data.flat import list_pieces, read_piece
from leapray.data.moments import Moments
from leapray.errors import UserError
from leapray.evaluation.tables import read_ids
from leapray.inference.emulators import CPU_ROWS, GPU_ROWS
from leapray.inference.predict import Prediction, predict
from leapray.inference.submission import write_submission
from leapray.models.directory import load_model, save_model
from leapray.models.registry import build_network
from leapray.recipe import Choice
from leapray.training.memory import keep_freed_memory

WHOLE = Bar(3)
_PIECES, _QUICK_ROWS = max(12, 4 * (os.cpu_count() or 1)), (FILE_STEPS + 2) * COLUMNS
"""Files that are predicted, several by every actor, and rows of two."""
_LOOP_SHARE = 4
"""The notebook takes a quarter of the files: a row costs it as much among few as among many."""
_MOST_ROUNDS = 3
_SEVERAL = 2
"""Models that are predicted with apart and together."""


def run(settings: Settings, progress: Progress | None = None) -> list[Comparison]:
    """Rows a second of the whole way, of predicting, of writing, and of the network alone."""
    if os.environ.get("RAY_ADDRESS"):
        raise UserError("bench predict measures this machine alone; unset RAY_ADDRESS")
    keep_freed_memory()
    work = settings.directory
    rows = settings.size(_PIECES * FILE_STEPS * COLUMNS, _QUICK_ROWS)
    flat, part = make_flat(work / "all", rows), make_flat(work / "part", max(rows // _LOOP_SHARE, COLUMNS))
    models, device = _save_models(part, work, settings.quick)
    model = models[0]
    sample, few = _write_sample(flat, work / "sample.parquet"), _write_sample(part, work / "few.parquet")
    own = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        with session.connected():
            found = interleave(
                {
                    "ours": partial(ours, model, flat, sample, work / "ours", device),
                    "notebook": partial(notebook, model, part, few, work / "notebook.csv", device),
                    "network": partial(network, model, part, device),
                    "apart": partial(several, models, flat, work / "several", device, apart=True),
                    "together": partial(several, models, flat, work / "several", device, apart=False),
                },
                replace(settings, rounds=min(settings.rounds, _MOST_ROUNDS)),
                progress,
            )
    finally:
        torch.set_num_threads(own)
    mine, loop = found["ours"], found["notebook"]
    return [
        Comparison.of("predict", "submission, original's loop", "rows/s", mine["whole"], loop["whole"], WHOLE),
        Comparison.of("predict", "predictions, original's loop", "rows/s", mine["predict"], loop["predict"]),
        Comparison.of("predict", "csv of predictions, pandas", "rows/s", mine["submit"], loop["submit"]),
        Comparison.of("predict", "predictions, network alone", "rows/s", mine["predict"], found["network"]["rows/s"]),
        Comparison.of("predict", f"{_SEVERAL} models apart, together", "rows/s", found["apart"]["predict"], found["together"]["predict"]),
    ]


def ours(model: str, flat: Flat, sample: str, work: Path, device: torch.device) -> Figures:
    """The verbs ``predict`` and ``submit``."""
    done, per_row = _predicted([model], flat, work / "predictions", device)
    started = time.perf_counter()
    write_submission(done.url, sample, str(work / "submission.csv"))
    return _figures(per_row, (time.perf_counter() - started) / done.rows)


def several(models: Sequence[str], flat: Flat, destination: Path, device: torch.device, *, apart: bool) -> Figures:
    """The verb ``predict`` with several models."""
    return {"predict": 1 / _predicted(models, flat, destination, device, apart=apart)[1]}


def _predicted(
    models: Sequence[str], flat: Flat, destination: Path, device: torch.device, apart: bool | None = None
) -> tuple[Prediction, float]:
    """What was predicted, and the seconds that a row took."""
    storage.remove(str(destination))
    use_gpu = device.type == "cuda"
    done = predict(models, flat.url, str(destination), use_gpu=use_gpu, apart=apart)
    if done.files < 2:
        raise UserError("bench predict: a single piece does not tell a rate; give it more --rows")
    return done, _steady(destination, min(nodes.parallelism(use_gpu), done.files - 1))


def _steady(destination: Path, uncounted: int) -> float:
    """Seconds that a row takes after the first pieces, by when the part files were written: Ray tells of pieces only some time later."""
    parts = sorted((path.stat().st_mtime, pq.read_metadata(path).num_rows) for path in destination.glob("part-*.parquet"))
    seconds = parts[-1][0] - parts[uncounted - 1][0]
    if not seconds:
        raise UserError(f"bench predict: {len(parts)} pieces do not tell a rate; give it more --rows")
    return seconds / sum(rows for _, rows in parts[uncounted:])


def notebook(model: str, flat: Flat, sample: str, destination: Path, device: torch.device) -> Figures:
    """The original's loop, and pandas to write what it gives."""
    loop = Notebook.load(model, device)
    started = time.perf_counter()
    ids, predictions = loop.predict(flat.paths)
    predicted = time.perf_counter()
    write_csv(ids, predictions, sample, str(destination))
    return _figures((predicted - started) / flat.rows, (time.perf_counter() - predicted) / flat.rows)


@torch.inference_mode()
def network(model: str, flat: Flat, device: torch.device) -> Figures:
    """The network alone, over scaled rows that lie on its device."""
    emulator = load_model(model).emulator.to(device)
    scaled = emulator.transform.scale_inputs(torch.from_numpy(_first_block(flat)[0]).to(device))
    batch = CPU_ROWS if device.type == "cpu" else GPU_ROWS
    emulator.network(scaled[:batch]).cpu()
    started = time.perf_counter()
    for start in range(0, len(scaled), batch):
        last = emulator.network(scaled[start : start + batch])
    # a device works on after it was told to: its last result ends the time
    last.cpu()
    return {"rows/s": len(scaled) / (time.perf_counter() - started)}


def _figures(predict_s: float, submit_s: float) -> Figures:
    """Rates from the seconds that a row takes."""
    return {"predict": 1 / predict_s, "submit": 1 / submit_s, "whole": 1 / (predict_s + submit_s)}


def _save_models(flat: Flat, work: Path, quick: bool) -> tuple[list[str], torch.device]:
    """Networks of random weights in the original's scaling, fitted to some of the rows, and the device that they are for."""
    setup = setup_here(quick)
    transform = Fitting(Choice(name="reference"), ()).fit(Moments.of(np.hstack(_first_block(flat))), {})
    directories = [str(work / f"model-{seed}") for seed in range(_SEVERAL)]
    for seed, directory in enumerate(directories):
        torch.manual_seed(seed)
        weights = build_network(setup.network.name, setup.network.options).state_dict()
        save_model(directory, weights, setup.network, transform)
    return directories, setup.device


def _first_block(flat: Flat) -> tuple[np.ndarray, np.ndarray]:
    block = next(read_piece(list_pieces(flat.url)[0]))
    return block.inputs[:, : INPUTS.width], block.targets


def _write_sample(flat: Flat, path: Path) -> str:
    """A sample submission of the newer kind, whose weights are 0 and 1 (FACTS section 2)."""
    ids = read_ids(flat.url)
    weights: Sequence[pa.Array] = [pa.repeat(pa.scalar(int(weight), pa.int64()), len(ids)) for weight in SCORED]
    pq.write_table(pa.table([ids, *weights], names=[SAMPLE_ID, *TARGETS.columns]), path)
    return str(path)
