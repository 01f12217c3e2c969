"""The recipes that are shipped: each loads, has the network that it says, offers settings that exist, and runs on a laptop in small."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from leapray.data.features import channels_of
from leapray.data.fitting import Fitting
from leapray.data.prepare import prepare
from leapray.models.directory import load_model
from leapray.models.registry import build_network
from leapray.recipe import load_recipe
from leapray.training.choices import check_choices
from leapray.training.trainer import train
from tests.samples import random_rows, write_flat

FILES = sorted((Path(__file__).parent.parent / "jobs" / "recipes").glob("*.yaml"))
# a file of several recipes is an experiment
RECIPES = {path.stem: path for path in FILES if "recipes" not in yaml.safe_load(path.read_text())}
PARAMETERS = {
    "demo": 813_484,
    "low_res_aqua": 18_525_030,
    "low_res_aqua_features": 18_226_092,
    "low_res_high_res_attention_256": 11_679_279,
    "low_res_high_res_attention_320": 18_152_687,
    "low_res_high_res_mean_280": 13_626_630,
    "real_small": 956_844,
    "sweep_low_res": 18_525_030,
}
TINY = {
    "low-res-aqua": {"encoder": "[8]", "lstm_hidden": 4, "lstm_layers": 1, "gru_hidden": 2},
    "low-res-high-res": {"embedding": 6, "hidden": 4, "layers": 2, "head": 8},
}
MONTHS = {
    "train": "{start: 0001-02, stop: 0001-04}",
    "validation": "{start: 0001-04, stop: 0001-05}",
    "test": "{start: 0001-05, stop: 0001-06}",
    "blend": "{start: 0001-06, stop: 0001-07}",
}
TRAINING_ROWS, VALIDATION_ROWS, BATCH = 96, 48, 32


def offered(name: str) -> list[list[str]]:
    """What the recipe's comments offer to set, line by line."""
    comments = (line.lstrip("#") for line in RECIPES[name].read_text().splitlines() if line.startswith("#") and "--set " in line)
    return [[word for word in shlex.split(line[line.index("--set ") :]) if word != "--set"] for line in comments]


def laptop(name: str) -> list[str]:
    return next((overrides for overrides in offered(name) if "resources.use_gpu=false" in overrides), [])


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_good_and_so_is_what_it_offers_to_set(name: str) -> None:
    for overrides in ([], *offered(name)):
        recipe = load_recipe(str(RECIPES[name]), overrides)
        assert recipe.name == name
        Fitting(recipe.data.variable_set, recipe.data.scaling, recipe.data.features)
        check_choices(recipe)
        with torch.device("meta"):
            build_network(recipe.network.name, recipe.network.options, channels_of(recipe.data))


def test_every_recipe_has_the_parameters_that_it_says() -> None:
    found = {}
    for name, path in RECIPES.items():
        recipe = load_recipe(str(path))
        with torch.device("meta"):
            network = build_network(recipe.network.name, recipe.network.options, channels_of(recipe.data))
        found[name] = sum(parameter.numel() for parameter in network.parameters())
        assert name == "demo" or f"{found[name]:,} parameters".replace(",", " ") in path.read_text()
    assert found == PARAMETERS


def test_the_recipe_with_features_offers_its_four_variants_and_four_sets_of_features() -> None:
    name = "low_res_aqua_features"
    recipes = [load_recipe(str(RECIPES[name]), overrides) for overrides in ([], *offered(name))]
    assert {len(recipe.data.features) for recipe in recipes} == {1, 2, 3, 9}
    variants = {(recipe.training.loss.options["columns"], recipe.network.options["features_at"]) for recipe in recipes}
    assert variants == {(columns, place) for columns in ("learned", "all") for place in ("after-state", "first")}


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five months of 48 rows, of every kind."""
    root = tmp_path_factory.mktemp("recipes")
    for seed, kind in enumerate(("low-res", "aqua-planet", "high-res")):
        write_flat(root / kind, kind, stop="0001-07", seed=seed)
    return root


@pytest.mark.ray
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_prepares_and_trains(name: str, flat: Path, tmp_path: Path, ray_cluster: None) -> None:
    content = yaml.safe_load(RECIPES[name].read_text())
    overrides = laptop(name) + [f"network.options.{key}={value}" for key, value in TINY[content["network"]["name"]].items()]
    overrides += [f"data.prepared={tmp_path}/prepared", "data.rows_per_shard=16", "data.shuffle_rows=64"]
    overrides += [f"training.run={tmp_path}/run", "training.epochs=2", f"training.batch_size={BATCH}"]
    for source, values in content["data"]["sources"].items():
        overrides += [f"data.sources.{source}.path={flat}/{values['kind']}"]
        overrides += [f"data.sources.{source}.{split}={months}" for split, months in MONTHS.items() if split in values]
        if "fraction" in values:
            overrides += [f"data.sources.{source}.fraction=3/4"]
    if "ema" in content["training"]:
        overrides += ["training.ema.every=1", "training.ema.after=1"]
    recipe = load_recipe(str(RECIPES[name]), overrides)

    prepared = prepare(recipe)
    assert sum(manifest.rows for manifest in prepared.manifests if manifest.split == "validation") == VALIDATION_ROWS
    trained = train(recipe)
    assert [record["epoch"] for record in trained.history] == sorted([1, 2] * recipe.training.validations)
    assert all(np.isfinite(record["loss"]) and record["val_rows"] == VALIDATION_ROWS for record in trained.history)
    assert 2 * 2 <= trained.history[-1]["step"] <= 2 * (len(recipe.data.sources) * TRAINING_ROWS // BATCH)
    x = torch.from_numpy(random_rows(3)[:, :556])
    with torch.no_grad():
        assert load_model(trained.model_url).emulator(x).isfinite().all()
