"""What is known of ClimSim's values, against real rows."""

from pathlib import Path

import numpy as np
import pytest
import torch

from leapray.climsim.calendar import Month
from leapray.climsim.netcdf import read_pair
from leapray.climsim.pairs import find_pairs
from leapray.data.features import EngineeredFeatures
from leapray.data.findings import Sample, Verdict, judge
from tests.columns import INPUTS

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def rows(climsim: Path) -> np.ndarray:
    """Rows of October of year 8 ``(n, 924)``."""
    pairs = find_pairs(str(climsim / "train"), start=Month.parse("0008-10"), stop=Month.parse("0008-11"))
    return np.concatenate([read_pair(pair).rows for pair in pairs])


def test_every_column_lies_within_the_known_ranges(rows: np.ndarray) -> None:
    inputs, targets = np.split(rows, [INPUTS.width], axis=1)
    found = {finding.text: finding.verdict for finding in judge(Sample("low-res", inputs, targets))}
    assert found["every column lies within the known range"] is Verdict.OK


def test_traces_of_condensate_have_a_phase(rows: np.ndarray) -> None:
    inputs = rows[:, : INPUTS.width]
    liquid, ice = (inputs[:, INPUTS[name]] for name in ("state_q0002", "state_q0003"))
    (partition,) = EngineeredFeatures(["liquid_partition"], INPUTS)(torch.from_numpy(np.ascontiguousarray(inputs)))
    liquid, ice = (np.where(water >= 1e-35, water, 0) for water in (liquid, ice))
    total = liquid + ice
    held = total > 0
    np.testing.assert_allclose(partition.numpy()[held], (liquid / np.where(held, total, 1))[held], rtol=1e-12)
    assert (partition.numpy()[~held] == 0).all()
    traces = held & (total < 1e-18)
    assert traces.mean() > 0.03
    assert 0.02 < partition.numpy()[traces].mean() < 0.9
