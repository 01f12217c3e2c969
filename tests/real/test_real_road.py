"""The road on real rows in small: departures, skill, the ensemble, and both entries of an exported emulator."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from leapray.climsim.grid import competition_columns
from leapray.data.flat import Selection
from leapray.data.prepare import prepare
from leapray.data.reading import read_file
from leapray.data.shards import Prepared
from leapray.errors import UserError
from leapray.evaluation.intervals import TimedMoments
from leapray.inference.ensemble import ensemble
from leapray.inference.evaluate import evaluate
from leapray.inference.export import export
from leapray.inference.predict import predict
from leapray.models.directory import load_model
from leapray.recipe import Recipe, load_recipe
from leapray.training.scoring import days
from leapray.training.trainer import Trained, train
from tests.columns import INPUTS, LEARNED, TARGETS

pytestmark = [pytest.mark.real, pytest.mark.ray]

FILE = Path(__file__).parents[2] / "jobs" / "recipes" / "real_small.yaml"
NETWORKS = {
    "climatology": "{name: climatology, options: {}}",
    "ridge": "{name: ridge, options: {}}",
    "mlp": "{name: mlp, options: {hidden: [128], activation: silu}}",
}
FEATURES = "[liquid_partition, condensate_imbalance, temperature_humidity_ratio]"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("road")


@pytest.fixture(scope="module")
def recipe(flat: Path, home: Path) -> Recipe:
    places = {"data.prepared": home / "prepared", "data.sources.low_res.path": flat, "training.run": home / "base"}
    return load_recipe(str(FILE), [*(f"{key}={place}" for key, place in places.items()), "training.epochs=3"])


@pytest.fixture(scope="module")
def prepared(recipe: Recipe) -> Prepared:
    return prepare(recipe)


@pytest.fixture(scope="module")
def trained(recipe: Recipe, home: Path, prepared: Prepared) -> dict[str, Trained]:
    """A run of each network by name."""
    named = {
        name: load_recipe(recipe_file(recipe, home), [f"network={network}", f"training.run={home / name}"])
        for name, network in NETWORKS.items()
    }
    return {name: train(one) for name, one in named.items()}


def recipe_file(recipe: Recipe, home: Path) -> str:
    path = home / "recipe.yaml"
    path.write_text(recipe.model_copy(update={"finetune": None}).to_yaml())
    return str(path)


def columns(flat: Path, months: str) -> np.ndarray:
    """The 924 columns of a month's rows."""
    table = pq.read_table([str(path) for path in sorted(flat.glob(f"*{months}*.parquet"))], partitioning=None)
    return np.stack([table[name].to_numpy() for name in (*INPUTS.columns, *TARGETS.columns)], axis=1)


def test_cloud_liquid_of_levels_27_and_28_is_learned_as_its_departure(prepared: Prepared, flat: Path) -> None:
    assert prepared.transform.departures == ["ptend_q0002_27", "ptend_q0002_28"]
    # and so is every column of water, by numpy, whose departure varies much less
    known = competition_columns(TARGETS).std
    rows = np.concatenate([columns(flat, f"0008-{month:02}") for month in range(1, 8)])
    for water in ("q0001", "q0002", "q0003"):
        for level in range(12, 60):
            place = INPUTS.width + TARGETS.columns.index(f"ptend_{water}_{level}")
            state, tendency = rows[:, INPUTS.columns.index(f"state_{water}_{level}")], rows[:, place]
            varies = water == "q0002" or np.std(tendency) >= 1e-3**0.5 * known[place - INPUTS.width]
            departs = np.var(tendency + state / 1200) < 0.5 * np.var(tendency) and varies and bool(LEARNED[place - INPUTS.width])
            assert departs == (f"ptend_{water}_{level}" in prepared.transform.departures)


def test_ice_that_is_silent_in_spring_is_scored_by_its_true_rows_in_summer(recipe: Recipe, home: Path, flat: Path) -> None:
    months = {"train": "{start: 0008-03, stop: 0008-06}", "validation": "{start: 0008-06, stop: 0008-07}"}
    overrides = [f"data.prepared={home / 'spring'}", *(f"data.sources.low_res.{split}={value}" for split, value in months.items())]
    prepared = prepare(
        load_recipe(recipe_file(recipe, home), [*overrides, "data.sources.low_res.blend=null", "data.sources.low_res.test=null"])
    )
    assert prepared.transform.departures == ["ptend_q0002_27", "ptend_q0002_28"]
    found = TimedMoments(prepared.transform.statistics)
    for manifest in prepared.split("validation"):
        for index in range(len(manifest.files)):
            rows = read_file(manifest, index, prepared.transform)
            inputs, targets = (torch.from_numpy(rows[name].copy()) for name in ("inputs", "targets"))
            truth = prepared.transform.physical_truth(targets, inputs).numpy()
            found.update(days(rows["row"]), truth, truth)
    june = columns(flat, "0008-06")[:, INPUTS.width :]
    total = found.total()
    np.testing.assert_allclose(total.mean[LEARNED], june.mean(axis=0)[LEARNED], rtol=1e-4, atol=1e-4 * june.std(axis=0)[LEARNED].max())
    np.testing.assert_allclose(np.sqrt(total.deviation / total.count)[LEARNED], june.std(axis=0)[LEARNED], rtol=1e-3)


def test_skill_tells_networks_apart_and_lies_within_what_is_attainable(trained: dict[str, Trained]) -> None:
    best = {name: one.best for name, one in trained.items()}
    assert abs(best["climatology"]["skill"]) < 1e-6
    assert 0.1 < best["ridge"]["skill"] < 0.4
    assert best["ridge"]["skill"] - 0.05 < best["mlp"]["skill"] < best["mlp"]["attainable"] < 1
    for record in best.values():
        assert record["score"] == record["skill"]
        assert record["r2_silent"] > 0


def test_the_kept_epoch_is_that_of_the_most_skill(trained: dict[str, Trained]) -> None:
    history = trained["mlp"].history
    assert len(history) == 3
    assert trained["mlp"].best["skill"] == max(record["skill"] for record in history)


def test_the_ensemble_is_at_least_its_best_member_and_is_evaluated_as_it_says(
    recipe: Recipe, trained: dict[str, Trained], home: Path, flat: Path
) -> None:
    values = recipe.model_copy(update={"finetune": None}).to_dict()
    values["ensemble"] = {"directory": str(home / "ensemble"), "members": [one.model_url for one in trained.values()]}
    done = ensemble(Recipe.model_validate(values))
    blend, test = done.weights.figures["blend"], done.weights.figures["test"]
    assert blend["ensemble"] >= max(blend["members"].values())
    evaluated, *_ = evaluate(f"{done.predictions}/low_res", str(flat), str(home / "report"), selection=october(recipe), report=False)
    score = evaluated.moments.score()
    assert score.skill == pytest.approx(test["ensemble"], abs=1e-9)
    assert "training rows of low_res, months 0008-01" in score.statistics.origin


def october(recipe: Recipe) -> Selection:
    months = recipe.data.sources["low_res"].test
    assert months is not None
    return Selection(months.start, months.stop)


def test_both_entries_of_an_exported_emulator_agree_on_real_rows(trained: dict[str, Trained], home: Path, flat: Path) -> None:
    rows = torch.from_numpy(columns(flat, "0008-10")[:, : INPUTS.width])
    recipe = home / "recipe.yaml"
    changes = [f"network={NETWORKS['mlp']}", f"data.features={FEATURES}", f"data.prepared={home / 'features'}", "training.epochs=1"]
    featured = load_recipe(str(recipe), [*changes, f"training.run={home / 'featured'}"])
    prepare(featured)
    models = {"featured": train(featured), **{name: trained[name] for name in ("ridge", "mlp")}}
    for name, model in models.items():
        export([model.model_url], str(home / f"{name}-export"), "torchscript")
        run = torch.jit.load(str(home / f"{name}-export" / "emulator.pt"))
        with torch.inference_mode():
            difference = (run(rows) - run(rows.float()).double()).abs().amax(dim=0).numpy()
        std = np.sqrt(load_model(model.model_url).emulator.transform.statistics.variance)
        told = LEARNED & (std > 0)
        assert (difference[told] < 0.01 * std[told]).all()


def test_predictions_carry_what_their_skill_is_measured_against(
    trained: dict[str, Trained], home: Path, flat: Path, recipe: Recipe
) -> None:
    predict([trained["ridge"].model_url], str(flat), str(home / "predictions"), selection=october(recipe))
    found, *_ = evaluate(str(home / "predictions"), str(flat), str(home / "evaluation"), selection=october(recipe), report=False)
    assert found.moments.score().statistics.origin.startswith("17,280 training rows of low_res")
    with pytest.raises(UserError, match="--start 0008-10 --stop 0008-11"):
        evaluate(str(home / "predictions"), str(flat), str(home / "whole"), report=False)
