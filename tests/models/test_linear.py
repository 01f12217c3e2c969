import numpy as np
import torch

from leapray.evaluation.baselines import LinearModel
from leapray.models.linear import solved
from tests.columns import CHANNELS, INPUTS, TARGETS


def test_a_solved_network_predicts_what_the_regression_does() -> None:
    generator = np.random.default_rng(0)
    model = LinearModel(generator.normal(size=(INPUTS.width, TARGETS.width)), generator.normal(size=TARGETS.width))
    x = generator.normal(size=(5, INPUTS.width))
    with torch.no_grad():
        z = solved(model, CHANNELS)(torch.from_numpy(x).float()).numpy()
    np.testing.assert_allclose(z, model.predict(x), rtol=1e-4, atol=1e-4)
