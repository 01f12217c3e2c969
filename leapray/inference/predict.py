"""Distributed prediction: every row of flat parquet or csv once, as parquet of physical predictions, on Ray Data actors (Ray).

Each piece of the input becomes one part file, so an interrupted prediction continues with the parts that are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import torch

from leapray import cluster, storage
from leapray.climsim.schema import SAMPLE_ID, TARGETS
from leapray.data import flat
from leapray.errors import UserError
from leapray.models.directory import INFO_FILE, WEIGHTS_FILE, load_model
from leapray.models.registry import users_module
from leapray.settings import claim

SETTINGS = "_prediction.json"
_BATCH = 2048
_SCHEMA = pa.schema([(SAMPLE_ID, pa.string()), *((name, pa.float64()) for name in TARGETS.columns)])


@dataclass(frozen=True)
class Prediction:
    """What a prediction left in its destination."""

    url: str
    rows: int
    files: int


def predict(
    models: Sequence[str],
    source: str,
    destination: str,
    *,
    use_gpu: bool = False,
    progress: Callable[[int, int], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> Prediction:
    """Predict every row below ``source`` with one model, or with the mean of several, and write parquet to ``destination``.

    The mean is taken of physical predictions before the physics, which is applied once (DESIGN section 3, Emulator). Raises
    UserError for an unreadable model or input, and for a destination that holds another prediction.
    """
    models = [storage.absolute(model) for model in models]
    source, destination = storage.absolute(source), storage.absolute(destination)
    survey = flat.survey(source, targets=False, notice=notice)
    pieces = survey.pieces()
    networks = [load_model(model).info.network.name for model in models]
    settings = {
        "model files": [storage.fingerprint(*(storage.join(model, name) for name in (INFO_FILE, WEIGHTS_FILE))) for model in models],
        "input": source,
        "input files": survey.fingerprint(),
    }
    claim(destination, SETTINGS, settings, "a prediction", ".parquet")
    with cluster.connected():
        environment = cluster.modules_environment(module for name in networks if (module := users_module(name)))
        rows = _run(pieces, models, destination, use_gpu, environment, progress)
    expected = sum(piece.rows for piece in pieces)
    if all(piece.exact for piece in pieces) and rows != expected:
        raise RuntimeError(f"{source} has {expected} rows, but {rows} were predicted")
    return Prediction(destination, rows, len(pieces))


def _run(
    pieces: Sequence[flat.Piece],
    models: Sequence[str],
    destination: str,
    use_gpu: bool,
    environment: dict[str, Any],
    progress: Callable[[int, int], None] | None,
) -> int:
    actors = min(len(pieces), cluster.parallelism(use_gpu))
    dataset = ray.data.range(len(pieces), override_num_blocks=len(pieces)).map(
        _Predictor,
        fn_constructor_args=(pieces, models, destination, use_gpu),
        concurrency=(1, actors) if actors > 1 else 1,
        num_cpus=1,
        num_gpus=1 if use_gpu else 0,
        runtime_env=environment,
    )
    rows = 0
    for done, row in enumerate(dataset.iter_rows(), start=1):
        rows += int(row["rows"])
        if progress is not None:
            progress(done, len(pieces))
    return rows


class _Predictor:
    """One actor: the models on its device, called with the number of a piece."""

    def __init__(self, pieces: Sequence[flat.Piece], models: Sequence[str], destination: str, use_gpu: bool) -> None:
        self.pieces = pieces
        device = torch.device("cuda" if use_gpu else "cpu")
        self.emulators = [load_model(model).emulator.to(device) for model in models]
        self.destination, self.device = destination, device

    def __call__(self, task: dict[str, Any]) -> dict[str, int]:
        return {"rows": self._piece(self.pieces[task["id"]])}

    def _piece(self, piece: flat.Piece) -> int:
        """Predict one piece into its part file, unless it is there; the number of its rows."""
        url = storage.join(self.destination, f"part-{piece.index:06d}.parquet")
        if storage.exists(url):
            with storage.open_input(url) as file:
                return int(pq.read_metadata(file).num_rows)
        rows = 0
        with storage.atomic_file(url) as file, pq.ParquetWriter(file, _SCHEMA, compression="lz4", use_dictionary=False) as writer:
            for block in flat.read_piece(piece, targets=False):
                _require_finite(block, piece.path)
                writer.write_table(_table(block.sample_id, self._predict(block.inputs)))
                rows += len(block.inputs)
        return rows

    @torch.inference_mode()
    def _predict(self, inputs: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(inputs), _BATCH):
            x = torch.from_numpy(inputs[start : start + _BATCH]).to(self.device)
            mean = torch.stack([emulator.tendencies(x) for emulator in self.emulators]).mean(dim=0)
            parts.append(self.emulators[0].physics(x, mean).cpu().numpy())
        return np.concatenate(parts)


def _table(sample_id: pa.Array, predictions: np.ndarray) -> pa.Table:
    columns = np.asfortranarray(predictions)
    return pa.Table.from_arrays([sample_id, *(pa.array(columns[:, index]) for index in range(columns.shape[1]))], schema=_SCHEMA)


def _require_finite(block: flat.Block, path: str) -> None:
    bad = ~np.isfinite(block.inputs).all(axis=1)
    if bad.any():
        raise UserError(
            f"{path}: {int(bad.sum())} rows hold NaN or Inf inputs, the first {block.sample_id[int(np.argmax(bad))].as_py()}; "
            "predictions need finite numbers"
        )
