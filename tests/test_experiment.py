"""Experiments: how their file becomes recipes and stages, and which of these are done again."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from leapray import experiment as road
from leapray.cli import app, whole
from leapray.errors import UserError
from leapray.experiment import Stage, run_experiment
from leapray.recipe.experiment import load_experiment
from tests.samples import recipe_values

RECIPES = Path(__file__).parent.parent / "jobs" / "recipes"


def written(root: Path, **changes: Any) -> str:
    """An experiment of two recipes, the first of them finetuned."""
    base = recipe_values(root)
    base["data"]["sources"]["low_res"]["test"] = {"start": "0001-05", "stop": "0001-06"}
    base["finetune"] = {"base": "elsewhere", "directory": "elsewhere", "variants": {"continue": {"training": {"epochs": 2}}}}
    (root / "base.yaml").write_text(yaml.safe_dump(base))
    values = {
        "name": "sample",
        "directory": str(root / "all"),
        "recipes": {
            "first": {"recipe": "base.yaml"},
            "second": {"recipe": "base.yaml", "change": {"training": {"seed": 1}, "finetune": None}, "member": False},
        },
    }
    (root / "experiment.yaml").write_text(yaml.safe_dump(values | changes))
    return str(root / "experiment.yaml")


def test_recipes_are_changed_and_their_runs_lie_in_the_experiments_directory(tmp_path: Path) -> None:
    _, recipes = load_experiment(written(tmp_path, change={"training": {"epochs": 7}}), ["change.resources.workers=2"])
    first, second = recipes["first"], recipes["second"]
    assert (first.training.epochs, first.training.seed, first.resources.workers) == (7, 0, 2)
    assert (second.training.epochs, second.training.seed, second.finetune) == (7, 1, None)
    assert first.training.run == f"{tmp_path}/all/runs/first"
    assert first.finetune is not None
    assert (first.finetune.base, first.finetune.directory) == (f"{tmp_path}/all/runs/first/model", f"{tmp_path}/all/variants/first")


def test_a_recipe_is_not_taken_for_a_bad_experiment() -> None:
    with pytest.raises(UserError, match=r"demo\.yaml: is a recipe, expected an experiment of some"):
        load_experiment(str(RECIPES / "demo.yaml"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"recipes": {"base": {"recipe": "base.yaml"}}}, "the name 'base' becomes a folder"),
        ({"recipes": {"first": {"recipe": "base.yaml", "member": False}}}, "no recipe's models are members"),
        ({"ensemble": {"months_of": "third"}}, r"ensemble\.months_of names 'third', expected one of first, second"),
        (
            {"recipes": {"first": {"recipe": "base.yaml", "change": {"training": {"epoch": 3}}}}},
            r"recipes\.first: unknown key 'training\.epoch'",
        ),
        ({"submision": {}}, "submision.*submission"),
        ({"change": {"training": {"run": "mine"}}}, r"change\.training\.run is not a recipe's to give"),
        ({"change": {"training": 5}}, r"change\.training is 5: expected a mapping of keys"),
        (
            {"recipes": {"first": {"recipe": "base.yaml", "change": {"training": ["run"]}}}},
            r"change\.training is \['run'\]: expected",
        ),
    ],
)
def test_a_wrong_experiment_is_refused_in_a_sentence(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_experiment(written(tmp_path, **changes))


@pytest.mark.parametrize("name", ["fifth_place", "demo_experiment"])
def test_the_shipped_experiments_load(name: str) -> None:
    experiment, recipes = load_experiment(str(RECIPES / f"{name}.yaml"))
    assert len({recipe.training.run for recipe in recipes.values()}) == len(experiment.recipes)
    for recipe in recipes.values():
        # recipes that share a place share what lies there
        assert len({other.data.model_dump_json() for other in recipes.values() if other.data.prepared == recipe.data.prepared}) == 1


def test_two_recipes_do_not_prepare_other_data_in_one_place(tmp_path: Path) -> None:
    changed = {"first": {"recipe": "base.yaml"}, "second": {"recipe": "base.yaml", "change": {"data": {"seed": 7}}}}
    with pytest.raises(UserError, match=r"recipes\.first and recipes\.second prepare other data in one place"):
        load_experiment(written(tmp_path, recipes=changed))


def stages(path: str) -> list[Stage]:
    return list(road._Road(*load_experiment(path), lambda _: None).stages())


def test_the_stages_stand_in_the_order_in_which_they_need_each_other(tmp_path: Path) -> None:
    asked = {"submission": {"input": "in", "sample_submission": "sample.csv"}, "export": {"offline": {}}}
    assert [stage.name for stage in stages(written(tmp_path, **asked))] == [
        "prepare first",
        "train first",
        "finetune first",
        "train second",
        "baselines",
        "ensemble",
        "submit",
        "evaluate low_res",
        "export offline",
    ]
    assert [stage.name for stage in stages(written(tmp_path, baselines=False))][-2:] == ["ensemble", "evaluate low_res"]


def test_a_stage_stands_after_those_whose_output_it_takes(tmp_path: Path) -> None:
    found = stages(written(tmp_path, submission={"input": "in", "sample_submission": "sample.csv"}, export={"offline": {}}))
    names = [stage.name for stage in found]
    for index, stage in enumerate(found):
        assert set(stage.after) <= set(names[:index])
    trained = {"train first", "finetune first", "train second", "baselines"}
    assert {stage.name: set(stage.after) for stage in found} == {
        "prepare first": set(),
        "train first": {"prepare first"},
        "finetune first": {"prepare first", "train first"},
        "train second": {"prepare first"},
        "baselines": {"prepare first"},
        "ensemble": trained,
        "submit": {"ensemble"},
        "evaluate low_res": {*trained, "ensemble"},
        "export offline": {"ensemble"},
    }


def test_a_change_of_a_recipe_changes_the_stages_that_it_is_a_setting_of(tmp_path: Path) -> None:
    before = {stage.name: stage.key({}) for stage in stages(written(tmp_path))}
    after = {stage.name: stage.key({}) for stage in stages(written(tmp_path, change={"training": {"epochs": 9}}))}
    # what comes of them is done again because they are
    assert {name for name in before if before[name] != after[name]} == {"train first", "finetune first", "train second"}


class Counted:
    """Stages that write a file and count how often they did."""

    def __init__(self, root: Path, fails: str = "") -> None:
        self.root, self.fails, self.ran = root, fails, []

    def stages(self) -> list[Stage]:
        after = {"one": [], "two": ["one"], "three": ["one"]}
        return [Stage(name, str(self.root / name), {}, lambda name=name: self.do(name), before) for name, before in after.items()]

    def do(self, name: str) -> str:
        if name == self.fails:
            raise UserError(f"{name} cannot be done")
        (self.root / name).write_text("done")
        self.ran.append(name)
        return f"{name} done"


@pytest.mark.ray
def test_finished_stages_are_kept_and_a_failure_leaves_those_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    loaded = load_experiment(written(tmp_path))
    counted = Counted(tmp_path, fails="three")
    monkeypatch.setattr(road, "_Road", lambda *_: counted)
    with pytest.raises(UserError, match="three cannot be done"):
        run_experiment(*loaded)
    counted.fails = ""
    done = run_experiment(*loaded)
    assert (done.kept, done.ran) == (["one", "two"], ["three"])
    assert counted.ran == ["one", "two", "three"]
    (tmp_path / "two").unlink()
    assert run_experiment(*loaded).ran == ["two"]
    (tmp_path / "one").unlink()
    assert run_experiment(*loaded).ran == ["one", "two", "three"]
    assert run_experiment(*loaded, only="two").kept == ["two"]
    with pytest.raises(UserError, match="'four' is not of this experiment, expected one of one, two, three"):
        run_experiment(*loaded, only="four")
    assert {path.stem for path in (tmp_path / "all" / "stages").iterdir()} == {"one", "two", "three"}


@pytest.mark.ray
def test_what_a_stage_made_of_other_settings_or_inputs_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    loaded = load_experiment(written(tmp_path))
    made, read = tmp_path / "made", tmp_path / "read.csv"
    found: list[bool] = []

    def do() -> str:
        found.append(made.exists())
        made.mkdir(exist_ok=True)
        (tmp_path / "output").write_text("done")
        return "done"

    def road_of(setting: int) -> None:
        stage = Stage("one", str(tmp_path / "output"), {"setting": setting}, do, reads=[str(read)], makes=[str(made)])
        monkeypatch.setattr(road, "_Road", lambda *_: type("Road", (), {"stages": lambda self: [stage]})())

    for setting, content in ((1, "a"), (1, "a"), (2, "a"), (2, "b")):
        read.write_text(content)
        road_of(setting)
        run_experiment(*loaded)
    assert found == [False, False, False]
    (tmp_path / "output").unlink()
    run_experiment(*loaded)
    assert found[-1], "what was made of the same settings is gone on with"


@pytest.mark.ray
def test_what_was_trained_is_not_touched_when_its_settings_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    loaded, output = load_experiment(written(tmp_path)), tmp_path / "model.json"

    def refuse() -> str:
        raise UserError("holds a run of another recipe")

    def road_of(setting: int, run: Callable[[], str]) -> None:
        stage = Stage("train one", str(output), {"setting": setting}, run)
        monkeypatch.setattr(road, "_Road", lambda *_: type("Road", (), {"stages": lambda self: [stage]})())

    road_of(1, lambda: str(output.write_text("trained")))
    run_experiment(*loaded)
    road_of(2, refuse)
    with pytest.raises(UserError, match="another recipe"):
        run_experiment(*loaded)
    assert output.exists()
    road_of(1, refuse)
    assert run_experiment(*loaded).kept == ["train one"]


def test_each_stage_can_be_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path)
    names = [stage.name for stage in stages(file)]
    asked: list[list[str]] = []

    def process(command: list[str], check: bool) -> subprocess.CompletedProcess[bytes]:
        asked.append(command[2:])
        return subprocess.CompletedProcess(command, 2 if "train second" in command else 0)

    monkeypatch.setattr(whole.subprocess, "run", process)
    ran = CliRunner().invoke(app, ["run", file, "--apart", "--set", "change.training.epochs=3"])
    assert ran.exit_code == 2
    expected = names[: names.index("train second") + 1]
    assert asked == [["run", file, "--stage", name, "--set", "change.training.epochs=3"] for name in expected]
