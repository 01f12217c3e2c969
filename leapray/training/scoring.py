"""Scoring a network on prepared data, day by day, so that an interval can be told; and the average of several networks' weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from leapray.climsim.row_keys import row_place
from leapray.data.reading import map_ahead, read_file
from leapray.data.shards import Prepared, Rows
from leapray.data.transform import Transform
from leapray.evaluation.intervals import TimedMoments, time_blocks
from leapray.models.row_threads import forward_pass

_THREADS, _BATCH_ROWS = 3, 4096
_NO_DAY = -1
"""The block of rows whose time is not known."""


def score_network(
    network: nn.Module, prepared: Prepared, split: str, device: torch.device, transform: Transform | None = None
) -> TimedMoments:
    """Moments of all rows of a split in physical units, each once, kept apart by day.

    ``transform`` is the network's own, which gives the same inputs as that of the data, its default. Raises UserError for a damaged file.
    """
    network = network.to(device).eval()
    files = [(manifest, index) for manifest in prepared.split(split) for index in range(len(manifest.files))]
    moments = TimedMoments(prepared.transform.statistics)
    with forward_pass(network, device) as forward:
        for rows in map_ahead(lambda file: read_file(*file, prepared.transform), files, _THREADS):
            score_rows(forward, rows, moments, prepared.transform, transform or prepared.transform, device)
    return moments


@torch.no_grad()
def score_rows(
    network: Callable[[Tensor], Tensor],
    rows: Rows,
    moments: TimedMoments,
    transform: Transform,
    own: Transform,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> None:
    """Take rows that ``transform`` scaled into moments, in physical units, beside what a network on ``device`` gives by its ``own``."""
    for start in range(0, len(rows["row"]), _BATCH_ROWS):
        batch: Rows = {name: values[start : start + _BATCH_ROWS] for name, values in rows.items()}
        inputs, targets = (torch.from_numpy(batch[name].copy()) for name in ("inputs", "targets"))
        output = network(inputs.to(device))[:, : moments.targets.width].float().cpu()
        truth, prediction = transform.physical_truth(targets, inputs), own.physical_prediction(output, inputs)
        moments.update(days(batch["row"]), truth.numpy(), prediction.numpy())


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
