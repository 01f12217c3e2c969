"""``bench predict``: from flat parquet to a submission, against the loop of the original's notebook.

All have the same network, rows and machine: on a GPU the base network, on a CPU a small one. Ours is ``predict`` on Ray, then ``submit``;
the start of Ray and of its actors is not counted: the rate is that from when as many pieces are done as there are actors. The notebook
of the competition's 5th-place solution is one process with batches of 1 024 rows and everything in one array.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from leapray import storage
from leapray.bench.compare import Bar, Comparison, Figures, Settings, interleave
from leapray.bench.data import COLUMNS, FILE_STEPS, VARIABLES, Flat, make_flat
from leapray.bench.steps import network_here
from leapray.climsim.schema import SAMPLE_ID, STEP_SECONDS, Channels
from leapray.cluster import nodes, session
from leapray.data.fitting import Fitting
from leapray.data.flat import list_pieces, read_piece
from leapray.data.moments import Moments
from leapray.errors import UserError
from leapray.evaluation.tables import read_ids
from leapray.inference.predict import predict
from leapray.inference.submission import write_submission
from leapray.models.directory import load_model, save_model
from leapray.models.emulator import Emulator
from leapray.models.registry import build_network
from leapray.recipe import Choice
from leapray.training.memory import keep_freed_memory

WHOLE = Bar(3)
BATCH_ROWS = 1024
_PIECES, _QUICK_ROWS = max(12, 4 * (os.cpu_count() or 1)), (FILE_STEPS + 2) * COLUMNS
"""Files that are predicted, several by every actor, and rows of two."""
_LOOP_SHARE = 4
"""The notebook takes a quarter of the files: a row costs it as much among few as among many."""
_MOST_ROUNDS = 3


def run(settings: Settings) -> list[Comparison]:
    """Rows a second of the whole way, and of predicting alone."""
    keep_freed_memory()
    work, rows = settings.directory, settings.size(_PIECES * FILE_STEPS * COLUMNS, _QUICK_ROWS)
    flat, part = make_flat(work / "all", rows), make_flat(work / "part", max(rows // _LOOP_SHARE, COLUMNS))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = save_random(part, str(work / "model"), network_here(device))
    sample, few = write_sample(flat, work / "sample.parquet"), write_sample(part, work / "few.parquet")
    own = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        with session.connected():
            found = interleave(
                {
                    "ours": partial(ours, model, flat, sample, work / "ours", device),
                    "notebook": partial(notebook, model, part, few, work / "notebook.csv", device),
                },
                replace(settings, rounds=min(settings.rounds, _MOST_ROUNDS)),
            )
    finally:
        torch.set_num_threads(own)
    mine, loop = found["ours"], found["notebook"]
    return [
        Comparison.of("predict", "submission, original's loop", "rows/s", mine["whole"], loop["whole"], WHOLE),
        Comparison.of("predict", "predictions, original's loop", "rows/s", mine["predict"], loop["predict"]),
    ]


def ours(model: str, flat: Flat, sample: str, work: Path, device: torch.device) -> Figures:
    """``predict`` and ``submit``. The seconds of a row are told by when part files were written: Ray reports pieces some time later."""
    destination, use_gpu = work / "predictions", device.type == "cuda"
    storage.remove(str(destination))
    done = predict([model], flat.url, str(destination), use_gpu=use_gpu)
    parts = sorted((path.stat().st_mtime, pq.read_metadata(path).num_rows) for path in destination.glob("part-*.parquet"))
    uncounted = min(nodes.parallelism(use_gpu), len(parts) - 1)
    if not uncounted or not (seconds := parts[-1][0] - parts[uncounted - 1][0]):
        raise UserError(f"bench predict: {len(parts)} pieces are too few for a rate; give it more --rows")
    started = time.perf_counter()
    write_submission(done.url, sample, str(work / "submission.csv"))
    return _figures(seconds / sum(rows for _, rows in parts[uncounted:]), (time.perf_counter() - started) / done.rows)


def notebook(model: str, flat: Flat, sample: str, destination: Path, device: torch.device) -> Figures:
    """The original's loop, and pandas to write what it gives."""
    emulator = load_model(model).emulator.to(device)
    started = time.perf_counter()
    frame = predict_in_loop(emulator, flat.paths, device)
    predicted = time.perf_counter()
    write_csv(frame, sample, str(destination))
    return _figures((predicted - started) / flat.rows, (time.perf_counter() - predicted) / flat.rows)


def predict_in_loop(emulator: Emulator, paths: list[str], device: torch.device) -> pd.DataFrame:
    """Physical predictions of flat parquet files by id, as the notebook makes them, with a network in the scaling ``reference``."""
    x, y = emulator.transform.inputs, emulator.transform.targets
    x_mean, x_std, y_mean = (values.cpu().numpy() for values in (x.mean, x.scale, y.mean))
    # what is constant is predicted by its mean
    y_std = y.scale.masked_fill(y.constant, 0.0).cpu().numpy()
    targets, raw = VARIABLES.targets, VARIABLES.raw
    frame = pd.concat([pd.read_parquet(path, columns=[SAMPLE_ID, *raw.columns]) for path in paths], ignore_index=True)
    inputs = frame[list(raw.columns)].to_numpy()
    parts = []
    for start in range(0, len(inputs), BATCH_ROWS):
        rows = inputs[start : start + BATCH_ROWS]
        with torch.no_grad():
            output = emulator.network(torch.from_numpy(((rows - x_mean) / x_std).astype(np.float32)).to(device))
        prediction = output.cpu().numpy().astype(np.float64) * y_std + y_mean
        prediction[:, targets.exact] = -rows[:, VARIABLES.exact_source] / STEP_SECONDS
        parts.append(prediction)
    predictions = np.concatenate(parts)
    for name in targets.water:
        lost = -inputs[:, raw[name.replace("ptend", "state")]] / STEP_SECONDS
        predictions[:, targets[name]] = np.maximum(predictions[:, targets[name]], lost)
    return pd.DataFrame(predictions, columns=list(targets.columns), index=frame[SAMPLE_ID])


def write_csv(frame: pd.DataFrame, sample_submission: str, destination: str) -> None:
    """The submission, in the order of its sample, a parquet file."""
    sample = pd.read_parquet(sample_submission)
    (frame * sample[list(frame.columns)].iloc[0].to_numpy()).loc[sample[SAMPLE_ID]].to_csv(destination)


def _figures(predict_s: float, submit_s: float) -> Figures:
    """Rates from the seconds that a row takes."""
    return {"predict": 1 / predict_s, "whole": 1 / (predict_s + submit_s)}


def save_random(flat: Flat, url: str, choice: Choice) -> str:
    """A network of random weights in the original's scaling, fitted to some of the rows."""
    block = next(read_piece(list_pieces(flat.url)[0]))
    transform = Fitting(VARIABLES, Choice(name="reference")).fit(Moments.of(np.hstack([block.inputs, block.targets])), {})
    torch.manual_seed(0)
    channels = Channels(VARIABLES.inputs, VARIABLES.targets)
    save_model(url, build_network(choice.name, choice.options, channels).state_dict(), choice, transform)
    return url


def write_sample(flat: Flat, path: Path) -> str:
    """A sample submission whose weights are 0 and 1, as the competition's final one."""
    ids = read_ids(flat.url)
    weights = [pa.repeat(pa.scalar(int(weight), pa.int64()), len(ids)) for weight in VARIABLES.targets.scored]
    pq.write_table(pa.table([ids, *weights], names=[SAMPLE_ID, *VARIABLES.targets.columns]), path)
    return str(path)
