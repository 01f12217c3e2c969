"""Verbs as jobs of a running cluster: a head in processes of its own, on loopback, that wants its token."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from leapray.data.prepare import prepare
from leapray.models.directory import load_info
from leapray.recipe import load_recipe, parse_recipe
from leapray.training.checkpoint import complete
from leapray.training.trainer import train
from tests.official_layout import write_pair
from tests.ray_head import Head, until
from tests.s3_server import Endpoint
from tests.samples import recipe_values, write_flat

pytestmark = pytest.mark.ray
CHECKOUT = Path(__file__).parent.parent
SUBMIT = ["ray", "job", "submit", "--working-dir", str(CHECKOUT)]
LARGEST_UPLOAD = 4 * 2**20


@pytest.fixture(scope="module")
def head(s3_endpoint: Endpoint) -> Iterator[Head]:
    with Head(cpus=8) as started:
        started.wait_for_jobs()
        yield started


def written(path: Path, values: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(values))
    return str(path)


def jobs(head: Head) -> list[dict[str, Any]]:
    """What the cluster knows of its jobs, oldest first."""
    code = "import json; from ray.job_submission import JobSubmissionClient as C; print(json.dumps([j.dict() for j in C().list_jobs()]))"
    told = head.run([sys.executable, "-c", code])
    return sorted(json.loads(told.stdout.splitlines()[-1]), key=lambda job: job["start_time"])


@pytest.fixture(scope="module")
def curves(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """A recipe whose data is prepared, with a worker of Ray Train and a checkpoint after every second, for a run of its own."""
    root = tmp_path_factory.mktemp("jobs")
    write_flat(root / "flat", stop="0001-05", steps=30)
    values = recipe_values(root, epochs=40, batch_size=8, checkpoint_seconds=1e-9, ema={"every": 2, "after": 4})
    values["network"] = {"name": "mlp", "options": {"hidden": [16], "dropout": 0.3}}

    prepare(parse_recipe(values))

    def recipe(run: str) -> str:
        values["training"]["run"] = str(root / run)
        return written(root / f"{run}.yaml", values | {"resources": {"workers": 1}})

    return recipe


def test_a_verb_as_a_job_tells_its_progress_in_lines_and_its_result_last(head: Head, curves: Callable[[str], str], tmp_path: Path) -> None:
    recipe = curves("told")
    write_pair(tmp_path / "raw", 0, columns=3)
    flat = head.run([*SUBMIT, "--", "python", "jobs/run.py", "convert", str(tmp_path / "raw"), str(tmp_path / "flat")])
    assert flat.returncode == 0, flat.stdout
    trained = head.run([*SUBMIT, "--", "python", "jobs/run.py", "train", recipe, "--set", "training.epochs=2"])
    assert trained.returncode == 0, trained.stdout
    (told,) = head.logs()[-1:]
    first, *lines = [line for line in told.splitlines() if line and "job_manager" not in line and "Running entrypoint" not in line]
    assert first.startswith("leapray ")
    assert "on the cluster at" in first
    assert lines[-1].startswith(f"wrote {Path(recipe).with_suffix('')}/model: validation skill")
    assert sum(line.startswith("train  step") for line in lines) >= 2
    assert not [line for line in lines if "\r" in line or "\x1b" in line or "ray" in line.lower().replace("leapray", "")], told


def test_a_mistake_is_the_jobs_last_line_and_its_status(head: Head, tmp_path: Path) -> None:
    submitted = head.run([*SUBMIT, "--", "python", "jobs/run.py", "recipe", "check", str(tmp_path / "none.yaml")])
    assert submitted.returncode == 1
    assert "exit code 2" in submitted.stdout
    assert head.logs()[-1].splitlines()[-1] == f"error: {tmp_path}/none.yaml: no such file"


def test_what_would_be_written_into_rays_copy_of_the_working_directory_is_refused(head: Head, curves: Callable[[str], str]) -> None:
    submitted = head.run([*SUBMIT, "--", "python", "jobs/run.py", "train", curves("relative"), "--set", "training.run=runs/relative"])
    assert submitted.returncode == 1
    last = head.logs()[-1].splitlines()[-1]
    assert last.startswith("error: ")
    assert last.endswith("goes with Ray's session; give a URL, or an absolute path that all nodes see")


def test_what_is_uploaded_is_small(head: Head) -> None:
    uploaded = list(head.folder.glob("session_*/runtime_resources/working_dir_files/_ray_pkg_*/"))
    assert uploaded
    for package in uploaded:
        files = [file for file in package.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
        assert sum(file.stat().st_size for file in files) < LARGEST_UPLOAD
        assert (package / "leapray" / "climsim" / "figures" / "low_res_columns.csv").is_file()
        assert not (package / "tests").exists()


def test_nobody_without_the_token_gets_in(head: Head, tmp_path: Path) -> None:
    submitted = head.run([*SUBMIT, "--", "true"], RAY_AUTH_TOKEN="0" * 64)
    assert submitted.returncode != 0
    assert "oken" in submitted.stderr + submitted.stdout
    write_pair(tmp_path, 0, columns=3)
    joined = head.leapray("convert", tmp_path, tmp_path / "flat", RAY_AUTH_TOKEN="0" * 64)
    assert (joined.returncode, joined.stderr.count("\n")) == (2, 1)
    assert joined.stderr.startswith(f"error: RAY_ADDRESS {head.address}: the cluster wants its token; set RAY_AUTH_MODE=token")
    assert head.token not in joined.stderr


def test_a_stopped_job_leaves_the_cluster_free_and_submitted_again_ends_as_an_undisturbed_one(
    head: Head, curves: Callable[[str], str]
) -> None:
    whole = train(load_recipe(curves("whole")))
    recipe = curves("stopped")
    checkpoints = str(Path(recipe).with_suffix("") / "checkpoints")
    submit = [*SUBMIT, "--submission-id", "stopped", "--no-wait", "--", "python", "jobs/run.py", "train", recipe]
    assert head.run(submit).returncode == 0
    until(lambda: bool(complete(checkpoints)), "a checkpoint")
    stopped = head.run(["ray", "job", "stop", "stopped"])
    assert stopped.returncode == 0
    assert "stopped" in stopped.stdout
    until(lambda: head.free_cpus() == 8, "the cluster to be free")
    done = int(complete(checkpoints)[-1].rsplit("step-", 1)[-1].split("-")[0])
    assert 0 < done < whole.history[-1]["step"]
    assert "interrupted; the same command goes on" in head.run(["ray", "job", "logs", "stopped"]).stdout
    again = head.run([*SUBMIT, "--", "python", "jobs/run.py", "train", recipe])
    assert again.returncode == 0, again.stdout
    model = str(Path(recipe).with_suffix("") / "model")
    assert load_info(model).weights_sha256 == load_info(whole.model_url).weights_sha256


def test_an_experiments_stages_are_jobs_of_their_own(head: Head, tmp_path: Path) -> None:
    base = recipe_values(tmp_path)
    base["data"]["sources"]["low_res"]["test"] = {"start": "0001-05", "stop": "0001-06"}
    write_flat(tmp_path / "flat", stop="0001-06")
    written(tmp_path / "base.yaml", base)
    experiment = written(
        tmp_path / "experiment.yaml", {"name": "sample", "directory": str(tmp_path / "all"), "recipes": {"first": {"recipe": "base.yaml"}}}
    )
    before = len(jobs(head))
    ran = head.leapray("run", experiment, "--apart")
    assert ran.returncode == 0, ran.stderr
    stages = ["prepare first", "train first", "baselines", "ensemble", "evaluate low_res"]
    assert [line.split(":")[0] for line in ran.stdout.splitlines() if line.split(":")[0] in stages] == stages
    assert ran.stdout.splitlines()[-1] == f"wrote {tmp_path}/all: {len(stages)} of {len(stages)} stages done now, the others were finished"
    new = jobs(head)[before:]
    assert [job["type"] for job in new] == ["DRIVER"] * len(stages)
    assert {job["status"] for job in new} == {"SUCCEEDED"}
    assert (
        head.leapray("run", experiment, "--apart")
        .stdout.splitlines()[-1]
        .endswith(f"0 of {len(stages)} stages done now, the others were finished")
    )


def test_a_network_of_ones_own_goes_to_the_cluster_with_the_verb(head: Head, curves: Callable[[str], str], tmp_path: Path) -> None:
    """From a folder that no process of the cluster knows; its workers find ``own.py`` only where it was sent to."""
    recipe = curves("own")
    source = (CHECKOUT / "tests" / "training" / "dying.py").read_text().replace("class Dying(", "class Own(")
    (tmp_path / "own.py").write_text(source)
    settings = ["--set", "training.epochs=1", "--set", "network={name: own:Own}"]
    trained = head.leapray("train", recipe, *settings, cwd=tmp_path)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    model, flat = Path(recipe).with_suffix("") / "model", Path(recipe).parent / "flat"
    predicted = head.leapray("predict", model, flat, tmp_path / "predictions", cwd=tmp_path)
    assert predicted.returncode == 0, predicted.stdout + predicted.stderr
    assert len(pq.read_table(tmp_path / "predictions")) == 3 * 30 * 8
