"""Distributed prediction: every row of flat parquet or csv once, as parquet of physical predictions, on Ray Data actors (Ray).

An actor holds all models, so that rows are read once for all of them and never leave the process. Each piece of the input becomes one
part file, so an interrupted prediction continues with the parts that are missing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import ray
import ray.data
import torch

from leapray import cluster, storage
from leapray.data import flat
from leapray.data.ahead import map_ahead
from leapray.errors import UserError
from leapray.inference.emulators import Emulators, Predicted
from leapray.inference.parts import part, part_writer, sealed_rows
from leapray.inference.weights import mean_weights
from leapray.models.directory import INFO_FILE, WEIGHTS_FILE, load_model
from leapray.models.registry import users_module
from leapray.settings import claim
from leapray.training.memory import keep_freed_memory

SETTINGS = "_prediction.json"


@dataclass(frozen=True)
class Prediction:
    """What a prediction left in its destination."""

    url: str
    rows: int
    files: int


@dataclass(frozen=True)
class _Job:
    """What every actor is told."""

    pieces: Sequence[flat.Piece]
    models: Sequence[str]
    weights: np.ndarray
    members: Sequence[str]
    """Names of the members whose own output is kept, of all or of none."""
    destination: str
    use_gpu: bool


def predict(
    models: Sequence[str],
    source: str,
    destination: str,
    *,
    weights: np.ndarray | None = None,
    members: bool = False,
    names: Sequence[str] | None = None,
    use_gpu: bool = False,
    gpus_per_actor: float = 1.0,
    selection: flat.Selection | None = None,
    progress: Callable[[int, int], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> Prediction:
    """Predict every row below ``source``, or those of ``selection``, with one model or the mean of several; parquet to ``destination``.

    ``weights`` is float64 ``(m, 368)``, as :mod:`leapray.inference.weights` gives it; without it members count alike. The mean is taken
    of physical predictions before the physics, which is applied once (DESIGN section 3, Emulator). With ``members`` each one's own
    output is kept too, under its name (see :mod:`leapray.inference.parts`). ``gpus_per_actor`` below 1 lets actors share a GPU.

    Raises UserError for an unreadable model or input, inputs that are not finite, GPUs that are not there, and a destination that holds
    another prediction.
    """
    if not models:
        raise UserError("predict needs at least one model")
    models = [storage.absolute(model) for model in models]
    source, destination = storage.absolute(source), storage.absolute(destination)
    weights = mean_weights(len(models)) if weights is None else np.ascontiguousarray(weights, np.float64)
    kept = tuple(names or storage.short_names(models)) if members else ()
    survey = flat.survey(source, targets=False, notice=notice)
    pieces = survey.pieces(selection)
    networks = [load_model(model).info.network.name for model in models]
    settings = {
        "model files": [storage.fingerprint(*(storage.join(model, name) for name in (INFO_FILE, WEIGHTS_FILE))) for model in models],
        "weights": hashlib.sha256(weights.tobytes()).hexdigest()[:16],
        "members": list(kept),
        "input": source,
        "input files": survey.fingerprint(pieces),
        "rows": f"all{selection or ''}",
    }
    claim(destination, SETTINGS, settings, "a prediction", ".parquet")
    with cluster.connected():
        environment = cluster.modules_environment(module for name in networks if (module := users_module(name)))
        rows = _run(_Job(pieces, models, weights, kept, destination, use_gpu), gpus_per_actor, environment, progress)
    if not rows:
        raise UserError(f"{source}: no rows{selection or ''}")
    return Prediction(destination, rows, len(pieces))


def _run(job: _Job, gpus_per_actor: float, environment: dict[str, Any], progress: Callable[[int, int], None] | None) -> int:
    """Predict every piece on actors, and count what they say; the rows in all."""
    places = _places(job.use_gpu, gpus_per_actor)
    actors, count = min(len(job.pieces), places), len(job.pieces)
    dataset = ray.data.range(count, override_num_blocks=count).map(
        _Predictor,
        fn_constructor_args=(job, 1 if job.use_gpu else places // actors),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
        num_cpus=1,
        num_gpus=gpus_per_actor if job.use_gpu else 0,
        runtime_env=environment,
    )
    rows: dict[int, int] = {}
    for done, row in enumerate(dataset.iter_rows(), start=1):
        rows[int(row["id"])] = int(row["rows"])
        if progress is not None:
            progress(done, count)
    _require_whole(job, rows)
    return sum(rows.values())


def _require_whole(job: _Job, rows: dict[int, int]) -> None:
    """Every piece was predicted in all its rows, into a file of its own, and nothing else lies there."""
    for number, piece in enumerate(job.pieces):
        if number not in rows or (piece.exact and rows[number] != piece.rows):
            raise RuntimeError(f"{piece.path}: piece {piece.index} of {piece.rows} rows, but {rows.get(number)} were predicted")
    expected = {part(job.destination, piece.index) for piece in job.pieces}
    found = set(storage.list_files(job.destination, ".parquet"))
    if missing := sorted(expected - found):
        raise RuntimeError(f"{job.destination}: {len(missing)} part files are missing, the first {missing[0]}")


def _places(use_gpu: bool, gpus_per_actor: float) -> int:
    """Actors that can work at once. Raises UserError for a share of a GPU that is none, and where there is no GPU."""
    if not use_gpu:
        return cluster.parallelism()
    if not 0 < gpus_per_actor <= 1:
        raise UserError(f"GPU share {gpus_per_actor:g}: expected more than 0 and at most 1")
    if not ray.cluster_resources().get("GPU"):
        raise UserError("prediction on a GPU was asked for, but Ray finds none here; leave --gpu out or start Ray where one is")
    return cluster.parallelism(use_gpu=True) * int(1 / gpus_per_actor + 1e-9)


class _Predictor:
    """One actor: all models on its device, called with the number of a piece."""

    def __init__(self, job: _Job, threads: int) -> None:
        keep_freed_memory()
        torch.set_num_threads(max(min(threads, os.cpu_count() or 1), 1))
        self.job = job
        self.emulators = Emulators.load(job.models, job.weights, torch.device("cuda" if job.use_gpu else "cpu"))

    def __call__(self, task: dict[str, Any]) -> dict[str, int]:
        piece = self.job.pieces[task["id"]]
        sealed = sealed_rows(self.job.destination, piece.index)
        return {"id": task["id"], "rows": self._piece(piece) if sealed is None else sealed}

    def _piece(self, piece: flat.Piece) -> int:
        """Predict one piece into its part files; the number of its rows. One block is read and another written while one is computed."""
        rows = 0
        blocks = _read_ahead(flat.read_piece(piece, targets=False))
        with part_writer(self.job.destination, piece.index, self.job.members) as write:
            for block, predicted in map_ahead(lambda block: (block, self._block(block, piece.path)), blocks, threads=1):
                write(block, predicted.ensemble, predicted.members)
                rows += len(block.row)
        return rows

    def _block(self, block: flat.Block, path: str) -> Predicted:
        _require_finite(block, path)
        return self.emulators.predict(block.inputs, members=bool(self.job.members))


def _read_ahead(blocks: Iterator[flat.Block]) -> Iterator[flat.Block]:
    """The same blocks, each read in a thread while the one before it is used."""
    for block in map_ahead(lambda _: next(blocks, None), repeat(None), threads=1):
        if block is None:
            return
        yield block


def _require_finite(block: flat.Block, path: str) -> None:
    # a sum of finite numbers may overflow, but one of others is never finite
    if np.isfinite(block.inputs.sum()):
        return
    bad = ~np.isfinite(block.inputs).all(axis=1)
    if bad.any():
        raise UserError(
            f"{path}: {int(bad.sum())} rows hold NaN or Inf inputs, the first {block.sample_id[int(np.argmax(bad))].as_py()}; "
            "predictions need finite numbers"
        )
