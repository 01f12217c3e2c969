"""Validation on the device: what the scores need, accumulated in float64 where the predictions are."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
from torch import Tensor

from leapray.data.transform import Transform
from leapray.evaluation.metrics import ErrorMoments


class DeviceMoments:
    """:class:`ErrorMoments` on a device: the same moments, merged in the same way, read back once in the end.

    Rows come scaled, and are taken back to physical units by ``transform``, a copy of which lies on the device.
    """

    def __init__(self, device: torch.device, transform: Transform) -> None:
        self._transform = deepcopy(transform).to(device)
        self._targets = transform.variables.targets
        empty, scored = ErrorMoments.empty(self._targets).to_array(), self._targets.scored
        self._scored = torch.from_numpy(np.flatnonzero(scored)).to(device)
        # count, mean, deviation, error, low, high of the scored columns, as rows of ErrorMoments.to_array
        self._moments = torch.from_numpy(empty[:, scored]).to(device)

    def update(self, inputs: Tensor, truth: Tensor, prediction: Tensor) -> None:
        """Take in one batch of one row or more: inputs ``(b, s)``, truth and prediction ``(b, t)``, scaled, of any float type."""
        truth = self._transform.physical_truth(truth, inputs).index_select(1, self._scored)
        prediction = self._transform.physical_prediction(prediction, inputs).index_select(1, self._scored)
        low, high = truth.aminmax(dim=0)
        deviation, mean = torch.var_mean(truth, dim=0, correction=0)
        rows = float(len(truth))
        held, held_mean, held_deviation, held_error, held_low, held_high = self._moments.unbind()
        count = held + rows
        shift = mean - held_mean
        self._moments = torch.stack(
            [
                count,
                held_mean + shift * (rows / count),
                held_deviation + deviation * rows + shift.square() * (held * rows / count),
                held_error + (truth - prediction).square().sum(dim=0),
                torch.minimum(held_low, low),
                torch.maximum(held_high, high),
            ]
        )

    def read(self) -> ErrorMoments:
        """The moments of all batches; columns that are not scored are 0 in truth and prediction."""
        moments = self._moments.cpu().numpy()
        array = np.zeros((len(moments), self._targets.width))
        array[0] = moments[0, 0]
        array[:, self._targets.scored] = moments
        return ErrorMoments.from_array(self._targets, array)
