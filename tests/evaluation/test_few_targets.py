"""Evaluation, report and comparison of sets with few targets: profiles only, scalars only, rain without water."""

import re
from pathlib import Path

import numpy as np
import pytest

from leapray.climsim.calendar import STEPS_PER_DAY
from leapray.climsim.grid import low_res_grid
from leapray.climsim.schema import Targets
from leapray.evaluation.accumulate import Batch, Prediction, Truth
from leapray.evaluation.metrics import TargetStatistics
from leapray.evaluation.report.comparison import compare_report
from leapray.evaluation.report.making import Material
from leapray.evaluation.report.write import write_report
from leapray.evaluation.results import Evaluation, read_evaluations, write_evaluations


def evaluated(names: list[str], noise: float) -> Evaluation:
    """Twelve steps on the low-res grid, one a day."""
    targets, grid, rng = Targets.of(names), low_res_grid(), np.random.default_rng(0)
    rows = 12 * len(grid.area)
    values = rng.normal(1e-8, 1e-8, (rows, targets.width))
    statistics = TargetStatistics(targets, values.mean(axis=0), values.var(axis=0), "these rows")
    truth = Truth(targets, timed=True, weighed=True, grid=grid)
    one = Prediction("ours", truth, statistics)
    step, ncol = np.repeat(np.arange(12) * STEPS_PER_DAY, len(grid.area)), np.tile(np.arange(len(grid.area)), 12)
    batch = Batch(values, step, ncol, rng.normal(98000, 2000, rows), grid)
    truth.take(batch)
    one.take(batch, values + noise * rng.normal(0, 1e-8, values.shape))
    one.take_crps(batch, np.abs(values))
    return one.result()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("names", "pictures"),
    [
        (["ptend_t"], 5),
        (["cam_out_NETSW"], 2),
        (["cam_out_PRECC", "ptend_t"], 8),
        (["ptend_q0001", "cam_out_SOLL"], 7),
        (["ptend_q0002"], 5),
    ],
)
def test_a_report_has_the_pictures_that_the_targets_allow(tmp_path, names, pictures):
    found = evaluated(names, 0.1)
    write_evaluations(str(tmp_path / "e"), [found])
    (again,) = read_evaluations(str(tmp_path / "e"))
    assert again.targets == found.targets
    page = write_report(str(tmp_path), [again], Material("few"))
    text = Path(page.removeprefix("file://")).read_text()
    assert len(re.findall("<figure", text)) == pictures
    assert 0.9 < found.moments.score().skill < 1
    compare_report(str(tmp_path / "c"), [found], [evaluated(names, 0.5)], ("a", "b"))


def test_rain_without_all_the_water_tells_no_moistening():
    found = evaluated(["cam_out_PRECC", "ptend_q0001"], 0.1).precipitation
    assert found is not None
    assert found.truth.sum() == 12 * 384
    assert np.isnan(found.moistening).all()
