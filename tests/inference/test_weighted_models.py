"""Which models an ``ensemble.json`` predicts with, and what the verb refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from leapray import storage
from leapray.cli import app
from leapray.climsim.schema import KAGGLE
from leapray.data.fitting import Fitting
from leapray.data.moments import Moments
from leapray.errors import UserError
from leapray.inference.ensemble.members import candidates
from leapray.inference.weights import Identity, Member, Weights, identity, weighted_models
from leapray.models.directory import save_model
from leapray.models.registry import build_network
from leapray.recipe import Choice, Ensemble
from tests.columns import CHANNELS, TARGETS
from tests.samples import random_rows

WEIGHTS = {"a": 0.75, "unused": 0.0, "c": 0.25}


def save(url: Path, seed: int, rows: int = 50) -> Identity:
    """A model with the weights of a seed, scaled as these rows are, and by what it is known."""
    torch.manual_seed(seed)
    network = Choice(name="mlp", options={"hidden": [4]})
    transform = Fitting(KAGGLE, Choice(name="standard"), ()).fit(Moments.of(random_rows(rows)), {})
    save_model(str(url), build_network(network.name, network.options, CHANNELS).state_dict(), network, transform)
    return identity(str(url))


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """An ensemble of three models beside it, of which one does not count."""
    members = [
        Member(name=name, model=f"{name}/model", **save(tmp_path / name / "model", seed)._asdict(), weights={"all": weight})
        for seed, (name, weight) in enumerate(WEIGHTS.items())
    ]
    groups = {"all": tuple(variable.name for variable in TARGETS.variables)}
    path = tmp_path / "ensemble.json"
    storage.write_json(str(path), Weights(method="solved", groups=groups, members=tuple(members)).model_dump(mode="json"))
    return path


def test_without_models_those_of_the_list_that_count_are_taken(listed: Path) -> None:
    models, weights, names = weighted_models(str(listed))
    assert names == ["a", "c"]
    assert models == [str(listed.parent / name / "model") for name in names]
    np.testing.assert_array_equal(weights.weights, np.repeat([[0.75], [0.25]], TARGETS.width, axis=1))


def test_given_models_are_known_by_their_weights_in_any_order(listed: Path, tmp_path: Path) -> None:
    (tmp_path / "c").rename(tmp_path / "moved")
    models = [str(tmp_path / "moved" / "model"), str(tmp_path / "a" / "model")]
    found, weights, names = weighted_models(str(listed), models)
    assert (found, names) == (models, ["moved", "a"])
    np.testing.assert_array_equal(weights.weights[:, 0], [0.25, 0.75])
    assert (weights.constant == 0).all()


def test_columns_that_fall_back_have_the_training_mean_and_no_weights(listed: Path) -> None:
    values = storage.read_json(str(listed)) | {"fallback": {"ptend_t_3": 1e-5}}
    storage.write_json(str(listed), values)
    _, combination, _ = weighted_models(str(listed))
    place = TARGETS.columns.index("ptend_t_3")
    assert (combination.weights[:, place] == 0).all()
    assert np.flatnonzero(combination.constant).tolist() == [place]
    assert combination.constant[place] == 1e-5
    assert (combination.weights.sum(axis=0) == (np.arange(TARGETS.width) != place)).all()
    storage.write_json(str(listed), values | {"fallback": {"ptend_t_60": 1e-5}})
    with pytest.raises(UserError, match="ptend_t_60"):
        weighted_models(str(listed))


@pytest.mark.parametrize("change", [{"seed": 99}, {"seed": 0, "rows": 60}])
def test_a_model_whose_weights_or_transform_have_changed_is_refused(listed: Path, tmp_path: Path, change: dict[str, int]) -> None:
    save(tmp_path / "a" / "model", **change)
    with pytest.raises(UserError, match=r"a/model: its weights or transform are not those of member a of .*ensemble\.json"):
        weighted_models(str(listed))
    with pytest.raises(UserError, match="is no member of the ensemble"):
        weighted_models(str(listed), [str(tmp_path / name / "model") for name in ("a", "c")])


def test_a_list_that_tells_no_transforms_knows_models_by_their_weights(listed: Path) -> None:
    values = storage.read_json(str(listed))
    for member in values["members"]:
        del member["transform_digest"]
    storage.write_json(str(listed), values)
    assert weighted_models(str(listed))[2] == ["a", "c"]


def test_models_are_found_from_within_the_folder_of_the_list(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(listed.parent)
    assert weighted_models("ensemble.json")[0] == weighted_models(str(listed))[0]


def test_models_of_equal_weights_and_other_transforms_are_two_members(tmp_path: Path) -> None:
    notes: list[str] = []
    for name, rows in (("one", 50), ("same", 50), ("other", 60)):
        save(tmp_path / name, 0, rows)
    section = Ensemble(directory="d", members=tuple(str(tmp_path / name) for name in ("one", "same", "other")))
    found = candidates(section, notes.append)
    assert [member.name for member in found] == ["one", "other"]
    assert len(notes) == 1


def test_a_member_of_which_only_predictions_are_known_is_refused(listed: Path) -> None:
    values = storage.read_json(str(listed))
    values["members"][0]["model"] = None
    storage.write_json(str(listed), values)
    with pytest.raises(UserError, match="member a has no model to predict with"):
        weighted_models(str(listed))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["in", "out"], "at least 3 paths, and got 2"),
        (["out", "--weights", "no.json"], "at least 2 paths, and got 1"),
        (["in", "out", "--weights", "no.json"], "no.json"),
        (["model", "in", "out", "--gpu-share", "1"], "--gpu-share 1 is of GPUs, expected --gpu beside it"),
        (["model", "in", "out", "--stride", "3", "--phase", "3"], "expected a stride of at least 1 and a phase from 0 to stride - 1"),
    ],
)
def test_the_verb_refuses_by_name(tmp_path: Path, arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["predict", *[str(tmp_path / part) if "." in part else part for part in arguments]])
    assert isinstance(result.exception, UserError)
    assert words in str(result.exception)


def test_a_file_that_is_no_list_of_weights_is_refused(tmp_path: Path) -> None:
    storage.write_json(str(tmp_path / "model.json"), {"network": {}})
    with pytest.raises(UserError, match=r"model\.json"):
        weighted_models(str(tmp_path / "model.json"))
