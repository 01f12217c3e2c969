"""Climatology and ridge regression as model directories."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from leapray.data.prepare import prepare
from leapray.errors import UserError
from leapray.evaluation.metrics import ErrorMoments
from leapray.models.directory import load_model
from leapray.training.baselines import _ALPHAS, fit_baselines
from tests.samples import read_split, sample_recipe, write_flat


@pytest.mark.ray
def test_baselines_are_models_equal_to_scikit_learns(ray_cluster: None, tmp_path: Path) -> None:
    write_flat(tmp_path / "flat", stop="0001-05")
    prepared = prepare(sample_recipe(tmp_path))
    places = fit_baselines(prepared, str(tmp_path / "baselines"))
    train, validation = (
        {key: np.concatenate([rows[key] for rows in read_split(prepared, split)]) for key in ("inputs", "targets")}
        for split in ("train", "validation")
    )
    fitted = [Ridge(alpha).fit(train["inputs"].astype(float), train["targets"].astype(float)) for alpha in _ALPHAS]
    scores = [ErrorMoments.of(validation["targets"], ridge.predict(validation["inputs"])).score().learned for ridge in fitted]
    expected = {"climatology": np.tile(train["targets"].mean(axis=0), (len(validation["inputs"]), 1))}
    expected["ridge"] = fitted[int(np.argmax(scores))].predict(validation["inputs"])
    for name, place in places.items():
        with torch.inference_mode():
            found = load_model(place).emulator.network(torch.from_numpy(validation["inputs"].copy())).numpy()
        np.testing.assert_allclose(found, expected[name], rtol=0, atol=1e-4)

    assert fit_baselines(prepared, str(tmp_path / "baselines")) == places
    write_flat(tmp_path / "other" / "flat", stop="0001-05", seed=1)
    with pytest.raises(UserError, match="was fitted on other data"):
        fit_baselines(prepare(sample_recipe(tmp_path / "other")), str(tmp_path / "baselines"))
