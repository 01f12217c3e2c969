import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from leapray.climsim.schema import KAGGLE
from leapray.data.transform import Transform
from leapray.evaluation.metrics import ErrorMoments
from leapray.training.validation import DeviceMoments
from tests.columns import INPUTS, SCORED, TARGETS


@pytest.mark.parametrize("sizes", [(50,), (1, 1, 48), (20, 30)])
def test_moments_on_the_device_are_those_of_the_score(sizes):
    generator = np.random.default_rng(1)
    scale = 10.0 ** generator.uniform(-12, 5, TARGETS.width)
    truth = (generator.normal(size=(50, TARGETS.width)) * scale + 1e3 * scale).astype(np.float32)
    truth[:, [3, ~0]] = 7.0
    prediction = truth + (0.1 * generator.normal(size=truth.shape) * scale).astype(np.float32)
    prediction[:, 3] = 7.0
    truth[:, ~SCORED] = np.nan
    moments, expected = DeviceMoments(torch.device("cpu"), Transform.identity(KAGGLE)), ErrorMoments.empty(TARGETS)
    inputs = torch.zeros(50, INPUTS.width)
    for part in np.split(np.arange(50), np.cumsum(sizes)[:-1]):
        moments.update(inputs[part], torch.from_numpy(truth[part]), torch.from_numpy(prediction[part]))
        expected.update(truth[part], prediction[part])
    found = moments.read()
    assert found.count == 50
    np.testing.assert_allclose(found.to_array(), expected.to_array(), rtol=1e-10)
    r2 = r2_score(truth[:, SCORED].astype(np.float64), prediction[:, SCORED].astype(np.float64), multioutput="raw_values")
    np.testing.assert_allclose(found.score(Transform.identity(KAGGLE).statistics).r2[SCORED], r2, rtol=1e-9)


def test_nothing_read_is_nothing_counted():
    assert DeviceMoments(torch.device("cpu"), Transform.identity(KAGGLE)).read().count == 0
