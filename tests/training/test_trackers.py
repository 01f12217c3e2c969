import json
import struct
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from urllib.parse import quote

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event, SessionLog

from leapray import storage
from leapray.errors import UserError
from leapray.training import trackers
from leapray.training.trackers import Trackers, check_trackers, scalars

RECIPE = {"name": "a run", "training": {"epochs": 2, "ema": None}, "data": {"sources": {"lr": {"kind": "low-res"}}}}


def step(number, loss=0.5):
    return {"event": "step", "epoch": 1, "step": number, "steps": 100, "lr": 0.1, "loss": loss, "rows_per_s": 9.0, "data_wait_s": 0.0}


def validation(number, r2=0.25, skill=0.125):
    scores = {"val_loss": 0.75, "score": skill, "skill": skill, "attainable": 0.5, "skill_by_variable": {"ptend_t": skill}}
    scores |= {"r2": r2, "r2_median": r2, "r2_scored": r2, "leaderboard": r2, "r2_by_variable": {"ptend_t": r2}, "val_rows": 8}
    return step(number) | {"event": "validation", "loss_curve": [0.5]} | scores


def events(file):
    """Events of a file: length (8 bytes), its checksum (4), the event and its checksum (4)."""
    content, found = Path(file).read_bytes(), []
    while content:
        (length,) = struct.unpack("Q", content[:8])
        found.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return found


def drawn(folder):
    """Points by tag as TensorBoard shows them: a session's start hides what stood at its step and after."""
    points = []
    for file in sorted(Path(folder).iterdir(), key=lambda path: (path.stat().st_mtime_ns, path.name)):
        for event in events(file):
            if event.session_log.status == SessionLog.START:
                points = [point for point in points if point[1] < event.step]
            points += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return {tag: [point[1:] for point in points if point[0] == tag] for tag, _, _ in points}


def test_tensorboard_draws_what_records_hold(tmp_path):
    with Trackers(["tensorboard"], str(tmp_path), RECIPE) as followers:
        for record in (step(10, loss=2.0), step(20, loss=1.0), validation(30)):
            followers.add(record)
    shown = drawn(tmp_path / "tensorboard")
    assert shown["loss"] == [(10, 2.0), (20, 1.0)]
    assert shown["rows_per_s"] == [(10, 9.0), (20, 9.0)]
    assert [number for number, _ in shown["lr"]] == [10, 20, 30]
    drawn_once = {"loss_since_validation": 0.5, "val_loss": 0.75, "leaderboard": 0.25, "r2": 0.25, "r2/ptend_t": 0.25}
    for tag, value in (drawn_once | {"skill": 0.125, "attainable": 0.5, "skill/ptend_t": 0.125}).items():
        assert shown[tag] == [(30, value)]


def test_the_wait_for_data_and_the_gpus_use_are_drawn_where_they_are_known():
    assert (
        scalars(step(10) | {"data_wait_share": 0.25, "gpu_use": 0.5, "cpus": 2.0}).items()
        >= {"data_wait_share": 0.25, "gpu_use": 0.5}.items()
    )
    assert {"data_wait_share", "gpu_use"}.isdisjoint(scalars(step(10)))


def test_records_of_other_events_are_not_drawn():
    assert scalars({"event": "started", "step": 3}) == {}


def test_a_resumed_run_hides_what_was_drawn_beyond_its_checkpoint(tmp_path):
    with Trackers(["tensorboard"], str(tmp_path), RECIPE) as followers:
        for number in (10, 20, 30):
            followers.add(step(number, loss=1.0))
    with Trackers(["tensorboard"], str(tmp_path), RECIPE, since_step=20) as followers:
        for number in (25, 35):
            followers.add(step(number, loss=2.0))
    assert drawn(tmp_path / "tensorboard")["loss"] == [(10, 1.0), (20, 1.0), (25, 2.0), (35, 2.0)]


def test_event_files_of_a_remote_run_are_there_after_each_validation_and_at_the_end():
    url = "memory://trackers/run"
    tracker = trackers._TensorBoard(url, 0)
    tracker.log(1, {"loss": 0.5})
    assert storage.list_files(url) == []
    tracker.keep()
    (file,) = storage.list_files(url)
    early = storage.size(file)
    tracker.log(2, {"loss": 0.25})
    tracker.close(finished=True)
    assert storage.list_files(url) == [file]
    assert storage.size(file) > early
    assert not tracker._folder.exists()
    fsspec.filesystem("memory").rm("/trackers", recursive=True)


class Served:
    """A run as an MLflow server keeps it."""

    def __init__(self, run_id, name):
        self.info = SimpleNamespace(run_id=run_id, name=name, lifecycle_stage="active", status="RUNNING")
        self.params, self.points = {}, {}

    @property
    def data(self):
        return SimpleNamespace(metrics={tag: points[-1].value for tag, points in self.points.items()})


class MlflowError(Exception):
    def __init__(self, message, error_code="INTERNAL_ERROR"):
        super().__init__(message)
        self.error_code = error_code


class Server:
    """The part of ``mlflow.MlflowClient`` that is used, as version 3.17 has it, and what it serves."""

    def __init__(self):
        self.runs, self.experiments, self.fault = {}, {}, None

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name):
        self.experiments[name] = str(len(self.experiments))

    def create_run(self, experiment_id, run_name):
        assert experiment_id in self.experiments.values()
        run = Served(f"run{len(self.runs)}", run_name)
        self.runs[run.info.run_id] = run
        return run

    def get_run(self, run_id):
        if run_id not in self.runs:
            raise MlflowError("not found", "RESOURCE_DOES_NOT_EXIST")
        return self.runs[run_id]

    def update_run(self, run_id, status):
        self.runs[run_id].info.status = status

    set_terminated = update_run

    def log_batch(self, run_id, metrics=(), params=()):
        if self.fault and metrics:
            raise self.fault
        assert len(params) <= 100
        self.runs[run_id].params |= {param.key: param.value for param in params}
        for metric in metrics:
            self.runs[run_id].points.setdefault(metric.key, []).append(metric)

    def get_metric_history(self, run_id, key):
        return self.runs[run_id].points[key]

    def steps(self, run_id, tag):
        return [point.step for point in self.runs[run_id].points[tag]]


@pytest.fixture
def server(monkeypatch):
    served, module = Server(), ModuleType("mlflow")
    module.MlflowClient = lambda: served
    module.exceptions = SimpleNamespace(MlflowException=MlflowError)
    module.entities = SimpleNamespace(
        Metric=lambda key, value, timestamp, step: SimpleNamespace(key=key, value=value, timestamp=timestamp, step=step),
        Param=lambda key, value: SimpleNamespace(key=key, value=value),
    )
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "false")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return served


def test_mlflow_gets_the_recipe_and_the_figures(server, tmp_path):
    recipe = RECIPE | {"many": {f"key{index}": index for index in range(150)}}
    with Trackers(["mlflow"], str(tmp_path), recipe) as followers:
        followers.add(step(10))
        followers.add(validation(20))
    (run,) = server.runs.values()
    assert (run.info.name, run.info.status) == ("a run", "FINISHED")
    assert list(server.experiments) == ["leapray"]
    assert run.params["data.sources.lr.kind"] == "low-res"
    assert run.params["many.key149"] == "149"
    assert (run.points["r2/ptend_t"][0].step, run.points["r2/ptend_t"][0].value) == (20, 0.25)


def test_a_resumed_run_goes_on_in_the_same_mlflow_run_and_repeats_no_point(server, tmp_path):
    interrupted = Trackers(["mlflow"], str(tmp_path), RECIPE)
    for record in (step(10), validation(20), step(30)):
        interrupted.add(record)
    interrupted.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert server.runs["run0"].info.status == "FAILED"
    with Trackers(["mlflow"], str(tmp_path), RECIPE, since_step=10) as followers:
        for record in (validation(20), step(25), step(35), validation(40)):
            followers.add(record)
    assert list(server.runs) == ["run0"]
    assert server.runs["run0"].info.status == "FINISHED"
    assert server.steps("run0", "loss") == [10, 30, 35]
    assert server.steps("run0", "r2") == [20, 40]


@pytest.mark.parametrize("loss", ["other server", "deleted"])
def test_a_run_that_mlflow_has_no_more_is_begun_anew(server, tmp_path, loss):
    Trackers(["mlflow"], str(tmp_path), RECIPE).close()
    if loss == "deleted":
        server.runs["run0"].info.lifecycle_stage = "deleted"
    else:
        server.runs["elsewhere"] = server.runs.pop("run0")
    Trackers(["mlflow"], str(tmp_path), RECIPE, since_step=10).close()
    assert json.loads((tmp_path / "mlflow.json").read_text()) == {"run_id": "run1"}


@given(numbers=st.lists(st.integers(1, 30), max_size=30), known=st.integers(-1, 30))
def test_each_tag_of_a_tracker_only_goes_forward(numbers, known):
    """Whatever comes again, as after the restart of a worker."""
    logged = []
    tracker = SimpleNamespace(last={"loss": known}, log=lambda number, values: logged.append((number, set(values))), keep=lambda: None)
    for number in numbers:
        trackers._OwnThread._log(tracker, step(number))
    for tag, first in (("loss", known), ("lr", -1)):
        steps = [number for number, tags in logged if tag in tags]
        assert steps == sorted(set(steps))
        assert set(steps) == {n for i, n in enumerate(numbers) if n > max([first, *numbers[:i]])}


def test_a_server_that_goes_away_is_told_of_once_and_the_others_go_on(server, tmp_path):
    told = []
    server.fault = ConnectionError("no route")
    with Trackers(["tensorboard", "mlflow"], str(tmp_path), RECIPE, tell=told.append) as followers:
        for number in (10, 20, 30):
            followers.add(step(number))
    assert told == ["mlflow is no longer written to (ConnectionError: no route); metrics.jsonl has every record"]
    assert [number for number, _ in drawn(tmp_path / "tensorboard")["loss"]] == [10, 20, 30]


def test_a_server_that_is_away_at_the_start_is_only_warned_of(server, tmp_path):
    server.get_experiment_by_name = None
    with pytest.warns(UserWarning, match="mlflow is no longer written to"), Trackers(["mlflow"], str(tmp_path), RECIPE) as followers:
        followers.add(step(10))


def test_a_server_that_hangs_does_not_hold_up_the_end(server, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "_CLOSE_SECONDS", 0.0)
    answer, told = threading.Event(), []
    server.get_experiment_by_name = lambda name: answer.wait()
    Trackers(["mlflow"], str(tmp_path), RECIPE, tell=told.append).close()
    assert len(told) == 1
    assert "did not take the last records" in told[0]
    answer.set()


PASSWORD = "p@ss/w:rd%"


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        (f"https://me:{quote(PASSWORD, safe='')}@tracking.example:8080/path", "MLFLOW_TRACKING_URI"),
        (f"postgresql://me:{PASSWORD}@db.example/mlflow", "MLFLOW_TRACKING_URI"),
        (f"postgresql://db.example/mlflow?user=me&password={quote(PASSWORD, safe='')}", "MLFLOW_TRACKING_URI"),
        (PASSWORD, "MLFLOW_TRACKING_PASSWORD"),
        (PASSWORD, "MLFLOW_TRACKING_TOKEN"),
    ],
)
def test_no_secret_is_told_or_written(server, tmp_path, monkeypatch, capfd, uri, name):
    monkeypatch.setenv(name, uri)
    told = []
    server.fault = MlflowError(f"API request to {uri}/api failed: {PASSWORD} or {quote(PASSWORD, safe='')} is wrong")
    with Trackers(["mlflow", "tensorboard"], str(tmp_path), RECIPE, tell=told.append) as followers:
        followers.add(step(10))
    shown = capfd.readouterr()
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for text in (*told, shown.out, shown.err, files.decode(errors="replace")):
        assert PASSWORD not in text
        assert quote(PASSWORD, safe="") not in text
    assert "MlflowError: API request to" in told[0]


def test_mlflow_is_kept_from_printing_its_address(server, tmp_path):
    Trackers(["mlflow"], str(tmp_path), RECIPE).close()
    assert trackers.os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] == "true"


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch):
    check_trackers(["tensorboard"])
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match=r"training\.trackers names 'mlflow'.*pip install 'leapray\[mlflow\]'"):
        check_trackers(["tensorboard", "mlflow"])


def test_without_trackers_records_go_nowhere(tmp_path):
    with Trackers([], str(tmp_path), RECIPE) as followers:
        followers.add(step(10))
    assert list(tmp_path.iterdir()) == []
