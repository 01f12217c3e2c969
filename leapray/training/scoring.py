"""Scoring a network on a split of prepared data, day by day, so that an interval can be told; and the average of several networks' weights.

R2 by column is unchanged by scaling, so scaled rows are enough (DESIGN, Score).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from leapray.climsim.schema import TARGETS, row_place
from leapray.data.ahead import map_ahead
from leapray.data.reading import read_file
from leapray.data.shards import Prepared, Rows
from leapray.evaluation.intervals import TimedMoments, time_blocks

_THREADS, _BATCH_ROWS = 3, 4096
_NO_DAY = -1
"""The block of rows whose time is not known."""


@torch.no_grad()
def score_network(network: nn.Module, prepared: Prepared, split: str, device: torch.device) -> TimedMoments:
    """Moments of all rows of a split, each once, kept apart by day. Raises UserError for a damaged file."""
    network = network.to(device).eval()
    files = [(manifest, index) for manifest in prepared.split(split) for index in range(len(manifest.files))]
    moments = TimedMoments()
    for rows in map_ahead(lambda file: read_file(*file, prepared.transform), files, _THREADS):
        for start in range(0, len(rows["row"]), _BATCH_ROWS):
            batch: Rows = {name: values[start : start + _BATCH_ROWS] for name, values in rows.items()}
            inputs = torch.from_numpy(batch["inputs"].copy()).to(device)
            prediction = network(inputs)[:, : TARGETS.width].float().cpu().numpy()
            moments.update(days(batch["row"]), batch["targets"], prediction)
    return moments


def days(row: np.ndarray) -> np.ndarray:
    """The day of each row ``(n,)`` by its key, -1 where that tells no time."""
    return np.where(row < 0, _NO_DAY, time_blocks(row_place(row)[1]))


def mean_of(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The plain mean of networks' ``state_dict``s, summed in float64; whole numbers, such as counts, are those of the first."""
    first, *_ = states
    return {
        name: torch.stack([state[name].double() for state in states]).mean(dim=0).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in first.items()
    }
