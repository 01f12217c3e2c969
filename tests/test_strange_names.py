"""Every verb works in a folder whose name has a space, signs of URLs and patterns, and letters beyond ASCII, on disk and in a bucket."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from leapray import storage
from leapray.cli import app
from leapray.evaluation.tables import read_ids
from tests.columns import TARGETS
from tests.samples import recipe_values
from tests.target_tables import write_targets

STRANGE = "mein ordner #1 100% ä [x] {y} %20 &=+,;"
MONTHS = ("0001-02", "0001-03", "0001-04", "0001-05", "0001-06")
ROWS = 2 * 6


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{request.getfixturevalue('bucket')}/{STRANGE}" if request.param == "s3" else str(tmp_path / STRANGE)


def told(*arguments: object) -> str:
    """What a verb that ends well says."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (arguments, result.output, result.exception)
    return result.output


def write_recipe(folder: Path, root: str) -> Path:
    """A recipe of all sections whose places lie below a root."""
    values: dict[str, Any] = json.loads(json.dumps(recipe_values(Path("/ROOT"))).replace("/ROOT", root))
    values["name"] = STRANGE
    values["data"]["sources"]["low_res"] |= {
        "blend": {"start": MONTHS[3], "stop": MONTHS[4]},
        "test": {"start": MONTHS[4], "stop": "0001-07"},
    }
    values["ensemble"] = {"directory": f"{root}/ensemble", "members": [f"{root}/run/model"], "weights": "mean"}
    path = folder / STRANGE / "rezept ä.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return path


def ids(url: str) -> list[str]:
    return read_ids(url).to_pylist()


@pytest.mark.ray
def test_the_road_ends_well_and_loses_no_row(ray_cluster: None, tmp_path: Path, root: str) -> None:
    recipe = write_recipe(tmp_path, root)
    for month in MONTHS:
        told("synthesize", f"{root}/raw", "--kind", "low-res", "--steps", 2, "--columns", 6, "--start", month)
    assert "copied 20 files" in told("fetch", f"{root}/raw", f"{root}/copy")
    assert "10 steps have both files; 5 months" in told("check", f"{root}/copy")
    assert f"wrote {5 * ROWS} rows" in told("convert", f"{root}/copy", f"{root}/flat")
    told("check", f"{root}/flat")
    told("recipe", "check", recipe)
    assert yaml.safe_load(told("recipe", "show", recipe))["data"]["sources"]["low_res"]["path"] == f"{root}/flat"
    assert "nothing is wrong" in told("doctor", recipe)
    assert f"train      low_res      {2 * ROWS} rows" in told("prepare", recipe)
    told("plan", recipe, "--gpus", 1)
    told("train", recipe)
    model, predictions, evaluation = f"{root}/run/model", f"{root}/predictions.parquet", f"{root}/evaluation"
    assert f"predictions of {5 * ROWS} rows" in told("predict", model, f"{root}/flat", predictions)
    assert sorted(ids(predictions)) == sorted(ids(f"{root}/flat"))
    told("ensemble", recipe)
    assert len(ids(f"{root}/ensemble/test")) == ROWS
    first = storage.list_files(f"{root}/flat", ".parquet")[0]
    sample = write_targets(recipe.parent / "sample ä.csv", ids(first), np.ones((ROWS, TARGETS.width)))
    told("submit", predictions, f"{root}/submission.csv", "--sample-submission", sample, "--truth", first)
    assert ids(f"{root}/submission.csv") == ids(first)
    report = "--no-report" if "://" in root else "--report"
    assert f"scores of {5 * ROWS} rows" in told("evaluate", predictions, f"{root}/flat", evaluation, "--run", f"{root}/run", report)
    assert storage.exists(f"{evaluation}/scores.json")
    told("export", model, f"{root}/export", "--format", "torchscript")
    (exported,) = storage.list_files(f"{root}/export", ".pt")
    with storage.open_input(exported) as file:
        assert torch.jit.load(file)(torch.zeros(1, 556, dtype=torch.float64)).shape == (1, TARGETS.width)


@pytest.mark.parametrize("locale", ["C", "POSIX"])
def test_so_it_is_without_a_locale_and_below_such_a_home(tmp_path: Path, locale: str) -> None:
    home = tmp_path / STRANGE
    home.mkdir()
    environment = os.environ | {"LC_ALL": locale, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "HOME": str(home), "COLUMNS": "400"}
    recipe = write_recipe(tmp_path, str(home))
    program = "from leapray.cli import main; main()"
    for arguments in (
        ("synthesize", f"{home}/raw", "--kind", "low-res", "--steps", "1", "--columns", "6"),
        ("check", f"{home}/raw"),
        ("recipe", "show", str(recipe)),
    ):
        done = subprocess.run([sys.executable, "-c", program, *arguments], env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    assert b"mein ordner #1 100% " in done.stdout
    assert len(storage.list_files(f"{home}/raw", ".nc")) == 2
