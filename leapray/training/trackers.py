"""Where the records of a run are also written: TensorBoard's event files in the run's directory, and an MLflow server.

A tracker neither holds a training up nor ends it: each works on a thread of its own, and one that fails is told of once and left.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import parse_qsl, quote, unquote

from leapray import storage
from leapray.errors import UserError
from leapray.faults import shown
from leapray.settings import flatten

Record = Mapping[str, Any]
Values = Mapping[str, float]

_MODULES = {"tensorboard": "tensorboardX", "mlflow": "mlflow"}
_MLFLOW_FILE = "mlflow.json"
_MLFLOW_PARAMS, _MLFLOW_CHARACTERS = 100, 500
"""The most that one request and one value may hold."""
_CLOSE_SECONDS = 60.0
_REASON_CHARACTERS = 200


def check_trackers(names: Iterable[str]) -> None:
    """Raises UserError for a tracker whose library is not installed."""
    for name in names:
        if find_spec(_MODULES[name]) is None:
            extra = " with pip install 'leapray[mlflow]'" if name == "mlflow" else ""
            raise UserError(f"training.trackers names {name!r}, which needs {_MODULES[name]}; install it{extra}, or leave {name!r} out")


def scalars(record: Record) -> dict[str, float]:
    """What is drawn of a ``step`` or ``validation`` record over its step, by tag; other records have nothing to draw.

    A validation's training loss, the mean since the one before, has a tag of its own: that of a step is over a second or so.
    """
    if record["event"] == "step":
        return {key: record[key] for key in ("loss", "lr", "rows_per_s", "data_wait_share", "gpu_use") if key in record}
    if record["event"] == "validation":
        by_variable = {f"{score}/{name}": value for score in ("skill", "r2") for name, value in record[f"{score}_by_variable"].items()}
        figures = {key: record[key] for key in ("val_loss", "skill", "attainable", "r2", "r2_median", "r2_scored", "leaderboard", "lr")}
        return {"loss_since_validation": record["loss"]} | figures | by_variable
    return {}


class Trackers:
    """The open trackers of a run, as a context: its end closes them, and MLflow learns whether the training ended well.

    ``names`` as in ``training.trackers``; ``recipe`` its plain values; ``since_step`` the step that the training goes on from, so that
    what follows takes the place of what an earlier attempt drew. ``tell`` gets a sentence about a tracker that failed.
    """

    def __init__(
        self,
        names: Sequence[str],
        run_url: str,
        recipe: Mapping[str, Any],
        since_step: int = 0,
        tell: Callable[[str], None] = warnings.warn,
    ) -> None:
        openers: dict[str, Callable[[], _Tracker]] = {
            "tensorboard": lambda: _TensorBoard(run_url, since_step),
            "mlflow": lambda: _MLflow(run_url, recipe),
        }
        self._threads = [_OwnThread(name, openers[name], tell) for name in dict.fromkeys(names)]

    def add(self, record: Record) -> None:
        """Hand a record to every tracker, and return at once. A point that was drawn before, at its step or a later one, is left out."""
        for thread in self._threads:
            thread.add(record)

    def close(self, finished: bool = True) -> None:
        """Write what is left, for at most a minute each. ``finished`` says whether the training came to its end."""
        for thread in self._threads:
            thread.close(finished)

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(finished=kind is None)


class _Tracker(Protocol):
    last: dict[str, int]
    """The step of each tag's last point that it has already."""

    def log(self, step: int, values: Values) -> None: ...

    def keep(self) -> None:
        """See to it that what was logged is not lost."""

    def close(self, finished: bool) -> None: ...


class _OwnThread:
    """A tracker at work beside the training, up to its first error."""

    def __init__(self, name: str, opener: Callable[[], _Tracker], tell: Callable[[str], None]) -> None:
        self._name, self._open, self._tell = name, opener, tell
        self._records: SimpleQueue[Record | bool] = SimpleQueue()
        # a daemon, so that a server that does not answer cannot keep the process alive
        self._thread = Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def add(self, record: Record) -> None:
        if self._thread.is_alive():
            self._records.put(record)

    def close(self, finished: bool) -> None:
        self._records.put(finished)
        self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            self._tell(f"{self._name} did not take the last records within {_CLOSE_SECONDS:.0f} s; metrics.jsonl has them all")

    def _work(self) -> None:
        try:
            tracker = self._open()
            while not isinstance(record := self._records.get(), bool):
                self._log(tracker, record)
            tracker.close(finished=record)
        except Exception as error:
            self._tell(f"{self._name} is no longer written to ({_reason(error)}); metrics.jsonl has every record")

    @staticmethod
    def _log(tracker: _Tracker, record: Record) -> None:
        step: int = record["step"]
        if new := {tag: value for tag, value in scalars(record).items() if step > tracker.last.get(tag, -1)}:
            tracker.log(step, new)
            tracker.last |= dict.fromkeys(new, step)
        if record["event"] == "validation":
            tracker.keep()


class _TensorBoard:
    """An event file of ``<run>/tensorboard``. For a remote run it is written in a temporary directory and copied when it is to be kept.

    tensorboardX's SummaryWriter would write from a thread, which hangs its caller for good once the disk is full.
    """

    def __init__(self, run_url: str, since_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self.last: dict[str, int] = {}
        self._url = storage.join(storage.absolute(run_url), "tensorboard")
        self._temporary = None if storage.is_local(run_url) else tempfile.TemporaryDirectory(prefix="leapray-")
        folder = Path(self._temporary.name if self._temporary else self._url)
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._event = folder, Event
        # files are named after the second they were made in
        self._writer = EventsWriter(str(folder / "events"), f".{since_step}")
        # TensorBoard hides what earlier files hold from this step on
        self._write(step=since_step + 1, session_log=SessionLog(status=SessionLog.START))

    def log(self, step: int, values: Values) -> None:
        self._write(step=step, summary={"value": [{"tag": tag, "simple_value": value} for tag, value in values.items()]})

    def keep(self) -> None:
        if self._temporary:
            for file in self._folder.iterdir():
                storage.write_bytes(storage.join(self._url, file.name), file.read_bytes())

    def close(self, finished: bool) -> None:
        self._writer.close()
        self.keep()
        if self._temporary:
            self._temporary.cleanup()

    def _write(self, **content: Any) -> None:
        self._writer.write_event(self._event(wall_time=time.time(), **content))
        self._writer.flush()


class _MLflow:
    """One run of the server that MLFLOW_TRACKING_URI names, the same when the training is resumed: its id stands in ``mlflow.json``.

    Its experiment is MLFLOW_EXPERIMENT_NAME, or leapray. The server's address, which may hold a password, is written nowhere.
    """

    def __init__(self, run_url: str, recipe: Mapping[str, Any]) -> None:
        # MLflow would print the address of the run at its end
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
        import mlflow

        self._client = mlflow.MlflowClient()
        self._metric, self._error = mlflow.entities.Metric, mlflow.exceptions.MlflowException
        file = storage.join(run_url, _MLFLOW_FILE)
        found = self._find(storage.read_json(file)["run_id"]) if storage.exists(file) else None
        if found:
            self._run = found.info.run_id
            self._client.update_run(self._run, status="RUNNING")
        else:
            self._run = self._client.create_run(self._experiment(), run_name=recipe["name"]).info.run_id
            params = [mlflow.entities.Param(key, str(value)[:_MLFLOW_CHARACTERS]) for key, value in flatten(recipe).items()]
            for start in range(0, len(params), _MLFLOW_PARAMS):
                self._client.log_batch(self._run, params=params[start : start + _MLFLOW_PARAMS])
            storage.write_json(file, {"run_id": self._run})
        # the server keeps a point that comes twice twice
        points = {tag: self._client.get_metric_history(self._run, tag) for tag in (found.data.metrics if found else ())}
        self.last = {tag: max(point.step for point in history) for tag, history in points.items()}

    def log(self, step: int, values: Values) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(self._run, metrics=[self._metric(tag, value, now, step) for tag, value in values.items()])

    def keep(self) -> None:
        """The server has it."""

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._run, "FINISHED" if finished else "FAILED")

    def _find(self, run: str) -> Any:
        """A run by its id; None if this server has it not, or no more."""
        try:
            found = self._client.get_run(run)
        except self._error as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return found if found.info.lifecycle_stage == "active" else None

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "leapray")
        if not self._client.get_experiment_by_name(name):
            # another run may make it in between
            with suppress(self._error):
                self._client.create_experiment(name)
        return str(self._client.get_experiment_by_name(name).experiment_id)


def _reason(error: BaseException) -> str:
    """What an error says, in short and without the secrets that MLflow's environment holds."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, "***")
    text = shown(text)
    return text if len(text) <= _REASON_CHARACTERS else f"{text[:_REASON_CHARACTERS]}..."


def _secrets() -> set[str]:
    """The tracking URI and its parts that may be secret, and MLflow's password and token: as they stand, decoded and encoded."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    user = re.search(r"://(.*)@", uri)
    parts = [user[1], user[1].partition(":")[2]] if user else []
    if user or "?" in uri:
        parts.append(uri)
    parts += [value for _, value in parse_qsl(uri.partition("?")[2])]
    parts += [os.environ.get(name, "") for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")]
    return {form for part in parts for form in (part, unquote(part), quote(unquote(part)), quote(unquote(part), safe="")) if form}
