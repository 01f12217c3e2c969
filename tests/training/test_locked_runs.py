"""A training, a finetuning or a sweep in a directory in which another process works is refused; one that lost its run writes no more."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from leapray import faults, storage
from leapray.data.prepare import prepare
from leapray.errors import UserError
from leapray.models.directory import load_info
from leapray.recipe import Recipe, parse_recipe
from leapray.training import checkpoint
from leapray.training.finetune import finetune
from leapray.training.sweep import sweep
from leapray.training.trainer import train
from tests.samples import recipe_values, write_flat

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def root(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data and a trained base."""
    folder = tmp_path_factory.mktemp("locked")
    write_flat(folder / "flat", stop="0001-05")
    recipe = parse_recipe(recipe_values(folder, run=str(folder / "base")))
    prepare(recipe)
    train(recipe)
    return folder


def make(root: Path, folder: Path) -> Recipe:
    values = recipe_values(root, run=str(folder / "run"), epochs=2, checkpoint_seconds=1e-9)
    values["finetune"] = {"base": str(root / "base" / "model"), "directory": str(folder / "variants"), "variants": {"same": {}}}
    values["sweep"] = {"directory": str(folder / "sweep"), "space": {"training.seed": {"grid": [1, 2]}}, "search": "grid"}
    return parse_recipe(values)


@pytest.mark.parametrize(("verb", "name"), [(train, "run"), (finetune, "variants"), (sweep, "sweep")])
def test_a_directory_in_which_another_process_works_is_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: Callable[..., Any], name: str
) -> None:
    lock = tmp_path / name / ".tmp-lock"
    lock.parent.mkdir()
    lock.write_bytes(b"first beat")
    monkeypatch.setattr(faults, "sleep", lambda seconds: lock.write_bytes(b"second beat"))
    notices: list[str] = []
    with pytest.raises(UserError, match=f"{name}: another process works in it now"):
        verb(make(root, tmp_path), notice=notices.append)
    assert len(notices) == 1
    assert [path.name for path in lock.parent.iterdir()] == [".tmp-lock"]


def test_a_training_that_lost_its_run_writes_no_more_and_can_go_on_later(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, save = make(root, tmp_path), checkpoint.save
    lock = storage.join(recipe.training.run, ".tmp-lock")

    another = json.dumps({"token": "x", "host": "there", "process": 1, "machine": "", "began": ""}).encode()
    saved: list[str] = []

    def lose(url: str, state: Mapping[Any, Any]) -> None:
        save(url, state)
        saved.append(url)
        storage.write_bytes(lock, another)

    monkeypatch.setattr(checkpoint, "save", lose)
    with pytest.raises(UserError, match="run: another process has taken it over"):
        train(recipe)
    assert checkpoint.complete(f"{recipe.training.run}/checkpoints") == saved
    assert len(saved) == 1
    assert storage.read_bytes(lock) == another
    monkeypatch.setattr(checkpoint, "save", save)
    storage.remove(lock)
    whole = make(root, tmp_path / "whole")
    assert load_info(train(recipe).model_url).weights_sha256 == load_info(train(whole).model_url).weights_sha256
    assert not storage.exists(lock)
