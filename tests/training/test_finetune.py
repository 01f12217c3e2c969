"""Variants of a base model, trained side by side by Ray Tune on tiny data, without workers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from ray.util import placement_group_table
from typer.testing import CliRunner

from leapray.cli import app
from leapray.console import trainings_table
from leapray.data.prepare import prepare
from leapray.errors import UserError
from leapray.evaluation.intervals import TimedMoments
from leapray.models.directory import load_info, load_model
from leapray.recipe import parse_recipe
from leapray.training.finetune import finetune
from leapray.training.run import Run
from leapray.training.scoring import score_network
from leapray.training.trainer import train
from tests.samples import recipe_values, write_flat

pytestmark = pytest.mark.ray

VARIANTS = {
    "continue": {"training": {}},
    "swa_1": {"training": {"swa": {"start": 1, "lr": 1e-3, "anneal": 0}}},
    "swa_2": {"training": {"swa": {"start": 2, "lr": 1e-3, "anneal": 2}}},
    "ema": {"training": {"ema": {"decay": 0.9, "every": 1, "after": 2}}},
    "greedy": {"average": {"of": ["continue", "ema"], "members": 2, "greedy": True}},
    "uniform": {"average": {"of": "continue", "take": "last", "members": 3}},
}


@pytest.fixture(scope="module")
def root(ray_cluster, tmp_path_factory):
    root = tmp_path_factory.mktemp("finetune")
    # three days of each month
    write_flat(root / "flat", stop="0001-06", stride=36)
    values = recipe_values(root, epochs=1, batch_size=16, run=str(root / "base"))
    values["data"]["sources"]["low_res"]["test"] = {"start": "0001-05", "stop": "0001-06"}
    prepare(parse_recipe(values))
    train(parse_recipe(values))
    return root


def values_of(root: Path, directory: Path, variants: dict = VARIANTS) -> dict:
    values = recipe_values(root, epochs=3, batch_size=16)
    values["data"]["sources"]["low_res"]["test"] = {"start": "0001-05", "stop": "0001-06"}
    return values | {"finetune": {"base": str(root / "base" / "model"), "directory": str(directory), "variants": variants}}


@pytest.fixture(scope="module")
def done(root):
    recipe = parse_recipe(values_of(root, root / "variants"))
    with trainings_table("finetune", list(VARIANTS)) as shown:
        return finetune(recipe, shown)


def weights(model: str | Path) -> dict[str, torch.Tensor]:
    return load_model(str(model)).emulator.network.state_dict()


def test_every_variant_ends_as_another_model_that_began_with_the_base(root, done):
    assert {entry.name for entry in done.entries} == {"base", *VARIANTS}
    assert not done.failed
    shas = {load_info(entry.model).weights_sha256 for entry in done.entries if entry.name != "greedy"}
    assert len(shas) == len(VARIANTS)
    assert load_info(str(root / "variants" / "continue" / "model")).recipe["training"]["start"]["model"] == str(root / "base" / "model")


def test_averages_are_the_means_of_their_members(root, done):
    for name in ("uniform", "greedy"):
        entry = next(entry for entry in done.entries if entry.name == name)
        members = [weights(url) for url in entry.members]
        for key, tensor in weights(entry.model).items():
            mean = np.mean([member[key].double().numpy() for member in members], axis=0)
            np.testing.assert_allclose(tensor.numpy(), mean, rtol=0, atol=1e-6)
    assert len(next(entry for entry in done.entries if entry.name == "uniform").members) == 3


def test_models_are_compared_on_months_that_chose_nothing(root, done):
    prepared = prepare(done.recipe)
    scores: dict[str, TimedMoments] = {}
    for entry in done.entries:
        network = load_model(entry.model).emulator.network
        scores[entry.name] = score_network(network, prepared, "test", torch.device("cpu"))
        score = scores[entry.name].score()
        assert (entry.test_skill, entry.test_r2) == pytest.approx((score.skill, score.learned), abs=1e-12)
        assert entry.attainable == pytest.approx(score.attainable, abs=1e-12)
    base = scores["base"].score().skill
    for entry in done.entries:
        assert entry.interval.low < entry.test_skill < entry.interval.high
        if entry.name != "base":
            assert entry.difference.value == pytest.approx(entry.test_skill - base, abs=1e-12)
            assert entry.difference.low <= entry.difference.value <= entry.difference.high
    ranks = [entry.test_skill for entry in done.entries]
    assert ranks == sorted(ranks, reverse=True)
    written = json.loads((root / "variants" / "variants.json").read_text())
    assert [variant["name"] for variant in written["variants"]] == [entry.name for entry in done.entries]
    assert (root / "variants" / "continue" / "model" / "model.json").exists()
    assert next(v for v in written["variants"] if v["name"] == "continue")["model"] == "continue/model"


def test_a_second_start_trains_nothing_and_a_further_variant_only_itself(root, done):
    before = {path: path.stat().st_mtime_ns for path in (root / "variants").rglob("*.safetensors")}
    more = VARIANTS | {"seed": {"training": {"seed": 7}}}
    again = finetune(parse_recipe(values_of(root, root / "variants", more)))
    assert {entry.name for entry in again.entries} == {"base", *more}
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_variant_that_fails_stops_no_other_and_leaves_nothing_running(root, tmp_path):
    diverges = {"training": {"optimizer": {"name": "adamw", "options": {"lr": 1e30}}}}
    variants = {"bad": diverges, "good": {}, "average": {"average": {"of": ["bad"]}}}
    found = {entry.name: entry for entry in finetune(parse_recipe(values_of(root, tmp_path, variants))).entries}
    assert found["good"].state == "finished"
    assert found["bad"].state == found["average"].state == "failed"
    assert "training loss is" in found["bad"].cause
    assert "none of bad finished" in found["average"].cause
    assert [group for group in placement_group_table().values() if group["state"] == "CREATED"] == []


def test_what_cannot_run_is_refused_before_anything_starts(root, tmp_path):
    def refused(match: str, **changes):
        values = values_of(root, tmp_path, {"a": {}})
        for key, value in changes.items():
            section, name = key.split("__")
            values.setdefault(section, {})[name] = value
        with pytest.raises(UserError, match=match):
            finetune(parse_recipe(values))
        assert list(tmp_path.iterdir()) == []

    refused("not a model directory", finetune__base=str(tmp_path / "nowhere"))
    refused("variant a: .*its network is not the recipe's", network__options={"hidden": [8]})
    refused("9 workers x 1 CPU = 9 CPUs, and this machine has 8", resources__workers=9, training__batch_size=144)
    refused("wants 1 worker x 1 GPU = 1 GPU, and this machine has 0", resources__use_gpu=True)
    with pytest.raises(UserError, match="has no section finetune"):
        finetune(parse_recipe(recipe_values(root)))


def test_a_base_that_was_scaled_otherwise_is_not_compared(root, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(root / "base" / "model", base)
    info = json.loads((base / "model.json").read_text())
    info["transform"]["inputs"]["mean"][0] += 1.0
    (base / "model.json").write_text(json.dumps(info))
    values = values_of(root, tmp_path / "variants", {"a": {"training": {"epochs": 1}}})
    values["finetune"] |= {"base": str(base)}
    with pytest.raises(UserError, match="its data was scaled by transform"):
        finetune(parse_recipe(values))
    values["finetune"] |= {"transform": "any"}
    found = {entry.name: entry for entry in finetune(parse_recipe(values)).entries}
    assert found["base"].test_skill is None
    assert found["a"].test_skill is not None
    assert found["a"].difference is None


def test_the_verb_tells_what_it_wrote(root, done, tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(values_of(root, root / "variants")))
    result = CliRunner().invoke(app, ["finetune", str(recipe)])
    assert result.exit_code == 0, result.output
    assert "swa_1  kept" in result.output
    assert f"wrote {root}/variants/variants.json: 6 variants of {root}/base/model, 0 failed" in result.output.replace("\n", "")


def test_trials_with_workers_that_scale_flat_files_all_end(root, done, tmp_path):
    # each a Trainer whose workers and data tasks want CPUs beside those of the others
    variants = {name: VARIANTS[name] for name in ("continue", "ema")}
    values = values_of(root, tmp_path / "variants", variants) | {"resources": {"workers": 1}}
    values["data"] |= {
        "prepared": str(tmp_path / "prepared"),
        "stream_from": "flat",
        "shuffle_rows": 64,
        "statistics": str(root / "base/model/model.json"),
    }
    prepare(parse_recipe(values))
    found = finetune(parse_recipe(values))
    assert not found.failed
    assert load_info(found.entries[0].model).recipe["resources"]["workers"] == 1
    assert [group for group in placement_group_table().values() if group["state"] == "CREATED"] == []


DRIVER = """
import json, sys
from leapray.recipe import parse_recipe
from leapray.training.finetune import finetune
finetune(parse_recipe(json.load(open(sys.argv[1]))))
"""


def trial_processes() -> list[int]:
    """Processes in which Ray Tune runs a training."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"ImplicitFunc" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_a_killed_variant_goes_on_and_ends_with_the_same_models(root, done, tmp_path):
    variants = {name: VARIANTS[name] for name in ("continue", "ema")}
    others, killed = set(trial_processes()), []

    def kill_at_first_record() -> None:
        runs = [Run(str(tmp_path / name)) for name in variants]
        while not any(run.lines() for run in runs):
            time.sleep(0.02)
        for pid in set(trial_processes()) - others:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill_at_first_record)
        found = finetune(parse_recipe(values_of(root, tmp_path, variants)))
        killing.result()
    assert killed
    assert not found.failed
    for name in variants:
        ours, theirs = (weights(directory / name / "model") for directory in (tmp_path, root / "variants"))
        for key, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[key], rtol=0, atol=1e-6)


def killed_when(command: list[str], happened: Callable[[], bool]) -> None:
    """Run a driver with a cluster of its own and kill both as soon as something has happened."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    driver = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while driver.poll() is None and not happened():
            time.sleep(0.02)
        assert driver.poll() is None, "the driver ended before it was killed"
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()


def test_a_driver_killed_again_and_again_ends_with_the_same_models(root, done, tmp_path):
    variants = tmp_path / "variants"
    values = values_of(root, variants)
    (tmp_path / "recipe.json").write_text(json.dumps(values))
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "recipe.json")]
    killed_when(command, lambda: bool(list(variants.glob("*/checkpoints/*/state.json"))))
    killed_when(command, lambda: len(list(variants.glob("*/model/model.json"))) >= 2)
    finished = {path: path.stat().st_mtime_ns for path in variants.glob("*/model/model.json")}
    assert len(finished) >= 2
    finetune(parse_recipe(values))
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    for name in VARIANTS:
        ours, theirs = (weights(directory / name / "model") for directory in (variants, root / "variants"))
        for key, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[key], rtol=0, atol=1e-6)
