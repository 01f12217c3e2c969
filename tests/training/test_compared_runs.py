"""Runs put side by side: tiny trainings of one prepared data set."""

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from leapray.cli import app
from leapray.console import digits
from leapray.data.prepare import prepare
from leapray.errors import UserError
from leapray.evaluation.intervals import difference
from leapray.models.directory import load_model
from leapray.recipe import parse_recipe
from leapray.training.compare import Compared, compare
from leapray.training.scoring import score_network
from leapray.training.trainer import train
from tests.columns import GROUPS, group_mask
from tests.samples import recipe_values, write_flat

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def root(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("compare")
    # three days of each month
    write_flat(root / "flat", stop="0001-06", stride=36)
    for name, changes in {"a": {}, "b": {"seed": 1, "optimizer": {"name": "adamw", "options": {"lr": 1e-2}}}}.items():
        values = recipe_values(root, run=str(root / name), batch_size=16, **changes)
        values["data"]["sources"]["low_res"]["test"] = {"start": "0001-05", "stop": "0001-06"}
        recipe = parse_recipe(values)
        prepare(recipe)
        train(recipe)
    return root


@pytest.fixture(scope="module")
def compared(root: Path) -> Compared:
    return compare([str(root / "a"), str(root / "b" / "model")])


def test_only_what_the_recipes_differ_in_is_told(compared: Compared) -> None:
    assert compared.differing == {"training.optimizer.options.lr": [1e-3, 1e-2], "training.seed": [0, 1]}


def test_both_are_scored_on_the_same_test_months(root: Path, compared: Compared) -> None:
    prepared = prepare(compared.sides[0].recipe)
    moments = [
        score_network(load_model(str(root / name / "model")).emulator.network, prepared, "test", torch.device("cpu")) for name in "ab"
    ]
    first, second = compared.sides
    for side, expected in zip(compared.sides, moments, strict=True):
        assert side.test is not None
        assert side.interval is not None
        np.testing.assert_allclose(side.test.r2, expected.score().r2, rtol=0, atol=1e-12)
        for group in GROUPS:
            assert side.groups[group] == pytest.approx(side.test.skill_by_column[group_mask(group)].mean(), abs=1e-12)
    assert (first.name, second.name) == ("a", "b")
    assert first.difference is None
    assert second.difference == difference(*moments)
    parameters = load_model(str(root / "a" / "model")).emulator.network.parameters()
    assert first.parameters == sum(tensor.numel() for tensor in parameters)


def test_runs_whose_data_is_gone_are_compared_by_their_validations(root: Path, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).symlink_to(root / name)
    (root / "prepared").rename(root / "elsewhere")
    try:
        compared = compare([str(tmp_path / "a"), str(tmp_path / "b")])
    finally:
        (root / "elsewhere").rename(root / "prepared")
    for side in compared.sides:
        assert side.test is None
        assert side.cause.startswith("not tested: ")
        sizes = {group: int(group_mask(group).sum()) for group in GROUPS}
        mean = sum(side.groups[group] * size for group, size in sizes.items()) / sum(sizes.values())
        assert mean == pytest.approx(side.validation["skill"], abs=1e-9)


def test_what_is_no_run_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a finished run nor a model directory"):
        compare([str(root / "a"), str(tmp_path)])
    with pytest.raises(UserError, match="two runs or more, each once"):
        compare([str(root / "a"), str(root / "a")])


def test_the_verb_prints_both_tables_and_writes_the_figures(root: Path, tmp_path: Path, compared: Compared) -> None:
    file = tmp_path / "figures.json"
    ran = CliRunner().invoke(app, ["compare", str(root / "a"), str(root / "b"), "--json", str(file)])
    assert ran.exit_code == 0, ran.output
    assert "where the recipes differ" in ran.output
    assert "training.seed" in ran.output
    second = compared.sides[1]
    assert second.test is not None
    assert second.difference is not None
    assert digits(second.test.skill) in ran.output
    assert digits(second.difference.value, "+") in ran.output
    assert '"differing"' in file.read_text()
