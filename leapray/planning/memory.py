"""The memory of one worker, in bytes."""

from __future__ import annotations

from collections.abc import Mapping

from leapray.planning.model import GRADIENT_BYTES
from leapray.planning.rows import shard_bytes
from leapray.recipe import Recipe

DEVICE, HOST = "on the device, without activations", "of the host"
_ADAMW_MOMENTS = 2
_AHEAD, _BATCHES = 3, 6
"""Shards that are read ahead of those in use, and batches on their way: two put together, four waiting for the device."""
_LIBRARIES = 0.6e9
"""Of a process with torch, Arrow and Ray: 0.96 GB at the peak of bench ingest less the shards that it holds."""


def worker_memory(recipe: Recipe, parameters: int, workers: int) -> Mapping[str, float]:
    """Weights, gradients, AdamW's moments and averages, and the rows that are held while they are being used."""
    training, data = recipe.training, recipe.data
    weights = float(parameters * GRADIENT_BYTES)
    average = weights if training.ema or training.swa else 0.0
    tracks = len(recipe.shares) if recipe.shares else 1
    row = shard_bytes(len(data.features))
    shards = (recipe.lanes // workers * tracks + _AHEAD) * data.rows_per_shard * row
    batches = _BATCHES * training.batch_size / workers * row
    return {
        "weights and gradients": 2 * weights,
        "optimizer": _ADAMW_MOMENTS * weights,
        "average of weights": average,
        DEVICE: (2 + _ADAMW_MOMENTS) * weights + average,
        "shards held": float(shards),
        "batches": batches,
        "libraries": _LIBRARIES,
        HOST: shards + batches + _LIBRARIES,
    }
