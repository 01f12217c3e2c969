"""Conversions, preparations and trainings whose processes are killed: run again, they leave what undisturbed ones leave, byte for byte."""

import os
import select
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from leapray.data.convert import convert
from leapray.data.prepare import prepare
from leapray.models.directory import load_info
from leapray.recipe import load_recipe
from leapray.training.checkpoint import complete
from leapray.training.trainer import train
from tests.official_layout import write_pair
from tests.samples import recipe_values, write_flat

MARK = "LEAPRAY_TEST_OF_A_KILL"
LAST_BREATH_MS = 60_000


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def processes(mark: str) -> list[int]:
    """File descriptors of the living processes that carry a mark in their environment: the driver's and those of its Ray."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (place / "environ").read_bytes().split(b"\0"):
                found.append(os.pidfd_open(int(place.name)))
        except OSError:
            continue
    return found


def kill_when(finished: Callable[[], bool], log: Path, *arguments: object) -> None:
    """Run a verb and kill its process group as soon as ``finished`` says so; return when its Ray is gone too."""
    mark = uuid.uuid4().hex
    command = [sys.executable, "-c", "from leapray.cli import main; main()", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {MARK: mark}
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    living: list[int] = []
    try:
        while not finished():
            try:
                process.wait(timeout=0.01)
            except subprocess.TimeoutExpired:
                continue
            pytest.fail(f"ended before it could be killed: {log.read_text()}")
        living = processes(mark)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert len(living) > 1
    for one in living:
        gone = select.poll()
        gone.register(one, select.POLLIN)
        assert gone.poll(LAST_BREATH_MS), "a process of a killed driver's Ray outlives it"
        os.close(one)
    assert processes(mark) == []


@pytest.mark.ray
def test_a_killed_conversion_ends_as_an_undisturbed_one(ray_cluster: None, tmp_path: Path) -> None:
    source, whole, killed = (tmp_path / name for name in ("source", "whole", "killed"))
    files = 60
    for part in range(files):
        write_pair(source, 24 * part, columns=3)
    convert(str(source), str(whole))
    kill_when(lambda: any(killed.glob("*.parquet")), tmp_path / "log", "convert", source, killed)
    assert 0 < len(list(killed.glob("*.parquet"))) < files
    convert(str(source), str(killed))
    assert contents(killed) == contents(whole)


@pytest.mark.ray
def test_a_killed_preparation_ends_as_an_undisturbed_one(ray_cluster: None, tmp_path: Path) -> None:
    flat = write_flat(tmp_path / "flat", stop="0002-02")
    recipes = {}
    for name in ("whole", "killed"):
        values = recipe_values(tmp_path / name)
        values["data"] |= {"shuffle_rows": 48, "rows_per_shard": 16}
        values["data"]["sources"]["low_res"] |= {
            "path": str(flat),
            "train": {"start": "0001-02", "stop": "0002-01"},
            "validation": {"start": "0002-01", "stop": "0002-02"},
        }
        recipes[name] = tmp_path / f"{name}.yaml"
        recipes[name].write_text(yaml.safe_dump(values))
    prepare(load_recipe(str(recipes["whole"])))
    prepared = tmp_path / "killed" / "prepared"
    kill_when(lambda: any(prepared.glob("train/low_res/.work/bucket-*.json")), tmp_path / "log", "prepare", recipes["killed"])
    assert any(prepared.glob("train/low_res/.work"))
    prepare(load_recipe(str(recipes["killed"])))
    assert contents(prepared) == contents(tmp_path / "whole" / "prepared")


@pytest.mark.ray
def test_a_killed_training_goes_on_inside_its_epoch_and_ends_as_an_undisturbed_one(ray_cluster: None, tmp_path: Path) -> None:
    write_flat(tmp_path / "flat", stop="0001-05", steps=30)
    ema = {"every": 2, "after": 4}
    values = recipe_values(tmp_path, epochs=12, checkpoint_seconds=1e-9, ema=ema, validations=2)
    values["network"] = {"name": "mlp", "options": {"hidden": [16], "dropout": 0.3}}
    whole = load_recipe(write_yaml(tmp_path / "whole.yaml", values))
    prepare(whole)
    whole = train(whole)
    values["training"]["run"] = str(tmp_path / "killed")
    killed = write_yaml(tmp_path / "killed.yaml", values)
    checkpoints = tmp_path / "killed" / "checkpoints"
    kill_when(lambda: any(checkpoints.glob("step-*/state.json")), tmp_path / "log", "train", killed)
    done = int(complete(str(checkpoints))[-1].rsplit("-", 1)[-1])
    assert done < whole.history[-1]["step"]
    assert load_info(train(load_recipe(killed)).model_url).weights_sha256 == load_info(whole.model_url).weights_sha256


def write_yaml(path: Path, values: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(values))
    return str(path)
