"""Climatology and ridge regression, which are solved for, as runs like any other."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from leapray.data.prepare import prepare
from leapray.data.shards import Prepared, Rows
from leapray.errors import UserError
from leapray.models.directory import load_info, load_model
from leapray.recipe import Recipe, parse_recipe
from leapray.training.baselines import _ALPHAS, solve
from leapray.training.compare import compare
from leapray.training.run import Run, decisive
from leapray.training.trainer import train
from tests.columns import LEARNED, TARGETS
from tests.samples import read_split, recipe_values, write_flat
from tests.training.test_scoring import physical, prepared_shards


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks in this process."""
    monkeypatch.setattr("leapray.training.baselines.run_tasks", lambda task, count: map(task, range(count)))


def recipe_of(root: Path, name: str, options: dict[str, Any] | None = None, run: str = "run", **training: Any) -> Recipe:
    return parse_recipe(recipe_values(root, run=str(root / run), **training) | {"network": {"name": name, "options": options or {}}})


def solved(root: Path, prepared: Prepared, name: str, **settings: Any) -> tuple[dict[str, Any], torch.nn.Module]:
    """The record and the network of a run."""
    recipe = recipe_of(root, name, **settings)
    solve(recipe, prepared, Run(recipe.training.run))
    (line,) = Path(Run(recipe.training.run).metrics).read_text().splitlines()
    model = Run(recipe.training.run).model
    assert load_info(model).history == [json.loads(line)]
    return json.loads(line), load_model(model).emulator.network


def fitted(rows: Rows, alpha: float) -> Ridge:
    return Ridge(alpha).fit(rows["inputs"].astype(float), rows["targets"].astype(float))


def scores_by_hand(prepared: Prepared, rows: Rows, prediction: np.ndarray) -> tuple[float, float]:
    """Skill and mean R2 over the learned columns of a scaled prediction."""
    y, f = (physical(prepared, values)[:, LEARNED] for values in (rows["targets"], prediction))
    mean, training = (getattr(prepared.transform.statistics, name)[LEARNED] for name in ("mean", "variance"))
    error, variance = ((y - f) ** 2).mean(axis=0), y.var(axis=0)
    skill = np.maximum((((y - mean) ** 2).mean(axis=0) - error) / np.maximum(variance, training), -1)
    return float(skill.mean()), float((1 - error / variance).mean())


@pytest.mark.usefixtures("at_once")
def test_ridge_regression_with_an_alpha_is_scikit_learns(tmp_path: Path) -> None:
    prepared, held = prepared_shards(tmp_path / "prepared")
    record, network = solved(tmp_path, prepared, "ridge", options={"alpha": 33.0})
    expected = fitted(held["train"], 33.0).predict(held["validation"]["inputs"])
    with torch.no_grad():
        found = network(torch.from_numpy(held["validation"]["inputs"])).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert (record["skill"], record["r2"]) == pytest.approx(scores_by_hand(prepared, held["validation"], expected), abs=1e-5)
    assert (record["event"], record["epoch"], record["val_rows"]) == ("validation", 1, len(expected))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("select", ["skill", "r2"])
def test_ridge_regression_without_an_alpha_takes_the_one_with_the_best_score(tmp_path: Path, select: str) -> None:
    prepared, held = prepared_shards(tmp_path / "prepared")
    record, network = solved(tmp_path, prepared, "ridge", select=select)
    validation = held["validation"]
    predictions = [fitted(held["train"], alpha).predict(validation["inputs"]) for alpha in _ALPHAS]
    scores = [scores_by_hand(prepared, validation, prediction)[select == "r2"] for prediction in predictions]
    assert record["score"] == record[select] == pytest.approx(max(scores), abs=1e-5)
    with torch.no_grad():
        found = network(torch.from_numpy(validation["inputs"])).numpy()
    np.testing.assert_allclose(found, predictions[int(np.argmax(scores))], rtol=0, atol=1e-4)


@pytest.mark.usefixtures("at_once")
def test_the_climatology_has_no_skill_and_predicts_the_training_mean(tmp_path: Path) -> None:
    prepared, held = prepared_shards(tmp_path / "prepared")
    record, _ = solved(tmp_path, prepared, "climatology")
    assert record["skill"] == pytest.approx(0, abs=1e-6)
    assert record["score"] == record["skill"]
    assert record["attainable"] > 0.1
    mean = prepared.transform.statistics.mean
    in_scaled = (mean - prepared.transform.targets.mean.numpy()) / prepared.transform.targets.scale.numpy()
    _, r2 = scores_by_hand(prepared, held["validation"], np.tile(in_scaled, (record["val_rows"], 1)))
    assert record["r2"] == pytest.approx(r2, abs=1e-5)


@pytest.mark.usefixtures("at_once")
def test_ridge_regression_is_fitted_on_the_sources_that_are_trained(tmp_path: Path) -> None:
    prepared, _ = prepared_shards(tmp_path / "one")
    other, _ = prepared_shards(tmp_path / "two", splits=("train",), seed=5)
    second = tuple(replace(manifest, source="other") for manifest in other.split("train"))
    both = replace(prepared, manifests=(*prepared.manifests, *second))
    _, alone = solved(tmp_path, prepared, "ridge", options={"alpha": 1.0}, run="alone")
    # the recipe trains low_res, the only source that it has
    _, again = solved(tmp_path, both, "ridge", options={"alpha": 1.0}, run="both")
    torch.testing.assert_close(dict(again.state_dict()), dict(alone.state_dict()), rtol=0, atol=0)


def test_a_trial_solves_without_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leapray.training.baselines.run_tasks", lambda *_: pytest.fail("a trial holds the CPUs that a task would wait for"))
    prepared, _ = prepared_shards(tmp_path)
    recipe = recipe_of(tmp_path, "ridge")
    solve(recipe, prepared, Run(recipe.training.run), alone=True)
    assert Run(recipe.training.run).finished


def test_settings_that_a_solved_run_does_not_use_are_not_compared(tmp_path: Path) -> None:
    one, other = (recipe_of(tmp_path, "ridge", epochs=epochs) for epochs in (1, 7))
    assert decisive(one) == decisive(other)
    assert decisive(one) != decisive(recipe_of(tmp_path, "ridge", {"alpha": 3.0}))


@pytest.mark.ray
def test_solved_runs_are_continued_and_compared_with_trained_ones(ray_cluster: None, tmp_path: Path) -> None:
    # three days of each month, for intervals
    write_flat(tmp_path / "flat", stop="0001-06", stride=36)
    values = recipe_values(tmp_path)
    values["data"]["sources"]["low_res"]["test"] = {"start": "0001-05", "stop": "0001-06"}

    def recipe(name: str, options: dict[str, Any] | None = None) -> Recipe:
        training = values["training"] | {"run": str(tmp_path / name), "batch_size": 16}
        return parse_recipe(values | {"training": training, "network": {"name": name, "options": options or {}}})

    prepared = prepare(recipe("mlp"))
    trained = {name: train(recipe(name)) for name in ("climatology", "ridge", "mlp")}
    assert trained["climatology"].best["skill"] == pytest.approx(0, abs=1e-6)
    assert trained["ridge"].best["skill"] > 0.02

    # a departure is no part of what climatology predicts
    emulator = load_model(trained["climatology"].model_url).emulator
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(3, emulator.transform.inputs.mean.numel())))
    predicted = emulator.transform.unscale_targets(emulator.network(emulator.transform.scale_inputs(x)), x).numpy()
    np.testing.assert_allclose(predicted, np.tile(prepared.transform.statistics.mean, (3, 1)), rtol=1e-12, atol=1e-300)
    assert predicted.shape == (3, TARGETS.width)

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert [train(recipe(name)) for name in trained] == list(trained.values())
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    with pytest.raises(UserError, match=r"holds a run of another recipe \(network\.options\.alpha: None, now 2\.0\)"):
        train(recipe("ridge", {"alpha": 2.0}))

    sides = {side.name: side for side in compare([str(tmp_path / name) for name in trained]).sides}
    assert [side.cause for side in sides.values()] == [""] * 3
    assert sides["climatology"].test is not None
    assert sides["climatology"].test.skill == pytest.approx(0, abs=1e-6)
    rows = list(read_split(prepared, "test"))
    truth = np.concatenate([prepared.transform.physical_truth(*_tensors(part)).numpy() for part in rows])
    assert sides["climatology"].test.rows == len(truth)
    assert sides["ridge"].difference is not None
    assert sides["ridge"].difference.value > 0.02


def _tensors(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(rows["targets"].copy()), torch.from_numpy(rows["inputs"].copy())
