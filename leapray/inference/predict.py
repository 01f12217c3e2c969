"""Distributed prediction: every row of flat parquet or csv once, as parquet of physical predictions, on Ray Data actors (Ray).

Rows are read once for all models. An actor holds all of them, and rows never leave its process, or each model is an actor of its own
(:func:`leapray.inference.actors.plan_actors`). Each piece of the input becomes one part file, so an interrupted prediction continues with
the parts that are missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Literal

import ray
import ray.data
import torch
from ray.util.metrics import Counter

from leapray import storage
from leapray.climsim.schema import VariableSet, common
from leapray.cluster import nodes, session
from leapray.data import flat
from leapray.data.clean import finite
from leapray.data.reading import map_ahead
from leapray.errors import UserError
from leapray.inference.actors import Actors, plan_actors
from leapray.inference.apart import Apart, released
from leapray.inference.emulators import Emulators, Members, Predicted
from leapray.inference.parts import part, part_writer, sealed_rows, write_statistics
from leapray.inference.weights import Combination, mean_weights
from leapray.models.directory import INFO_FILE, WEIGHTS_FILE, load_model
from leapray.models.registry import users_modules
from leapray.settings import claim
from leapray.training.memory import keep_freed_memory

SETTINGS = "_prediction.json"
_PARTS_AT_ONCE = 32


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
    variables: VariableSet
    """Of the rows that are read, which hold what each model needs."""
    models: Sequence[str]
    combination: Combination
    members: Sequence[str]
    """Names of the members whose own output is kept, of all or of none."""
    destination: str
    kind: str | None
    bad_rows: str


def predict(
    models: Sequence[str],
    source: str,
    destination: str,
    *,
    weights: Combination | None = None,
    members: bool = False,
    names: Sequence[str] | None = None,
    use_gpu: bool = False,
    gpu_share: float | None = None,
    apart: bool | None = None,
    selection: flat.Selection | None = None,
    kind: str | None = None,
    bad_rows: Literal["refuse", "drop"] = "refuse",
    progress: Callable[[int, int], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> Prediction:
    """Predict every row below ``source``, or those of ``selection``, with one model or the mean of several; parquet to ``destination``.

    ``weights`` say how members are averaged, as :mod:`leapray.inference.weights` gives it; without them all count alike. The mean is taken
    of physical predictions before the physics, which is applied once. With ``members`` each one's own
    output is kept too, under its name (see :mod:`leapray.inference.parts`). ``kind`` is what rows without a column kind are taken for,
    which decides their keys. With ``bad_rows`` ``drop`` rows whose inputs are not finite are left out, and counted in a notice. With
    ``apart`` each model is an actor of its own, by default where there are several on GPUs, and ``gpu_share`` is the GPU of an actor that
    has models (:func:`leapray.inference.actors.plan_actors`).

    Raises UserError for an unreadable model or input, no rows, inputs that are not finite and not to be dropped, GPUs that are not there,
    and a destination that lies in the input, or holds another prediction or files of none.
    """
    if not models:
        raise UserError("predict needs at least one model")
    if gpu_share is not None and not 0 < gpu_share <= 1:
        raise UserError(f"GPU share {gpu_share:g}: expected more than 0 and at most 1")
    storage.require_outside(destination, source)
    if storage.exists(storage.join(source, INFO_FILE)):
        raise UserError(f"{source}: is a model, expected the rows to predict; where they lie, and the destination, come after the models")
    models = [storage.absolute(model) for model in models]
    if weights is None and (twice := [model for model in models if models.count(model) > 1]):
        raise UserError(f"{twice[0]}: is given twice, and would count twice")
    source, destination = storage.absolute(source), storage.absolute(destination)
    loaded = [load_model(model) for model in models]
    variables = common(model.emulator.transform.variables for model in loaded)
    combination = weights or Combination.of(mean_weights(len(models), variables.targets))
    kept = tuple(names or storage.short_names(models)) if members else ()
    survey = flat.survey(source, variables, targets=False, notice=notice)
    pieces = survey.pieces(selection)
    if not pieces:
        raise UserError(f"{source}: no rows{selection or ''}")
    networks = [model.info.network.name for model in loaded]
    settings = {
        "model files": [storage.fingerprint(*(storage.join(model, name) for name in (INFO_FILE, WEIGHTS_FILE))) for model in models],
        "weights": combination.digest(),
        "members": list(kept),
        "input": source,
        "input files": survey.fingerprint(pieces),
        "rows": repr(selection or flat.Selection()),
        "kind": kind,
        "bad rows": bad_rows,
    }
    claim(destination, SETTINGS, settings, "a prediction", ".parquet")
    write_statistics(destination, loaded[0].emulator.transform.statistics)
    job = _Job(pieces, variables, models, combination, kept, destination, kind, bad_rows)
    sealed = _sealed(job)
    if None not in sealed:
        # nothing is left that a cluster would have to be started for
        counted = {number: rows for number, rows in enumerate(sealed) if rows is not None}
        _require_whole(job, counted)
        return _predicted(job, sum(counted.values()), f"{source}: no rows{selection or ''}")
    with session.connected(users_modules(*networks)):
        actors = plan_actors(len(models), len(pieces), use_gpu=use_gpu, share=gpu_share, apart=apart)
        with released(actors):
            rows, dropped = _run(job, actors, progress)
    if dropped and notice is not None:
        notice(f"{source}: left out {dropped} row(s) whose inputs hold NaN or Inf")
    return _predicted(job, rows, f"{source}: no rows{selection or ''}")


def _predicted(job: _Job, rows: int, empty: str) -> Prediction:
    """Raises UserError with the words ``empty`` where not one row was predicted."""
    if not rows:
        raise UserError(empty)
    return Prediction(job.destination, rows, len(job.pieces))


def _sealed(job: _Job) -> list[int | None]:
    """Rows of every piece, None of those that are not complete: by one listing, and then what is there side by side."""
    there = set(storage.list_files(job.destination, ".parquet"))

    def rows(number: int) -> int | None:
        return sealed_rows(job.destination, number, job.members) if part(job.destination, number) in there else None

    with ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
        return list(pool.map(rows, range(len(job.pieces))))


def _run(job: _Job, actors: Actors, progress: Callable[[int, int], None] | None) -> tuple[int, int]:
    """Predict every piece on actors, and count what they say: the rows that were predicted, and those that were now left out."""
    count = len(job.pieces)
    first = 1 if nodes.autoscaled() else actors.predictors
    # of items, not a range, which tasks would have to read, for which models apart may leave no CPU
    dataset = ray.data.from_items([{"id": number} for number in range(count)], override_num_blocks=count).map(
        _Predictor,
        fn_constructor_args=(job, actors),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors.predictors, initial_size=first),
        num_cpus=actors.cpus,
        num_gpus=0 if actors.apart else actors.gpus,
    )
    rows: dict[int, int] = {}
    dropped = 0
    for done, row in enumerate(dataset.iter_rows(), start=1):
        rows[int(row["id"])] = int(row["rows"])
        dropped += int(row["dropped"])
        if progress is not None:
            progress(done, count)
    _require_whole(job, rows)
    return sum(rows.values()), dropped


def _require_whole(job: _Job, rows: dict[int, int]) -> None:
    """Every piece was predicted in all its rows, into a file of its own, and no other file lies beside these."""
    whole = job.bad_rows == "refuse"
    for number, piece in enumerate(job.pieces):
        if number not in rows or (piece.exact and not (rows[number] == piece.rows if whole else rows[number] <= piece.rows)):
            raise RuntimeError(f"{piece.path}: piece {number} of {piece.rows} rows, but {rows.get(number)} were predicted")
    expected = {part(job.destination, number) for number in range(len(job.pieces))}
    found = {file for file in storage.list_files(job.destination, ".parquet") if file.rpartition("/")[0] == job.destination}
    if missing := sorted(expected - found):
        raise RuntimeError(f"{job.destination}: {len(missing)} part files are missing, the first {missing[0]}")
    if others := sorted(found - expected):
        raise UserError(f"{others[0]}: is no part of this prediction of {len(expected)} parts; remove it, or choose another place")


class _Predictor:
    """One actor, called with the number of a piece: all models on its device, or those that are actors of their own."""

    def __init__(self, job: _Job, actors: Actors) -> None:
        keep_freed_memory()
        torch.set_num_threads(1 if actors.apart else min(actors.threads, os.cpu_count() or 1))
        self.job = job
        self.counted = Counter("leapray_predicted_rows", "Rows predicted", ("destination",)).set_default_tags(
            {"destination": storage.ascii_url(job.destination)}
        )
        # a model that is an actor of its own need not wait for the rows that are averaged here
        self.ahead = 2 if actors.apart else 1
        self.emulators = (
            Apart(job.models, job.variables, job.combination, actors)
            if actors.apart
            else Emulators(Members.load(job.models, torch.device("cuda" if actors.gpus else "cpu"), job.variables), job.combination)
        )

    def __call__(self, task: dict[str, Any]) -> dict[str, int]:
        number = int(task["id"])
        sealed = sealed_rows(self.job.destination, number, self.job.members)
        rows, dropped = self._piece(number) if sealed is None else (sealed, 0)
        return {"id": number, "rows": rows, "dropped": dropped}

    def _piece(self, number: int) -> tuple[int, int]:
        """Predict one piece into its part files; how many of its rows, and how many not. Reading and writing go on beside computing."""
        job, rows, read = self.job, 0, 0
        piece = job.pieces[number]

        def predicted(block: flat.Block) -> tuple[int, flat.Block, Predicted | None]:
            usable = finite(block, piece.path, job.bad_rows, job.variables)
            values = self.emulators.predict(usable.inputs, members=bool(job.members)) if len(usable.row) else None
            return len(block.row), usable, values

        blocks = _read_ahead(flat.read_piece(piece, job.variables, targets=False, kind=job.kind))
        with part_writer(job.destination, number, job.variables.targets, job.members) as write:
            for given, block, values in map_ahead(predicted, blocks, self.ahead):
                read += given
                rows += len(block.row)
                if values is not None:
                    write(block, values.ensemble, values.members)
                    self.counted.inc(len(block.row))
        return rows, read - rows


def _read_ahead(blocks: Iterator[flat.Block]) -> Iterator[flat.Block]:
    """The same blocks, each read in a thread while the one before it is used."""
    for block in map_ahead(lambda _: next(blocks, None), repeat(None), threads=1):
        if block is None:
            return
        yield block
