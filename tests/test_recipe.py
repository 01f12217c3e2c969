from pathlib import Path
from typing import Any

import pytest
import yaml

from leapray.climsim.schema import KAGGLE
from leapray.errors import UserError
from leapray.recipe import Choice, Start, load_recipe, parse_recipe
from leapray.recipe.load import merged
from tests.samples import recipe_values

FILES = sorted((Path(__file__).parent.parent / "jobs" / "recipes").glob("*.yaml"))
# a file of several recipes is an experiment
SHIPPED = [path for path in FILES if "recipes" not in yaml.safe_load(path.read_text())]


def write(path: Path, values: dict[str, Any]) -> str:
    (path / "recipe.yaml").write_text(yaml.safe_dump(values))
    return str(path / "recipe.yaml")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_load_and_their_choices_exist(path: Path) -> None:
    from leapray.data.fitting import Fitting
    from leapray.training.choices import check_choices

    recipe = load_recipe(str(path))
    Fitting(KAGGLE, recipe.data.scaling, recipe.data.features)
    check_choices(recipe)


def test_a_recipe_survives_its_own_yaml(tmp_path: Path) -> None:
    recipe = parse_recipe(recipe_values(tmp_path))
    assert parse_recipe(yaml.safe_load(recipe.to_yaml())) == recipe


def test_overrides_reach_any_depth_and_keep_their_type(tmp_path: Path) -> None:
    url = write(tmp_path, recipe_values(tmp_path))
    overrides = ["training.epochs=3", "network.options.hidden=[8, 8]", "training.optimizer={name: adamw, options: {lr: 1e-4}}"]
    recipe = load_recipe(url, overrides)
    assert recipe.training.epochs == 3
    assert recipe.network.options == {"hidden": [8, 8]}
    assert recipe.training.optimizer.name == "adamw"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("training.epoch=3", "unknown key 'training.epoch'; did you mean 'epochs'?"),
        ("data.sources.low_res.weigth=3", "unknown key 'data.sources.low_res.weigth'; did you mean 'weight'?"),
        ("training.epochs=0", "training.epochs is 0: input should be greater than 0"),
        ("training.precision=half", "training.precision is 'half': input should be 'float32', 'bf16' or 'fp16'"),
        ("data.fit_on=high_res", "fit_on names 'high_res', which is not a source; sources are low_res"),
        ("data.sources.low_res.kind=lowres", "kind 'lowres' is not one of low-res, aqua-planet, high-res"),
        ("data.sources.low_res.train.start=0001-13", "month '0001-13' is not of the form YYYY-MM"),
        ("data.sources.low_res.train.stop=0001-02", "stop 0001-02 must come after start 0001-02 (stop is exclusive)"),
        ("data.sources.low_res.train.stop=0001-05", "sources.low_res.train (0001-02 up to 0001-05) and sources.low_res.validation"),
        ("data.sources.low_res.strid=3", "unknown key 'data.sources.low_res.strid'; did you mean 'stride'?"),
        ("data.sources.low_res.phase=1", "phase 1 must be less than stride 1"),
        ("data.sources.low_res.fraction=1/0", "'1/0' is neither a number nor a fraction such as 1/15"),
        ("data.sources.low_res.fraction=1.5", "data.sources.low_res.fraction is 1.5: input should be less than or equal to 1"),
        ("data.sources.low_res.weight=0", "data.sources.low_res.weight is 0: input should be greater than 0"),
        ("training.pairs=true", "training.pairs needs two sources with training months, found low_res"),
        ("data.stream_from=parquet", "data.stream_from is 'parquet': input should be 'shards' or 'flat'"),
        ("resources.workers=3", "training.batch_size 8 must be a multiple of training.lanes 9"),
        ("resources={workers: 3, min_workers: 4}", "min_workers 4 are more than workers 3"),
        ("resources={workers: 9, min_workers: 2}", "training.batch_size 8 must be a multiple of training.lanes 9"),
        ("training.swa={start: 2}", "training: swa.start 2 comes after the last of 1 epochs, so nothing would be averaged"),
        ("training={swa: {}, ema: {}, run: r, epochs: 13, batch_size: 8}", "training: swa and ema exclude each other"),
        ("training.swa.lr=0", "training.swa.lr is 0: input should be greater than 0"),
        ("training.sources=[aqua]", "training.sources names 'aqua', expected sources with training months: low_res"),
        ("training.sources=[]", "training.sources is []: expected at least one of them"),
        ("training.sources=low_res", "training.sources is 'low_res': expected a list"),
        ("training.start={transform: any}", "key 'training.start.model' is missing"),
        ("resources={workers: 2, gpus_per_worker: 0.5}", "gpus_per_worker 0.5 of 2 workers: only a lone worker can share a GPU"),
        ("resources.gpus_per_worker=1.5", "resources.gpus_per_worker is 1.5: input should be less than or equal to 1"),
        ("resources.cpu_threading=both", "resources.cpu_threading is 'both': input should be 'rows' or 'operators'"),
        ("resources.gpus_per_worker=0", "resources.gpus_per_worker is 0: input should be greater than 0"),
        (
            "data.sources.low_res.blend={start: 0001-03, stop: 0001-04}",
            "sources.low_res.train (0001-02 up to 0001-04) and sources.low_res.blend",
        ),
        ("epochs", "--set 'epochs' is not of the form section.key=value"),
        ("name.first=3", "--set 'name.first=3': 'name' is not a section"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_key(tmp_path: Path, override: str, sentence: str) -> None:
    url = write(tmp_path, recipe_values(tmp_path))
    with pytest.raises(UserError) as caught:
        load_recipe(url, [override])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_months_of_two_kinds_may_overlap(tmp_path: Path) -> None:
    values = recipe_values(tmp_path)
    aqua = {"kind": "aqua-planet", "path": "x", "validation": {"start": "0001-02", "stop": "0001-04"}}
    values["data"]["sources"]["aqua"] = aqua
    parse_recipe(values)
    values["data"]["sources"]["aqua"] = aqua | {"kind": "low-res"}
    with pytest.raises(UserError, match=r"months overlap: sources\.low_res\.train"):
        parse_recipe(values)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: a\nname: b\n", "key 'name' is given twice"),
        ("- 1\n", "a recipe is a mapping of sections, found list"),
        ("name: [", "not valid YAML"),
        ("name: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_yaml_that_is_no_recipe_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UserError, match=sentence):
        load_recipe(str(tmp_path / "recipe.yaml"))


def two_sources(tmp_path: Path, **second: Any) -> dict[str, Any]:
    values = recipe_values(tmp_path)
    months = {"train": {"start": "0001-02", "stop": "0001-04"}}
    values["data"]["sources"]["high_res"] = {"kind": "high-res", "path": "elsewhere", **months, **second}
    return values


def test_a_fraction_may_be_written_as_one(tmp_path: Path) -> None:
    recipe = parse_recipe(two_sources(tmp_path, fraction="1/15"))
    assert recipe.data.sources["high_res"].fraction == 1 / 15
    assert parse_recipe(yaml.safe_load(recipe.to_yaml())) == recipe


def test_sources_are_mixed_by_rows_by_weights_or_in_pairs(tmp_path: Path) -> None:
    assert parse_recipe(two_sources(tmp_path)).shares is None
    assert parse_recipe(two_sources(tmp_path, weight=0.5)).shares == {"low_res": 1.0, "high_res": 0.5}
    paired = two_sources(tmp_path)
    paired["training"] |= {"pairs": True, "batch_size": 16}
    assert parse_recipe(paired).shares == {"low_res": 1.0, "high_res": 1.0}


@pytest.mark.parametrize(
    ("source", "training", "sentence"),
    [
        ({"weight": 2}, {"pairs": True}, "data.sources.high_res.weight and training.pairs exclude each other"),
        ({"weight": 2, "train": None, "test": {"start": "0002-02", "stop": "0002-03"}}, {}, "but the source has no training months"),
        ({}, {"pairs": True}, "training.batch_size 8 must be a multiple of 8 lanes x 2 sources"),
    ],
)
def test_a_mix_that_cannot_be_is_refused(tmp_path: Path, source: dict[str, Any], training: dict[str, Any], sentence: str) -> None:
    values = two_sources(tmp_path, **source)
    values["training"] |= training
    with pytest.raises(UserError, match=sentence):
        parse_recipe(values)


@pytest.mark.parametrize("name", ["..", "../x", "a/b", ".work", ""])
def test_the_name_of_a_source_is_one_of_a_folder(tmp_path: Path, name: str) -> None:
    values = recipe_values(tmp_path)
    values["data"]["sources"] = {name: values["data"]["sources"]["low_res"]}
    with pytest.raises(UserError, match="becomes a folder, expected letters, digits, - and _"):
        parse_recipe(values)


def test_statistics_made_elsewhere_need_no_training_months_and_exclude_fitting(tmp_path: Path) -> None:
    values = recipe_values(tmp_path)
    del values["data"]["sources"]["low_res"]["train"]
    with pytest.raises(UserError, match="gives the statistics and needs training months"):
        parse_recipe(values)
    values["data"]["statistics"] = "elsewhere.csv"
    assert parse_recipe(values).data.statistics == "elsewhere.csv"
    values["data"]["fit_on"] = "low_res"
    with pytest.raises(UserError, match="fit_on 'low_res' and statistics exclude each other"):
        parse_recipe(values)


def test_infinities_are_refused(tmp_path: Path) -> None:
    from leapray.data.fitting import Fitting

    with pytest.raises(UserError, match="weight is inf"):
        parse_recipe(two_sources(tmp_path, weight=float("inf")))
    with pytest.raises(UserError, match="clip is inf"):
        Fitting(KAGGLE, Choice(name="standard", options={"clip": float("inf")}), ())


def test_a_model_to_begin_with_may_be_named_alone(tmp_path: Path) -> None:
    recipe = parse_recipe(recipe_values(tmp_path, start="models/base"))
    assert recipe.training.start == Start(model="models/base", transform="same")
    assert parse_recipe(yaml.safe_load(recipe.to_yaml())) == recipe


def test_trained_are_the_chosen_sources_that_have_training_months_in_the_recipes_order(tmp_path: Path) -> None:
    values = two_sources(tmp_path)
    assert parse_recipe(values).trained == ["low_res", "high_res"]
    values["training"]["sources"] = ["high_res", "low_res"]
    assert parse_recipe(values).trained == ["low_res", "high_res"]
    values["training"]["sources"] = ["high_res"]
    assert parse_recipe(values).trained == ["high_res"]


def test_a_source_that_is_not_trained_on_has_no_share(tmp_path: Path) -> None:
    values = two_sources(tmp_path, weight=0.5)
    values["training"]["sources"] = ["low_res"]
    assert parse_recipe(values).shares is None
    values["training"]["sources"] = ["high_res"]
    assert parse_recipe(values).shares == {"high_res": 0.5}
    values = two_sources(tmp_path)
    values["training"] |= {"sources": ["low_res"], "pairs": True}
    with pytest.raises(UserError, match=r"training\.pairs needs two sources with training months, found low_res"):
        parse_recipe(values)


def test_what_yaml_merges_may_be_given_anew_and_a_key_twice_still_may_not(tmp_path: Path) -> None:
    text = yaml.safe_dump(recipe_values(tmp_path))
    text += "sweep:\n  directory: d\n  space: &space\n    training.epochs: {choice: [1]}\n  trials: 1\n"
    (tmp_path / "recipe.yaml").write_text(text.replace("  space: &space\n", "  space:\n    <<: {training.epochs: {choice: [2]}}\n"))
    sweep = load_recipe(str(tmp_path / "recipe.yaml")).sweep
    assert sweep is not None
    assert sweep.space["training.epochs"].choice == (1,)
    (tmp_path / "recipe.yaml").write_text(text + "  trials: 2\n")
    with pytest.raises(UserError, match="key 'trials' is given twice"):
        load_recipe(str(tmp_path / "recipe.yaml"))


def test_a_choice_by_its_name_alone_can_be_changed(tmp_path: Path) -> None:
    values = recipe_values(tmp_path)
    values["training"]["loss"], values["network"] = "mae", "mlp"
    url = write(tmp_path, values)
    loaded = load_recipe(url, ["training.loss.options.columns=all", "network.options.hidden=[8]"])
    assert loaded.training.loss == Choice(name="mae", options={"columns": "all"})
    assert loaded.network == Choice(name="mlp", options={"hidden": [8]})
    assert merged({"network": "mlp"}, {"network": {"options": {"hidden": [8]}}}) == {"network": {"name": "mlp", "options": {"hidden": [8]}}}
    assert merged({"network": "mlp"}, {"network": {"name": "linear"}}) == {"network": {"name": "linear"}}
    assert merged({"prepared": "here"}, {"prepared": {"path": "there"}}) == {"prepared": {"path": "there"}}
