"""Recipes of many trainings: variants of a base model, averages of them, and trials of a sweep."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from leapray.errors import UserError
from leapray.recipe import Choice, Dimension, Recipe, Start, load_recipe, parse_recipe
from leapray.recipe.load import merged
from tests.samples import recipe_values


def values(tmp_path: Path, variants: dict[str, Any] | None = None, space: dict[str, Any] | None = None, **training: Any) -> dict[str, Any]:
    """Plain values of a recipe with variants, with a sweep of two trials, or with both."""
    content = recipe_values(tmp_path, **training)
    if variants is not None:
        content["finetune"] = {"base": "models/base", "directory": "variants", "variants": variants}
    if space is not None:
        content["sweep"] = {"directory": "swept", "space": space, "trials": 2}
    return content


def refused(content: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        parse_recipe(content, "recipe.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def variant(tmp_path: Path, changes: dict[str, Any], **training: Any) -> Recipe:
    return parse_recipe(values(tmp_path, {"x": changes}, **training)).variant("x")


def test_a_variant_is_a_plain_recipe_that_begins_with_the_base_in_a_run_of_its_own(tmp_path: Path) -> None:
    recipe = parse_recipe(values(tmp_path, {"x": {}}, {"training.epochs": {"choice": [1]}}))
    ours = recipe.variant("x")
    assert (ours.finetune, ours.sweep, ours.name) == (None, None, "sample: x")
    assert ours.training.start == Start(model="models/base", transform="same")
    assert ours.training.run == "variants/x"
    changed = {"run": recipe.training.run, "start": None}
    assert ours.training.model_copy(update=changed) == recipe.training
    assert (ours.data, ours.network, ours.resources) == (recipe.data, recipe.network, recipe.resources)


def test_a_variant_asks_for_another_scaling_where_the_finetuning_does(tmp_path: Path) -> None:
    content = values(tmp_path, {"x": {}})
    content["finetune"]["transform"] = "any"
    assert parse_recipe(content).variant("x").training.start == Start(model="models/base", transform="any")


def test_a_variant_changes_only_what_it_names(tmp_path: Path) -> None:
    optimizer = {"name": "adamw", "options": {"lr": 0.001, "weight_decay": 0.1}}
    changes = {"training": {"epochs": 7, "optimizer": {"options": {"lr": 0.0002}}}, "data": {"sources": {"low_res": {"weight": 2}}}}
    ours = variant(tmp_path, changes, optimizer=optimizer, seed=3)
    assert (ours.training.epochs, ours.training.seed) == (7, 3)
    assert ours.training.optimizer == Choice(name="adamw", options={"lr": 0.0002, "weight_decay": 0.1})
    assert ours.data.sources["low_res"].weight == 2
    assert str(ours.data.sources["low_res"].train) == "0001-02 up to 0001-04"


@pytest.mark.parametrize("cosine", ["cosine", {"name": "cosine"}, {"name": "cosine", "options": {"warmup": 1}}])
def test_a_choice_of_another_name_takes_no_options_over(tmp_path: Path, cosine: Any) -> None:
    schedule = {"name": "multistep", "options": {"milestones": [1]}}
    ours = variant(tmp_path, {"training": {"schedule": cosine}}, schedule=schedule)
    assert ours.training.schedule == Choice.model_validate(cosine)
    again = variant(tmp_path, {"training": {"schedule": {"name": "multistep", "options": {"gamma": 0.5}}}}, schedule=schedule)
    assert again.training.schedule.options == {"milestones": [1], "gamma": 0.5}


def test_null_takes_away(tmp_path: Path) -> None:
    ours = variant(tmp_path, {"training": {"ema": None, "swa": {"start": 2}, "epochs": 3}}, ema={"decay": 0.9})
    assert ours.training.ema is None
    assert ours.training.swa is not None
    assert ours.training.swa.start == 2


def test_variants_keep_what_averages_of_them_need(tmp_path: Path) -> None:
    variants = {
        "x": {"training": {"keep_best": 4}},
        "y": {},
        "three": {"average": {"of": ["x", "y"], "members": 3}},
        "two": {"average": {"of": "y", "members": 2, "greedy": True}},
        "last": {"average": {"of": "x", "take": "last"}},
    }
    recipe = parse_recipe(values(tmp_path, variants))
    assert recipe.finetune is not None
    assert recipe.finetune.trained == ["x", "y"]
    kept = {name: (training.keep_best, training.keep_last) for name in "xy" for training in [recipe.variant(name).training]}
    assert kept == {"x": (4, 5), "y": (3, 0)}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"training": {"epoch": 3}}, "finetune.variants.x: unknown key 'training.epoch'; did you mean 'epochs'?"),
        ({"training": {"name": "x"}}, "finetune.variants.x: unknown key 'training.name'"),
        ({"training": {"epochs": 0}}, "finetune.variants.x: training.epochs is 0: input should be greater than 0"),
        ({"training": {"keep_best": None}}, "finetune.variants.x: training.keep_best is None: input should be a valid integer"),
        ({"training": {"keep_last": "all"}}, "finetune.variants.x: training.keep_last is 'all': input should be a valid integer"),
        ({"training": {"swa": {"start": 9}}}, "finetune.variants.x: training: swa.start 9 comes after the last of 1 epochs"),
        ({"training": {"sources": ["aqua"]}}, "finetune.variants.x: training.sources names 'aqua'"),
        ({"training": {"batch_size": 9}}, "finetune.variants.x: training.batch_size 9 must be a multiple of training.lanes 8"),
        ({"data": {"sources": {"low_res": None}}}, "finetune.variants.x: data.sources.low_res is None: expected a mapping of keys"),
        ({"data": {"sources": {"low_res": {"kind": "x"}}}}, "finetune.variants.x: data.sources.low_res: kind 'x' is not one of"),
        ({"training": {"run": "elsewhere"}}, "finetune.variants.x: training.run is not a variant's to give"),
        ({"training": {"start": "other"}}, "finetune.variants.x: training.start is not a variant's to give"),
        ({"network": {"name": "linear"}}, "unknown key 'finetune.variants.x.network'; known keys are average, data, training"),
        ({"average": {"of": "x"}}, "variants.x.average.of names 'x', expected variants that are trained: none is"),
        ({"average": {"of": []}}, "finetune.variants.x.average.of is []"),
        ({"average": {"of": "y"}, "training": {"epochs": 2}}, "finetune.variants.x: an average is not trained"),
        (None, "finetune.variants.x is None: expected a mapping of keys"),
    ],
)
def test_a_variant_that_makes_a_bad_recipe_is_refused_by_name(tmp_path: Path, changes: Any, sentence: str) -> None:
    assert refused(values(tmp_path, {"x": changes})).startswith("recipe.yaml: ")
    assert sentence in refused(values(tmp_path, {"x": changes}))


@pytest.mark.parametrize("name", ["base", "..", "a/b", "", ".hidden"])
def test_the_name_of_a_variant_is_one_of_a_folder_and_not_that_of_the_base(tmp_path: Path, name: str) -> None:
    assert f"the name {name!r} becomes a folder" in refused(values(tmp_path, {name: {}}))


def test_an_average_is_of_variants_that_are_trained(tmp_path: Path) -> None:
    variants = {"x": {}, "y": {"average": {"of": "x"}}, "z": {"average": {"of": ["x", "y"]}}}
    assert "variants.z.average.of names 'y', expected variants that are trained: x" in refused(values(tmp_path, variants))


def test_an_override_reaches_into_a_variant_and_into_a_space(tmp_path: Path) -> None:
    content = values(tmp_path, {"x": {}, "y": {"training": {"seed": 5}}}, {"training.epochs": {"choice": [1]}})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    overrides = [
        "finetune.variants.x.training.epochs=2",
        "finetune.variants.y.training.epochs=3",
        "finetune.concurrent=1",
        "sweep.trials=9",
    ]
    recipe = load_recipe(str(tmp_path / "recipe.yaml"), overrides)
    assert [recipe.variant(name).training.epochs for name in "xy"] == [2, 3]
    assert recipe.variant("y").training.seed == 5
    assert recipe.finetune is not None
    assert recipe.finetune.concurrent == 1
    assert recipe.sweep is not None
    assert recipe.sweep.trials == 9
    with pytest.raises(UserError, match=r"finetune\.variants\.x: training\.epochs is 0"):
        load_recipe(str(tmp_path / "recipe.yaml"), ["finetune.variants.x.training.epochs=0"])


SPACE = {
    "training.optimizer.options.lr": {"loguniform": [1e-5, 1e-2]},
    "training.clip_norm": {"uniform": [0.5, 2]},
    "training.epochs": {"integer": [1, 3]},
    "network": {"choice": ["linear", {"name": "mlp", "options": {"hidden": [8, 8]}}]},
    "training.ema": {"grid": [None, {"decay": 0.9}]},
}


def test_a_recipe_with_variants_and_a_sweep_survives_its_own_yaml(tmp_path: Path) -> None:
    variants = {"x": {"training": {"ema": None, "loss": {"name": "mse"}}}, "y": {"average": {"of": "x", "greedy": True}}}
    recipe = parse_recipe(values(tmp_path, variants, SPACE))
    assert parse_recipe(yaml.safe_load(recipe.to_yaml())) == recipe
    assert parse_recipe(recipe.to_dict()) == recipe
    assert parse_recipe(recipe.variant("x").to_dict()) == recipe.variant("x")


def test_a_recipe_without_variants_and_sweep_does_not_speak_of_them(tmp_path: Path) -> None:
    assert not {"finetune", "sweep"} & parse_recipe(values(tmp_path)).to_dict().keys()


def test_a_trial_is_a_plain_recipe_with_its_values_in_a_run_of_its_own(tmp_path: Path) -> None:
    recipe = parse_recipe(values(tmp_path, {"x": {}}, SPACE))
    drawn = {"training.optimizer.options.lr": 0.003, "network": {"name": "mlp", "options": {"hidden": [8, 8]}}, "training.ema": None}
    trial = recipe.trial(12, drawn)
    assert (trial.finetune, trial.sweep, trial.name, trial.training.run) == (None, None, "sample: trial 12", "swept/trials/0012")
    assert trial.training.optimizer == Choice(name="adamw", options={"lr": 0.003})
    assert trial.network.options == {"hidden": [8, 8]}
    assert trial.data == recipe.data


def test_a_key_of_a_section_that_the_recipe_does_without_can_be_searched(tmp_path: Path) -> None:
    recipe = parse_recipe(values(tmp_path, space={"training.ema.decay": {"uniform": [0.5, 0.9]}}))
    assert recipe.training.ema is None
    ema = recipe.trial(0, {"training.ema.decay": 0.75}).training.ema
    assert ema is not None
    assert ema.decay == 0.75


def test_a_trial_leaves_the_values_that_it_is_given_and_the_space_as_they_were(tmp_path: Path) -> None:
    recipe = parse_recipe(values(tmp_path, space={**SPACE, "network.options.hidden": {"choice": [[4]]}}))
    assert recipe.sweep is not None
    chosen = {"name": "mlp", "options": {"hidden": [8, 8]}}
    before = copy.deepcopy(recipe)
    drawn = {"network": chosen, "network.options.hidden": [4]}
    assert recipe.trial(0, drawn).network.options == {"hidden": [4]}
    assert chosen == {"name": "mlp", "options": {"hidden": [8, 8]}}
    assert recipe == before


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({"training.epoch": {"choice": [1]}}, "sweep.space with training.epoch=1: unknown key 'training.epoch'; did you mean 'epochs'?"),
        ({"learning_rate": {"choice": [1]}}, "unknown key 'learning_rate'"),
        ({"training.epochs": {"choice": [1, 0]}}, "sweep.space with training.epochs=0: training.epochs is 0"),
        ({"training.epochs": {"grid": [1, "two"]}}, "training.epochs is 'two': input should be a valid integer"),
        ({"training.epochs": {"integer": [0, 4]}}, "sweep.space with training.epochs=0: training.epochs is 0"),
        ({"training.ema.decay": {"uniform": [0.5, 1.5]}}, "training.ema.decay is 1.5: input should be less than 1"),
        (
            {"training.batch_size": {"choice": [8, 12]}},
            "sweep.space with training.batch_size=12: training.batch_size 12 must be a multiple",
        ),
        ({"training": {"choice": [3]}}, "sweep.space: 'training' is not a section"),
        ({"name.first": {"choice": ["a"]}}, "sweep.space: 'name' is not a section"),
        ({"training.run": {"choice": ["a"]}}, "space.training.run cannot be searched"),
        ({"name": {"choice": ["a"]}}, "space.name cannot be searched"),
        ({"training.epochs": {"choice": []}}, "sweep.space.training.epochs.choice is []"),
        ({"training.epochs": {}}, "expected one of choice, grid, uniform, loguniform, integer, got none"),
        ({"training.epochs": {"choice": [1], "grid": [1]}}, "integer, got choice and grid"),
        ({"training.clip_norm": {"uniform": [2, 1]}}, "uniform [2, 1] is not a range, expected the lower end first"),
        ({"training.clip_norm": {"uniform": [1, 1]}}, "uniform [1, 1] is not a range"),
        ({"training.clip_norm": {"loguniform": [0, 1]}}, "loguniform [0, 1] is not a range, expected the lower end first, both positive"),
        ({"training.clip_norm": {"uniform": [1, float("inf")]}}, "is inf: input should be a finite number"),
        ({"training.clip_norm": {"normal": [0, 1]}}, "unknown key 'sweep.space.training.clip_norm.normal'"),
        ({}, "sweep.space is {}"),
    ],
)
def test_a_space_that_makes_a_bad_recipe_is_refused_with_the_key_and_the_value(
    tmp_path: Path, space: dict[str, Any], sentence: str
) -> None:
    assert sentence in refused(values(tmp_path, space=space))


def test_a_sweep_says_how_many_trials_it_has_unless_its_grid_does(tmp_path: Path) -> None:
    content = values(tmp_path, space={"training.epochs": {"grid": [1, 2]}, "training.clip_norm": {"uniform": [1, 2]}})
    content["sweep"]["trials"] = None
    assert "trials is missing, and training.clip_norm can be drawn for ever" in refused(content)
    content["sweep"] |= {"trials": 4, "search": "grid"}
    assert "search grid wants every key as a grid, but training.clip_norm is drawn" in refused(content)
    content["sweep"]["trials"] = None
    del content["sweep"]["space"]["training.clip_norm"]
    assert parse_recipe(content).sweep is not None


PLAIN = st.recursive(
    st.none() | st.integers() | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
)
SECTIONS = st.dictionaries(st.sampled_from("abc"), PLAIN, max_size=3)


@given(SECTIONS, SECTIONS)
def test_changes_laid_over_values_have_the_last_word_and_leave_both_as_they_were(content: dict[str, Any], changes: dict[str, Any]) -> None:
    def leaves(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
        """Values of a tree that are no sections, by path; an empty section is one too, for nothing would be left of it."""
        if not isinstance(tree, dict) or not tree:
            return {path: tree}
        return {place: leaf for key, inner in tree.items() for place, leaf in leaves(inner, (*path, key)).items()}

    before = copy.deepcopy((content, changes))
    result = merged(content, changes)
    found, wanted = leaves(result), {path: leaf for path, leaf in leaves(changes).items() if leaf != {}}
    assert {path: found.get(path, "lost") for path in wanted} == wanted
    assert all(path in wanted or path in leaves(content) or leaf == {} for path, leaf in found.items())
    assert merged(result, changes) == result
    assert (content, changes) == before


def test_numbers_that_yaml_takes_for_text_are_numbers() -> None:
    dimension = Dimension.model_validate({"choice": ["1e-4", "2.5E+3", "mae", "1e", 3, True]})
    assert dimension.choice == (1e-4, 2500.0, "mae", "1e", 3, True)
