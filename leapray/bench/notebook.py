"""Predicting as the original's notebook does (FACTS sections 2 and 4e): one process, batches of 1 024 rows, everything in one array."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn

from leapray.climsim.schema import EXACT_LEVELS, INPUTS, SAMPLE_ID, STEP_SECONDS, TARGETS
from leapray.models.directory import load_model

BATCH_ROWS = 1024
_WATER = ("q0001", "q0002", "q0003")


@dataclass(frozen=True)
class Notebook:
    """The network, and the means and standard deviations that it was trained with."""

    network: nn.Module
    device: torch.device
    x_mean: np.ndarray
    x_std: np.ndarray
    y_mean: np.ndarray
    y_std: np.ndarray

    @classmethod
    def load(cls, model: str, device: torch.device) -> Notebook:
        """From a model of ours whose scaling is ``reference``, which is the original's."""
        emulator = load_model(model).emulator
        x, y = emulator.transform.inputs, emulator.transform.targets
        # what is constant is predicted by its mean
        y_std = y.scale.masked_fill(y.constant, 0.0)
        return cls(emulator.network.to(device), device, x.mean.numpy(), x.scale.numpy(), y.mean.numpy(), y_std.numpy())

    def predict(self, paths: list[str]) -> tuple[pd.Series, np.ndarray]:
        """Ids and physical predictions ``(n, 368)`` of flat parquet files."""
        frame = pd.concat([pd.read_parquet(path, columns=[SAMPLE_ID, *INPUTS.columns]) for path in paths], ignore_index=True)
        inputs = frame[list(INPUTS.columns)].to_numpy()
        predictions = np.concatenate([self._batch(inputs[start : start + BATCH_ROWS]) for start in range(0, len(inputs), BATCH_ROWS)])
        for name in _WATER:
            columns = TARGETS[f"ptend_{name}"]
            predictions[:, columns] = np.maximum(predictions[:, columns], -inputs[:, INPUTS[f"state_{name}"]] / STEP_SECONDS)
        return frame[SAMPLE_ID], predictions

    def _batch(self, x: np.ndarray) -> np.ndarray:
        scaled = torch.from_numpy(((x - self.x_mean) / self.x_std).astype(np.float32)).to(self.device)
        with torch.no_grad():
            output = self.network(scaled)
        y = output.cpu().numpy().astype(np.float64) * self.y_std + self.y_mean
        for level in range(EXACT_LEVELS.stop):
            y[:, TARGETS["ptend_q0002"].start + level] = -x[:, INPUTS["state_q0002"].start + level] / STEP_SECONDS
        return y


def write_csv(ids: pd.Series, predictions: np.ndarray, sample_submission: str, destination: str) -> None:
    """The submission, in the order of its sample, a parquet file."""
    sample = pd.read_parquet(sample_submission)
    columns = list(TARGETS.columns)
    weights = sample[columns].iloc[0].to_numpy()
    frame = pd.DataFrame(predictions * weights, columns=columns, index=ids)
    frame.loc[sample[SAMPLE_ID]].to_csv(destination)
