from pathlib import Path
from typing import Any

import pytest

from leapray.errors import UserError
from leapray.recipe import Ensemble, Predictions, parse_recipe
from tests.samples import recipe_values


def section(tmp_path: Path, **changes: Any) -> Ensemble:
    values = {"directory": "runs/ensemble", "members": ["runs/variants/variants.json"], **changes}
    recipe = parse_recipe(recipe_values(tmp_path) | {"ensemble": values})
    assert parse_recipe(recipe.to_dict()) == recipe
    assert recipe.ensemble is not None
    return recipe.ensemble


def test_weights_are_solved_for_unless_told_otherwise(tmp_path: Path) -> None:
    assert (section(tmp_path).weights.method, section(tmp_path).groups) == ("solved", "auto")
    assert section(tmp_path, weights="mean").weights.method == "mean"
    fixed = section(tmp_path, weights={"fixed": {"a": 0.1, "b": 0.2, "c": 0.7}}).weights
    assert (fixed.method, fixed.fixed) == ("fixed", {"a": 0.1, "b": 0.2, "c": 0.7})


def test_members_are_paths_or_predictions_of_older_runs(tmp_path: Path) -> None:
    older = {"name": "older", "validation": "old/blend"}
    assert section(tmp_path, members=["runs/a/model", older]).members == ("runs/a/model", Predictions(name="older", validation="old/blend"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"members": []}, "ensemble.members is .*expected at least one of them"),
        ({"members": [3]}, "ensemble.members.0 is 3: expected a path, or a mapping of name, validation and test"),
        ({"members": [{"name": "a"}]}, "'ensemble.members.0.predictions.validation' is missing"),
        ({"members": [{"name": "a b", "validation": "x"}]}, "the name 'a b' becomes a folder"),
        ({"members": [{"name": "a", "validation": "x"}] * 2}, "the name 'a' becomes a folder, .* and each name once"),
        ({"weights": "best"}, "ensemble.weights.method is 'best': input should be 'solved', 'mean' or 'fixed'"),
        ({"weights": "fixed"}, "method fixed wants the key fixed"),
        ({"weights": {"method": "mean", "fixed": {"a": 1}}}, "method mean excludes the key fixed"),
        ({"weights": {"fixed": {"a": 0.5, "b": 0.4}}}, "fixed weights sum to 0.9, expected 1"),
        ({"weights": {"fixed": {"a": 1.5, "b": -0.5}}}, "ensemble.weights.fixed.b is -0.5: input should be greater than or equal to 0"),
        ({"groups": "two"}, "ensemble.groups is 'two'"),
        ({"member": 1}, "unknown key 'ensemble.member'; did you mean 'members'"),
    ],
)
def test_what_is_no_ensemble_is_refused_in_one_sentence(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        section(tmp_path, **changes)
