"""Training on several nodes that share nothing but a bucket: data tasks apart from trainers, nodes that die, join, and give notice."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from leapray import storage
from leapray.data.prepare import prepare
from leapray.models.directory import load_model
from leapray.recipe import load_recipe
from leapray.training.trainer import train
from tests.ray_head import Head, Node, until
from tests.s3_server import Endpoint
from tests.samples import recipe_values, write_flat

pytestmark = pytest.mark.ray
TRAINER = {"trainer": 1.0}


@pytest.fixture(scope="module")
def head(s3_endpoint: Endpoint) -> Iterator[Head]:
    """A head that does no work, a node for data, and one trainer."""
    with Head(cpus=0) as started:
        started.add(2, labels="role=data")
        started.add(1, resources=TRAINER)
        yield started


@pytest.fixture
def second(head: Head) -> Iterator[Node]:
    """Another trainer."""
    node = head.add(1, resources=TRAINER)
    yield node
    node.kill()
    until(lambda: len(head.alive()) == 3, "the second trainer to be gone")


def written(path: Path, values: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(values))
    return str(path)


def values(root: str, **training: Any) -> dict[str, Any]:
    """A recipe of flat files that Ray Data scales on data nodes, in three streams of which two workers share two and one."""
    plain: dict[str, Any] = json.loads(json.dumps(recipe_values(Path("/ROOT"), **training)).replace("/ROOT", root))
    plain["training"] |= {"batch_size": 24, "lanes": 3, "checkpoint_seconds": 1}
    plain["data"]["stream_from"] = "flat"
    plain["data"]["shuffle_rows"] = 1200
    plain["resources"] = {
        "workers": 2,
        "min_workers": 1,
        "worker_resources": TRAINER,
        "data_nodes": {"role": "data"},
    }
    return plain


def history(run: str) -> list[dict[str, Any]]:
    return (
        [json.loads(line) for line in storage.read_bytes(f"{run}/metrics.jsonl").splitlines()]
        if storage.exists(f"{run}/metrics.jsonl")
        else []
    )


def same(run: str, alone: str) -> None:
    """Every validation saw the rows of the undisturbed run's in the same steps, and the weights are equal within float32 noise."""
    ours, theirs = ([record for record in history(url) if record["event"] == "validation"] for url in (run, alone))
    assert [(one["step"], one["trained_rows"], one["row_checksum"]) for one in ours] == [
        (one["step"], one["trained_rows"], one["row_checksum"]) for one in theirs
    ]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one["loss_curve"], other["loss_curve"], rtol=1e-4)
        assert one["r2"] == pytest.approx(other["r2"], abs=1e-4)
    models = [load_model(f"{url}/model").emulator.network.state_dict() for url in (run, alone)]
    for name, weights in models[0].items():
        np.testing.assert_allclose(weights.numpy(), models[1][name].numpy(), rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def alone(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Flat files and the run of a training on them in this process."""
    root = tmp_path_factory.mktemp("alone")
    write_flat(root / "flat", stop="0001-05", steps=150)
    plain = values(str(root), epochs=10)
    plain["resources"] = {}
    recipe = load_recipe(written(root / "recipe.yaml", plain))
    prepare(recipe)
    return root, train(recipe).run_url


def uploaded(root: Path, bucket: str) -> str:
    for file in (root / "flat").iterdir():
        storage.write_bytes(f"{bucket}/flat/{file.name}", file.read_bytes())
    return bucket


def test_the_same_recipe_on_three_nodes_and_a_bucket_gives_the_same_model(
    head: Head, alone: tuple[Path, str], bucket: str, tmp_path: Path
) -> None:
    root, run = alone
    recipe = written(tmp_path / "recipe.yaml", values(uploaded(root, bucket), epochs=10))
    for verb in ("prepare", "train"):
        done = head.leapray(verb, recipe)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "on the cluster at" in done.stdout
    same(f"{bucket}/run", run)


def test_nodes_that_die_join_and_give_notice_change_nothing_in_the_result(
    head: Head, second: Node, alone: tuple[Path, str], bucket: str, tmp_path: Path
) -> None:
    root, run = alone
    ours = f"{bucket}/run"
    recipe = written(tmp_path / "recipe.yaml", values(uploaded(root, bucket), epochs=10))
    assert head.leapray("prepare", recipe).returncode == 0
    command = [sys.executable, "-c", "from leapray.cli import main; main()", "train", recipe]
    with (tmp_path / "log").open("wb") as log:
        training = subprocess.Popen(command, env={**os.environ, **head.environment}, stdout=log, stderr=subprocess.STDOUT)

    def beyond(step: int) -> None:
        until(lambda: training.poll() is not None or any(one["step"] > step for one in history(ours)), f"step {step}")
        assert training.poll() is None, (tmp_path / "log").read_text()

    def now() -> int:
        return max(one["step"] for one in history(ours))

    beyond(0)
    second.kill()
    beyond(now() + 20)
    third = head.add(1, resources=TRAINER)
    head.drain(third, seconds=20)
    until(lambda: training.poll() is not None, "the training to end")
    third.kill()
    assert training.returncode == 0, (tmp_path / "log").read_text()
    same(ours, run)
